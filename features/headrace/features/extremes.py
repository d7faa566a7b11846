"""Bags that keep the best few of any number of items: the least, the greatest, the newest.

Invariant, except while a bag is short: it holds the best ``keep`` of all its items, or all when there are no more. What was spilled is no
better than the worst kept. So an added item is placed without knowing the others, and taking out a spilled one changes a number only. When
a kept one leaves, the next best is unknown: the bag is short. An item at or within the old edge heals it (a row updated without
another value, the usual case); otherwise bags.py asks for the rows.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from headrace.cdc.event import Value
from headrace.features.bags import Bag, Item
from headrace.features.items import lifter, lowered
from headrace.features.spec import FeatureValue, ValueType
from headrace.features.values import converter

KEEP: Final = 8
"""Items a tile of min or max keeps: more cost bytes in each tile, fewer more reads of an entity's rows after retractions."""


class Extremes:
    """See the module. kept: ascending, duplicates included."""

    __slots__ = ("_edge", "_has_greatest", "_keep", "kept", "rows")

    def __init__(self, keep: int, *, has_greatest: bool, rows: int = 0, kept: list[Item] | None = None) -> None:
        self.rows = rows
        self.kept: list[Item] = [] if kept is None else kept
        self._keep = keep
        self._has_greatest = has_greatest
        self._edge: Item = None

    def add(self, item: Item) -> None:
        kept = self.kept
        if self.rows > len(kept):
            edge = self._worst() if len(kept) == self._keep else self._edge
            self.rows += 1
            if item < edge if self._has_greatest else item > edge:
                return
        else:
            self.rows += 1
        insort(kept, item)
        if len(kept) > self._keep:
            del kept[0 if self._has_greatest else -1]

    def remove(self, item: Item) -> None:
        kept = self.kept
        place = bisect_left(kept, item)
        if place < len(kept) and kept[place] == item:
            if self.rows > len(kept) == self._keep:
                self._edge = self._worst()
            del kept[place]
        self.rows -= 1

    def is_short(self) -> bool:
        return len(self.kept) < min(self.rows, self._keep)

    def refill(self, items: Iterable[Item]) -> None:
        found = sorted(items)
        self.rows = len(found)
        self.kept = found[-self._keep :] if self._has_greatest else found[: self._keep]

    def plain(self) -> list[Any]:
        return [self.rows, *self.kept]

    def _worst(self) -> Item:
        return self.kept[0 if self._has_greatest else -1]


class Least:
    """The smallest value that isn't NULL; null without any."""

    moves = False
    _has_greatest = False

    def __init__(self, dtype: ValueType) -> None:
        self._dtype = dtype
        self._lift = lifter(dtype)

    def lift(self, value: Value, time_us: int, offset: int) -> Item:
        return self._lift(value)

    def empty(self) -> Bag:
        return Extremes(KEEP, has_greatest=self._has_greatest)

    def load(self, plain: list[Any]) -> Bag:
        return Extremes(KEEP, has_greatest=self._has_greatest, rows=plain[0], kept=plain[1:])

    def read(self, bags: Sequence[Bag], age_us: int) -> FeatureValue:
        if not bags:
            return None
        best = [cast("Extremes", bag).kept for bag in bags]
        item = max(kept[-1] for kept in best) if self._has_greatest else min(kept[0] for kept in best)
        return lowered(self._dtype, item)


class Greatest(Least):
    """The greatest value that isn't NULL; null without any."""

    _has_greatest = True


class Newest:
    """The values of the newest rows, NULLs left out, newest first. Items: (event time, offset of the last change, value)."""

    moves = False

    def __init__(self, dtype: ValueType, size: int) -> None:
        self._size = size
        self._convert = converter(dtype)
        self._check = lifter(dtype)

    def lift(self, value: Value, time_us: int, offset: int) -> Item:
        if self._check(value) is None:
            return None
        return (time_us, offset, self._convert(value))

    def empty(self) -> Bag:
        return Extremes(self._size, has_greatest=True)

    def load(self, plain: list[Any]) -> Bag:
        return Extremes(self._size, has_greatest=True, rows=plain[0], kept=[tuple(item) for item in plain[1:]])

    def read(self, bags: Sequence[Bag], age_us: int) -> FeatureValue:
        found: list[Any] = []
        for bag in reversed(bags):
            found += [item[2] for item in reversed(cast("Extremes", bag).kept)]
            if len(found) >= self._size:
                break
        return tuple(found[: self._size])
