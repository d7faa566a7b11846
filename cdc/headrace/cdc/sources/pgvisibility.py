"""What a SELECT sees of the transactions that the stream delivers, and the WAL position behind all of them.

The rules of the copy rest on this (pgsnapshot.py): a transaction's id is compared with ``pg_current_snapshot()`` of the SELECT's own
transaction (PostgreSQL 18 manual, "Transaction ID and Snapshot Information Functions").
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
import psycopg

from headrace.cdc.position import parse_lsn

_WAL_PAGE = 8192
_LONGEST_PAGE_HEADER = 40
_REPLAY_POLL_S = 0.002
_UNTOLD = 1 << 63

_Cursor = psycopg.AsyncCursor[tuple[object, ...]]


class Visibility(msgspec.Struct, frozen=True):
    """``pg_current_snapshot()``: which transactions a SELECT sees. All ids are 64-bit.

    replayed: on a standby, the positions (before, after) around the taking of the snapshot; running is then unknown.
    """

    xmin: int
    xmax: int
    running: frozenset[int]
    replayed: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str, replayed: tuple[int, int] | None = None) -> Visibility:
        """From the text ``xmin:xmax:xip,xip``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid), replayed)

    def sees(self, xid: int, end_lsn: int) -> bool | None:
        """Whether a committed transaction is visible; None: can't be told. xid: 32 bits, as the stream has it.

        The stream's ids lie within 2^31 of the snapshot's, which decides the missing upper half.
        """
        full = (self.xmax & ~0xFFFFFFFF) | xid
        if full - self.xmax > 1 << 31:
            full -= 1 << 32
        elif self.xmax - full > 1 << 31:
            full += 1 << 32
        if full < self.xmin:
            return True
        if full >= self.xmax:
            return False
        if self.replayed is None:
            return full not in self.running
        before, after = self.replayed
        return True if end_lsn <= before else False if end_lsn > after else None


def unseen_deliveries(delivered: Iterable[int], visibility: Visibility) -> list[int]:
    """Of delivered transactions, those that a SELECT with this visibility doesn't see; on a standby it sees all."""
    if visibility.replayed is not None:
        return [] if visibility.replayed[1] < _UNTOLD else list(delivered)
    return [xid for xid in delivered if not visibility.sees(xid, 0)]


async def replay_position(cursor: _Cursor) -> int | None:
    """How far a standby has replayed; None on a primary."""
    await cursor.execute(
        "select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()::text end"
    )
    found = await cursor.fetchone()
    return None if found is None or found[0] is None else parse_lsn(str(found[0]))


async def current_visibility(cursor: _Cursor, replayed: int | None) -> tuple[Visibility, int]:
    """What the transaction just begun sees, and the time. replayed: ``replay_position`` before it began."""
    await cursor.execute(
        "select pg_catalog.pg_current_snapshot()::text, extract(epoch from clock_timestamp()), pg_catalog.pg_is_in_recovery()"
    )
    found = await cursor.fetchone()
    assert found is not None
    text, time_us = str(found[0]), int(float(str(found[1])) * 1_000_000)
    if replayed is None:
        return Visibility.parse(text), time_us
    if not found[2]:  # promoted just now, before or after the snapshot: whose rules hold can't be told
        return Visibility.parse(text, (replayed, _UNTOLD)), time_us
    # A commit becomes visible a moment before the replay position passes it. That is over once another record is replayed, or
    # when all that was received is. After a promotion the positions stand still.
    first: str | None = None
    while True:
        await cursor.execute(
            "select pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()::text,"
            " not pg_catalog.pg_is_in_recovery() or coalesce(pg_catalog.pg_last_wal_receive_lsn() <="
            " pg_catalog.pg_last_wal_replay_lsn(), true)"
        )
        found = await cursor.fetchone()
        assert found is not None
        first = first or str(found[1])
        if found[2] or str(found[1]) != first:
            return Visibility.parse(text, (replayed, parse_lsn(str(found[1])))), time_us
        await asyncio.sleep(_REPLAY_POLL_S)


async def high_mark(cursor: _Cursor) -> int:
    """A WAL position behind every transaction that the SELECT saw, which the stream is sure to reach.

    The stream reads what is flushed, and what was inserted last may stay unflushed for long on a quiet server: a SELECT itself
    leaves such records (pruning, hint bits). A small message in the WAL, committed, flushes everything before it.
    """
    await cursor.execute(
        "select r, (case when r then pg_catalog.pg_last_wal_replay_lsn() else pg_catalog.pg_current_wal_insert_lsn() end)::text,"
        " (case when r then null else pg_catalog.pg_current_wal_flush_lsn() end)::text from pg_catalog.pg_is_in_recovery() r"
    )
    found = await cursor.fetchone()
    assert found is not None
    is_standby, inserted, flushed = found
    mark = _end_of_last_record(parse_lsn(str(inserted)))
    if not is_standby and parse_lsn(str(flushed)) < mark:
        # local: this commit waits for our own server's disk, not for its replicas.
        await cursor.execute("begin; set local synchronous_commit = local")
        await cursor.execute("select pg_catalog.pg_logical_emit_message(true, 'headrace', '')")
        await cursor.execute("commit")
    return mark


def _end_of_last_record(insert_lsn: int) -> int:
    """The insert position without the header of a page nobody has written to yet.

    The stream's keepalives name ends of records; on an idle server they would never reach a position behind such a header.
    """
    into_page = insert_lsn % _WAL_PAGE
    return insert_lsn - into_page if into_page <= _LONGEST_PAGE_HEADER else insert_lsn
