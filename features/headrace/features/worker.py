"""One view at work: the kernel between the log and the store.

A worker turns events into ViewWrites and keeps the states of the entities it met last. It writes nothing itself: the engine writes
several views in one step and then calls ``written``. After any failure a worker is thrown away and made anew from the checkpoint.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from headrace.cdc.errors import HeadraceError
from headrace.cdc.event import CustomerEvent
from headrace.features.compiled import CompiledView
from headrace.features.eventrows import EventReader
from headrace.features.kernel import Counts, ViewBatch, ViewKernel
from headrace.features.rows import RowChange, RowReader, source_prefix
from headrace.features.spec import EntityKey
from headrace.features.state import EntityState
from headrace.features.store.base import Checkpoint, Contribution, OnlineStore, ViewWrite

FOREVER_US = 1 << 62
# What a state takes in memory, about, measured with windows of 60 tiles: its objects; of bags, whose items are objects where sums are bytes, each
# tile and each byte stored.
_STATE_BYTES: Final = 5 << 10
_BAG_TILE_BYTES: Final = 550
_BAG_FACTOR: Final = 8


class TimedEvent(msgspec.Struct, gc=False):
    """An event with its offset and the log time there."""

    event: CustomerEvent
    offset: int
    now_us: int


class ViewWorker:
    """See the module. most_states, most_bytes: what stays in memory, at most so many entities of about so many bytes."""

    def __init__(
        self, view: CompiledView, store: OnlineStore, generation: str, *, most_states: int, most_bytes: int = 1 << 62
    ) -> None:
        self.view = view
        self.kernel = ViewKernel(view)
        self.stored_offset = 0
        self.stored_log_time_us = 0
        self.newest_us = 0
        """Commit time of the newest change of this run, 0 before the first."""
        self.next_due_us = FOREVER_US
        """No row of the view changes by itself before this log time; may be too early, never too late."""
        self._told = Counts()
        self._store = store
        self._generation = generation
        self._reader = RowReader(view) if view.events is None else None
        self._events = EventReader(view) if view.events is not None else None
        self._states: OrderedDict[EntityKey, EntityState] = OrderedDict()
        self._sizes: dict[EntityKey, int] = {}
        """Bytes of each state in memory, about."""
        self._held = 0
        self._most_states = most_states
        self._most_bytes = most_bytes
        self._schema, _, self._table = view.table.partition(".")

    def reads(self, event: CustomerEvent) -> bool:
        """The event concerns the view's table, or is one of its events."""
        if self._events is not None:
            return self._events.reads(event)
        row = event.row
        return (
            row is not None
            and row.table == self._table
            and row.schema == self._schema
            and (self.view.source is None or event.source == self.view.source)
        )

    async def begin(self, offset: int, log_time_us: int) -> None:
        """Go on at this place; everything the store has is as of there."""
        self.stored_offset = offset
        self.stored_log_time_us = log_time_us
        await self._look_for_due()

    async def apply(self, events: Sequence[TimedEvent], offset: int, log_time_us: int) -> ViewWrite | None:
        """What these events change, None for nothing. offset: the place after them; log_time_us: log time there."""
        changes: list[RowChange] = []
        if self._events is not None:
            changes = [self._events.read(timed.event, timed.offset, timed.now_us) for timed in events]
        else:
            assert self._reader is not None
            for timed in events:
                row = timed.event.row
                assert row is not None  # reads() said so
                change = self._reader.read(timed.event, row, timed.offset, timed.now_us)
                if change is not None:
                    changes.append(change)
        return await self.apply_changes(changes, offset, log_time_us) if changes else None

    async def apply_changes(self, changes: Sequence[RowChange], offset: int, log_time_us: int) -> ViewWrite | None:
        """As ``apply``, of what has been read already."""
        batch = self.kernel.batch()
        batch.changes = list(changes)
        keys = batch.wanted_rows()
        if self._events is not None:
            # An event is never taken back: nothing of it need be kept but what it adds.
            return await self._carry_out(batch, dict.fromkeys(keys), offset, log_time_us)
        found = await self._store.contributions(self.view.spec, keys)
        return await self._carry_out(batch, dict(zip(keys, found, strict=True)), offset, log_time_us)

    async def truncate(
        self, timed: TimedEvent, entities: Sequence[EntityKey], offset: int, log_time_us: int
    ) -> ViewWrite | None:
        """Take away all rows of the truncated table that count for these entities."""
        prefix = source_prefix(timed.event.source)
        batch = self.kernel.batch()
        stored: dict[bytes, Contribution | None] = {}
        for entity in entities:
            for key, blob in await self._store.contributions_of(self.view.spec, entity):
                if key.startswith(prefix):
                    stored[key] = Contribution(entity, blob)
                    batch.changes.append(
                        RowChange(timed.offset, timed.now_us, timed.event.committed_us, "delete", key, None, None, None)
                    )
        return await self._carry_out(batch, stored, offset, log_time_us)

    async def decay(self, offset: int, log_time_us: int, limit: int) -> tuple[ViewWrite | None, int]:
        """Rows that change by the time alone, at most limit of them; and how many were due, 0 when no more are."""
        if self.next_due_us > log_time_us:
            return None, 0
        due = await self._store.due(self.view.spec, log_time_us, limit)
        if not due:
            await self._look_for_due()
            return None, 0
        batch = self.kernel.batch()
        keys = [key for _, key in due]
        states = await self._load(keys, log_time_us)
        for key in keys:
            state = states.get(key)
            batch.touch(key, EntityState(self.kernel.layout, log_time_us) if state is None else state)
        return self._write(batch, offset, log_time_us), len(due)

    def forget(self, keys: Sequence[EntityKey]) -> None:
        """Keep nothing of these entities in memory: the store has changed behind this object."""
        for key in keys:
            self._drop(key)

    def checkpoint(self, offset: int, log_time_us: int) -> ViewWrite:
        """A write that only says how far the view is."""
        return ViewWrite(self.view.spec, [], {}, self._checkpoint(offset, log_time_us))

    def written(self, write: ViewWrite) -> None:
        """The store has this write now."""
        self.stored_offset = write.checkpoint.offsets[0]
        self.stored_log_time_us = write.checkpoint.log_time_us
        for entity in write.entities:
            if entity.due_us is not None and entity.due_us < self.next_due_us:
                self.next_due_us = entity.due_us
        states = self._states
        while len(states) > self._most_states or (self._held > self._most_bytes and states):
            key, _ = states.popitem(last=False)
            self._held -= self._sizes.pop(key, 0)

    def news(self) -> Counts:
        """What the kernel has met since the last call; missing is left out."""
        counts, told = self.kernel.counts, self._told
        self._told = msgspec.structs.replace(counts)
        return Counts(
            counts.changes - told.changes,
            counts.written - told.written,
            counts.late - told.late,
            counts.unknown - told.unknown,
            counts.unreadable - told.unreadable,
        )

    def status(self) -> dict[str, Any]:
        """Numbers for people."""
        counts = self.kernel.counts
        return {
            "stored_offset": self.stored_offset,
            "rows_written": counts.written,
            "changes": counts.changes,
            "late_rows": counts.late,
            "unknown_columns": counts.unknown,
            "unreadable_values": counts.unreadable,
            "cached_entities": len(self._states),
            "cached_bytes": self._held,
            "newest_change_us": self.newest_us or None,
        }

    async def _carry_out(
        self, batch: ViewBatch, stored: dict[bytes, Contribution | None], offset: int, log_time_us: int
    ) -> ViewWrite | None:
        """Steps 2 to 5 of the kernel."""
        batch.resolve(stored)
        wanted = batch.wanted_entities()
        states = await self._load(wanted, log_time_us)
        batch.apply(states)
        for entity in batch.wanted_rebuilds():
            batch.rebuild(entity, await self._store.contributions_of(self.view.spec, entity))
        return self._write(batch, offset, log_time_us)

    def _write(self, batch: ViewBatch, offset: int, log_time_us: int) -> ViewWrite | None:
        entities, contributions = batch.finish(log_time_us)
        if not entities and not contributions:
            return None
        for entity, state in batch.states():
            self._states[entity] = state
            self._states.move_to_end(entity)
        for write in entities:
            if write.values is None:
                self._drop(write.key)
            else:
                size = _size(self._states[write.key], write.state)
                self._held += size - self._sizes.get(write.key, 0)
                self._sizes[write.key] = size
        if self._events is not None:
            contributions = {}
            if not entities:
                return None
        return ViewWrite(self.view.spec, entities, contributions, self._checkpoint(offset, log_time_us))

    async def _load(self, keys: Sequence[EntityKey], log_time_us: int) -> dict[EntityKey, EntityState]:
        """States of those that exist: from memory, or from the store in one call."""
        states: dict[EntityKey, EntityState] = {}
        absent: list[EntityKey] = []
        for key in keys:
            state = self._states.get(key)
            if state is None:
                absent.append(key)
            else:
                states[key] = state
        if absent:
            blobs = await self._store.states(self.view.spec, absent)
            for key, blob in zip(absent, blobs, strict=True):
                if blob is not None:
                    states[key] = EntityState.decode(self.kernel.layout, blob, self.stored_log_time_us)
        return states

    def _drop(self, key: EntityKey) -> None:
        self._states.pop(key, None)
        self._held -= self._sizes.pop(key, 0)

    async def _look_for_due(self) -> None:
        earliest = await self._store.due(self.view.spec, FOREVER_US, 1)
        self.next_due_us = earliest[0][0] if earliest else FOREVER_US

    def _checkpoint(self, offset: int, log_time_us: int) -> Checkpoint:
        return Checkpoint(self.view.spec.spec_hash, self._generation, (offset,), log_time_us)


def _size(state: EntityState, stored: bytes) -> int:
    if not state.bags:
        return _STATE_BYTES + len(stored)
    tiles = sum([len(bags) for bags in state.bags])
    return _STATE_BYTES + tiles * _BAG_TILE_BYTES + len(stored) * _BAG_FACTOR


class StoppedView(msgspec.Struct, frozen=True):
    """A view that can't go on until a person acts; the others do."""

    view: CompiledView
    reason: str
    advice: str

    @classmethod
    def of(cls, view: CompiledView, error: HeadraceError) -> StoppedView:
        return cls(view, error.message, error.advice)
