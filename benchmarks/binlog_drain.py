"""How fast a backlog of row changes is read from MariaDB's binlog, beside its own client and mysql-replication in the same run.

    python benchmarks/binlog_drain.py [--rows 300000] [--transaction 100] [--rounds 3] [--client raw ...] [--json]

A throwaway server is filled once (8 columns, utf8mb4, about 200 bytes a row; two thirds inserts, one third updates, so many rows a transaction);
each run then reads the same binlog over the wire from its beginning, in a fresh process:

    raw      mariadb-binlog --raw: the bytes into a file, nothing is decoded
    verbose  mariadb-binlog -v to /dev/null: rows as text, by C++
    library  mysql-replication: rows as dicts; only if it is installed (pip install mysql-replication)
    decode   the source of headrace: every row decoded and typed, then thrown away
    skip     the same, of a table that isn't selected
    log      source, normalisation and durable log, as ``headrace run`` captures

Rounds are interleaved and the first one, the warm-up, isn't counted; medians are told. Clock and CPU of headrace and the library run from the
connect to the last row, those of mariadb-binlog over its whole life. ratio: to verbose of the same round. Memory is the peak of the process:
``--transaction 10000000 --rows 10000000 --rounds 1 --client log`` is one transaction of ten million rows (the first round is then the only one that doesn't count).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rig.machine import about, collect_as_the_program, cpu_s, machine, memory_mib
from rig.mariadb import connect, program, throwaway

CLIENTS = ("raw", "verbose", "library", "decode", "skip", "log")
_DEADLINE_S = 900.0
_IMPORTS = {
    True: ("pymysqlreplication", "pymysqlreplication.row_event"),
    False: ("uvloop", "headrace.cdc.capture", "headrace.cdc.log.sqlite", "headrace.cdc.sources.mysql"),
}
_TABLE = """
create table shop.orders (
    id bigint primary key, customer_id bigint not null, total decimal(12,2) not null, status varchar(20) not null, note text not null,
    quantity int not null, placed_at datetime(6) not null, details text not null
)
"""
_INSERT = """
insert into shop.orders
select seq, seq %% 5000, seq %% 100000 / 100, 'created', concat('left at the door of number ', seq), seq %% 7, now(6),
       concat('{"agent": "Mozilla/5.0 (X11)", "basket": [', seq %% 97, ', 4, 52], "channel": "web", "campaign": "spring-', seq %% 40, '"}')
  from seq_%d_to_%d
"""
_UPDATE = "update shop.orders set status = 'paid', total = total + 1 where id between %d and %d"


def fill(port: int, rows: int, size: int) -> int:
    """Row changes that were made: whole transactions, each third one an update of the rows before it."""
    done, first, turn = 0, 1, 0
    # The tables of sequences are found in a default database only.
    with connect(port, database="shop") as connection, connection.cursor() as cursor:
        while done < rows:
            turn += 1
            if turn % 3 == 0:
                cursor.execute(_UPDATE % (first - size, first - 1))
            else:
                cursor.execute(_INSERT % (first, first + size - 1))
                first += size
            done += size
    return done


def run_client(client: str, port: int, rows: int, start: dict[str, Any], folder: Path) -> dict[str, Any]:
    if client in ("raw", "verbose"):
        result = _mariadb_binlog(client, port, start, folder)
    else:
        argv = [sys.executable, __file__, "--child", client, "--port", str(port), "--rows", str(rows)]
        argv += ["--start", json.dumps(start), "--folder", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_DEADLINE_S)
        if done.returncode:
            raise SystemExit(f"{client} failed:\n{done.stderr}")
        result = json.loads(done.stdout)
    return {
        "client": client,
        "rows_per_s": round(rows / result["wall_s"]),
        "cpu_us_per_row": round(result["cpu_s"] / rows * 1e6, 2),
        "growth_mib": result["growth_mib"],
        "peak_mib": result["peak_mib"],
    }


def _mariadb_binlog(client: str, port: int, start: dict[str, Any], folder: Path) -> dict[str, Any]:
    argv = [program("mariadb-binlog"), "--no-defaults", "--read-from-remote-server", "--to-last-log", "-h127.0.0.1"]
    argv += ["-uroot", f"-P{port}", f"--start-position={start['pos']}"]
    argv += ["--raw", f"--result-file={folder}/raw-"] if client == "raw" else ["-v", "--base64-output=decode-rows"]
    began = time.perf_counter()
    with subprocess.Popen([*argv, start["file"]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(f"mariadb-binlog failed: {process.stderr.read().decode()}")
    for file in folder.glob("raw-*"):
        file.unlink()
    peak = round(usage.ru_maxrss / 1024, 1)
    return {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": peak, "growth_mib": None}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    clients = [one for one in arguments.client if one != "library" or importlib.util.find_spec("pymysqlreplication")]
    if len(clients) < len(arguments.client):
        print("library is left out: pip install mysql-replication", file=sys.stderr)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, throwaway(Path(name)) as port:
        with connect(port) as connection, connection.cursor() as cursor:
            cursor.execute("create database shop")
            cursor.execute(_TABLE)
            cursor.execute("select version()")
            (version,) = cursor.fetchone() or ("",)
            cursor.execute("show master status")
            file, pos, *_ = cursor.fetchone() or ("", 0)
        state = asyncio.run(_state(port))
        rows = fill(port, arguments.rows, arguments.transaction)
        with connect(port) as connection, connection.cursor() as cursor:
            cursor.execute("select @@gtid_binlog_pos")
            (end,) = cursor.fetchone() or ("",)
        start = {"file": file, "pos": pos, "state": state.hex(), "end": end}
        report = {"benchmark": "binlog_drain", "machine": machine(mariadb=version), "rows": rows}
        report |= {"rows_a_transaction": arguments.transaction, "rounds": arguments.rounds}
        for turn in range(arguments.rounds + 1):
            for client in clients:
                run = run_client(client, port, rows, start, Path(name))
                if turn:
                    runs.append({"round": turn, **run})
                    print(f"round {turn}: {client} {run['rows_per_s']:,} rows/s", file=sys.stderr)
    report["load_after"] = round(os.getloadavg()[0], 2)
    return report | {"clients": [summary(client, runs) for client in clients], "runs": runs}


async def _state(port: int) -> bytes:
    """Of a source that stands before the rows."""
    source = _source(port, "shop.*")
    await source.start(None)
    state = (await source.read()).state
    await source.stop()
    return state


def _source(port: int, pattern: str) -> Any:
    from headrace.cdc.config import Duration
    from headrace.cdc.sources.mysql import MySQLSource
    from headrace.cdc.sources.mysql_config import MySQLConfig

    config = MySQLConfig(
        dsn=f"mysql://root@127.0.0.1:{port}", tables=[pattern], snapshot="never", heartbeat=Duration.parse("50ms")
    )
    return MySQLSource("bench", config, {})


def summary(client: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds."""
    own = [run for run in runs if run["client"] == client]
    beside = {run["round"]: run["rows_per_s"] for run in runs if run["client"] == "verbose"}
    ratios = [run["rows_per_s"] / beside[run["round"]] for run in own if run["round"] in beside]
    return {
        "client": client,
        "rows_per_s": round(statistics.median(run["rows_per_s"] for run in own)),
        "ratio": round(statistics.median(ratios), 2) if ratios else None,
        "cpu_us_per_row": round(statistics.median(run["cpu_us_per_row"] for run in own), 2),
        "growth_mib": None if own[0]["growth_mib"] is None else max(run["growth_mib"] for run in own),
        "peak_mib": max(run["peak_mib"] for run in own),
    }


# the child


def child(arguments: argparse.Namespace) -> None:
    """One reader in this process; its figures as JSON on stdout."""
    start = json.loads(arguments.start)
    for module in _IMPORTS[arguments.child == "library"]:
        importlib.import_module(module)  # not of the drain
    if arguments.child != "library":
        collect_as_the_program()
    before = memory_mib(os.getpid(), "VmRSS")
    began, cpu = time.perf_counter(), cpu_s(os.getpid())
    if arguments.child == "library":
        _library(arguments.port, arguments.rows, start)
    else:
        import uvloop

        before = uvloop.run(_headrace(arguments, start))
    wall_s, cpu_used = time.perf_counter() - began, cpu_s(os.getpid()) - cpu
    peak = memory_mib(os.getpid())
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_used, "peak_mib": peak, "growth_mib": round(peak - before, 1)}))


def _library(port: int, rows: int, start: dict[str, Any]) -> None:
    replication: Any = importlib.import_module("pymysqlreplication")
    events: Any = importlib.import_module("pymysqlreplication.row_event")
    stream = replication.BinLogStreamReader(
        connection_settings={"host": "127.0.0.1", "port": port, "user": "root"},
        server_id=4711,
        log_file=start["file"],
        log_pos=start["pos"],
        only_events=[events.WriteRowsEvent, events.UpdateRowsEvent],
    )
    seen = 0
    for event in stream:
        seen += len(event.rows)
    if seen != rows:
        raise SystemExit(f"{seen} rows instead of {rows}")


async def _headrace(arguments: argparse.Namespace, start: dict[str, Any]) -> float:
    """Memory in MiB before the first row."""
    state = bytes.fromhex(start["state"])
    source = _source(arguments.port, "shop.nothing" if arguments.child == "skip" else "shop.*")
    if arguments.child == "log":
        return await _into_log(source, state, arguments)
    await source.start(state)
    before = memory_mib(os.getpid(), "VmRSS")
    seen, position = 0, ""
    while seen < arguments.rows and position != start["end"]:
        batch = await source.read()
        seen += sum(change.op != "schema" for change in batch.changes)
        position = batch.position
    await source.stop()
    if seen != (0 if arguments.child == "skip" else arguments.rows):
        raise SystemExit(f"{seen} rows instead of {arguments.rows}")
    return before


async def _into_log(source: Any, state: bytes, arguments: argparse.Namespace) -> float:
    from prometheus_client import CollectorRegistry

    from headrace.cdc.capture import Capture
    from headrace.cdc.log.sqlite import SQLiteLog
    from headrace.cdc.metrics import CaptureMetrics
    from headrace.cdc.process.normalise import Normaliser

    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        log = await SQLiteLog.open(Path(folder) / "log.db")
        await log.append([], source="bench", state=state)
        before = memory_mib(os.getpid(), "VmRSS")
        capture = Capture(source, Normaliser("bench", {}), log, CaptureMetrics(CollectorRegistry()))
        running = asyncio.create_task(capture.run())
        while capture.events_total < arguments.rows and not running.done():  # noqa: ASYNC110  # the capture counts, and tells nobody
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.result()
        await log.close()
    return before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000, help="row changes (default: %(default)s)")
    parser.add_argument("--transaction", type=int, default=100, help="rows of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="beside the warm-up (default: %(default)s)")
    parser.add_argument("--client", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (default: here)")
    parser.add_argument("--json", action="store_true")
    for name in ("child", "port", "start"):
        parser.add_argument(f"--{name}", type=int if name == "port" else str, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    report = measure(arguments)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(about(report["machine"]))
    print(
        f"{report['rows']:,} row changes, {report['rows_a_transaction']:,} a transaction, {report['rounds']} rounds\n"
    )
    print(f"{'client':10}{'rows/s':>12}{'ratio':>8}{'CPU us/row':>12}{'growth MiB':>12}{'peak MiB':>10}")
    for line in report["clients"]:
        ratio = "" if line["ratio"] is None else f"{line['ratio']:.2f}"
        growth = "" if line["growth_mib"] is None else f"{line['growth_mib']:.0f}"
        print(
            f"{line['client']:10}{line['rows_per_s']:12,}{ratio:>8}{line['cpu_us_per_row']:12.2f}{growth:>12}{line['peak_mib']:10.0f}"
        )


if __name__ == "__main__":
    main()
