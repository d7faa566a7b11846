"""Serving, the feature log and a recomputation from the live rows, at every moment of random lives with crashes: no bit differs.

A check is one feature of one entity at one time, three ways: what a reader of the online store gets then, what a point-in-time read of the Parquet
feature log says of then, and what the rows that were live then give, by code that shares nothing with the aggregates. Quantiles are within
1/128 of the exact one by their definition: between serving and the feature log they are compared bit by bit, with the exact value by that.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from features.test_engine import FaultyStore
from features.test_feature_log import bits
from features.test_retraction_property import DEFINITIONS, fail, recompute, same
from fix_features import START_US, OrdersTable, random_step
from headrace.cdc.errors import StoreError
from headrace.features import extremes
from headrace.features.compiled import CompiledView
from headrace.features.lane import Lane
from headrace.features.loading import load_definitions
from headrace.features.offline.logged import LoggedStore
from headrace.features.offline.segment import CREATED, DELETED
from headrace.features.offline.viewlog import segments
from headrace.features.verify import differing_bits
from headrace.features.worker import ViewWorker


class Life:
    """One view over one table, whose process dies now and then."""

    def __init__(self, view: CompiledView, folder: Path, seed: int) -> None:
        self.view = view
        self.folder = folder
        self.rng = random.Random(seed)
        self.store = FaultyStore()
        self.table = OrdersTable()
        self.deaths = 0
        self.now_s = 0.0
        """A second a step, by which the feature log's rows are told apart."""

    async def begin(self) -> None:
        self.logging = LoggedStore(
            self.store, self.folder, roll_every_s=3600, roll_bytes=100_000, clock=lambda: self.now_s
        )
        await self.logging.open()
        checkpoint = await self.logging.checkpoint(self.view.spec)
        offset, time_us = (0, 0) if checkpoint is None else (checkpoint.offsets[0], checkpoint.log_time_us)
        worker = ViewWorker(self.view, self.logging, "g1", most_states=3)
        await worker.begin(offset, time_us)
        self.lane = Lane([worker], self.logging, offset, time_us, fail)

    async def die(self) -> None:
        self.deaths += 1
        self.logging._is_clean = False  # as if killed: nothing is sealed
        await self.logging.close()
        await self.begin()

    async def catch_up(self) -> None:
        """Everything that happened is in the store, whatever fails on the way."""
        events = self.table.events
        while True:
            if self.rng.random() < 0.05:
                number = self.store.writes + self.rng.randrange(1, 3)
                (self.store.fail_before if self.rng.random() < 0.5 else self.store.fail_after).add(number)
            try:
                while self.lane.offset < len(events):
                    await self.lane.apply(events[self.lane.offset : self.lane.offset + self.rng.randrange(1, 5)])
                while await self.lane.decay(2):
                    pass
                await self.lane.save()
                return
            except StoreError:
                await self.die()


async def three_ways(folder: Path, seed: int, steps: int) -> tuple[int, int]:
    """Checks made, and how often the process died; every difference is an AssertionError."""
    path = folder / "definitions.py"
    path.write_text(DEFINITIONS)
    (view,) = load_definitions(path)
    life = Life(view, folder / "log", seed)
    await life.begin()
    names = [field.name for field in view.spec.fields]
    now_us = START_US
    served: list[tuple[int, int, Any]] = []
    for step in range(steps):
        now_us = random_step(life.rng, life.table, now_us)
        life.now_s = float(step)
        await life.catch_up()
        customers = sorted({row["customer_id"] for row in life.table.rows.values()} - {None} | {1, 2, 3, 4})
        rows = await life.logging.read(view.spec, names, [(customer,) for customer in customers])
        for customer, row in zip(customers, rows, strict=True):
            wanted = recompute(life.table, customer, now_us)
            where = f"seed {seed}, step {step}, customer {customer}"
            assert (row is None) == (wanted is None), f"{where}: a row without source rows, or none with some"
            if row is not None and wanted is not None:
                wrong = [name for name, have in zip(names, row.values, strict=True) if not same(have, wanted[name])]
                assert not wrong, f"{where}: serving and recomputation differ: {wrong}"
            served.append((step, customer, None if row is None else row.values))
        if life.rng.random() < 0.01:
            await life.die()
    await life.logging.close()
    logged = logged_rows(folder / "log" / view.spec.name, names)
    checks = 0
    at = dict.fromkeys(logged, 0)
    newest: dict[int, Any] = {}
    for step, customer, values in served:
        mine = logged.get(customer, [])
        while at.get(customer, 0) < len(mine) and mine[at[customer]][0] < (step + 1) * 1_000_000:
            newest[customer] = mine[at[customer]][1]
            at[customer] += 1
        have = newest.get(customer)
        assert (have is None) == (values is None), f"seed {seed}, step {step}, customer {customer}: the feature log"
        if values is not None:
            wrong = [name for name, one, other in zip(names, values, have, strict=True) if differing_bits(one, other)]
            assert not wrong, (
                f"seed {seed}, step {step}, customer {customer}: serving and the feature log differ: {wrong}"
            )
            assert bits(values) == bits(have)
        checks += len(names)
    return checks, life.deaths


def logged_rows(folder: Path, names: list[str]) -> dict[int, list[tuple[int, Any]]]:
    """(created, values; None for a deleted row) of each customer, in the order of created."""
    found: dict[int, list[tuple[int, Any]]] = {}
    for path in segments(folder):
        table = pq.read_table(path)
        for index, name in enumerate(table.column_names):
            if str(table.schema.field(index).type).startswith("timestamp"):
                table = table.set_column(index, name, table[name].cast("int64"))
        for row in table.to_pylist():
            values = tuple([tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names])
            found.setdefault(row["customer_id"], []).append((row[CREATED], None if row[DELETED] else values))
    return found


@pytest.mark.parametrize("seed", [21])
async def test_serving_the_feature_log_and_the_rows_say_the_same(tmp_path: Path, seed: int) -> None:
    checks, deaths = await three_ways(tmp_path, seed, 250)
    assert checks > 25_000 and deaths > 5


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 112))
async def test_a_million_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(extremes, "KEEP", (8, 2, 1)[seed % 3])
    checks, deaths = await three_ways(tmp_path, seed, 1_000)
    print(f"seed {seed}: {checks:,} checks, {deaths} deaths")
    assert checks > 85_000
