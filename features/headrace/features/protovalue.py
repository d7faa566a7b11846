"""Rows of ``feast.types.Value``, written and read in one go: what every value of every row goes through.

A hot module: Cython compiles it with the types of protovalue.pxd. A kind is the tag byte that begins the value's bytes; encoding.py says which type has which,
and does the lists by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

_BYTES: Final = 0x0A
_STRING: Final = 0x12
_INT32: Final = 0x18
_INT64: Final = 0x20
_FLOAT64: Final = 0x29
_FLOAT32: Final = 0x35
_BOOL: Final = 0x38
_UNIX_TIMESTAMP: Final = 0x40
_LISTS: Final = 0x62
"""Kinds from here on are lists."""

_DOUBLE: Final = struct.Struct("<cd")
_FLOAT: Final = struct.Struct("<cf")
_PLAIN_DOUBLE: Final = struct.Struct("<d")
_PLAIN_FLOAT: Final = struct.Struct("<f")
_ONE_BYTE: Final = tuple([bytes((number,)) for number in range(128)])
_TOP: Final = 1 << 63
_ALL: Final = 0xFFFFFFFFFFFFFFFF
_INT32_MAX: Final = (1 << 31) - 1
_INT64_MAX: Final = (1 << 63) - 1
_US_PER_S: Final = 1_000_000


def encode_row(kinds: bytes, values: Sequence[Any], encoders: Sequence[Callable[[Any], bytes]]) -> list[bytes]:
    """The values' bytes; b"" for None. encoders: of each value's type, used for lists.

    Raises TypeError, OverflowError, ValueError or struct.error when one doesn't fit its kind.
    """
    out: list[bytes] = []
    for place in range(len(kinds)):
        value = values[place]
        kind = kinds[place]
        if value is None:
            out.append(b"")
        elif kind == _INT64:
            if type(value) is not int:
                raise TypeError
            if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
                raise OverflowError
            out.append(b"\x20" + varint(value & _ALL))
        elif kind == _FLOAT64:
            if type(value) is not float and type(value) is not int:
                raise TypeError
            out.append(_DOUBLE.pack(b"\x29", value))
        elif kind == _STRING:
            if type(value) is not str:
                raise TypeError
            text = value.encode()
            out.append(b"\x12" + varint(len(text)) + text)
        elif kind == _INT32:
            if type(value) is not int:
                raise TypeError
            if not -_INT32_MAX - 1 <= value <= _INT32_MAX:
                raise OverflowError
            out.append(b"\x18" + varint(value & _ALL))
        elif kind == _UNIX_TIMESTAMP:
            if type(value) is not int:
                raise TypeError
            seconds = value // _US_PER_S
            if not -_INT64_MAX - 1 <= seconds <= _INT64_MAX:
                raise OverflowError
            out.append(b"\x40" + varint(seconds & _ALL))
        elif kind == _BOOL:
            if type(value) is not bool:
                raise TypeError
            out.append(b"\x38\x01" if value else b"\x38\x00")
        elif kind == _FLOAT32:
            if type(value) is not float and type(value) is not int:
                raise TypeError
            out.append(_FLOAT.pack(b"\x35", value))
        elif kind == _BYTES:
            if type(value) is not bytes:
                raise TypeError
            out.append(b"\x0a" + varint(len(value)) + value)
        else:
            out.append(encoders[place](value))
    return out


def decode_row(kinds: bytes, row: Sequence[bytes | None], start: int) -> list[Any]:
    """Values of ``row[start:]``: None for none, an explicit null or no bytes; a list's bytes as they are.

    Raises ValueError(place, reason) for the first value that is of another type or cut short.
    """
    values: list[Any] = []
    for place in range(len(kinds)):
        data = row[start + place]
        if not data:
            values.append(None)
            continue
        kind = kinds[place]
        size = len(data)
        if data[0] != kind:
            if size > 1 and data[0] == 0x98 and data[1] == 0x01:
                values.append(None)
                continue
            raise ValueError(place, "another type is stored")
        if kind == _FLOAT64:
            if size != 9:
                raise ValueError(place, "cut short")
            values.append(_PLAIN_DOUBLE.unpack_from(data, 1)[0])
            continue
        if kind == _FLOAT32:
            if size != 5:
                raise ValueError(place, "cut short")
            values.append(_PLAIN_FLOAT.unpack_from(data, 1)[0])
            continue
        if kind >= _LISTS:
            values.append(data)
            continue
        number = 0
        shift = 0
        pos = 1
        while True:
            if pos >= size or shift > 63:
                raise ValueError(place, "cut short")
            byte = data[pos]
            pos += 1
            number |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        if kind in (_INT64, _INT32):
            values.append(_signed(number))
        elif kind == _UNIX_TIMESTAMP:
            seconds = _signed(number)
            values.append(seconds * 1_000_000)
        elif kind == _BOOL:
            values.append(number != 0)
        else:
            if number != size - pos:
                raise ValueError(place, "cut short")
            values.append(_text(data, pos, place) if kind == _STRING else data[pos:])
    return values


def _text(data: bytes, pos: int, place: int) -> str:
    try:
        return data[pos:].decode()
    except UnicodeDecodeError as error:
        raise ValueError(place, "no UTF-8") from error


def varint(number: int) -> bytes:
    """Protobuf varint of an unsigned 64-bit integer; a negative one's two's complement takes ten bytes."""
    if number < 128:
        return _ONE_BYTE[number]
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _signed(number: int) -> int:
    """Of the low 64 bits."""
    number &= _ALL
    if number < _TOP:
        return number
    below = number ^ _ALL
    return -1 - below
