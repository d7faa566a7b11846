"""Timelines: does a stored position lie on the history of the server that answers now? (P10)

Each promotion begins a new timeline at a switch point; the former primary may have written on behind it, and what it wrote there is on
no other server. So a position of timeline 1 is a place of timeline 2 only when it lies at or before the point where 2 left 1.
Follows the PostgreSQL 18 manual, "Streaming Replication Protocol", IDENTIFY_SYSTEM and TIMELINE_HISTORY. pg_control_checkpoint is no
source for the timeline: after a promotion it names the old one until the next checkpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import psycopg

from headrace.cdc.errors import HistoryMismatch, SourceUnavailable
from headrace.cdc.position import format_lsn, parse_lsn

_REPLAY_WAIT_S = 10.0
_REPLAY_POLL_S = 0.05

_Connection = psycopg.AsyncConnection[tuple[object, ...]]


class Timelines(msgspec.Struct, frozen=True):
    """The timeline a server is on, and where it left each of its ancestors: timeline -> switch point."""

    system_identifier: str
    current: int
    left_at: dict[int, int]

    def hold(self, timeline: int, lsn: int, *, source: str) -> None:
        """Raise HistoryMismatch unless lsn, a position of ``timeline``, is a place of this server's history."""
        if timeline == self.current:
            return
        if timeline not in self.left_at:
            raise HistoryMismatch(
                f'the server of source "{source}" is on timeline {self.current}, whose history has no timeline {timeline}: '
                f"the log was filled from another branch of it (position {format_lsn(lsn)})",
                source=source,
                advice="point the DSN at the server that the log was filled from, or start a new log (another log.path) "
                "for a fresh snapshot",
            )
        switch = self.left_at[timeline]
        if lsn > switch:
            raise HistoryMismatch(
                f'the server of source "{source}" was promoted: its timeline {self.current} left timeline {timeline} at '
                f"{format_lsn(switch)}, before the log's position {format_lsn(lsn)}: the log holds changes that this "
                "server has never had",
                source=source,
                advice="point the DSN at the former primary if it still lives, or start a new log (another log.path) for a "
                "fresh snapshot; to rule this out, name the standby's physical slot in synchronized_standby_slots on a "
                "primary from PostgreSQL 17 on",
            )


async def read_timelines(connection: _Connection, *, known: int | None) -> Timelines:
    """Ask the server for its timeline; for the history too unless it is ``known``.

    connection: made with ``replication=database`` and not streaming. Raises psycopg's errors.
    """
    cursor = await connection.execute("IDENTIFY_SYSTEM")
    row = await cursor.fetchone()
    assert row is not None
    current = int(str(row[1]))
    left_at: dict[int, int] = {}
    if known not in (None, current) and current > 1:
        cursor = await connection.execute(f"TIMELINE_HISTORY {current}".encode())
        found = await cursor.fetchone()
        assert found is not None
        content = found[1]
        left_at = parse_history(content.decode() if isinstance(content, bytes) else str(content))
    return Timelines(str(row[0]), current, left_at)


def parse_history(text: str) -> dict[int, int]:
    """A timeline history file: lines of timeline, switch point, reason; # begins a comment."""
    left_at: dict[int, int] = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split(maxsplit=2)
        if len(fields) >= 2:
            left_at[int(fields[0])] = parse_lsn(fields[1])
    return left_at


async def await_replay(connection: _Connection, lsn: int, *, say: Callable[[str], None], source: str) -> None:
    """Wait until a standby has replayed up to lsn.

    After a crash it takes connections again before it has replayed all that it had, and another standby may lag behind the
    one that was read before. Raises SourceUnavailable when it takes long.
    """
    end = time.monotonic() + _REPLAY_WAIT_S
    while True:
        cursor = await connection.execute(
            "select pg_catalog.pg_last_wal_replay_lsn()::text, pg_catalog.pg_is_in_recovery()"
        )
        row = await cursor.fetchone()
        assert row is not None
        if row[1] is not True or (row[0] is not None and parse_lsn(str(row[0])) >= lsn):
            return
        reason = f"the standby has replayed up to {row[0]}, not yet to the log's position {format_lsn(lsn)}"
        if time.monotonic() > end:
            raise SourceUnavailable(
                f'source "{source}" can\'t go on: {reason}',
                source=source,
                advice="see on the standby whether it follows its primary: select * from pg_stat_wal_receiver; and "
                "select pg_is_wal_replay_paused()",
            )
        say(reason)
        await asyncio.sleep(_REPLAY_POLL_S)


TIMELINE_NOW = (
    "select case when pg_catalog.pg_is_in_recovery() then (select received_tli from pg_catalog.pg_stat_wal_receiver)"
    " else ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int end"
)
"""The timeline by SQL, for a server that may be promoted while we stream from it: a walsender goes on over a promotion.

NULL on a standby whose WAL receiver isn't running or may not be looked at.
"""
