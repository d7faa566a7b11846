"""What the server keeps for us, asked now and then beside the stream, and whether its publication still sends everything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
import psycopg

from headrace.cdc.errors import HeadraceError, HistoryMismatch, SourceUnavailable
from headrace.cdc.position import parse_lsn
from headrace.cdc.sources import timeline
from headrace.cdc.sources.failover import StandbyCopy
from headrace.cdc.sources.pgserver import PostgresServer
from headrace.cdc.sources.pgstart import hold_published
from headrace.cdc.sources.pgstate import PostgresState

_log = logging.getLogger("headrace.source")

_ASK_EVERY_S = 5.0


_SLOT = """
select s.lsn::text, (s.lsn - r.restart_lsn)::bigint, (s.lsn - r.confirmed_flush_lsn)::bigint, r.restart_lsn::text,
       r.confirmed_flush_lsn::text, r.wal_status, r.safe_wal_size
  from (select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
                    else pg_catalog.pg_current_wal_lsn() end as lsn) s, pg_catalog.pg_replication_slots r
 where r.slot_name = %s
"""

_OLDEST = """
select pid, null::text, floor(extract(epoch from pg_catalog.clock_timestamp() - xact_start))::int, usename::text, application_name, state
  from pg_catalog.pg_stat_activity where backend_xid is not null and xact_start is not null
 union all
select null, gid, floor(extract(epoch from pg_catalog.clock_timestamp() - prepared))::int, owner::text, '', 'prepared'
  from pg_catalog.pg_prepared_xacts where database = pg_catalog.current_database()
 order by 3 desc limit 1
"""
_ASK_WHO_ABOVE_BYTES = 256 << 20
_OLD_S = 60
_SAY_AGAIN_S = 600.0
_NEARLY_LOST_BYTES = 256 << 20


class Holder(msgspec.Struct, frozen=True):
    """The oldest open transaction that writes: the server can't forget WAL before its beginning. pid None: a prepared one, by gid."""

    pid: int | None
    gid: str | None
    age_s: int
    user: str
    application: str
    state: str

    def __str__(self) -> str:
        if self.pid is None:
            return f'the prepared transaction "{self.gid}" of {self.user}, open for {self.age_s} s'
        return f"the transaction of backend {self.pid} ({self.user}, {self.application or 'unnamed'}, {self.state}), open for {self.age_s} s"


class Wal(msgspec.Struct):
    """What the slot keeps on the server's disk.

    retained_bytes: from restart_lsn on. unconfirmed_bytes: of these what isn't confirmed, that is not durable here. safe_bytes: how much more
    the server writes before it gives the slot up; None without a limit (max_slot_wal_keep_size). status: the server's word (reserved,
    extended, unreserved, lost). holder: while much is kept, who may be the reason.
    """

    retained_bytes: int | None = None
    unconfirmed_bytes: int | None = None
    restart_lsn: str = ""
    confirmed_lsn: str = ""
    status: str = ""
    safe_bytes: int | None = None
    holder: Holder | None = None


class Monitor:
    """Asks until cancelled. fail: takes an error that ends the source.

    server_lsn: the newest WAL position heard of. wal: empty before the first answer.
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
        self.wal = Wal()
        self._said_at = 0.0

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
                self._fail(self._healed(error) if self._server.config.on_gap == "snapshot" else error)
            except psycopg.Error as error:
                _log.debug("source %s: no slot figures (%s)", self._server.name, type(error).__name__)
                if connection.closed:
                    self._fail(self._server.error(error))
            await self._copy.ask()
            await asyncio.sleep(_ASK_EVERY_S)

    def _healed(self, error: HeadraceError) -> SourceUnavailable:
        """What the next start heals (pgstart.start_over)."""
        return SourceUnavailable(error.message, source=self._server.name)

    async def _ask_slot(self) -> None:
        admin = self._server.admin
        cursor = await admin.execute(_SLOT, [self._server.slot])
        row = await cursor.fetchone()
        if row is None or row[0] is None:
            return
        lsn, retained, unconfirmed, restart, confirmed, status, safe = row
        self.server_lsn = max(self.server_lsn, parse_lsn(str(lsn)))
        wal = Wal(
            None if retained is None else int(str(retained)),
            None if unconfirmed is None else int(str(unconfirmed)),
            str(restart or ""),
            str(confirmed or ""),
            str(status or ""),
            None if safe is None else int(str(safe)),
        )
        if (wal.retained_bytes or 0) > _ASK_WHO_ABOVE_BYTES:
            cursor = await admin.execute(_OLDEST)
            found = await cursor.fetchone()
            if found is not None and int(str(found[2])) >= _OLD_S:
                pid, gid, age_s, user, application, doing = found
                wal.holder = Holder(
                    None if pid is None else int(str(pid)),
                    None if gid is None else str(gid),
                    int(str(age_s)),
                    str(user),
                    str(application or ""),
                    str(doing or ""),
                )
        self.wal = wal
        warnings = self.warnings()
        if warnings and time.monotonic() - self._said_at > _SAY_AGAIN_S:
            self._said_at = time.monotonic()
            for warning in warnings:
                _log.warning("source %s: %s", self._server.name, warning)
        drop = self._server.config.wal_budget.drop
        if drop is not None and (wal.retained_bytes or 0) > drop.bytes:
            self._fail(
                SourceUnavailable(
                    f'slot "{self._server.slot}" keeps {(wal.retained_bytes or 0) >> 20} MiB of WAL, more than wal_budget.drop',
                    source=self._server.name,
                )
            )

    def warnings(self) -> list[str]:
        """In a DBA's words; empty when all is well."""
        wal, slot = self.wal, self._server.slot
        found: list[str] = []
        if (wal.retained_bytes or 0) > self._server.config.wal_budget.warn.bytes:
            behind = wal.unconfirmed_bytes or 0
            why = (
                f"headrace is {behind >> 20} MiB behind"
                if behind > (wal.retained_bytes or 0) // 2
                else f"{wal.holder} holds it"
                if wal.holder is not None
                else "a transaction that began at its start may be open still"
            )
            found.append(
                f'slot "{slot}" keeps {(wal.retained_bytes or 0) >> 20} MiB of WAL on the server (wal_budget.warn): {why}'
            )
        if wal.status == "unreserved" or (wal.safe_bytes is not None and wal.safe_bytes < _NEARLY_LOST_BYTES):
            left = "soon" if wal.safe_bytes is None else f"after {max(0, wal.safe_bytes) >> 20} MiB more"
            found.append(f'the server gives slot "{slot}" up {left} (max_slot_wal_keep_size)')
        return found

    async def _follow_promotion(self) -> None:
        """A stream goes on over its standby's promotion; the state must then name the new timeline."""
        cursor = await self._server.admin.execute(timeline.TIMELINE_NOW)
        row = await cursor.fetchone()
        if row is not None and row[0] is not None:
            self._state.timeline = max(self._state.timeline, int(str(row[0])))
