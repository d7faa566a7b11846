"""Mean, variance and standard deviation: exact sums of the values and of their squares, and one rounding at the end.

Linear like the sums of aggregate.py, whose scaled integers they add: a retraction takes away the very integers that the row had added, so
nothing drifts, and the order of rows makes no difference. The numerator n * sum(x^2) - sum(x)^2 is an integer here, where the formula's
cancellation can't happen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Final

from headrace.cdc.event import Value
from headrace.features.aggregate import (
    DECIMAL_UNIT,
    DOUBLE_SCALE_BITS,
    DOUBLE_UNIT,
    Pack,
    SumReal,
    nearest,
    not_finite,
    together,
)
from headrace.features.spec import FeatureValue

_DECIMAL_UNIT_SQUARED: Final[int] = DECIMAL_UNIT * DECIMAL_UNIT
_ROOT_BITS: Final = 64
"""Bits of the whole-number root: a double's 53, and more than the two that rounding looks at."""

_sum = SumReal()


class Mean:
    """Sum over count. Slots: values that aren't NULL; then those of SumReal."""

    slots: ClassVar[tuple[Pack, ...]] = (Pack.PLAIN, *SumReal.slots)

    def lift(self, value: Value) -> tuple[int, ...]:
        return (0, 0, 0, 0) if value is None else (1, *_sum.lift(value))

    def read(self, sums: Sequence[int]) -> FeatureValue:
        values, double, decimal, special = sums
        if not values:
            return None
        if special:
            return not_finite(special)
        numerator, denominator = together(double, decimal)
        return nearest(numerator, denominator * values)


class Variance:
    """Sample variance. Slots: those of Mean; squares of doubles times 2^2148; squares of ints and numerics times 10^76."""

    slots: ClassVar[tuple[Pack, ...]] = (*Mean.slots, Pack.DOUBLE, Pack.DECIMAL_SQUARE)

    def lift(self, value: Value) -> tuple[int, ...]:
        if value is None:
            return (0, 0, 0, 0, 0, 0)
        double, decimal, special = _sum.lift(value)
        return (1, double, decimal, special, double * double, decimal * decimal)

    def read(self, sums: Sequence[int]) -> FeatureValue:
        found = self._exact(sums)
        return nearest(found[0], found[1]) if isinstance(found, tuple) else found

    def _exact(self, sums: Sequence[int]) -> tuple[int, int] | float | None:
        """Numerator and denominator; NaN or None where there is no variance."""
        values, double, decimal, special, double_square, decimal_square = sums
        if values < 2:
            return None
        if special:
            return math.nan
        # Where a square sum is zero, every value of that kind is zero: the other kind's unit is enough.
        if not decimal_square:
            total, squares, unit = double, double_square, DOUBLE_UNIT
        elif not double_square:
            total, squares, unit = decimal, decimal_square, DECIMAL_UNIT
        else:
            total, unit = double * DECIMAL_UNIT + (decimal << DOUBLE_SCALE_BITS), DECIMAL_UNIT << DOUBLE_SCALE_BITS
            squares = double_square * _DECIMAL_UNIT_SQUARED + (decimal_square << 2 * DOUBLE_SCALE_BITS)
        return values * squares - total * total, values * (values - 1) * unit * unit


class Stddev(Variance):
    """Square root of the sample variance."""

    def read(self, sums: Sequence[int]) -> FeatureValue:
        found = self._exact(sums)
        return nearest_root(found[0], found[1]) if isinstance(found, tuple) else found


def nearest_root(numerator: int, denominator: int) -> float:
    """The double nearest to the square root of an exact quotient. numerator: >= 0; denominator: > 0."""
    if not numerator:
        return 0.0
    # Shifted by an even number of bits, so that the root has about 64 of them.
    shift = 2 * _ROOT_BITS - (numerator.bit_length() - denominator.bit_length())
    shift += shift & 1
    scaled, rest = divmod(numerator << max(shift, 0), denominator << max(-shift, 0))
    root = math.isqrt(scaled)
    if rest or root * root != scaled:
        root |= 1  # what was cut off still says on which side of a tie the root lies
    half = shift // 2
    return nearest(root << max(-half, 0), 1 << max(half, 0))
