"""Tiles of what doesn't add up to a number: bags of values, for min, max, last, distinct, top_k, quantile and time_since_last.

A row puts one item into the bag of its tile, a retraction takes the same item out again; only ``read`` looks at the bags of a window. What
a bag keeps is bounded: extremes.py keeps the best few of any number, counted.py counts up to a number of different values. As with the
sums of tiles.py, the bytes depend on the rows, their order and the log time, never on how the work was cut into batches.

A bag of extremes that has lost one of its best items may be short: it knows that there are others, not which. It says so, and is filled
again from the contributions of the entity's rows before anything is read or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from headrace.cdc.event import Value
from headrace.features.spec import FeatureValue

Item: TypeAlias = Any
"""What a row puts into a bag: int, text, bytes, or a tuple of these; None for nothing."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode

_NEVER: Final = -(1 << 62)
"""Tile index before all times."""


class Bag(Protocol):
    """rows: items put in and not taken out, whether they are still kept or not."""

    rows: int

    def add(self, item: Item) -> None: ...

    def remove(self, item: Item) -> None:
        """Take out an item that was added."""
        ...

    def is_short(self) -> bool:
        """Only ``refill`` can say what it should hold now."""
        ...

    def refill(self, items: Iterable[Item]) -> None:
        """Hold these, all of the bag's items, in place of what was known."""
        ...

    def plain(self) -> list[Any]:
        """In msgpack's types; equal bags have equal forms."""
        ...


class BagKind(Protocol):
    """One aggregate. moves: its value changes with each hop while it has rows."""

    moves: bool

    def lift(self, value: Value, time_us: int, offset: int) -> Item:
        """The item of one row. offset: of the row's last change. Raises ValueError when the value can't be read."""
        ...

    def empty(self) -> Bag: ...

    def load(self, plain: list[Any]) -> Bag:
        """Inverse of Bag.plain."""
        ...

    def read(self, bags: Sequence[Bag], age_us: int) -> FeatureValue:
        """The value over these bags, oldest tile first, none of them empty. age_us: from the last of them to the newest tile."""
        ...


class BagPlan(msgspec.Struct, frozen=True):
    """hop_us: tile length, 0 for one tile of all live rows. lengths_us: the windows. kinds: (place of its item in a row's items, kind)."""

    hop_us: int
    lengths_us: tuple[int, ...]
    kinds: tuple[tuple[int, BagKind], ...]


class BagTrack:
    """The bags of one entity on one hop. Rows may come at any time; what lies in no window any more is dropped."""

    __slots__ = ("_high", "_low", "_packed", "_plan", "_short", "_tiles")

    def __init__(self, plan: BagPlan) -> None:
        self._plan = plan
        self._tiles: dict[int, list[Bag]] = {}
        self._packed: dict[int, bytes] = {}
        self._short: set[tuple[int, int]] = set()
        self._high: int = _NEVER
        self._low: list[int] = [_NEVER] * len(plan.lengths_us)

    def __len__(self) -> int:
        """Tiles with rows."""
        return len(self._tiles)

    def shift(self, time_us: int, items: Sequence[Item], *, is_added: bool) -> None:
        """Put a row's items into the tile of its time, or take them out."""
        plan = self._plan
        if all(items[place] is None for place, _ in plan.kinds):
            return
        index = self._index(time_us)
        tile = self._tiles.get(index)
        if tile is None:
            if plan.hop_us and index <= min(self._low):
                return  # out of every window for good
            tile = self._tiles[index] = [kind.empty() for _, kind in plan.kinds]
        self._packed.pop(index, None)
        for number, (place, _) in enumerate(plan.kinds):
            item = items[place]
            if item is None:
                continue
            bag = tile[number]
            if is_added:
                bag.add(item)
            else:
                bag.remove(item)
                if bag.is_short():
                    self._short.add((index, number))
        if not any(bag.rows for bag in tile):
            del self._tiles[index]

    def advance(self, now_us: int) -> None:
        """Move the windows to this log time; never backwards."""
        hop_us = self._plan.hop_us
        if not hop_us:
            return
        high = now_us // hop_us
        if high == self._high:
            return
        self._high = high
        self._low = [(now_us - length_us) // hop_us for length_us in self._plan.lengths_us]
        floor = min(self._low)
        for index in [index for index in self._tiles if index <= floor]:
            del self._tiles[index]
            self._packed.pop(index, None)

    def due_us(self) -> int | None:
        """The next log time at which a value changes by itself; None when none will."""
        hop_us = self._plan.hop_us
        if not hop_us or not self._tiles:
            return None
        high = self._high
        due: list[int] = []
        future = min((index for index in self._tiles if index > high), default=None)
        if future is not None:
            due.append(future * hop_us)
        for low, length_us in zip(self._low, self._plan.lengths_us, strict=True):
            oldest = min((index for index in self._tiles if low < index <= high), default=None)
            if oldest is not None:
                due.append(oldest * hop_us + length_us)
                if any(kind.moves for _, kind in self._plan.kinds):
                    due.append((high + 1) * hop_us)
        return min(due, default=None)

    def read(self, window: int, number: int) -> FeatureValue:
        """The value of the bag kind of this number over a window, as of the last ``advance``."""
        hop_us = self._plan.hop_us
        low, high = (self._low[window], self._high) if hop_us else (-1, 0)
        found = [
            (index, bag)
            for index in sorted(self._tiles)
            if low < index <= high and (bag := self._tiles[index][number]).rows
        ]
        age_us = (high - found[-1][0]) * hop_us if found else 0
        return self._plan.kinds[number][1].read([bag for _, bag in found], age_us)

    def is_short(self) -> bool:
        """Bags must be filled again from all rows of the entity."""
        self._short = {
            (index, number)
            for index, number in self._short
            if index in self._tiles and self._tiles[index][number].is_short()
        }
        return bool(self._short)

    def refill(self, rows: Sequence[tuple[int, Sequence[Item]]]) -> None:
        """Fill the short bags. rows: (time, items) of all live rows of the entity that count."""
        if not self.is_short():
            return
        for index, number in self._short:
            place = self._plan.kinds[number][0]
            self._tiles[index][number].refill(
                [items[place] for time_us, items in rows if self._index(time_us) == index and items[place] is not None]
            )
            self._packed.pop(index, None)
        self._short.clear()

    def encode(self) -> bytes:
        """One msgpack array of ``[index, bag, ...]``, oldest tile first."""
        packed = self._packed
        tiles = self._tiles
        for index, tile in tiles.items():
            if index not in packed:
                packed[index] = _pack([index, *[bag.plain() for bag in tile]])
        body = b"".join([packed[index] for index in sorted(tiles)])
        return b"\xdd" + len(tiles).to_bytes(4, "big") + body  # msgpack: array 32

    @classmethod
    def decode(cls, plan: BagPlan, data: bytes, now_us: int) -> BagTrack:
        """A track with these tiles, advanced to the log time."""
        track = cls(plan)
        for index, *bags in _unpack(data):
            track._tiles[index] = [kind.load(plain) for (_, kind), plain in zip(plan.kinds, bags, strict=True)]
        track.advance(now_us)
        return track

    def _index(self, time_us: int) -> int:
        return time_us // self._plan.hop_us if self._plan.hop_us else 0
