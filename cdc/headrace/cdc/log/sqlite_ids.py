"""Message ids that the embedded log has seen: which table holds them, how they move, how a look-up stays cheap.

Ids are hashes: put one by one into a tree they touch a page each (35 us an id once the tree is large; sorted and many thousand at a time 3 us).
So an append writes all its ids as one row of ``seen_run``, in its own transaction, and the loop keeps those in a dict; from
MERGE_IDS on they move, sorted and in steps between appends, into the tree ``seen``. What is in the tree is looked for there only when
a bitmap with one bit an id says that it may be: a new id, which nearly every id is, costs no disk read.

An entry is key, body and, in the tree, the day as 4 bytes: one blob, as a third of a merge's time went into columns.

A step that a crash interrupts is harmless: a run stays until all its ids are in the tree, and an id may stand in both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from headrace.cdc.log.sqlite_file import explained

MERGE_IDS: Final = 32_768
KEY_BYTES: Final = 16
BODY_BYTES: Final = 8
ENTRY_BYTES: Final = KEY_BYTES + BODY_BYTES
DAY_US: Final = 86_400_000_000

SLICE_IDS: Final = 4096
_STEP_IDS: Final = SLICE_IDS
_FILTER_BITS: Final = 1 << 26  # 8 MiB; at 10 million ids one look-up in seven is in vain
_LAST: Final = b"\xff" * (ENTRY_BYTES - KEY_BYTES + 5)


class MergeIds(msgspec.Struct):
    """Move the runs of now into the tree, a step at a time. entries: what is left of them, sorted; None before the first step."""

    up_to: int = 0
    entries: list[tuple[bytes]] | None = None
    at: int = 0


class ForgetIds(msgspec.Struct):
    """Drop ids of days before ``day`` from the tree, a step at a time. after: entries up to it are done."""

    day: int
    after: bytes | None = b""


class ForgetLetters(msgspec.Struct, frozen=True):
    """Drop dead letters received before."""

    before_us: int


class PackedIds(msgspec.Struct, frozen=True, gc=False):
    """What a row of ``seen_run`` gets of one append."""

    at_us: int
    entries: bytes


def packed(bodies: dict[bytes, bytes]) -> bytes:
    """Entries of ENTRY_BYTES. Raises ValueError for a key or body of another length."""
    entries = b"".join([key + body for key, body in bodies.items()])
    if len(entries) != ENTRY_BYTES * len(bodies) or any(len(key) != KEY_BYTES for key in bodies):
        raise ValueError(f"a message id has {KEY_BYTES} bytes and its body {BODY_BYTES}")
    return entries


def unpacked(entries: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Inverse of packed."""
    for at in range(0, len(entries), ENTRY_BYTES):
        yield entries[at : at + KEY_BYTES], entries[at + KEY_BYTES : at + ENTRY_BYTES]


def recent_ids(connection: sqlite3.Connection, path: Path) -> tuple[dict[bytes, bytes], int | None]:
    """What the runs hold, and the time of the oldest."""
    try:
        rows = connection.execute("select at_us, entries from seen_run order by id").fetchall()
    except sqlite3.Error as error:
        raise explained(path, error) from error
    ids: dict[bytes, bytes] = {}
    for _, entries in rows:
        ids.update(unpacked(entries))
    return ids, min((at_us for at_us, _ in rows), default=None)


def has_tree_ids(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the tree holds any id."""
    try:
        return bool(connection.execute("select exists (select 1 from seen)").fetchone()[0])
    except sqlite3.Error as error:
        raise explained(path, error) from error


def find_ids(connection: sqlite3.Connection, path: Path, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Which of the keys the tree holds."""
    found: dict[bytes, bytes] = {}
    try:
        for key in keys:
            row = connection.execute(
                "select entry from seen where entry > ? and entry < ?", (key, key + _LAST)
            ).fetchone()
            if row is not None:
                found[key] = row[0][KEY_BYTES:ENTRY_BYTES]
    except sqlite3.Error as error:
        raise explained(path, error) from error
    return found


def page_of_ids(connection: sqlite3.Connection, path: Path, after: bytes) -> list[bytes]:
    """The next entries of the tree in order, which begin with their keys; none at the end."""
    try:
        rows = connection.execute("select entry from seen where entry > ? order by entry limit ?", (after, _STEP_IDS))
        return [row[0] for row in rows]
    except sqlite3.Error as error:
        raise explained(path, error) from error


def merge_step(connection: sqlite3.Connection, merge: MergeIds) -> tuple[bool, int]:
    """One step, in the writer's transaction: whether there is more, and about how many pages it wrote."""
    if merge.entries is None:
        rows = connection.execute("select id, at_us, entries from seen_run order by id").fetchall()
        found: list[bytes] = []
        for _, at_us, run in rows:
            day = _day(at_us // DAY_US)
            found += [run[at : at + ENTRY_BYTES] + day for at in range(0, len(run), ENTRY_BYTES)]
        found.sort()
        merge.entries = [(entry,) for entry in found]
        merge.up_to = rows[-1][0] if rows else 0
    step = merge.entries[merge.at : merge.at + _STEP_IDS]
    connection.executemany("insert or ignore into seen values (?)", step)
    merge.at += len(step)
    if merge.at < len(merge.entries):
        return True, len(step)
    connection.execute("delete from seen_run where id <= ?", (merge.up_to,))
    return False, len(step)


def forget_ids_step(connection: sqlite3.Connection, forget: ForgetIds) -> tuple[bool, int]:
    """As merge_step."""
    assert forget.after is not None
    row = connection.execute(
        "select entry from seen where entry > ? order by entry limit 1 offset ?", (forget.after, _STEP_IDS)
    ).fetchone()
    bounds = "entry > ?" if row is None else "entry > ? and entry <= ?"
    asked = (forget.after,) if row is None else (forget.after, row[0])
    count = connection.execute(
        f"delete from seen where {bounds} and substr(entry, {ENTRY_BYTES + 1}) < ?", (*asked, _day(forget.day))
    ).rowcount
    forget.after = None if row is None else row[0]
    if row is None:
        connection.execute("insert or replace into meta values ('ids_forgotten_day', ?)", (forget.day,))
    return row is not None, min(count, 64)


def _day(day: int) -> bytes:
    """Days since 1970; in this form they compare as numbers do."""
    return max(0, day).to_bytes(4, "big")


class IdFilter:
    """One bit an id: "surely not" or "maybe"."""

    def __init__(self) -> None:
        self._bits = bytearray(_FILTER_BITS >> 3)

    def add(self, keys: Iterable[bytes]) -> None:
        """keys: or entries."""
        bits = self._bits
        for key in keys:
            place = int.from_bytes(key[:8], "little") & (_FILTER_BITS - 1)
            bits[place >> 3] |= 1 << (place & 7)

    def may_hold(self, key: bytes) -> bool:
        place = int.from_bytes(key[:8], "little") & (_FILTER_BITS - 1)
        return bool(self._bits[place >> 3] & 1 << (place & 7))
