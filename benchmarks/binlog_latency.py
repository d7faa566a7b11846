"""How soon a row committed in MariaDB is a durable event that a subscriber holds, at a steady rate; and what that costs.

    python benchmarks/binlog_latency.py [--rate 1000] [--seconds 30] [--json]

``headrace run`` in a process of its own on a throwaway MariaDB, beside it a writer of single-row transactions (open loop: the load never waits for
anybody) and a subscriber of GET /v1/stream, each a process of its own. All share one clock. An event is pushed when it is durable. MariaDB's binlog has
whole seconds, so the clock starts when the server has answered COMMIT to the writer; ``sent`` is from before the statement was sent.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rig.machine import about, cpu_s, machine, memory_mib
from rig.mariadb import connect, throwaway
from rig.process import Headrace

_HERE = Path(__file__).resolve().parent
_THREADS = 4
_WARM_UP_S = 3.0
_DEADLINE_S = 60.0
_TABLE = """
create table shop.orders (
    id bigint primary key, customer_id bigint not null, total decimal(12,2) not null, status varchar(20) not null, note text not null,
    quantity int not null, placed_at datetime(6) not null default now(6), details text not null
)
"""
_INSERT = """
insert into shop.orders (id, customer_id, total, status, note, quantity, details)
values (%s, %s, %s, 'created', %s, 2, '{"agent": "Mozilla/5.0 (X11)", "basket": [17, 4, 52], "channel": "web", "campaign": "spring-12"}')
"""


def write(port: int, rate: float, seconds: float, begin: float) -> None:
    """The writer: JSON of [id, sent, answered] in microseconds since 1970 on stdout."""
    told: list[list[list[int]]] = [[] for _ in range(_THREADS)]

    def work(own: int) -> None:
        with connect(port) as connection, connection.cursor() as cursor:
            for number in range(own, int(rate * seconds), _THREADS):
                if (early := begin + number / rate - time.time()) > 0:
                    time.sleep(early)
                sent = time.time_ns() // 1000
                cursor.execute(
                    _INSERT, (number, number % 5000, number % 9973 / 100, f"ring twice, house {number % 300}")
                )
                told[own].append([number, sent, time.time_ns() // 1000])

    threads = [threading.Thread(target=work, args=(own,)) for own in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    json.dump([line for lines in told for line in lines], sys.stdout)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name, throwaway(Path(name)) as port:
        folder = Path(name)
        with connect(port) as connection, connection.cursor() as cursor:
            cursor.execute("create database shop")
            cursor.execute(_TABLE)
            cursor.execute("select version()")
            (version,) = cursor.fetchone() or ("",)
        report: dict[str, Any] = {"benchmark": "binlog_latency", "machine": machine(mariadb=version)}
        source = f'{{type: mysql, dsn: "mysql://root@127.0.0.1:{port}", tables: [shop.*], snapshot: never}}'
        with Headrace(folder, f"log: {{path: bench.log.db}}\nsources: {{shop: {source}}}\n") as running:
            running.until(running.is_ready)
            seen_file = folder / "seen.json"
            subscriber = subprocess.Popen(
                [sys.executable, "-m", "rig.subscriber", "127.0.0.1", str(running.port), "latest", str(seen_file)],
                stdin=subprocess.PIPE, cwd=_HERE,
            )  # fmt: skip
            running.until(lambda: seen_file.with_suffix(".ready").exists())
            begin = time.time() + 1.0
            writer = subprocess.Popen(
                [sys.executable, __file__, "--writer", str(port), str(arguments.rate), str(arguments.seconds), str(begin)],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            time.sleep(max(0.0, begin - time.time()) + _WARM_UP_S)
            cpu, wall = cpu_s(running.pid), time.monotonic()
            out, _ = writer.communicate(timeout=arguments.seconds + _DEADLINE_S)
            cpu_percent = (cpu_s(running.pid) - cpu) / (time.monotonic() - wall) * 100
            written = json.loads(out)
            running.until(lambda: running.rows() >= len(written))
            time.sleep(0.5)  # the last event is on its way to the subscriber
            peak = memory_mib(running.pid)
            subscriber.communicate(timeout=_DEADLINE_S)
        seen = {row[0]: row[2] for row in json.loads(seen_file.read_text())}
    missing = [line[0] for line in written if line[0] not in seen]
    if missing:
        raise SystemExit(f"{len(missing)} of {len(written)} rows didn't come")
    first = begin * 1e6 + _WARM_UP_S * 1e6
    counted = [line for line in written if line[1] >= first]
    return report | {
        "rate": arguments.rate,
        "rows": len(counted),
        "answer_to_event_ms": quantiles([seen[number] - answered for number, _, answered in counted]),
        "sent_to_event_ms": quantiles([seen[number] - sent for number, sent, _ in counted]),
        "cpu_percent": round(cpu_percent, 1),
        "peak_mib": peak,
    }


def quantiles(us: list[int]) -> dict[str, float]:
    cut = statistics.quantiles(us, n=1000, method="inclusive")
    return {name: round(cut[place] / 1000, 2) for name, place in (("p50", 499), ("p99", 989), ("p99.9", 998))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=1000.0, help="transactions a second (default: %(default).0f)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of load (default: %(default).0f)")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (default: here)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--writer", nargs=4, metavar=("PORT", "RATE", "SECONDS", "BEGIN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.writer:
        port, rate, seconds, begin = arguments.writer
        write(int(port), float(rate), float(seconds), float(begin))
        return
    report = measure(arguments)
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(about(report["machine"]))
    print(
        f"{report['rows']:,} rows at {report['rate']:,.0f}/s, {report['cpu_percent']} % of a core, peak {report['peak_mib']:.0f} MiB"
    )
    for name in ("answer_to_event_ms", "sent_to_event_ms"):
        print(f"{name:20}" + "".join(f"{each:>8} {value:7.2f}" for each, value in report[name].items()))


if __name__ == "__main__":
    main()
