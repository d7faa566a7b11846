"""The asyncio shell of one sink: log → lanes → requests → verdicts → cursor.

All order and all progress are in lanes.py; here are the tasks that move it::

    scan, reread   one pair a partition (intake.py): read the log, hold what the sink wants
    pump           makes requests of what is ready, as breaker, rate and concurrency allow
    carry          one a request: send, rule, bury (durable first), settle
    checkpoint     now and then stores cursor and done flags
    watch          fails the sink loudly when a request's task dies

Nothing is acknowledged to the log but what is done, so a crash at any point repeats requests and loses none.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from headrace.cdc.consumer import Health
from headrace.cdc.errors import LogError
from headrace.cdc.log.base import Cursor
from headrace.sinks.base import CallSpec, Item, Sink, SinkSection
from headrace.sinks.breaker import Breaker, BreakerState
from headrace.sinks.deadletter import DeadLetter, DeadLetters
from headrace.sinks.intake import Intake, Readable
from headrace.sinks.lanes import DEAD, Flight, Lanes
from headrace.sinks.ledger import Ledger
from headrace.sinks.rate import Rate
from headrace.sinks.sinkmetrics import SinkNumbers
from headrace.sinks.splitting import Carried, carry
from headrace.sinks.turns import let_others
from headrace.sinks.verdict import Answer, FaultKind, Returned, Verdict, outage, refused

_log = logging.getLogger("headrace.sink")

_TELL_EVERY_S: Final = 10.0
_CHECKPOINT_S: Final = 0.5
"""Each checkpoint is a sync of the log's disk that lone appends wait for, so it is rare. A crash repeats what was delivered since the last."""
_DRAIN_S: Final = 1.5
"""How long a stop waits for the answers of requests under way; without them they are sent again at the next start."""
_SNAPSHOT: Final = "read"
_SLICE: Final = 128
"""Events whose requests are begun before all else gets its turn: a sink that works a backlog off must not keep fresh events of the others waiting."""


class Cursors(Protocol):
    """Where a dispatcher keeps its places."""

    async def load(self, partition: int) -> Cursor | None: ...

    async def save(self, partition: int, cursor: Cursor) -> None: ...


class Range(msgspec.Struct, frozen=True):
    """Of each partition what a replay delivers: from first up to end, exclusive."""

    first: int
    end: int


class Dispatcher:
    """Delivers one sink's events. ``run`` once; its parts are made anew for the next run.

    ranges: None = follow the log for ever from the cursor; else deliver these and return. numbers: counters that outlive the object.
    on_delivered: told of each event the destination has taken, before that counts as done; on_returned: of what it answered to them.
    clock: seconds, monotonic; wall: seconds since 1970; chance: random numbers of [0, 1).
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        section: SinkSection,
        *,
        log: Readable,
        cursors: Cursors,
        letters: DeadLetters,
        numbers: SinkNumbers | None = None,
        ranges: Mapping[int, Range] | None = None,
        on_delivered: Callable[[Sequence[Item]], Awaitable[None]] | None = None,
        on_returned: Callable[[Sequence[tuple[Item, Returned]]], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        share: int | None = None,
    ) -> None:
        self._name = name
        self._sink = sink
        self._section = section
        self._log = log
        self._cursors = cursors
        self._letters = letters
        self._ranges = ranges
        self._on_delivered = on_delivered
        self._on_returned = on_returned
        self._clock = clock
        self._wall = wall
        self._chance = chance
        self._share = share
        self._calls = _effective_calls(sink.calls, section)
        self._rates = {call.name: Rate(call.rate) for call in self._calls}
        self._limits: dict[str, int] = {}
        self.breaker = Breaker()
        self.pause_reason = ""
        self._lanes: list[Lanes] = []
        self._saved: list[tuple[int, bytes]] = []
        self._intakes: list[Intake] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = 0
        self._enough = max(1, section.concurrency // 4)
        """Requests under way from which on one that isn't full may wait for more."""
        self._has_more = False
        self._in_flight = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._failed: asyncio.Future[None] | None = None
        self._turn = 0
        self._untold = 0
        self._tell_from_s = float("-inf")
        self.numbers = numbers if numbers is not None else SinkNumbers()
        self.numbers.in_flight = lambda: self._in_flight
        self.numbers.held = lambda: sum(lanes.held for lanes in self._lanes)
        self.numbers.oldest_s = self.oldest_s
        self.numbers.breaker_code = lambda: self.breaker.state.value

    # what others see

    @property
    def offsets(self) -> list[int]:
        """The first offset that isn't done, one a partition; empty before ``run``."""
        return [lanes.ledger.next for lanes in self._lanes]

    def oldest_s(self) -> float:
        """Age of the oldest event that isn't done, by its commit time; 0 when all that was read is done. To about one read's length."""
        times_us = [found for intake in self._intakes if (found := intake.oldest_us()) is not None]
        return max(0.0, self._wall() - min(times_us) / 1_000_000) if times_us else 0.0

    def health(self) -> Health:
        part = f"sinks/{self._name}"
        if self.pause_reason:
            return Health(part, is_ready=False, reason=self.pause_reason)
        if not self._lanes:
            return Health(part, is_ready=False, reason="not started yet")
        if self.breaker.state is not BreakerState.CLOSED:
            return Health(part, is_ready=False, reason=self.breaker.reason)
        return Health(part, is_ready=True)

    def status(self) -> dict[str, Any]:
        """offset; delivered_events, dead_events, held_events, in_flight_events, requests; breaker; oldest_unacked_s; where known paused, p50_ms, p99_ms."""
        numbers = self.numbers
        found = {
            "offset": self.offsets,
            "delivered_events": numbers.delivered,
            "dead_events": numbers.dead,
            "held_events": numbers.held(),
            "in_flight_events": self._in_flight,
            "requests": numbers.calls,
            "breaker": self.breaker.state.name.lower(),
            "paused": self.pause_reason or None,
            "oldest_unacked_s": round(self.oldest_s(), 3),
            "p50_ms": numbers.quantile_ms(0.50),
            "p99_ms": numbers.quantile_ms(0.99),
        }
        return {name: value for name, value in found.items() if value is not None}

    def pause(self, reason: str) -> None:
        """Begin no further request; those under way end. Idempotent."""
        self.pause_reason = reason

    def release_but(self, keys: set[str]) -> None:
        """Under ``poison: hold``: only these keys have dead letters still, others go on."""
        for lanes in self._lanes:
            lanes.release_but(keys)

    def resume(self) -> None:
        """Go on after ``pause``. Idempotent."""
        self.pause_reason = ""
        self._wake.set()

    # the run

    async def run(self) -> None:
        """Deliver until cancelled, or until the ranges are done. Raises LogError, SinkError, SinkStoreError; anything else is a defect."""
        await self._sink.open()
        try:
            await self._begin()
            self._failed = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._watch())]
                    for partition in self._partitions():
                        tasks.append(group.create_task(self._intakes[partition].scan(self._end(partition))))
                        tasks.append(group.create_task(self._intakes[partition].reread()))
                    tasks.append(group.create_task(self._pump()))
                    tasks.append(group.create_task(self._checkpoints()))
                    if self._ranges is not None:
                        await self._until_delivered(tasks)
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
            finally:
                await self._drain()
        finally:
            await self._sink.close()

    async def _begin(self) -> None:
        stopped = await self._letters.stopped_keys(self._name) if self._section.poison == "hold" else set[str]()
        count = self._log.partitions
        self.breaker = Breaker()
        self._lanes, self._saved, self._intakes = [], [], []
        for partition in range(count):
            cursor = await self._cursors.load(partition)
            bounds = await self._log.bounds(partition)
            if cursor is None:
                cursor = Cursor(bounds.first if self._section.start == "earliest" else bounds.end)
                # At once: from here on the log keeps what this sink hasn't got.
                await self._cursors.save(partition, cursor)
            ledger = Ledger(cursor.offset, cursor.state)
            # What was buried is done, also where a crash came before the checkpoint: sent again, it might be taken this time, behind its followers.
            ledger.known(await self._letters.buried(self._name, self._log.generation, partition, cursor.offset))
            self._saved.append((cursor.offset, cursor.state))
            lanes = Lanes(
                ledger,
                self._calls,
                window=max(16, self._section.window // count),
                window_bytes=max(1 << 20, self._section.window_bytes.bytes // count),
                share=self._share,
                attempts=self._section.attempts,
                is_ordered=self._section.order.mode != "none",
                is_holding=self._section.poison == "hold",
                held_keys=sorted(stopped),
            )
            self._lanes.append(lanes)
            self._intakes.append(
                Intake(
                    self._log, partition, lanes, self._sink, self._section,
                    numbers=self.numbers, clock=self._clock, wake=self._wake, room=self._room,
                )
            )  # fmt: skip

    def _partitions(self) -> Sequence[int]:
        return range(self._log.partitions) if self._ranges is None else sorted(self._ranges)

    def _end(self, partition: int) -> int | None:
        return None if self._ranges is None else self._ranges[partition].end

    async def _until_delivered(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        assert self._ranges is not None
        while any(self._lanes[partition].ledger.next < range_.end for partition, range_ in self._ranges.items()):
            self._room.clear()
            await self._room.wait()
        for task in tasks:
            task.cancel()

    async def _pump(self) -> None:
        while True:
            self._wake.clear()
            due_s = self._send_what_is_ready()
            if self._has_more:
                await let_others(self._clock, is_far_behind=True)
                continue
            if due_s is None:
                await self._wake.wait()
                continue
            try:
                async with asyncio.timeout(max(0.0, due_s - self._clock())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _send_what_is_ready(self) -> float | None:
        """Begin every request that may begin now. Result: when to look again without being woken; None = no such time."""
        now_s = self._clock()
        due: list[float] = []
        for lanes in self._lanes:
            lanes.tick(now_s)
            timer_s = lanes.due_s()
            if timer_s is not None:
                due.append(timer_s)
            flight = lanes.take(DEAD)
            while flight is not None:
                self._start(self._bury_flight(lanes, flight))
                flight = lanes.take(DEAD)
        self._has_more = False
        if not self.pause_reason:
            self._begin_requests(now_s, due)
        return min(due, default=None)

    def _begin_requests(self, now_s: float, due: list[float]) -> None:
        breaker_s = self.breaker.due_s()
        if breaker_s is not None and breaker_s > now_s:
            due.append(breaker_s)
        count = len(self._lanes)
        begun = 0
        # Another call first each time, or one that always has work would keep all requests to itself.
        self._calls.append(self._calls.pop(0))
        for call in tuple(self._calls):
            rate = self._rates[call.name]
            idle = 0
            while idle < count and self._requests < self._section.concurrency and self.breaker.admits(now_s):
                lanes = self._lanes[self._turn % count]
                self._turn += 1
                linger_s = lanes.linger_s(call, is_busy=self._requests >= self._enough)
                if linger_s is None or linger_s > now_s:
                    idle += 1
                    if linger_s is not None:
                        due.append(linger_s)
                    continue
                ready_s = rate.ready_s(now_s)
                if ready_s > now_s:
                    due.append(ready_s)
                    break
                # A probe asks with one event: should the destination be half alive, no more than that is in doubt.
                limit = 1 if self.breaker.state is BreakerState.OPEN else self._limits.get(call.name)
                flight = lanes.take(call, limit)
                if flight is None:
                    idle += 1
                    continue
                idle = 0
                begun += len(flight.items)
                rate.take(now_s)
                self.breaker.began()
                self._requests += 1
                self._in_flight += len(flight.items)
                self._start(self._carry(lanes, flight))
                if begun >= _SLICE:
                    self._has_more = True
                    return

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _watch(self) -> None:
        assert self._failed is not None
        await self._failed

    async def _carry(self, lanes: Lanes, flight: Flight) -> None:
        call = flight.call
        try:
            carried = await carry(lambda items: self._ask(call.name, items), flight.items)
        finally:
            self._requests -= 1
            self._in_flight -= len(flight.items)
        self._learn(call, carried, len(flight.items))
        await self._settle(lanes, flight, carried.verdicts)

    async def _ask(self, call: str, items: Sequence[Item]) -> Answer:
        self.numbers.calls += 1
        limit_s = self._section.timeout.s
        try:
            async with asyncio.timeout(limit_s):
                return await self._sink.send(call, items)
        except TimeoutError:
            return outage(f"no answer within {limit_s:g} s; whether the request was applied isn't known")

    def _learn(self, call: CallSpec, carried: Carried, events: int) -> None:
        """What the answer says about the destination."""
        now_s = self._clock()
        fault = carried.fault
        before = self.breaker.state
        limit = self._limits.get(call.name)
        if carried.was_too_large:
            self._limits[call.name] = max(1, min(events, limit or events) // 2)
        elif limit is not None and fault is None and events >= limit:
            # It may have been a few large events: find the way back up, a tenth at a time.
            self._limits[call.name] = limit + max(1, limit // 10)
        if fault is not None:
            self.numbers.faults += 1
        if fault is None or fault.kind is FaultKind.THROTTLED:
            if fault is not None:
                self._rates[call.name].throttled(now_s, fault.after_s)
            if self.breaker.answered():
                for lanes in self._lanes:
                    lanes.wake(now_s)
        elif fault.kind is FaultKind.DENIED:
            self.breaker.denied(now_s, fault.reason)
        else:
            self.breaker.failed(now_s, fault.reason, fault.after_s)
        if self.breaker.state is not before:
            self._tell_breaker(before)

    def _tell_breaker(self, before: BreakerState) -> None:
        """A line when deliveries stop, and one when they go on; not one for each probe."""
        if self.breaker.state is BreakerState.CLOSED:
            _log.info("sink %s: the destination is back", self._name)
        elif before is BreakerState.CLOSED:
            _log.warning(
                "sink %s: %s; it is asked again now and then, and what comes waits", self._name, self.breaker.reason
            )

    def _tell_buried(self, buried: Sequence[tuple[Item, str]]) -> None:
        self._untold += len(buried)
        now_s = self._clock()
        if now_s >= self._tell_from_s:
            item, reason = buried[0]
            _log.warning(
                "sink %s: %d events became dead letters since the last word on it, now the one at offset %d: %s",
                self._name, self._untold, item.offset, reason,
            )  # fmt: skip
            self._untold, self._tell_from_s = 0, now_s + _TELL_EVERY_S

    async def _settle(self, lanes: Lanes, flight: Flight, verdicts: Sequence[Any]) -> None:
        ruling = lanes.rule(flight, verdicts)
        if ruling.buried:
            await self._bury(lanes, ruling.buried)
            self._tell_buried(ruling.buried)
        if self._on_returned is not None:
            await self._take_back(flight.items, verdicts)
        if self._on_delivered is not None and ruling.delivered:
            await self._on_delivered(ruling.delivered)
        lanes.settle(flight, ruling, self._clock(), self._chance)
        numbers = self.numbers
        numbers.delivered += len(ruling.delivered)
        numbers.dead += len(ruling.buried)
        numbers.again += len(flight.items) - len(ruling.delivered) - len(ruling.buried)
        if self._ranges is None:
            wall_s = self._wall()
            for item in ruling.delivered:
                event = item.event
                if event.row is None or event.row.op != _SNAPSHOT:
                    numbers.aged(wall_s - event.committed_us / 1_000_000)
        self._room.set()
        self._wake.set()

    async def _take_back(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> None:
        assert self._on_returned is not None
        answers = [
            (item, verdict.returned)
            for item, verdict in zip(items, verdicts, strict=True)
            if verdict.returned is not None
        ]
        if answers:
            await self._on_returned(answers)
            self.numbers.returned += len(answers)

    async def _bury_flight(self, lanes: Lanes, flight: Flight) -> None:
        await self._settle(lanes, flight, [refused(item.fault) for item in flight.items])

    async def _bury(self, lanes: Lanes, buried: Sequence[tuple[Item, str]]) -> None:
        partition = self._lanes.index(lanes)
        at_us = int(self._wall() * 1_000_000)
        await self._letters.bury(
            [
                DeadLetter(
                    self._name,
                    self._log.generation,
                    partition,
                    item.offset,
                    item.key,
                    reason,
                    item.attempts,
                    item.is_held,
                    at_us,
                    item.event,
                )
                for item, reason in buried
            ]
        )

    # progress

    async def _checkpoints(self) -> None:
        while True:
            await asyncio.sleep(_CHECKPOINT_S)
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        for partition in self._partitions():
            ledger = self._lanes[partition].ledger
            now = (ledger.next, ledger.state())
            if now != self._saved[partition]:
                await self._cursors.save(partition, Cursor(*now))
                self._saved[partition] = now

    async def _save_last(self) -> None:
        """Also after a failure: what is done is done. But the failure's own words come first."""
        failed = self._failed
        is_failing = failed is not None and failed.done() and not failed.cancelled() and failed.exception() is not None
        try:
            await self._checkpoint()
        except LogError:
            if not is_failing:
                raise

    async def _drain(self) -> None:
        """A stop waits a moment for answers under way and stores what they brought; what stays unanswered is sent again later."""
        try:
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=_DRAIN_S)
            await self._save_last()
        finally:
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _effective_calls(calls: Sequence[CallSpec], section: SinkSection) -> list[CallSpec]:
    """The sink's calls under the user's order and rate."""
    mode = section.order.mode
    found: list[CallSpec] = []
    for call in calls:
        is_run = call.is_run if mode == "auto" else mode == "run"
        if section.poison == "hold":
            is_run = False  # what has been sent already can't be held back
        rate = call.rate if section.rate is None else section.rate
        found.append(msgspec.structs.replace(call, is_run=is_run, rate=rate))
    return found


__all__ = ["Cursors", "Dispatcher", "Range"]
