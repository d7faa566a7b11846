"""A column's value, as it stands in the log, read as a typed feature value.

Events hold what the decoder could say exactly: int, bool, finite float or str, and the server's own text for the rest (numeric, times,
bytea, ...). A converter turns that into the Python value of a ValueType or raises ValueError: nothing is guessed. NULL stays None.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from headrace.cdc.decode.pgtime import timestamp_us
from headrace.cdc.event import Value, key_text
from headrace.features.spec import FeatureValue, ValueType

Converter: TypeAlias = Callable[[Value], FeatureValue]

_INTEGER = re.compile(r"([+-]?\d+)(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|-?Infinity|NaN")
_FLOAT32 = struct.Struct("<f")


def whole_number(value: Value) -> int:
    """An int of a non-null value: ints, bools, integral floats, and text of an integer (numeric 5.00 is 5). Raises ValueError."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    match = _INTEGER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("no whole number")
    return int(match[1])


def _to_int(value: Value, limit: int) -> int:
    number = whole_number(value)
    if not -limit <= number < limit:
        raise ValueError("out of range")
    return number


def _to_float(value: Value) -> float:
    if isinstance(value, str):
        if _NUMBER.fullmatch(value) is None:
            raise ValueError("no number")
        return float(value)
    try:
        return float(value)  # type: ignore[arg-type]  # converter() has taken None out
    except OverflowError as error:
        raise ValueError("out of range") from error


def _to_float32(value: Value) -> float:
    try:
        rounded: float = _FLOAT32.unpack(_FLOAT32.pack(_to_float(value)))[0]
    except OverflowError as error:
        raise ValueError("out of range") from error
    return rounded


def _to_bool(value: Value) -> bool:
    # MySQL has no bool of its own: tinyint(1) arrives as 0 or 1.
    if isinstance(value, (bool, int)) and value in (0, 1):
        return bool(value)
    raise ValueError("no bool")


def _to_bytes(value: Value) -> bytes:
    if isinstance(value, str) and value.startswith("\\x"):
        return bytes.fromhex(value[2:])
    raise ValueError("no bytea text")


def _to_time(value: Value) -> int:
    moment = timestamp_us(value) if isinstance(value, str) else None
    if moment is None:
        raise ValueError("no time")
    return moment


_CONVERTERS: Final[dict[ValueType, Callable[[Value], FeatureValue]]] = {
    ValueType.INT32: lambda value: _to_int(value, 1 << 31),
    ValueType.INT64: lambda value: _to_int(value, 1 << 63),
    ValueType.FLOAT32: _to_float32,
    ValueType.FLOAT64: _to_float,
    ValueType.STRING: key_text,
    ValueType.BOOL: _to_bool,
    ValueType.BYTES: _to_bytes,
    ValueType.UNIX_TIMESTAMP: _to_time,
}


def converter(dtype: ValueType) -> Converter:
    """The function that reads a column's value as ``dtype``; it raises ValueError when the value can't be read so."""
    convert = _CONVERTERS[dtype]

    def read(value: Value) -> FeatureValue:
        return None if value is None else convert(value)

    return read
