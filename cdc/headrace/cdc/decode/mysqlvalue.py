"""Row images of the binlog as values, the same that a SELECT gives in a session with time_zone '+00:00'.

Follows the MySQL 9 source documentation, "Rows_event" and the ``*_to_binary`` functions of mysys. What Python says without loss comes as int,
float or str; the rest is the server's own text: DECIMAL with all its digits, times as MySQL prints them (zero dates and months included),
bytes as ``0x...``, JSON as its text. A value that makes no sense in its character set is marked UNDECODABLE, never guessed.
"""

from __future__ import annotations

import struct
import zlib
from math import isfinite
from typing import Any

from headrace.cdc.decode import tablemap as t
from headrace.cdc.decode.jsondiff import patched
from headrace.cdc.decode.mysqlcharset import codec_of, text_of
from headrace.cdc.decode.mysqljson import json_text
from headrace.cdc.decode.tablemap import MappedColumn, TableMap
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNCHANGED, UNDECODABLE, Absent, Op, Row, Value

_DIGITS_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
_FLOAT32, _FLOAT64 = struct.Struct("<f"), struct.Struct("<d")
_INTEGER_BYTES = {t.TINY: 1, t.SHORT: 2, t.INT24: 3, t.LONG: 4, t.LONGLONG: 8}
_LARGEST_VALUE_BYTES = 1 << 30


# How a column is read in the loop itself; _OTHER by its reader.
_OTHER, _SIGNED, _UNSIGNED, _UTF8, _ASCII, _STAMP, _MOMENT, _DATE, _DECIMAL, _DOUBLE = range(10)
_ZERO_MOMENT = 1 << 39
_MASKS = [(1 << 8 * size) - 1 for size in range(9)]
"""All bits of an integer of so many bytes."""
_KINDS = {t.TIMESTAMP2: _STAMP, t.DATETIME2: _MOMENT, t.DATE: _DATE, t.NEWDATE: _DATE, t.DOUBLE: _DOUBLE}
_SIZES = {t.TIMESTAMP2: 4, t.DATETIME2: 5, t.DATE: 3, t.NEWDATE: 3, t.DOUBLE: 8}
_MOST_DIGITS = 18
"""On either side of a decimal's point, so that 64 bits hold them."""
_INSERT, _UPDATE, _DELETE = 0, 1, 2
_PARTIAL_JSON = 1


class RowReader:
    """Reads the row images of one table map."""

    def __init__(self, table: TableMap) -> None:
        self.table = table
        self._columns = [_reader(column) for column in table.columns]
        self._kinds = bytes([_kind(column) for column in table.columns])
        self._widths = bytes([_size(column) & 0xFF for column in table.columns])
        self._metadata = [column.metadata for column in table.columns]
        self._pos = 0
        self._left_out = False
        self._partial: frozenset[int] = frozenset()

    def read(self, data: bytes, pos: int, present: bytes) -> tuple[Row, int]:
        """The image at pos, and the index behind it. present: bitmap of the columns that it holds; the others are UNCHANGED.

        Raises DecodeError.
        """
        try:
            row = self._row(data, pos, present)
        except (IndexError, struct.error, zlib.error, ValueError, OverflowError) as error:
            raise self._nonsense(pos) from error
        return row, self._pos

    def read_all(
        self,
        data: bytes,
        pos: int,
        op: Op,
        first: bytes,
        second: bytes,
        mapped: object,
        into: list[Any],
        is_partial: bool,
    ) -> None:
        """Every row from pos to the end of data as (mapped, op, before, after). second: the bitmap of an update's new images.

        is_partial: an update's new images may have JSON as differences to the old ones (event 39).
        What an update's new image leaves out because it didn't change is filled from the old one, where that has it. Raises DecodeError.
        """
        end = len(data)
        what = _INSERT if op == "insert" else _DELETE if op == "delete" else _UPDATE
        try:
            while pos < end:
                image = self._row(data, pos, first)
                pos = self._pos
                if what == _INSERT:
                    into.append((mapped, op, None, image))
                elif what == _DELETE:
                    into.append((mapped, op, image, None))
                else:
                    if is_partial:
                        pos = self._differences(data, pos)
                    after = self._row(data, pos, second)
                    pos = self._pos
                    if self._partial:
                        after = _patched(after, image)
                        self._partial = frozenset()
                    if self._left_out:
                        after = _filled(after, image)
                    into.append((mapped, op, image, after))
        except (IndexError, struct.error, zlib.error, ValueError, OverflowError) as error:
            raise self._nonsense(pos) from error

    def _differences(self, data: bytes, pos: int) -> int:
        """Which columns of the new image at pos are differences; the index behind what says so."""
        options, pos = t.packed(data, pos)
        if options & _PARTIAL_JSON:
            documents = [index for index, column in enumerate(self.table.columns) if column.type == t.JSON]
            bits = int.from_bytes(data[pos : pos + (len(documents) + 7) // 8], "little")
            pos += (len(documents) + 7) // 8
            self._partial = frozenset([index for place, index in enumerate(documents) if bits >> place & 1])
        return pos

    def _nonsense(self, pos: int) -> DecodeError:
        return DecodeError(
            f"a row of {self.table.schema}.{self.table.table} that makes no sense", kind="rows", index=pos
        )

    def _row(self, data: bytes, pos: int, present: bytes) -> Row:
        count = len(self._kinds)
        end = len(data)
        kinds, widths, columns = self._kinds, self._widths, self._columns
        values: list[Any] = []
        held = 0
        for index in range(count):
            held += (present[index >> 3] >> (index & 7)) & 1
        self._left_out = held < count
        nulls = pos
        pos += (held + 7) >> 3
        if pos > end:
            raise IndexError
        place = 0
        for index in range(count):
            if (present[index >> 3] >> (index & 7)) & 1 == 0:
                values.append(UNCHANGED)
                continue
            is_null = (data[nulls + (place >> 3)] >> (place & 7)) & 1
            place += 1
            if is_null:
                values.append(None)
                continue
            kind, size = kinds[index], widths[index]
            if kind == _OTHER:
                if self._partial and index in self._partial:
                    start = pos + 4
                    pos = start + int.from_bytes(data[pos:start], "little")
                    values.append(_Differences(data[start:pos]))  # until _patched
                    continue
                value, pos = columns[index].read(data, pos)
                values.append(value)
                continue
            if pos + size > end:
                raise IndexError
            if kind <= _UNSIGNED:
                number = 0
                for step in range(size - 1, -1, -1):
                    number = (number << 8) | data[pos + step]
                mask = _MASKS[size]
                if kind == _SIGNED and number > mask >> 1:
                    # Below zero; in steps that 64 bits hold.
                    below = mask - number
                    values.append(-1 - below)
                else:
                    values.append(number)
                pos += size
            elif kind <= _ASCII:
                length = 0
                for step in range(size - 1, -1, -1):
                    length = (length << 8) | data[pos + step]
                pos += size
                if pos + length > end:
                    raise IndexError
                if kind == _UTF8:
                    try:
                        values.append(data[pos : pos + length].decode("utf-8"))
                    except UnicodeDecodeError:
                        values.append(UNDECODABLE)
                else:
                    raw = data[pos : pos + length]
                    values.append(raw.decode("ascii") if raw.isascii() else columns[index].value(raw))
                pos += length
            elif kind == _DECIMAL:
                values.append(_decimal(data, pos, self._metadata[index]))
                pos += size
            elif kind == _DOUBLE:
                (double,) = _FLOAT64.unpack_from(data, pos)
                values.append(_finite(double))
                pos += size
            elif kind == _DATE:
                values.append(_date(data, pos))
                pos += size
            else:
                text = _stamp(data, pos) if kind == _STAMP else _moment(data, pos)
                pos += size
                digits = self._metadata[index]
                if digits:
                    micros = 0
                    size = (digits + 1) >> 1
                    if pos + size > end:
                        raise IndexError
                    for step in range(size):
                        micros = (micros << 8) | data[pos + step]
                    text = f"{text}.{_padded(micros, 2 * size)[:digits]}"
                    pos += size
                values.append(text)
        if pos > end:
            raise IndexError
        self._pos = pos
        return tuple(values)


class _Differences(bytes):
    """Of a JSON document, in place of the new one."""


def _patched(after: Row, before: Row) -> Row:
    """With the documents that the differences make; UNDECODABLE where the old image doesn't hold the old one."""
    row: list[Value | Absent] = []
    for new, old in zip(after, before, strict=True):
        if not isinstance(new, _Differences):
            row.append(new)
        elif isinstance(old, str):
            row.append(patched(old, bytes(new)))
        else:
            row.append(UNDECODABLE)
    return tuple(row)


def _filled(after: Row, before: Row) -> Row:
    return tuple([old if new is UNCHANGED else new for new, old in zip(after, before, strict=True)])


def _decimal(data: bytes, pos: int, metadata: int) -> str:
    """Nine digits in four bytes, the highest first; the top bit is the sign, and a negative number's bytes are inverted."""
    scale = metadata & 0xFF
    digits = (metadata >> 8) - scale
    inverted = 0 if data[pos] & 0x80 else 0xFF
    is_first = 0x80
    whole, part = 0, 0
    while digits > 0:
        taken = digits % 9 or 9
        word = 0
        size = (taken + 1) >> 1 if taken < 9 else 4
        for step in range(size):
            word = (word << 8) | (data[pos + step] ^ inverted ^ is_first)
            is_first = 0
        pos += size
        whole = whole * _ten(taken) + word
        digits -= taken
    digits = scale
    while digits > 0:
        taken = min(digits, 9)
        word = 0
        size = (taken + 1) >> 1 if taken < 9 else 4
        for step in range(size):
            word = (word << 8) | (data[pos + step] ^ inverted ^ is_first)
            is_first = 0
        pos += size
        part = part * _ten(taken) + word
        digits -= taken
    sign = "-" if inverted else ""
    if scale == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{_padded(part, scale)}"


def _ten(digits: int) -> int:
    power = 1
    for _ in range(digits):
        power *= 10
    return power


def _padded(number: int, digits: int) -> str:
    """With zeros before it."""
    return f"{_ten(digits) + number}"[1:]


def _date(data: bytes, pos: int) -> str:
    packed = data[pos] | data[pos + 1] << 8 | data[pos + 2] << 16
    return f"{packed >> 9:04d}-{packed >> 5 & 15:02d}-{packed & 31:02d}"


def _stamp(data: bytes, pos: int) -> str:
    """A TIMESTAMP's seconds since 1970 UTC, big-endian; zero is MySQL's zero date."""
    seconds = 0
    for step in range(4):
        seconds = (seconds << 8) | data[pos + step]
    if seconds == 0:
        return "0000-00-00 00:00:00"
    days, rest = divmod(seconds, 86400)
    year, month, day = _civil(days)
    return f"{year:04d}-{month:02d}-{day:02d} {rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def _moment(data: bytes, pos: int) -> str:
    """A DATETIME's forty bits, big-endian with the top one set: year * 13 + month, day, hour, minute, second."""
    packed = 0
    for step in range(5):
        packed = (packed << 8) | data[pos + step]
    if packed < _ZERO_MOMENT:
        raise ValueError("a DATETIME below zero")
    packed -= _ZERO_MOMENT
    months, day = packed >> 22, (packed >> 17) & 31
    return (
        f"{months // 13:04d}-{months % 13:02d}-{day:02d} "
        f"{(packed >> 12) & 31:02d}:{(packed >> 6) & 63:02d}:{packed & 63:02d}"
    )


def _kind(column: MappedColumn) -> int:
    if column.type in _INTEGER_BYTES:
        return _UNSIGNED if column.is_unsigned else _SIGNED
    if column.type in _KINDS:
        return _KINDS[column.type]
    if column.type == t.NEWDECIMAL:
        scale = column.metadata & 0xFF
        return _DECIMAL if scale <= _MOST_DIGITS and (column.metadata >> 8) - scale <= _MOST_DIGITS else _OTHER
    if column.type not in (t.VARCHAR, t.VAR_STRING, t.STRING, t.BLOB, t.TINY_BLOB, t.MEDIUM_BLOB, t.LONG_BLOB):
        return _OTHER
    codec = codec_of(column.collation)
    return _UTF8 if codec == "utf-8" else _ASCII if _holds_ascii(codec) else _OTHER


def _holds_ascii(codec: str) -> bool:
    """The first 128 bytes mean themselves."""
    plain = bytes(range(128))
    return codec not in ("", "?") and text_of(plain, codec) == plain.decode("ascii")


def _size(column: MappedColumn) -> int:
    """Bytes of the value, or of the length before it; without a fraction of a second."""
    if column.type in _INTEGER_BYTES:
        return _INTEGER_BYTES[column.type]
    if column.type in _SIZES:
        return _SIZES[column.type]
    if column.type == t.NEWDECIMAL:
        return decimal_bytes(column.metadata)
    if column.type in (t.VARCHAR, t.VAR_STRING, t.STRING):
        return 1 if column.metadata < 256 else 2
    return column.metadata & 0xFF


def decimal_bytes(metadata: int) -> int:
    """Of a DECIMAL's value. metadata: precision and scale, a byte each."""
    precision, scale = metadata >> 8, metadata & 0xFF
    words, rest = divmod(precision - scale, 9)
    part_words, part_rest = divmod(scale, 9)
    return 4 * (words + part_words) + _DIGITS_BYTES[rest] + _DIGITS_BYTES[part_rest]


class _Reader:
    """One column."""

    def __init__(self, column: MappedColumn) -> None:
        self.column = column

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        """At pos, and the index behind it."""
        raise NotImplementedError

    def value(self, raw: bytes) -> Value | Absent:
        """Of the bytes behind a length."""
        raise NotImplementedError


class _Year(_Reader):
    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        return (data[pos] + 1900 if data[pos] else 0), pos + 1


class _Float(_Reader):
    """The shortest text that is the same 32 bits."""

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        return shortest_float(data[pos : pos + 4]), pos + 4


def shortest_float(data: bytes) -> Value:
    """Of a FLOAT's four bytes: the number whose text is the shortest that is the same 32 bits."""
    (number,) = _FLOAT32.unpack(data)
    for digits in (6, 7, 8, 9):
        text = f"{number:.{digits}g}"
        if isfinite(number) and _FLOAT32.pack(float(text)) == data:
            return float(text)
    return _finite(number)


def _finite(number: float) -> Value:
    if not isfinite(number):  # no server stores one
        raise ValueError("a float that is no number")
    return number


class _Decimal(_Reader):
    """One of more digits than the loop itself takes; see _decimal."""

    def __init__(self, column: MappedColumn) -> None:
        super().__init__(column)
        precision, scale = column.metadata >> 8, column.metadata & 0xFF
        self._whole_words, self._whole_rest = divmod(precision - scale, 9)
        self._part_words, self._part_rest = divmod(scale, 9)
        self._size = decimal_bytes(column.metadata)

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        raw = bytearray(data[pos : pos + self._size])
        is_negative = not raw[0] & 0x80
        raw[0] ^= 0x80
        if is_negative:
            raw = bytearray(byte ^ 0xFF for byte in raw)
        at = _DIGITS_BYTES[self._whole_rest]
        whole = str(int.from_bytes(raw[:at], "big")) if at else ""
        for _ in range(self._whole_words):
            whole += f"{int.from_bytes(raw[at : at + 4], 'big'):09d}"
            at += 4
        part = ""
        for _ in range(self._part_words):
            part += f"{int.from_bytes(raw[at : at + 4], 'big'):09d}"
            at += 4
        if self._part_rest:
            part += f"{int.from_bytes(raw[at:], 'big'):0{self._part_rest}d}"
        text = (whole.lstrip("0") or "0") + (f".{part}" if part else "")
        return ("-" + text if is_negative else text), pos + self._size


class _Bit(_Reader):
    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        size = (self.column.metadata & 0xFF) + ((self.column.metadata >> 8) + 7) // 8
        return int.from_bytes(data[pos : pos + size], "big"), pos + size


class _OldTimestamp(_Reader):
    """Of a table made before MySQL 5.6, or MariaDB 10.1: whole seconds, little-endian."""

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        return _stamp(data[pos : pos + 4][::-1], 0), pos + 4


class _OldDateTime(_Reader):
    """As decimal digits."""

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        date, time = divmod(int.from_bytes(data[pos : pos + 8], "little"), 1_000_000)
        words = f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d}"
        return f"{words} {time // 10000:02d}:{time // 100 % 100:02d}:{time % 100:02d}", pos + 8


class _Time(_Reader):
    """Hours to 838 with a sign. A negative one is the whole number, fraction included, below the middle."""

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        if self.column.type == t.TIME:
            number = int.from_bytes(data[pos : pos + 3], "little", signed=True)
            sign, number = ("-" if number < 0 else ""), abs(number)
            return f"{sign}{number // 10000:02d}:{number // 100 % 100:02d}:{number % 100:02d}", pos + 3
        digits = self.column.metadata
        size = (digits + 1) // 2
        end = pos + 3 + size
        packed = int.from_bytes(data[pos:end], "big") - (0x800000 << 8 * size)
        sign, packed = ("-" if packed < 0 else ""), abs(packed)
        time, fraction = packed >> 8 * size, packed & (1 << 8 * size) - 1
        micros = fraction * 100 ** (3 - size) if size else 0
        return f"{sign}{time >> 12:02d}:{time >> 6 & 63:02d}:{time & 63:02d}" + _digits(micros, digits), end


def _digits(micros: int, digits: int) -> str:
    return f".{micros:06d}"[: digits + 1] if digits else ""


def _civil(days: int) -> tuple[int, int, int]:
    """Year, month and day of a day since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms")."""
    days += 719_468
    era, of_era = divmod(days, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    return (
        year + era * 400 + (month >= 10),
        month + 3 if month < 10 else month - 9,
        of_year - (153 * month + 2) // 5 + 1,
    )


class _Bytes(_Reader):
    """Everything with a length before it: text in its character set, else bytes."""

    def __init__(self, column: MappedColumn) -> None:
        super().__init__(column)
        kind, metadata = column.type, column.metadata
        if kind in (t.VARCHAR, t.VAR_STRING, t.STRING, t.VARCHAR_COMPRESSED):
            self._head = 1 if metadata < 256 else 2
        else:
            self._head = metadata
        self._codec = "" if kind in (t.GEOMETRY, t.VECTOR) else codec_of(column.collation)
        # BINARY(n): the image leaves trailing zeros out.
        self._pad = metadata if kind == t.STRING and not self._codec else 0

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        start = pos + self._head
        end = start + int.from_bytes(data[pos:start], "little")
        if end > len(data):
            raise IndexError
        return self.value(data[start:end]), end

    def value(self, raw: bytes) -> Value | Absent:
        if self._codec:
            return text_of(raw, self._codec)
        return "0x" + raw.ljust(self._pad, b"\x00").hex()


class _Compressed(_Bytes):
    """MariaDB's COMPRESSED columns: a byte with method and size of the raw length, that length big-endian, zlib data; 0 is plain."""

    def value(self, raw: bytes) -> Value | Absent:
        if not raw:
            return super().value(b"")
        if raw[0] == 0:
            return super().value(raw[1:])
        if raw[0] & 0xF0 != 0x80 or not raw[0] & 7:
            raise ValueError("an unknown method of compression")
        size = raw[0] & 7
        length = int.from_bytes(raw[1 : 1 + size], "big")
        if length > _LARGEST_VALUE_BYTES:
            raise ValueError("a value of more than a gigabyte")
        # The raw deflate stream is told by a bit of the first byte.
        unpacker = zlib.decompressobj(-15 if raw[0] & 8 else 15)
        plain = unpacker.decompress(raw[1 + size :], length)
        if len(plain) != length:
            raise ValueError("compressed data of another length than told")
        return super().value(plain)


class _Json(_Reader):
    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        start = pos + self.column.metadata
        end = start + int.from_bytes(data[pos:start], "little")
        if end > len(data):
            raise IndexError
        return json_text(data[start:end]), end


class _Enum(_Reader):
    """A label; "" for 0, which MySQL stores for a value that was none."""

    def __init__(self, column: MappedColumn) -> None:
        super().__init__(column)
        codec = codec_of(column.collation)
        self._labels: list[Value | Absent] = [
            text_of(label, codec) if codec else UNDECODABLE for label in column.labels
        ]

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        end = pos + (self.column.metadata & 0xFF)
        number = int.from_bytes(data[pos:end], "little")
        return ("" if number == 0 else self._labels[number - 1]), end


class _Set(_Reader):
    def __init__(self, column: MappedColumn) -> None:
        super().__init__(column)
        codec = codec_of(column.collation)
        self._labels = [text_of(label, codec) if codec else UNDECODABLE for label in column.labels]

    def read(self, data: bytes, pos: int) -> tuple[Value | Absent, int]:
        end = pos + (self.column.metadata & 0xFF)
        bits = int.from_bytes(data[pos:end], "little")
        if bits >> len(self._labels):
            raise IndexError
        chosen = [label for place, label in enumerate(self._labels) if bits >> place & 1]
        texts = [label for label in chosen if isinstance(label, str)]
        return (",".join(texts) if len(texts) == len(chosen) else UNDECODABLE), end


_READERS: dict[int, type[_Reader]] = {
    t.YEAR: _Year,
    t.FLOAT: _Float,
    t.NEWDECIMAL: _Decimal,
    t.BIT: _Bit,
    t.TIMESTAMP: _OldTimestamp,
    t.DATETIME: _OldDateTime,
    t.TIME: _Time,
    t.TIME2: _Time,
    t.JSON: _Json,
    t.ENUM: _Enum,
    t.SET: _Set,
    t.BLOB_COMPRESSED: _Compressed,
    t.VARCHAR_COMPRESSED: _Compressed,
}


def _reader(column: MappedColumn) -> _Reader:
    return _READERS.get(column.type, _Bytes)(column)


__all__ = ["RowReader", "shortest_float"]
