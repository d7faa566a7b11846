"""What a destination answers comes back into the log, durable before the answered event is done, and is never asked about itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.errors import LogUnavailable
from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import SinkSection
from headrace.sinks.deadletter import MemorySinkStore
from headrace.sinks.delivery import LogCursors, SinkConsumer
from headrace.sinks.http import HttpSink
from headrace.sinks.httpanswer import returned_part
from headrace.sinks.httpdefinition import Destination, ReturnsConfig
from hook_server import Hook, hook_server
from shop_log import ShopLog, order_event
from sinks.test_delivery import config, running, until

RETURNS = "returns: {name: Recommended, path: data.recommendations}"


@pytest.fixture
def hook() -> Iterator[Hook]:
    with hook_server() as found:
        found.reply = lambda body: json.dumps({"data": {"recommendations": [{"id": f"for-{body['id']}"}]}}).encode()
        yield found


async def records(log: Any) -> list[CustomerEvent]:
    return [event for event in (await log.read(0, 0, max_bytes=1 << 24)).events if event.kind == "record"]


async def test_an_answer_becomes_a_record_of_the_same_customer(tmp_path: Path, hook: Hook) -> None:
    settings = config(tmp_path, brain=f"destination: {{url: '{hook.url}', {RETURNS}}}")
    async with running(settings) as first:
        await first.log.append(
            [order_event(number, key=f"c{number % 3}") for number in range(30)], source="shop", state=b""
        )
        await until(
            lambda: first.consumers[0].status()["offset"] == [60]
        )  # its own answers too, which it doesn't ask about
        found = await records(first.log)
        assert first.metric("headrace_sink_returned_events_total", "brain") == 30
        assert first.metric("headrace_sink_delivered_events_total", "brain") == 30
    assert len(hook.got) == 30
    assert {event.id for event in found} == {f"sink:brain-shop-{number}" for number in range(30)}
    for event in found:
        number = int(event.id.rpartition("-")[2])
        assert (event.name, event.key, event.source) == ("Recommended", f"c{number % 3}", "sink:brain")
        assert json.loads(event.properties) == {"items": [{"id": f"for-shop-{number}"}]}
    for key in ("c0", "c1", "c2"):
        mine = [int(event.id.rpartition("-")[2]) for event in found if event.key == key]
        assert mine == sorted(mine)
    async with running(settings) as second:
        await second.log.append([order_event(30, key="c0")], source="shop", state=b"")
        await until(lambda: second.consumers[0].status()["offset"] == [62])
        assert len(await records(second.log)) == 31
    assert len(hook.got) == 31


async def test_two_sinks_that_return_do_not_ask_about_each_others_answers(tmp_path: Path, hook: Hook) -> None:
    text = f"destination: {{url: '{hook.url}', {RETURNS}}}"
    async with running(config(tmp_path, one=text, two=text)) as live:
        await live.log.append([order_event(1)], source="shop", state=b"")
        await until(lambda: all(consumer.status()["offset"] == [3] for consumer in live.consumers))
        assert len(await records(live.log)) == 2
    assert len(hook.got) == 2


class Failing(ShopLog):
    """Refuses records while is_full."""

    is_full = True

    async def append(self, events: Any, **rest: Any) -> tuple[int, ...]:
        if self.is_full and any(event.kind == "record" for event in events):
            raise LogUnavailable("the disk is full", advice="make room")
        return await super().append(events, **rest)


async def test_an_event_is_not_done_before_its_answer_is_in_the_log(hook: Hook) -> None:
    log = Failing()
    await log.append([order_event(1)])
    sink = HttpSink(Destination(url=hook.url, returns=ReturnsConfig(name="Recommended", path="data.recommendations")))
    consumer = SinkConsumer("brain", sink, SinkSection(), log=log, store=MemorySinkStore())
    with pytest.raises(LogUnavailable):
        await consumer.run()
    cursor = await LogCursors(log, "brain").load(0)
    assert cursor is not None and cursor.offset == 0
    log.is_full = False
    again = SinkConsumer("brain", sink, SinkSection(), log=log, store=MemorySinkStore())

    running_ = asyncio.create_task(again.run())
    await until(lambda: again.status()["offset"] == [2])
    running_.cancel()
    await asyncio.wait([running_])
    assert [event.id for event in await records(log)] == ["sink:brain-shop-1"]
    assert len(hook.got) == 2, "asked again, since nobody knew the answer any more"


@pytest.mark.parametrize(
    ("path", "body", "properties"),
    [
        ("", b'{"a": 12345678901234567890.10}', b'{"a": 12345678901234567890.10}'),
        ("", b" [1, 2] ", b'{"items":[1, 2]}'),
        ("a.b", b'{"a":{"b":{"c":null}}}', b'{"c":null}'),
        ("a.b", b'{"a":{"c":1}}', None),
        ("a.b", b'{"a":[1]}', None),
        ("", b"", None),
        ("", b"ok", None),
        ("", b'"text"', None),
        ("", b"[" + b"1," * 200_000 + b"1]", None),
        ("", b"\xff\xfe", None),
    ],
)  # fmt: skip
def test_what_comes_back_of_an_answer(path: str, body: bytes, properties: bytes | None) -> None:
    found = returned_part(ReturnsConfig(name="R", path=path), body)
    assert (None if found is None else found.properties) == properties


async def test_an_answer_without_an_object_is_delivered_and_gives_no_record(tmp_path: Path, hook: Hook) -> None:
    hook.reply = lambda body: b"thank you"
    async with running(config(tmp_path, brain=f"destination: {{url: '{hook.url}', {RETURNS}}}")) as live:
        await live.log.append([order_event(1)], source="shop", state=b"")
        await until(lambda: live.consumers[0].status()["offset"] == [1])
        assert live.consumers[0].status()["delivered_events"] == 1
        assert await records(live.log) == []


def test_an_answer_to_many_events_can_not_come_back() -> None:

    with pytest.raises(msgspec.ValidationError, match="set batch.max_events to 1"):
        msgspec.convert({"url": "https://h/", "returns": {"name": "R"}, "batch": {"max_events": 2}}, Destination)
