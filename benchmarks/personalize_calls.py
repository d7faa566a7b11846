"""CPU of AWS Personalize calls: an event to a signed request, by headrace's sink and by boto3's client, in turn. Nothing is sent.

    python benchmarks/personalize_calls.py [--calls 20000] [--rounds 3] [--json]

Orders of about 200 bytes become interactions with an item, a value and two properties. headrace: templates, checks of the service's limits, body, SigV4. boto3: put_events with the same
interactions as ready dicts, so no templates; its answer is given by a hook before the network, and parsed. Bodies of both are held against each other. CPU of this process in microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import botocore.awsrequest
import botocore.session
import msgspec

from headrace.cdc.event import CustomerEvent
from headrace.sinks.awscredentials import CredentialSource
from headrace.sinks.base import WhenConfig
from headrace.sinks.personalize import InteractionMapping, PersonalizeConfig, PersonalizeSink
from headrace.sinks.sigv4 import Credentials
from headrace.sinks.transport import HttpClient, Reply
from rig.machine import about, collect_as_the_program, machine

START_US = 1_700_000_000_000_000
TRACKING = "6f2c9a3e-1111-2222-3333-444455556666"


class Line(msgspec.Struct, frozen=True):
    """cpu_us: of a call, median of the rounds."""

    client: str
    interactions: int
    cpu_us: float


class NotSent(HttpClient):
    """Answers 200 in place of the service; keeps the newest body."""

    body = b""

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        self.body = body or b""
        return Reply(200, {}, b"")


def events(count: int) -> list[CustomerEvent]:
    made: list[CustomerEvent] = []
    for number in range(count):
        properties = {
            "item_id": f"sku-{number % 997}",
            "value": number % 500 / 4,
            "price": number % 9000 / 100,
            "shelf": "garden",
            "note": "left at the door",
        }
        at_us = START_US + number * 1000
        made.append(
            CustomerEvent(
                f"shop-{number}",
                "track",
                "Order Completed",
                f"c{number // 10 % 5000}",
                at_us,
                at_us,
                at_us,
                "shop",
                str(number),
                msgspec.json.encode(properties),
                user_id=f"c{number // 10 % 5000}",
            )
        )
    return made


def own(made: list[CustomerEvent], size: int) -> tuple[float, bytes]:
    config = PersonalizeConfig(
        region="eu-west-1", tracking_id=TRACKING, access_key="AKIDEXAMPLE", secret_key="not-a-key",
        events=(InteractionMapping(when=WhenConfig(), properties={"price": "{properties.price}", "shelf": "{properties.shelf}"}),),
    )  # fmt: skip
    sink = PersonalizeSink(config, CredentialSource(Credentials("AKIDEXAMPLE", "not-a-key", ""), ""))
    client = NotSent(1)
    sink._client = client

    def call(start: int) -> None:
        items = [
            item
            for place in range(start, start + size)
            if (item := sink.prepare(made[place], place, made[place].key)) is not None
        ]
        run(sink.send("events", items))

    return timed(call, len(made), size), client.body


def boto(made: list[CustomerEvent], size: int) -> tuple[float, bytes]:
    session = botocore.session.Session()
    session.set_credentials("AKIDEXAMPLE", "not-a-key")
    client: Any = session.create_client("personalize-events", region_name="eu-west-1")
    body = b""

    def answer(request: Any, **_: Any) -> Any:
        nonlocal body
        body = request.body
        return botocore.awsrequest.AWSResponse(request.url, 200, {}, cast("Any", NoBody()))

    client.meta.events.register("before-send.personalize-events.PutEvents", answer)
    ready: list[dict[str, Any]] = []
    for event in made:
        properties = msgspec.json.decode(event.properties)
        kept = {name: properties[name] for name in ("price", "shelf")}
        ready.append(
            {
                "eventId": event.id,
                "eventType": event.name,
                "sentAt": event.occurred_us // 1_000_000,
                "itemId": properties["item_id"],
                "eventValue": properties["value"],
                "properties": json.dumps(kept),
            }
        )

    def call(start: int) -> None:
        client.put_events(
            trackingId=TRACKING,
            userId=made[start].user_id,
            sessionId=made[start].user_id,
            eventList=ready[start : start + size],
        )

    return timed(call, len(made), size), body


class NoBody:
    def stream(self, **_: Any) -> list[bytes]:
        return []


def run(sending: Any) -> None:
    """A coroutine that never waits."""
    try:
        sending.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


def timed(call: Callable[[int], None], count: int, size: int) -> float:
    for start in range(0, min(count, 50 * size), size):
        call(start)
    begin = time.process_time()
    for start in range(0, count, size):
        call(start)
    return (time.process_time() - begin) / (count // size) * 1e6


def plain(body: bytes) -> Any:
    """Both write a record's properties as JSON inside a text, each with its own spaces."""
    tree = msgspec.json.decode(body)
    for record in tree["eventList"]:
        record["properties"] = msgspec.json.decode(record["properties"])
    return tree


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU of AWS Personalize calls, beside boto3's client")
    parser.add_argument(
        "--calls", type=int, default=20_000, help="of headrace; boto3 makes a tenth (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    host = machine(botocore=botocore.__version__)
    lines: list[Line] = []
    for size in (1, 10):
        many, few = events(arguments.calls * size), events(arguments.calls // 10 * size)
        collect_as_the_program()
        took: dict[str, list[float]] = {"headrace": [], "boto3": []}
        for _ in range(arguments.rounds):
            took["headrace"].append(own(many, size)[0])
            took["boto3"].append(boto(few, size)[0])
        ours, theirs = own(few, size)[1], boto(few, size)[1]
        assert plain(ours) == plain(theirs), f"{ours!r} is not {theirs!r}"
        lines += [Line(name, size, round(statistics.median(times), 1)) for name, times in took.items()]
    if arguments.json:
        print(json.dumps({"about": host, "lines": msgspec.to_builtins(lines)}, indent=2))
        return
    print(about(host))
    print(f"{'client':10} {'interactions':>12} {'CPU us a call':>14}")
    for each in lines:
        print(f"{each.client:10} {each.interactions:12} {each.cpu_us:14.1f}")


if __name__ == "__main__":
    sys.exit(main())
