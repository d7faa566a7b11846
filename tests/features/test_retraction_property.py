"""Random lives of a table against every aggregate: after each step each feature equals a recomputation from the live rows.

The table (fix_features.OrdersTable) changes by inserts, updates (of the key, the customer, the filter's column and the time too), deletes
that bring a key only, truncates and snapshot reads. What is recomputed here shares no code with the aggregates.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from fix_features import HOUR_US, MINUTE_US, SECOND_US, START_US, OrdersTable, dump, random_life, random_step
from headrace.cdc.decode.pgtime import timestamp_us
from headrace.features import counted, extremes
from headrace.features.compiled import CompiledView
from headrace.features.lane import Lane
from headrace.features.loading import load_definitions
from headrace.features.spec import EntityKey, FeatureValue
from headrace.features.store.memory import MemoryStore
from headrace.features.worker import ViewWorker

STEPS = 2_000

DEFINITIONS = """
from headrace.features import *

customer = Entity("customer", join_keys={"customer_id": Int64})

view = FeatureView(
    "customer_orders",
    entity=customer,
    source=Table("public.orders"),
    event_time="created_at",
    where=col("status") != "cancelled",
    features=[
        mean("total", over=["1m", "1h"]),
        mean("amount"),
        variance("total", over="1h"),
        variance("amount", over=["1h"], hop="5m"),
        stddev("amount", over="1h"),
        stddev("total"),
        count(over="1h", by="status", groups=["paid", "open"]),
        sum_("amount", where=col("total") > 0, name="amount_of_positive"),
        min_("total", over=["1m", "1h"]),
        max_("total", over="1h"),
        min_("amount", String, name="least_amount"),
        max_("total", name="greatest"),
        max_("created_at", UnixTimestamp, name="newest_at"),
        last("status", 3),
        last("total", 4, Float64, over="1h", hop="5m"),
        distinct("status", over=["1m", "1h"]),
        distinct("total", Float64),
        top_k("status", 2, over="1h"),
        top_k("total", 3, Float64),
        quantile("total", 0.5, over="1h"),
        quantile("total", 0.95),
        time_since_last(over="1h", hop="5m"),
        ratio(count(over="1h", where=col("status") == "paid"), count(over="1h"), name="paid_share"),
        ratio(sum_("total"), count("total"), name="spend_per_order"),
    ],
)
"""

Row = dict[str, Any]
WINDOWS = {"1m": (MINUTE_US, SECOND_US), "1h": (HOUR_US, MINUTE_US), "1h/5m": (HOUR_US, 5 * MINUTE_US)}


def numbers(rows: list[Row], column: str) -> list[Fraction]:
    """Floats as the doubles they are, numerics as their text."""
    values = [row[column] for row in rows if row[column] is not None]
    return [Fraction(value) for value in values]


def rounded(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def present(rows: list[Row], column: str) -> list[Any]:
    return [row[column] for row in rows if row[column] is not None]


def most_frequent(values: list[Any], size: int) -> tuple[Any, ...]:
    counts = Counter(values)
    return tuple(sorted(counts, key=lambda value: (-counts[value], value))[:size])


class Near(float):
    """A value that a quantile may miss by 1/128 of itself."""


def at_rank(values: list[float], level: Fraction) -> FeatureValue:
    return Near(sorted(values)[math.floor(level * (len(values) - 1))]) if values else None


def mean_of(column: str) -> Callable[[list[Row]], FeatureValue]:
    def recompute(rows: list[Row]) -> FeatureValue:
        values = numbers(rows, column)
        return rounded(sum(values, Fraction(0)) / len(values)) if values else None

    return recompute


def variance_of(column: str) -> Callable[[list[Row]], FeatureValue]:
    def recompute(rows: list[Row]) -> FeatureValue:
        values = numbers(rows, column)
        return rounded(statistics.variance(values)) if len(values) > 1 else None

    return recompute


def stddev_of(column: str) -> Callable[[list[Row]], FeatureValue]:
    def recompute(rows: list[Row]) -> FeatureValue:
        values = numbers(rows, column)
        return statistics.stdev(values) if len(values) > 1 else None

    return recompute


RECOMPUTED: dict[str, tuple[str | None, Callable[[list[Row]], FeatureValue]]] = {
    "total_mean_1m": ("1m", mean_of("total")),
    "total_mean_1h": ("1h", mean_of("total")),
    "amount_mean": (None, mean_of("amount")),
    "total_variance_1h": ("1h", variance_of("total")),
    "amount_variance_1h": ("1h/5m", variance_of("amount")),
    "amount_stddev_1h": ("1h", stddev_of("amount")),
    "total_stddev": (None, stddev_of("total")),
    "count_paid_1h": ("1h", lambda rows: sum(row["status"] == "paid" for row in rows)),
    "count_open_1h": ("1h", lambda rows: sum(row["status"] == "open" for row in rows)),
    "amount_of_positive": (
        None,
        lambda rows: float(sum(numbers([row for row in rows if (row["total"] or 0) > 0], "amount"), Fraction(0))),
    ),
    "total_min_1m": ("1m", lambda rows: min(present(rows, "total"), default=None)),
    "total_min_1h": ("1h", lambda rows: min(present(rows, "total"), default=None)),
    "total_max_1h": ("1h", lambda rows: max(present(rows, "total"), default=None)),
    "least_amount": (None, lambda rows: min(present(rows, "amount"), default=None)),
    "greatest": (None, lambda rows: max(present(rows, "total"), default=None)),
    "newest_at": (
        None,
        # Feast's form has whole seconds.
        lambda rows: max((timestamp_us(row["created_at"]) or 0) for row in rows) // SECOND_US * SECOND_US,
    ),
    "status_last_3": (None, lambda rows: tuple(present(rows, "status")[::-1][:3])),
    "total_last_4_1h": ("1h/5m", lambda rows: tuple(present(rows, "total")[::-1][:4])),
    "status_distinct_1m": ("1m", lambda rows: len(set(present(rows, "status")))),
    "status_distinct_1h": ("1h", lambda rows: len(set(present(rows, "status")))),
    "total_distinct": (None, lambda rows: len(set(present(rows, "total")))),
    "status_top_2_1h": ("1h", lambda rows: most_frequent(present(rows, "status"), 2)),
    "total_top_3": (None, lambda rows: most_frequent(present(rows, "total"), 3)),
    "total_p50_1h": ("1h", lambda rows: at_rank(present(rows, "total"), Fraction(1, 2))),
    "total_p95": (None, lambda rows: at_rank(present(rows, "total"), Fraction(95, 100))),
    "time_since_last_1h": ("1h/5m", lambda rows: None),
    "paid_share": ("1h", lambda rows: sum(row["status"] == "paid" for row in rows) / len(rows) if rows else None),
    "spend_per_order": (
        None,
        lambda rows: (
            rounded(sum(numbers(rows, "total"), Fraction(0))) / len(present(rows, "total"))
            if present(rows, "total")
            else None
        ),
    ),
}


def since_newest(rows: list[Row], now_us: int) -> FeatureValue:
    """Seconds in hops of five minutes from the newest row's hop to that of now."""
    hops = [(timestamp_us(row["created_at"]) or 0) // (5 * MINUTE_US) for row in rows]
    return (now_us // (5 * MINUTE_US) - max(hops)) * 300 if hops else None


def recompute(table: OrdersTable, customer: int, now_us: int) -> dict[str, FeatureValue] | None:
    """Every feature of one customer, from the live rows; None when no row counts. Rows in order of time, then of change."""
    rows = sorted(
        [
            (timestamp_us(row["created_at"]) or 0, table.changed[key], row)
            for key, row in table.rows.items()
            if row["customer_id"] == customer and row["status"] != "cancelled"
        ],
        key=lambda item: item[:2],
    )
    if not rows:
        return None
    within: dict[str | None, list[Row]] = {None: [row for _, _, row in rows]}
    for name, (window_us, hop_us) in WINDOWS.items():
        low, high = (now_us - window_us) // hop_us, now_us // hop_us
        within[name] = [row for time_us, _, row in rows if low < time_us // hop_us <= high]
    found = {name: function(within[window]) for name, (window, function) in RECOMPUTED.items()}
    found["time_since_last_1h"] = since_newest(within["1h/5m"], now_us)
    return found


def same(left: FeatureValue, right: FeatureValue) -> bool:
    if isinstance(right, Near):
        return isinstance(left, float) and abs(left - right) <= abs(right) / 128 + sys.float_info.min
    return type(left) is type(right) and left == right


async def stored(store: MemoryStore, view: CompiledView) -> dict[EntityKey, dict[str, FeatureValue]]:
    names = [field.name for field in view.spec.fields]
    keys = await store.keys(view.spec)
    rows = await store.read(view.spec, names, keys)
    return {
        key: dict(zip(names, row.values, strict=True)) for key, row in zip(keys, rows, strict=True) if row is not None
    }


def fail(worker: ViewWorker, error: Exception) -> None:
    raise error


async def make_lane(folder: Path, store: MemoryStore, *, most_states: int = 3) -> tuple[Lane, CompiledView]:
    path = folder / "definitions.py"
    path.write_text(DEFINITIONS)
    (view,) = load_definitions(path)
    worker = ViewWorker(view, store, "g1", most_states=most_states)
    await worker.begin(0, 0)
    return Lane([worker], store, 0, 0, fail), view


@pytest.mark.parametrize(("seed", "keep"), [(1, 8), (2, 8), (3, 2), (4, 1)])
async def test_every_aggregate_equals_a_recomputation_after_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, keep: int
) -> None:
    monkeypatch.setattr(extremes, "KEEP", keep)  # a tile that keeps one value must ask for the rows most often
    chance = random.Random(seed)
    store = MemoryStore()
    await store.open()
    lane, view = await make_lane(tmp_path, store)
    assert {field.name for field in view.spec.fields} == set(RECOMPUTED), "each feature has its recomputation"
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
                continue
            have = found[(customer,)]
            wrong = {name: (have[name], wanted[name]) for name in wanted if not same(have[name], wanted[name])}
            assert not wrong, f"{where}: (stored, recomputed) differ: {wrong}"
    assert lane.workers[0].kernel.counts.unreadable == 0
    assert lane.workers[0].kernel.counts.unknown == 0


@pytest.mark.parametrize(("seed", "keep"), [(11, 8), (12, 1), (13, 2)])
async def test_the_bytes_in_the_store_do_not_depend_on_how_the_log_was_cut_into_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, keep: int
) -> None:
    monkeypatch.setattr(extremes, "KEEP", keep)
    monkeypatch.setattr(counted, "MOST_DISTINCT", 5)
    monkeypatch.setattr(counted, "MOST_VALUES", 5)
    table = random_life(seed, 600)
    dumps: list[dict[EntityKey, tuple[Any, ...]]] = []
    for most in (1, 7, 600):
        store = MemoryStore()
        await store.open()
        lane, view = await make_lane(tmp_path, store)
        while lane.offset < len(table.events):
            await lane.apply(table.events[lane.offset : lane.offset + most])
            await lane.decay(1)
        while await lane.decay(100):
            pass
        dumps.append(await dump(store, view.spec))
    assert dumps[0], f"seed {seed} leaves no row"
    assert dumps[0] == dumps[1] == dumps[2], f"seed {seed}"
