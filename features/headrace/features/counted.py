"""Bags that count each different value: distinct, top_k, quantile, and the age of the newest row.

Counts add and subtract, so a retraction is exact and the order of rows makes no difference. What bounds a bag is the number of different
items: beyond MOST_DISTINCT, or MOST_VALUES, it crosses over, in the order of the log, until it is empty. A crossed bag of distinct counts the
cells of a sketch instead of the values; those of top_k and quantile keep the number of rows alone and read as null: exact, or marked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, Final, cast

from headrace.cdc.event import Value
from headrace.features.bags import Bag, Item
from headrace.features.items import NAN_KEY, float_key, key_float, lifter, lowered
from headrace.features.spec import FeatureValue, ValueType
from headrace.features.values import converter

MOST_DISTINCT: Final = 1_024
"""Different values of a tile that distinct counts exactly; beyond, by HyperLogLog."""
MOST_VALUES: Final = 4_096
"""Different values (top_k) or buckets (quantile) of a tile; beyond, the feature is null while the tile is in its window."""

# HyperLogLog (Flajolet et al. 2007), 2^11 registers: a standard error of 2.3 %. A cell is register << 6 | rank; cells are counted, so that
# values can be taken out again, and a register's value is the highest rank of its cells.
_REGISTER_BITS: Final = 11
_REGISTERS: Final = 1 << _REGISTER_BITS
_REST_BITS: Final = 64 - _REGISTER_BITS

# Quantile buckets are the leading bits of a double: sign, exponent, 6 bits of the fraction. So a bucket is at most 1/64 of its values wide, and
# which one a value falls into needs no logarithm, whose last bit differs between machines.
_BUCKET_SHIFT: Final = 52 - 6
_INFINITE_BUCKET: Final = 0x7FF << 6

_SHORT_TEXT_BYTES: Final = 16


class Counted:
    """See the module. has_crossed: counts hold cells (with ``cell``), or nothing (without)."""

    __slots__ = ("_cell", "_most", "counts", "has_crossed", "rows")

    def __init__(
        self,
        most: int,
        cell: Callable[[Item], int] | None = None,
        *,
        rows: int = 0,
        has_crossed: bool = False,
        counts: dict[Item, int] | None = None,
    ) -> None:
        self.rows = rows
        self.counts: dict[Item, int] = {} if counts is None else counts
        self.has_crossed = has_crossed
        self._most = most
        self._cell = cell

    def add(self, item: Item) -> None:
        self.rows += 1
        if self.has_crossed:
            if self._cell is None:
                return
            item = self._cell(item)
        counts = self.counts
        counts[item] = counts.get(item, 0) + 1
        if not self.has_crossed and len(counts) > self._most:
            self._cross()

    def remove(self, item: Item) -> None:
        self.rows -= 1
        if self.rows == 0:
            self.has_crossed = False
            self.counts = {}
            return
        if self.has_crossed:
            if self._cell is None:
                return
            item = self._cell(item)
        left = self.counts[item] - 1
        if left:
            self.counts[item] = left
        else:
            del self.counts[item]

    def is_short(self) -> bool:
        return False

    def refill(self, items: Iterable[Item]) -> None:
        raise AssertionError("a counted bag is never short")

    def plain(self) -> list[Any]:
        flat: list[Any] = [self.rows, int(self.has_crossed)]
        for item in sorted(self.counts):
            flat += (item, self.counts[item])
        return flat

    def _cross(self) -> None:
        self.has_crossed = True
        old, self.counts = self.counts, {}
        if self._cell is not None:
            for item, times in old.items():
                cell = self._cell(item)
                self.counts[cell] = self.counts.get(cell, 0) + times


class _CountedKind:
    """What the kinds share."""

    moves = False

    def empty(self) -> Bag:
        return Counted(self._most(), self._cell())

    def load(self, plain: list[Any]) -> Bag:
        counts = dict(zip(plain[2::2], plain[3::2], strict=True))
        return Counted(self._most(), self._cell(), rows=plain[0], has_crossed=bool(plain[1]), counts=counts)

    def _most(self) -> int:
        return MOST_VALUES

    def _cell(self) -> Callable[[Item], int] | None:
        return None


class Distinct(_CountedKind):
    """Number of different values that aren't NULL. Items: ints, or bytes; a long text by its 128-bit digest."""

    def __init__(self, dtype: ValueType) -> None:
        self._convert = converter(dtype)

    def lift(self, value: Value, time_us: int, offset: int) -> Item:
        found = self._convert(value)
        if isinstance(found, float):
            return float_key(found)
        if not isinstance(found, (str, bytes)):
            return None if found is None else int(cast("int", found))
        data = found.encode() if isinstance(found, str) else found
        if len(data) <= _SHORT_TEXT_BYTES:
            return data
        return b"\xff" + hashlib.blake2b(data, digest_size=16).digest()

    def read(self, bags: Sequence[Bag], age_us: int) -> FeatureValue:
        counted = [cast("Counted", bag) for bag in bags]
        if not any(bag.has_crossed for bag in counted):
            return len(set[Item]().union(*[bag.counts for bag in counted]))
        cells: set[int] = set()
        for bag in counted:
            cells |= bag.counts.keys() if bag.has_crossed else {cell_of(item) for item in bag.counts}
        return estimate(cells)

    def _most(self) -> int:
        return MOST_DISTINCT

    def _cell(self) -> Callable[[Item], int] | None:
        return cell_of


class TopK(_CountedKind):
    """The most frequent values that aren't NULL, most frequent first, equally frequent ones by value."""

    def __init__(self, dtype: ValueType, size: int) -> None:
        self._dtype = dtype
        self._size = size
        self._lift = lifter(dtype)

    def lift(self, value: Value, time_us: int, offset: int) -> Item:
        return self._lift(value)

    def read(self, bags: Sequence[Bag], age_us: int) -> FeatureValue:
        counts = _merged(bags)
        if counts is None:
            return None
        best = sorted(counts, key=lambda item: (-counts[item], item))[: self._size]
        return tuple([cast("Any", lowered(self._dtype, item)) for item in best])


class Quantile(_CountedKind):
    """The value at rank floor(level * (n - 1)) of n sorted values, within 1/128 of itself. level: decimal text, "0" to "1"."""

    def __init__(self, level: str) -> None:
        self._level = Fraction(level)

    def lift(self, value: Value, time_us: int, offset: int) -> Item:
        if value is None:
            return None
        return bucket_of(cast("float", _to_float(value)))

    def read(self, bags: Sequence[Bag], age_us: int) -> FeatureValue:
        counts = _merged(bags)
        if not counts:
            return None
        rank = math.floor(self._level * (sum(counts.values()) - 1))
        for bucket in sorted(counts):
            rank -= counts[bucket]
            if rank < 0:
                return bucket_value(bucket)
        raise AssertionError("a rank lies within the rows")


class Since(_CountedKind):
    """Whole hops from the newest row to now, as seconds; null without any row in the window."""

    moves = True

    def lift(self, value: Value, time_us: int, offset: int) -> Item:
        return 0

    def read(self, bags: Sequence[Bag], age_us: int) -> FeatureValue:
        return age_us // 1_000_000 if bags else None


def bucket_of(value: float) -> int:
    """Buckets sort as their values do."""
    key = float_key(value)
    return key >> _BUCKET_SHIFT if key >= 0 else -(-key >> _BUCKET_SHIFT)


def bucket_value(bucket: int) -> float:
    """The middle of a bucket; 0.0 for the one around zero."""
    size = abs(bucket)
    if size > _INFINITE_BUCKET:
        return key_float(NAN_KEY)
    if size == 0:
        return 0.0
    key = size << _BUCKET_SHIFT
    if size < _INFINITE_BUCKET:
        key |= 1 << (_BUCKET_SHIFT - 1)
    return key_float(key if bucket > 0 else -key)


def cell_of(item: Item) -> int:
    """The cell of a distinct item."""
    data = item if isinstance(item, bytes) else cast("int", item).to_bytes(17, "little", signed=True)
    hashed = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
    rest = hashed & ((1 << _REST_BITS) - 1)
    return (hashed >> _REST_BITS) << 6 | (_REST_BITS - rest.bit_length() + 1)


def estimate(cells: Iterable[int]) -> int:
    """Number of different items with these cells, by Ertl's improved raw estimator (arXiv 1702.01284, section 2.3)."""
    registers = [0] * _REGISTERS
    for cell in cells:
        rank = cell & 63
        if rank > registers[cell >> 6]:
            registers[cell >> 6] = rank
    of_rank = [0] * (_REST_BITS + 2)
    for rank in registers:
        of_rank[rank] += 1
    total = _REGISTERS * _tau(1 - of_rank[_REST_BITS + 1] / _REGISTERS)
    for rank in range(_REST_BITS, 0, -1):
        total = (total + of_rank[rank]) / 2
    total += _REGISTERS * _sigma(of_rank[0] / _REGISTERS)
    return round(_REGISTERS / (2 * math.log(2)) * _REGISTERS / total)


def _sigma(share: float) -> float:
    """Correction for empty registers: share + sum of share^(2^k) * 2^(k-1)."""
    if share == 1:
        return math.inf
    total, weight = share, 1.0
    while True:
        share *= share
        before = total
        total += share * weight
        weight *= 2
        if total == before:
            return total


def _tau(share: float) -> float:
    """Correction for full registers."""
    if share in (0, 1):
        return 0.0
    total, weight = 1 - share, 1.0
    while True:
        share = math.sqrt(share)
        before = total
        weight /= 2
        total -= (1 - share) ** 2 * weight
        if total == before:
            return total / 3


def _merged(bags: Sequence[Bag]) -> dict[Item, int] | None:
    """Counts over all bags; None when one of them has crossed over."""
    merged: dict[Item, int] = {}
    for bag in bags:
        counted = cast("Counted", bag)
        if counted.has_crossed:
            return None
        for item, times in counted.counts.items():
            merged[item] = merged.get(item, 0) + times
    return merged


_to_float = converter(ValueType.FLOAT64)
