"""The whole line behind the capture: row events into the log, out of it, through 10 windowed aggregates, into Redis or SQLite.

    python benchmarks/whole_line.py [--events 200000] [--entities 20000] [--store redis sqlite] [--uncompiled] [--json]

Row events of about 200 bytes, as the normaliser makes them of ``orders``: appended to the embedded log in batches of 500, each durable, and then applied by headrace's engine as fast as it
can, in this process. The two are timed one after the other: "append" is rows into the log, "apply" is log to store, "line" what one process could do of both together (1 / (1 / append +
1 / apply)). Two thirds inserts, one third updates of a row's status and total, which are taken back exactly. Time goes on by a millisecond an event. CPU: of this process, without Redis's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from rig.machine import about, collect_as_the_program, machine, use_uncompiled

if "--uncompiled" in sys.argv:
    use_uncompiled()

from prometheus_client import CollectorRegistry

from headrace.cdc.event import CustomerEvent, RowPart
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.store.base import OnlineStore
from headrace.features.store.redis import RedisStore, RedisStoreConfig
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig
from store_write import redis_server

START_US = 1_700_000_000_000_000
BATCH = 500
DEFINITIONS = """
from headrace.features import *
customer = Entity("customer", join_keys={"customer_id": Int64})
orders = FeatureView("orders", entity=customer, source=Table("public.orders"), event_time="created_at", features=[
    count(over=["1h", "1d", "7d"], name="n"), sum_("total", Float64, over=["1h", "1d", "7d"], name="total"),
    mean("total", over=["1h", "1d", "7d"], name="mean"), count(over="1d", where=col("status") == "paid", name="paid"),
])
"""
"""10 windowed aggregates."""


class Line(msgspec.Struct, frozen=True):
    store: str
    events: int
    entities: int
    append_per_s: float
    apply_per_s: float
    line_per_s: float
    append_cpu_us: float
    apply_cpu_us: float


def events(count: int, entities: int) -> list[CustomerEvent]:
    draw = random.Random(1)
    encode = msgspec.json.encode
    rows: list[dict[str, Any]] = []
    made: list[CustomerEvent] = []
    for number in range(count):
        at_us = START_US + number * 1000
        if number % 3 == 2:
            row = draw.choice(rows)
            row |= {"status": draw.choice(("open", "paid", "shipped")), "total": draw.randrange(100, 90_000) / 100}
            op = "update"
        else:
            row = {
                "id": number, "customer_id": draw.randrange(entities), "status": "open", "total": draw.randrange(100, 90_000) / 100,
                "note": "left at the door", "created_at": time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime(at_us // 1_000_000)),
            }  # fmt: skip
            rows.append(row)
            op = "insert"
        part = RowPart("public", "orders", op, encode({"id": row["id"]}), None, (), number, 0, True, 1)  # type: ignore[arg-type]  # one of Op's words
        event = CustomerEvent(
            f"shop-{number}", "track", f"orders {op}", str(row["customer_id"]), at_us, at_us, at_us, "shop", str(number),
            encode(row), part,
        )  # fmt: skip
        made.append(event)
    return made


async def measure(name: str, store: OnlineStore, folder: Path, count: int, entities: int) -> Line:
    definitions = folder / "definitions.py"
    definitions.write_text(DEFINITIONS)
    made = events(count, entities)
    log = await SQLiteLog.open(folder / "bench.log.db")
    collect_as_the_program()
    try:
        begin, cpu = time.perf_counter(), time.process_time()
        for start in range(0, count, BATCH):
            await log.append(made[start : start + BATCH], source="shop", state=b"")
        append_s, append_cpu = time.perf_counter() - begin, time.process_time() - cpu
        made.clear()
        engine = FeatureEngine(load_definitions(definitions), lambda: store, log, CollectorRegistry())
        begin, cpu = time.perf_counter(), time.process_time()
        task = asyncio.create_task(engine.run())
        while engine.status()["offset"] != [count]:  # the engine is measured as it is
            await asyncio.sleep(0.02)
            assert not task.done(), task.exception()
        apply_s, apply_cpu = time.perf_counter() - begin, time.process_time() - cpu
        task.cancel()
        await asyncio.wait([task])
    finally:
        await log.close()
    return Line(
        name, count, entities, round(count / append_s), round(count / apply_s), round(count / (append_s + apply_s)),
        round(append_cpu / count * 1e6, 1), round(apply_cpu / count * 1e6, 1),
    )  # fmt: skip


def run(kind: str, count: int, entities: int) -> Line:
    with tempfile.TemporaryDirectory(prefix="whole-line-") as name:
        folder = Path(name)
        if kind == "sqlite":
            store: OnlineStore = SQLiteStore.from_config(SQLiteStoreConfig(), project="bench", folder=folder)
            return uvloop.run(measure(kind, store, folder, count, entities))
        with redis_server() as url:
            store = RedisStore.from_config(RedisStoreConfig(url=url), project="bench", folder=folder)
            return uvloop.run(measure(kind, store, folder, count, entities))


def main() -> None:
    parser = argparse.ArgumentParser(description="Row to log to 10 windowed aggregates to store")
    parser.add_argument("--events", type=int, default=200_000, help="(default: %(default)s)")
    parser.add_argument("--entities", type=int, default=20_000, help="(default: %(default)s)")
    parser.add_argument("--store", nargs="+", choices=["redis", "sqlite"], default=["redis", "sqlite"])
    parser.add_argument("--uncompiled", action="store_true", help="the hot modules' .py files")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine(uncompiled=arguments.uncompiled)
    lines = [run(kind, arguments.events, arguments.entities) for kind in arguments.store]
    if arguments.json:
        print(json.dumps({"about": host, "lines": msgspec.to_builtins(lines)}, indent=2))
        return
    print(about(host))
    print(f"{'store':7} {'append/s':>9} {'apply/s':>9} {'line/s':>9} {'append CPU us':>14} {'apply CPU us':>13}")
    for each in lines:
        print(
            f"{each.store:7} {each.append_per_s:9,.0f} {each.apply_per_s:9,.0f} {each.line_per_s:9,.0f} {each.append_cpu_us:14.1f}"
            f" {each.apply_cpu_us:13.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
