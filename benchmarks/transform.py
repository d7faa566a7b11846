"""Microseconds an event takes in each step of the pipeline and in validation, on one core.

    python benchmarks/transform.py [--events 20000] [--rounds 3] [--json]

The event is an SDK's order with three products, about 600 bytes of JSON. Best of the rounds, and all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc.config import parse
from headrace.cdc.event import CustomerEvent, SdkPart
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.process.validate import Plan, PlanFile

PRODUCT = {
    "product_id": "p-12345",
    "sku": "SKU-1",
    "name": "A chair",
    "price": 129.5,
    "quantity": 2,
    "category": "home",
}
ORDER = {
    "order_id": "o-98765", "total": 388.5, "currency": "EUR", "coupon": "SPRING", "mail": "someone@example.com",
    "products": [PRODUCT, PRODUCT, PRODUCT],
}  # fmt: skip
STEPS: dict[str, Any] = {
    "no step fits (when names)": {"drop": True, "when": {"names": ["Other"]}},
    "when where properties": {"drop": True, "when": {"where": {"properties.total": {"above": 10_000}}}},
    "name": {"name": "Bought"},
    "rename": {"rename": {"properties.mail": "properties.email"}},
    "set": {"set": {"properties.channel": "web"}},
    "remove": {"remove": ["properties.mail"]},
    "remove in an array": {"remove": ["properties.products.*.sku"]},
    "keep": {"keep": ["properties.order_id", "properties.total"]},
    "sample": {"sample": 1},
    "python, reads one word": "t.py:looks",
    "python, changes properties": "t.py:changes",
}
PYTHON = """
def looks(event):
    return event if event.name else None

def changes(event):
    event.properties["cents"] = round(event.properties["total"] * 100)
    return event
"""
SCHEMA = {
    "type": "object",
    "required": ["order_id", "total"],
    "properties": {
        "order_id": {"type": "string"},
        "total": {"type": "number", "minimum": 0},
        "products": {"type": "array"},
    },
}


def event() -> CustomerEvent:
    context = msgspec.json.encode(
        {"ip": "192.0.2.1", "library": {"name": "x", "version": "1"}, "userAgent": "Mozilla/5.0"}
    )
    return CustomerEvent(
        "i", "track", "Order Completed", "u1", 1, 1, 1, "web", "", msgspec.json.encode(ORDER), None, "u1", None, context,
        SdkPart("website", "m1"),
    )  # fmt: skip


def measured(act: Callable[[CustomerEvent], object], events: int, rounds: int) -> list[float]:
    """us per event of each round."""
    one = event()
    found: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(events):
            act(one)
        found.append(round((time.perf_counter() - began) / events * 1e6, 3))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "t.py").write_text(PYTHON)
        for name, step in STEPS.items():
            tree = {"sources": {"web": {"type": "http"}}, "pipeline": {"transforms": [step]}}
            pipeline = build_pipeline(parse(tree, folder=Path(folder)))
            assert pipeline is not None
            results[name] = measured(pipeline.one, arguments.events, arguments.rounds)
    plan = Plan(msgspec.convert({"track": {"Order Completed": {"schema": SCHEMA}}}, PlanFile))
    results["validation"] = measured(plan.judge, arguments.events, arguments.rounds)
    if arguments.json:
        sys.stdout.write(
            msgspec.json.encode({"us_per_event": results, "bytes": len(event().properties)}).decode() + "\n"
        )
        return
    for name, rounds in results.items():
        sys.stdout.write(f"{min(rounds):8.2f} us  {name}\n")


if __name__ == "__main__":
    main()
