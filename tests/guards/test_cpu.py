"""What the stages of one record's way cost, as ratios to a plain loop of the same interpreter in the same run.

Not a timed test: CPU of this thread, the least of several interleaved rounds, on both sides of the ratio; and the bounds are twice to three
times what was measured (in brackets), so that they catch a stage that got much slower, on any machine and at any load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pgoutput_encoder as encode
from fix_wire import pure
from headrace.cdc.config import EventConfig
from headrace.cdc.event import Change, CustomerEvent
from headrace.cdc.log import codec
from headrace.cdc.process.normalise import Normaliser
from headrace.features import kernel as feature_kernel
from headrace.features.compiled import CompiledView
from headrace.features.loading import load_definitions
from headrace.features.rows import RowReader
from headrace.features.spec import EntityKey
from headrace.features.state import EntityState
from headrace.features.store.base import Contribution
from headrace.sinks import envelope
from headrace.sinks.awscredentials import CredentialSource
from headrace.sinks.personalize import InteractionMapping, PersonalizeConfig, PersonalizeSink
from headrace.sinks.personalizemodel import PATHS, request_body
from headrace.sinks.sigv4 import Credentials, Signer

ROWS = 2000
ROUNDS = 9

DECODED = 2.2
DECODED_PURE = 12.0
NORMALISED = 5.0
PACKED = 1.0
UNPACKED = 2.5
ENVELOPE = 15.0
FEATURES = 16.0
FEATURES_PURE = 55.0
INTERACTION = 30.0
COLUMNS = [
    ("id", 20, -1, True), ("customer_id", 20, -1, False), ("total", 1700, -1, False), ("status", 25, -1, False),
    ("note", 25, -1, False), ("quantity", 23, -1, False), ("placed_at", 1184, -1, False), ("details", 3802, -1, False),
]  # fmt: skip
DETAILS = b'{"agent": "Mozilla/5.0 (X11)", "basket": [17, 4, 52], "channel": "web", "campaign": "spring-12"}'


def calibration() -> None:
    """The unit: what CPython does for a row of eight columns when it only makes a dict of them."""
    line = b"12|7|12.50|created|left at the door|2|2026-01-01 00:00:00+00|{}"
    names = [name for name, *_ in COLUMNS]
    for _ in range(ROWS):
        dict(zip(names, line.decode().split("|"), strict=True))


def ratio(stage: Callable[[], Any]) -> float:
    """CPU of a stage over ROWS rows, in units of the calibration."""
    least = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for place, act in enumerate((calibration, stage)):
            began = time.thread_time()
            act()
            least[place] = min(least[place], time.thread_time() - began)
    return least[1] / least[0]


def frames() -> list[bytes]:
    made = [encode.relation(7, "public", "orders", "d", COLUMNS), encode.begin(100, 0, 1)]
    for number in range(ROWS):
        row = [b"%d" % number, b"%d" % (number % 100), b"12.50", b"created", b"left at the door of number %d" % number, b"2",
               b"2026-01-01 00:00:00.123456+00", DETAILS]  # fmt: skip
        made.append(encode.insert(7, row))
    made.append(encode.commit(100, 200, 0))
    return made


def decoded(pgoutput: ModuleType, wire: list[bytes]) -> list[Change]:
    decoder = pgoutput.PgOutputDecoder("t-", {}, {7: ("id",)}, {})
    assert decoder.feed(wire, 0) == len(wire)
    [transaction] = decoder.transactions
    return list(transaction.changes)


def held(what: str, found: float, bound: float) -> None:
    print(f"{what}: {found:.2f} of a plain loop's CPU, bound {bound}")
    assert found < bound, (
        f"{what} takes {found:.2f} times a plain loop's CPU, more than {bound}: see benchmarks/ for where"
    )


def test_a_row_decoded(pgoutput: ModuleType) -> None:
    wire = frames()
    assert len(decoded(pgoutput, wire)) == ROWS
    is_compiled = not str(pgoutput.__file__).endswith(".py")
    held("decoding", ratio(lambda: decoded(pgoutput, wire)), DECODED if is_compiled else DECODED_PURE)


def test_a_row_normalised_packed_and_made_an_envelope() -> None:
    changes = decoded(pure, frames())
    normaliser = Normaliser("shop", {"public.orders": EventConfig(key="customer_id", insert="Order Completed")})
    held("normalising", ratio(lambda: normaliser.events(changes, 1)), NORMALISED)
    events = normaliser.events(changes, 1)
    held("packing for the log", ratio(lambda: codec.frame(codec.pack(events))), PACKED)
    blob = codec.frame(codec.pack(events))
    held("unpacking from the log", ratio(lambda: codec.unframe(blob)), UNPACKED)
    held("a CloudEvents envelope", ratio(lambda: [envelope.encode("cloudevents", event) for event in events]), ENVELOPE)


FEATURE_DEFINITIONS = """
from headrace.features import *
customer = Entity("customer", join_keys={"customer_id": Int64})
orders = FeatureView("orders", entity=customer, source=Table("public.orders"), event_time="placed_at", features=[
    count(over=["1h", "1d", "7d"], name="n"), sum_("total", Float64, over=["1h", "1d", "7d"], name="total"), mean("total", over=["1h", "1d", "7d"], name="mean"),
])
"""


def through_the_kernel(view: CompiledView, events: list[CustomerEvent]) -> int:
    """Rows of 100 entities, in batches of 500: the entities written."""
    kernel, reader = feature_kernel.ViewKernel(view), RowReader(view)
    states: dict[EntityKey, EntityState] = {}
    kept: dict[bytes, Contribution | None] = {}
    written = 0
    for start in range(0, len(events), 500):
        batch = kernel.batch()
        now_us = events[start].committed_us
        for offset, event in enumerate(events[start : start + 500], start):
            assert event.row is not None
            change = reader.read(event, event.row, offset, now_us)
            assert change is not None
            batch.changes.append(change)
        batch.resolve({key: kept.get(key) for key in batch.wanted_rows()})
        batch.apply({key: states[key] for key in batch.wanted_entities() if key in states})
        writes, contributions = batch.finish(now_us)
        states.update(batch.states())
        kept.update(contributions)
        written += len(writes)
    return written


def test_a_row_through_the_feature_kernel(tmp_path: Path) -> None:
    definitions = tmp_path / "definitions.py"
    definitions.write_text(FEATURE_DEFINITIONS)
    (view,) = load_definitions(definitions)
    normaliser = Normaliser("shop", {"public.orders": EventConfig(key="customer_id")})
    events = normaliser.events(decoded(pure, frames()), 1)
    assert through_the_kernel(view, events) == 4 * 100
    is_compiled = not str(feature_kernel.__file__).endswith(".py")
    held("features", ratio(lambda: through_the_kernel(view, events)), FEATURES if is_compiled else FEATURES_PURE)


def test_an_interaction_as_a_signed_request() -> None:
    mapping = InteractionMapping(item_id="{properties.id}", value="{properties.total:number}")
    config = PersonalizeConfig(region="eu-west-1", tracking_id="t", events=(mapping,))
    sink = PersonalizeSink(config, CredentialSource(None, ""))
    signer = Signer("personalize-events.eu-west-1.amazonaws.com", "eu-west-1", "personalize")
    credentials = Credentials("AKIDEXAMPLE", "not-a-key", "")
    normaliser = Normaliser("shop", {"public.orders": EventConfig(key="customer_id")})
    events = normaliser.events(decoded(pure, frames()), 1)

    def requests() -> None:
        for event in events:
            item = sink.prepare(event, 0, event.key)
            assert item is not None
            body = request_body("events", item.payload[0], [item.payload[1]])
            signer.headers(credentials, PATHS["events"], body, 1_700_000_000.0)

    held("an interaction, signed", ratio(requests), INTERACTION)
