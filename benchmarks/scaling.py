"""What grows with the number of tables, of sinks, of entities, and with the length of the log: each line should be flat, or linear.

    python benchmarks/scaling.py [--what tables sinks log entities] [--scale 1.0] [--json]

    tables     a backlog of 300,000 rows in transactions of 100, spread evenly over 1, 100 and 1,000 tables, drained from a throwaway Postgres into the
               durable log by ``headrace run``: rows a second and CPU a row, from the first row to the last
    sinks      50,000 events from one log to 1, 10 and 50 destinations at once, each of which takes 5 ms a request of up to 100 events (they sleep in
               this process): deliveries a second and CPU each, memory
    log        100,000 events of about 230 bytes appended in batches of 500, and 100,000 read from the middle, in logs that hold 0, 2 and 8 million
               already; and how long the log takes to open
    entities   whole_line.py's line into Redis, with 10,000, 100,000 and 1,000,000 customers of 1.2 events each at least: events a second, CPU
               an event, and Redis's memory an entity

--scale makes all of it smaller or larger.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from redis import Redis

from delivery import CALLS, Sleeper, made_events
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.features.store.redis import RedisStore, RedisStoreConfig
from headrace.sinks.base import SinkSection
from headrace.sinks.deadletter import MemorySinkStore
from headrace.sinks.delivery import LogCursors
from headrace.sinks.dispatcher import Dispatcher
from rig.machine import about, collect_as_the_program, family_cpu_s, family_mib, machine, memory_mib
from rig.postgres import throwaway
from rig.process import Headrace
from store_write import redis_server
from whole_line import measure as whole_line

_LOAD = """
do $$
begin
    for turn in 0 .. {transactions} - 1 loop
        for n in turn * 100 .. turn * 100 + 99 loop
            execute format('insert into public.t%s values ($1, $2, $3, $4, now())', n % {tables})
              using n, n % 5000, (n % 100000)::numeric / 100, 'left at the door of number ' || n;
        end loop;
        commit;
    end loop;
end $$
"""


def tables(scale: float) -> list[dict[str, Any]]:
    rows = int(300_000 * scale) // 100 * 100
    lines: list[dict[str, Any]] = []
    for count in (1, 100, 1_000):
        with (
            throwaway(18, {"fsync": "off"}) as server,
            tempfile.TemporaryDirectory(prefix="scaling-") as folder,
        ):
            with psycopg.connect(server.dsn, autocommit=True) as admin:
                for number in range(count):
                    admin.execute(
                        f"create table public.t{number} (id bigint primary key, customer_id bigint not null, total numeric(12,2), note text, at timestamptz)".encode()
                    )
                admin.execute("create publication bench for all tables")
                admin.execute("select pg_create_logical_replication_slot('bench', 'pgoutput')")
                admin.execute(_LOAD.format(transactions=rows // 100, tables=count).encode())
            source = f'{{type: postgres, dsn: "{server.dsn}", tables: ["public.*"], slot: bench, publication: bench, snapshot: never}}'
            with Headrace(Path(folder), f"log: {{path: bench.log.db}}\nsources: {{shop: {source}}}") as headrace:
                headrace.until(lambda headrace=headrace: headrace.is_up() and headrace.rows() > 0)
                began_s, cpu, first = time.perf_counter(), family_cpu_s(headrace.pid), headrace.rows()
                headrace.until(lambda headrace=headrace: headrace.rows() >= rows)
                took_s, cpu = time.perf_counter() - began_s, family_cpu_s(headrace.pid) - cpu
                lines.append(
                    {
                        "tables": count, "rows": rows, "rows_per_s": round((rows - first) / took_s),
                        "cpu_us_per_row": round(cpu / (rows - first) * 1e6, 2), "peak_mib": family_mib(headrace.pid),
                    }
                )  # fmt: skip
    return lines


def sinks(scale: float) -> list[dict[str, Any]]:
    async def one(log: SQLiteLog, count: int, events: int) -> dict[str, Any]:
        section = SinkSection(concurrency=8)
        all_: list[Dispatcher] = []
        for number in range(count):
            name = f"s{count}-{number}"
            sink: Any = Sleeper(CALLS["run"], 0.005)
            all_.append(
                Dispatcher(name, sink, section, log=log, cursors=LogCursors(log, name), letters=MemorySinkStore())
            )
        began_s, cpu = time.perf_counter(), time.process_time()
        tasks = [asyncio.create_task(each.run()) for each in all_]
        while any(each.offsets != [events] for each in all_):  # noqa: ASYNC110  # the dispatchers are measured as they are
            await asyncio.sleep(0.01)
        took_s, cpu = time.perf_counter() - began_s, time.process_time() - cpu
        memory = memory_mib(os.getpid(), "VmRSS")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {
            "sinks": count, "deliveries": count * events, "deliveries_per_s": round(count * events / took_s),
            "cpu_us_per_delivery": round(cpu / count / events * 1e6, 2), "rss_mib": memory,
        }  # fmt: skip

    async def measured(folder: Path) -> list[dict[str, Any]]:
        events = made_events(int(50_000 * scale), "even")
        log = await SQLiteLog.open(folder / "sinks.log.db")
        for start in range(0, len(events), 1_000):
            await log.append(events[start : start + 1_000], source="shop", state=b"")
        try:
            return [await one(log, count, len(events)) for count in (1, 10, 50)]
        finally:
            await log.close()

    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        return uvloop.run(measured(Path(folder)))


def log_length(scale: float) -> list[dict[str, Any]]:
    async def measured(folder: Path) -> list[dict[str, Any]]:
        path = folder / "length.log.db"
        events = made_events(100_000, "even")
        batches = [events[start : start + 500] for start in range(0, len(events), 500)]
        lines: list[dict[str, Any]] = []
        held = 0
        for millions in (0, 2, 8):
            log = await SQLiteLog.open(path)
            while held < millions * 1_000_000 * scale:
                await asyncio.gather(*(log.append(batch, source="shop", state=b"") for batch in batches))
                held += len(events)
            await log.close()
            began_s = time.perf_counter()
            log = await SQLiteLog.open(path)
            open_s = time.perf_counter() - began_s
            before, began_s = held, time.perf_counter()
            for batch in batches:
                await log.append(batch, source="shop", state=b"")
            append_s = time.perf_counter() - began_s
            held += len(events)
            offset = held // 2
            end, began_s = min(held, offset + len(events)), time.perf_counter()
            while offset < end:
                offset = (await log.read(0, offset, max_bytes=1 << 19)).next_offset
            read_s = time.perf_counter() - began_s
            lines.append(
                {
                    "events_held": before, "file_mib": round(path.stat().st_size / (1 << 20)), "open_ms": round(open_s * 1000, 1),
                    "append_per_s": round(len(events) / append_s), "read_per_s": round((end - held // 2) / read_s),
                }
            )  # fmt: skip
            await log.close()
        return lines

    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        return uvloop.run(measured(Path(folder)))


def entities(scale: float) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for count in (10_000, 100_000, 1_000_000):
        customers = max(100, int(count * scale))
        events = max(int(120_000 * scale), customers * 2)
        with tempfile.TemporaryDirectory(prefix="scaling-") as folder, redis_server() as url:
            store = RedisStore.from_config(RedisStoreConfig(url=url), project="bench", folder=Path(folder))
            line = uvloop.run(whole_line("redis", store, Path(folder), events, customers))
            client = Redis.from_url(url)
            held = sum(1 for _ in client.scan_iter(match=b"*bench", count=10_000))
            used = client.info("memory")["used_memory_dataset"]
            lines.append(
                {
                    "customers": customers, "events": events, "events_per_s": line.apply_per_s, "cpu_us_per_event": line.apply_cpu_us,
                    "keys_of_entities": held, "redis_mib": round(used / (1 << 20)), "bytes_per_entity": round(used / max(1, held)),
                }
            )  # fmt: skip
    return lines


LINES: dict[str, Callable[[float], list[dict[str, Any]]]] = {
    "tables": tables,
    "sinks": sinks,
    "log": log_length,
    "entities": entities,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What grows with tables, sinks, entities and the log's length")
    parser.add_argument("--what", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of rows (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine(scale=arguments.scale)
    collect_as_the_program()
    found = {name: LINES[name](arguments.scale) for name in arguments.what}
    if arguments.json:
        print(json.dumps({"about": host, "lines": found}, indent=2))
        return
    print(about(host))
    for name, lines in found.items():
        print(f"\n{name}: " + "  ".join(f"{column:>19}" for column in lines[0]))
        for line in lines:
            print(" " * (len(name) + 2) + "  ".join(f"{value:>19,}" for value in line.values()))


if __name__ == "__main__":
    sys.exit(main())
