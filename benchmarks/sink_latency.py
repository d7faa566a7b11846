"""From an event's commit in the log to an HTTP destination, at a steady rate; and what another destination's outage does to it.

    python benchmarks/sink_latency.py [--rate 5000] [--seconds 30] [--down 60] [--json]

``headrace run`` with the collector and two HTTP sinks, each with a server of its own in a process of its own. Events come by HTTP, open loop, 20 a request, of 2,000 customers,
each as likely. Three laps: both destinations up; the second one's port closed (``--down`` seconds, its backlog grows); it is back, from its first request (a breaker asks it again each 30 s
at most) until its backlog is worked off, while the first one goes on. A latency is from the event's commit time to its bytes being read by the destination, of the first destination in every lap. At the end each destination must have
every event, each customer's in order. A batch holds 100 events at most, of any customers, and waits for nothing (linger 0).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from headrace.cdc.demo.embedded import free_port
from rig.machine import about, family_cpu_s, family_mib, machine
from rig.process import Headrace

_CUSTOMERS = 2_000
_EVENTS = 20
_CONNECTIONS = 8


class Lap(msgspec.Struct, frozen=True):
    lap: str
    seconds: float
    events_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us_per_event: float
    backlog: int
    """Events the second destination lacks at the lap's end."""


class Sender:
    """Events at a rate, open loop: a request that finds all connections busy waits, and nothing is left out."""

    def __init__(self, port: int, rate: float) -> None:
        self.sent = 0
        self._port = port
        self._rate = rate
        self._draw = random.Random(1)
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()

    def _request(self) -> bytes:
        calls = [
            {
                "type": "track", "event": "Viewed", "userId": f"c{self._draw.randrange(_CUSTOMERS)}",
                "messageId": f"m{self.sent + place}", "properties": {"n": self.sent + place, "price": 18.99, "sku": "G-32"},
            }
            for place in range(_EVENTS)
        ]  # fmt: skip
        self.sent += _EVENTS
        body = msgspec.json.encode({"batch": calls})
        return (
            b"POST /v1/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Authorization: Basic YmVuY2g6\r\nContent-Length: %d\r\n\r\n%b"
        ) % (len(body), body)

    async def _work(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        while True:
            writer.write(await self._queue.get())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            self._queue.task_done()

    async def run(self, stop: asyncio.Event) -> None:
        workers = [asyncio.create_task(self._work()) for _ in range(_CONNECTIONS)]
        begin_s = time.perf_counter()
        while not stop.is_set():
            due = int((time.perf_counter() - begin_s) * self._rate)
            while self.sent < due:
                self._queue.put_nowait(self._request())
            await asyncio.sleep(0.002)
            assert not any(worker.done() for worker in workers)
        await self._queue.join()
        for worker in workers:
            worker.cancel()


@contextlib.contextmanager
def stamper(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "rig.stamper", str(port), str(folder / f"stamper-{port}.json")]
    process = subprocess.Popen(command, cwd=Path(__file__).parent)
    try:
        while True:
            with contextlib.suppress(OSError):
                ask(port)
                break
            time.sleep(0.02)  # a poll of another process: there is no event to wait on
        yield process
    finally:
        process.terminate()
        process.wait(30)


def ask(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/lap")
    told = msgspec.json.decode(connection.getresponse().read(), type=dict[str, Any])
    connection.close()
    return told


async def laps(
    arguments: argparse.Namespace, headrace: Headrace, ports: list[int], folder: Path, stack: contextlib.ExitStack
) -> list[Lap]:
    loop = asyncio.get_running_loop()
    sender, stop = Sender(headrace.port, arguments.rate), asyncio.Event()
    sending = asyncio.create_task(sender.run(stop))
    found: list[Lap] = []
    second = stack.enter_context(contextlib.ExitStack())
    second.enter_context(stamper(ports[1], folder))

    async def backlog() -> int:
        told = await asyncio.to_thread(ask, ports[1])
        return sender.sent - int(told["events"]) + int(told["doubled"])

    async def lap(name: str, seconds: float, is_up: bool) -> None:
        await asyncio.to_thread(ask, ports[0])
        cpu, began_s = family_cpu_s(headrace.pid), loop.time()
        if seconds:
            await asyncio.sleep(seconds)
        else:
            while await backlog() > arguments.rate / 10:  # noqa: ASYNC110  # another process: no event to wait on
                await asyncio.sleep(0.02)
        told, took_s = await asyncio.to_thread(ask, ports[0]), loop.time() - began_s
        used = family_cpu_s(headrace.pid) - cpu
        missing = await backlog() if is_up else sender.sent - sent_before + missing_before
        ms = statistics.quantiles(told["ms"], n=1000)
        count = len(told["ms"])
        found.append(
            Lap(
                name, round(took_s, 1), round(count / took_s), round(ms[499], 1), round(ms[989], 1), round(ms[998], 1),
                round(used / count * 1e6, 1), missing,
            )
        )  # fmt: skip

    missing_before = sent_before = 0
    await lap("both up", 3, is_up=True)
    found.clear()  # a warm-up
    await lap("both up", arguments.seconds, is_up=True)
    missing_before = await backlog()
    sent_before = sender.sent
    second.close()
    await lap("one down", arguments.down, is_up=False)
    second.enter_context(stamper(ports[1], folder))
    got = int((await asyncio.to_thread(ask, ports[1]))["events"])
    while int((await asyncio.to_thread(ask, ports[1]))["events"]) == got:  # noqa: ASYNC110  # as above
        await asyncio.sleep(0.02)
    await lap("it is back", 0, is_up=True)
    stop.set()
    await sending
    for port in ports:
        told = await asyncio.to_thread(ask, port)
        while told["events"] - told["doubled"] < sender.sent:
            await asyncio.sleep(0.1)
            told = await asyncio.to_thread(ask, port)
        assert told["disordered"] == 0, told
        print(
            f"destination {ports.index(port) + 1}: all {sender.sent} events, {told['doubled']} twice", file=sys.stderr
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="From commit to an HTTP destination, and another one's outage")
    parser.add_argument("--rate", type=float, default=5_000, help="events a second (default: %(default).0f)")
    parser.add_argument("--seconds", type=float, default=30, help="of the laps with both (default: %(default).0f)")
    parser.add_argument("--down", type=float, default=60, help="of the outage (default: %(default).0f)")
    parser.add_argument("--processes", type=int, default=1, help="of headrace (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine(rate=arguments.rate, processes=arguments.processes)
    ports = [free_port(), free_port()]
    sinks = ", ".join(
        f'd{number}: {{type: http, concurrency: 16, destination: {{url: "http://127.0.0.1:{port}/", batch: {{max_events: 100}},'
        ' actions: [{body: {n: "{properties.n}", key: "{key}", at: "{committed_us}"}}]}}'
        for number, port in enumerate(ports)
    )
    with tempfile.TemporaryDirectory(prefix="sink-latency-") as name, contextlib.ExitStack() as stack:
        stack.enter_context(stamper(ports[0], Path(name)))
        headrace = stack.enter_context(
            Headrace(
                Path(name),
                f"processes: {arguments.processes}\nlog: {{path: bench.log.db}}\nsources: {{web: {{type: http}}}}\nsinks: {{{sinks}}}",
            )
        )
        headrace.until(headrace.is_ready)
        found = uvloop.run(laps(arguments, headrace, ports, Path(name), stack))
        peak = family_mib(headrace.pid)
    if arguments.json:
        print(json.dumps({"about": host, "laps": msgspec.to_builtins(found), "peak_mib": peak}, indent=2))
        return
    print(about(host))
    print(f"peak memory {peak:.0f} MiB")
    print(f"{'lap':12} {'s':>6} {'events/s':>9} {'p50 ms':>7} {'p99 ms':>7} {'p99.9':>7} {'CPU us':>7} {'backlog':>9}")
    for each in found:
        print(
            f"{each.lap:12} {each.seconds:6.0f} {each.events_per_s:9,.0f} {each.p50_ms:7.1f} {each.p99_ms:7.1f} {each.p999_ms:7.1f}"
            f" {each.cpu_us_per_event:7.1f} {each.backlog:9,}"
        )


if __name__ == "__main__":
    sys.exit(main())
