"""One column's text as its value, the same for the stream and the snapshot."""

from __future__ import annotations

from math import isfinite

from headrace.cdc.decode.pgtypes import KINDS
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNDECODABLE, Absent, Value

# How a column's text becomes a value: text as it is, or the Python type that says the same without loss.
# The same numbers as in pgtypes.py, which says which type has which; names of this file compile to plain comparisons.
_TEXT, _INT, _BOOL, _FLOAT = 0, 1, 2, 3


def row_kinds(type_oids: list[int]) -> bytes:
    """One byte a column: how ``text_value`` reads it."""
    return bytes([KINDS.get(oid, _TEXT) for oid in type_oids])


def text_value(data: bytes, kind: int) -> Value | Absent:
    """One column's text as its value; the stream and the snapshot share it.

    Exact by construction: integers and booleans have one spelling; a float is the shortest text that reads back as the
    same number (extra_float_digits is pinned), NaN and the infinities stay text because JSON has no number for them.
    Raises DecodeError for text that the type never prints.
    """
    if kind == _INT:
        return _integer(data)
    if kind == _BOOL:
        if data != b"t" and data != b"f":
            raise DecodeError("a value that is no boolean", kind="value")
        return data == b"t"
    if kind == _FLOAT and data not in (b"NaN", b"Infinity", b"-Infinity"):
        try:
            number = float(data)
        except ValueError:  # its text quotes the value
            number = float("nan")
        if not isfinite(number):
            raise DecodeError("a value that is no float", kind="value")
        return number
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return UNDECODABLE


def _integer(data: bytes) -> int:
    """Text of an integer type of at most 64 bits. Raises DecodeError."""
    try:
        number = int(data)
    except ValueError:  # its text quotes the value
        raise DecodeError("a value that is no integer", kind="value") from None
    if not -0x8000000000000000 <= number <= 0x7FFFFFFFFFFFFFFF:
        raise DecodeError("an integer of more than 64 bits", kind="value")
    return number
