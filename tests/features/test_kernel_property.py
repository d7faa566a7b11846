"""Random lives of a table: after every step each feature equals a recomputation from the live rows alone."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from fix_features import HOUR_US, MINUTE_US, SECOND_US, START_US, OrdersTable, dump, random_life, random_step
from headrace.cdc.decode.pgtime import timestamp_us
from headrace.features.compiled import CompiledView
from headrace.features.lane import Lane
from headrace.features.loading import load_definitions
from headrace.features.spec import EntityKey, FeatureValue
from headrace.features.store.memory import MemoryStore
from headrace.features.worker import ViewWorker

STEPS = 2_500


def counts_in(window_us: int, hop_us: int, time_us: int, now_us: int) -> bool:
    """The definition of a window, said once more and plainly."""
    return (now_us - window_us) // hop_us < time_us // hop_us <= now_us // hop_us


def recompute(table: OrdersTable, customer: int, now_us: int) -> dict[str, FeatureValue] | None:
    """The view of fix_features.DEFINITIONS for one customer, from the live rows; None when no row counts."""
    rows = [
        (timestamp_us(row["created_at"]) or 0, table.changed[key], row)
        for key, row in table.rows.items()
        if row["customer_id"] == customer and row["status"] != "cancelled"
    ]
    if not rows:
        return None

    def total(column: str, within: list[dict[str, Any]]) -> float:
        finite = [row[column] for row in within if row[column] is not None]
        if all(isinstance(value, float) for value in finite):
            return math.fsum(finite)
        return float(sum((Fraction(str(value)) for value in finite), Fraction(0)))

    minute = [row for time_us, _, row in rows if counts_in(MINUTE_US, SECOND_US, time_us, now_us)]
    hour = [row for time_us, _, row in rows if counts_in(HOUR_US, MINUTE_US, time_us, now_us)]
    slow = [row for time_us, _, row in rows if counts_in(HOUR_US, 5 * MINUTE_US, time_us, now_us)]
    newest = max(rows, key=lambda item: item[:2])[2]
    return {
        "orders_1m": len(minute),
        "orders_1h": len(hour),
        "total_sum_1m": total("total", minute),
        "total_sum_1h": total("total", hour),
        "amount_sum_1h": total("amount", slow),
        "total_ever": total("total", [row for _, _, row in rows]),
        "orders_ever": len(rows),
        "status": newest["status"],
        "note": newest["note"],
    }


async def stored(store: MemoryStore, view: CompiledView) -> dict[EntityKey, dict[str, FeatureValue]]:
    names = [field.name for field in view.spec.fields]
    keys = await store.keys(view.spec)
    rows = await store.read(view.spec, names, keys)
    return {
        key: dict(zip(names, row.values, strict=True)) for key, row in zip(keys, rows, strict=True) if row is not None
    }


def equal(left: FeatureValue, right: FeatureValue) -> bool:
    return type(left) is type(right) and left == right


def assert_equal(found: Mapping[str, FeatureValue], wanted: Mapping[str, FeatureValue], why: str) -> None:
    wrong = {name: (found[name], wanted[name]) for name in wanted if not equal(found[name], wanted[name])}
    assert not wrong, f"{why}: (stored, recomputed) differ: {wrong}"


def fail(worker: ViewWorker, error: Exception) -> None:
    raise error


async def make_lane(definitions: Path, store: MemoryStore) -> tuple[Lane, CompiledView]:
    (view,) = load_definitions(definitions)
    worker = ViewWorker(view, store, "g1", most_states=3)
    await worker.begin(0, 0)

    return Lane([worker], store, 0, 0, fail), view


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_feature_equals_a_recomputation_from_the_live_rows_after_every_step(
    definitions: Path, seed: int
) -> None:
    chance = random.Random(seed)
    store = MemoryStore()
    await store.open()
    lane, view = await make_lane(definitions, store)
    table = OrdersTable()
    now_us = START_US
    for step in range(STEPS):
        now_us = random_step(chance, table, now_us)
        await lane.apply(table.events[lane.offset :])
        while await lane.decay(2):
            pass
        found = await stored(store, view)
        customers = {row["customer_id"] for row in table.rows.values()} - {None}
        for customer in sorted(customers | {key[0] for key in found}):
            wanted = recompute(table, customer, now_us)
            where = f"seed {seed}, step {step}, customer {customer}"
            if wanted is None:
                assert (customer,) not in found, f"{where}: a row without any source row"
            else:
                assert_equal(found[(customer,)], wanted, where)
    assert lane.workers[0].kernel.counts.unreadable == 0
    assert lane.workers[0].kernel.counts.unknown == 0


@pytest.mark.parametrize("seed", [11, 12])
async def test_the_bytes_in_the_store_do_not_depend_on_how_the_log_was_cut_into_batches(
    definitions: Path, seed: int
) -> None:
    table = random_life(seed, 600)
    dumps = []
    for most in (1, 7, 600):
        store = MemoryStore()
        await store.open()
        lane, view = await make_lane(definitions, store)
        while lane.offset < len(table.events):
            await lane.apply(table.events[lane.offset : lane.offset + most])
            await lane.decay(1)
        while await lane.decay(100):
            pass
        dumps.append(await dump(store, view.spec))
    assert dumps[0], f"seed {seed} leaves no row"
    assert dumps[0] == dumps[1] == dumps[2], f"seed {seed}"


@pytest.mark.parametrize("seed", [21, 22])
async def test_replaying_any_suffix_of_the_log_leaves_the_store_identical(definitions: Path, seed: int) -> None:
    table = random_life(seed, 300)
    store = MemoryStore()
    await store.open()
    lane, view = await make_lane(definitions, store)
    await lane.apply(table.events)
    while await lane.decay(100):
        pass
    before = await dump(store, view.spec)
    assert before, f"seed {seed} leaves no row"
    for start in range(0, len(table.events), 17):
        await lose_checkpoint(store, view)
        worker = ViewWorker(view, store, "g1", most_states=100)
        log_time_us = max((event.committed_us for event in table.events[:start]), default=0)
        await worker.begin(start, log_time_us)
        again = Lane([worker], store, start, log_time_us, fail)
        while again.offset < len(table.events):
            await again.apply(table.events[again.offset : again.offset + 13])
        while await again.decay(100):
            pass
        assert await dump(store, view.spec) == before, f"seed {seed}, replayed from {start}"


async def lose_checkpoint(store: MemoryStore, view: CompiledView) -> None:
    """As after a failover that lost the checkpoint but not the rows: no store of ours does it, and it would be harmless."""
    store._views[view.spec.name].checkpoint = None
    await store.close()
    await store.open()
