"""Capture: what is durable is confirmed, in order, and nothing else; a broken link is tried again, a fault that stays is raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from headrace.cdc.capture import Capture
from headrace.cdc.errors import DecodeError, LogUnavailable, SourceRefused, SourceUnavailable
from headrace.cdc.metrics import CaptureMetrics
from headrace.cdc.process.normalise import Normaliser
from scripted_source import HeldLog, ScriptedSource, batch

DEADLINE_S = 5.0


class Bench:
    """A capture on a scripted source and a held log, with a clock and pauses that take no time."""

    def __init__(self, source: ScriptedSource, *, is_held: bool = True) -> None:
        self.source = source
        self.log = HeldLog(is_held=is_held, diary=source.diary)
        self.pauses: list[float] = []
        self.now_s = 0.0
        self.registry = CollectorRegistry()
        log: Any = self.log
        self.capture = Capture(
            source,
            Normaliser("shop", {}),
            log,
            CaptureMetrics(self.registry),
            clock=lambda: 1_700_000_000.5,
            pause=self._pause,
            monotonic=lambda: self.now_s,
        )

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    async def until(self, done: Callable[[], bool]) -> None:
        """Let the loop turn until ``done`` says so."""
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let the loop turn until nothing more happens by itself."""
        for _ in range(50):
            await asyncio.sleep(0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """The capture as a task; afterwards it is stopped and nothing of it is left."""
        others = asyncio.all_tasks()
        task = asyncio.create_task(self.capture.run())
        try:
            yield task
        finally:
            task.cancel()
            await self.settle()
            for future in self.log.held.values():
                if not future.done():
                    future.set_result(None)
            with suppress(asyncio.CancelledError, Exception):
                await task
            await self.settle()
            assert asyncio.all_tasks() == others, "a task is left"


async def test_a_batch_is_confirmed_after_it_is_durable_and_not_before() -> None:
    bench = Bench(ScriptedSource([batch(1), batch(2)]))
    async with bench.running():
        await bench.until(lambda: "2" in bench.log.held)
        await bench.settle()
        assert bench.source.diary == ["start after nothing", "append 1", "append 2"]
        bench.log.release(1)
        await bench.until(lambda: bool(bench.source.confirmed))
        await bench.settle()
        assert bench.source.diary[3:] == ["durable 1", "confirm 1"]


async def test_batches_are_confirmed_in_order_though_their_appends_end_in_another() -> None:
    bench = Bench(ScriptedSource([batch(1), batch(2), batch(3)]))
    async with bench.running():
        await bench.until(lambda: "3" in bench.log.held)
        bench.log.release(3)
        bench.log.release(2)
        await bench.settle()
        assert bench.source.confirmed == []
        bench.log.release(1)
        await bench.until(lambda: len(bench.source.confirmed) == 3)
        assert bench.source.confirmed == ["confirm 1", "confirm 2", "confirm 3"]


async def test_events_carry_rows_and_heartbeats_with_the_time_they_were_received() -> None:
    bench = Bench(ScriptedSource([batch(1, rows=2), batch(2, is_heartbeat=True)]), is_held=False)
    async with bench.running():
        await bench.until(lambda: len(bench.source.confirmed) == 2)
    assert [(event.id, event.kind) for event in bench.log.events] == [
        ("c1-0", "track"),
        ("c1-1", "track"),
        ("shop-hb-1700000000000000", "heartbeat"),
    ]
    assert {event.received_us for event in bench.log.events} == {1_700_000_000_500_000}
    assert bench.capture.events_total == 2


async def test_the_source_is_not_read_while_eight_appends_are_under_way() -> None:
    bench = Bench(ScriptedSource([batch(number) for number in range(1, 30)]))
    async with bench.running():
        await bench.until(lambda: len(bench.log.held) == 8)
        await bench.settle()
        assert (len(bench.log.held), bench.source.reads) == (8, 8)
        bench.log.release(1)
        await bench.until(lambda: len(bench.log.held) == 9)
        await bench.settle()
        assert (len(bench.log.held), bench.source.reads) == (9, 9)


async def test_parts_are_staged_and_only_their_end_is_confirmed_and_counted() -> None:
    parts = [batch(number, rows=3, is_part=True) for number in (1, 2)]
    bench = Bench(ScriptedSource([*parts, batch(3, rows=2)]))
    async with bench.running():
        await bench.until(lambda: "append 3" in bench.source.diary)
        assert bench.source.confirmed == [] and bench.capture.events_total == 0 and bench.log.events == []
        bench.log.release(3)
        await bench.until(lambda: bench.source.confirmed == ["confirm 3"])
    assert bench.capture.events_total == 8
    assert [event.id for event in bench.log.events] == [f"c{n}-{row}" for n in (1, 2) for row in range(3)] + [
        "c3-0",
        "c3-1",
    ]


async def test_parts_without_their_end_are_forgotten_before_the_source_starts_again() -> None:
    script = [batch(1, rows=3, is_part=True), SourceUnavailable("gone", source="shop"), batch(9)]
    bench = Bench(ScriptedSource(script), is_held=False)
    async with bench.running():
        await bench.until(lambda: bench.source.confirmed == ["confirm 9"])
    assert [event.id for event in bench.log.events] == ["c9-0"]
    assert bench.capture.events_total == 1


async def test_a_lost_source_starts_again_from_what_the_log_holds() -> None:
    lost = SourceUnavailable("gone", source="shop")
    bench = Bench(ScriptedSource([batch(1), batch(2), lost, batch(3)]), is_held=False)
    async with bench.running():
        await bench.until(lambda: len(bench.source.confirmed) == 3)
    starts = [line for line in bench.source.diary if line.startswith(("start", "stop"))]
    assert starts == ["start after nothing", "stop", "start after 2", "stop"]


async def test_appends_under_way_when_the_source_is_lost_end_and_are_confirmed_before_it_starts_again() -> None:
    bench = Bench(ScriptedSource([batch(1), batch(2), SourceUnavailable("gone", source="shop")]))
    async with bench.running():
        await bench.until(lambda: "2" in bench.log.held)
        await bench.settle()
        assert bench.source.diary == ["start after nothing", "append 1", "append 2"]
        bench.log.release(1)
        bench.log.release(2)
        await bench.until(lambda: bench.source.diary[-1].startswith("start"))
        assert bench.log.cancelled == []
        assert bench.source.confirmed == ["confirm 1", "confirm 2"]
        assert bench.source.diary[-2:] == ["stop", "start after 2"]


async def test_pauses_grow_to_half_a_minute_and_shrink_again_after_a_good_while() -> None:
    lost = [SourceUnavailable("gone", source="shop") for _ in range(12)]
    long_run = asyncio.Event()
    bench = Bench(ScriptedSource(starts=[None, *lost], script=[*lost[:1], long_run, *lost[:1]]), is_held=False)
    async with bench.running():
        await bench.until(lambda: len(bench.pauses) == 13)
        ceilings = [min(30.0, 0.2 * 2**attempt) for attempt in range(13)]
        for pause_s, ceiling in zip(bench.pauses, ceilings, strict=True):
            assert ceiling / 2 <= pause_s <= ceiling, bench.pauses  # the other half is spread by chance
        await bench.until(lambda: bench.capture.trouble == "")
        bench.now_s += 31
        long_run.set()
        await bench.until(lambda: len(bench.pauses) == 14)
        assert bench.pauses[-1] <= 0.2


async def test_why_a_source_is_tried_again_can_be_read_and_is_counted() -> None:
    gate = asyncio.Event()
    bench = Bench(ScriptedSource([SourceUnavailable("the link broke", source="shop"), gate]))
    seen: list[str] = []

    async def pause(seconds: float) -> None:
        seen.append(bench.capture.trouble)

    bench.capture._pause = pause  # pyright: ignore[reportPrivateUsage]
    async with bench.running():
        await bench.until(lambda: bool(seen) and bench.capture.trouble == "")
    assert seen == ["the link broke"]
    restarts = [
        sample.value
        for metric in bench.registry.collect()
        for sample in metric.samples
        if sample.name == "headrace_capture_source_restarts_total"
    ]
    assert restarts == [1.0]


@pytest.mark.parametrize(
    "error", [SourceRefused("no rights", source="shop"), DecodeError("no sense"), OSError("a defect")], ids=type
)
async def test_a_fault_that_stays_is_raised(error: Exception) -> None:
    bench = Bench(ScriptedSource([batch(1), error]), is_held=False)
    async with bench.running() as task:
        with pytest.raises(type(error)) as raised:
            await task
    assert raised.value is error
    assert (bench.pauses, bench.source.diary[-2:]) == ([], ["confirm 1", "stop"])


async def test_the_very_first_start_is_not_tried_again() -> None:
    started: list[bool] = []
    bench = Bench(ScriptedSource(starts=[SourceUnavailable("wrong port", source="shop")]))
    with pytest.raises(SourceUnavailable, match="wrong port"):
        await bench.capture.run(lambda: started.append(True))
    assert (bench.pauses, started, bench.source.diary[-1]) == ([], [], "stop")


async def test_started_is_told_once() -> None:
    started: list[bool] = []
    lost = SourceUnavailable("gone", source="shop")
    bench = Bench(ScriptedSource([lost, lost]), is_held=False)
    task = asyncio.create_task(bench.capture.run(lambda: started.append(True)))
    await bench.until(lambda: len(bench.pauses) == 2 and bench.source.is_idle.is_set())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started == [True]


@pytest.mark.parametrize("ends_first", [True, False])
async def test_nothing_behind_a_failed_append_is_confirmed(ends_first: bool) -> None:
    bench = Bench(ScriptedSource([batch(number) for number in range(1, 5)]))
    async with bench.running() as task:
        await bench.until(lambda: "4" in bench.log.held)
        if ends_first:
            bench.log.release(3)
            bench.log.release(4)
            await bench.settle()
        bench.log.release(1)
        bench.log.release(2, LogUnavailable("disk full"))
        await bench.settle()
        if not ends_first:
            bench.log.release(3)
            bench.log.release(4, LogUnavailable("still full"))
        with pytest.raises(LogUnavailable, match="disk full"):
            await task
    assert bench.source.confirmed == ["confirm 1"]


async def test_a_failed_append_outweighs_a_lost_source() -> None:
    bench = Bench(ScriptedSource([batch(1), batch(2), SourceUnavailable("gone", source="shop")]))
    async with bench.running() as task:
        await bench.until(lambda: "2" in bench.log.held)
        await bench.settle()
        bench.log.release(1, LogUnavailable("disk full"))
        bench.log.release(2)
        with pytest.raises(LogUnavailable):
            await task
    assert (bench.source.confirmed, bench.pauses) == ([], [])


@pytest.mark.parametrize("batches", [0, 1, 3, 8, 20])
async def test_stopping_lets_appends_end_confirms_them_and_leaves_no_task(batches: int) -> None:
    bench = Bench(ScriptedSource([batch(number) for number in range(1, batches + 1)]))
    under_way = min(batches, 8)
    async with bench.running() as task:
        await bench.until(lambda: len(bench.log.held) == under_way and bench.source.phase == "streaming")
        await bench.settle()
        task.cancel()
        await bench.settle()
        assert bench.log.cancelled == []
        for number in range(1, under_way + 1):
            bench.log.release(number)
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bench.source.confirmed == [f"confirm {number}" for number in range(1, under_way + 1)]
    assert bench.source.diary[-1] == "stop"


async def test_stopping_twice_does_not_wait_for_a_log_that_hangs() -> None:
    bench = Bench(ScriptedSource([batch(1), batch(2)]))
    async with bench.running() as task:
        await bench.until(lambda: "2" in bench.log.held)
        for _ in range(2):
            task.cancel()
            await bench.settle()
        assert task.cancelled()
        assert (bench.log.cancelled, bench.source.confirmed) == (["1", "2"], [])


async def test_stopping_during_a_pause_is_at_once() -> None:
    bench = Bench(ScriptedSource([SourceUnavailable("gone", source="shop")]))
    hold = asyncio.Event()

    async def pause(seconds: float) -> None:
        await hold.wait()

    bench.capture._pause = pause  # pyright: ignore[reportPrivateUsage]
    async with bench.running() as task:
        await bench.until(lambda: bench.capture.trouble == "gone")
        await bench.settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bench.source.diary == ["start after nothing", "stop", "stop"]


@pytest.mark.parametrize("turns", range(8))
async def test_stopping_at_the_moment_the_source_is_lost_is_heard(turns: int) -> None:
    """A task group of Python 3.11 and 3.12 tells only the error when a child fails and its parent is cancelled at once."""
    lost = asyncio.Event()
    bench = Bench(ScriptedSource([lost, SourceUnavailable("gone", source="shop")]))
    async with bench.running() as task:
        await bench.until(lambda: bench.source.reads == 1)
        await bench.settle()
        lost.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await bench.settle()
        assert task.cancelled()
