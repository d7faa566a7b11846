"""Views that stand at the same place of the log, and go on together.

The main lane follows the end of the log. A view that must catch up (new, changed, or behind after a crash) gets a lane of its own, so
that it never delays the others, and joins them when it has reached them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace.cdc.errors import DefinitionError
from headrace.cdc.event import CustomerEvent
from headrace.features.store.base import OnlineStore, ViewWrite
from headrace.features.worker import TimedEvent, ViewWorker

TRUNCATE_SLICE = 256
"""Entities a truncate removes in one write; readers see it happen slice by slice."""


class Lane:
    """See the module. offset: next event to apply; log_time_us: newest commit time before it, heartbeats included.

    on_stop: told of a view that can't go on; the lane goes on without it.
    """

    def __init__(
        self,
        workers: Sequence[ViewWorker],
        store: OnlineStore,
        offset: int,
        log_time_us: int,
        on_stop: Callable[[ViewWorker, DefinitionError], None],
    ) -> None:
        self.workers = list(workers)
        self.offset = offset
        self.log_time_us = log_time_us
        self._store = store
        self._on_stop = on_stop

    async def apply(self, events: Sequence[CustomerEvent]) -> list[CustomerEvent]:
        """Apply the next events; what they change is in the store on return. Result: those that concern a view."""
        touching: list[CustomerEvent] = []
        routed: dict[int, list[TimedEvent]] = {}
        offset = self.offset
        now_us = self.log_time_us
        for event in events:
            before_us = now_us
            now_us = max(now_us, event.committed_us)
            if event.kind not in ("heartbeat", "schema"):
                timed: TimedEvent | None = None
                for place, worker in enumerate(self.workers):
                    if worker.reads(event):
                        timed = timed or TimedEvent(event, offset, now_us)
                        routed.setdefault(place, []).append(timed)
                if timed is not None:
                    touching.append(event)
                    if event.row is not None and event.row.op == "truncate":
                        for place in list(routed):
                            routed[place] = [other for other in routed[place] if other is not timed]
                        await self._flush(routed, offset, before_us)
                        routed = {}
                        await self._truncate(timed)
            offset += 1
        await self._flush(routed, offset, now_us)
        return touching

    async def decay(self, limit: int) -> int:
        """Write rows that change by the time alone, at most limit of each view. Result: the most of any view; 0: no more are due."""
        writes: list[ViewWrite] = []
        most = 0
        for worker in self.workers:
            write, found = await worker.decay(self.offset, self.log_time_us, limit)
            most = max(most, found)
            if write is not None:
                writes.append(write)
        await self._write(writes)
        return most

    async def save(self) -> None:
        """Bring every view's checkpoint to the lane's place, where there was nothing else to write."""
        await self._write(
            [
                worker.checkpoint(self.offset, self.log_time_us)
                for worker in self.workers
                if worker.stored_offset < self.offset
            ]
        )

    async def _flush(self, routed: dict[int, list[TimedEvent]], offset: int, now_us: int) -> None:
        writes: list[ViewWrite] = []
        stopped: list[ViewWorker] = []
        works: list[tuple[ViewWorker, list[TimedEvent]]] = []
        for place, events in routed.items():
            if events:
                worker = self.workers[place]
                worker.newest_us = max(worker.newest_us, events[-1].event.committed_us)
                works.append((worker, events))
        if len(works) == 1:
            made = [await _made(*works[0], offset, now_us)]
        else:
            # Side by side: what the views ask of the store goes together, and they wait once.
            waiting = [_made(worker, events, offset, now_us) for worker, events in works]
            made = list[ViewWrite | DefinitionError | None]()
            for found in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(found, BaseException) and not isinstance(found, DefinitionError):
                    raise found
                made.append(found)
        for (worker, _), write in zip(works, made, strict=True):
            if isinstance(write, DefinitionError):
                # A definition that doesn't fit its table concerns this view alone.
                stopped.append(worker)
                self._on_stop(worker, write)
            elif write is not None:
                writes.append(write)
        await self._write(writes)
        self.offset = offset
        self.log_time_us = now_us
        self.workers = [worker for worker in self.workers if worker not in stopped]

    async def _truncate(self, timed: TimedEvent) -> None:
        """Remove in slices; until the last one the checkpoint stays before the truncate, so that a crash repeats it."""
        for worker in self.workers:
            if not worker.reads(timed.event):
                continue
            entities = await self._store.keys(worker.view.spec)
            for start in range(0, len(entities), TRUNCATE_SLICE):
                slice_ = entities[start : start + TRUNCATE_SLICE]
                write = await worker.truncate(timed, slice_, self.offset, self.log_time_us)
                if write is not None:
                    await self._write([write])
        self.offset = timed.offset + 1
        self.log_time_us = timed.now_us

    async def _write(self, writes: list[ViewWrite]) -> None:
        if not writes:
            return
        await self._store.write(writes)
        for write in writes:
            for worker in self.workers:
                if worker.view.spec is write.view:
                    worker.written(write)


async def _made(
    worker: ViewWorker, events: Sequence[TimedEvent], offset: int, now_us: int
) -> ViewWrite | DefinitionError | None:
    """What these events change of the view, or why it can't go on."""
    try:
        return await worker.apply(events, offset, now_us)
    except DefinitionError as error:
        return error
