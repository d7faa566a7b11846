"""A changed view is built beside its former rows, which are served until the new ones take their place, whatever fails in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from features.test_engine import (
    FaultyStore,
    all_of,
    is_done,
    jumping_clock,
    make_engine,
    order,
    run_to_the_end,
    running,
    two_views,
)
from features.test_feature_log import logged
from fix_features import START_US, SlicedLog, random_life, until
from headrace.cdc.errors import RequestRefused, StoreError
from headrace.features.compiled import CompiledView
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.offline.logged import LoggedStore
from headrace.features.spec import ViewSpec
from headrace.features.store.memory import MemoryStore


class Promoting(FaultyStore):
    """Promotes only while the gate is open, and counts a promote as a write that may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.waits = asyncio.Event()

    def kept(self) -> set[str]:
        return {name for name, view in self._views.items() if view.checkpoint is not None or view.rows}

    async def promote(self, view: ViewSpec) -> None:
        self.waits.set()
        await self.gate.wait()
        self.writes += 1
        number = self.writes
        if number in self.fail_before:
            raise StoreError("the link broke before the promotion")
        await super().promote(view)
        if number in self.fail_after:
            raise StoreError("the link broke after the promotion")


def changed(definitions: Path) -> tuple[CompiledView, ...]:
    definitions.write_text(definitions.read_text().replace('count(over="1h")', 'count(over="2h", name="lately")'))
    return load_definitions(definitions)


async def built(store: MemoryStore, views: Sequence[CompiledView], log: SlicedLog, end: int) -> None:
    async with running(make_engine(views, store, log)) as engine:
        await until(lambda: is_done(engine, end))


async def test_the_former_rows_are_served_until_the_new_ones_are_whole_and_the_others_go_on(definitions: Path) -> None:
    views = two_views(definitions)
    store, log = Promoting(), SlicedLog()
    log.most = 50
    table = random_life(71, 300)
    await log.add(*table.events)
    await built(store, views, log, 300)
    former = await all_of(store, views[1].spec)
    new = changed(definitions)
    store.gate.clear()
    engine = make_engine(new, store, log)
    async with running(engine):
        await until(store.waits.is_set)
        assert [health.is_ready for health in engine.health()] == [True], (
            "former rows are served: nobody need stay away"
        )
        await log.add(order(9_001, customer=1))
        await until(lambda: engine.status()["views"]["customer_orders"]["offset"] == 301)
        assert engine.status()["views"]["statuses"]["phase"] == "rebuilding"
        assert engine.status()["views"]["statuses"]["offset"] == 300
        applied = engine._applied()
        assert applied is not None and applied.offset == 300, "min_position must not promise what only the draft has"
        rows = await store.read(views[1].spec, ["status", "count_1h"], list(former[0]))
        assert [None if row is None else row.values for row in rows] == [
            values[:2] for values, *_ in former[0].values()
        ]
        with pytest.raises(RequestRefused, match="statuses"):
            await engine.erase({"customer_id": "1"})
        store.gate.set()
        await until(lambda: is_done(engine, 301))
    afresh = MemoryStore()
    await built(afresh, new, log, 301)
    for view in new:
        assert await all_of(store, view.spec) == await all_of(afresh, view.spec)
    assert store.kept() == {view.spec.name for view in new}, "nothing of the draft is left"


async def test_a_failure_at_any_write_or_promotion_ends_in_the_rows_of_an_undisturbed_run(
    definitions: Path, tmp_path: Path
) -> None:
    views = two_views(definitions)
    log = SlicedLog()
    log.most = 11
    table = random_life(72, 80)
    await log.add(*table.events)
    new = changed(definitions)
    afresh = MemoryStore()
    await built(afresh, new, log, 80)
    wanted = [await all_of(afresh, view.spec) for view in new]
    number = 0
    while True:
        number += 1
        store = Promoting()
        folder = tmp_path / str(number)
        await to_the_end(views, store, log, folder)
        store.writes = 0
        (store.fail_before if number % 2 else store.fail_after).add((number + 1) // 2)
        await to_the_end(new, store, log, folder)
        assert [await all_of(store, view.spec) for view in new] == wanted, number
        assert store.kept() == {view.spec.name for view in new}
        newest = {row[2]: row[3] for row in logged(folder, new[1].spec)}
        assert {key: values for key, values in newest.items() if values is not None} == {
            key: values for key, (values, *_) in wanted[1][0].items()
        }
        assert not (folder / "statuses__next").exists()
        if store.writes < (number + 1) // 2:
            break  # the numbered write never came: all of them were tried
    assert number > 15


def logging_engine(views: Sequence[CompiledView], store: MemoryStore, log: SlicedLog, folder: Path) -> FeatureEngine:
    return FeatureEngine(
        views,
        lambda: LoggedStore(store, folder, roll_every_s=0.01, roll_bytes=2000),
        log,
        CollectorRegistry(),
        monotonic=jumping_clock(),
        clock=lambda: START_US / 1e6,
    )


async def to_the_end(views: Sequence[CompiledView], store: MemoryStore, log: SlicedLog, folder: Path) -> None:
    """Start again after each failure, as the app does."""
    end = (await log.bounds(0)).end
    for _ in range(10):
        try:
            await run_to_the_end(logging_engine(views, store, log, folder), end)
        except StoreError:
            continue
        return
    raise AssertionError("it fails again and again")


async def test_going_back_to_the_former_definition_keeps_its_rows(definitions: Path) -> None:
    views = two_views(definitions)
    store, log = Promoting(), SlicedLog()
    table = random_life(73, 200)
    await log.add(*table.events)
    await built(store, views, log, 200)
    before = store.writes
    text = definitions.read_text()
    new = changed(definitions)
    store.gate.clear()
    async with running(make_engine(new, store, log)):
        await until(store.waits.is_set)
    definitions.write_text(text)
    await log.add(order(9_001, customer=1))
    before = store.writes
    await built(store, load_definitions(definitions), log, 201)
    assert store.writes - before <= 4, "only the one event was applied, and places saved"
    assert store.kept() == {view.spec.name for view in views}
    afresh = MemoryStore()
    await built(afresh, views, log, 201)
    for view in views:
        assert await all_of(store, view.spec) == await all_of(afresh, view.spec)


async def test_rows_of_another_log_stay_until_its_tables_are_copied(definitions: Path) -> None:
    (view,) = load_definitions(definitions)
    store, first, second = MemoryStore(), SlicedLog(), SlicedLog()
    await first.add(order(1, customer=1))
    await built(store, [view], first, 1)
    is_copying = True
    engine = FeatureEngine(
        [view], lambda: store, second, CollectorRegistry(), monotonic=jumping_clock(), is_copying=lambda: is_copying
    )
    async with running(engine):
        await second.add(order(2, customer=2))
        await until(lambda: engine._main is not None and engine.status()["views"]["customer_orders"]["offset"] == 1)
        assert await store.keys(view.spec) == [(1,)]
        await second.add(order(3, customer=3))
        await until(lambda: engine.status()["views"]["customer_orders"]["offset"] == 2)
        assert await store.keys(view.spec) == [(1,)]
        is_copying = False
        await until(lambda: is_done(engine, 2))
    rows, _ = await all_of(store, view.spec)
    assert sorted(rows) == [(2,), (3,)]


async def test_a_definition_that_does_not_fit_its_table_never_replaces_the_former_rows(definitions: Path) -> None:
    views = two_views(definitions)
    store, log = MemoryStore(), SlicedLog()
    await log.add(order(1, customer=1))
    await built(store, views, log, 1)
    definitions.write_text(definitions.read_text().replace('latest("status")', 'latest("statos")'))
    engine = make_engine(load_definitions(definitions), store, log)
    async with running(engine):
        await log.add(order(2, customer=1))
        await until(lambda: engine._main is not None and engine.status()["offset"] == [2])
        (line,) = [health for health in engine.health() if not health.is_ready]
        assert line.part == "features/statuses" and "no column statos" in line.reason
        (row,) = await store.read(views[1].spec, ["status"], [(1,)])
        assert row is not None and row.values == ("paid",)
