"""The engine between a log and a store: crashes at any write, decay, storms, rebuilds, health."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fix_features import (
    DEFINITIONS,
    HOUR_US,
    MINUTE_US,
    SECOND_US,
    START_US,
    SlicedLog,
    dump,
    heartbeat,
    random_life,
    row_event,
    text_of,
    until,
)
from headrace.cdc.errors import ConfigError, DefinitionError, StoreError
from headrace.features.compiled import CompiledView
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.spec import EntityKey, ViewSpec
from headrace.features.store.base import OnlineStore, ViewWrite
from headrace.features.store.memory import MemoryStore
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig


class FaultyStore(MemoryStore):
    """Fails the numbered writes, each before or after it was applied."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.fail_before: set[int] = set()
        self.fail_after: set[int] = set()

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        self.writes += 1
        number = self.writes
        if number in self.fail_before:
            raise StoreError("the link broke before the write")
        await super().write(writes)
        if number in self.fail_after:
            raise StoreError("the link broke after the write")


def jumping_clock() -> Callable[[], float]:
    """A monotonic clock that is ten seconds later at each look: whatever is done now and then is done at once."""
    now_s = 0.0

    def look() -> float:
        nonlocal now_s
        now_s += 10.0
        return now_s

    return look


def make_engine(
    views: Sequence[CompiledView], store: OnlineStore, log: SlicedLog, *, most_states: int = 1000
) -> FeatureEngine:
    return FeatureEngine(
        views,
        lambda: store,
        log,
        CollectorRegistry(),
        monotonic=jumping_clock(),
        clock=lambda: START_US / 1e6,
        most_states=most_states,
    )


@contextlib.asynccontextmanager
async def running(engine: FeatureEngine) -> AsyncIterator[FeatureEngine]:
    task = asyncio.create_task(engine.run())
    try:
        yield engine
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def is_done(engine: FeatureEngine, end: int) -> bool:
    """Everything up to this offset is applied and saved, and nothing is left to decay."""
    status = engine.status()
    views = [view for view in status["views"].values() if view["phase"] != "stopped"]
    return (
        status["offset"] == [end]
        and all(view["phase"] == "live" and view["stored_offset"] == end for view in views)
        and engine._main is not None
        and all(worker.next_due_us > engine._main.log_time_us for worker in engine._main.workers)
    )


async def all_of(store: MemoryStore, view: ViewSpec) -> tuple[dict[EntityKey, tuple[object, ...]], object]:
    await store.open()
    try:
        return await dump(store, view), await store.checkpoint(view)
    finally:
        await store.close()


def two_views(definitions: Path) -> tuple[CompiledView, ...]:
    definitions.write_text(
        DEFINITIONS
        + """
statuses = FeatureView("statuses", entity=customer, source=Table("public.orders"), features=[latest("status"), count(over="1h")])
"""
    )
    return load_definitions(definitions)


@pytest.mark.parametrize("seed", [31, 32])
async def test_a_failure_at_any_write_ends_in_the_same_bytes_as_an_undisturbed_run(
    definitions: Path, seed: int
) -> None:
    views = two_views(definitions)
    table = random_life(seed, 150)
    log = SlicedLog()
    await log.add(*table.events)
    log.most = 11
    calm = FaultyStore()
    async with running(make_engine(views, calm, log)) as engine:
        await until(lambda: is_done(engine, len(table.events)))
    wanted = [await all_of(calm, view.spec) for view in views]
    assert wanted[0][0], f"seed {seed} leaves no row"
    for number in range(1, calm.writes + 1):
        for kind in ("before", "after"):
            store = FaultyStore()
            getattr(store, f"fail_{kind}").add(number)
            engine = make_engine(views, store, log)
            with contextlib.suppress(StoreError):
                await run_to_the_end(engine, len(table.events))
            log.most = 7  # what is read again comes in other batches
            await run_to_the_end(engine, len(table.events))
            log.most = 11
            found = [await all_of(store, view.spec) for view in views]
            assert found == wanted, f"seed {seed}, failed {kind} write {number}"


async def run_to_the_end(engine: FeatureEngine, end: int) -> None:
    """Run until everything is done; raises what ended the run before."""
    task = asyncio.create_task(engine.run())
    await until(lambda: task.done() or is_done(engine, end))
    if not task.done():
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_states_in_memory_are_bounded_by_their_bytes_and_the_rows_are_the_same(
    definitions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definitions.write_text(
        DEFINITIONS
        + """
from headrace.features import distinct, last
of_bags = FeatureView("of_bags", entity=customer, source=Table("public.orders"), features=[distinct("status", over="1h"), last("status", 3)])
"""
    )
    views = load_definitions(definitions)
    table = random_life(43, 300)
    log = SlicedLog()
    await log.add(*table.events)
    log.most = 11
    held: list[dict[str, int]] = []
    wanted: list[object] = []
    for most_bytes in (1 << 30, 40_000):
        monkeypatch.setattr("headrace.features.engine._MOST_STATE_BYTES", most_bytes)
        store = FaultyStore()
        async with running(make_engine(views, store, log)) as engine:
            await until(lambda engine=engine: is_done(engine, len(table.events)))
            held += engine.status()["views"].values()
        wanted.append([await all_of(store, view.spec) for view in views])
    assert wanted[0] == wanted[1]
    for free, bounded in zip(held[: len(views)], held[len(views) :], strict=True):
        assert bounded["cached_bytes"] <= 40_000 // len(views) < free["cached_bytes"], (free, bounded)
        assert 0 < bounded["cached_entities"] < free["cached_entities"]
    sizes = [view["cached_bytes"] / view["cached_entities"] for view in held[: len(views)]]
    assert sizes[1] > sizes[0], "a state of bags takes more"


async def test_many_failures_in_a_row_lose_and_double_nothing(definitions: Path) -> None:
    views = load_definitions(definitions)
    table = random_life(41, 400)
    log = SlicedLog()
    log.most = 3
    await log.add(*table.events)
    calm, store = FaultyStore(), FaultyStore()
    async with running(make_engine(views, calm, log, most_states=1)) as engine:
        await until(lambda: is_done(engine, len(table.events)))
    store.fail_before = set(range(1, 2000, 3))
    store.fail_after = set(range(2, 2000, 3))
    engine = make_engine(views, store, log)
    failures = 0
    while True:
        try:
            await run_to_the_end(engine, len(table.events))
            break
        except StoreError:
            failures += 1
    assert failures > 50
    assert await all_of(store, views[0].spec) == await all_of(calm, views[0].spec)


async def test_a_fresh_event_is_readable_as_soon_as_it_is_in_the_log(definitions: Path) -> None:
    (view,) = load_definitions(definitions)
    store, log = MemoryStore(), SlicedLog()
    async with running(make_engine([view], store, log)) as engine:
        await until(lambda: next(iter(engine.health())).is_ready)
        await log.add(order(1, customer=7, total=2.5))
        await until(lambda: engine.status()["offset"] == [1])
        (row,) = await store.read(view.spec, ["orders_1m", "total_ever", "status"], [(7,)])
    assert row is not None
    assert row.values == (1, 2.5, "paid")
    assert row.event_time_us == START_US
    assert engine.status()["freshness_ms"] == {"p50": 0.0, "p99": 0.0, "samples": 1}


def order(key: int, *, customer: int, total: float = 1.0, now_us: int = START_US, status: str = "paid"):
    row = {"id": key, "customer_id": customer, "total": total, "amount": "1.00", "status": status, "note": None}
    return row_event("insert", committed_us=now_us, after={**row, "created_at": text_of(now_us)})


async def test_windows_empty_without_any_event_when_heartbeats_move_log_time(definitions: Path) -> None:
    (view,) = load_definitions(definitions)
    store, log = MemoryStore(), SlicedLog()
    async with running(make_engine([view], store, log)) as engine:
        await log.add(order(1, customer=7))
        await until(lambda: is_done(engine, 1))
        await log.add(heartbeat(START_US + 2 * MINUTE_US))
        await until(lambda: is_done(engine, 2))
        (row,) = await store.read(view.spec, ["orders_1m", "orders_1h", "total_sum_1m", "orders_ever"], [(7,)])
        assert row is not None
        assert row.values == (0, 1, 0.0, 1)
        await log.add(heartbeat(START_US + 2 * HOUR_US))
        await until(lambda: is_done(engine, 3))
        (row,) = await store.read(view.spec, ["orders_1m", "orders_1h", "orders_ever"], [(7,)])
        assert row is not None
        assert row.values == (0, 0, 1)
        assert row.event_time_us == START_US, "decay is no event of the customer"


class WatchedStore(MemoryStore):
    """Remembers in which order entities were written."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[list[EntityKey]] = []

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        self.order.append([entity.key for write in writes for entity in write.entities])
        await super().write(writes)


async def test_ten_thousand_due_entities_do_not_starve_a_fresh_event(definitions: Path) -> None:
    (view,) = load_definitions(definitions)
    store, log = WatchedStore(), SlicedLog()
    async with running(make_engine([view], store, log)) as engine:
        await log.add(*[order(key, customer=key) for key in range(1, 10_001)])
        await until(lambda: is_done(engine, 10_000))
        store.order.clear()
        await log.add(heartbeat(START_US + 2 * MINUTE_US))
        await until(lambda: len(store.order) >= 2)  # the storm has begun
        begun = len(store.order)
        await log.add(order(20_000, customer=20_000, now_us=START_US + 2 * MINUTE_US))
        await until(lambda: is_done(engine, 10_002))
    fresh = next(place for place, keys in enumerate(store.order) if (20_000,) in keys)
    storm = [keys for keys in store.order if len(keys) > 1]
    assert fresh <= begun + 2, f"the fresh event waited for {fresh - begun} writes"
    assert len(storm) >= 20
    assert sum(map(len, storm)) == 10_000


async def test_another_definition_is_rebuilt_from_the_log_while_the_others_go_on(definitions: Path) -> None:
    views = two_views(definitions)
    store, log = MemoryStore(), SlicedLog()
    log.most = 50
    table = random_life(51, 300)
    await log.add(*table.events)
    async with running(make_engine(views, store, log)) as engine:
        await until(lambda: is_done(engine, 300))
    definitions.write_text(definitions.read_text().replace('count(over="1h")', 'count(over="2h", name="lately")'))
    changed = load_definitions(definitions)
    assert changed[0].spec.spec_hash == views[0].spec.spec_hash
    assert changed[1].spec.spec_hash != views[1].spec.spec_hash
    engine = make_engine(changed, store, log)
    phases: set[str] = set()
    async with running(engine):

        def done() -> bool:
            phases.update(view["phase"] for view in engine.status()["views"].values())
            return is_done(engine, 300)

        await until(done)
    assert phases == {"live", "rebuilding", "catching up"}
    afresh = MemoryStore()
    async with running(make_engine(changed, afresh, log)) as engine:
        await until(lambda: is_done(engine, 300))
    for view in changed:
        assert await all_of(store, view.spec) == await all_of(afresh, view.spec)


async def test_a_view_whose_events_are_gone_stops_with_the_cure_and_the_others_go_on(definitions: Path) -> None:
    views = load_definitions(definitions)
    store, log = MemoryStore(), SlicedLog()
    await log.add(order(1, customer=1))
    async with running(make_engine(views, store, log)) as engine:
        await until(lambda: is_done(engine, 1))
    await log.trim(0, 1, force=True)
    more = two_views(definitions)
    async with running(make_engine(more, store, log)) as engine:
        await log.add(order(2, customer=2))
        await until(lambda: is_done(engine, 2))
        (line,) = [health for health in engine.health() if not health.is_ready]
        assert line.part == "features/statuses"
        assert "needs a rebuild from a snapshot" in line.reason
        assert "start a new log" in line.reason
        (row,) = await store.read(more[0].spec, ["orders_ever"], [(2,)])
        assert row is not None


async def test_an_update_of_a_table_without_a_key_stops_its_view_only(definitions: Path) -> None:
    definitions.write_text(
        DEFINITIONS
        + 'clicks = FeatureView("clicks", entity=customer, source=Table("public.clicks"), features=[count()])\n'
    )
    views = load_definitions(definitions)
    store, log = MemoryStore(), SlicedLog()
    click = {"customer_id": 1}
    async with running(make_engine(views, store, log)) as engine:
        await log.add(
            row_event("insert", committed_us=START_US, after=click, table="public.clicks"), order(1, customer=1)
        )
        await until(lambda: is_done(engine, 2))
        (row,) = await store.read(views[1].spec, ["count"], [(1,)])
        assert row is not None
        assert row.values == (1,)
        await log.add(
            row_event("delete", committed_us=START_US, before=click, table="public.clicks"), order(2, customer=1)
        )
        await until(lambda: is_done(engine, 4))
        status = engine.status()["views"]
        assert status["clicks"]["phase"] == "stopped"
        assert "no primary key" in status["clicks"]["reason"]
        (row,) = await store.read(views[0].spec, ["orders_ever"], [(1,)])
        assert row is not None
        assert row.values == (2,)


async def test_a_column_that_the_table_does_not_have_makes_the_view_not_ready(definitions: Path) -> None:
    definitions.write_text(DEFINITIONS.replace('"total"', '"totl"'))
    views = load_definitions(definitions)
    store, log = MemoryStore(), SlicedLog()
    async with running(make_engine(views, store, log)) as engine:
        await log.add(order(1, customer=1))
        await until(lambda: is_done(engine, 1))
        (line,) = engine.health()
        assert not line.is_ready
        assert "no column totl" in line.reason
        assert f"{definitions}:" in line.reason


async def test_the_retention_of_the_log_is_held_back_at_what_every_view_has_stored(definitions: Path) -> None:
    views = two_views(definitions)
    store, log = MemoryStore(), SlicedLog()
    async with running(make_engine(views, store, log)) as engine:
        await until(lambda: is_done(engine, 0))
        cursor = await log.committed("features", 0)
        assert cursor is not None
        assert cursor.offset == 0
        await log.add(*[order(key, customer=key) for key in range(1, 6)])
        await until(lambda: is_done(engine, 5))
        await log.add(heartbeat(START_US + SECOND_US))
        await until(lambda: is_done(engine, 6))
        await log.add(heartbeat(START_US + 2 * SECOND_US))
        await until(lambda: is_done(engine, 7))
        cursor = await log.committed("features", 0)
        assert cursor is not None
        assert cursor.offset >= 6


async def test_the_same_log_gives_the_same_rows_in_sqlite_as_in_memory(definitions: Path, tmp_path: Path) -> None:
    (view,) = load_definitions(definitions)
    table = random_life(61, 200)
    log = SlicedLog()
    await log.add(*table.events)
    memory = MemoryStore()

    def sqlite() -> SQLiteStore:
        return SQLiteStore.from_config(SQLiteStoreConfig(), project="shop", folder=tmp_path)

    async with running(make_engine([view], memory, log)) as engine:
        await until(lambda: is_done(engine, 200))
    engine = FeatureEngine([view], sqlite, log, CollectorRegistry(), monotonic=jumping_clock())
    async with running(engine):
        await until(lambda: is_done(engine, 200))
    store = sqlite()
    await store.open()
    found = await dump(store, view.spec)
    await store.close()
    assert found == (await all_of(memory, view.spec))[0]


def test_a_log_of_several_partitions_is_refused_with_the_cure(definitions: Path) -> None:
    with pytest.raises(ConfigError, match="one partition") as caught:
        make_engine(load_definitions(definitions), MemoryStore(), SlicedLog(partitions=4))
    assert "partitions: 1" in caught.value.advice


class DeafStore(MemoryStore):
    """Its client takes a cancellation for something of its own, as redis-py's look into its socket can."""

    def __init__(self) -> None:
        super().__init__()
        self.is_writing = asyncio.Event()

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        self.is_writing.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await super().write(writes)


async def test_a_stop_that_the_store_swallows_still_stops_the_engine(definitions: Path) -> None:
    (view,) = load_definitions(definitions)
    store, log = DeafStore(), SlicedLog()
    await log.add(order(1, customer=7))
    task = asyncio.create_task(make_engine([view], store, log).run())
    await store.is_writing.wait()
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    assert task.cancelled()


async def test_a_column_name_that_can_not_be_read_stops_its_view_with_words(tmp_path: Path) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "from headrace.features import Entity, FeatureView, Int64, String, Table, latest\n"
        "customer = Entity('customer', join_keys={'customer_id': Int64})\n"
        "odd = FeatureView('odd', entity=customer, source=Table('public.orders'), "
        "features=[latest('na\"me', String, name='name')])\n"
    )
    with pytest.raises(DefinitionError, match="quote") as refused:
        await make_engine(load_definitions(path), MemoryStore(), SlicedLog()).run()
    assert "odd" in refused.value.message
    assert "rename" in refused.value.advice
