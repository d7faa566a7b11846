"""A burst into the collector: ten times the usual rate for a minute, and whether every event is in the log afterwards, once.

    python benchmarks/burst.py [--rate 2000] [--times 10] [--seconds 60] [--events 20] [--folder DIR] [--json]

Open loop: requests fall due by the clock, 10 s at the rate, then the burst, then 10 s at the rate again; one that finds all connections busy waits, as in an SDK's queue,
and its wait counts. A request that is refused (429, 503) or cut is sent again as it was, after its Retry-After. Each holds ``--events`` events of about 0.9 KB. ``headrace run`` is pinned
to one core, the clients to the other. At the end the server is stopped and its log read: ids that were acknowledged and are missing, and ids that stand there twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import uvloop

from collector import Server
from headrace.cdc.log.sqlite import SQLiteLog
from rig.machine import about, cpu_s, machine, memory_mib
from rig.poster import EVENT

_AROUND_S: Final = 10.0
_ID: Final = b"@@@@@@@@"


class Request:
    """One batch: the bytes to send, its events' numbers, and when it fell due."""

    __slots__ = ("data", "due_s", "phase")

    def __init__(self, first: int, count: int, due_s: float, phase: str) -> None:
        events = b",".join([EVENT.replace(_ID, b"%08x" % (first + place)) for place in range(count)])
        body = b'{"batch":[%b],"sentAt":"2026-11-26T18:10:11.000Z"}' % events
        self.data = (
            b"POST /v1/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAuthorization: Basic azo=\r\n"
            b"Content-Length: %d\r\n\r\n%b"
        ) % (len(body), body)
        self.due_s = due_s
        self.phase = phase


class Clients:
    """Connections that share one queue of due requests."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.queue: deque[Request] = deque()
        self.more = asyncio.Condition()
        self.took_s: dict[str, list[float]] = {"before": [], "burst": [], "after": []}
        self.refused = self.cut = 0
        self.longest = 0
        self.burst_done_s = 0.0
        self.is_over = False

    async def work(self) -> None:
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while True:
            async with self.more:
                while not self.queue:
                    if self.is_over:
                        return
                    await self.more.wait()
                request = self.queue.popleft()
            while True:
                try:
                    if writer is None or reader is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.write(request.data)
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    await reader.readexactly(int(_field(head, b"content-length") or 0))
                except (OSError, asyncio.IncompleteReadError):
                    self.cut += 1
                    reader = writer = None
                    await asyncio.sleep(0.1)
                    continue
                if head.startswith(b"http/1.1 200"):
                    now_s = time.perf_counter()
                    self.took_s[request.phase].append(now_s - request.due_s)
                    if request.phase == "burst":
                        self.burst_done_s = now_s
                    break
                self.refused += 1
                await asyncio.sleep(float(_field(head, b"retry-after") or 1))

    async def offer(self, rate: float, seconds: float, events: int, first: int, phase: str) -> int:
        """Requests of this phase, as they fall due; how many events they hold."""
        count = int(rate * seconds / events)
        begin_s = time.perf_counter()
        number = 0
        while number < count:
            due = min(count, int((time.perf_counter() - begin_s) * rate / events) + 1)
            some = [
                Request(first + each * events, events, begin_s + each * events / rate, phase)
                for each in range(number, due)
            ]
            number = max(number, due)
            if some:
                async with self.more:
                    self.queue.extend(some)
                    self.longest = max(self.longest, len(self.queue))
                    self.more.notify(len(some))
            await asyncio.sleep(0.005)
        return count * events


def _field(head: bytes, name: bytes) -> bytes | None:
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return rest.partition(b"\r\n")[0].strip() if found else None


async def run(arguments: argparse.Namespace, port: int) -> tuple[int, float, Clients]:
    """Events sent, seconds from the burst's end until its last answer, the clients."""
    clients = Clients(port)
    workers = [asyncio.create_task(clients.work()) for _ in range(arguments.connections)]
    sent = await clients.offer(arguments.rate, _AROUND_S, arguments.events, 0, "before")
    sent += await clients.offer(arguments.rate * arguments.times, arguments.seconds, arguments.events, sent, "burst")
    ended_s = time.perf_counter()
    sent += await clients.offer(arguments.rate, _AROUND_S, arguments.events, sent, "after")
    async with clients.more:
        clients.is_over = True
        clients.more.notify_all()
    await asyncio.gather(*workers)
    return sent, max(0.0, clients.burst_done_s - ended_s), clients


async def count_ids(path: Path, sent: int) -> tuple[int, int]:
    """Ids missing from the log, ids that stand there twice."""
    log = await SQLiteLog.open(path)
    seen = bytearray(sent)
    twice = offset = 0
    while (batch := await log.read(0, offset, max_bytes=4 << 20)).events:
        for event in batch.events:
            if event.sdk is not None and event.name == "Product Viewed":
                number = int((event.sdk.message_id or "")[:8], 16)
                twice += seen[number]
                seen[number] = 1
        offset = batch.next_offset
    await log.close()
    return sent - sum(seen), twice


def _ms(took_s: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(took_s, n=100)
    return {"p50_ms": round(cuts[49] * 1e3, 1), "p99_ms": round(cuts[98] * 1e3, 1), "max_ms": round(max(took_s) * 1e3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="A burst into the collector")
    parser.add_argument("--rate", type=float, default=2_000.0, help="events a second (default: %(default)s)")
    parser.add_argument("--times", type=float, default=10.0, help="of the rate, in the burst (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the burst (default: %(default)s)")
    parser.add_argument("--events", type=int, default=20, help="in a request (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--folder", default=None, help="where the log is written (default: the temporary folder)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="burst-") as name:
        server = Server(Path(name), is_bare=False)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        try:
            used_s = cpu_s(server.process.pid)
            sent, drained_s, clients = uvloop.run(run(arguments, server.port))
            used_s = cpu_s(server.process.pid) - used_s
            peak_mib = memory_mib(server.process.pid)
        finally:
            server.stop()
        missing, twice = uvloop.run(count_ids(Path(name) / "bench.log.db", sent))
    found: dict[str, Any] = {
        "sent_events": sent,
        "missing": missing,
        "twice": twice,
        "refused_requests": clients.refused,
        "cut_requests": clients.cut,
        "longest_queue_requests": clients.longest,
        "burst_drained_s": round(drained_s, 2),
        "cpu_us_per_event": round(used_s / sent * 1e6, 1),
        "peak_mib": peak_mib,
        **{phase: _ms(took_s) for phase, took_s in clients.took_s.items()},
    }
    if arguments.json:
        print(json.dumps({"about": host, **found}, indent=1))
    else:
        print(about(host))
        for field, value in found.items():
            print(f"{field:24} {value}")
    if missing or twice:
        raise SystemExit("events are missing, or there twice")


if __name__ == "__main__":
    sys.exit(main())
