"""What every EventLog must do; run by test_log.py over each engine and the shipped fake. A new engine passes it unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.cdc.errors import Fenced, HeadraceError, Trimmed
from headrace.cdc.event import CustomerEvent, RowPart
from headrace.cdc.log.base import Bounds, Cursor, DeadLetter, LogBatch, SeenIds, partition_of

DEADLINE_S = 10.0


class Engine(Protocol):
    """What the suite needs to know of an engine."""

    async def open(self, *, partitions: int = 1, retention_us: int | None = None, max_bytes: int | None = None) -> Any:
        """A new, empty log."""
        ...

    async def take_over(self, log: Any) -> None:
        """Make a newer writer of the same log exist."""
        ...

    async def close(self) -> None:
        """Close every log that was opened."""
        ...


def event(number: int, *, key: str | None = None, committed_us: int | None = None, size: int = 20) -> CustomerEvent:
    """A row's event; its id is the number, its properties about size bytes."""
    row = RowPart("public", "orders", "insert", b'{"id":1}', None, (), 7, number, True, 1)
    us = number if committed_us is None else committed_us
    return CustomerEvent(
        f"e{number}", "track", "orders inserted", key, us, us, us, "shop", f"0/{number:X}:0", b"x" * size, row
    )


def events(first: int, count: int, **rest: Any) -> list[CustomerEvent]:
    return [event(number, **rest) for number in range(first, first + count)]


DAY_US = 86_400_000_000


def seen_ids(first: int, count: int, *, day: int = 20_000) -> SeenIds:
    """Ids of message first and those after it, each with a body of its own."""
    bodies = {
        sha256(b"%d" % number).digest()[:16]: sha256(b"body %d" % number).digest()[:8]
        for number in range(first, first + count)
    }
    return SeenIds(day * DAY_US, bodies)


def letter(number: int, *, size: int = 10, received_us: int | None = None) -> DeadLetter:
    at_us = number if received_us is None else received_us
    return DeadLetter("web", "no_customer", f"reason {number}", at_us, b"{" + b"x" * size, b'{"writer":"site"}')


class Readable(Protocol):
    """The half of EventLog that read_all needs."""

    async def read(self, partition: int, offset: int) -> LogBatch: ...

    async def bounds(self, partition: int) -> Bounds: ...


async def read_all(log: Readable, partition: int = 0, offset: int | None = None) -> list[CustomerEvent]:
    """Everything kept from offset (default: the first) to the end, checking that offsets have no gap."""
    bounds = await log.bounds(partition)
    at = bounds.first if offset is None else offset
    found: list[CustomerEvent] = []
    while at < bounds.end:
        batch = await log.read(partition, at)
        assert batch.events and batch.first_offset == at and batch.partition == partition
        found += batch.events
        at = batch.next_offset
    return found


class LogContract:
    """Inherit it and give a fixture ``engine``."""

    async def test_an_append_returns_the_end_and_everything_can_be_read_back(self, engine: Engine) -> None:
        log = await engine.open()
        stored = events(0, 700)
        assert await log.append(stored[:1], source="shop", state=b"a") == (1,)
        assert await log.append(stored[1:], source="shop", state=b"b") == (700,)
        assert await log.bounds(0) == Bounds(0, 700)
        assert await read_all(log) == stored
        assert await read_all(log, offset=350) == stored[350:]

    async def test_a_new_log_is_empty_and_has_a_generation_of_its_own(self, engine: Engine) -> None:
        one, two = await engine.open(), await engine.open()
        assert one.generation and one.generation != two.generation
        assert await one.bounds(0) == Bounds(0, 0)
        assert (await one.read(0, 0)).events == ()
        assert await one.source_state("shop") is None
        assert await one.committed("features", 0) is None
        assert await one.groups() == {}

    async def test_events_and_source_state_come_together_or_not_at_all(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 3), source="shop", state=b"first")
        with pytest.raises(ValueError, match="1048577 bytes"):
            await log.append(events(3, 3), source="shop", state=b"x" * ((1 << 20) + 1))
        assert await log.source_state("shop") == b"first"
        assert await log.bounds(0) == Bounds(0, 3)
        with pytest.raises((OverflowError, ValueError)):
            await log.append([event(3, committed_us=1 << 70)], source="shop", state=b"second")
        assert await log.source_state("shop") == b"first"
        assert await log.append(events(3, 1), source="shop", state=b"third") == (4,)
        assert await read_all(log) == events(0, 4)

    async def test_a_state_replaces_only_the_same_sources_state_and_needs_no_event(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 1), source="shop", state=b"1")
        await log.append([], source="web", state=b"w")
        assert await log.append([], source="shop", state=b"") == (1,)
        assert await log.source_state("shop") == b""
        assert await log.source_state("web") == b"w"

    async def test_appends_that_nobody_awaits_one_by_one_keep_their_order(self, engine: Engine) -> None:
        log = await engine.open()
        random_source = random.Random(41)
        sizes = [random_source.choice((0, 1, 1, 3, 40)) for _ in range(300)]
        firsts = [sum(sizes[:index]) for index in range(len(sizes))]
        tasks = [
            asyncio.create_task(log.append(events(first, size), source="shop", state=b"%d" % first))
            for first, size in zip(firsts, sizes, strict=True)
        ]
        ends = await asyncio.gather(*tasks)
        assert ends == [(first + size,) for first, size in zip(firsts, sizes, strict=True)]
        assert await read_all(log) == events(0, sum(sizes))
        assert await log.source_state("shop") == b"%d" % firsts[-1]

    async def test_a_cancelled_wait_takes_no_append_back_and_leaves_no_gap(self, engine: Engine) -> None:
        log = await engine.open()
        task = asyncio.create_task(log.append(events(0, 2), source="shop", state=b"1"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await log.append(events(2, 2), source="shop", state=b"2") == (4,)
        assert await read_all(log) == events(0, 4)

    async def test_a_key_decides_the_partition_and_no_key_means_the_first(self, engine: Engine) -> None:
        log = await engine.open(partitions=4)
        stored = [event(number, key=str(number % 13) if number % 5 else None) for number in range(400)]
        for start in range(0, 400, 50):
            ends = await log.append(stored[start : start + 50], source="shop", state=b"")
        lanes = [[one for one in stored if partition_of(one.key, 4) == lane] for lane in range(4)]
        assert all(lanes) and {one.key for one in lanes[0]} > {None}
        assert ends == tuple(len(lane) for lane in lanes)
        for partition, lane in enumerate(lanes):
            assert await read_all(log, partition) == lane

    async def test_a_partition_that_does_not_exist_is_refused_everywhere(self, engine: Engine) -> None:
        log = await engine.open(partitions=2)
        calls: list[Callable[[int], Awaitable[object]]] = [
            lambda partition: log.read(partition, 0),
            lambda partition: log.commit("g", partition, 0),
            lambda partition: log.committed("g", partition),
            lambda partition: log.bounds(partition),
            lambda partition: log.trim(partition, 0),
        ]
        for call in calls:
            for partition in (-1, 2):
                with pytest.raises(ValueError, match=f"partition {partition} doesn't exist"):
                    await call(partition)

    async def test_a_waiting_read_wakes_on_the_append_and_gets_it(self, engine: Engine) -> None:
        log = await engine.open()
        waiting = [asyncio.create_task(log.read(0, 0, wait_s=DEADLINE_S)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        await log.append(events(0, 2), source="shop", state=b"")
        async with asyncio.timeout(DEADLINE_S / 2):
            for batch in await asyncio.gather(*waiting):
                assert list(batch.events) == events(0, 2)

    async def test_a_wait_without_an_append_ends_with_an_empty_batch(self, engine: Engine) -> None:
        log = await engine.open(partitions=2)
        await log.append([event(0, key=None)], source="shop", state=b"")
        batch = await log.read(1, 0, wait_s=0.01)
        assert (batch.partition, batch.first_offset, batch.events, batch.next_offset) == (1, 0, (), 0)

    async def test_a_cancelled_wait_ends_as_cancelled(self, engine: Engine) -> None:
        log = await engine.open()
        waiting = asyncio.create_task(log.read(0, 0, wait_s=DEADLINE_S))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await log.append(events(0, 1), source="shop", state=b"") == (1,)

    async def test_max_bytes_bounds_a_batch_but_never_to_nothing(self, engine: Engine) -> None:
        log = await engine.open()
        stored = events(0, 200, size=1000)
        for start in range(0, 200, 25):
            await log.append(stored[start : start + 25], source="shop", state=b"")
        assert list((await log.read(0, 10, max_bytes=1)).events) == stored[10:11]
        assert list((await log.read(0, 10, max_bytes=0)).events) == stored[10:11]
        batch = await log.read(0, 3, max_bytes=50_000)
        assert 40 <= len(batch.events) <= 50
        assert list(batch.events) == stored[3 : 3 + len(batch.events)]

    async def test_one_event_larger_than_any_bound_still_comes_through(self, engine: Engine) -> None:
        log = await engine.open()
        stored = [event(0), event(1, size=3 << 20), event(2), *events(3, 6, size=400_000)]
        await log.append(stored, source="shop", state=b"")
        assert await read_all(log) == stored
        assert list((await log.read(0, 1, max_bytes=100)).events) == stored[1:2]

    async def test_reading_beyond_the_end_is_an_error_and_at_the_end_is_not(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 2), source="shop", state=b"")
        assert (await log.read(0, 2)).events == ()
        for offset in (3, -1):
            with pytest.raises(ValueError, match=f"offset {offset} of partition 0"):
                await log.read(0, offset)

    async def test_a_cursor_is_kept_with_its_state_and_never_goes_back(self, engine: Engine) -> None:
        log = await engine.open(partitions=2)
        await log.append([event(number, key=None) for number in range(10)], source="shop", state=b"")
        await log.commit("features", 0, 4, state=b"blob")
        assert await log.committed("features", 0) == Cursor(4, b"blob")
        assert await log.committed("features", 1) is None
        with pytest.raises(ValueError, match="can't go back from 4 to 3"):
            await log.commit("features", 0, 3)
        await log.commit("features", 0, 4, state=b"other")
        await log.commit("features", 0, 10)
        await log.commit("sinks", 1, 0)
        assert await log.committed("features", 0) == Cursor(10)
        assert await log.groups() == {"features": {0: Cursor(10)}, "sinks": {1: Cursor(0)}}

    async def test_cursors_under_way_do_not_go_back_either(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 10), source="shop", state=b"")
        tasks = [asyncio.create_task(log.commit("g", 0, offset)) for offset in (2, 7, 5, 9)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), type(None), ValueError, type(None)]
        assert await log.committed("g", 0) == Cursor(9)

    async def test_a_cursor_beyond_the_end_or_with_too_large_a_state_is_refused(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 1), source="shop", state=b"")
        for offset in (-1, 2):
            with pytest.raises(ValueError, match="is outside 0 to 1"):
                await log.commit("g", 0, offset)
        with pytest.raises(ValueError, match="more than 65536"):
            await log.commit("g", 0, 1, state=b"x" * 65537)
        assert await log.committed("g", 0) is None

    async def test_a_group_that_is_forgotten_holds_nothing_back(self, engine: Engine) -> None:
        log = await engine.open()
        for number in range(4):
            await log.append([event(number)], source="shop", state=b"")
        await log.commit("slow", 0, 1)
        await log.commit("fast", 0, 3)
        assert await log.trim(0, 4) == 1
        await log.forget("slow")
        await log.forget("nobody")
        assert await log.committed("slow", 0) is None
        assert set(await log.groups()) == {"fast"}
        assert await log.trim(0, 4) == 3
        await log.commit("slow", 0, 3)
        assert set(await log.groups()) == {"fast", "slow"}

    async def test_a_trim_drops_whole_batches_and_a_read_below_says_so(self, engine: Engine) -> None:
        log = await engine.open()
        for start in (0, 10, 20):
            await log.append(events(start, 10), source="shop", state=b"")
        assert await log.trim(0, 15) == 10
        assert await log.bounds(0) == Bounds(10, 30)
        with pytest.raises(Trimmed) as trimmed:
            await log.read(0, 9)
        assert trimmed.value.first_offset == 10
        assert await read_all(log) == events(10, 20)
        assert await log.trim(0, 5) == 10

    async def test_offsets_go_on_after_everything_was_trimmed(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 10), source="shop", state=b"")
        assert await log.trim(0, 1000) == 10
        assert await log.bounds(0) == Bounds(10, 10)
        assert (await log.read(0, 10)).events == ()
        assert await log.append(events(10, 1), source="shop", state=b"") == (11,)
        assert await read_all(log) == events(10, 1)

    async def test_a_trim_stops_at_the_lowest_cursor_unless_forced(self, engine: Engine) -> None:
        log = await engine.open()
        for start in (0, 10, 20):
            await log.append(events(start, 10), source="shop", state=b"")
        await log.commit("slow", 0, 12)
        await log.commit("fast", 0, 30)
        assert await log.trim(0, 30) == 10
        assert await log.trim(0, 30, force=True) == 30
        assert await log.committed("slow", 0) == Cursor(12)
        with pytest.raises(Trimmed):
            await log.read(0, 12)

    async def test_retention_by_age_looks_at_a_batchs_newest_event_and_at_cursors(self, engine: Engine) -> None:
        log = await engine.open(retention_us=1000)
        await log.append([event(0, committed_us=100), event(1, committed_us=900)], source="shop", state=b"")
        await log.append([event(2, committed_us=300)], source="shop", state=b"")
        await log.append([event(3, committed_us=950)], source="shop", state=b"")
        await log.retain(1900)
        assert await log.bounds(0) == Bounds(0, 4), "the newest event of the oldest batch is exactly as old as allowed"
        await log.commit("g", 0, 2)
        await log.retain(10_000)
        assert await log.bounds(0) == Bounds(2, 4)
        await log.commit("g", 0, 4)
        await log.retain(1901)
        assert await log.bounds(0) == Bounds(3, 4)
        await log.retain(10_000)
        assert await log.bounds(0) == Bounds(4, 4)

    async def test_retention_by_size_drops_the_oldest_but_never_past_a_cursor(self, engine: Engine) -> None:
        log = await engine.open(partitions=2, max_bytes=2_000_000)
        await log.commit("g", 1, 0)
        keys = {partition_of(str(number), 2): str(number) for number in range(8)}
        for start in range(0, 400, 10):
            await log.append(events(start, 10, key=keys[start // 10 % 2], size=10_000), source="shop", state=b"")
        await log.retain(0)
        one, other = await log.bounds(0), await log.bounds(1)
        assert one.first > 0 and other == Bounds(0, 200), "a cursor holds the second"
        await log.commit("g", 1, 200)
        await log.retain(0)
        assert 0 < (await log.bounds(1)).first < 200
        kept = len(await read_all(log, 0)) + len(await read_all(log, 1))
        assert 100 < kept <= 200

    async def test_a_log_without_retention_keeps_everything(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 10), source="shop", state=b"")
        await log.retain(1 << 60)
        assert await log.bounds(0) == Bounds(0, 10)

    async def test_a_newer_writer_fences_the_older_one(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 1), source="shop", state=b"1", epoch=log.epoch)
        await engine.take_over(log)
        for _ in range(2):
            with pytest.raises(Fenced):
                await log.append(events(1, 1), source="shop", state=b"2")
        assert await read_all(log) == events(0, 1)

    async def test_an_append_of_another_epoch_is_fenced_and_harms_no_other(self, engine: Engine) -> None:
        log = await engine.open()
        with pytest.raises(Fenced):
            await log.append(events(0, 1), source="shop", state=b"1", epoch=log.epoch - 1)
        assert await log.append(events(0, 1), source="shop", state=b"1", epoch=log.epoch) == (1,)

    async def test_what_is_staged_comes_with_the_next_append_and_not_before(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append(events(0, 3), source="shop", state=b"a")
        waiting = asyncio.create_task(log.read(0, 3, wait_s=DEADLINE_S))
        await log.stage(events(3, 500), source="shop")
        await log.append(events(900, 2), source="other", state=b"o")
        assert [event.id for event in (await waiting).events] == ["e900", "e901"]
        await log.stage(events(503, 1), source="shop")
        assert await log.bounds(0) == Bounds(0, 5)
        assert await log.source_state("shop") == b"a"
        waiting = asyncio.create_task(log.read(0, 5, wait_s=DEADLINE_S))
        assert await log.append(events(504, 6), source="shop", state=b"b") == (512,)
        assert (await waiting).events[0].id == "e3"
        assert await read_all(log) == [*events(0, 3), *events(900, 2), *events(3, 507)]
        assert await log.append([], source="shop", state=b"c") == (512,)
        assert await log.append(events(510, 1), source="shop", state=b"d") == (513,)
        assert (await log.read(0, 512)).events == tuple(events(510, 1))

    async def test_two_sources_stage_beside_each_other(self, engine: Engine) -> None:
        log = await engine.open()
        for number in range(5):
            await log.stage(events(10 * number, 10), source="shop")
            await log.stage(events(1000 + 10 * number, 10), source="other")
        await log.append(events(1050, 1), source="other", state=b"o")
        await log.append([], source="shop", state=b"s")
        assert await read_all(log) == [*events(1000, 51), *events(0, 50)]

    async def test_what_was_unstaged_is_never_seen(self, engine: Engine) -> None:
        log = await engine.open()
        await log.unstage("shop")
        await log.stage(events(0, 5), source="shop")
        await log.stage(events(100, 5), source="other")
        await log.unstage("shop")
        await log.stage(events(5, 5), source="shop")
        await log.append(events(10, 1), source="shop", state=b"s")
        assert await read_all(log) == events(5, 6)
        await log.append([], source="other", state=b"o")
        assert await read_all(log, offset=6) == events(100, 5)

    async def test_calls_that_nobody_awaits_keep_their_order_with_stages_among_them(self, engine: Engine) -> None:
        log = await engine.open(partitions=3)
        calls: list[Awaitable[Any]] = []
        wanted: list[CustomerEvent] = []
        for number in range(60):
            made = [event(1000 * number + place, key=f"k{place % 5}") for place in range(7)]
            wanted += made
            if number % 3 == 2:
                calls.append(log.append(made, source="shop", state=b"%d" % number))
            else:
                calls.append(log.stage(made, source="shop"))
        await asyncio.gather(*calls)
        for partition in range(3):
            lane = [one for one in wanted if partition_of(one.key, 3) == partition]
            assert await read_all(log, partition) == lane

    async def test_published_parts_are_trimmed_like_others(self, engine: Engine) -> None:
        log = await engine.open(max_bytes=30_000)
        for number in range(4):
            await log.stage(events(100 * number, 50, size=200), source="shop")
            await log.append(events(100 * number + 50, 50, size=200), source="shop", state=b"s")
        first = await log.trim(0, 120)
        assert first in (50, 100)
        assert (await read_all(log))[0].id == "e50" if first == 50 else "e100"
        with pytest.raises(Trimmed):
            await log.read(0, 0)
        await log.retain(1)
        assert (await log.bounds(0)).first > 100
        assert [one.id for one in await read_all(log)] == [f"e{n}" for n in range((await log.bounds(0)).first, 400)]

    async def test_stages_are_fenced_and_end_with_the_log(self, engine: Engine) -> None:
        log = await engine.open()
        await log.stage(events(0, 1), source="shop", epoch=1)
        with pytest.raises(Fenced):
            await log.stage(events(1, 1), source="shop", epoch=7)
        await engine.take_over(log)
        with pytest.raises(Fenced):
            await log.stage(events(1, 1), source="shop")

    async def test_ids_are_known_from_the_call_of_their_append_on(self, engine: Engine) -> None:
        log = await engine.open()
        one, two = seen_ids(0, 5), seen_ids(3, 5)
        appending = asyncio.create_task(log.append(events(0, 5), source="web", state=b"", ids=one))
        await asyncio.sleep(0)
        assert await log.seen(list(two.bodies)) == {key: body for key, body in two.bodies.items() if key in one.bodies}
        await appending
        await log.append([], source="web", state=b"", ids=two)
        assert await log.seen([*one.bodies, *two.bodies, b"?" * 16]) == one.bodies | two.bodies
        assert await log.seen([]) == {}

    async def test_ids_are_known_for_a_week(self, engine: Engine) -> None:
        log = await engine.open()
        ids = seen_ids(0, 5, day=20_000)
        await log.append([], source="web", state=b"", ids=ids)
        await log.retain(20_007 * DAY_US)
        assert await log.seen(list(ids.bodies)) == ids.bodies
        await log.retain(20_009 * DAY_US)
        assert await log.seen(list(ids.bodies)) == {}

    async def test_dead_letters_are_read_in_order_and_dropped_one_by_one(self, engine: Engine) -> None:
        log = await engine.open()
        assert await log.letters() == []
        await log.append(events(0, 1), source="web", state=b"a", letters=[letter(0), letter(1)])
        await log.append([], source="web", state=b"b", letters=[letter(2)])
        stored = await log.letters()
        assert [each.letter for each in stored] == [letter(0), letter(1), letter(2)]
        ids = [each.id for each in stored]
        assert ids == sorted(set(ids))
        assert await log.letters(ids[0], limit=1) == stored[1:2]
        assert await log.drop_letters([ids[1], 10_000]) == 1
        assert await log.letters() == [stored[0], stored[2]]
        assert await read_all(log) == events(0, 1)

    async def test_what_is_retried_goes_with_the_append_that_replaces_it(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append([], source="web", state=b"", letters=[letter(0), letter(1)])
        one, two = await log.letters()
        with pytest.raises((OverflowError, ValueError)):
            await log.append([event(0, committed_us=1 << 70)], source="web", state=b"", retried=[one.id])
        assert await log.letters() == [one, two]
        assert await log.append(events(0, 1), source="web", state=b"", retried=[one.id], letters=[letter(3)]) == (1,)
        assert [each.letter for each in await log.letters()] == [letter(1), letter(3)]

    async def test_a_page_of_dead_letters_is_bounded_in_bytes(self, engine: Engine) -> None:
        log = await engine.open()
        await log.append([], source="web", state=b"", letters=[letter(number, size=3 << 20) for number in range(5)])
        page = await log.letters()
        assert [each.letter for each in page] == [letter(number, size=3 << 20) for number in range(3)]
        assert len(await log.letters(page[-1].id)) == 2

    async def test_dead_letters_go_by_the_logs_retention(self, engine: Engine) -> None:
        log = await engine.open(retention_us=1000)
        old = [letter(number, received_us=500) for number in range(600)]
        await log.append([], source="web", state=b"", letters=[*old, letter(1, received_us=1500)])
        await log.retain(1400)
        assert len(await log.letters(limit=1000)) == 601
        await log.retain(1501)
        assert [each.letter for each in await log.letters()] == [letter(1, received_us=1500)]

    @pytest.mark.parametrize("partitions", [1, 3])
    async def test_what_is_erased_leaves_its_place_and_nothing_else(self, engine: Engine, partitions: int) -> None:
        log = await engine.open(partitions=partitions)
        made = [event(number, key=f"c{number % 4}") for number in range(40)]
        row = made[0].row
        assert row is not None
        for start in range(0, 40, 8):
            part = [
                msgspec.structs.replace(
                    each, row=msgspec.structs.replace(row, xid=start, is_last=each is made[start + 7])
                )
                for each in made[start : start + 8]
            ]
            await log.append(part, source="shop", state=b"s")
        await log.stage([event(100, key="c1"), event(101, key="c2")], source="web")
        await log.append([event(102, key="c3")], source="web", state=b"")
        letters = [
            DeadLetter("web", "r", "d", 1, b'{"userId":%s}' % msgspec.json.encode(name), b"")
            for name in ("c1", "c2", 'd"1')
        ]
        await log.append([], source="web", state=b"", letters=letters)
        before = {partition: await log.bounds(partition) for partition in range(partitions)}
        assert await log.erase(frozenset({"c1", 'd"1', "nobody"})) == (11, 2)
        after = {partition: await log.bounds(partition) for partition in range(partitions)}
        assert after == before
        found: list[CustomerEvent] = []
        for partition in range(partitions):
            found += await read_all(log, partition)
        assert sorted(each.id for each in found) == sorted(
            each.id for each in [*made, event(100), event(101), event(102)]
        )
        for each in found:
            if each.id in {made[number].id for number in range(40) if number % 4 == 1} | {"e100"}:
                assert (each.kind, each.key, each.properties, each.row) == ("heartbeat", None, b"{}", None)
            else:
                assert each.key != "c1" and each.row is not None
        if partitions == 1:
            rows = [each.row for each in found if each.row is not None]
            assert [row.is_last for row in rows[:30]] == [number % 6 == 5 for number in range(30)]
        assert [stored.letter.body for stored in await log.letters()] == [b'{"userId":"c2"}']
        await log.append([event(200, key="c1")], source="shop", state=b"")
        assert await log.erase(frozenset({"c1"})) == (1, 0), (
            "what comes later is another matter, and is erased when asked again"
        )

    async def test_closing_finishes_the_appends_under_way_and_twice_is_fine(self, engine: Engine) -> None:
        log = await engine.open()
        tasks = [asyncio.create_task(log.append(events(n, 1), source="shop", state=b"")) for n in range(20)]
        waiting = asyncio.create_task(log.read(0, 0, wait_s=DEADLINE_S))
        await asyncio.sleep(0)
        await asyncio.gather(log.close(), log.close())
        assert all(task.done() for task in tasks)
        assert [await task for task in tasks] == [(n + 1,) for n in range(20)]
        await log.close()
        with pytest.raises(HeadraceError, match="is closed"):
            await log.append(events(20, 1), source="shop", state=b"")
        # The first append may have woken the read before the close could.
        with contextlib.suppress(HeadraceError):
            batch = await waiting
            assert list(batch.events) == events(0, len(batch.events))

    async def test_a_read_that_waits_ends_when_the_log_is_closed(self, engine: Engine) -> None:
        log = await engine.open()
        waiting = asyncio.create_task(log.read(0, 0, wait_s=DEADLINE_S))
        await asyncio.sleep(0)
        await log.close()
        async with asyncio.timeout(DEADLINE_S / 2):
            with pytest.raises(HeadraceError, match="is closed"):
                await waiting

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=False,
        print_blob=True,
    )
    @given(data=st.data())
    async def test_it_equals_a_plain_list_whatever_is_done_to_it(self, engine: Engine, data: st.DataObject) -> None:
        log = await engine.open(partitions=2)
        model: list[list[CustomerEvent]] = [[], []]
        firsts, cursors = [0, 0], [0, 0]
        number = 0
        for step in range(data.draw(st.integers(1, 12))):
            what = data.draw(st.sampled_from(("append", "append", "burst", "read", "read", "trim", "commit")))
            partition = data.draw(st.integers(0, 1))
            end = len(model[partition])
            if what in ("append", "burst"):
                tasks: list[asyncio.Task[tuple[int, ...]]] = []
                for _ in range(1 if what == "append" else 5):
                    count = data.draw(st.integers(0, 40))
                    size = data.draw(st.sampled_from((0, 10, 3000)))
                    fresh = [event(n, key=str(n % 7), size=size) for n in range(number, number + count)]
                    number += count
                    for one in fresh:
                        model[partition_of(one.key, 2)].append(one)
                    tasks.append(asyncio.create_task(log.append(fresh, source="shop", state=b"%d" % number)))
                assert (await asyncio.gather(*tasks))[-1] == (len(model[0]), len(model[1])), step
                assert await log.source_state("shop") == b"%d" % number
            elif what == "read":
                offset = data.draw(st.integers(0, end))
                max_bytes = data.draw(st.sampled_from((1, 500, 5_000, 1 << 20)))
                if offset < firsts[partition]:
                    with pytest.raises(Trimmed):
                        await log.read(partition, offset, max_bytes=max_bytes)
                else:
                    batch = await log.read(partition, offset, max_bytes=max_bytes)
                    assert list(batch.events) == model[partition][offset : batch.next_offset]
                    assert bool(batch.events) == (offset < end)
            elif what == "trim":
                before = data.draw(st.integers(0, end))
                force = data.draw(st.booleans())
                first = await log.trim(partition, before, force=force)
                highest = before if force or not cursors[partition] else min(before, cursors[partition])
                assert firsts[partition] <= first <= max(firsts[partition], highest)
                firsts[partition] = first
            elif end:
                cursors[partition] = data.draw(st.integers(cursors[partition], end))
                if cursors[partition]:
                    await log.commit("g", partition, cursors[partition])
            for lane in (0, 1):
                assert await log.bounds(lane) == Bounds(firsts[lane], len(model[lane]))
        for lane in (0, 1):
            assert await read_all(log, lane) == model[lane][firsts[lane] :]
        await log.close()
