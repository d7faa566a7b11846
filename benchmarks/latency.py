"""How soon a committed row is in the log, and its features are readable, at a steady rate; and what that costs.

    python benchmarks/latency.py [--rate 1000] [--seconds 60] [--line log sqlite redis feast] [--postgres 18] [--fsync on] [--json]

Each line is ``headrace run`` in a process of its own on a throwaway Postgres: ``log`` captures only, ``sqlite`` and ``redis`` also keep a
view of 5 features fresh, ``feast`` is ``redis`` read by the stock Feast SDK. Beside it run a writer (open loop: the load never waits for anybody), a subscriber of GET /v1/stream, and a
prober that polls the newest value of one customer who gets each tenth row. All share one clock.

    commit to event     server's commit time, until the subscriber has read the event's last byte. An event is pushed when it is
                        durable, so this holds commit to log, the push and the subscriber's own wake-up
    answer to event     the same, since COMMIT answered the writer: what a client notices; can be negative, because the walsender is told first
    commit to log       headrace's own histogram: server's commit time until durable, one sample a batch; upper bounds of its buckets
    commit to feature   server's commit time until the prober has seen the row's number in the store, in Feast's format; up to one poll late
    (own)               the freshness that headrace reports of itself, all rows

The server's commit time is taken before its WAL is synced, so a sync of the server's disk is part of the first and last. CPU and memory are those
of headrace's processes together with one subscriber attached, while the load runs, in percent of a core; idle: when it is over. ``start`` is the time from spawning
headrace on an existing log until a subscriber holds an event that was committed while it was down; median of several.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis

from headrace.cdc.demo.embedded import PostgresServer, free_port
from headrace.features.encoding import codec_of, redis_field
from headrace.features.spec import Field, ValueType, ViewSpec
from rig import workload
from rig.machine import about, family_cpu_s, family_mib, machine
from rig.postgres import throwaway, version
from rig.subscriber import ask, connect
from rig.writer import HOT_CUSTOMER
from store_write import redis_server

LINES = ("log", "sqlite", "redis", "feast")
_HERE = Path(__file__).resolve().parent
_HOT_EVERY = 10
_WARM_UP_S = 3.0
_POLL_PAUSE_US = 200
_SDK_PAUSE_US = 2000
"""A read of the SDK takes half a millisecond of CPU: without a pause it would take a core from everybody else."""

_DEADLINE_S = 30.0
_WRITING_S = 600.0
"""A subscriber of a long run has millions of lines to write down at its end."""

_PARTS = 20
"""Of a run, each with its own quantiles and memory: how steady it is."""

_PROJECT = "bench"
_VIEW = ViewSpec("customer_orders", (Field("customer_id", ValueType.INT64),), (Field("seq", ValueType.INT64),), "")

_DEFINITIONS = """
from headrace.features import Entity, FeatureView, Float64, Int64, Table, count, latest, sum_

customer = Entity("customer", join_keys={"customer_id": Int64})
customer_orders = FeatureView(
    "customer_orders",
    entity=customer,
    source=Table("public.orders"),
    event_time="placed_at",
    features=[
        count(over=["1m", "10m"], name="orders"),
        sum_("total", Float64, over=["1m", "10m"], name="spent"),
        latest("id", Int64, name="seq"),
    ],
)
"""


class Headrace:
    """``headrace run`` of one line, in a folder of its own."""

    def __init__(self, folder: Path, server: PostgresServer, line: str, store: str | None, processes: int) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        features = (
            f"features: {{definitions: bench_features.py, project: {_PROJECT}, store: {store}, feast: feature_store.yaml}}\n"
            if store
            else ""
        )
        (folder / "bench_features.py").write_text(_DEFINITIONS)
        (folder / "headrace.yaml").write_text(
            "log: {path: bench.log.db}\n"
            f'sources: {{shop: {{type: postgres, dsn: "{server.dsn}", tables: [{workload.TABLE}], slot: bench_{line},'
            f" publication: {workload.PUBLICATION}}}}}\n"
            f"events: {{{workload.TABLE}: {{key: customer_id, insert: Order Completed}}}}\n"
            f"processes: {processes}\n"
            f'{features}server: {{listen: "127.0.0.1:{self.port}"}}\n'
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        with (self.folder / "run.log").open("ab") as log:
            # Where Python may not keep compiled files, each start compiles all of its source again: that isn't what is measured.
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
            self._process = subprocess.Popen(
                [Path(sys.executable).with_name("headrace"), "run", "headrace.yaml"],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise SystemExit(f"headrace didn't stop\n{self.said()}") from None
        finally:
            self._process = None

    def get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            return None

    def said(self) -> str:
        return (self.folder / "run.log").read_text(errors="replace")[-2000:]


def until(done: Callable[[], bool], what: Callable[[], str]) -> None:
    end = time.monotonic() + _DEADLINE_S
    while not done():
        if time.monotonic() > end:
            raise SystemExit(what())
        time.sleep(0.02)


@contextlib.contextmanager
def helper(module: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of the rig's processes, told to end by closing its stdin."""
    with subprocess.Popen([sys.executable, "-m", module, *words], stdin=subprocess.PIPE, cwd=_HERE) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_WRITING_S)
            except subprocess.TimeoutExpired:
                process.kill()


def register(headrace: Headrace) -> None:
    """Make a Feast project beside headrace's configuration, with the view in its registry."""
    command = [Path(sys.executable).with_name("headrace"), "features", "apply", "headrace.yaml"]
    subprocess.run(command, cwd=headrace.folder, check=True, stdout=subprocess.DEVNULL)


def probe_words(folder: Path, line: str, redis_place: str) -> list[str]:
    if line == "feast":
        return ["feast", str(folder), f"{_VIEW.name}:seq", "customer_id", str(HOT_CUSTOMER), str(_SDK_PAUSE_US)]
    codec = codec_of(_VIEW)
    key = codec.encode_key((HOT_CUSTOMER,))
    pause = str(_POLL_PAUSE_US)
    if line == "sqlite":
        return ["sqlite", str(folder / "online.db"), f"{_PROJECT}_{_VIEW.name}", "seq", key.hex(), pause]
    return ["redis", redis_place, (key + _PROJECT.encode()).hex(), redis_field(_VIEW.name, "seq").hex(), "-", pause]


def measure(line: str, server: PostgresServer, arguments: argparse.Namespace, redis_place: str) -> dict[str, Any]:
    in_redis = f'{{type: redis, url: "redis://{redis_place}/0"}}'
    store = {"log": None, "sqlite": "{type: sqlite}", "redis": in_redis, "feast": in_redis}[line]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="latency-") as name:
        folder = Path(name).resolve()
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute(f"truncate {workload.TABLE}")
        if line in ("redis", "feast"):
            Redis.from_url(f"redis://{redis_place}/0").flushdb()
        headrace = Headrace(folder, server, line, store, arguments.processes)
        try:
            headrace.start()
            # Of several processes the first answers before the others run.
            until(lambda: headrace.get("/readyz") is not None, lambda: f"headrace isn't ready\n{headrace.said()}")
            if line == "feast":
                register(headrace)
            result = _loaded(headrace, server, arguments, line, redis_place)
            time.sleep(_WARM_UP_S)  # what the load left to do is done
            at, cpu = time.perf_counter(), family_cpu_s(headrace.pid)
            time.sleep(arguments.idle)  # what is measured is this very time
            result["idle_percent"] = round((family_cpu_s(headrace.pid) - cpu) / (time.perf_counter() - at) * 100, 2)
            end = json.loads(headrace.get("/v1/status") or b"{}")["log"]["ends"][0]
        finally:
            headrace.stop()
        result["start_s"] = _starts(headrace, server, end, arguments.starts)
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("select pg_drop_replication_slot(%s)", [f"bench_{line}"])
    return result


def _loaded(
    headrace: Headrace, server: PostgresServer, arguments: argparse.Namespace, line: str, redis_place: str
) -> dict[str, Any]:
    folder = headrace.folder
    seen_file, probed_file = folder / "seen.json", folder / "probed.json"
    with contextlib.ExitStack() as helpers:
        helpers.enter_context(helper("rig.subscriber", "127.0.0.1", str(headrace.port), "latest", str(seen_file)))
        if line != "log":
            helpers.enter_context(helper("rig.prober", *probe_words(folder, line, redis_place), str(probed_file)))
            until(probed_file.with_suffix(".ready").exists, lambda: "the prober doesn't begin")
        until(seen_file.with_suffix(".ready").exists, lambda: "the subscriber got no answer")
        begin = time.time() + 1.0
        load_s = _WARM_UP_S + arguments.seconds
        words = [server.dsn, "1", str(arguments.rate), str(load_s), str(begin), str(_HOT_EVERY), str(arguments.writers)]
        words.append(str(arguments.rows))
        with subprocess.Popen(
            [sys.executable, "-m", "rig.writer", *words], stdout=subprocess.PIPE, cwd=_HERE
        ) as writer:
            time.sleep(begin + _WARM_UP_S - time.time())
            at, cpu = time.perf_counter(), family_cpu_s(headrace.pid)
            rss: list[float] = []
            for part in range(1, _PARTS + 1):
                # To the end of this part of the run, which goes on by itself.
                time.sleep(max(0.0, at + (arguments.seconds - 0.2) * part / _PARTS - time.perf_counter()))
                rss.append(family_mib(headrace.pid, "VmRSS"))
            percent = (family_cpu_s(headrace.pid) - cpu) / (time.perf_counter() - at) * 100
            told: list[list[int]] = json.loads(writer.communicate()[0])
        newest = told[-1][0]
        until(lambda: _appended(headrace) >= len(told), lambda: f"not all rows came\n{headrace.said()}")
        if line != "log":
            until(lambda: _is_applied(headrace), lambda: f"not all rows were applied\n{headrace.said()}")
        time.sleep(0.5)  # the last event's way to the subscriber and the prober
        status = json.loads(headrace.get("/v1/status") or b"{}")
        memory = {"peak_mib": family_mib(headrace.pid), "rss_mib": family_mib(headrace.pid, "VmRSS")}
    seen: list[list[int]] = json.loads(seen_file.read_text())
    return _figures(
        told,
        seen,
        json.loads(probed_file.read_text()) if line != "log" else None,
        int((begin + _WARM_UP_S) * 1e6),
        status,
        rss,
        arguments.writers,
    ) | {"line": line, "cpu_percent": round(percent, 1), **memory, "rows": newest}


def _appended(headrace: Headrace) -> int:
    status = json.loads(headrace.get("/v1/status") or b"{}")
    return int(status.get("sources", {}).get("shop", {}).get("appended_rows") or 0)


def _is_applied(headrace: Headrace) -> bool:
    status = json.loads(headrace.get("/v1/status") or b"{}")
    return bool(status["consumers"]["features"]["offset"] == status["log"]["ends"])


def _figures(
    told: list[list[int]],
    seen: list[list[int]],
    probed: dict[str, Any] | None,
    since_us: int,
    status: dict[str, Any],
    rss: Sequence[float],
    writers: int,
) -> dict[str, Any]:
    answered = {row_id: us for row_id, due_us, us in told if due_us >= since_us}
    committed = {row_id: us for row_id, us, _ in seen if row_id in answered}
    if len(committed) != len(answered):
        raise SystemExit(f"{len(answered) - len(committed)} of {len(answered)} rows never came to the subscriber")
    source = status["sources"]["shop"]
    figures: dict[str, Any] = {
        "writer_late": quantiles([us - due_us for _, due_us, us in told if due_us >= since_us]),
        "commit_to_event": quantiles([at - us for row_id, us, at in seen if row_id in answered]),
        "answer_to_event": quantiles([at - answered[row_id] for row_id, _, at in seen if row_id in answered]),
        "own_commit_to_log": {"p50": source["commit_to_log_p50_ms"], "p99": source["commit_to_log_p99_ms"]},
    }
    figures["over_time"] = _over_time(seen, since_us, rss)
    if probed is None:
        return figures
    values = [value for value, _ in probed["seen"]]
    late: list[int] = []
    unseen = 0
    for row_id, us in committed.items():
        if row_id % _HOT_EVERY == 0:
            place = bisect_left(values, row_id)
            if place == len(values):
                # A transaction may begin, which is what placed_at tells, before one that commits earlier: then its row is never the latest.
                unseen += 1
                if unseen > writers:
                    raise SystemExit(f"row {row_id} was never seen in the store, {values[-1]} was the last")
                continue
            late.append(probed["seen"][place][1] - us)
    own = status["consumers"]["features"]["freshness_ms"]
    return figures | {
        "commit_to_feature": quantiles(late),
        "poll_us": probed["poll_us"],
        "own_commit_to_feature": {"p50": own["p50"], "p99": own["p99"]},
    }


def _over_time(seen: Sequence[Sequence[int]], since_us: int, rss: Sequence[float]) -> list[dict[str, float]]:
    """Commit to event, and memory at the end, of each part of the run."""
    late = [(us, at - us) for _, us, at in seen if us >= since_us]
    length_us = (max(us for us, _ in late) + 1 - since_us) / _PARTS
    parts: list[list[int]] = [[] for _ in range(_PARTS)]
    for us, took in late:
        parts[int((us - since_us) / length_us)].append(took)
    return [
        {"second": round((part + 1) * length_us / 1e6, 1), **quantiles(times), "rss_mib": memory}
        for part, (times, memory) in enumerate(zip(parts, rss, strict=True))
        if times
    ]


def quantiles(times_us: Sequence[int]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(times_us)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1000, 2)

    return {"p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": at(1.0), "samples": len(ordered)}


def _starts(headrace: Headrace, server: PostgresServer, end: int, count: int) -> dict[str, float]:
    """Seconds from spawning headrace to an event, committed before, at a subscriber. end: of the log when it was stopped."""
    took: list[float] = []
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        for number in range(1, count + 1):
            row_id = 1_000_000_000 + number
            admin.execute(workload.INSERT, (row_id, 1, 1, "while it was down"))
            before = time.perf_counter()
            headrace.start()
            try:
                with connect("127.0.0.1", headrace.port, _DEADLINE_S) as link:
                    link.settimeout(_DEADLINE_S)
                    ask(link, "127.0.0.1", headrace.port, str(end))
                    kept = b""
                    while b'"id":%d' % row_id not in kept:
                        piece = link.recv(1 << 20)
                        if not piece:
                            raise SystemExit(f"the stream ended\n{headrace.said()}")
                        kept += piece
                    took.append(time.perf_counter() - before)
            finally:
                headrace.stop()
    return {"median": round(statistics.median(took), 3), "min": round(min(took), 3), "max": round(max(took), 3)}


def show(report: dict[str, Any]) -> None:
    print(about(report["machine"]))
    print(
        f"{report['rate']:,} transactions/s of {report['rows_a_transaction']} row(s) for {report['seconds']} s on each line, {report['processes']} process(es) of headrace, fsync {report['fsync']},"
        f" load afterwards {report['load_after']}\n"
    )
    print(f"{'line':8}{'what':20}{'p50 ms':>9}{'p99 ms':>9}{'p99.9':>9}{'max':>9}")
    for line in report["lines"]:
        for what, name in (
            ("commit to event", "commit_to_event"),
            ("answer to event", "answer_to_event"),
            ("commit to log", "own_commit_to_log"),
            ("commit to feature", "commit_to_feature"),
            (" (own)", "own_commit_to_feature"),
            ("writer late by", "writer_late"),
        ):
            if name in line:
                row = "".join(
                    f"{'' if (value := line[name].get(key)) is None else value:>9}"
                    for key in ("p50", "p99", "p99.9", "max")
                )
                print(f"{line['line']:8}{what:20}{row}")
        if report["seconds"] >= 300:
            for part in line["over_time"]:
                row = "".join(f"{part[key]:>9}" for key in ("p50", "p99", "p99.9", "max"))
                print(
                    f"{line['line']:8}{'  until second ' + format(part['second'], '.0f'):20}{row}{part['rss_mib']:>9} MiB"
                )
        polls = f"; the prober polls each {line['poll_us']:.0f} us" if "poll_us" in line else ""
        print(
            f"{line['line']:8}{line['cpu_percent']} % of a core ({line['idle_percent']} % idle), {line['rss_mib']} MiB at the end, {line['peak_mib']} at most,"
            f" start to event {line['start_s']['median']} s ({line['start_s']['min']}-{line['start_s']['max']}){polls}\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=int, default=1000, help="transactions a second (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1, help="of a transaction (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="of each line, after a warm-up (default: %(default)s)")
    parser.add_argument("--line", nargs="+", choices=LINES, default=list(LINES), help="only these")
    parser.add_argument("--idle", type=int, default=10, help="seconds without load (default: %(default)s)")
    parser.add_argument("--writers", type=int, default=4, help="connections that commit (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of headrace (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=5, help="starts that are timed (default: %(default)s)")
    parser.add_argument("--postgres", type=int, default=18, help="major version (default: %(default)s)")
    parser.add_argument(
        "--fsync", choices=("on", "off"), default="on", help="of the Postgres server (default: %(default)s)"
    )
    parser.add_argument("--folder", default=".", help="on the disk that shall hold log and store (default: here)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(throwaway(arguments.postgres, {"fsync": arguments.fsync}))
        report: dict[str, Any] = {"benchmark": "latency", "machine": machine(postgres=version(server))}
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            workload.create(admin)
        redis_place = ""
        if {"redis", "feast"} & set(arguments.line):
            url = servers.enter_context(redis_server())
            redis_place = url.removeprefix("redis://").removesuffix("/0")
        lines = [measure(line, server, arguments, redis_place) for line in arguments.line]
    report |= {
        "rate": arguments.rate,
        "rows_a_transaction": arguments.rows,
        "seconds": arguments.seconds,
        "fsync": arguments.fsync,
        "processes": arguments.processes,
        "load_after": round(os.getloadavg()[0], 2),
        "lines": lines,
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


if __name__ == "__main__":
    main()
