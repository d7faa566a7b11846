"""Questions to a stored log, over any connection: the writer's own process and a reader beside it ask in the same words.

Every function runs in the thread that uses the connection and blocks on the disk; none writes.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from zlib import crc32

import msgspec

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Bounds, Cursor, LogBatch
from headrace.cdc.log.codec import unframe
from headrace.cdc.log.lane import take
from headrace.cdc.log.rules import check_read
from headrace.cdc.log.sqlite_file import OFFSET_MASK, batch_id, damaged, explained

_READ = "select id, first_offset, crc, events from batch where id > ? and id <= ? order by id"

# One statement, so that first and end are of the same moment even outside a transaction.
_BOUNDS = """
select (select first_offset from batch where id > :low and id <= :high order by id limit 1),
       (select id from batch where id > :low and id <= :high order by id desc limit 1),
       (select first_offset from trimmed where partition = :partition)
"""


def read_batch(
    connection: sqlite3.Connection, path: Path, partition: int, offset: int, max_bytes: int, end: int = OFFSET_MASK
) -> LogBatch:
    """EventLog.read without the waiting; events beyond end are left out.

    Raises Trimmed, ValueError as the contract says; LogError naming the offset when a blob isn't what was written.
    """
    low, high = batch_id(partition, offset), batch_id(partition, end)
    try:
        # Twice, because the batch may have been appended between the two statements of the first look.
        for _ in range(2):
            events = _events(connection, path, low, high, max_bytes)
            if events is not None:
                return LogBatch(partition, offset, events)
            now = _bounds(connection, partition)
            check_read(partition, offset, now)
            if offset == now.end:
                return LogBatch(partition, offset, ())
        raise damaged(path, partition, offset, "the batch that holds it is missing")
    except sqlite3.Error as error:
        raise explained(path, error) from error


def _events(
    connection: sqlite3.Connection, path: Path, low: int, high: int, max_bytes: int
) -> tuple[CustomerEvent, ...] | None:
    """Events above low; None when the batch that would hold the first isn't there."""
    found: list[CustomerEvent] = []
    left = max_bytes
    wanted = low & OFFSET_MASK
    rows = connection.execute(_READ, (low, high))
    try:
        for key, first_offset, crc, blob in rows:
            end_offset = key & OFFSET_MASK
            if first_offset > wanted:
                if found:
                    raise damaged(path, key >> 48, wanted, "the events up to the next batch are missing")
                return None
            if isinstance(blob, int):
                blob = _staged(connection, path, key, first_offset, blob)
            events = _decoded(path, key, first_offset, crc, blob)
            mean_bytes = len(blob) / len(events)
            if first_offset < wanted:
                events = events[wanted - first_offset :]
            if mean_bytes * len(events) >= left:
                if not found or left >= mean_bytes:
                    found += take(events, mean_bytes, left)
                break
            found += events
            left -= int(mean_bytes * len(events))
            wanted = end_offset
    finally:
        rows.close()
    return tuple(found) if found else None


def _staged(connection: sqlite3.Connection, path: Path, key: int, first_offset: int, number: int) -> bytes:
    row = connection.execute("select events from staged where id = ?", (number,)).fetchone()
    if row is None:
        raise damaged(path, key >> 48, first_offset, "the batch's events are missing")
    return bytes(row[0])


def _decoded(path: Path, key: int, first_offset: int, crc: int, blob: bytes) -> tuple[CustomerEvent, ...]:
    if crc32(blob) != crc:
        raise damaged(path, key >> 48, first_offset, "the checksum of the batch is wrong")
    try:
        events = unframe(blob)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # from None: msgspec's text may quote what it met.
        raise damaged(path, key >> 48, first_offset, "the batch can't be decoded") from None
    if len(events) != (key & OFFSET_MASK) - first_offset:
        raise damaged(path, key >> 48, first_offset, "the batch holds another number of events than its offsets say")
    return events


def bounds(connection: sqlite3.Connection, path: Path, partition: int) -> Bounds:
    """First and end offset as stored."""
    try:
        return _bounds(connection, partition)
    except sqlite3.Error as error:
        raise explained(path, error) from error


def _bounds(connection: sqlite3.Connection, partition: int) -> Bounds:
    first, last_id, trimmed = connection.execute(
        _BOUNDS,
        {"low": batch_id(partition, 0), "high": batch_id(partition, OFFSET_MASK), "partition": partition},
    ).fetchone()
    if last_id is None:
        return Bounds(trimmed or 0, trimmed or 0)
    return Bounds(first, last_id & OFFSET_MASK)


def source_state(connection: sqlite3.Connection, path: Path, source: str) -> bytes | None:
    """EventLog.source_state."""
    try:
        row = connection.execute("select state from source where name = ?", (source,)).fetchone()
    except sqlite3.Error as error:
        raise explained(path, error) from error
    return None if row is None else row[0]


def cursors(connection: sqlite3.Connection, path: Path) -> dict[tuple[str, int], Cursor]:
    """Every stored cursor by group and partition."""
    try:
        rows = connection.execute('select "group", partition, "offset", state from cursor').fetchall()
    except sqlite3.Error as error:
        raise explained(path, error) from error
    return {(group, partition): Cursor(offset, state) for group, partition, offset, state in rows}


def by_group(found: dict[tuple[str, int], Cursor]) -> dict[str, dict[int, Cursor]]:
    """The same cursors as group -> partition -> cursor, sorted."""
    groups: dict[str, dict[int, Cursor]] = {}
    for (group, partition), cursor in sorted(found.items(), key=lambda item: item[0]):
        groups.setdefault(group, {})[partition] = cursor
    return groups


def data_version(connection: sqlite3.Connection, path: Path) -> int:
    """A number that changes when another connection commits; only comparable within one connection."""
    try:
        return int(connection.execute("pragma data_version").fetchone()[0])
    except sqlite3.Error as error:
        raise explained(path, error) from error
