"""Tiles of one hop and the running totals of the windows over them.

A track keeps, for one entity and one hop, a tile (one integer a slot) for each hop that has rows, and for each window the total of the
tiles it holds, so that reading out never sums tiles. What is stored is the tiles alone, sorted and without empty ones; totals are made
from them: the bytes depend on the rows and the log time, never on how the work was cut into batches.

A hot module: Cython compiles it with the types of tiles.pxd.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from headrace.features.aggregate import Pack

Delta: TypeAlias = tuple[int, int]
"""(slot, what to add): the slots that a row doesn't touch are left out."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode

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


class TrackPlan(msgspec.Struct, frozen=True):
    """hop_us: tile length. lengths_us: the windows. slots: packing of each slot of a tile."""

    hop_us: int
    lengths_us: tuple[int, ...]
    slots: tuple[Pack, ...]


class Track:
    """The tiles of one entity on one hop.

    totals[w]: sums of window w as of the last ``advance``. ``add`` may come at any time; what lies in no window any more is dropped.
    """

    __slots__ = (
        "_first",
        "_floor",
        "_future",
        "_high",
        "_hop_us",
        "_lengths_us",
        "_low",
        "_packed",
        "_slots",
        "_tiles",
        "totals",
    )

    def __init__(self, plan: TrackPlan) -> None:
        windows = len(plan.lengths_us)
        self._hop_us: int = plan.hop_us
        self._lengths_us = plan.lengths_us
        self._slots = plan.slots
        self._tiles: dict[int, list[int]] = {}
        self._packed: dict[int, bytes] = {}
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
        tiles = self._tiles
        tile = tiles.get(index)
        if tile is None:
            if index <= self._floor:
                return  # out of every window for good
            tile = tiles[index] = [0] * len(self._slots)
        self._packed.pop(index, None)
        _shift(tile, deltas, is_added)
        is_gone = _is_empty(tile)
        if is_gone:
            del tiles[index]
        if index > self._high:
            if is_gone:
                self._future = self._oldest_future()
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
                    first[window] = self._oldest_after(low[window])
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
        entering: list[int] = []
        if self._future <= high:
            entering = [index for index in self._tiles if was_high < index <= high]
            self._future = self._oldest_future()
        low = self._low
        first = self._first
        has_moved = False
        lengths = self._lengths_us
        floor = _FOREVER
        for window in range(len(low)):
            new_low = (now_us - lengths[window]) // hop_us
            was_low = low[window]
            oldest = first[window]
            low[window] = new_low
            floor = min(floor, new_low)
            if not entering and oldest > new_low:
                continue
            has_moved = True
            total = self.totals[window]
            if oldest <= new_low:
                for index, tile in self._tiles.items():
                    if was_low < index <= new_low and index <= was_high:
                        for slot, amount in enumerate(tile):
                            total[slot] -= amount
            for index in entering:
                if index > new_low:
                    for slot, amount in enumerate(self._tiles[index]):
                        total[slot] += amount
            first[window] = self._oldest_after(new_low)
        self._floor = floor
        if has_moved:
            for index in [index for index in self._tiles if index <= floor]:
                del self._tiles[index]
                self._packed.pop(index, None)

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
        packed = self._packed
        tiles = self._tiles
        if len(packed) < len(tiles):
            # Only what has changed since: an entity that is written often has one tile to pack, of all its hundred.
            slots = self._slots
            for index, tile in tiles.items():
                if index not in packed:
                    parts: list[Any] = [index]
                    for slot, amount in enumerate(tile):
                        parts.append(pack_slot(slots[slot], amount) if amount else 0)
                    packed[index] = _pack(parts)
        if len(tiles) == 1:
            return _ONE_TILE + packed[next(iter(tiles))]
        body = b"".join([packed[index] for index in sorted(tiles)])
        return b"\xdd" + len(tiles).to_bytes(4, "big") + body  # msgpack: array 32

    @classmethod
    def decode(cls, plan: TrackPlan, data: bytes, now_us: int) -> Track:
        """A track with these tiles, advanced to the log time."""
        track = cls(plan)
        track.load(data, now_us)
        return track

    def load(self, data: bytes, now_us: int) -> None:
        """Of a track without tiles: see decode."""
        tiles = self._tiles
        slots = self._slots
        for parts in _unpack(data):
            tile: list[int] = []
            for slot in range(len(slots)):
                packed = parts[slot + 1]
                tile.append(packed if type(packed) is int else unpack_slot(slots[slot], packed))
            tiles[parts[0]] = tile
        self._future = min(tiles, default=_FOREVER)
        self.advance(now_us)

    def _oldest_after(self, low: int) -> int:
        high = self._high
        return min([index for index in self._tiles if low < index <= high], default=_FOREVER)

    def _oldest_future(self) -> int:
        high = self._high
        return min([index for index in self._tiles if index > high], default=_FOREVER)


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
    return number << shift if how is _DOUBLE else number * int(10**shift)


def _small(amount: int) -> int | bytes:
    if -_INT64 <= amount < _INT64:
        return amount
    return amount.to_bytes(amount.bit_length() // 8 + 1, "big", signed=True)


def _large(packed: int | bytes) -> int:
    return packed if isinstance(packed, int) else int.from_bytes(packed, "big", signed=True)
