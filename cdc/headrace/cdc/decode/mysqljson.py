"""MySQL's binary JSON as JSON text.

Follows the MySQL 9 source documentation, "JSON binary format" (sql-common/json_binary.h): a type byte, then for objects and arrays count and
size, the entries (offset and type, small values in place) and the values. Objects keep their own order, which is by length of the key.
Opaque values hold what JSON has no type for: decimals print as numbers, dates and times as the server's CAST prints them, other bytes in
base64 behind their type.
"""

from __future__ import annotations

import base64
import json
import struct
from decimal import Decimal

from headrace.cdc.decode.tablemap import BIT, DATE, DATETIME, GEOMETRY, NEWDECIMAL, TIME, TIMESTAMP
from headrace.cdc.errors import DecodeError

_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = 0, 1, 2, 3, 4
_INT16, _UINT16, _INT32, _UINT32, _INT64, _UINT64, _DOUBLE, _STRING, _OPAQUE = 5, 6, 7, 8, 9, 10, 11, 12, 15
_NUMBERS = {_INT16: "<h", _UINT16: "<H", _INT32: "<i", _UINT32: "<I", _INT64: "<q", _UINT64: "<Q"}
_LITERALS = {0: "null", 1: "true", 2: "false"}
_FLOAT_DIGITS = 15
"""An exponent is written for numbers of more digits before the point than these, or of as many zeros behind it."""
_DEEPEST = 101
"""The server refuses documents deeper than 100."""
_DIGITS_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def json_text(data: bytes) -> str:
    """The document; the text ``null`` for an empty one, which the server stores for a column that was added. Raises DecodeError."""
    if not data:
        return "null"
    try:
        return _value(data[0], memoryview(data)[1:], 0)
    except (IndexError, struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise DecodeError("a JSON document that makes no sense", kind="JSON") from error


def _value(kind: int, data: memoryview, depth: int) -> str:
    if kind <= _LARGE_ARRAY:
        return _container(kind, data, depth)
    if kind == _LITERAL:
        return _LITERALS[data[0]]
    if kind in _NUMBERS:
        return str(struct.unpack_from(_NUMBERS[kind], data)[0])
    if kind == _DOUBLE:
        return _double(struct.unpack_from("<d", data)[0])
    if kind == _STRING:
        length, at = _length(data, 0)
        return json.dumps(bytes(data[at : at + length]).decode(), ensure_ascii=False)
    if kind == _OPAQUE:
        length, at = _length(data, 1)
        return _opaque(data[0], bytes(data[at : at + length]))
    raise KeyError(kind)


def _double(number: float) -> str:
    """The shortest digits that read back the same, by the server's own rule of when to write an exponent."""
    shortest = repr(number)
    sign, digits, last = Decimal(shortest).as_tuple()
    if not isinstance(last, int):
        raise ValueError("a double that is no number")
    text = "".join([str(digit) for digit in digits]).rstrip("0") or "0"
    point = last + len(digits)  # digits before it
    if number == 0:
        return shortest
    if 1 - _FLOAT_DIGITS <= point <= _FLOAT_DIGITS or (point > 0 and len(text) > point):
        return shortest if "e" not in shortest else f"{Decimal(shortest):f}"
    return f"{'-' if sign else ''}{text[0]}{'.' if text[1:] else ''}{text[1:]}e{point - 1}"


def _container(kind: int, data: memoryview, depth: int) -> str:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    is_large = kind in (_LARGE_OBJECT, _LARGE_ARRAY)
    is_object = kind in (_SMALL_OBJECT, _LARGE_OBJECT)
    size = 4 if is_large else 2
    number = "<I" if is_large else "<H"
    (count,) = struct.unpack_from(number, data)
    (length,) = struct.unpack_from(number, data, size)
    data = data[:length]
    at = 2 * size
    keys: list[str] = []
    if is_object:
        for _ in range(count):
            (offset,) = struct.unpack_from(number, data, at)
            (key_length,) = struct.unpack_from("<H", data, at + size)
            key = bytes(data[offset : offset + key_length])
            if len(key) != key_length:
                raise IndexError
            keys.append(json.dumps(key.decode(), ensure_ascii=False))
            at += size + 2
    values: list[str] = []
    for _ in range(count):
        entry = data[at]
        in_place = entry in (_LITERAL, _INT16, _UINT16) or (is_large and entry in (_INT32, _UINT32))
        if in_place:
            values.append(_value(entry, data[at + 1 : at + 1 + size], depth + 1))
        else:
            (offset,) = struct.unpack_from(number, data, at + 1)
            values.append(_value(entry, data[offset:], depth + 1))
        at += 1 + size
    if is_object:
        return "{" + ", ".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True)) + "}"
    return "[" + ", ".join(values) + "]"


def _length(data: memoryview, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    length = 0
    for shift in range(0, 35, 7):
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return length, at
    raise ValueError("a length without an end")


def _opaque(kind: int, raw: bytes) -> str:
    if kind == NEWDECIMAL:
        return _decimal(raw)
    if kind in (DATE, DATETIME, TIMESTAMP, TIME):
        return f'"{_moment(kind, int.from_bytes(raw[:8], "little", signed=True))}"'
    name = {BIT: "bit", GEOMETRY: "geometry"}.get(kind, f"type{kind}")
    return f'"base64:{"type" if not name.startswith("type") else ""}{_type_number(name, kind)}:{base64.b64encode(raw).decode()}"'


def _type_number(name: str, kind: int) -> str:
    return name if name.startswith("type") else str(kind)


def _decimal(raw: bytes) -> str:
    precision, scale = raw[0], raw[1]
    whole = precision - scale
    digits = bytearray(raw[2:])
    is_negative = not digits[0] & 0x80
    digits[0] ^= 0x80
    if is_negative:
        digits = bytearray(byte ^ 0xFF for byte in digits)
    at = _DIGITS_BYTES[whole % 9]
    text = str(int.from_bytes(digits[:at], "big")) if at else ""
    for _ in range(whole // 9):
        text += f"{int.from_bytes(digits[at : at + 4], 'big'):09d}"
        at += 4
    part = ""
    for _ in range(scale // 9):
        part += f"{int.from_bytes(digits[at : at + 4], 'big'):09d}"
        at += 4
    if scale % 9:
        part += f"{int.from_bytes(digits[at:], 'big'):0{scale % 9}d}"
    return ("-" if is_negative else "") + (text.lstrip("0") or "0") + (f".{part}" if part else "")


def _moment(kind: int, packed: int) -> str:
    """The packed form of the server's times: 24 bits of microseconds below seconds, minutes, hours, day and month."""
    sign, packed = ("-" if packed < 0 else ""), abs(packed)
    micros, time = packed & 0xFFFFFF, packed >> 24
    if kind == TIME:
        return f"{sign}{time >> 12 & 0x3FF:02d}:{time >> 6 & 63:02d}:{time & 63:02d}.{micros:06d}"
    day, clock = time >> 17, time & 0x1FFFF
    months = day >> 5
    date = f"{months // 13:04d}-{months % 13:02d}-{day & 31:02d}"
    if kind == DATE:
        return date
    return f"{date} {clock >> 12:02d}:{clock >> 6 & 63:02d}:{clock & 63:02d}.{micros:06d}"


__all__ = ["json_text"]
