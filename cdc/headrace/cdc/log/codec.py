"""Events to stored blobs and back: one msgpack array of array-like CustomerEvents, with a CRC-32 beside it.

Owns the bytes of a blob; knows no file and no offset. Fields of CustomerEvent are only ever appended, so an older blob decodes with
defaults. A blob is bounded (see BLOB_BYTES), so that a reader never decodes more than about that for one event.

Appends that share a transaction also share blobs: ``frame`` joins the items of several arrays under one header. An array that stays
alone, as every large one does, is stored as it was encoded, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import msgspec

from headrace.cdc.event import CustomerEvent

BLOB_BYTES: Final = 1 << 20
"""A blob takes no further events once it holds this much; one event larger than that is a blob of its own."""

_SLICE_EVENTS: Final = 2048  # of one encode call; ordinary events then fill about half a blob

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[CustomerEvent, ...]).decode
_committed_us = attrgetter("committed_us")


class Packed(msgspec.Struct, gc=False, frozen=True):
    """Consecutive encoded events. array: their msgpack array. newest_us: largest committed_us."""

    count: int
    array: bytes
    newest_us: int


def pack(events: Sequence[CustomerEvent]) -> list[Packed]:
    """Encode in order, cut so that each piece but one of a single huge event stays below BLOB_BYTES.

    Raises what msgspec raises for a value that msgpack can't hold (an int of more than 64 bits, a lone surrogate).
    """
    if len(events) == 1:
        return [Packed(1, _encode(events), events[0].committed_us)]
    packed: list[Packed] = []
    for start in range(0, len(events), _SLICE_EVENTS):
        _pack_slice(events[start : start + _SLICE_EVENTS], packed)
    return packed


def _pack_slice(events: Sequence[CustomerEvent], into: list[Packed]) -> None:
    count = len(events)
    array = _encode(events)
    if len(array) > BLOB_BYTES and count > 1:
        step = -(-count // (len(array) // BLOB_BYTES + 1))
        for start in range(0, count, step):
            _pack_slice(events[start : start + step], into)
    else:
        into.append(Packed(count, array, max(map(_committed_us, events))))


def frame(pieces: Sequence[Packed]) -> bytes:
    """One blob of all the pieces' events, in order."""
    if len(pieces) == 1:
        return pieces[0].array
    count = sum(piece.count for piece in pieces)
    return b"".join((_header(count), *(memoryview(piece.array)[_header_bytes(piece.count) :] for piece in pieces)))


def unframe(blob: bytes) -> tuple[CustomerEvent, ...]:
    """Inverse of frame. Raises msgspec.DecodeError or msgspec.ValidationError when the bytes are no such array."""
    return _decode(blob)


def _header_bytes(count: int) -> int:
    return 1 if count < 16 else 3 if count < 1 << 16 else 5


def _header(count: int) -> bytes:
    # MessagePack, "array format family": fixarray, array 16, array 32.
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")
