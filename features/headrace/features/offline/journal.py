"""The feature log's journal: what was emitted since the last Parquet segment, as records that survive a killed process.

Pure file work on one file at a time; knows no store and no Parquet. A record is one flush of one view::

    file    record(header) record(flush) record(flush) ...
    record  u32le length of the body, u32le CRC-32 of the body, body
    header  JSON of Header
    flush   msgpack of Flush

A killed process leaves at most one record cut short, at the end; it was never acknowledged and is cut off when the file is opened again.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from headrace.features.spec import ViewSpec

_FRAME: Final = struct.Struct("<II")
_MOST_BYTES: Final = 1 << 30
"""A longer record is no record: the length itself is broken."""


class Header(msgspec.Struct, frozen=True):
    """What a journal's rows are of, so that it can be sealed without the definitions. generation: the event log's."""

    spec: ViewSpec
    generation: str


class LoggedRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One emitted row. key: join keys in declared order. values: None where the row was deleted. event_time_us: of the entity's newest event.

    state_crc: CRC-32 of the state that went to the store with the row; tells after a crash whether it got there.
    """

    key: tuple[Any, ...]
    values: tuple[Any, ...] | None
    event_time_us: int
    state_crc: int = 0


class Flush(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One write of one view. offset, log_time_us: its checkpoint. created_us: this machine's clock, growing with every flush of the view."""

    offset: int
    log_time_us: int
    created_us: int
    rows: tuple[LoggedRow, ...]


class _RawFlush(msgspec.Struct, array_like=True, frozen=True, gc=False):
    offset: int
    log_time_us: int
    created_us: int
    rows: msgspec.Raw


encode_flush: Final = msgspec.msgpack.Encoder().encode
_decode_flush: Final = msgspec.msgpack.Decoder(Flush).decode
_decode_place: Final = msgspec.msgpack.Decoder(_RawFlush).decode
_decode_header: Final = msgspec.json.Decoder(Header).decode


class JournalWriter:
    """An open journal that grows. size_bytes: with the header."""

    def __init__(self, path: Path, header: Header) -> None:
        """Make the file, or go on with it. Raises OSError."""
        self.path = path
        self._closing = threading.Lock()
        is_new = not path.exists() or path.stat().st_size == 0
        self._file: BinaryIO = path.open("ab", buffering=0)
        self.size_bytes = self._file.seek(0, os.SEEK_END)
        if is_new:
            self._put(msgspec.json.encode(header))

    def append(self, flush: Flush) -> None:
        """In the system's hands on return: a killed process loses nothing of it. Raises OSError."""
        self._put(encode_flush(flush))

    def sync(self) -> None:
        """On the disk on return, unless it is closed before this begins; callable from another thread, also while it is being closed."""
        with self._closing:
            if self._file.closed:
                return
            held = os.dup(self._file.fileno())  # a close meanwhile neither waits for the disk nor takes the file away
        try:
            os.fdatasync(held)
        finally:
            os.close(held)

    def close(self) -> None:
        with self._closing:
            self._file.close()

    def _put(self, body: bytes) -> None:
        data = memoryview(_FRAME.pack(len(body), zlib.crc32(body)) + body)
        size = len(data)
        while data:  # a raw file may take less than it is given, as on a disk that is nearly full
            data = data[self._file.write(data) or 0 :]
        self.size_bytes += size


def read_header(path: Path) -> Header | None:
    """None for a file whose header is cut short: it holds nothing."""
    for _, body in _records(path):
        return _decode_header(body)
    return None


def read_flushes(path: Path) -> Iterator[Flush]:
    """Every whole record, in order."""
    records = _records(path)
    next(records, None)
    for _, body in records:
        yield _decode_flush(body)


class Extent(msgspec.Struct, frozen=True):
    """What a journal holds: whole records up to size_bytes; of the last one offset and created_us, -1 for none."""

    size_bytes: int
    offset: int
    created_us: int


def extent(path: Path, until_offset: int | None = None) -> Extent:
    """The whole records, those after until_offset left out; without decoding a row."""
    records = _records(path)
    found = Extent(0, -1, -1)
    first = next(records, None)
    if first is None:
        return found
    found = Extent(first[0], -1, -1)
    for end, body in records:
        place = _decode_place(body)
        if until_offset is not None and place.offset > until_offset:
            break
        found = Extent(end, place.offset, place.created_us)
    return found


def flushes_at(path: Path, offset: int) -> list[tuple[int, Flush]]:
    """(where its record begins, the flush) of those of one offset, in order."""
    found: list[tuple[int, Flush]] = []
    records = _records(path)
    first = next(records, None)
    start = 0 if first is None else first[0]
    for end, body in records:
        if _decode_place(body).offset == offset:
            found.append((start, _decode_flush(body)))
        start = end
    return found


def cut(path: Path, size_bytes: int) -> None:
    """Keep the first bytes only."""
    with path.open("r+b") as file:
        file.truncate(size_bytes)


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(end of the record, its body); ends before the first record that is cut short or broken."""
    end = 0
    with path.open("rb") as file:
        while len(frame := file.read(_FRAME.size)) == _FRAME.size:
            length, crc = _FRAME.unpack(frame)
            if length > _MOST_BYTES:
                return
            body = file.read(length)
            if len(body) < length or zlib.crc32(body) != crc:
                return
            end += _FRAME.size + length
            yield end, body
