"""How long a restart takes with a large log: from the start of the process to the first new event in the log, and the idle CPU after it.

    python benchmarks/restart.py [--log-mib 1024] [--rounds 5] [--idle-s 30] [--json]

A table is copied until the log is that large. Then, in each round, the process is killed (SIGKILL), a row is committed, and a
fresh process is started: told are the seconds until it says that the row is durable, asked every 20 ms. At the end the CPU of the idle
process is taken over some seconds, with its heartbeat of one log transaction a second.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from rig.machine import about, cpu_s, machine, memory_mib
from rig.postgres import throwaway, version
from rig.process import Headrace
from rig.workload import DETAILS_SQL, INSERT, create

_BATCH_ROWS = 200_000
_SETTLED_BYTES = 16 << 20
_FILL = """
insert into public.orders
select n, n %% 5000, (n %% 100000)::numeric / 100, 'created', 'left at the door of number ' || n, n %% 7, clock_timestamp(), {details}
  from generate_series(%s::bigint, %s::bigint) n
"""


def log_mib(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("restart.log.db*")) >> 20


def measure(dsn: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    configuration = f'log: {{path: restart.log.db}}\nsources: {{s: {{type: postgres, dsn: "{dsn}", slot: restart, publication: restart}}}}'
    fill = _FILL.format(details=DETAILS_SQL.replace("%", "%%")).encode()
    rows = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        with Headrace(folder, configuration) as headrace:
            headrace.until(headrace.is_ready)
            while log_mib(folder) < arguments.log_mib:
                connection.execute(fill, [rows, rows + _BATCH_ROWS - 1])
                rows += _BATCH_ROWS
                wanted = rows
                headrace.until(lambda wanted=wanted: headrace.rows() >= wanted)

            def is_settled() -> bool:
                # The server decodes anew from restart_lsn, which it moves only now and then: its work, not a restart's.
                connection.execute("checkpoint")
                return int((headrace.source()["wal"] or {}).get("retained_bytes") or 1 << 40) < _SETTLED_BYTES

            headrace.until(is_settled)
        took: list[float] = []
        for number in range(arguments.rounds):
            connection.execute(INSERT, [10**9 + number, 1, 1, "x"])
            began = time.perf_counter()
            with Headrace(folder, configuration) as headrace:
                headrace.until(lambda: answers(headrace) and headrace.rows() >= 1)
                took.append(time.perf_counter() - began)
                if number + 1 == arguments.rounds:
                    time.sleep(2)
                    cpu, now = cpu_s(headrace.pid), time.perf_counter()
                    time.sleep(arguments.idle_s)
                    idle = (cpu_s(headrace.pid) - cpu) / (time.perf_counter() - now)
                    resident = memory_mib(headrace.pid, "VmRSS")
                headrace.kill(signal.SIGKILL)
    return {
        "log_mib": log_mib(folder),
        "rows": rows,
        "restart_s": round(statistics.median(took), 2),
        "restart_s_worst": round(max(took), 2),
        "idle_cpu_percent": round(100 * idle, 2),
        "resident_mib": resident,
    }


def answers(headrace: Headrace) -> bool:
    try:
        headrace.source()
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--log-mib", type=int, default=1024, help="size of the log (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="restarts (default: %(default)s)")
    parser.add_argument("--idle-s", type=float, default=30.0, help="how long the idle process is watched")
    parser.add_argument("--postgres", type=int, default=18, help="major version (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with (
        throwaway(arguments.postgres, {"fsync": "off"}) as server,
        tempfile.TemporaryDirectory(prefix="restart-", dir=".") as name,
    ):
        report: dict[str, Any] = {"machine": machine(postgres=version(server))}
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            create(admin)
            admin.execute("drop publication bench")
        report |= measure(server.dsn, Path(name).resolve(), arguments)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(about(report.pop("machine")))
    for field, value in report.items():
        print(f"  {field.replace('_', ' '):20}{value}")


if __name__ == "__main__":
    main()
