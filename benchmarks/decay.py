"""Entities whose windows empty at the same moment: how long their rows take, what a fresh event waits meanwhile, and what an entity costs.

    python benchmarks/decay.py [--entities 20000] [--store sqlite redis] [--json]

One row each of so many customers, all of the same second; 10 features over 3 windows (1m, 1h, 1d). Then log time passes the minute's boundary,
and every row must be written anew. A lag is from the append that moves log time to the write of the row. Meanwhile an order of another customer
comes each 10 ms; fresh: from its append to the write of its row. Bytes: what the store's memory (Redis) or file (SQLite) grew by, an entity, features, state
and one source row in it. The log is in memory, the engine is headrace's own, the Redis is started here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import redis
import uvloop
from prometheus_client import CollectorRegistry

from headrace.cdc.event import CustomerEvent, RowPart
from headrace.cdc.log.memory import MemoryLog
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.store.base import OnlineStore, ViewWrite
from headrace.features.store.redis import RedisStore, RedisStoreConfig
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig
from rig.machine import about, collect_as_the_program, machine
from store_write import redis_server

START_US = 1_700_000_000_000_000
MINUTE_US = 60_000_000
FRESH = 1_000_000_000
"""Customers from here on are those of fresh orders."""

DEFINITIONS = """
from headrace.features import *
customer = Entity("customer", join_keys={"customer_id": Int64})
over = ["1m", "1h", "1d"]
orders = FeatureView("orders", entity=customer, source=Table("public.orders"), event_time="created_at", features=[
    count(over=over, name="n"), sum_("total", Float64, over=over, name="total"), mean("total", over=over, name="mean"), latest("status"),
])
"""
"""10 features: three over three windows, and one without."""


class Line(msgspec.Struct, frozen=True):
    store: str
    entities: int
    decay_s: float
    decay_us_per_entity: float
    lag_p50_ms: float
    lag_p99_ms: float
    fresh_p50_ms: float
    fresh_p99_ms: float
    bytes_per_entity: int


def order(number: int, customer: int, at_us: int) -> CustomerEvent:
    seconds = at_us // 1_000_000
    row = {
        "id": number, "customer_id": customer, "total": 9.9, "status": "paid",
        "created_at": time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime(seconds)),
    }  # fmt: skip
    key = msgspec.json.encode({"id": number})
    part = RowPart("public", "orders", "insert", key, None, (), number, 0, True, 1)
    return CustomerEvent(
        str(number), "track", "orders inserted", str(customer), at_us, at_us, at_us, "shop", str(number),
        msgspec.json.encode(row), part,
    )  # fmt: skip


class Watch:
    """The store's writes by entity, with the time at which each was durable."""

    def __init__(self, store: Any) -> None:
        self.done_s: dict[int, float] = {}
        self.old = 0
        """Of the entities that are due, how many are done."""
        write = store.write

        async def watched(writes: Sequence[ViewWrite]) -> None:
            await write(writes)
            now_s = time.perf_counter()
            for each in writes:
                for entity in each.entities:
                    customer = entity.key[0]
                    assert isinstance(customer, int)
                    self.old += customer < FRESH and customer not in self.done_s
                    self.done_s[customer] = now_s

        store.write = watched


async def reached(claim: Any) -> None:
    while not claim():  # noqa: ASYNC110 - the engine is measured as it is
        await asyncio.sleep(0.002)


async def measure(name: str, store: OnlineStore, entities: int, folder: Path, size: Any) -> Line:
    path = folder / "definitions.py"
    path.write_text(DEFINITIONS)
    log = MemoryLog()
    watch = Watch(store)
    collect_as_the_program()
    engine = FeatureEngine(load_definitions(path), lambda: store, log, CollectorRegistry())
    task = asyncio.create_task(engine.run())
    await reached(lambda: engine.status()["views"])
    before = size()
    for start in range(0, entities, 1_000):
        some = range(start, min(start + 1_000, entities))
        await log.append([order(number, number, START_US) for number in some], source="shop", state=b"")
    await reached(lambda: len(watch.done_s) == entities)
    grown = size() - before
    watch.done_s.clear()
    watch.old = 0
    fresh_s: dict[int, float] = {}
    boundary_us = START_US + 2 * MINUTE_US
    began_s = time.perf_counter()
    number = FRESH
    while watch.old < entities:
        fresh_s[number] = time.perf_counter()
        await log.append([order(number, number, boundary_us)], source="shop", state=b"")
        number += 1
        await asyncio.sleep(0.01)
        assert not task.done(), task.exception()
    await reached(lambda: fresh_s.keys() <= watch.done_s.keys())
    task.cancel()
    await asyncio.wait([task])
    lags = [done_s - began_s for customer, done_s in watch.done_s.items() if customer < FRESH]
    waits = [watch.done_s[customer] - at_s for customer, at_s in fresh_s.items()]
    lag, wait = statistics.quantiles(lags, n=100), statistics.quantiles(waits, n=100)
    return Line(
        name, entities, round(max(lags), 2), round(max(lags) / entities * 1e6, 1), round(lag[49] * 1e3), round(lag[98] * 1e3),
        round(wait[49] * 1e3, 1), round(wait[98] * 1e3, 1), grown // entities,
    )  # fmt: skip


def in_sqlite(entities: int) -> Line:
    with tempfile.TemporaryDirectory(prefix="decay-") as name:
        folder = Path(name)
        store = SQLiteStore.from_config(SQLiteStoreConfig(), project="shop", folder=folder)

        def size() -> int:
            reader = sqlite3.connect(folder / "online.db")
            pages, page = (reader.execute(f"pragma {name}").fetchone()[0] for name in ("page_count", "page_size"))
            reader.close()
            return int(pages) * int(page)

        return uvloop.run(measure("sqlite", store, entities, folder, size))


def in_redis(entities: int) -> Line:
    with tempfile.TemporaryDirectory(prefix="decay-") as name, redis_server() as url:
        store = RedisStore.from_config(RedisStoreConfig(url=url), project="shop", folder=Path(name))
        memory = cast("Any", redis.Redis).from_url(url).info
        return uvloop.run(
            measure("redis", store, entities, Path(name), lambda: int(memory("memory")["used_memory_dataset"]))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Many entities due at one moment")
    parser.add_argument("--entities", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--store", nargs="+", choices=["sqlite", "redis"], default=["sqlite", "redis"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine()
    lines = [(in_sqlite if store == "sqlite" else in_redis)(arguments.entities) for store in arguments.store]
    if arguments.json:
        print(json.dumps({"about": host, "lines": msgspec.to_builtins(lines)}, indent=2))
        return
    print(about(host))
    print(
        f"{'store':7} {'entities':>8} {'all s':>6} {'us each':>8} {'lag p50, p99 ms':>17} {'fresh p50, p99 ms':>19} {'bytes':>6}"
    )
    for each in lines:
        lag, fresh = f"{each.lag_p50_ms}, {each.lag_p99_ms}", f"{each.fresh_p50_ms}, {each.fresh_p99_ms}"
        print(
            f"{each.store:7} {each.entities:8,} {each.decay_s:6.2f} {each.decay_us_per_entity:8.1f} {lag:>17} {fresh:>19}"
            f" {each.bytes_per_entity:6,}"
        )


if __name__ == "__main__":
    sys.exit(main())
