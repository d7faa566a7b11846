"""Random lives of a table: after every step each feature equals a recomputation from the live rows alone."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from fix_features import HOUR_US, MINUTE_US, SECOND_US, START_US, OrdersTable, text_of

from headrace.cdc.decode.pgtime import timestamp_us
from headrace.features.compiled import CompiledView
from headrace.features.lane import Lane
from headrace.features.loading import load_definitions
from headrace.features.spec import EntityKey, FeatureValue
from headrace.features.store.memory import MemoryStore
from headrace.features.worker import ViewWorker

STEPS = 2_500
STATUSES = ("paid", "open", "cancelled")


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
    return {key: dict(zip(names, row.values, strict=True)) for key, row in zip(keys, rows, strict=True) if row is not None}


def random_row(chance: random.Random, key: int, now_us: int) -> dict[str, Any]:
    age_us = chance.choice((0, 30 * SECOND_US, MINUTE_US, 50 * MINUTE_US, HOUR_US, 3 * HOUR_US, -20 * SECOND_US, -10 * MINUTE_US))
    return {
        "id": key,
        "customer_id": chance.choice((1, 2, 3, 4, None)) if chance.random() < 0.1 else chance.randint(1, 4),
        "total": chance.choice((None, 0.1, -0.1, 1e300, -1e300, 5e-324, chance.uniform(-1e6, 1e6))),
        "amount": chance.choice((None, "0.10", "19.99", "-7", "12345678901234567890.123456789", f"{chance.randint(-999, 999)}.5")),
        "status": chance.choice(STATUSES),
        "note": chance.choice((None, "a", "b", "long " * 50)),
        "created_at": text_of(now_us - chance.randint(0, age_us) if age_us >= 0 else now_us + chance.randint(0, -age_us)),
    }


def random_step(chance: random.Random, table: OrdersTable, now_us: int) -> int:
    """Change the table somehow; the new time."""
    now_us += chance.choice((0, 1, SECOND_US // 3, SECOND_US, 7 * SECOND_US, MINUTE_US, 20 * MINUTE_US, 90 * MINUTE_US))
    free = next(key for key in range(1, 10_000) if key not in table.rows)
    keys = sorted(table.rows)
    what = chance.random()
    if what < 0.30 or not keys:
        table.insert(random_row(chance, free, now_us), now_us, "insert" if chance.random() < 0.8 else "read")
    elif what < 0.70:
        key = chance.choice(keys)
        new = random_row(chance, key, now_us)
        columns = chance.sample(["customer_id", "total", "amount", "status", "note", "created_at"], chance.randint(1, 3))
        changes = {column: new[column] for column in columns}
        if table.rows[key]["customer_id"] is None:
            changes["note"] = new["note"]  # nothing is kept of a row without an entity: see test_kernel.py
        if chance.random() < 0.15:
            changes["id"] = free
        table.update(key, changes, now_us)
    elif what < 0.85:
        table.delete(chance.choice(keys), now_us)
    elif what < 0.87:
        table.insert(random_row(chance, chance.choice(keys), now_us), now_us, "read")
    elif what < 0.88:
        table.truncate(now_us)
    else:
        table.heartbeat(now_us)
    return now_us


def equal(left: FeatureValue, right: FeatureValue) -> bool:
    return type(left) is type(right) and left == right


def assert_equal(found: Mapping[str, FeatureValue], wanted: Mapping[str, FeatureValue], why: str) -> None:
    wrong = {name: (found[name], wanted[name]) for name in wanted if not equal(found[name], wanted[name])}
    assert not wrong, f"{why}: (stored, recomputed) differ: {wrong}"


async def make_lane(definitions: Path, store: MemoryStore) -> tuple[Lane, CompiledView]:
    (view,) = load_definitions(definitions)
    worker = ViewWorker(view, store, "g1", most_states=3)
    await worker.begin(0, 0)

    def fail(worker: ViewWorker, error: Exception) -> None:
        raise error

    return Lane([worker], store, 0, 0, fail), view


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_feature_equals_a_recomputation_from_the_live_rows_after_every_step(definitions: Path, seed: int) -> None:
    chance = random.Random(seed)
    store = MemoryStore()
    await store.open()
    lane, view = await make_lane(definitions, store)
    table = OrdersTable()
    now_us = START_US
    for step in range(STEPS // 3 + 1):
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
