"""Rows of the past a second through ``features backfill``, on one core and on all.

    python benchmarks/backfill.py [--rows 100000] [--entities 10000] [--cores 1 2] [--json]

Orders over 30 days in a Parquet file; a view of five features, two of them over one window and two over another, as docs/features.md has it. Every row is written as features, and so is every moment
at which a window moves without one: "written" is more than "rows". Wall time of all of it, reading, sorting and writing included; the starts of the processes too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import msgspec

from headrace.features.loading import load_definitions
from headrace.features.offline.backfill import backfill
from rig.machine import about, collect_as_the_program, machine

DEFINITIONS = """
from headrace.features import *
customer = Entity("customer", join_keys={"customer_id": Int64})
orders = FeatureView("orders", entity=customer, source=Table("public.orders"), event_time="created_at", features=[
    count(over=["1d", "7d"]), sum_("total", Float64, over=["1d", "7d"]), latest("status", String),
])
"""


class Line(msgspec.Struct, frozen=True):
    cores: int
    rows: int
    written: int
    seconds: float
    rows_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Rows of the past through features backfill")
    parser.add_argument("--rows", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--entities", type=int, default=10_000, help="(default: %(default)s)")
    parser.add_argument(
        "--cores", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}), help="(default: 1 and all)"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine()
    collect_as_the_program()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="backfill-") as name:
        folder = Path(name)
        (folder / "definitions.py").write_text(DEFINITIONS)
        (view,) = load_definitions(folder / "definitions.py")
        duckdb.sql(
            f"copy (select n id, hash(n) % {arguments.entities} customer_id, (hash(n + 1) % 100000) / 100 total, 'paid' status,"
            f" make_timestamptz(1700000000000000 + (n * 30 * 86400000000 // {arguments.rows})) created_at from range({arguments.rows}) _(n))"
            f" to '{folder / 'past.parquet'}'"
        )
        for cores in arguments.cores:
            begin = time.perf_counter()
            result = backfill(
                view,
                str(folder / "past.parquet"),
                folder=None,
                out=folder / "out.parquet",
                cores=cores,
                definitions=folder / "definitions.py",
            )
            seconds = time.perf_counter() - begin
            lines.append(Line(cores, result.rows, result.written, round(seconds, 2), round(result.rows / seconds)))
    if arguments.json:
        print(json.dumps({"about": host, "lines": msgspec.to_builtins(lines)}, indent=2))
        return
    print(about(host))
    print(f"{'cores':>5} {'rows':>9} {'written':>9} {'seconds':>8} {'rows/s':>8}")
    for each in lines:
        print(f"{each.cores:5} {each.rows:9,} {each.written:9,} {each.seconds:8.1f} {each.rows_per_s:8,.0f}")


if __name__ == "__main__":
    sys.exit(main())
