"""Tiles of one hop and the running totals of the windows over them.

A track keeps, for one entity and one hop, a tile (one integer a slot) for each hop that has rows, and for each window the total of the
tiles it holds, so that reading out never sums tiles. What is stored is the tiles alone, sorted and without empty ones; totals are made
from them: the bytes depend on the rows and the log time, never on how the work was cut into batches.

Hot: plain annotated Python that Cython can compile as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from headrace.features.aggregate import Pack

Delta: TypeAlias = tuple[int, int]
"""(slot, what to add): the slots that a row doesn't touch are left out."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode

_INT64: Final = 1 << 63
_NEVER: Final = -(1 << 62)
"""Tile index before all times."""

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

    __slots__ = ("_first", "_future", "_high", "_low", "_packed", "_plan", "_tiles", "totals")

    def __init__(self, plan: TrackPlan) -> None:
        self._plan = plan
        self._tiles: dict[int, list[int]] = {}
        self._packed: dict[int, bytes] = {}
        self._high: int = _NEVER
        self._low: list[int] = [_NEVER] * len(plan.lengths_us)
        self._first: list[int | None] = [None] * len(plan.lengths_us)
        self._future: int | None = None
        self.totals: list[list[int]] = [[0] * len(plan.slots) for _ in plan.lengths_us]

    def add(self, time_us: int, deltas: Sequence[Delta]) -> None:
        """Add a row's contribution to the tile of its time; a retraction adds the negated deltas."""
        if not deltas:
            return
        tile_index = time_us // self._plan.hop_us
        low = self._low
        tiles = self._tiles
        tile = tiles.get(tile_index)
        if tile is None:
            if tile_index <= min(low):
                return  # out of every window for good
            tile = tiles[tile_index] = [0] * len(self._plan.slots)
        for slot, delta in deltas:
            tile[slot] += delta
        self._packed.pop(tile_index, None)
        is_gone = not any(tile)
        if is_gone:
            del tiles[tile_index]
        if tile_index > self._high:
            if is_gone:
                self._future = min((index for index in tiles if index > self._high), default=None)
            elif self._future is None or tile_index < self._future:
                self._future = tile_index
            return
        first = self._first
        for window, total in enumerate(self.totals):
            if tile_index <= low[window]:
                continue
            for slot, delta in deltas:
                total[slot] += delta
            oldest = first[window]
            if is_gone:
                if oldest == tile_index:
                    first[window] = self._oldest_after(low[window])
            elif oldest is None or tile_index < oldest:
                first[window] = tile_index

    def advance(self, now_us: int) -> None:
        """Move the windows to this log time; never backwards."""
        hop_us = self._plan.hop_us
        high = now_us // hop_us
        was_high = self._high
        if high == was_high:
            return  # a window is a whole number of hops: its two ends move at the same time
        self._high = high
        entering: list[int] = []
        if self._future is not None and self._future <= high:
            entering = [index for index in self._tiles if was_high < index <= high]
            self._future = min((index for index in self._tiles if index > high), default=None)
        low = self._low
        first = self._first
        has_moved = False
        for window, length_us in enumerate(self._plan.lengths_us):
            new_low = (now_us - length_us) // hop_us
            was_low = low[window]
            oldest = first[window]
            low[window] = new_low
            if not entering and (oldest is None or oldest > new_low):
                continue
            has_moved = True
            total = self.totals[window]
            if oldest is not None and oldest <= new_low:
                for index, tile in self._tiles.items():
                    if was_low < index <= new_low and index <= was_high:
                        for slot, amount in enumerate(tile):
                            total[slot] -= amount
            for index in entering:
                if index > new_low:
                    for slot, amount in enumerate(self._tiles[index]):
                        total[slot] += amount
            first[window] = self._oldest_after(new_low)
        if has_moved:
            floor = min(low)
            for index in [index for index in self._tiles if index <= floor]:
                del self._tiles[index]
                self._packed.pop(index, None)

    def due_us(self) -> int | None:
        """The next log time at which a total changes by itself; None when none will."""
        hop_us = self._plan.hop_us
        due: int | None = None if self._future is None else self._future * hop_us
        for window, oldest in enumerate(self._first):
            if oldest is not None:
                leaves_us = oldest * hop_us + self._plan.lengths_us[window]
                if due is None or leaves_us < due:
                    due = leaves_us
        return due

    def encode(self) -> bytes:
        """One msgpack array of ``[index, slot, ...]``, oldest tile first."""
        packed = self._packed
        tiles = self._tiles
        if len(packed) < len(tiles):
            # Only what has changed since: an entity that is written often has one tile to pack, of all its hundred.
            slots = self._plan.slots
            for index, tile in tiles.items():
                if index not in packed:
                    packed[index] = _pack([index, *map(pack_slot, slots, tile)])
        body = b"".join([packed[index] for index in sorted(tiles)])
        return b"\xdd" + len(tiles).to_bytes(4, "big") + body  # msgpack: array 32

    @classmethod
    def decode(cls, plan: TrackPlan, data: bytes, now_us: int) -> Track:
        """A track with these tiles, advanced to the log time."""
        track = cls(plan)
        for index, *slots in _unpack(data):
            track._tiles[index] = [unpack_slot(how, slot) for how, slot in zip(plan.slots, slots, strict=True)]
        track._future = min(track._tiles, default=None)
        track.advance(now_us)
        return track

    def _oldest_after(self, low: int) -> int | None:
        high = self._high
        return min((index for index in self._tiles if low < index <= high), default=None)


def pack_slot(how: Pack, amount: int) -> Any:
    """A slot in msgpack's types: an int, or ``[shift, int]`` without the zeros at its end; bytes where 64 bits don't hold it."""
    if amount == 0:
        return 0
    if how is Pack.PLAIN:
        return _small(amount)
    if how is Pack.DOUBLE:
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
    return number << shift if how is Pack.DOUBLE else number * int(10**shift)


def _small(amount: int) -> int | bytes:
    if -_INT64 <= amount < _INT64:
        return amount
    return amount.to_bytes(amount.bit_length() // 8 + 1, "big", signed=True)


def _large(packed: int | bytes) -> int:
    return packed if isinstance(packed, int) else int.from_bytes(packed, "big", signed=True)
