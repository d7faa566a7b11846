"""Entity rows a second that the online stores take, and the client's CPU a row.

A row is 10 features (5 Int64, 5 Float64), one Int64 join key and 300 bytes of the engine's state. Each figure is the
median of several runs over 20,000 entities; every flush is one atomic write with its checkpoint. To compare: Feast's SDK
(write_to_online_store, features alone, Redis) wrote 311, 7,102 and 9,889 such rows a second at batches of 1, 100, 1,000.

    python benchmarks/store_write.py [--json] [--seconds 2] [--repeat 3] [--store sqlite|redis] [--redis-url URL]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, EntityWrite, OnlineStore, ViewWrite
from headrace.features.store.redis import RedisStore, RedisStoreConfig
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig

ENTITIES = 20_000
BATCHES = (1, 100, 1_000)
VIEW = ViewSpec(
    "clicks",
    (Field("customer_id", ValueType.INT64),),
    tuple(Field(f"f{n}", ValueType.INT64 if n < 5 else ValueType.FLOAT64) for n in range(10)),
    "spec",
)


def made_flushes(batch: int, seed: int) -> Iterator[ViewWrite]:
    """Endless flushes of random entities; the rows are made beforehand, so that making them isn't measured."""
    draw = random.Random(seed)
    rows = [
        EntityWrite(
            (draw.randrange(ENTITIES),),
            tuple(draw.randrange(100_000) if n < 5 else draw.random() * 1000 for n in range(10)),
            1_700_000_000_000_000 + number,
            draw.randbytes(300),
            1_700_000_000_000_000 + number if number % 4 == 0 else None,
        )
        for number in range(max(5_000, batch))
    ]
    offset = 0
    while True:
        for start in range(0, len(rows) - batch + 1, batch):
            offset += batch
            yield ViewWrite(VIEW, rows[start : start + batch], {}, Checkpoint("spec", "g", (offset,), offset))


async def run(store: OnlineStore, batch: int, seconds: float, seed: int) -> tuple[float, float]:
    """(rows a second, microseconds of this process's CPU a row), after a warm-up of a tenth."""
    await store.drop(VIEW)
    flushes = made_flushes(batch, seed)
    first = next(flushes)
    await store.write([first])
    await written(store, flushes, seconds / 10)
    wall, cpu = time.perf_counter(), time.process_time()
    count = await written(store, flushes, seconds) * batch
    return count / (time.perf_counter() - wall), (time.process_time() - cpu) / count * 1e6


async def written(store: OnlineStore, flushes: Iterator[ViewWrite], seconds: float) -> int:
    end = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < end:
        await store.write([next(flushes)])
        count += 1
    return count


@contextmanager
def redis_server() -> Iterator[str]:
    """A throwaway Redis without persistence."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise SystemExit("redis-server is not installed: give --redis-url, or --store sqlite")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                end = time.monotonic() + 10
                while True:
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        if time.monotonic() > end:
                            raise SystemExit("redis-server doesn't answer") from None
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


async def measure(kind: str, url: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        store: OnlineStore
        if kind == "sqlite":
            store = SQLiteStore.from_config(SQLiteStoreConfig(), project="bench", folder=Path(folder))
        else:
            store = RedisStore.from_config(RedisStoreConfig(url), project="bench", folder=Path(folder))
        await store.open()
        for batch in BATCHES:
            runs = [await run(store, batch, args.seconds, seed) for seed in range(args.repeat)]
            rates = sorted(rate for rate, _ in runs)
            results.append(
                {
                    "store": kind,
                    "batch": batch,
                    "rows_per_s": round(statistics.median(rates)),
                    "rows_per_s_spread": [round(rates[0]), round(rates[-1])],
                    "cpu_us_per_row": round(statistics.median(cpu for _, cpu in runs), 2),
                }
            )
        await store.drop(VIEW)
        await store.close()
    return results


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "python": platform.python_version(),
        "redis_py": redis.__version__,
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "commit": commit.stdout.strip() or None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each figure (default: %(default)s)")
    parser.add_argument("--store", choices=["sqlite", "redis"], action="append", help="only this one")
    parser.add_argument(
        "--redis-url", help="an existing server, whose project bench is overwritten; default: one is started"
    )
    args = parser.parse_args()
    about = machine()
    results: list[dict[str, Any]] = []
    for kind in args.store or ["sqlite", "redis"]:
        if kind == "redis" and args.redis_url is None:
            with redis_server() as url:
                results += asyncio.run(measure(kind, url, args))
        else:
            results += asyncio.run(measure(kind, args.redis_url or "", args))
    if args.json:
        print(json.dumps({"benchmark": "store_write", "machine": about, "results": results}, indent=2))
        return 0
    print(f"{'store':8}{'batch':>7}{'rows/s':>10}{'spread':>18}{'CPU us/row':>12}")
    for one in results:
        spread = "-".join(f"{rate:,}" for rate in one["rows_per_s_spread"])
        print(f"{one['store']:8}{one['batch']:7,}{one['rows_per_s']:10,}{spread:>18}{one['cpu_us_per_row']:12.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
