"""Values as bags hold them: items that sort, compare and pack the same way on every machine, and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Final

from headrace.cdc.event import Value
from headrace.features.bags import Item
from headrace.features.spec import FeatureValue, ValueType
from headrace.features.values import converter

_DOUBLE: Final = struct.Struct("<d")
_BITS: Final = struct.Struct("<q")
_MAGNITUDE: Final = (1 << 63) - 1
NAN_KEY: Final = 0x7FF8 << 48

MOST_TEXT_BYTES: Final = 256
"""A longer text counts as unreadable where a bag would have to keep it."""


def float_key(value: float) -> int:
    """An int that sorts as doubles do: -0.0 as 0.0, NaN after infinity (as PostgreSQL sorts)."""
    if math.isnan(value):
        return NAN_KEY
    bits: int = _BITS.unpack(_DOUBLE.pack(value + 0.0))[0]
    return bits if bits >= 0 else -(bits & _MAGNITUDE)


def key_float(key: int) -> float:
    """Inverse of float_key."""
    value: float = _DOUBLE.unpack(_BITS.pack(abs(key)))[0]
    return value if key >= 0 else -value


def lifter(dtype: ValueType) -> Callable[[Value], Item]:
    """The function from a column's value to its item, None for NULL; it raises ValueError where the value can't be read."""
    convert = converter(dtype)

    def lift(value: Value) -> Item:
        found = convert(value)
        if isinstance(found, float):
            return float_key(found)
        if isinstance(found, str) and len(found) * 4 > MOST_TEXT_BYTES and len(found.encode()) > MOST_TEXT_BYTES:
            raise ValueError("too long")
        return found

    return lift


def lowered(dtype: ValueType, item: Item) -> FeatureValue:
    """The feature value of an item."""
    return key_float(item) if dtype is ValueType.FLOAT64 else item
