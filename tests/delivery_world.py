"""A destination that fails in every way, a log and a dead letter store that outlive the process, and a judge; all in virtual time.

One seed decides everything. The destination knows events by id, as an idempotent one does: ``effects`` holds the first application
of each, ``answered`` what the present process was told. The judge reads only these and the dead letters.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Bounds, Cursor, LogBatch
from headrace.cdc.log.memory import MemoryLog
from headrace.sinks.base import CallSpec, Item, SinkFinding, SinkSection, Unfit
from headrace.sinks.deadletter import DeadLetter, MemorySinkStore
from headrace.sinks.dispatcher import Dispatcher
from headrace.sinks.verdict import DELIVERED, Answer, Fault, FaultKind, Verdict, outage, refused, retry
from shop_log import order_event


class Faults:
    """Chances of each trouble, drawn once a world."""

    def __init__(self, chance: random.Random) -> None:
        def some(high: float) -> float:
            return chance.random() * high if chance.random() < 0.6 else 0.0

        self.outage = some(0.3)
        self.cut_after = some(0.15)
        self.hang = some(0.05)
        self.hang_applied = some(0.05)
        self.throttle = some(0.1)
        self.denied = some(0.02)
        self.retry = some(0.3)
        self.poison = some(0.03)
        self.unfit = some(0.02)
        self.too_large = chance.choice([0, 0, 3, 40])
        self.is_vague = chance.random() < 0.3
        """Poison is told of the whole request only."""
        self.crashes = chance.choice([0, 0, 1, 3, 6])


class Destination:
    """An idempotent sink. is_atomic: a request is applied whole or not at all; else event by event up to the first trouble of a key."""

    def __init__(self, chance: random.Random, faults: Faults, calls: Sequence[CallSpec]) -> None:
        self.calls = calls
        self.answered: set[int] = set()
        self.effects: list[tuple[str, int]] = []
        self.known: set[str] = set()
        self.under_way: dict[str, int] = {}
        self.wrong: list[str] = []
        self.requests = 0
        self.is_healthy = False
        self.is_run_asked = False
        self._chance = chance
        self._faults = faults

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def check(self) -> list[SinkFinding]:
        return []

    def is_poison(self, number: int) -> bool:
        return random.Random(f"poison {number}").random() < self._faults.poison

    def is_unfit(self, number: int) -> bool:
        return random.Random(f"unfit {number}").random() < self._faults.unfit

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        number = int(event.id.removeprefix("shop-"))
        if number % 97 == 13:
            return None
        if self.is_unfit(number):
            raise Unfit("it has no price")
        call = self.calls[number % 11 % len(self.calls)].name
        return Item(offset, key, event, call, str(number // 50), number, 100)

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        chance, faults = self._chance, self._faults
        self.requests += 1
        spec = next(each for each in self.calls if each.name == call)
        self._look_at(spec, items)
        for key in {item.key for item in items}:
            if self.under_way.get(key):
                self.wrong.append(f"key {key} is in two requests at once")
            self.under_way[key] = self.under_way.get(key, 0) + 1
        try:
            await asyncio.sleep(chance.random() * 0.05)
            if self.is_healthy:
                return self._answer(self._apply(items, calm=True), items)
            if faults.too_large and len(items) > faults.too_large:
                return Fault(FaultKind.TOO_LARGE, "too large")
            draw = chance.random()
            for share, act in (
                (faults.outage, "outage"), (faults.cut_after, "cut"), (faults.hang, "hang"), (faults.hang_applied, "hang applied"),
                (faults.throttle, "throttle"), (faults.denied, "denied"),
            ):  # fmt: skip
                if draw < share:
                    return await self._fail(act, items)
                draw -= share
            return self._answer(self._apply(items, calm=False), items)
        finally:
            for key in {item.key for item in items}:
                self.under_way[key] -= 1

    def _answer(self, answer: Answer, items: Sequence[Item]) -> Answer:
        if not isinstance(answer, Fault):
            self.answered.update(
                item.payload for item, verdict in zip(items, answer, strict=True) if verdict is DELIVERED
            )
        return answer

    def _look_at(self, spec: CallSpec, items: Sequence[Item]) -> None:
        if len(items) > spec.max_events:
            self.wrong.append(f"{len(items)} events in one request of {spec.name}")
        if not spec.joins_keys and len({(item.key, item.group) for item in items}) > 1:
            self.wrong.append(f"several groups in one request of {spec.name}")
        if not spec.is_run and not self.is_run_asked and len({item.key for item in items}) < len(items):
            self.wrong.append(f"two events of a key in one request of {spec.name}")

    async def _fail(self, act: str, items: Sequence[Item]) -> Answer:
        chance = self._chance
        if act == "outage":
            return outage("503", chance.choice([None, None, 3.0]))
        if act == "cut":
            self._apply(items, calm=False)
            return outage("cut after it was applied")
        if act == "throttle":
            return Fault(FaultKind.THROTTLED, "429", chance.choice([None, 1.0]))
        if act == "denied":
            return Fault(FaultKind.DENIED, "401")
        if act == "hang applied":
            self._apply(items, calm=False)
        await asyncio.sleep(1_000)
        raise AssertionError("the dispatcher has a time limit")

    def _apply(self, items: Sequence[Item], *, calm: bool) -> Answer:
        """As a destination that goes through a request in order, and past an event that it refuses."""
        if self._faults.is_vague and any(self.is_poison(item.payload) for item in items):
            return Fault(FaultKind.BAD_BATCH, "422")
        verdicts: list[Verdict] = []
        waiting: set[str] = set()
        for item in items:
            if item.key in waiting or (not calm and self._chance.random() < self._faults.retry):
                verdicts.append(retry("busy", self._chance.choice([None, 0.5])))
                waiting.add(item.key)
            elif self.is_poison(item.payload):
                verdicts.append(refused("it is poison"))
            else:
                if item.payload in self.answered:
                    self.wrong.append(f"{item.payload} of {item.key} was sent again after its answer")
                if item.event.id not in self.known:
                    self.known.add(item.event.id)
                    self.effects.append((item.key, item.payload))
                verdicts.append(DELIVERED)
        return verdicts


class Mortal:
    """What a process reaches of the world that outlives it: after ``kill`` nothing of it has an effect any more."""

    def __init__(self, log: MemoryLog, store: MemorySinkStore) -> None:
        self.is_dead = False
        self._log = log
        self._store = store

    generation = "g1"

    @property
    def partitions(self) -> int:
        return self._log.partitions

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        await self._pass()
        return await self._log.read(partition, offset, max_bytes=max_bytes, wait_s=wait_s)

    async def bounds(self, partition: int) -> Bounds:
        return await self._log.bounds(partition)

    async def load(self, partition: int) -> Cursor | None:
        return await self._log.committed("sink:s", partition)

    async def save(self, partition: int, cursor: Cursor) -> None:
        await self._pass()
        await self._log.commit("sink:s", partition, cursor.offset, state=cursor.state)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        await asyncio.sleep(0.8)  # slower than a checkpoint: one that came before the burial would be caught by a crash
        await self._pass()
        await self._store.bury(letters)
        await self._pass()  # a crash between the burial and its answer

    async def stopped_keys(self, sink: str) -> set[str]:
        return await self._store.stopped_keys(sink)

    async def buried(self, *place: Any) -> list[int]:
        return await self._store.buried(*place)

    async def counts(self) -> dict[str, int]:
        return await self._store.counts()

    async def letters(self, sink: str, **more: Any) -> list[DeadLetter]:
        return await self._store.letters(sink, **more)

    async def remove(self, letters: Sequence[DeadLetter]) -> None:
        await self._store.remove(letters)

    async def _pass(self) -> None:
        await asyncio.sleep(0.0005)
        if self.is_dead:
            await asyncio.get_running_loop().create_future()


class World:
    """One seed's story. section: the sink's settings, drawn when None."""

    def __init__(self, seed: int, *, events: int = 300) -> None:
        chance = self.chance = random.Random(seed)
        self.faults = Faults(chance)
        self.mode = chance.choice(["auto", "auto", "one", "run"])
        self.poison = "park" if self.mode == "run" else chance.choice(["park", "park", "hold"])
        calls = [
            CallSpec("a", chance.choice([1, 2, 10, 100]), 100 * chance.choice([3, 1_000]), chance.random() < 0.6,
                     chance.random() < 0.5, chance.choice([None, 50.0]), chance.choice([0.0, 0.05]))
        ]  # fmt: skip
        if chance.random() < 0.4:
            calls.append(CallSpec("b", chance.choice([1, 10]), is_run=chance.random() < 0.5))
        self.section = _section(self.mode, self.poison, chance)
        self.window = self.section.window
        self.share = chance.choice([2, 5, None])
        self.partitions = chance.choice([1, 1, 3])
        self.destination = Destination(chance, self.faults, calls)
        self.destination.is_run_asked = self.mode == "run"
        self.log = MemoryLog(partitions=self.partitions)
        self.store = MemorySinkStore()
        keys = chance.choice([1, 3, 20, 200])
        hot = chance.choice([0.0, 0.5, 0.9])
        self.events = [
            order_event(number, key="hot" if chance.random() < hot else f"k{chance.randrange(keys)}")
            for number in range(events)
        ]
        self.highest_held = 0

    def describe(self) -> str:
        return f"{vars(self.faults)}, mode {self.mode}, poison {self.poison}, {self.destination.calls}, {self.section}"

    async def live(self) -> None:
        """Append all, deliver all, over crashes; the destination heals in the end, as every destination does."""
        feeding = asyncio.create_task(self._feed())
        for _ in range(self.faults.crashes):
            await self._one_life(dies_after_s=self.chance.random() * 6)
        healing = asyncio.get_running_loop().call_later(20, self._heal)
        await self._one_life(dies_after_s=None)
        healing.cancel()
        await feeding

    def _heal(self) -> None:
        self.destination.is_healthy = True

    async def _feed(self) -> None:
        at = 0
        while at < len(self.events):
            count = self.chance.randrange(1, 60)
            await self.log.append(self.events[at : at + count], source="shop", state=b"")
            at += count
            await asyncio.sleep(self.chance.random() * 0.2)

    async def _one_life(self, *, dies_after_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        mortal = Mortal(self.log, self.store)
        self.destination.answered.clear()
        dispatcher = Dispatcher(
            "s", self.destination, self.section, log=mortal, cursors=mortal, letters=mortal,
            clock=loop.time, wall=loop.time, chance=self.chance.random, share=self.share,
        )  # fmt: skip
        running = asyncio.create_task(dispatcher.run())
        ends_at = None if dies_after_s is None else loop.time() + dies_after_s
        deadline = loop.time() + 20_000
        while ends_at is None or loop.time() < ends_at:
            self.highest_held = max(self.highest_held, dispatcher.numbers.held())
            await asyncio.sleep(0.05)
            if running.done():
                break
            if ends_at is None and await self._is_delivered(dispatcher):
                break
            assert loop.time() < deadline, f"no end: {dispatcher.status()}"
        if ends_at is not None:
            mortal.is_dead = True
        if running.done():
            await running
        running.cancel()
        while not running.done():
            await asyncio.wait([running], timeout=5)
            running.cancel()

    async def _is_delivered(self, dispatcher: Dispatcher) -> bool:
        ends = [(await self.log.bounds(partition)).end for partition in range(self.partitions)]
        return sum(ends) == len(self.events) and dispatcher.offsets == ends

    async def judge(self) -> list[str]:
        """What is wrong; empty when nothing was lost, reordered or doubled in effect."""
        wrong = list(self.destination.wrong)
        buried = {
            int(letter.event.id.removeprefix("shop-")): letter for letter in await self.store.letters("s", limit=10**6)
        }
        applied = [number for _, number in self.destination.effects]
        wanted = [n for n in range(len(self.events)) if n % 97 != 13]
        if len(applied) != len(set(applied)):
            wrong.append("an effect is doubled")
        lost = [n for n in wanted if n not in self.destination_numbers and n not in buried]
        if lost:
            wrong.append(f"lost: {lost[:5]} of {len(lost)}")
        for n, letter in buried.items():
            is_fair = letter.is_held or self.destination.is_poison(n) or self.destination.is_unfit(n)
            if not is_fair and not letter.reason.startswith("given up after"):
                wrong.append(f"{n} is buried for nothing: {letter.reason}")
        last: dict[str, int] = {}
        for key, number in self.destination.effects:
            if number < last.get(key, -1):
                wrong.append(f"reordered: {number} of {key} after {last[key]}")
            last[key] = number
        if self.poison == "hold":
            wrong += self._held_wrong(buried)
        if self.highest_held > (max(16, self.window // self.partitions) + 64) * self.partitions:
            wrong.append(f"{self.highest_held} events held at once, the window is {self.window}")
        return wrong

    @property
    def destination_numbers(self) -> set[int]:
        return {number for _, number in self.destination.effects}

    def _held_wrong(self, buried: dict[int, DeadLetter]) -> list[str]:
        """Behind a dead letter nothing of its key has an effect."""
        first: dict[str, int] = {}
        for number, letter in sorted(buried.items()):
            # One that was given up may have been delivered, with its followers, by a process that crashed before it noted that.
            if self.destination.is_poison(number) or self.destination.is_unfit(number):
                first.setdefault(letter.key, number)
        return [
            f"{number} of {key} came through behind dead letter {first[key]}"
            for key, number in self.destination.effects
            if number > first.get(key, 10**9)
        ]


def _section(mode: str, poison: str, chance: random.Random) -> SinkSection:
    from headrace.sinks.base import OrderConfig

    return SinkSection(
        order=OrderConfig(mode=mode),  # type: ignore[arg-type]
        poison=poison,  # type: ignore[arg-type]
        concurrency=chance.choice([1, 4, 32]),
        window=chance.choice([16, 60, 20_000]),
        attempts=chance.choice([3, 50]),
    )
