"""One transaction of millions of rows: what it costs headrace in memory, and what other traffic notices of it.

    python benchmarks/huge_transaction.py [--rows 10000000] [--rate 20] [--postgres 18] [--end commit rollback] [--json]

``headrace run`` in a process of its own captures two tables of a throwaway Postgres: one connection fills the large one in a single
transaction, another commits single rows to the small one all the while. Told are headrace's memory before and at most (VmRSS and
VmHWM), its CPU, and the time from commit to log of the small rows while the large transaction is open, by headrace's own histogram
(upper bounds of its buckets). Then the transaction ends: by a commit, with the time until all its rows are durable in the log (what is
committed behind it waits so long, for it comes behind it in the log), or by a rollback, with nothing of it in the log.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from rig.machine import about, cpu_s, machine, memory_mib
from rig.postgres import throwaway, version
from rig.process import Headrace

_FILL = "insert into big select n, n %% 5000, md5(n::text) from generate_series(1, %s::bigint) n"


def measure(dsn: str, arguments: argparse.Namespace, end: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="huge-") as name:
        folder = Path(name).resolve()
        configuration = (
            f'log: {{path: huge.log.db}}\nsources: {{s: {{type: postgres, dsn: "{dsn}", slot: huge_{end},'
            f" publication: huge_{end}, spill_folder: {folder}}}}}"
        )
        with Headrace(folder, configuration) as headrace:
            headrace.until(headrace.is_ready)
            return _through(headrace, dsn, arguments, end, folder)


def _through(headrace: Headrace, dsn: str, arguments: argparse.Namespace, end: str, folder: Path) -> dict[str, Any]:
    pid, rows = headrace.pid, headrace.rows
    over = threading.Event()
    small = [0]

    def write() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            due = time.monotonic()
            while not over.is_set():
                connection.execute("insert into small (v) values ('x')")
                small[0] += 1
                due += 1 / arguments.rate
                time.sleep(max(0.0, due - time.monotonic()))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    headrace.until(lambda: rows() > 2 * arguments.rate)
    before_mib, cpu = memory_mib(pid, "VmRSS"), cpu_s(pid)
    with psycopg.connect(dsn) as connection:
        began = time.perf_counter()
        connection.execute(_FILL, [arguments.rows])
        filled_s = time.perf_counter() - began
        # Until headrace has all of it, before it ends: what the server still has to send then counts as the end's.
        headrace.until(lambda: (headrace.source()["lag_bytes"] or 0) < 1 << 20)
        received_s = time.perf_counter() - began
        source = headrace.source()
        open_mib = memory_mib(pid, "VmHWM")
        if end == "commit":
            connection.commit()
        else:
            connection.rollback()
    ended = time.perf_counter()
    wanted = arguments.rows if end == "commit" else 0
    if wanted:
        headrace.until(lambda: rows() >= wanted)
    took_s = time.perf_counter() - ended
    over.set()
    writer.join()
    headrace.until(lambda: rows() >= wanted + small[0])
    return {
        "end": end,
        "filled_s": round(filled_s, 1),
        "received_s": round(received_s, 1),
        "small_rows_while_open_ms": {"p50": source["commit_to_log_p50_ms"], "p99": source["commit_to_log_p99_ms"]},
        "commit_to_log_s": round(took_s, 1) if wanted else None,
        "rows_per_s_at_the_end": round(wanted / took_s) if wanted else None,
        "cpu_us_per_row": round((cpu_s(pid) - cpu) / arguments.rows * 1e6, 2),
        "before_mib": before_mib,
        "open_growth_mib": round(open_mib - before_mib, 1),
        "growth_mib": round(memory_mib(pid, "VmHWM") - before_mib, 1),
        "log_mib": sum(file.stat().st_size for file in folder.glob("huge.log.db*")) >> 20,
        "rows_in_log": rows(),
        "small_rows": small[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the transaction (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=20, help="small transactions a second (default: %(default)s)")
    parser.add_argument("--postgres", type=int, default=18, help="major version (default: %(default)s)")
    parser.add_argument("--end", nargs="+", choices=["commit", "rollback"], default=["commit", "rollback"])
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="on the disk that holds log and spill (default: here)"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with throwaway(arguments.postgres, {"fsync": "off"}) as server:
        report: dict[str, Any] = {"machine": machine(postgres=version(server)), "rows": arguments.rows, "runs": []}
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            for end in arguments.end:
                admin.execute("drop table if exists big, small")
                admin.execute("create table big (id bigint primary key, n int, v text)")
                admin.execute("create table small (id bigint generated always as identity primary key, v text)")
                report["runs"].append(measure(server.dsn, arguments, end))
                admin.execute("select pg_drop_replication_slot(%s)", [f"huge_{end}"])
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(about(report["machine"]))
    for run in report["runs"]:
        print(f"\n{arguments.rows:,} rows in one transaction, then {run['end']}:")
        for name, value in run.items():
            if name != "end" and value is not None:
                print(f"  {name.replace('_', ' '):28}{value}")


if __name__ == "__main__":
    main()
