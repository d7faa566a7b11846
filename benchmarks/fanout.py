"""Many subscribers of one log: deliveries/s while they catch up, and append to subscriber at a steady rate.

    python benchmarks/fanout.py [--events 100000] [--subscribers 50] [--rate 1000] [--json]

The server is a process of its own: the embedded log, and GET /v1/stream behind the server that headrace runs. The subscribers are this process; each
is a connection of its own whose bytes are searched for event lines, decoded by nobody but one of them. A line each:

    backlog   all open at once and read the same backlog from its beginning to its end
    filtered  the same with a where= on a property that lets every second event through, evaluated for each subscriber
    paced     lone appends at a steady rate while all follow the end: from the append's call to the subscriber's socket, the log's sync included

CPU is the server's, a delivery; of ``paced`` it holds the appends too.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from headrace.cdc.config import ServerConfig
from headrace.cdc.errors import RequestRefused
from headrace.cdc.event import CustomerEvent, RowPart
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.sources.base import Asked
from headrace.cdc.web import WebServer
from headrace.sinks.subscribe import Subscriptions
from rig.machine import about, cpu_s, machine, memory_mib

_DATA: Final = b"\ndata: {"
_SENT: Final = re.compile(rb'"sent":(\d+)')


class Line(msgspec.Struct, frozen=True):
    traffic: str
    subscribers: int
    events: int
    deliveries: int
    deliveries_per_s: float
    mib_per_s: float
    cpu_us_per_delivery: float
    server_peak_mib: float
    p50_ms: float | None = None
    p99_ms: float | None = None


def event(number: int) -> CustomerEvent:
    properties = b'{"id":%d,"customer_id":4242,"amount":"129.90","currency":"EUR","half":%d,"sent":%d}' % (
        number,
        number % 2,
        time.perf_counter_ns(),
    )
    at_us = time.time_ns() // 1000
    return CustomerEvent(
        f"{0x16B374D848 + number:016x}-{number}", "track", "orders inserted", str(number % 5_000), at_us, at_us, at_us,
        "shop", f"16/B374D848:{number}", properties,
        RowPart("public", "orders", "insert", b'{"id":123456}', None, (), 123456, number, False, 1),
    )  # fmt: skip


async def no_snapshot(source: str, tables: Sequence[str], where: str) -> Asked:
    raise RequestRefused("there is no source")


def serve(pipe: Connection, folder: str, count: int) -> None:
    """The server's process: says its port, then appends at the rate that it is told."""

    async def main() -> None:
        log = await SQLiteLog.open(Path(folder) / "fanout.log.db")
        events = [event(number) for number in range(count)]
        for start in range(0, count, 1_000):
            await log.append(events[start : start + 1_000], source="shop", state=b"")
        registry = CollectorRegistry()
        subscriptions = Subscriptions(log, registry)
        server = WebServer(
            ServerConfig(listen="127.0.0.1:0"),
            consumers=[subscriptions],
            sources=dict,
            log=log,
            registry=registry,
            troubles=dict,
            snapshot=no_snapshot,
        )
        await server.start()
        running = asyncio.create_task(subscriptions.run())
        pipe.send(int(server.url.rpartition(":")[2]))
        while True:
            rate, total = await asyncio.to_thread(pipe.recv)
            start_s = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(total):
                    if (early_s := start_s + number / rate - time.perf_counter()) > 0:
                        await asyncio.sleep(early_s)
                    group.create_task(log.append([event(count + number)], source="shop", state=b""))
            if running.done():
                await running

    uvloop.run(main())


class Reader:
    """One subscriber: counts event lines; ``is_timed`` also reads when each was sent."""

    def __init__(self, *, is_timed: bool = False) -> None:
        self.count: int = 0
        self.size: int = 0
        self.took_ns: list[int] = []
        self._is_timed = is_timed
        self._tail: bytes = b""

    async def read(self, port: int, query: str, wanted: int, opened: asyncio.Semaphore) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        writer.write(f"GET /v1/stream?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        opened.release()
        while self.count < wanted:
            chunk = await reader.read(1 << 20)
            if not chunk:
                raise RuntimeError(f"the server ended a stream after {self.count} events of {wanted}")
            self._take(chunk)
        writer.close()

    def _take(self, chunk: bytes) -> None:
        now_ns = time.perf_counter_ns()
        self.size += len(chunk)
        chunk = self._tail + chunk
        # Whole lines only: a mark or a number may be cut by the chunk's end.
        cut = chunk.rfind(b"\n")
        whole, self._tail = chunk[:cut], chunk[cut:]
        self.count += whole.count(_DATA)
        if self._is_timed:
            self.took_ns += [now_ns - int(found) for found in _SENT.findall(whole)]


async def catch_up(traffic: str, query: str, port: int, pid: int, subscribers: int, events: int, wanted: int) -> Line:
    readers = [Reader() for _ in range(subscribers)]
    opened = asyncio.Semaphore(0)
    used_s, began_s = cpu_s(pid), time.perf_counter()
    await asyncio.gather(*(each.read(port, query, wanted, opened) for each in readers))
    took_s, used_s = time.perf_counter() - began_s, cpu_s(pid) - used_s
    return line(traffic, readers, events, took_s, used_s, pid)


async def paced(port: int, pid: int, subscribers: int, rate: int, seconds: float, pipe: Connection) -> Line:
    total = int(rate * seconds)
    readers = [Reader(is_timed=number == subscribers // 2) for number in range(subscribers)]
    opened = asyncio.Semaphore(0)
    reading = asyncio.gather(*(each.read(port, "from=latest", total, opened) for each in readers))
    for _ in readers:
        await opened.acquire()
    used_s, began_s = cpu_s(pid), time.perf_counter()
    pipe.send((rate, total))
    await reading
    took_s, used_s = time.perf_counter() - began_s, cpu_s(pid) - used_s
    took_ns = next(each.took_ns for each in readers if each.took_ns)
    cuts = statistics.quantiles(took_ns, n=100)
    return line("paced", readers, total, took_s, used_s, pid, cuts[49] / 1e6, cuts[98] / 1e6)


def line(
    traffic: str,
    readers: list[Reader],
    events: int,
    took_s: float,
    used_s: float,
    pid: int,
    p50_ms: float | None = None,
    p99_ms: float | None = None,
) -> Line:
    deliveries = sum(each.count for each in readers)
    size = sum(each.size for each in readers)
    return Line(
        traffic, len(readers), events, deliveries, round(deliveries / took_s), round(size / took_s / (1 << 20), 1),
        round(used_s / deliveries * 1e6, 2), memory_mib(pid),
        None if p50_ms is None else round(p50_ms, 2), None if p99_ms is None else round(p99_ms, 2),
    )  # fmt: skip


async def measure(arguments: argparse.Namespace, port: int, pid: int, pipe: Connection) -> list[Line]:
    events, subscribers = arguments.events, arguments.subscribers
    half = quote('{"properties.half": 1}')
    return [
        await catch_up("backlog", "from=earliest", port, pid, subscribers, events, events),
        await catch_up("filtered", f"from=earliest&where={half}", port, pid, subscribers, events, events // 2),
        await paced(port, pid, subscribers, arguments.rate, arguments.seconds, pipe),
        await paced(port, pid, 1, arguments.rate, arguments.seconds, pipe),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Many subscribers of one log")
    parser.add_argument("--events", type=int, default=100_000, help="of the backlog (default: %(default)s)")
    parser.add_argument("--subscribers", type=int, default=50, help="connections (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=1_000, help="appends a second, paced (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each paced line (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory(prefix="fanout-") as folder:
        server = spawn.Process(target=serve, args=(theirs, folder, arguments.events), daemon=True)
        server.start()
        theirs.close()
        assert server.pid is not None
        try:
            lines = uvloop.run(measure(arguments, ours.recv(), server.pid, ours))
        finally:
            server.kill()
            server.join()
    if arguments.json:
        body = msgspec.json.encode({"about": host, "lines": lines})
        sys.stdout.write(msgspec.json.format(body).decode() + "\n")
        return
    print(about(host))
    print(f"{'traffic':9} {'readers':>7} {'events':>8} {'deliveries/s':>12} {'MiB/s':>7} {'CPU us':>7} {'peak MiB':>8}")
    for each in lines:
        print(
            f"{each.traffic:9} {each.subscribers:7} {each.events:8,} {each.deliveries_per_s:12,.0f} {each.mib_per_s:7.1f}"
            f" {each.cpu_us_per_delivery:7.2f} {each.server_peak_mib:8.1f}"
            + ("" if each.p50_ms is None else f"  p50 {each.p50_ms} ms, p99 {each.p99_ms} ms")
        )


if __name__ == "__main__":
    main()
