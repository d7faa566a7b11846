"""Tiles of one hop and the running totals of the windows over them.

A track keeps, for one entity and one hop, a tile (one integer a slot) for each hop that has rows, and for each window the total of the
tiles it holds, so that reading out never sums tiles. What is stored is the tiles alone, sorted and without empty ones; totals are made
from them: the bytes depend on the rows and the log time, never on how the work was cut into batches.

A hot module: Cython compiles it with the types of tiles.pxd.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import Any, Final, TypeAlias

import msgspec

from headrace.features.aggregate import Pack

Delta: TypeAlias = tuple[int, int]
"""(slot, what to add): the slots that a row doesn't touch are left out."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
"""The bytes of each tile of an ``encode``."""

_INT64: Final = 1 << 63
_NEVER: Final = -(1 << 62)
_FOREVER: Final = 1 << 62
"""Tile indexes before and after all times."""

_PLAIN: Final = Pack.PLAIN
_DOUBLE: Final = Pack.DOUBLE

_ONE_TILE: Final = b"\xdd\x00\x00\x00\x01"

_POWERS: Final[dict[Pack, tuple[tuple[int, int], ...]]] = {
    Pack.DECIMAL: tuple([(step, 10**step) for step in (38, 36, 34, 30, 20)]),
    Pack.DECIMAL_SQUARE: tuple([(step, 10**step) for step in (76, 72, 68, 60, 40)]),
}
_TENS: Final = tuple([10**step for step in range(77)])


class TrackPlan(msgspec.Struct, frozen=True):
    """hop_us: tile length. lengths_us: the windows. slots: packing of each slot of a tile."""

    hop_us: int
    lengths_us: tuple[int, ...]
    slots: tuple[Pack, ...]


class Track:
    """The tiles of one entity on one hop.

    totals[w]: sums of window w as of the last ``advance``. ``add`` may come at any time; what lies in no window any more is dropped.
    Most tiles of most entities only wait for the moment when they leave: they are kept as the bytes that are stored, in the order of
    time, and only what was written to since the last ``encode`` (and the newest tile) is kept as numbers as well.
    """

    __slots__ = (
        "_first",
        "_floor",
        "_future",
        "_high",
        "_hop_us",
        "_indexes",
        "_lengths_us",
        "_low",
        "_open",
        "_parts",
        "_slots",
        "totals",
    )

    def __init__(self, plan: TrackPlan) -> None:
        windows = len(plan.lengths_us)
        self._hop_us: int = plan.hop_us
        self._lengths_us = plan.lengths_us
        self._slots = plan.slots
        self._indexes: array[int] = array("q")
        """Of all tiles, oldest first."""
        self._parts: list[bytes] = []
        """The bytes of each tile, none while only _open knows them."""
        self._open: dict[int, list[int]] = {}
        self._high: int = _NEVER
        self._low: list[int] = [_NEVER] * windows
        """Of each window: the newest tile that has left it."""
        self._floor: int = _NEVER
        """The lowest of them."""
        self._first: list[int] = [_FOREVER] * windows
        """Of each window: its oldest tile."""
        self._future: int = _FOREVER
        """The oldest tile that no window has reached."""
        self.totals: list[list[int]] = [[0] * len(plan.slots) for _ in range(windows)]

    def add(self, time_us: int, deltas: tuple[Delta, ...], is_added: bool = True) -> None:
        """Add a row's contribution to the tile of its time, or take away what it had added."""
        if not deltas:
            return
        index = time_us // self._hop_us
        indexes = self._indexes
        place = len(indexes) - 1
        if place < 0 or indexes[place] != index:
            place = bisect_left(indexes, index)
        if place == len(indexes) or indexes[place] != index:
            if index <= self._floor:
                return  # out of every window for good
            tile = [0] * len(self._slots)
            self._open[index] = tile
            indexes.insert(place, index)
            self._parts.insert(place, b"")
        else:
            tile = self._tile(place)
            self._open[index] = tile
            self._parts[place] = b""
        _shift(tile, deltas, is_added)
        is_gone = _is_empty(tile)
        if is_gone:
            del indexes[place]
            del self._parts[place]
            del self._open[index]
        if index > self._high:
            if is_gone:
                self._future = self._oldest_after(self._high, _FOREVER)
            elif index < self._future:
                self._future = index
            return
        low = self._low
        first = self._first
        totals = self.totals
        for window in range(len(totals)):
            if index <= low[window]:
                continue
            _shift(totals[window], deltas, is_added)
            oldest = first[window]
            if is_gone:
                if oldest == index:
                    first[window] = self._oldest_after(low[window], self._high)
            elif index < oldest:
                first[window] = index

    def advance(self, now_us: int) -> None:
        """Move the windows to this log time; never backwards."""
        hop_us = self._hop_us
        high = now_us // hop_us
        was_high = self._high
        if high == was_high:
            return  # a window is a whole number of hops: its two ends move at the same time
        self._high = high
        indexes = self._indexes
        entering = entered = 0
        # Places of the tiles that come into reach: from entering to before entered.
        if self._future <= high:
            entering = bisect_right(indexes, was_high)
            entered = bisect_right(indexes, high)
            self._future = self._oldest_after(high, _FOREVER)
        low = self._low
        first = self._first
        lengths = self._lengths_us
        floor = _FOREVER
        for window in range(len(low)):
            new_low = (now_us - lengths[window]) // hop_us
            oldest = first[window]
            low[window] = new_low
            floor = min(floor, new_low)
            if entering == entered and oldest > new_low:
                continue
            total = self.totals[window]
            if oldest <= new_low:
                place = bisect_left(indexes, oldest)
                while place < len(indexes) and indexes[place] <= new_low and indexes[place] <= was_high:
                    tile = self._tile(place)
                    for slot in range(len(tile)):
                        total[slot] -= tile[slot]
                    place += 1
            for place in range(entering, entered):
                if indexes[place] > new_low:
                    tile = self._tile(place)
                    for slot in range(len(tile)):
                        total[slot] += tile[slot]
            first[window] = self._oldest_after(new_low, high)
        self._floor = floor
        gone = 0
        while gone < len(indexes) and indexes[gone] <= floor:
            self._open.pop(indexes[gone], None)
            gone += 1
        if gone:
            del indexes[:gone]
            del self._parts[:gone]

    def due_us(self) -> int | None:
        """The next log time at which a total changes by itself; None when none will."""
        hop_us = self._hop_us
        due = _FOREVER if self._future == _FOREVER else self._future * hop_us
        lengths = self._lengths_us
        first = self._first
        for window in range(len(first)):
            oldest = first[window]
            if oldest != _FOREVER:
                leaves_us = oldest * hop_us + lengths[window]
                due = min(due, leaves_us)
        return None if due == _FOREVER else due

    def encode(self) -> bytes:
        """One msgpack array of ``[index, slot, ...]``, oldest tile first."""
        parts = self._parts
        if self._open:
            indexes = self._indexes
            newest = indexes[len(indexes) - 1]
            for index, tile in self._open.items():
                place = len(indexes) - 1 if index == newest else bisect_left(indexes, index)
                if not parts[place]:
                    parts[place] = self._packed(index, tile)
            if len(self._open) > 1 or newest not in self._open:
                kept = self._open.get(newest)
                self._open = {}
                if kept is not None:
                    self._open[newest] = kept
        if len(parts) == 1:
            return _ONE_TILE + parts[0]
        return b"\xdd" + len(parts).to_bytes(4, "big") + b"".join(parts)  # msgpack: array 32

    @classmethod
    def decode(cls, plan: TrackPlan, data: bytes, now_us: int) -> Track:
        """A track with these tiles, advanced to the log time."""
        track = cls(plan)
        track.load(data, now_us)
        return track

    def load(self, data: bytes, now_us: int) -> None:
        """Of a track without tiles: see decode."""
        tiles = self._open
        indexes: list[int] = []
        for numbers in _unpack(data):
            indexes.append(numbers[0])
            tiles[numbers[0]] = self._unpacked(numbers)
        self._indexes = array("q", indexes)
        self._parts = [bytes(part) for part in _split(data)]
        if indexes:
            self._future = indexes[0]
        self.advance(now_us)
        self._open = {}

    def _tile(self, place: int) -> list[int]:
        tile = self._open.get(self._indexes[place])
        return self._unpacked(_unpack(self._parts[place])) if tile is None else tile

    def _packed(self, index: int, tile: list[int]) -> bytes:
        slots = self._slots
        numbers: list[Any] = [index]
        for slot in range(len(tile)):
            amount = tile[slot]
            numbers.append(pack_slot(slots[slot], amount) if amount else 0)
        return _pack(numbers)

    def _unpacked(self, numbers: list[Any]) -> list[int]:
        slots = self._slots
        tile: list[int] = []
        for slot in range(len(slots)):
            packed = numbers[slot + 1]
            tile.append(packed if type(packed) is int else unpack_slot(slots[slot], packed))
        return tile

    def _oldest_after(self, low: int, high: int) -> int:
        indexes = self._indexes
        place = bisect_right(indexes, low)
        if place == len(indexes):
            return _FOREVER
        index = indexes[place]
        return index if index <= high else _FOREVER


def _shift(sums: list[int], deltas: tuple[Delta, ...], is_added: bool) -> None:
    if is_added:
        for slot, amount in deltas:
            sums[slot] += amount
    else:
        for slot, amount in deltas:
            sums[slot] -= amount


def _is_empty(tile: list[int]) -> bool:
    for amount in tile:  # noqa: SIM110  # any() is a call, and the first slot decides nearly always
        if amount:
            return False
    return True


def pack_slot(how: Pack, amount: int) -> Any:
    """A slot in msgpack's types: an int, or ``[shift, int]`` without the zeros at its end; bytes where 64 bits don't hold it."""
    if amount == 0:
        return 0
    if how is _PLAIN:
        return _small(amount)
    if how is _DOUBLE:
        shift = (amount & -amount).bit_length() - 1
        return [shift, _small(amount >> shift)]
    for step, power in _POWERS[how]:
        if amount % power == 0:
            return [step, _small(amount // power)]
    return [0, _small(amount)]


def unpack_slot(how: Pack, packed: Any) -> int:
    """Inverse of pack_slot."""
    if isinstance(packed, (int, bytes)):
        return _large(packed)
    shift: int = packed[0]
    number = _large(packed[1])
    return number << shift if how is _DOUBLE else number * _TENS[shift]


def _small(amount: int) -> int | bytes:
    if -_INT64 <= amount < _INT64:
        return amount
    return amount.to_bytes(amount.bit_length() // 8 + 1, "big", signed=True)


def _large(packed: int | bytes) -> int:
    return packed if isinstance(packed, int) else int.from_bytes(packed, "big", signed=True)
