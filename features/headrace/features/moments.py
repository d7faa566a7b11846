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
    FINE_SCALE_BITS,
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
    """Sum over count. Slots: those of SumReal; values that aren't NULL."""

    slots: ClassVar[tuple[Pack, ...]] = (*SumReal.slots, Pack.PLAIN)

    def lift(self, value: Value) -> tuple[int, ...]:
        return (0, 0, 0, 0, 0) if value is None else (*_sum.lift(value), 1)

    def read(self, sums: Sequence[int]) -> FeatureValue:
        if not sums[4]:
            return None
        if sums[3]:
            return not_finite(sums[3])
        numerator, denominator = together(sums[0], sums[1], sums[2])
        return nearest(numerator, denominator * sums[4])


class Variance:
    """Sample variance. Slots: those of Mean; squares of doubles times 2^256; of those in the fine unit times 2^2148; squares of ints and
    numerics times 10^76."""

    slots: ClassVar[tuple[Pack, ...]] = (*Mean.slots, Pack.DOUBLE, Pack.DOUBLE, Pack.DECIMAL_SQUARE)

    def lift(self, value: Value) -> tuple[int, ...]:
        if value is None:
            return (0, 0, 0, 0, 0, 0, 0, 0)
        double, fine, decimal, special = _sum.lift(value)
        return (double, fine, decimal, special, 1, double * double, fine * fine, decimal * decimal)

    def read(self, sums: Sequence[int]) -> FeatureValue:
        found = self._exact(sums)
        return nearest(found[0], found[1]) if isinstance(found, tuple) else found

    def _exact(self, sums: Sequence[int]) -> tuple[int, int] | float | None:
        """Numerator and denominator; NaN or None where there is no variance."""
        double, fine, decimal, special, values, double_square, fine_square, decimal_square = sums
        if values < 2:
            return None
        if special:
            return math.nan
        total, unit = together(double, fine, decimal)
        # Where a square sum is zero, every value of that kind is zero, and together() has left its unit out as well; a sum can be zero
        # without that, so that the units are looked up again by the squares.
        bits = FINE_SCALE_BITS if fine_square else DOUBLE_SCALE_BITS if double_square or not decimal_square else 0
        wanted = (DECIMAL_UNIT if decimal_square else 1) << bits
        total = total * wanted // unit  # exact: the wanted unit is a multiple of the one that the sum needs
        if fine_square:
            double_square = (double_square << 2 * (FINE_SCALE_BITS - DOUBLE_SCALE_BITS)) + fine_square
        squares = double_square
        if decimal_square:
            squares = double_square * _DECIMAL_UNIT_SQUARED + (decimal_square << 2 * bits)
        return values * squares - total * total, values * (values - 1) * wanted * wanted


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
