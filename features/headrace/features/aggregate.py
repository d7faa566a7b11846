"""What a window adds up: the contribution of one value, and the reading of a sum of contributions.

Every aggregate here is linear: a value contributes a few integers (slots), rows add them, retraction subtracts them, tiles and windows
are sums of them, and only ``read`` turns them into a feature value. Integers make sums exact in any order and after any retraction:

- ints stay ints;
- numeric text is scaled by 10^38 (digits beyond the 38th decimal are rounded half to even, once, before they are added);
- a double is n / 2^1074 without loss, so a sum of doubles is exact and is rounded once, in ``read``: bit-equal to ``math.fsum``. Nearly
  all doubles are also n / 2^128; they are added up in this unit, whose integers are small, and only the others in the fine one.

Doubles and numerics that aren't finite are counted, not added: any NaN, or infinities of both signs, reads as NaN, else an infinity as
itself; when the last of them is retracted the finite sum is there again. The sign of zero is lost: a sum of -0.0 reads as 0.0. NULL adds
nothing; the sum of nothing is 0 (not NULL), so that a window that empties ends in a number.

Sums of reals, means and variances of one column share their slots: those of a sum are the first of a mean's, a mean's the first of a
variance's (moments.py). What isn't (min, max, distinct, ...) is a bag of values: see bags.py.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Sequence
from typing import ClassVar, Final, Protocol

from headrace.cdc.event import Value
from headrace.features.spec import FeatureValue
from headrace.features.values import whole_number

DOUBLE_SCALE_BITS: Final = 128
FINE_SCALE_BITS: Final = 1074
DECIMAL_SCALE: Final = 38

_TEN: Final[list[int]] = [10**power for power in range(DECIMAL_SCALE + 1)]
_FINER_BITS: Final = FINE_SCALE_BITS - DOUBLE_SCALE_BITS
DECIMAL_UNIT: Final[int] = _TEN[DECIMAL_SCALE]
_DECIMAL = re.compile(r"([+-]?\d+)(?:\.(\d+))?")

# Three counters in one integer, so that they add and subtract as one slot.
_NAN: Final = 1
_PLUS: Final = 1 << 40
_MINUS: Final = 1 << 80
_COUNTER: Final = (1 << 40) - 1
_NOT_FINITE: Final = {"NaN": _NAN, "Infinity": _PLUS, "-Infinity": _MINUS}

_INT64: Final = 1 << 63


class Pack(enum.Enum):
    """How a slot is written in a state blob; see tiles.py."""

    PLAIN = "plain"
    DOUBLE = "double"
    DECIMAL = "decimal"
    DECIMAL_SQUARE = "decimal square"


class Aggregate(Protocol):
    """slots: how each of its integers is packed; their number is the aggregate's width."""

    slots: ClassVar[tuple[Pack, ...]]

    def lift(self, value: Value) -> tuple[int, ...]:
        """Contribution of one row's value, one int a slot. Raises ValueError when the value can't be read."""
        ...

    def read(self, sums: Sequence[int]) -> FeatureValue:
        """Feature value of the added contributions."""
        ...


class CountRows:
    """Rows."""

    slots: ClassVar[tuple[Pack, ...]] = (Pack.PLAIN,)

    def lift(self, value: Value) -> tuple[int, ...]:
        return (1,)

    def read(self, sums: Sequence[int]) -> FeatureValue:
        return sums[0]


class CountValues(CountRows):
    """Rows whose value is not NULL."""

    def lift(self, value: Value) -> tuple[int, ...]:
        return (0 if value is None else 1,)


class SumWhole:
    """Sum of whole numbers as Int64; a sum beyond its range reads as null rather than wrong."""

    slots: ClassVar[tuple[Pack, ...]] = (Pack.PLAIN,)

    def lift(self, value: Value) -> tuple[int, ...]:
        return (0 if value is None else whole_number(value),)

    def read(self, sums: Sequence[int]) -> FeatureValue:
        return sums[0] if -_INT64 <= sums[0] < _INT64 else None


class SumReal:
    """Sum of numbers of any kind as Float64: the double nearest to the exact sum; beyond the largest double, an infinity.

    Slots: doubles scaled by 2^128; doubles that are no whole number then, scaled by 2^1074; ints and numerics scaled by 10^38; counters
    of what isn't finite.
    """

    slots: ClassVar[tuple[Pack, ...]] = (Pack.DOUBLE, Pack.DOUBLE, Pack.DECIMAL, Pack.PLAIN)

    def lift(self, value: Value) -> tuple[int, ...]:
        if isinstance(value, float):
            double, fine = scaled_double(value)
            return (double, fine, 0, 0)
        if value is None:
            return (0, 0, 0, 0)
        if isinstance(value, str):
            special = _NOT_FINITE.get(value)
            return (0, 0, scaled_decimal(value), 0) if special is None else (0, 0, 0, special)
        return (0, 0, value * DECIMAL_UNIT, 0)

    def read(self, sums: Sequence[int]) -> FeatureValue:
        if sums[3]:
            return not_finite(sums[3])
        numerator, denominator = together(sums[0], sums[1], sums[2])
        return nearest(numerator, denominator)


def not_finite(special: int) -> float:
    """What a sum reads as when its counters of NaNs and infinities aren't all zero."""
    plus, minus = special >> 40 & _COUNTER, special >> 80
    if special & _COUNTER or (plus and minus):
        return math.nan
    return math.inf if plus else -math.inf


def together(double: int, fine: int, decimal: int) -> tuple[int, int]:
    """Numerator and denominator of the sum of the three scaled parts."""
    bits = DOUBLE_SCALE_BITS
    if fine:
        double = (double << _FINER_BITS) + fine
        bits = FINE_SCALE_BITS
    if not decimal:
        return double, 1 << bits
    if not double:
        return decimal, DECIMAL_UNIT
    return double * DECIMAL_UNIT + (decimal << bits), DECIMAL_UNIT << bits


def nearest(numerator: int, denominator: int) -> float:
    """The double nearest to an exact quotient; beyond the largest one, an infinity. denominator: > 0."""
    try:
        return numerator / denominator  # int / int rounds correctly, whatever their sizes, and once
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


def scaled_double(value: float) -> tuple[int, int]:
    """A finite double, exact: (times 2^128, 0), or (0, times 2^1074) when the former is no whole number."""
    numerator, denominator = value.as_integer_ratio()
    bits = denominator.bit_length() - 1
    if bits <= DOUBLE_SCALE_BITS:
        return numerator << (DOUBLE_SCALE_BITS - bits), 0
    return 0, numerator << (FINE_SCALE_BITS - bits)


def scaled_decimal(text: str) -> int:
    """Decimal text times 10^38; further digits are rounded half to even. Raises ValueError for other text."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError("no decimal number")
    whole, fraction = match[1], match[2] or ""
    number = int(whole + fraction)
    digits = len(fraction)
    if digits <= DECIMAL_SCALE:
        return number * _TEN[DECIMAL_SCALE - digits]
    unit: int = 10 ** (digits - DECIMAL_SCALE)
    quotient, rest = divmod(number, unit)
    return quotient + (2 * rest > unit or (2 * rest == unit and quotient & 1 == 1))
