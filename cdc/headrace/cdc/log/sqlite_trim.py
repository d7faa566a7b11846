"""Dropping old batches of the embedded log, a bounded step at a time, so that no append waits for a whole clean-up.

A step is part of the writer's transaction. It drops whole batches from the front of a partition, and never one that a stored cursor
still has to read, unless forced. The question "how big is the log" is answered by pages in use: exact, and free at any size.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Generator
from typing import Final, TypeAlias

import msgspec

from headrace.cdc.log.sqlite_file import OFFSET_MASK, PAGE_BYTES, batch_id

_STEP_BATCHES: Final = 256
_STEP_BYTES: Final = 8 << 20

_Head: TypeAlias = tuple[int, int, int, int]  # newest_us, id, first_offset, bytes


class Trim(msgspec.Struct, frozen=True):
    """Drop batches of the partition that end at or below before."""

    partition: int
    before: int
    is_forced: bool


class Retain(msgspec.Struct, frozen=True):
    """Drop, oldest first, what is older than cutoff_us or above max_bytes; None: no such bound."""

    partitions: int
    cutoff_us: int | None
    max_bytes: int | None


class Sweep(msgspec.Struct, frozen=True):
    """Remove staged blobs that will never be published."""


class Trimmings(msgspec.Struct, frozen=True):
    """What a step did. firsts: new first offset by partition. has_more: another step would drop more. pages: about how many it wrote."""

    firsts: dict[int, int]
    has_more: bool
    batches: int
    pages: int


def trim_step(connection: sqlite3.Connection, trim: Trim) -> Trimmings:
    """One step of a trim. firsts always names the partition."""
    partition = trim.partition
    before = trim.before if trim.is_forced else min(trim.before, _pinned(connection).get(partition, trim.before))
    dropped: list[_Head] = []
    has_more = False
    held = 0
    for head in _heads(connection, partition, before):
        if held >= _STEP_BYTES or len(dropped) == _STEP_BATCHES:
            has_more = True
            break
        dropped.append(head)
        held += head[3]
    firsts = _drop(connection, dropped) or {partition: _first(connection, partition)}
    return Trimmings(firsts, has_more, len(dropped), _pages(dropped))


def retain_step(connection: sqlite3.Connection, retain: Retain) -> Trimmings:
    """One step of a retention, over all partitions."""
    pinned = _pinned(connection)
    excess = 0
    if retain.max_bytes is not None:
        (pages,) = connection.execute("pragma page_count").fetchone()
        (free,) = connection.execute("pragma freelist_count").fetchone()
        excess = (pages - free) * PAGE_BYTES - retain.max_bytes
    lanes = [
        _heads(connection, partition, pinned.get(partition, OFFSET_MASK)) for partition in range(retain.partitions)
    ]
    dropped: list[_Head] = []
    has_more = False
    held = 0
    # merge looks only at each lane's oldest remaining batch, so the order inside a partition is kept whatever the times are.
    for head in heapq.merge(*lanes):
        is_old = retain.cutoff_us is not None and head[0] < retain.cutoff_us
        if not is_old and held >= excess:
            break
        if held >= _STEP_BYTES or len(dropped) == _STEP_BATCHES:
            has_more = True
            break
        dropped.append(head)
        held += head[3]
    for lane in lanes:
        lane.close()
    return Trimmings(_drop(connection, dropped), has_more, len(dropped), _pages(dropped))


def sweep_step(connection: sqlite3.Connection, garbage: list[int]) -> Trimmings:
    """Remove the first of these staged blobs. garbage: their ids; what was removed is taken out of it."""
    pages = held = count = 0
    for number in garbage[:_STEP_BATCHES]:
        row = connection.execute("select length(events) from staged where id = ?", (number,)).fetchone()
        if row is not None:
            held += row[0]
            pages += 1 + row[0] // (PAGE_BYTES * 2000)
        connection.execute("delete from staged where id = ?", (number,))
        connection.execute("delete from staging where id = ?", (number,))
        count += 1
        if held >= _STEP_BYTES:
            break
    del garbage[:count]
    return Trimmings({}, bool(garbage), 0, pages)


def _pages(dropped: list[_Head]) -> int:
    """Pages that a drop writes: for each batch its own and a share of the list of free pages, which holds 2,000 a page."""
    return sum(1 + head[3] // (PAGE_BYTES * 2000) for head in dropped)


def _pinned(connection: sqlite3.Connection) -> dict[int, int]:
    """The lowest cursor of each partition that has one."""
    return dict(connection.execute('select partition, min("offset") from cursor group by partition').fetchall())


def _heads(connection: sqlite3.Connection, partition: int, before: int) -> Generator[_Head, None, None]:
    """Batches that end at or below before, oldest first. length() reads no blob, only its size."""
    rows = connection.execute(
        "select newest_us, id, first_offset, case typeof(events) when 'integer' then"
        " (select length(s.events) from staged s where s.id = batch.events) else length(events) end"
        " from batch where id > ? and id <= ? order by id",
        (batch_id(partition, 0), batch_id(partition, max(0, before))),
    )
    try:
        yield from rows
    finally:
        rows.close()


def _drop(connection: sqlite3.Connection, heads: list[_Head]) -> dict[int, int]:
    firsts: dict[int, int] = {}
    for _, key, _, _ in heads:
        firsts[key >> 48] = key & OFFSET_MASK
    for partition, first_offset in firsts.items():
        dropped = (batch_id(partition, 0), batch_id(partition, first_offset))
        connection.execute(
            "delete from staged where id in (select events from batch where id > ? and id <= ? and typeof(events) = 'integer')",
            dropped,
        )
        connection.execute("delete from batch where id > ? and id <= ?", dropped)
        connection.execute("insert or replace into trimmed values (?, ?)", (partition, first_offset))
    return firsts


def _first(connection: sqlite3.Connection, partition: int) -> int:
    row = connection.execute(
        "select first_offset from batch where id > ? and id <= ? order by id limit 1",
        (batch_id(partition, 0), batch_id(partition, OFFSET_MASK)),
    ).fetchone()
    if row is None:
        row = connection.execute("select first_offset from trimmed where partition = ?", (partition,)).fetchone()
    return 0 if row is None else int(row[0])
