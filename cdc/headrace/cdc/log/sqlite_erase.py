"""Erasing customers from the embedded log: stored batches are written anew without them, in steps between appends.

Freed pages are overwritten with zeros (``secure_delete``) while this goes on, and the WAL is emptied behind it, so that the file holds no byte of what
was erased. Pages that were freed before, by the retention, keep what they held until they are used again.
"""

from __future__ import annotations

import sqlite3
from typing import Final
from zlib import crc32

import msgspec

from headrace.cdc.log.codec import frame, pack, unframe
from headrace.cdc.log.erasing import erased, marks
from headrace.cdc.log.sqlite_file import PAGE_BYTES

_STEP_BYTES: Final = 8 << 20
_STEP_BATCHES: Final = 128


class Erase(msgspec.Struct):
    """ids: of customers. after: batches up to it are done. up_to: the last one. events, letters: erased so far."""

    ids: frozenset[str]
    after: int = -1
    up_to: int = -1
    events: int = 0
    letters: int = 0
    is_begun: bool = False
    is_done: bool = False


def erase_step(connection: sqlite3.Connection, work: Erase) -> int:
    """Go on with it; about how many pages were written. ``is_done`` once nothing is left."""
    connection.execute("pragma secure_delete = on")
    wanted = marks(work.ids)
    if not work.is_begun:
        work.is_begun = True
        work.up_to = connection.execute("select coalesce(max(id), -1) from batch").fetchone()[0]
        for mark in wanted:
            work.letters += connection.execute(
                "delete from letter where instr(body, ?) or instr(context, ?)", (mark, mark)
            ).rowcount
    pages = held = 0
    rows = connection.execute(
        "select b.id, b.first_offset, typeof(b.events) = 'integer', b.events, coalesce(s.events, b.events)"
        " from batch b left join staged s on typeof(b.events) = 'integer' and s.id = b.events"
        " where b.id > ? and b.id <= ? order by b.id limit ?",
        (work.after, work.up_to, _STEP_BATCHES),
    ).fetchall()
    for number, _, is_staged, reference, blob in rows:
        work.after = number
        held += len(blob)
        if any(mark in blob for mark in wanted):
            events, count = erased(unframe(blob), work.ids)
            if count:
                new = frame(pack(events))
                if is_staged:
                    connection.execute("update staged set events = ? where id = ?", (new, reference))
                    connection.execute("update batch set crc = ? where id = ?", (crc32(new), number))
                else:
                    connection.execute("update batch set events = ?, crc = ? where id = ?", (new, crc32(new), number))
                work.events += count
                pages += 2 + 2 * len(blob) // PAGE_BYTES
        if held >= _STEP_BYTES:
            break
    work.is_done = not rows or work.after >= work.up_to
    return pages


__all__ = ["Erase", "erase_step"]
