"""The kernel: row changes in, entity writes out. Sans-I/O, without a clock, and blind to how the work is cut into batches.

One batch of one view goes through these steps; between them the caller fetches what the batch says it needs:

1. ``wanted_rows`` -> contributions of the touched source rows;
2. ``resolve``: each change becomes an old row to take away and a new row to add, in log order;
3. ``wanted_entities`` -> their states; ``apply``;
4. ``wanted_rebuilds`` -> all contributions of entities whose newest row, or one of the best values of a bag, went away; ``rebuild``;
5. ``finish``: features, states and contributions to write, as of a log time.

Rules. Updates retract what the row added before and add what it says now, also when its entity, its time or its place in the filter
changes; a snapshot's ``read`` is an upsert. What a row added is its contribution, kept with the values used, so that a delete that brings
only a key retracts exactly. A column that wasn't sent is taken from the contribution, or from the old image where the server sent one; a
row outside the filter is therefore kept as well when one of its values is long enough to be stored out of line. If nothing knows the
value (the row had no entity before), it reads as NULL and is counted. A change that an entity or a contribution has already seen is skipped, so a
replay changes nothing. An entity without rows that count has no row in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from headrace.cdc.decode.pgtime import timestamp_us
from headrace.cdc.event import Value
from headrace.features.bags import Item
from headrace.features.compiled import CompiledView
from headrace.features.rows import UNSET, Image, RowChange
from headrace.features.spec import EntityKey, FeatureValue
from headrace.features.state import Deltas, EntityState, LatestRow, Layout
from headrace.features.store.base import Contribution, EntityWrite
from headrace.features.values import converter

_pack = msgspec.msgpack.Encoder().encode


class SourceRow:
    """What is kept of a row: its entity, when, as of which change, with which values (order of CompiledView.columns).

    counts: False for a row outside the filter, which adds nothing and is only remembered.
    """

    __slots__ = ("counts", "deltas", "entity", "items", "offset", "time_us", "values")

    def __init__(self, entity: EntityKey, time_us: int, offset: int, values: tuple[Value, ...], counts: bool) -> None:
        self.entity = entity
        self.time_us = time_us
        self.offset = offset
        self.values = values
        self.counts = counts
        self.deltas: Deltas | None = None
        self.items: tuple[Item, ...] = ()


class _Blob(msgspec.Struct, array_like=True, gc=False):
    time_us: int
    offset: int
    values: tuple[Any, ...]
    counts: bool


_decode: Final = msgspec.msgpack.Decoder(_Blob).decode


class Counts(msgspec.Struct):
    """What the kernel has met, for metrics. late: inserts older than every window. unknown: columns not sent and not known before.

    unreadable: values that can't be read as the type asked. missing: columns of the definition that the newest rows don't have.
    """

    changes: int = 0
    written: int = 0
    late: int = 0
    unknown: int = 0
    unreadable: int = 0
    missing: frozenset[str] = frozenset()


class _Move:
    """One change as what it takes away and what it adds."""

    __slots__ = ("change", "key", "new", "old")

    def __init__(
        self, change: RowChange, key: bytes, old: list[tuple[bytes, SourceRow]], new: SourceRow | None
    ) -> None:
        self.change = change
        self.key = key
        self.old = old
        self.new = new


class ViewKernel:
    """The rules of one view; holds no entity."""

    def __init__(self, view: CompiledView) -> None:
        self.view = view
        self.layout = Layout(view)
        self.counts = Counts()
        self._where = (
            None
            if view.where is None
            else view.where.compile({column: place for place, column in enumerate(view.columns)})
        )
        self._entity = tuple([(index, converter(dtype)) for index, dtype in view.entity])

    def batch(self) -> ViewBatch:
        """An empty batch."""
        return ViewBatch(self)

    def stored_row(self, contribution: Contribution) -> SourceRow:
        """The row that a stored contribution stands for."""
        blob = _decode(contribution.blob)
        return SourceRow(contribution.entity, blob.time_us, blob.offset, blob.values, blob.counts)

    def new_row(self, change: RowChange, known: SourceRow | None) -> SourceRow | None:
        """The row after a change, None when nothing of it need be kept. known: what is kept of it from before."""
        after = change.after
        if after is None:
            return None
        values: tuple[Value, ...] = self._filled(change, after, known) if UNSET in after else after
        if self.counts.missing and UNSET not in after:
            self.counts.missing = frozenset()
        counts = self._where is None or self._where(values) is True
        if not counts and not self._may_be_out_of_line(values):
            return None
        parts: list[FeatureValue] = []
        for index, convert in self._entity:
            try:
                part = convert(values[index])
            except ValueError:
                self.counts.unreadable += 1
                return None
            if part is None:
                return None
            parts.append(part)
        return SourceRow(tuple(parts), self._time_us(change, values), change.offset, values, counts)

    def deltas_of(self, row: SourceRow, is_new: bool) -> Deltas:
        """What a row adds, and in row.items what it puts into bags; its unreadable values are counted once, when it is new."""
        if row.deltas is None:
            row.deltas, unreadable = self.layout.deltas(row.values)
            if self.layout.bags:
                row.items, unreadable_items = self.layout.items(row.values, row.time_us, row.offset)
                unreadable += unreadable_items
            if is_new:
                self.counts.unreadable += unreadable
        return row.deltas

    def newest(self, key: bytes, row: SourceRow) -> LatestRow:
        """The row as the candidate for an entity's newest."""
        values = row.values
        return LatestRow(row.time_us, row.offset, key, tuple([values[index] for index in self.layout.latest_columns]))

    def _may_be_out_of_line(self, values: Sequence[Value]) -> bool:
        """An update may leave out one of these values: PostgreSQL moves none of 24 bytes or fewer, header included, out of line."""
        for place, value in enumerate(values):
            if isinstance(value, str) and place != self.view.event_time and (len(value) > 20 or not value.isascii()):
                return True
        return False

    def _filled(self, change: RowChange, after: Image, known: SourceRow | None) -> tuple[Value, ...]:
        """The after image with its gaps filled from what is known."""
        values: list[Value] = []
        missing: list[str] = []
        for place, (column, value) in enumerate(zip(self.view.columns, after, strict=True)):
            if value is not UNSET:
                values.append(value)
            elif column in change.unchanged:
                before = UNSET if change.before is None else change.before[place]
                if known is not None:
                    values.append(known.values[place])
                elif before is not UNSET:
                    values.append(before)
                else:
                    self.counts.unknown += 1
                    values.append(None)
            else:
                values.append(None)
                if column in change.undecodable:
                    self.counts.unreadable += 1
                else:
                    missing.append(column)
        self.counts.missing = frozenset(missing)
        return tuple(values)

    def _time_us(self, change: RowChange, values: Sequence[Value]) -> int:
        index = self.view.event_time
        if index < 0:
            return change.committed_us
        text = values[index]
        moment = timestamp_us(text) if isinstance(text, str) else None
        if moment is None:
            if text is not None:
                self.counts.unreadable += 1
            return change.committed_us
        return moment


class ViewBatch:
    """Some changes of one view, in log order, on their way through the steps at the head of this module."""

    def __init__(self, kernel: ViewKernel) -> None:
        self._kernel = kernel
        self.changes: list[RowChange] = []
        self._moves: list[_Move] = []
        self._contributions: dict[bytes, SourceRow | None] = {}
        self._states: dict[EntityKey, EntityState] = {}
        self._touched: dict[EntityKey, None] = {}

    def wanted_rows(self) -> list[bytes]:
        """Source row keys whose contributions ``resolve`` needs."""
        keys = {change.key: None for change in self.changes}
        keys |= {change.old_key: None for change in self.changes if change.old_key is not None}
        return list(keys)

    def resolve(self, stored: Mapping[bytes, Contribution | None]) -> None:
        """Step 2. stored: one entry for each wanted row."""
        kernel = self._kernel
        current: dict[bytes, SourceRow | None] = {
            key: None if contribution is None else kernel.stored_row(contribution)
            for key, contribution in stored.items()
        }
        longest_us = kernel.layout.longest_us
        counts = kernel.counts
        changes = 0
        for change in self.changes:
            key = change.key
            old_key = change.old_key
            offset = change.offset
            was = current[key]
            if was is not None and was.offset > offset:
                continue  # a replay: the row has seen a later change
            old: list[tuple[bytes, SourceRow]] = []
            has_old = was is not None
            if was is not None and was.counts:
                old.append((key, was))
            known = was
            if old_key is not None:
                moved = current[old_key]
                if moved is not None and moved.offset <= offset:
                    has_old = True
                    if moved.counts:
                        old.append((old_key, moved))
                    known = moved
                    current[old_key] = None
                    self._contributions[old_key] = None
            new = kernel.new_row(change, known)
            changes += 1
            if new is None and not has_old:
                continue
            current[key] = new
            self._contributions[key] = new
            if new is not None and not new.counts:
                new = None
            if new is not None and longest_us and change.op == "insert" and new.time_us <= change.now_us - longest_us:
                counts.late += 1
            if old or new is not None:
                self._moves.append(_Move(change, key, old, new))
        counts.changes += changes

    def wanted_entities(self) -> list[EntityKey]:
        """Entities whose states ``apply`` needs."""
        keys: dict[EntityKey, None] = {}
        for move in self._moves:
            for _, row in move.old:
                keys[row.entity] = None
            if move.new is not None:
                keys[move.new.entity] = None
        return list(keys)

    def apply(self, states: dict[EntityKey, EntityState]) -> None:
        """Step 3. states: of the wanted entities, those that exist; entities that appear are added to it."""
        self._states = states
        kernel = self._kernel
        keeps_newest = bool(kernel.layout.latest_columns)
        has_event_time = kernel.view.event_time >= 0
        # Entities met at this offset: one event may touch an entity twice (an update), or for many rows (a truncate).
        met: dict[EntityKey, EntityState] = {}
        met_at = -1
        for move in self._moves:
            change = move.change
            offset = change.offset
            now_us = change.now_us
            if offset != met_at:
                met = {}
                met_at = offset
            for key, row in move.old:
                state = self._state(row.entity, now_us)
                if offset < state.applied and row.entity not in met:
                    continue
                met[row.entity] = state
                state.shift(row.time_us, kernel.deltas_of(row, False), False)
                if row.items:
                    state.put(row.time_us, row.items, False)
                state.rows -= 1
                if not has_event_time and change.committed_us > state.event_time_us:
                    state.event_time_us = change.committed_us
                if keeps_newest and state.latest is not None and state.latest.key == key:
                    new = move.new
                    if new is None or new.entity != row.entity or (new.time_us, new.offset) < (row.time_us, row.offset):
                        state.latest = None
                        state.must_rebuild = True
            new = move.new
            if new is not None:
                state = self._state(new.entity, now_us)
                if offset >= state.applied or new.entity in met:
                    met[new.entity] = state
                    state.shift(new.time_us, kernel.deltas_of(new, True), True)
                    if new.items:
                        state.put(new.time_us, new.items, True)
                    state.rows += 1
                    # A row's own time may lie in the future; an event can't be newer than the log.
                    moment = min(new.time_us, now_us)
                    state.event_time_us = max(state.event_time_us, moment)
                    if keeps_newest and not state.must_rebuild:
                        latest = kernel.newest(move.key, new)
                        if state.latest is None or latest >= state.latest or state.latest.key == move.key:
                            state.latest = latest
            for state in met.values():
                state.applied = offset + 1
                if state.rows == 0:
                    # As if it were read from the store again, where an entity without rows is no more.
                    state.event_time_us = 0
                    state.latest = None
                    state.must_rebuild = False

    def wanted_rebuilds(self) -> list[EntityKey]:
        """Entities whose newest row, or best values, must be found again among all their contributions."""
        found: list[EntityKey] = []
        for key in self._touched:
            state = self._states[key]
            if state.rows > 0 and (state.must_rebuild or state.has_short_bags()):
                found.append(key)
        return found

    def rebuild(self, entity: EntityKey, stored: Iterable[tuple[bytes, bytes]]) -> None:
        """Step 4. stored: all contributions of the entity in the store; this batch's own are laid over them."""
        rows: dict[bytes, SourceRow] = {}
        for key, blob in stored:
            if key not in self._contributions:
                row = self._kernel.stored_row(Contribution(entity, blob))
                if row.counts:
                    rows[key] = row
        for key, own in self._contributions.items():
            if own is not None and own.counts and own.entity == entity:
                rows[key] = own
        state = self._states[entity]
        kernel = self._kernel
        if state.must_rebuild:
            state.latest = max((kernel.newest(key, row) for key, row in rows.items()), default=None)
            state.must_rebuild = False
        if state.has_short_bags():
            layout = kernel.layout
            state.refill([(row.time_us, layout.items(row.values, row.time_us, row.offset)[0]) for row in rows.values()])

    def touch(self, entity: EntityKey, state: EntityState) -> None:
        """Write this entity as well: one whose features change by the time alone."""
        self._states[entity] = state
        self._touched[entity] = None

    def finish(self, log_time_us: int) -> tuple[list[EntityWrite], dict[bytes, Contribution | None]]:
        """Step 5. The entities to write, as of the log time, and the contributions to keep (None: to remove).

        States of entities that have no rows any more leave the mapping that ``apply`` got.
        """
        writes: list[EntityWrite] = []
        for entity in self._touched:
            state = self._states[entity]
            if state.rows <= 0:
                writes.append(EntityWrite(entity, None, state.event_time_us, b"", None))
                del self._states[entity]
                continue
            state.advance(log_time_us)
            writes.append(EntityWrite(entity, state.values(), state.event_time_us, state.encode(), state.due_us()))
        self._kernel.counts.written += len(writes)
        contributions: dict[bytes, Contribution | None] = {}
        for key, row in self._contributions.items():
            if row is None:
                contributions[key] = None
            else:
                blob = _pack(_Blob(row.time_us, row.offset, row.values, row.counts))
                contributions[key] = Contribution(row.entity, blob)
        return writes, contributions

    def states(self) -> Iterable[tuple[EntityKey, EntityState]]:
        """The states the batch has worked on, as of ``finish``."""
        return self._states.items()

    def _state(self, entity: EntityKey, now_us: int) -> EntityState:
        state = self._states.get(entity)
        if state is None:
            state = self._states[entity] = EntityState(self._kernel.layout, now_us)
        self._touched[entity] = None
        return state
