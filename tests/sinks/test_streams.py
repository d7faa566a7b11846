"""Stream sinks against real Redis, nats-server and, where it is installed, Kafka; else against librdkafka's mock cluster."""

from __future__ import annotations

import asyncio
import itertools
import queue
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import confluent_kafka
import msgspec
import nats
import pytest
import redis.asyncio as redis_asyncio
from confluent_kafka import Consumer, TopicPartition

from fix_servers import RedisServer
from fix_streams import MockKafka, NatsServer, RealKafka
from headrace.cdc.config import Duration
from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import Item, OrderConfig, Sink, SinkSection, Unfit, WhenConfig
from headrace.sinks.deadletter import MemorySinkStore
from headrace.sinks.dispatcher import Dispatcher, Range
from headrace.sinks.kafka import KafkaConfig, KafkaSink
from headrace.sinks.nats import NatsConfig, NatsSink
from headrace.sinks.redisstream import RedisStreamConfig, RedisStreamSink
from headrace.sinks.replay import RangeCursors
from headrace.sinks.verdict import DELIVERED, Fault, FaultKind, Outcome
from shop_log import ShopLog, heartbeat, order_event

_names = itertools.count(1)


class Got(msgspec.Struct):
    """One message as a reader sees it."""

    key: str | None
    id: str
    value: Any


class Stream(msgspec.Struct):
    """A stream of a running server, its sink, and what stands in it, in the order of each key."""

    sink: Sink
    section: SinkSection
    read: Callable[[], Awaitable[list[Got]]]
    other: Callable[..., Sink]
    """A sink of the same server with other settings."""
    drops_repetitions: bool = True


@asynccontextmanager
async def _redis(request: pytest.FixtureRequest) -> Any:
    server: RedisServer = request.getfixturevalue("redis_server")
    name = f"shop{next(_names)}"

    def make(**more: Any) -> Sink:
        return RedisStreamSink(RedisStreamConfig(**{"url": server.url, "stream": name, "concurrency": 4} | more))

    async def read() -> list[Got]:
        async with redis_asyncio.Redis.from_url(server.url) as client:
            entries = await client.xrange(name)
        fields = [entry for _, entry in entries]
        return [
            Got(each[b"key"].decode(), each[b"id"].decode(), msgspec.json.decode(each[b"value"])) for each in fields
        ]

    section = RedisStreamConfig(url=server.url, stream=name, concurrency=4)
    yield Stream(RedisStreamSink(section), section, read, make)


@asynccontextmanager
async def _nats(request: pytest.FixtureRequest) -> Any:
    server: NatsServer = request.getfixturevalue("nats_server")
    name = f"shop{next(_names)}"
    client = await nats.connect(server.url)
    stream = client.jetstream()
    await stream.add_stream(name=name, subjects=[f"{name}.>"])

    def make(**more: Any) -> Sink:
        return NatsSink(NatsConfig(**{"url": server.url, "subject": f"{name}.orders"} | more))

    async def read() -> list[Got]:
        count = (await stream.stream_info(name)).state.messages
        found = [await stream.get_msg(name, seq) for seq in range(1, count + 1)]
        return [
            Got(each.headers["Headrace-Key"], each.headers["Nats-Msg-Id"], msgspec.json.decode(each.data))
            for each in found
        ]  # fmt: skip

    section = NatsConfig(url=server.url, subject=f"{name}.{{table}}")
    yield Stream(NatsSink(section), section, read, make)
    await client.close()


@asynccontextmanager
async def _kafka(request: pytest.FixtureRequest, fixture: str) -> Any:
    server: MockKafka | RealKafka = request.getfixturevalue(fixture)
    topic = f"shop{next(_names)}"
    server.add_topic(topic)

    def make(**more: Any) -> Sink:
        return KafkaSink(KafkaConfig(**{"brokers": server.brokers, "topic": topic} | more))

    yield Stream(
        make(), KafkaConfig(brokers=server.brokers, topic=topic),
        lambda: asyncio.to_thread(kafka_messages, server.brokers, topic), make, drops_repetitions=False,
    )  # fmt: skip


def kafka_messages(brokers: Sequence[str], topic: str) -> list[Got]:
    """All that stands in a topic's partitions up to their ends."""
    consumer = Consumer(
        {"bootstrap.servers": ",".join(brokers), "group.id": "test", "enable.auto.commit": False, "log_level": 0}
    )
    parts = [TopicPartition(topic, n, 0) for n in consumer.list_topics(topic, timeout=10).topics[topic].partitions]
    ends = {part.partition: consumer.get_watermark_offsets(part, timeout=10)[1] for part in parts}
    consumer.assign(parts)
    found: list[Got] = []
    places = dict.fromkeys(ends, 0)
    while any(places[number] < end for number, end in ends.items()):
        message = consumer.poll(10)
        assert message is not None and message.error() is None, f"{topic} ends at {ends}, read to {places}"
        places[message.partition()] = message.offset() + 1
        headers = dict(message.headers() or [])
        if headers["id"] != b"made":
            key = message.key()
            found.append(
                Got(None if key is None else key.decode(), headers["id"].decode(), msgspec.json.decode(message.value()))
            )
    consumer.close()
    return found


MAKERS: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Stream]]] = {
    "redis": _redis,
    "nats": _nats,
    "kafka mock": lambda request: _kafka(request, "mock_kafka"),
    "kafka": lambda request: _kafka(request, "real_kafka"),
}


@pytest.fixture(params=MAKERS)
async def stream(request: pytest.FixtureRequest) -> Any:
    async with MAKERS[request.param](request) as made:
        await made.sink.open()
        yield made
        await made.sink.close()


def items_of(sink: Sink, events: Sequence[CustomerEvent]) -> list[Item]:
    found = [sink.prepare(event, offset, event.key or "") for offset, event in enumerate(events)]
    return [item for item in found if item is not None]


def ids(got: Sequence[Got]) -> list[str]:
    return [each.id for each in got]


async def test_a_log_is_delivered_in_order_of_each_key_once(stream: Stream) -> None:
    chance = random.Random(7)
    events = [order_event(number, key=f"c{chance.randrange(9)}") for number in range(600)]
    log = ShopLog()
    await log.append([*events, heartbeat(1_000)])
    ranges = {0: Range(0, 601)}
    dispatcher = Dispatcher(
        "s", stream.sink, stream.section, log=log, cursors=RangeCursors(ranges), letters=MemorySinkStore(), ranges=ranges
    )  # fmt: skip
    await asyncio.wait_for(dispatcher.run(), 60)
    got = await stream.read()
    assert len(got) == 600
    for key in {event.key for event in events}:
        assert [each.id for each in got if each.key == key] == [event.id for event in events if event.key == key]
    assert got[0].value["specversion"] == "1.0" and got[0].value["id"] == got[0].id


async def test_what_is_sent_again_has_the_same_id(stream: Stream) -> None:
    items = items_of(stream.sink, [order_event(number) for number in range(5)])
    for part in (items[:3], items, items):
        assert await stream.sink.send(part[0].call, part) == [DELIVERED] * len(part)
    got = ids(await stream.read())
    assert set(got) == {f"shop-{number}" for number in range(5)}
    assert len(got) == (5 if stream.drops_repetitions else 13)


async def test_an_event_of_no_customer_and_every_shape_is_taken(stream: Stream) -> None:
    for shape in ("headrace", "debezium", "segment"):
        sink = stream.other(format=shape)
        await sink.open()
        items = items_of(sink, [order_event(1, key=f"ü {shape}")])
        assert await sink.send(items[0].call, items) == [DELIVERED]
        await sink.close()


async def test_it_sends_only_what_it_wants(stream: Stream) -> None:
    assert stream.sink.prepare(heartbeat(1), 0, "k") is None
    sink = stream.other(when=WhenConfig(name=("other",)))
    assert sink.prepare(order_event(1), 0, "k") is None
    assert len({call.name for call in sink.calls}) == len(sink.calls)


async def test_check_says_what_is_there_and_sends_nothing(stream: Stream) -> None:
    findings = await stream.sink.check()
    assert [each.is_fine for each in findings] == [True], findings
    assert await stream.read() == []


async def test_it_closes_twice_and_opens_again(stream: Stream) -> None:
    await stream.sink.close()
    await stream.sink.close()
    await stream.sink.open()
    items = items_of(stream.sink, [order_event(1)])
    assert await stream.sink.send(items[0].call, items) == [DELIVERED]


DEAD: dict[str, Callable[[], Sink]] = {
    "redis": lambda: RedisStreamSink(RedisStreamConfig(url="redis://:secret@127.0.0.1:1/0")),
    "nats": lambda: NatsSink(NatsConfig(url="nats://127.0.0.1:1", token="secret")),
    "kafka": lambda: KafkaSink(
        KafkaConfig(brokers=("127.0.0.1:1",), timeout=Duration(1_500_000), properties={"sasl.password": "secret"})
    ),
}


@pytest.mark.parametrize("name", DEAD)
async def test_a_server_that_is_gone_is_an_outage_and_check_says_so(name: str) -> None:
    sink = DEAD[name]()
    assert "secret" not in repr(getattr(sink, "_config"))  # noqa: B009 - pyright
    await sink.open()
    items = items_of(sink, [order_event(1), order_event(2)])
    answer = await sink.send(items[0].call, items)
    assert isinstance(answer, Fault) and answer.kind is FaultKind.OUTAGE, answer
    assert "127.0.0.1" in answer.reason and "secret" not in answer.reason
    if name != "kafka":  # it asks for ten seconds
        (finding,) = await sink.check()
        assert not finding.is_fine and finding.cure
    await sink.close()


# Redis


async def test_redis_stops_at_the_first_that_it_cannot_add(redis_url: str) -> None:
    async with redis_asyncio.Redis.from_url(redis_url) as client:
        await client.set("orders", "text")
        sink = RedisStreamSink(RedisStreamConfig(url=redis_url, stream="{table}"))
        await sink.open()
        items = items_of(sink, [order_event(1, table="other"), order_event(2), order_event(3)])
        answer = await sink.send("xadd", items)
        assert not isinstance(answer, Fault)
        assert [each.outcome for each in answer] == [Outcome.DELIVERED, Outcome.AGAIN, Outcome.AGAIN]
        fault = await sink.send("xadd", items[1:])
        assert isinstance(fault, Fault) and fault.kind is FaultKind.DENIED
        await client.delete("orders")
        assert await sink.send("xadd", items) == [DELIVERED] * 3
        assert (await client.xlen("orders"), await client.xlen("other")) == (2, 1)
        found = RedisStreamSink(RedisStreamConfig(url=redis_url, stream="orders2"), is_replay=True)
        await client.set("orders2", "text")
        await found.open()
        assert not (await found.check())[0].is_fine
        await found.close()
        await sink.close()


async def test_redis_trims_and_forgets_ids_in_time(redis_url: str) -> None:
    sink = RedisStreamSink(RedisStreamConfig(url=redis_url, stream="s", max_length=100, remember=Duration(5_000_000)))
    await sink.open()
    for first in range(0, 2_000, 500):
        items = items_of(sink, [order_event(number) for number in range(first, first + 500)])
        assert await sink.send("xadd", items) == [DELIVERED] * 500
    async with redis_asyncio.Redis.from_url(redis_url) as client:
        assert 100 <= await client.xlen("s") < 400
        assert 0 < await client.pttl("{s}:headrace:shop-7") <= 5_000
    await sink.close()


async def test_redis_rights_are_a_persons_to_mend(redis_url: str) -> None:
    async with redis_asyncio.Redis.from_url(redis_url) as client:
        await client.acl_setuser("poor", enabled=True, passwords=["+p"], commands=["+ping"], keys=["*"])
        for user in ("poor:p", "poor:wrong"):
            sink = RedisStreamSink(RedisStreamConfig(url=redis_url.replace("//", f"//{user}@")))
            await sink.open()
            items = items_of(sink, [order_event(1)])
            answer = await sink.send("xadd", items)
            assert isinstance(answer, Fault) and answer.kind is FaultKind.DENIED, answer
            await sink.close()
        await client.acl_deluser("poor")


# NATS


async def test_nats_refuses_what_is_too_large_and_takes_the_rest(nats_server: NatsServer) -> None:
    client = await nats.connect(nats_server.url)
    await client.jetstream().add_stream(name="large", subjects=["large"])
    sink = NatsSink(NatsConfig(url=nats_server.url, subject="large"))
    await sink.open()
    events = [order_event(1), order_event(2, properties=b'{"a":"%b"}' % (b"x" * 70_000)), order_event(3)]
    items = items_of(sink, events)
    answer = await sink.send("publish", items)
    assert not isinstance(answer, Fault)
    assert [each.outcome for each in answer] == [Outcome.DELIVERED, Outcome.REFUSED, Outcome.DELIVERED]
    await sink.close()
    await client.close()


async def test_nats_without_a_stream_waits_for_a_person(nats_server: NatsServer) -> None:
    sink = NatsSink(NatsConfig(url=nats_server.url, subject="nobody"))
    await sink.open()
    items = items_of(sink, [order_event(1)])
    answer = await sink.send("publish", items)
    assert isinstance(answer, Fault) and answer.kind is FaultKind.DENIED, answer
    (finding,) = await sink.check()
    assert not finding.is_fine and "nobody" in finding.message
    await sink.close()


async def test_a_full_nats_stream_is_an_outage_and_costs_no_event(nats_server: NatsServer) -> None:
    client = await nats.connect(nats_server.url)
    config = nats.js.api.StreamConfig(name="full", subjects=["full"], max_msgs=2, discard=nats.js.api.DiscardPolicy.NEW)
    await client.jetstream().add_stream(config)
    sink = NatsSink(NatsConfig(url=nats_server.url, subject="full"))
    await sink.open()
    items = items_of(sink, [order_event(number) for number in range(3)])
    answer = await sink.send("publish", items)
    assert not isinstance(answer, Fault)
    assert sorted(each.outcome.value for each in answer) == ["again", "delivered", "delivered"]
    last = items[[each.outcome for each in answer].index(Outcome.AGAIN)]
    fault = await sink.send("publish", [last])
    assert isinstance(fault, Fault) and fault.kind is FaultKind.OUTAGE, fault
    await sink.close()
    await client.close()


async def test_nats_asks_for_the_token() -> None:
    server = NatsServer("authorization { token: right }")
    try:
        for token, kind in (("wrong", FaultKind.DENIED), ("right", None)):
            sink = NatsSink(NatsConfig(url=server.url, subject="a", token=token))
            await sink.open()
            if kind is None:
                client = await nats.connect(server.url, token=token)
                await client.jetstream().add_stream(name="a", subjects=["a"])
                await client.close()
            items = items_of(sink, [order_event(1)])
            answer = await sink.send("publish", items)
            assert (answer.kind if isinstance(answer, Fault) else None) is kind, answer
            await sink.close()
    finally:
        server.remove()


# Kafka


async def test_kafka_refuses_what_is_too_large_and_takes_the_rest(mock_kafka: MockKafka) -> None:
    mock_kafka.add_topic("large")
    sink = KafkaSink(KafkaConfig(brokers=mock_kafka.brokers, topic="large", properties={"message.max.bytes": "50000"}))
    await sink.open()
    events = [
        order_event(1, key="c"),
        order_event(2, key="c", properties=b'{"a":"%b"}' % (b"x" * 70_000)),
        order_event(3, key="c"),
    ]
    answer = await sink.send("produce", items_of(sink, events))
    assert not isinstance(answer, Fault)
    assert [each.outcome for each in answer] == [Outcome.DELIVERED, Outcome.REFUSED, Outcome.DELIVERED]
    await sink.close()


async def test_a_producer_that_never_goes_away_holds_up_nobody(
    mock_kafka: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    going, release = queue.SimpleQueue[str](), threading.Event()

    class Lasting(confluent_kafka.Producer):
        def __del__(self) -> None:
            going.put(threading.current_thread().name)
            release.wait()

    monkeypatch.setattr(confluent_kafka, "Producer", Lasting)
    mock_kafka.add_topic("lasting")
    sink = KafkaSink(KafkaConfig(brokers=mock_kafka.brokers, topic="lasting"))
    try:
        await sink.open()
        items = items_of(sink, [order_event(1)])
        assert await sink.send("produce", items) == [DELIVERED]
        await asyncio.wait_for(sink.close(), 20)
        assert going.get(timeout=20) == "headrace-kafka"
    finally:
        release.set()


async def test_kafka_without_the_topic_waits_for_a_person(real_kafka: RealKafka) -> None:
    sink = KafkaSink(KafkaConfig(brokers=real_kafka.brokers, topic="nobody"))
    await sink.open()
    items = items_of(sink, [order_event(1)])
    answer = await sink.send("produce", items)
    assert isinstance(answer, Fault) and answer.kind is FaultKind.DENIED, answer
    assert not (await sink.check())[0].is_fine
    await sink.close()


async def test_a_batch_that_the_broker_finds_too_large_is_split_to_the_event(real_kafka: RealKafka) -> None:
    real_kafka.add_topic("toolarge")
    sink = KafkaSink(KafkaConfig(brokers=real_kafka.brokers, topic="toolarge", compression="none"))
    await sink.open()
    large = order_event(2, key="c", properties=b'{"a":"%b"}' % (b"x" * 400_000))
    answer = await sink.send("produce", items_of(sink, [large]))
    assert not isinstance(answer, Fault) and answer[0].outcome is Outcome.REFUSED, answer
    both = await sink.send("produce", items_of(sink, [large, order_event(3, key="c")]))
    assert isinstance(both, Fault) or both[1].outcome in (Outcome.AGAIN, Outcome.DELIVERED), both
    assert await sink.send("produce", items_of(sink, [order_event(4, key="c")])) == [DELIVERED]
    await sink.close()


async def test_a_frozen_broker_reorders_nothing(real_kafka: RealKafka) -> None:
    """What timed out is purged before it is sent again: a key's events, repetitions by id left out, stay in order."""
    real_kafka.add_topic("frozen")
    section = KafkaConfig(brokers=real_kafka.brokers, topic="frozen", timeout=Duration(2_000_000), concurrency=4)
    sink = KafkaSink(section)
    events = [order_event(number, key=f"c{number % 3}") for number in range(3_000)]
    log = ShopLog()
    await log.append(events)
    ranges = {0: Range(0, len(events))}
    dispatcher = Dispatcher(
        "s", sink, msgspec.structs.replace(section, window=200), log=log, cursors=RangeCursors(ranges), letters=MemorySinkStore(),
        ranges=ranges,
    )  # fmt: skip
    task = asyncio.create_task(dispatcher.run())
    try:
        while not dispatcher.numbers.delivered:
            await asyncio.sleep(0)
        real_kafka.freeze()
        while dispatcher.health().is_ready:
            await asyncio.sleep(0.05)
            assert not task.done()
    finally:
        real_kafka.thaw()
    await asyncio.wait_for(task, 90)
    got = await asyncio.to_thread(kafka_messages, real_kafka.brokers, "frozen")
    for key in ("c0", "c1", "c2"):
        seen = list(dict.fromkeys(each.id for each in got if each.key == key))
        assert seen == [event.id for event in events if event.key == key]


# What a configuration may not say


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RedisStreamConfig(url="http://h"), "url must be redis"),
        (lambda: RedisStreamConfig(url="redis://h", stream="a{b"), "lone brace"),
        (lambda: RedisStreamConfig(url="redis://h", remember=Duration(1)), "remember"),
        (lambda: NatsConfig(url="http://h"), "url must be nats"),
        (lambda: NatsConfig(url="nats://u:p@h"), "holds a user or password"),
        (lambda: NatsConfig(url="nats://h", subject="a.>"), "is no subject"),
        (lambda: KafkaConfig(brokers=("h",), topic="a b"), "is no topic"),
        (lambda: KafkaConfig(brokers=("h",), properties={"acks": "0"}), "properties.acks: is set by us"),
        (lambda: KafkaConfig(brokers=("h",), poison="hold", order=OrderConfig(mode="run")), "can't keep back"),
    ],
)
def test_a_wrong_section_is_told(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_name_that_an_event_does_not_make_is_its_own_fault() -> None:
    sink = KafkaSink(KafkaConfig(brokers=("h",), topic="shop.{key}"))
    with pytest.raises(Unfit, match="is no topic"):
        sink.prepare(order_event(1, key="ü"), 0, "ü")
    item = sink.prepare(order_event(1, key="u"), 0, "u")
    assert item is not None and item.payload[0] == "shop.u"
