"""The feature kernel alone: row events to entity writes, without a log and without a store; 5 windows x (count, sum) unless --view says otherwise.

Workload: orders of skewed customers (Zipf-like, 12,000 of them), 90 % inserts, 7 % updates, 3 % deletes, seeded; log time moves by 1 ms an
event. Each batch goes through all steps of kernel.py: decoding the events' columns, contributions, retraction, sums, read-out, state
bytes. What a store would hold is kept in plain dicts, whose cost is counted too. Fresh process, warm-up, several repeats.

    python benchmarks/kernel.py [--view sums moments min last distinct top_k quantile mixed] [--json] [--events 100000] [--batch 1 100 1000]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc.event import CustomerEvent, RowPart
from headrace.features.kernel import ViewKernel
from headrace.features.loading import load_definitions
from headrace.features.rows import RowReader
from headrace.features.spec import EntityKey
from headrace.features.state import EntityState
from headrace.features.store.base import Contribution

START_US = 1_700_000_000_000_000
CUSTOMERS = 12_000
WARM_UP = 0.2

DEFINITIONS = """
from headrace.features import *
customer = Entity("customer", join_keys={"customer_id": Int64})
view = FeatureView("orders", entity=customer, source=Table("public.orders"), event_time="created_at",
                   features=[FEATURES])
"""

WINDOWS = '["1m", "10m", "1h", "1d", "7d"]'
VIEWS = {
    "sums": f'count(over={WINDOWS}), sum_("total", over={WINDOWS})',
    "moments": f'mean("total", over={WINDOWS}), stddev("total", over={WINDOWS})',
    "min": f'min_("total", over={WINDOWS}), max_("total", over={WINDOWS})',
    "last": f'last("total", 5, Float64, over={WINDOWS})',
    "distinct": f'distinct("total", Float64, over={WINDOWS})',
    "top_k": f'top_k("total", 5, Float64, over={WINDOWS})',
    "quantile": f'quantile("total", 0.5, over={WINDOWS}), quantile("total", 0.95, over={WINDOWS})',
    "mixed": """
        count(over=["1h", "1d", "7d"]), sum_("total", over=["1h", "1d", "7d"]), mean("total", over=["1h", "1d", "7d"]),
        stddev("total", over=["1h", "1d", "7d"]), min_("total", over=["1h", "1d", "7d"]), max_("total", over=["1h", "1d", "7d"]),
        distinct("status", over=["1h", "1d", "7d"]), last("id", 3, Int64, over=["1h", "1d", "7d"]),
        top_k("status", 2, over=["1h", "1d", "7d"]), quantile("total", 0.5, over=["1h", "1d", "7d"]),
    """,
}
"""mixed: 10 features x 3 windows."""


def make_events(count: int, *, seed: int = 1, numeric: bool = False) -> list[CustomerEvent]:
    """The workload; numeric: totals are numeric text in place of doubles."""
    chance = random.Random(seed)
    encode = msgspec.json.Encoder().encode
    live: list[tuple[int, int]] = []
    events: list[CustomerEvent] = []
    for number in range(count):
        now_us = START_US + number * 1000
        what = chance.random()
        before: bytes | None = None
        if what < 0.9 or not live:
            op, key, customer = "insert", number, int(CUSTOMERS * chance.random() ** 3)
            live.append((key, customer))
        elif what < 0.97:
            op, (key, customer) = "update", live[chance.randrange(len(live))]
        else:
            op, (key, customer) = "delete", live.pop(chance.randrange(len(live)))
        image = b"{}"
        if op != "delete":
            seconds, micros = divmod(now_us, 1_000_000)
            total = round(chance.uniform(1, 500), 2)
            row = {
                "id": key,
                "customer_id": customer,
                "total": f"{total:.2f}" if numeric else total,
                "status": "paid",
                "created_at": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{micros:06d}+00",
            }
            image = encode(row)
        else:
            before = encode({"id": key})
        part = RowPart("public", "orders", op, encode({"id": key}), before, (), number, 0, True, 1)  # type: ignore[arg-type]
        events.append(
            CustomerEvent(
                str(number), "track", op, str(customer), now_us, now_us, now_us, "shop", str(number), image, part
            )
        )
    return events


class Line:
    """The kernel with dicts in place of a store."""

    def __init__(self, folder: Path, view_name: str) -> None:
        path = folder / "definitions.py"
        path.write_text(DEFINITIONS.replace("FEATURES", VIEWS[view_name]))
        (view,) = load_definitions(path)
        self.kernel = ViewKernel(view)
        self.reader = RowReader(view)
        self.states: dict[EntityKey, EntityState] = {}
        self.contributions: dict[bytes, Contribution | None] = {}
        self.state_bytes = 0
        self.entities = 0
        self.rebuilds = 0

    def apply(self, events: list[CustomerEvent], offset: int) -> None:
        batch = self.kernel.batch()
        now_us = 0
        for place, event in enumerate(events):
            now_us = event.committed_us
            assert event.row is not None
            change = self.reader.read(event, event.row, offset + place, now_us)
            assert change is not None
            batch.changes.append(change)
        stored = self.contributions
        batch.resolve({key: stored.get(key) for key in batch.wanted_rows()})
        batch.apply(self.states)
        for entity in batch.wanted_rebuilds():
            # A store has an index for this; here every contribution is looked at, so the count is told.
            self.rebuilds += 1
            rows = [(key, kept.blob) for key, kept in stored.items() if kept is not None and kept.entity == entity]
            batch.rebuild(entity, rows)
        writes, contributions = batch.finish(now_us)
        stored.update(contributions)
        self.entities += len(writes)
        self.state_bytes += sum(len(write.state) for write in writes)


def measure(events: list[CustomerEvent], batch: int, view_name: str) -> dict[str, float]:
    """One run of all events in batches of this size; the first part only warms up."""
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Path(folder), view_name)
        start = int(len(events) * WARM_UP)
        for at in range(0, start, batch):
            line.apply(events[at : min(at + batch, start)], at)
        line.entities = line.state_bytes = line.rebuilds = 0
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        for at in range(start, len(events), batch):
            line.apply(events[at : at + batch], at)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        done = len(events) - start
        return {
            "events_per_s": done / wall,
            "cpu_us_per_event": cpu / done * 1e6,
            "entities_per_event": line.entities / done,
            "state_bytes_per_entity": line.state_bytes / max(1, line.entities),
            "rebuilds_per_1000_events": 1000 * line.rebuilds / done,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--view", nargs="+", choices=list(VIEWS), default=["sums"], help="what the view computes")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--numeric", action="store_true", help="numeric totals in place of doubles")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    events = make_events(arguments.events, numeric=arguments.numeric)
    results: list[dict[str, Any]] = []
    for view_name, batch in itertools.product(arguments.view, arguments.batch):
        runs = [measure(events, batch, view_name) for _ in range(arguments.repeats)]
        median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        spread = max(run["events_per_s"] for run in runs) / min(run["events_per_s"] for run in runs)
        results.append({"view": view_name, "batch": batch, **median, "spread": spread})
    report = {
        "benchmark": "kernel",
        "events": arguments.events,
        "columns": "numeric" if arguments.numeric else "double",
        "compiled": not (sys.modules["headrace.features.tiles"].__file__ or "").endswith(".py"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "results": results,
    }
    if arguments.json:
        print(json.dumps(report))
        return
    print(
        f"Python {report['python']}, {report['columns']} sums, compiled: {report['compiled']}, peak {report['peak_mib']:.0f} MiB"
    )
    print("view      batch   events/s   us CPU/event   entities/event   state bytes   rebuilds/1000   spread")
    for line in results:
        print(
            f"{line['view']:8} {line['batch']:5}  {line['events_per_s']:9,.0f}  {line['cpu_us_per_event']:13.2f}  {line['entities_per_event']:15.2f}"
            f"  {line['state_bytes_per_entity']:12.0f}  {line['rebuilds_per_1000_events']:13.2f}  {line['spread']:7.2f}"
        )


if __name__ == "__main__":
    main()
