"""What the server keeps for us, asked now and then beside the stream, and whether its publication still sends everything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import psycopg

from headrace.cdc.errors import HeadraceError, HistoryMismatch
from headrace.cdc.position import parse_lsn
from headrace.cdc.sources import timeline
from headrace.cdc.sources.failover import StandbyCopy
from headrace.cdc.sources.pgserver import PostgresServer
from headrace.cdc.sources.pgstart import hold_published
from headrace.cdc.sources.pgstate import PostgresState

_log = logging.getLogger("headrace.source")

_ASK_EVERY_S = 5.0


class Monitor:
    """Asks until cancelled. fail: takes an error that ends the source.

    server_lsn: the newest WAL position heard of. retained_bytes: WAL that the slot keeps; None before the first answer.
    """

    def __init__(
        self,
        server: PostgresServer,
        state: PostgresState,
        copy: StandbyCopy,
        *,
        is_standby: bool,
        fail: Callable[[HeadraceError], None],
    ) -> None:
        self._server = server
        self._state = state
        self._copy = copy
        self._is_standby = is_standby
        self._fail = fail
        self.server_lsn = 0
        self.retained_bytes: int | None = None

    async def run(self) -> None:
        """A failed question is only a number less, unless the connection is gone with it."""
        connection = self._server.admin
        while True:
            try:
                await self._ask_slot()
                if self._is_standby:
                    await self._follow_promotion()
                await hold_published(self._server, self._state)
            except HistoryMismatch as error:
                self._fail(error)
            except psycopg.Error as error:
                _log.debug("source %s: no slot figures (%s)", self._server.name, type(error).__name__)
                if connection.closed:
                    self._fail(self._server.error(error))
            await self._copy.ask()
            await asyncio.sleep(_ASK_EVERY_S)

    async def _ask_slot(self) -> None:
        cursor = await self._server.admin.execute(
            "select s.lsn::text, (s.lsn - r.restart_lsn)::bigint from (select case when pg_catalog.pg_is_in_recovery()"
            " then pg_catalog.pg_last_wal_replay_lsn() else pg_catalog.pg_current_wal_lsn() end as lsn) s,"
            " pg_catalog.pg_replication_slots r where r.slot_name = %s",
            [self._server.slot],
        )
        row = await cursor.fetchone()
        if row is not None and row[0] is not None:
            self.server_lsn = max(self.server_lsn, parse_lsn(str(row[0])))
            self.retained_bytes = None if row[1] is None else int(str(row[1]))

    async def _follow_promotion(self) -> None:
        """A stream goes on over its standby's promotion; the state must then name the new timeline."""
        cursor = await self._server.admin.execute(timeline.TIMELINE_NOW)
        row = await cursor.fetchone()
        if row is not None and row[0] is not None:
            self._state.timeline = max(self._state.timeline, int(str(row[0])))
