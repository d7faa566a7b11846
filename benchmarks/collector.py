"""How many requests and events a second the collector takes, durably, and how soon a lone request is answered.

    python benchmarks/collector.py [--seconds 10] [--rounds 3] [--connections 64] [--folder DIR] [--json]

``headrace run`` with a source of type http and the embedded log, pinned to one core; the clients on another, in a process of their own. A
request holds 1 event of about 0.9 KB or 100 of them, each with a message id that never came before; its answer comes after the sync to
disk. ``lone`` is one connection that sends one event every 10 ms. ``bare`` is aiohttp that decodes the JSON and keeps nothing, in the same
run: ratios to it, and CPU an event, tell more than rates, which belong to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from headrace.cdc.demo.embedded import free_port
from rig.machine import about, cpu_s, machine, memory_mib

_HERE = Path(__file__).resolve().parent
_WARM_UP_S = 1.0
_DEADLINE_S = 30.0
LINES = {
    # connections, events a request, seconds between requests
    "bare, 1 event": (None, 1, 0.0),
    "1 event": (None, 1, 0.0),
    "bare, 100 events": (None, 100, 0.0),
    "100 events": (None, 100, 0.0),
    "lone": (1, 1, 0.01),
}


class Server:
    """A process that listens on a free port, alone on a core where there are two."""

    def __init__(self, folder: Path, *, is_bare: bool) -> None:
        self.port = free_port()
        if is_bare:
            words = [sys.executable, "-m", "rig.bare_collector", str(self.port)]
        else:
            (folder / "headrace.yaml").write_text(
                "log: {path: bench.log.db}\n"
                "sources: {web: {type: http, write_keys: {k: website}}}\n"
                f'server: {{listen: "127.0.0.1:{self.port}"}}\n'
            )
            words = [str(Path(sys.executable).with_name("headrace")), "run", str(folder / "headrace.yaml")]
        with (folder / "run.log").open("ab") as log:
            self.process = subprocess.Popen(words, cwd=_HERE if is_bare else folder, stdout=log, stderr=log)
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(self.process.pid, {cores[0]})
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + _DEADLINE_S
        while True:
            try:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{self.port}/v1/track",
                    b'{"userId":"u","event":"e"}',
                    {"Authorization": "Basic azo="},
                )
                urllib.request.urlopen(request, timeout=5).read()
                return
            except OSError:
                if time.monotonic() > end:
                    raise SystemExit("the server doesn't answer") from None
                time.sleep(0.02)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    connections, events, pace_s = LINES[name]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="collector-") as folder:
        server = Server(Path(folder), is_bare=name.startswith("bare"))
        try:
            words = [connections or arguments.connections, events, arguments.seconds, _WARM_UP_S, pace_s]
            with subprocess.Popen(
                [sys.executable, "-m", "rig.poster", "127.0.0.1", str(server.port), *map(str, words)],
                cwd=_HERE,
                stdout=subprocess.PIPE,
                text=True,
            ) as poster:
                os.sched_setaffinity(poster.pid, {max(os.sched_getaffinity(0))})
                assert poster.stdout is not None
                assert poster.stdout.readline() == "begin\n"
                before_s = cpu_s(server.process.pid)
                found = json.loads(poster.stdout.readline())
                used_s = cpu_s(server.process.pid) - before_s
            if found["failure"]:
                raise SystemExit(f"{name}: a request was answered {found['failure']!r}")
            peak_mib = memory_mib(server.process.pid)
        finally:
            server.stop()
    count = found["requests"] * events
    return {
        "requests_per_s": round(found["requests"] / found["seconds"]),
        "events_per_s": round(count / found["seconds"]),
        "p50_ms": found["p50_ms"],
        "p99_ms": found["p99_ms"],
        "cpu_us_per_event": round(used_s / count * 1e6, 2),
        "peak_mib": peak_mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--folder", default=None, help="where logs are written (default: the temporary folder)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    about_it = machine()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.lines}
    for _ in range(arguments.rounds):
        for name in arguments.lines:
            runs[name].append(measure(name, arguments))
    lines = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]}
        | {"requests_per_s_of_each": [run["requests_per_s"] for run in found]}
        for name, found in runs.items()
    }
    about_it["load_after"] = round(os.getloadavg()[0], 2)
    if arguments.json:
        print(json.dumps({"machine": about_it, "lines": lines}, indent=1))
        return
    print(about(about_it))
    print(f"{'':18}{'requests/s':>11}{'events/s':>10}{'p50 ms':>8}{'p99 ms':>8}{'CPU us/event':>14}{'peak MiB':>10}")
    for name, line in lines.items():
        print(
            f"{name:18}{line['requests_per_s']:11,}{line['events_per_s']:10,}{line['p50_ms']:8.2f}{line['p99_ms']:8.2f}"
            f"{line['cpu_us_per_event']:14.1f}{line['peak_mib']:10.0f}"
        )


if __name__ == "__main__":
    main()
