"""From the log into the lanes: the scan that goes forward, and the second reading of what hot keys had to leave behind.

One a partition. Both halves only stop and go by what the lanes say; they hold what the sink wants, and mark the rest as done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Bounds, LogBatch
from headrace.sinks.base import Item, Sink, SinkSection, Unfit
from headrace.sinks.lanes import DEAD, Lanes, stop
from headrace.sinks.sinkmetrics import SinkNumbers
from headrace.sinks.turns import let_others

_READ_BYTES: Final = 256 << 10
_WAIT_S: Final = 1.0
_SLICE: Final = 64
"""Events held before the scan looks again whether it may go on."""
_FAR_BEHIND: Final = 256
"""Events in one read: at the log's end there are never so many at once, but for a burst."""

_KEYS: Final[dict[str, Callable[[CustomerEvent], str | None]]] = {
    "customer": lambda event: event.key,
    "user_id": lambda event: event.user_id or event.key,
    "anonymous_id": lambda event: event.anonymous_id or event.key,
}


class Readable(Protocol):
    """The half of a log that delivery reads; EventLog and LogReader both are."""

    @property
    def generation(self) -> str: ...

    @property
    def partitions(self) -> int: ...

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch: ...

    async def bounds(self, partition: int) -> Bounds: ...


class Intake:
    """See the module. wake: set when something became ready to send. room: set, here and by the dispatcher, when something is done."""

    def __init__(
        self,
        log: Readable,
        partition: int,
        lanes: Lanes,
        sink: Sink,
        section: SinkSection,
        *,
        numbers: SinkNumbers,
        clock: Callable[[], float],
        wake: asyncio.Event,
        room: asyncio.Event,
    ) -> None:
        self._log = log
        self._partition = partition
        self._lanes = lanes
        self._prepare = sink.prepare
        self._wants = section.when.wants
        self._key_of = _KEYS[section.order.key]
        self._numbers = numbers
        self._clock = clock
        self._wake = wake
        self._room = room
        self._times: deque[tuple[int, int]] = deque()
        """First offset and its commit time of each read that isn't wholly done."""

    def oldest_us(self) -> int | None:
        """Commit time of the oldest event that isn't done, to about one read's length; None when all that was read is done."""
        ledger = self._lanes.ledger
        self._drop_times()
        return self._times[0][1] if self._times and ledger.next < ledger.scan else None

    async def scan(self, end: int | None) -> None:
        """Read on for ever, or up to ``end``, exclusive. Raises LogError as the log does."""
        lanes = self._lanes
        while end is None or lanes.ledger.scan < end:
            await self._until_scan()
            first = lanes.ledger.scan
            batch = await self._log.read(self._partition, first, max_bytes=_READ_BYTES, wait_s=_WAIT_S)
            if not batch.events:
                continue
            events = batch.events if end is None else batch.events[: end - first]
            self._drop_times()
            self._times.append((first, events[0].committed_us))
            is_far_behind = len(events) >= _FAR_BEHIND
            for start in range(0, len(events), _SLICE):
                await self._until_scan()
                lanes.is_filling = is_far_behind and start + _SLICE < len(events)
                self._hold_slice(first + start, events[start : start + _SLICE])
                await let_others(self._clock, is_far_behind=is_far_behind)

    async def reread(self) -> None:
        """Serve the keys whose events were left in the log, for ever. Raises LogError as the log does."""
        lanes = self._lanes
        while True:
            start = lanes.reread_from()
            if start is None:
                self._room.clear()
                await self._room.wait()
                continue
            batch = await self._log.read(self._partition, start, max_bytes=_READ_BYTES)
            self._serve_left(start, batch.events)
            self._wake.set()
            self._room.set()
            await asyncio.sleep(0)

    def _drop_times(self) -> None:
        times = self._times
        while len(times) > 1 and times[1][0] <= self._lanes.ledger.next:
            times.popleft()

    async def _until_scan(self) -> None:
        while not self._lanes.may_scan:
            if self._lanes.is_filling:
                self._lanes.is_filling = False
                self._wake.set()
            self._room.clear()
            await self._room.wait()

    def _hold_slice(self, first: int, events: Sequence[CustomerEvent]) -> None:
        """May overshoot the window by less than a slice."""
        lanes, now_s, wants, key_of = self._lanes, self._clock(), self._wants, self._key_of
        ledger = lanes.ledger
        skipped = 0
        for offset, event in enumerate(events, first):
            if not ledger.look(offset):
                continue
            if not wants(event):
                ledger.done(offset)
                skipped += 1
                continue
            key = lanes.lane_key(key_of(event), offset)
            if lanes.leaves(key, offset):
                continue
            skipped += self._hold(event, offset, key, now_s)
        if skipped:
            self._numbers.skipped += skipped
            self._room.set()
        if skipped < len(events):
            self._wake.set()

    def _serve_left(self, first: int, events: Sequence[CustomerEvent]) -> None:
        lanes, now_s = self._lanes, self._clock()
        ledger = lanes.ledger
        keys = lanes.returning(first)
        offset = first
        for event in events[: ledger.scan - first]:
            if not keys:
                return
            key = lanes.lane_key(self._key_of(event), offset)
            if key in keys and lanes.has_left(key, offset) and not ledger.is_done(offset) and self._wants(event):
                if lanes.leave_from(key, offset):
                    keys.discard(key)
                else:
                    self._numbers.skipped += self._hold(event, offset, key, now_s)
            offset += 1
        lanes.returned(keys, offset)

    def _hold(self, event: CustomerEvent, offset: int, key: str, now_s: float) -> int:
        """1 when the sink has no use for the event."""
        lanes = self._lanes
        if lanes.stop_key(key):
            item: Item | None = stop(Item(offset, key, event, "", "", None, 0))
        else:
            try:
                item = self._prepare(event, offset, key)
            except Unfit as unfit:
                item = Item(offset, key, event, DEAD.name, "", None, 0, fault=str(unfit))
        if item is None:
            lanes.ledger.done(offset)
            return 1
        lanes.hold(item, now_s)
        return 0


__all__ = ["Intake", "Readable"]
