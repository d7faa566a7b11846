"""How fast the embedded log takes events, beside a bare write + fdatasync of the same bytes in the same run.

    python benchmarks/log_append.py [--seconds 2] [--folder DIR] [--json]

One line for each batch size (1, 100, 1,000 events) and number of appends under way (1, 8): events/s, p50 and p99 of one append (call
to durable), and microseconds of this process's CPU an append. ``raw`` writes the same encoded bytes to a plain file, one fdatasync for
each batch, in the same thread: the disk's own limit for one batch at a time. ``paced`` is 1,000 single appends a second, the shape of
a caught-up source. Events are about 230 bytes encoded. Compare ratios within one run; the disk decides the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop

from headrace.cdc.event import CustomerEvent, RowPart
from headrace.cdc.log.codec import frame, pack
from headrace.cdc.log.sqlite import SQLiteLog

_STATE = b"x" * 120
_SIZES = (1, 100, 1000)
_PACED_S = 0.001


class Line(msgspec.Struct, frozen=True):
    what: str
    batch: int
    under_way: int
    events_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_append: float


def made_events(count: int) -> list[CustomerEvent]:
    properties = b'{"id":123456,"customer_id":4242,"amount":"129.90","currency":"EUR","status":"paid"}'
    return [
        CustomerEvent(
            f"{0x16B374D848 + number:016x}-{number}",
            "track",
            "orders inserted",
            str(number % 5000),
            1_790_000_000_000_000 + number,
            1_790_000_000_000_000 + number,
            1_790_000_000_002_000 + number,
            "shop",
            f"16/B374D848:{number}",
            properties,
            RowPart("public", "orders", "insert", b'{"id":123456}', None, (), 123456, number, False, 1),
        )
        for number in range(count)
    ]


def _line(what: str, batch: int, under_way: int, took_s: list[float], wall_s: float, cpu_s: float) -> Line:
    cuts = statistics.quantiles(took_s, n=100)
    return Line(
        what,
        batch,
        under_way,
        round(len(took_s) * batch / wall_s),
        round(cuts[49] * 1000, 3),
        round(cuts[98] * 1000, 3),
        round(cpu_s / len(took_s) * 1e6, 1),
    )


def raw(folder: Path, batch: int, seconds: float) -> Line:
    blob = frame(pack(made_events(batch)))
    path = folder / "raw.bin"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    took: list[float] = []
    cpu = time.process_time()
    began = at = time.perf_counter()
    while at - began < seconds:
        os.write(file, blob)
        os.fdatasync(file)
        now = time.perf_counter()
        took.append(now - at)
        at = now
    line = _line("raw", batch, 1, took, at - began, time.process_time() - cpu)
    os.close(file)
    path.unlink()
    return line


async def appends(folder: Path, batch: int, under_way: int, seconds: float) -> Line:
    log = await SQLiteLog.open(folder / "bench.log.db")
    events = made_events(batch)
    took: list[float] = []

    async def one_after_another(until: float) -> None:
        while (before := time.perf_counter()) < until:
            await log.append(events, source="shop", state=_STATE)
            took.append(time.perf_counter() - before)

    async with asyncio.TaskGroup() as warm_up:
        warm_up.create_task(one_after_another(time.perf_counter() + seconds / 4))
    took.clear()
    cpu = time.process_time()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(under_way):
            group.create_task(one_after_another(began + seconds))
    line = _line("log", batch, under_way, took, time.perf_counter() - began, time.process_time() - cpu)
    await log.close()
    _remove(folder)
    return line


async def paced(folder: Path, seconds: float) -> Line:
    """Single appends at their times, late ones at once: what a caller waits includes the queue it stands in."""
    log = await SQLiteLog.open(folder / "bench.log.db")
    events = made_events(1)
    took: list[float] = []

    async def one(due: float) -> None:
        await log.append(events, source="shop", state=_STATE)
        took.append(time.perf_counter() - due)

    cpu = time.process_time()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds / _PACED_S)):
            due = began + number * _PACED_S
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            group.create_task(one(due))
    line = _line("paced", 1, 0, took, time.perf_counter() - began, time.process_time() - cpu)
    await log.close()
    _remove(folder)
    return line


def _remove(folder: Path) -> None:
    for file in folder.glob("bench.log.db*"):
        file.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description="Appends to the embedded log against the bare disk")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each line (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure (default: here)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="log-append-") as name:
        folder = Path(name)
        for batch in _SIZES:
            lines.append(raw(folder, batch, arguments.seconds))
            lines += [uvloop.run(appends(folder, batch, under_way, arguments.seconds)) for under_way in (1, 8)]
        lines.append(uvloop.run(paced(folder, arguments.seconds * 2)))
    if arguments.json:
        about = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
            "python": sys.version.split()[0],
            "sqlite": sqlite3.sqlite_version,
            "lines": lines,
        }
        print(msgspec.json.format(msgspec.json.encode(about)).decode())
        return
    print(f"{'':6} {'batch':>6} {'under way':>9} {'events/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>8}")
    for one in lines:
        print(
            f"{one.what:6} {one.batch:6,} {one.under_way or '':>9} {one.events_per_s:11,.0f}"
            f" {one.p50_ms:8.3f} {one.p99_ms:8.3f} {one.cpu_us_per_append:8.1f}"
        )


if __name__ == "__main__":
    main()
