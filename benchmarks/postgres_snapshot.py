"""The initial copy of a table into the durable log, beside a bare ``COPY ... TO STDOUT`` of the same table.

    python benchmarks/postgres_snapshot.py [--rows 1000000] [--workers 1 2] [--rounds 3] [--keyless] [--json]

Each round copies the table by psql into /dev/null, then by a fresh ``headrace run`` for each number of workers, from the start of the
process until it streams: connecting, making publication and slot, reading, normalising, and the log's sync are all part of it. "copy"
is told alone, too: from the first row in the log to the last.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from rig.machine import about, cpu_s, machine, memory_mib
from rig.postgres import binaries, throwaway, version
from rig.process import Headrace
from rig.workload import DETAILS_SQL, TABLE, create

_FILL = """
insert into public.orders
select n, n %% 5000, (n %% 100000)::numeric / 100, 'created', 'left at the door of number ' || n, n %% 7, clock_timestamp(), {details}
  from generate_series(1, %s::bigint) n
"""


def bare_copy(dsn: str, major: int) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(
        [binaries(major) / "psql", dsn, "-qc", f"copy {TABLE} to stdout"], stdout=subprocess.DEVNULL, check=True
    )
    took_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"s": took_s, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def copy(dsn: str, rows: int, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=".") as name:
        folder = Path(name).resolve()
        configuration = (
            f'log: {{path: copy.log.db}}\nsources: {{s: {{type: postgres, dsn: "{dsn}", slot: copy, publication: copy, '
            f"snapshot_workers: {workers}}}}}"
        )
        began = time.perf_counter()
        with Headrace(folder, configuration) as headrace:
            headrace.until(lambda: answers(headrace) and headrace.rows() > 0)
            first_rows, first = headrace.rows(), time.perf_counter()
            headrace.until(lambda: headrace.rows() >= rows)
            last = time.perf_counter()
            headrace.until(headrace.is_ready)
            result = {
                "s": time.perf_counter() - began,
                # Without a key all rows come at once.
                "copy_rows_per_s": round((rows - first_rows) / (last - first)) if first_rows < rows else 0,
                "cpu_us_per_row": cpu_s(headrace.pid) / rows * 1e6,
                "peak_mib": memory_mib(headrace.pid),
            }
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute("select pg_drop_replication_slot('copy')")
            admin.execute("drop publication copy")
        return result


def answers(headrace: Headrace) -> bool:
    try:
        headrace.source()
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--keyless", action="store_true", help="a table without a primary key")
    parser.add_argument("--postgres", type=int, default=18, help="major version (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with throwaway(arguments.postgres, {"fsync": "off"}) as server:
        report: dict[str, Any] = {"machine": machine(postgres=version(server)), "rows": arguments.rows, "rounds": []}
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            create(admin)
            admin.execute("drop publication bench")
            if arguments.keyless:
                admin.execute("alter table public.orders drop constraint orders_pkey, replica identity full")
            admin.execute(_FILL.format(details=DETAILS_SQL.replace("%", "%%")).encode(), [arguments.rows])
            admin.execute("vacuum analyze public.orders")
        bare_copy(server.dsn, arguments.postgres)
        for _ in range(arguments.rounds):
            bare = bare_copy(server.dsn, arguments.postgres)
            turn: dict[str, Any] = {"bare COPY": bare | {"rows_per_s": round(arguments.rows / bare["s"]), "ratio": 1.0}}
            for workers in arguments.workers:
                run = copy(server.dsn, arguments.rows, workers)
                run |= {"rows_per_s": round(arguments.rows / run["s"]), "ratio": round(bare["s"] / run["s"], 2)}
                turn[f"headrace, {workers} worker{'s' * (workers > 1)}"] = run
            report["rounds"].append(turn)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(about(report["machine"]))
    for line in report["rounds"][0]:
        runs = [turn[line] for turn in report["rounds"]]
        print(f"\n{line}, {arguments.rows:,} rows, median of {len(runs)}:")
        for name in runs[0]:
            print(f"  {name.replace('_', ' '):20}{statistics.median(run[name] for run in runs):,.2f}")


if __name__ == "__main__":
    main()
