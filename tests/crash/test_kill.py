"""kill -9 of ``headrace run`` at random moments under load, again and again; then nothing is lost, doubled or out of order.

Judged from outside: the log, read from its file and folded back into tables, equals the server's own SELECT; positions only grow; every
served feature equals its recomputation by SQL. The simulator commits the whole time, so a kill meets the initial copy, the stream, an
append, a confirmation, a write of features or the start itself. The seed is part of every message.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fix_servers import Database
from fold import Fold, server_rows
from headrace.cdc.config import load
from headrace.cdc.demo.client import Client
from headrace.cdc.demo.proof import FEATURES, compare, recompute
from headrace.cdc.demo.shop import Shop, Simulator
from headrace.cdc.log.reader import open_reader
from headrace.cdc.position import PostgresPosition, parse_lsn
from running import RunningHeadrace

SHOP_TABLES = ("shop.customers", "shop.products", "shop.orders", "shop.order_items")
DEFINITIONS = Path(sys.modules["headrace.cdc.demo.shop"].__file__ or "").parent / "files" / "shop_features.py"


class Running(RunningHeadrace):
    """A shop with its features."""

    def __init__(self, folder: Path, dsn: str, name: str, store: str) -> None:
        (folder / "shop_features.py").write_bytes(DEFINITIONS.read_bytes())
        super().__init__(
            folder,
            f"""
log: {{path: shop.log.db}}
sources:
  shop: {{type: postgres, dsn: "{dsn}", tables: ["shop.*"], slot: kill_{name}, publication: kill_{name}, heartbeat: 2s}}
events:
  shop.orders: {{key: customer_id, occurred_at: placed_at}}
features: {{definitions: shop_features.py, project: shop, store: {store}}}""",
        )


@pytest.fixture
def store(request: pytest.FixtureRequest) -> str:
    if request.param == "redis":
        return f'{{type: redis, url: "{request.getfixturevalue("redis_url")}"}}'
    return "{type: sqlite, path: online.db}"


@pytest.fixture
def shop(database: Database) -> Iterator[Shop]:
    made = Shop(database.dsn, customers=60, products=12)
    made.create()
    yield made


@pytest.mark.parametrize(("store", "seed"), [("sqlite", 1), ("redis", 2)], indirect=["store"])
def test_kills_lose_double_and_reorder_nothing(
    shop: Shop, database: Database, store: str, tmp_path: Path, seed: int
) -> None:
    kill_and_judge(shop, database, store, tmp_path, seed=seed, kills=10)


@pytest.mark.campaign
@pytest.mark.parametrize(("store", "seed"), [("sqlite", 11), ("redis", 12)], indirect=["store"])
def test_hundreds_of_kills_lose_double_and_reorder_nothing(
    shop: Shop, database: Database, store: str, tmp_path: Path, seed: int
) -> None:
    kill_and_judge(shop, database, store, tmp_path, seed=seed, kills=110)


def kill_and_judge(shop: Shop, database: Database, store: str, folder: Path, *, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    running = Running(folder, database.dsn, database.name, store)
    simulator = Simulator(shop, rate=400, seed=seed)
    simulator.start()
    met_work = 0
    try:
        for _ in range(kills):
            running.start()
            if rng.random() < 0.8:
                # Most kills meet a process at work; the rest comes at any moment of its start.
                running.wait_until(lambda: bool(running.appended()), f"seed {seed}: starting")
                time.sleep(rng.uniform(0.0, 0.4))
            else:
                time.sleep(rng.uniform(0.1, 1.0))
            met_work += bool(running.appended())
            running.kill()
    finally:
        simulator.stop()
    assert simulator.failure is None
    assert met_work >= kills // 2, f"seed {seed}: only {met_work} of {kills} kills met a process at work"
    running.start()
    try:
        (found,) = database.execute("select pg_current_wal_flush_lsn()::text")
        committed = parse_lsn(str(found[0]))
        running.wait_until(lambda: has_passed(running.client, committed), f"seed {seed}: catching up")
        fold = asyncio.run(folded(running.config, seed))
        for table in SHOP_TABLES:
            assert fold.rows(table) == server_rows(database.dsn, table), f"seed {seed}: {table} differs"
        judge_features(running, database.dsn, seed)
    finally:
        running.terminate()


def has_passed(client: Client, committed: int) -> bool:
    status = client.status()
    return (
        status is not None
        and bool(status["sources"]["shop"]["position"])
        and parse_lsn(status["sources"]["shop"]["position"]) >= committed
        and status["consumers"]["features"]["lag_events"] == 0
    )


def judge_features(running: Running, dsn: str, seed: int) -> None:
    def log_time() -> int:
        status = running.client.status()
        assert status is not None
        return int(status["consumers"]["features"]["log_time_us"])

    def is_equal_at_one_moment() -> bool:
        before = log_time()
        wanted = recompute(dsn, before)
        served = {
            view: running.client.rows(view, list(range(1, max(wanted[view], default=0) + 2))) for view in FEATURES
        }
        if log_time() != before or any(rows is None for rows in served.values()):
            return False
        proof = compare(wanted, {view: rows or {} for view, rows in served.items()})
        assert proof.differing == 0, f"seed {seed}: {proof.examples}"
        return True

    running.wait_until(is_equal_at_one_moment, f"seed {seed}: a moment without a heartbeat")


async def folded(config: Path, seed: int) -> Fold:
    """The whole log, folded; a second transaction never begins before the first is whole, and positions only grow."""
    fold = Fold()
    log = await open_reader(load(config))
    try:
        offset = (await log.bounds(0)).first
        assert offset == 0
        last: PostgresPosition | None = None
        is_whole = True
        while True:
            batch = await log.read(0, offset)
            if not batch.events:
                return fold
            for event in batch.events:
                fold.event(event)
                if event.row is None or event.row.op == "read":
                    continue
                position = PostgresPosition.parse(event.position)
                assert last is None or position > last, f"seed {seed}: {position} after {last}"
                begins = last is None or position.commit_end_lsn != last.commit_end_lsn
                assert begins == is_whole, f"seed {seed}: the transaction before {position} is torn"
                last, is_whole = position, event.row.is_last
            offset = batch.next_offset
    finally:
        await log.close()
