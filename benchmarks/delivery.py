"""Ordered delivery to a destination that takes 5 ms a request: events/s, and this process's CPU an event.

    python benchmarks/delivery.py [--events 100000] [--answer-ms 5] [--json]

The log is the embedded one, filled before; the destination is in this process and only sleeps, so that what is measured is the way from
the log through lanes, requests and cursor, not an HTTP client. Each line is one traffic and one kind of request:

    even     5,000 customers, each as likely
    hot      half of all events are one customer's
    one      one event a request, as most webhooks
    batch    100 events a request, one of each customer
    run      100 events a request, runs of a customer among them (a destination that applies a request as a whole)

and ``http`` sends runs over real HTTP to a server in a process of its own. ``paced`` is 1,000 lone appends a second: from the append's call to the
request's begin, the log's sync included. ``order`` counts a customer's events that came out of order: always 0.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from headrace.cdc.event import CustomerEvent, RowPart
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.sinks.base import CallSpec, Item, SinkFinding, SinkSection
from headrace.sinks.deadletter import MemorySinkStore
from headrace.sinks.delivery import LogCursors
from headrace.sinks.dispatcher import Dispatcher
from headrace.sinks.http import HttpSink
from headrace.sinks.httpdefinition import BatchConfig, Destination
from headrace.sinks.verdict import DELIVERED, Answer
from rig.machine import about, machine

CALLS = {
    "one": CallSpec("one"),
    "batch": CallSpec("batch", max_events=100),
    "run": CallSpec("run", max_events=100, is_run=True),
}


class Line(msgspec.Struct, frozen=True):
    traffic: str
    request: str
    concurrency: int
    events: int
    events_per_s: float
    cpu_us_per_event: float
    requests: int
    order: int
    p50_ms: float | None = None
    p99_ms: float | None = None


class Sleeper:
    """Takes its time, and looks whether each customer's events come in order."""

    def __init__(self, call: CallSpec, answer_s: float) -> None:
        self.calls = (call,)
        self.last: dict[str, int] = {}
        self.wrong = 0
        self._answer_s = answer_s

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def check(self) -> list[SinkFinding]:
        return []

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item:
        return Item(offset, key, event, self.calls[0].name, "", event.properties, len(event.properties))

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        for item in items:
            if item.offset <= self.last.get(item.key, -1):
                self.wrong += 1
            self.last[item.key] = item.offset
        await asyncio.sleep(self._answer_s)
        return [DELIVERED] * len(items)


def made_events(count: int, traffic: str) -> list[CustomerEvent]:
    chance = random.Random(7)
    properties = b'{"id":123456,"customer_id":4242,"amount":"129.90","currency":"EUR","status":"paid"}'
    at_us = time.time_ns() // 1000
    return [
        CustomerEvent(
            f"{0x16B374D848 + number:016x}-{number}", "track", "orders inserted",
            "hot" if traffic == "hot" and chance.random() < 0.5 else str(chance.randrange(5_000)),
            at_us, at_us, at_us, "shop", f"16/B374D848:{number}", properties,
            RowPart("public", "orders", "insert", b'{"id":123456}', None, (), 123456, number, False, 1),
        )
        for number in range(count)
    ]  # fmt: skip


async def filled(path: Path, events: Sequence[CustomerEvent]) -> SQLiteLog:
    log = await SQLiteLog.open(path)
    for start in range(0, len(events), 1_000):
        await log.append(events[start : start + 1_000], source="shop", state=b"")
    return log


async def deliver(log: SQLiteLog, sink: Any, name: str, count: int, concurrency: int) -> tuple[float, float, int]:
    """Wall and CPU seconds, requests."""
    section = SinkSection(concurrency=concurrency)
    work = Dispatcher(name, sink, section, log=log, cursors=LogCursors(log, name), letters=MemorySinkStore())
    cpu_s, began_s = time.process_time(), time.perf_counter()
    running = asyncio.create_task(work.run())
    while work.offsets != [count]:
        if running.done():
            await running
        await asyncio.sleep(0.002)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return took_s, cpu_s, work.numbers.calls


async def in_process(log: SQLiteLog, traffic: str, request: str, count: int, concurrency: int, answer_s: float) -> Line:
    sink = Sleeper(CALLS[request], answer_s)
    took_s, cpu_s, requests = await deliver(log, sink, f"{traffic}-{request}", count, concurrency)
    return Line(
        traffic, request, concurrency, count, round(count / took_s), round(cpu_s / count * 1e6, 2), requests, sink.wrong
    )


def serve(pipe: Connection, answer_s: float) -> None:
    """A server that answers 200 after a while, in a process of its own."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(answer_s)
        return web.Response()

    async def main() -> None:
        application = web.Application(client_max_size=1 << 26)
        application.router.add_post("/", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    uvloop.run(main())


async def over_http(log: SQLiteLog, traffic: str, port: int, count: int, concurrency: int) -> Line:
    destination = Destination(url=f"http://127.0.0.1:{port}/", batch=BatchConfig(max_events=100, is_atomic=True))
    sink = HttpSink(destination, concurrency=concurrency)
    took_s, cpu_s, requests = await deliver(log, sink, f"{traffic}-http", count, concurrency)
    return Line(
        traffic, "http run", concurrency, count, round(count / took_s), round(cpu_s / count * 1e6, 2), requests, 0
    )


async def paced(folder: Path, seconds: float, answer_s: float) -> Line:
    log = await SQLiteLog.open(folder / "paced.log.db")
    began: dict[int, float] = {}
    took: list[float] = []

    class Timed(Sleeper):
        async def send(self, call: str, items: Sequence[Item]) -> Answer:
            now_s = time.perf_counter()
            took.extend(now_s - began[item.offset] for item in items)
            return await super().send(call, items)

    sink = Timed(CALLS["one"], answer_s)
    work = Dispatcher("paced", sink, SinkSection(concurrency=64), log=log, cursors=LogCursors(log, "paced"), letters=MemorySinkStore())  # fmt: skip
    running = asyncio.create_task(work.run())
    events = made_events(int(seconds * 1_000), "even")
    cpu_s, start_s = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, event in enumerate(events):
            if (early_s := start_s + number / 1_000 - time.perf_counter()) > 0:
                await asyncio.sleep(early_s)
            began[number] = time.perf_counter()
            group.create_task(log.append([event], source="shop", state=b""))
    while work.offsets != [len(events)]:  # noqa: ASYNC110  # the dispatcher is measured as it is
        await asyncio.sleep(0.002)
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await log.close()
    cuts = statistics.quantiles(took, n=100)
    count = len(events)
    return Line(
        "even", "paced", 64, count, round(count / wall_s), round(cpu_s / count * 1e6, 2), work.numbers.calls, sink.wrong,
        round(cuts[49] * 1_000, 2), round(cuts[98] * 1_000, 2),
    )  # fmt: skip


async def measure(count: int, answer_s: float, port: int, folder: Path) -> list[Line]:
    lines: list[Line] = []
    for traffic in ("even", "hot"):
        log = await filled(folder / f"{traffic}.log.db", made_events(count, traffic))
        few = count // 10 if traffic == "even" else count // 100
        small = await filled(folder / f"{traffic}-small.log.db", made_events(few, traffic))
        lines.append(await in_process(small, traffic, "one", few, 256, answer_s))
        for request in ("batch", "run"):
            if (traffic, request) != (
                "hot",
                "batch",
            ):  # one event of the hot customer a request: bound by 1 / answer time
                lines.append(await in_process(log, traffic, request, count, 32, answer_s))
        lines.append(await over_http(log, traffic, port, count, 32))
        await small.close()
        await log.close()
    lines.append(await paced(folder, 5.0, answer_s))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Ordered delivery to a slow destination")
    parser.add_argument("--events", type=int, default=100_000, help="of each line (default: %(default)s)")
    parser.add_argument("--answer-ms", type=float, default=5.0, help="what a request takes (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, arguments.answer_ms / 1000), daemon=True
    )
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="delivery-") as name:
            lines = uvloop.run(measure(arguments.events, arguments.answer_ms / 1000, ours.recv(), Path(name)))
    finally:
        server.kill()
    if arguments.json:
        sys.stdout.write(
            msgspec.json.format(
                msgspec.json.encode({"about": host, "answer_ms": arguments.answer_ms, "lines": lines})
            ).decode()
            + "\n"
        )
        return
    print(about(host))
    print(
        f"{'traffic':8} {'request':9} {'at once':>7} {'events':>8} {'events/s':>9} {'CPU us':>7} {'requests':>8} {'order':>5}"
    )
    for line in lines:
        print(
            f"{line.traffic:8} {line.request:9} {line.concurrency:7} {line.events:8,} {line.events_per_s:9,.0f}"
            f" {line.cpu_us_per_event:7.1f} {line.requests:8,} {line.order:5}"
            + ("" if line.p50_ms is None else f"  p50 {line.p50_ms} ms, p99 {line.p99_ms} ms")
        )


if __name__ == "__main__":
    main()
