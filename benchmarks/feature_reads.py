"""Reading features: headrace's server, ``feast serve`` and the stock Feast SDK, on the same rows in the same Redis, in turn.

    python benchmarks/feature_reads.py [--rows 10000] [--requests 100] [--rounds 3] [--store redis|sqlite] [--json]

The grid of feast-benchmarks: 10,000 entities, 250 Int64 features in 5 views, requests for 1 to 100 entities and 50 to 250 features. headrace computes and writes the
rows itself, out of events that it was sent; ``headrace features apply`` registers the views. Then one client on one kept connection asks each of them in turn, another random
batch each time, and holds the answers against each other. Feast's server runs as it comes: one uvicorn worker. The SDK runs in this process: no HTTP in it.
CPU: of the server's process (the SDK: of this one) for each request; Redis's own isn't in it.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cdc.demo.embedded import free_port
from rig.machine import about, cpu_s, family_mib, machine, memory_mib
from rig.process import Headrace
from store_write import redis_server

VIEWS, FEATURES = 5, 50
GRID: Final = [(1, 10), (1, 50), (1, 250), (10, 50), (10, 250), (100, 10), (100, 50), (100, 250)]
_BATCH = 20
_READY_S = 120.0

Ask = Callable[[list[str], list[int]], dict[str, Any]]


class Line(msgspec.Struct, frozen=True):
    """p50, p99: ms of a request; cpu_ms: of a request."""

    reader: str
    entities: int
    features: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float


def definitions() -> str:
    lines = ["from headrace.features import *", 'customer = Entity("customer", join_keys={"customer_id": Int64})']
    for view in range(VIEWS):
        features = ", ".join(f'latest("f{view}_{place}", Int64)' for place in range(FEATURES))
        lines.append(
            f'v{view} = FeatureView("v{view}", entity=customer, source=Events("Scored"), entity_key={{"customer_id": "event.user_id"}}, features=[{features}])'
        )
    return "\n".join(lines)


def fill(port: int, rows: int) -> None:
    """One event a customer, with all features' values."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    draw = random.Random(1)
    names = [f"f{view}_{place}" for view in range(VIEWS) for place in range(FEATURES)]
    for start in range(0, rows, _BATCH):
        calls = [
            {
                "type": "track", "event": "Scored", "userId": str(number), "messageId": f"m{number}",
                "properties": {name: draw.randrange(1 << 40) for name in names},
            }
            for number in range(start, min(start + _BATCH, rows))
        ]  # fmt: skip
        connection.request("POST", "/v1/batch?writeKey=bench", msgspec.json.encode({"batch": calls}))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
    connection.close()


def over_http(port: int) -> Ask:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(features: list[str], customers: list[int]) -> dict[str, Any]:
        body = msgspec.json.encode({"features": features, "entities": {"customer_id": customers}})
        while True:
            try:
                connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                break
            except (
                http.client.RemoteDisconnected,
                ConnectionError,
            ):  # Feast's server replaces its worker every thousand requests
                connection.close()
        data = answer.read()
        assert answer.status == 200, data[:500]
        return dict(msgspec.json.decode(data))

    return ask


@contextlib.contextmanager
def feast_serve(folder: Path) -> Iterator[tuple[int, int]]:
    """(port, pid) of ``feast serve`` in a folder with feature_store.yaml."""
    port = free_port()
    command = [Path(sys.executable).with_name("feast"), "serve", "-h", "127.0.0.1", "-p", str(port), "--no-access-log"]
    with (folder / "feast.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env={**os.environ, "FEAST_USAGE": "False"}
        )
    try:
        end = time.monotonic() + _READY_S
        while True:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"feast serve isn't there\n{(folder / 'feast.log').read_text()[-2000:]}")
            time.sleep(0.1)  # a poll of another process: there is no event to wait on
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)


def all_cpu_s(pid: int) -> float:
    """Of a process, of its children, and of those that are gone: gunicorn answers in children that it replaces."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    gone = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_s(pid) + gone + sum(cpu_s(int(child)) for child in children)


def sdk(folder: Path) -> Ask:
    from feast import FeatureStore

    store = FeatureStore(str(folder))

    def ask(features: list[str], customers: list[int]) -> dict[str, Any]:
        rows = [{"customer_id": customer} for customer in customers]
        return dict(store.get_online_features(features=features, entity_rows=rows).to_dict())

    return ask


def values_of(answer: dict[str, Any]) -> dict[str, list[Any]]:
    """Feature -> values, of any of the three."""
    if "results" not in answer:
        return answer
    names = answer["metadata"]["feature_names"]
    return {name: column["values"] for name, column in zip(names, answer["results"], strict=True)}


def measure(readers: dict[str, tuple[Ask, int]], rows: int, requests: int, rounds: int) -> list[Line]:
    lines: list[Line] = []
    every = [f"v{view}:f{view}_{place}" for view in range(VIEWS) for place in range(FEATURES)]
    for entities, features in GRID:
        took: dict[str, list[float]] = {name: [] for name in readers}
        used: dict[str, float] = dict.fromkeys(readers, 0.0)
        asked = every[:features]
        for turn in range(rounds + 1):  # the first one warms up
            for name, (ask, pid) in readers.items():
                draw = random.Random(turn)
                before = all_cpu_s(pid)
                for _ in range(requests):
                    customers = [draw.randrange(rows) for _ in range(entities)]
                    begin = time.perf_counter()
                    ask(asked, customers)
                    if turn:
                        took[name].append(time.perf_counter() - begin)
                if turn:
                    used[name] += all_cpu_s(pid) - before
        draw = random.Random(7)
        customers = [draw.randrange(rows) for _ in range(entities)]
        first, *others = [values_of(ask(asked, customers)) for ask, _ in readers.values()]
        for other in others:
            assert other == first, "the readers' answers differ"
        assert None not in first[asked[0].partition(":")[2]]
        for name, times in took.items():
            cut = statistics.quantiles(times, n=100)
            cpu_ms = used[name] / len(times) * 1000
            lines.append(
                Line(name, entities, features, round(cut[49] * 1000, 2), round(cut[98] * 1000, 2), round(cpu_ms, 2))
            )
    return lines


def run(arguments: argparse.Namespace, folder: Path, store: str) -> tuple[list[Line], dict[str, float]]:
    (folder / "definitions.py").write_text(definitions())
    configuration = (
        f"processes: {arguments.processes}\nlog: {{path: bench.log.db}}\nsources: {{web: {{type: http}}}}\n"
        f"features: {{definitions: definitions.py, project: bench, store: {store}, feast: feature_store.yaml}}"
    )
    with Headrace(folder, configuration) as headrace:
        headrace.until(headrace.is_ready)
        fill(headrace.port, arguments.rows)
        last = over_http(headrace.port)
        headrace.until(lambda: values_of(last(["v4:f4_0"], [arguments.rows - 1]))["f4_0"] != [None])
        command = [Path(sys.executable).with_name("headrace"), "features", "apply", "headrace.yaml"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with feast_serve(folder) as (port, pid):
            readers = {
                "headrace": (over_http(headrace.port), headrace.pid),
                "feast serve": (over_http(port), pid),
                "feast SDK": (sdk(folder), os.getpid()),
            }
            lines = measure(readers, arguments.rows, arguments.requests, arguments.rounds)
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return lines, {
                "headrace": family_mib(headrace.pid),
                "feast serve": sum(memory_mib(int(each)) for each in (str(pid), *children)),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="Reading features, beside Feast's own server and SDK")
    parser.add_argument("--rows", type=int, default=10_000, help="entities (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=100, help="of each reader in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up (default: %(default)s)")
    parser.add_argument("--store", choices=["redis", "sqlite"], default="redis")
    parser.add_argument("--processes", type=int, default=1, help="of headrace (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    import feast

    host = machine(feast=feast.__version__, store=arguments.store)
    folder = Path(tempfile.mkdtemp(prefix="feature-reads-"))
    try:
        if arguments.store == "sqlite":
            lines, memory = run(arguments, folder, "{type: sqlite, path: online.db}")
        else:
            with redis_server() as url:
                lines, memory = run(arguments, folder, f'{{type: redis, url: "{url}"}}')
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json:
        print(json.dumps({"about": host, "lines": msgspec.to_builtins(lines), "peak_mib": memory}, indent=2))
        return
    print(about(host))
    print(f"peak memory: {', '.join(f'{name} {mib:.0f} MiB' for name, mib in memory.items())}")
    print(f"{'entities':>8} {'features':>8}  {'reader':12} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>8}")
    for each in lines:
        print(
            f"{each.entities:8} {each.features:8}  {each.reader:12} {each.p50_ms:8.2f} {each.p99_ms:8.2f} {each.cpu_ms:8.2f}"
        )


if __name__ == "__main__":
    sys.exit(main())
