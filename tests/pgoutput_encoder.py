"""Writes pgoutput frames, as a server does: the inverse of the decoder, for round trips over streams that no server is asked to make.

Follows the PostgreSQL 18 manual, "Logical Replication Message Formats"; written from there, not from the decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

from headrace.cdc.event import UNCHANGED, Absent

Wire: TypeAlias = bytes | Absent | None
"""One value on the wire: its text, NULL, or UNCHANGED."""

_EPOCH_2000_US = 946_684_800_000_000


def frame(message: bytes, *, lsn: int = 0) -> bytes:
    return struct.pack(">cQQq", b"w", lsn, lsn, 0) + message


def keepalive(wal_end: int, time_us: int, *, wants_reply: bool) -> bytes:
    return struct.pack(">cQqB", b"k", wal_end, time_us - _EPOCH_2000_US, wants_reply)


def begin(commit_lsn: int, time_us: int, xid: int) -> bytes:
    return frame(struct.pack(">cQqI", b"B", commit_lsn, time_us - _EPOCH_2000_US, xid))


def commit(commit_lsn: int, end_lsn: int, time_us: int) -> bytes:
    return frame(struct.pack(">cBQQq", b"C", 0, commit_lsn, end_lsn, time_us - _EPOCH_2000_US))


def relation(oid: int, schema: str, table: str, identity: str, columns: Sequence[tuple[str, int, int, bool]]) -> bytes:
    """columns: (name, type OID, modifier, is part of the identity)."""
    parts = [b"R", struct.pack(">I", oid), schema.encode() + b"\0", table.encode() + b"\0", identity.encode()]
    parts.append(struct.pack(">H", len(columns)))
    for name, type_oid, modifier, is_key in columns:
        parts += [bytes([is_key]), name.encode() + b"\0", struct.pack(">Ii", type_oid, modifier)]
    return frame(b"".join(parts))


def row(values: Sequence[Wire]) -> bytes:
    parts = [struct.pack(">H", len(values))]
    for value in values:
        if isinstance(value, bytes):
            parts += [b"t", struct.pack(">i", len(value)), value]
        else:
            parts.append(b"u" if value is UNCHANGED else b"n")
    return b"".join(parts)


def insert(oid: int, after: Sequence[Wire]) -> bytes:
    return frame(b"I" + struct.pack(">I", oid) + b"N" + row(after))


def update(oid: int, before: tuple[str, Sequence[Wire]] | None, after: Sequence[Wire]) -> bytes:
    """before: the letter K or O, and the old row."""
    old = b"" if before is None else before[0].encode() + row(before[1])
    return frame(b"U" + struct.pack(">I", oid) + old + b"N" + row(after))


def delete(oid: int, before: tuple[str, Sequence[Wire]]) -> bytes:
    return frame(b"D" + struct.pack(">I", oid) + before[0].encode() + row(before[1]))


def truncate(oids: Sequence[int]) -> bytes:
    return frame(struct.pack(">cIB", b"T", len(oids), 0) + b"".join(struct.pack(">I", oid) for oid in oids))


def streamed(plain: bytes, xid: int) -> bytes:
    """A row, relation or type message as it stands inside a stream block, with the (sub)transaction it is of."""
    return plain[:26] + struct.pack(">I", xid) + plain[26:]


def stream_start(xid: int, *, is_first: bool) -> bytes:
    return frame(struct.pack(">cIB", b"S", xid, is_first))


def stream_stop() -> bytes:
    return frame(b"E")


def stream_commit(xid: int, commit_lsn: int, end_lsn: int, time_us: int) -> bytes:
    return frame(struct.pack(">cIBQQq", b"c", xid, 0, commit_lsn, end_lsn, time_us - _EPOCH_2000_US))


def stream_abort(xid: int, subxid: int) -> bytes:
    return frame(struct.pack(">cII", b"A", xid, subxid))
