"""Whether a promotion of the configured standby would keep our place, asked of that standby itself.

The primary can't know: the copy of a failover slot is temporary until the primary's has advanced past it, and a promotion drops a
temporary copy (PostgreSQL 18 manual, "Replication Slot Synchronization"). So nothing is claimed when no ``standby_dsn`` was given.
"""

from __future__ import annotations

import asyncio
import logging

import psycopg

from headrace.cdc.errors import HeadraceError
from headrace.cdc.sources import preflight
from headrace.cdc.sources.postgres_config import PostgresConfig, connect_error, conninfo, safe_name

_log = logging.getLogger("headrace.source")
_PATIENCE_S = 10.0


class StandbyCopy:
    """The standby's copy of one slot. is_safe: what the last ``ask`` found; None before it or without ``standby_dsn``."""

    def __init__(self, config: PostgresConfig, *, source: str, slot: str) -> None:
        self._config = config
        self._source = source
        self._slot = slot
        self.is_safe: bool | None = None

    async def ask(self) -> None:
        """Ask the standby; unreachable counts as not safe. Does nothing without ``standby_dsn``."""
        if self._config.standby_dsn is None:
            return
        try:
            async with asyncio.timeout(_PATIENCE_S):
                is_safe = await self._survives()
        except (psycopg.Error, HeadraceError, TimeoutError) as error:
            _log.debug("source %s: the standby can't be asked (%s)", self._source, type(error).__name__)
            is_safe = False
        if is_safe != self.is_safe:
            _log.info(
                "source %s: slot %s %s failover-safe", self._source, self._slot, "is" if is_safe else "is not yet"
            )
        self.is_safe = is_safe

    async def findings(self) -> list[preflight.Finding]:
        """A warning when the copy wouldn't survive, or the standby can't be asked."""
        if self._config.standby_dsn is None:
            return []
        said: str | None = None
        try:
            if await self._survives():
                return []
        except psycopg.Error as error:
            said = connect_error(error, config=self._config, source=self._source, field="standby_dsn").message
        return [preflight.copy_finding(self._slot, safe_name(self._config.standby_dsn), said=said)]

    async def _survives(self) -> bool:
        """A copy that is still temporary is dropped at promotion; an invalidated one is of no use."""
        dsn = conninfo(self._config, source=self._source, field="standby_dsn")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as standby:
            cursor = await standby.execute(
                "select synced and not temporary and invalidation_reason is null from pg_catalog.pg_replication_slots"
                " where slot_name = %s and pg_catalog.pg_is_in_recovery()",
                [self._slot],
            )
            row = await cursor.fetchone()
            return row is not None and row[0] is True
