"""The state of one entity in one view: what it has applied, its sums, its tiles, its newest row; and its bytes in the store.

Layout says where each feature finds its number; it is worked out once per view. A state's bytes depend on the rows and the log time alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from headrace.cdc.event import Value
from headrace.features.aggregate import Aggregate, Pack
from headrace.features.bags import BagPlan, BagTrack, Item
from headrace.features.catalogue import AggregateKey, base_of, is_bag, key_of, make_aggregate, make_bag_kind
from headrace.features.compiled import LATEST, RATIO, CompiledView, FeaturePlan
from headrace.features.predicate import Compiled
from headrace.features.spec import FeatureValue
from headrace.features.tiles import Delta, Track, TrackPlan, pack_slot, unpack_slot
from headrace.features.values import Converter, converter
from headrace.features.window import Window

LIFETIME: Final = -1
"""Place of the features that count all live rows."""

_LIFETIME_WINDOW: Final = Window(0, 0)

Deltas: TypeAlias = tuple[tuple[Delta, ...], ...]
"""What a row adds: first to the lifetime sums, then to each track."""

_pack = msgspec.msgpack.Encoder().encode


_SUM: Final = 0
_BAGS: Final = 1
_NEWEST: Final = 2
_RATIO: Final = 3

_Reader: TypeAlias = tuple[int, Any, int, int, int, int]
"""How a feature is read, in the least that can be asked of memory: what, ...

_SUM: the aggregate's read; track (or LIFETIME), window in it, slots from start to end. _BAGS: nothing; bag track, window in it, number of
the kind in it. _NEWEST: a converter; place in the newest row's kept columns. _RATIO: the readers of what it divides. Zeros for the rest.
"""

_Lift: TypeAlias = tuple[int, Any, Compiled | None]
"""Index of the column, the aggregate or bag kind, the filter of the rows that count for it."""


class Layout:
    """What a view's states look like.

    latest_columns: indexes (into CompiledView.columns) of what is kept of the newest row; empty when no feature asks for it.
    longest_us: the longest window, 0 without any.
    """

    def __init__(self, view: CompiledView) -> None:
        leaves = [leaf for plan in view.features for leaf in plan.leaves()]
        latest = sorted({leaf.column for leaf in leaves if leaf.kind == LATEST})
        self.latest_columns: tuple[int, ...] = tuple(latest)
        lifetime = _Group()
        by_hop: dict[int, tuple[list[Window], _Group]] = {}
        bags_by_hop: dict[int, tuple[list[Window], list[AggregateKey]]] = {}
        for leaf in leaves:
            if leaf.kind == LATEST:
                continue
            key = key_of(leaf)
            if is_bag(leaf.kind):
                windows, keys = bags_by_hop.setdefault(0 if leaf.window is None else leaf.window.hop_us, ([], []))
                _append_new(windows, leaf.window or _LIFETIME_WINDOW)
                _append_new(keys, key)
                continue
            if leaf.window is None:
                lifetime.add(key)
                continue
            windows, group = by_hop.setdefault(leaf.window.hop_us, ([], _Group()))
            _append_new(windows, leaf.window)
            group.add(key)
        hops = sorted(by_hop)
        groups = [lifetime, *[by_hop[hop][1] for hop in hops]]
        all_of_them = _Group()
        for group in groups:
            for aggregate in group.widest.items():
                all_of_them.take(*aggregate)
        order = list(all_of_them.widest)
        index = {column: place for place, column in enumerate(view.columns)}
        self._lifts: tuple[_Lift, ...] = tuple([_lift(key, made, index) for key, made in all_of_them.widest.items()])
        wanted = [group.places(order) for group in groups]
        # Groups with the same aggregates share one tuple of deltas: several windows usually ask the same of a row.
        self._groups: tuple[tuple[tuple[int, int, int], ...], ...] = tuple(dict.fromkeys(wanted))
        self._group_of: tuple[int, ...] = tuple([self._groups.index(group) for group in wanted])
        self.lifetime_slots: tuple[Pack, ...] = lifetime.slots()
        self.tracks: tuple[TrackPlan, ...] = tuple(
            [
                TrackPlan(hop, tuple([window.length_us for window in by_hop[hop][0]]), by_hop[hop][1].slots())
                for hop in hops
            ]
        )
        bag_hops = sorted(bags_by_hop)
        bag_order: list[AggregateKey] = []
        for hop in bag_hops:
            for key in bags_by_hop[hop][1]:
                _append_new(bag_order, key)
        kinds = {key: make_bag_kind(key) for key in bag_order}
        self._bag_lifts: tuple[_Lift, ...] = tuple([_lift(key, kinds[key], index) for key in bag_order])
        self.bags: tuple[BagPlan, ...] = tuple(
            [
                BagPlan(
                    hop,
                    tuple([window.length_us for window in bags_by_hop[hop][0]]),
                    tuple([(bag_order.index(key), kinds[key]) for key in bags_by_hop[hop][1]]),
                )
                for hop in bag_hops
            ]
        )
        lengths = [length for track in self.tracks for length in track.lengths_us]
        lengths += [length for bags in self.bags for length in bags.lengths_us]
        self.longest_us: int = max(lengths, default=0)

        def aggregated(leaf: FeaturePlan) -> _Reader:
            key = key_of(leaf)
            if is_bag(leaf.kind):
                hop = 0 if leaf.window is None else leaf.window.hop_us
                windows, keys = bags_by_hop[hop]
                window = windows.index(leaf.window or _LIFETIME_WINDOW)
                return _BAGS, None, bag_hops.index(hop), window, keys.index(key), 0
            if leaf.window is None:
                track, window, group = LIFETIME, 0, lifetime
            else:
                track = hops.index(leaf.window.hop_us)
                window = by_hop[leaf.window.hop_us][0].index(leaf.window)
                group = by_hop[leaf.window.hop_us][1]
            aggregate, start = make_aggregate(key), group.start(base_of(key))
            return _SUM, aggregate.read, track, window, start, start + len(aggregate.slots)

        readers: list[_Reader] = []
        for plan in view.features:
            if plan.kind == LATEST:
                readers.append((_NEWEST, converter(plan.dtype), latest.index(plan.column), 0, 0, 0))
            elif plan.kind == RATIO:
                readers.append((_RATIO, (aggregated(plan.parts[0]), aggregated(plan.parts[1])), 0, 0, 0, 0))
            else:
                readers.append(aggregated(plan))
        self.readers: tuple[_Reader, ...] = tuple(readers)

    def items(self, values: Sequence[Value], time_us: int, offset: int) -> tuple[tuple[Item, ...], int]:
        """What a row of these values puts into bags, and how many of its values couldn't be read."""
        unreadable = 0
        items: list[Item] = []
        for column, kind, where in self._bag_lifts:
            item: Item = None
            if where is None or where(values) is True:
                try:
                    item = kind.lift(values[column] if column >= 0 else None, time_us, offset)
                except ValueError:
                    unreadable += 1
            items.append(item)
        return tuple(items), unreadable

    def deltas(self, values: Sequence[Value]) -> tuple[Deltas, int]:
        """What a row of these values adds, and how many of its values couldn't be read (they add nothing)."""
        unreadable = 0
        lifted: list[tuple[int, ...]] = []
        for column, aggregate, where in self._lifts:
            if where is not None and where(values) is not True:
                lifted.append((0,) * len(aggregate.slots))
                continue
            try:
                lifted.append(aggregate.lift(values[column] if column >= 0 else None))
            except ValueError:
                unreadable += 1
                lifted.append((0,) * len(aggregate.slots))
        made: list[tuple[Delta, ...]] = []
        for group in self._groups:
            made.append(_picked(group, lifted))
        result: list[tuple[Delta, ...]] = []
        for number in self._group_of:
            result.append(made[number])
        return tuple(result), unreadable


def _picked(group: tuple[tuple[int, int, int], ...], lifted: Sequence[tuple[int, ...]]) -> tuple[Delta, ...]:
    """What a group of aggregates adds."""
    pairs: list[Delta] = []
    for place, first, width in group:
        amounts = lifted[place]
        for slot in range(width):
            amount = amounts[slot]
            if amount:
                pairs.append((first + slot, amount))
    return tuple(pairs)


class LatestRow(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """The newest row of an entity; ordered by event time, then by the place of its last change in the log."""

    time_us: int
    offset: int
    key: bytes
    values: tuple[Any, ...] = ()


class _Blob(msgspec.Struct, array_like=True, gc=False):
    applied: int
    event_time_us: int
    rows: int
    lifetime: list[Any]
    tracks: list[bytes]
    latest: LatestRow | None
    bags: list[bytes] = []


_decode = msgspec.msgpack.Decoder(_Blob).decode


class EntityState:
    """One entity, as of a log time.

    applied: offset after the last change applied: older ones are skipped. rows: live rows that count. event_time_us: time of the newest
    row ever seen. must_rebuild: the newest row went away, and only the contributions know the next one.
    """

    __slots__ = ("applied", "bags", "event_time_us", "latest", "layout", "lifetime", "must_rebuild", "rows", "tracks")

    def __init__(self, layout: Layout, now_us: int) -> None:
        self.layout = layout
        self.applied = 0
        self.event_time_us = 0
        self.rows = 0
        self.lifetime: list[int] = [0] * len(layout.lifetime_slots)
        self.tracks: list[Track] = [Track(plan) for plan in layout.tracks]
        self.bags: list[BagTrack] = [BagTrack(plan) for plan in layout.bags]
        self.latest: LatestRow | None = None
        self.must_rebuild = False
        self.advance(now_us)

    def shift(self, time_us: int, deltas: Deltas, is_added: bool) -> None:
        """Add a row's deltas, or take them away again."""
        lifetime = self.lifetime
        for slot, amount in deltas[0]:
            if is_added:
                lifetime[slot] += amount
            else:
                lifetime[slot] -= amount
        place = 1
        for track in self.tracks:
            track.add(time_us, deltas[place], is_added)
            place += 1

    def put(self, time_us: int, items: Sequence[Item], is_added: bool) -> None:
        """Put a row's items into the bags, or take them out again."""
        for bags in self.bags:
            bags.shift(time_us, items, is_added=is_added)

    def has_short_bags(self) -> bool:
        """Only all rows of the entity can say what some bags hold now: see ``refill``."""
        found = False
        for bags in self.bags:
            found = bags.is_short() or found
        return found

    def refill(self, rows: Sequence[tuple[int, Sequence[Item]]]) -> None:
        """rows: (time, items) of each live row of the entity that counts."""
        for bags in self.bags:
            bags.refill(rows)

    def advance(self, now_us: int) -> None:
        """Move all windows to the log time."""
        for track in self.tracks:
            track.advance(now_us)
        for bags in self.bags:
            bags.advance(now_us)

    def due_us(self) -> int | None:
        """The next log time at which a feature changes by itself."""
        earliest: int | None = None
        for track in self.tracks:
            due = track.due_us()
            if due is not None and (earliest is None or due < earliest):
                earliest = due
        for bags in self.bags:
            due = bags.due_us()
            if due is not None and (earliest is None or due < earliest):
                earliest = due
        return earliest

    def values(self) -> tuple[FeatureValue, ...]:
        """The features, in the view's order; a value of the newest row that can't be read as its type is null."""
        result: list[FeatureValue] = []
        for reader in self.layout.readers:
            kind = reader[0]
            if kind in (_SUM, _BAGS):
                result.append(self._aggregated(reader))
            elif kind == _NEWEST:
                result.append(None if self.latest is None else _readable(reader[1], self.latest.values[reader[2]]))
            else:
                numerator, denominator = reader[1]
                result.append(_quotient(self._aggregated(numerator), self._aggregated(denominator)))
        return tuple(result)

    def _aggregated(self, reader: _Reader) -> FeatureValue:
        kind, read, place, window, start, end = reader
        if kind == _BAGS:
            return self.bags[place].read(window, start)
        if place == LIFETIME:
            sums = self.lifetime
        else:
            track = self.tracks[place]
            sums = track.totals[window]
        value: FeatureValue = read(sums[start:end])
        return value

    def encode(self) -> bytes:
        """The bytes that the store keeps beside the features."""
        return _pack(
            _Blob(
                self.applied,
                self.event_time_us,
                self.rows,
                list(map(pack_slot, self.layout.lifetime_slots, self.lifetime)),
                [track.encode() for track in self.tracks],
                self.latest,
                [bags.encode() for bags in self.bags],
            )
        )

    @classmethod
    def decode(cls, layout: Layout, data: bytes, now_us: int) -> EntityState:
        """Inverse of encode, advanced to the log time."""
        state = cls.__new__(cls)
        state.load(layout, data, now_us)
        return state

    def load(self, layout: Layout, data: bytes, now_us: int) -> None:
        """Of an object without contents: see decode."""
        blob = _decode(data)
        self.layout = layout
        self.applied = blob.applied
        self.event_time_us = blob.event_time_us
        self.rows = blob.rows
        self.lifetime = list(map(unpack_slot, layout.lifetime_slots, blob.lifetime))
        self.tracks = [Track.decode(plan, part, now_us) for plan, part in zip(layout.tracks, blob.tracks, strict=True)]
        self.bags = [BagTrack.decode(plan, part, now_us) for plan, part in zip(layout.bags, blob.bags, strict=True)]
        self.latest = blob.latest
        self.must_rebuild = False


def _readable(convert: Converter, value: Value) -> FeatureValue:
    try:
        return convert(value)
    except ValueError:
        return None


def _quotient(numerator: FeatureValue, denominator: FeatureValue) -> float | None:
    if not isinstance(numerator, (int, float)) or not isinstance(denominator, (int, float)) or not denominator:
        return None
    return numerator / denominator


def _lift(key: AggregateKey, made: Any, index: Mapping[str, int]) -> _Lift:
    return key.column, made, None if key.where is None else key.where.compile(index)


def _append_new(items: list[Any], item: Any) -> None:
    if item not in items:
        items.append(item)


class _Group:
    """The aggregates of one tile. widest: by what they have in common, the one with the most slots; the others read its first ones."""

    def __init__(self) -> None:
        self.widest: dict[AggregateKey, Aggregate] = {}

    def add(self, key: AggregateKey) -> None:
        self.take(base_of(key), make_aggregate(key))

    def take(self, base: AggregateKey, made: Aggregate) -> None:
        known = self.widest.get(base)
        if known is None or len(made.slots) > len(known.slots):
            self.widest[base] = made

    def start(self, base: AggregateKey) -> int:
        """First slot."""
        found = 0
        for other, made in self.widest.items():
            if other == base:
                break
            found += len(made.slots)
        return found

    def slots(self) -> tuple[Pack, ...]:
        return tuple([pack for made in self.widest.values() for pack in made.slots])

    def places(self, order: Sequence[AggregateKey]) -> tuple[tuple[int, int, int], ...]:
        """(place of its lift, first slot, number of slots) of each aggregate."""
        return tuple([(order.index(base), self.start(base), len(made.slots)) for base, made in self.widest.items()])
