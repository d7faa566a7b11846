"""Sinks as consumers: from a configuration to requests, side by side; what people see of them, and how they hold one back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from headrace.cdc import config as configuration
from headrace.cdc.config import Config
from headrace.cdc.consumer import Services
from headrace.cdc.errors import SinkStoreError
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.sources.ending import end
from headrace.sinks.base import Item
from headrace.sinks.deadletter import DeadLetter, MemorySinkStore
from headrace.sinks.delivery import SinkConsumer, Sinks
from headrace.sinks.http import HttpSink
from headrace.sinks.httpdefinition import Destination, HttpConfig
from headrace.sinks.sinkfile import SinkFile
from headrace.sinks.verdict import Answer
from hook_server import Hook, hook_server
from shop_log import ShopLog, order_event

DEADLINE_S = 60.0


@pytest.fixture
def hook() -> Iterator[Hook]:
    with hook_server() as found:
        yield found


def config(folder: Path, **sinks: str) -> Config:
    """Sinks by name, each the YAML of its settings beside type http."""
    import yaml

    tree = {
        "log": {"path": "shop.log.db"},
        "sources": {"shop": {"type": "postgres", "dsn": "host=none"}},
        "sinks": {name: {"type": "http", **yaml.safe_load(text)} for name, text in sinks.items()},
    }
    return configuration.parse(tree, folder=folder)


class Running:
    def __init__(self, log: SQLiteLog, consumers: list[SinkConsumer], registry: CollectorRegistry) -> None:
        self.log = log
        self.consumers = consumers
        self.registry = registry

    def metric(self, name: str, sink: str) -> float:
        found = self.registry.get_sample_value(name, {"sink": sink})
        assert found is not None, name
        return found


@contextlib.asynccontextmanager
async def running(settings: Config) -> AsyncIterator[Running]:
    registry = CollectorRegistry()
    log = await SQLiteLog.open(settings.path("shop.log.db"))
    consumers = list(Sinks.build(settings.sections["sinks"], Services(settings, log, registry)))
    tasks = [asyncio.create_task(consumer.run()) for consumer in consumers]
    try:
        yield Running(log, consumers, registry)
        for task in tasks:
            assert not task.done() or await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await log.close()


async def until(claim: Callable[[], bool], state: Callable[[], object] = lambda: "") -> None:
    """state: told when the claim doesn't come true."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not claim():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it didn't happen in {DEADLINE_S:.0f} s: {state()}") from None


def numbers(hook: Hook) -> list[int]:
    return [int(body["id"].removeprefix("shop-")) for body in hook.got]


async def test_each_customers_events_arrive_once_and_in_order_over_a_restart(tmp_path: Path, hook: Hook) -> None:
    settings = config(tmp_path, crm=f"destination: {{url: '{hook.url}'}}")
    events = [order_event(number, key=str(number % 7)) for number in range(200)]
    async with running(settings) as first:
        await first.log.append(events[:120], source="shop", state=b"")
        await until(lambda: len(hook.got) == 120)
    async with running(settings) as second:
        await second.log.append(events[120:], source="shop", state=b"")
        await until(lambda: second.consumers[0].status()["offset"] == [200])
        assert second.metric("headrace_sink_delivered_events_total", "crm") == 80
        assert second.metric("headrace_sink_end_to_end_seconds_count", "crm") == 80
        assert second.metric("headrace_sink_held_events", "crm") == 0
        assert second.metric("headrace_sink_oldest_unacked_seconds", "crm") == 0
        assert b'headrace_sink_breaker_state_code{sink="crm"} 0.0' in generate_latest(second.registry)
    assert sorted(numbers(hook)) == list(range(200))
    for key in range(7):
        mine = [number for number in numbers(hook) if number % 7 == key]
        assert mine == sorted(mine)


async def test_a_dead_destination_delays_nobody_else_and_is_named(tmp_path: Path, hook: Hook) -> None:
    settings = config(
        tmp_path,
        dead="{destination: {url: 'http://127.0.0.1:1/hush?token=hush'}, concurrency: 8}",
        fine=f"destination: {{url: '{hook.url}'}}",
    )
    async with running(settings) as both:
        dead, fine = both.consumers
        await both.log.append([order_event(number) for number in range(50)], source="shop", state=b"")
        await until(
            lambda: fine.status()["offset"] == [50] and dead.status()["breaker"] == "open",
            lambda: (fine.status(), dead.status(), hook.requests),
        )
        verdict = next(iter(dead.health()))
        assert (verdict.part, verdict.is_ready) == ("sinks/dead", False)
        assert "127.0.0.1 can't be reached" in verdict.reason and "hush" not in verdict.reason
        assert next(iter(fine.health())).is_ready
        status = dead.status()
        assert (status["offset"], status["delivered_events"], status["held_events"], status["dead_events"]) == (
            [0],
            0,
            50,
            0,
        )
        assert both.metric("headrace_sink_oldest_unacked_seconds", "dead") > 0
        assert (await both.log.committed("sink:dead", 0)) is not None, "the log keeps what it hasn't got"


async def test_a_start_at_the_end_leaves_history_out(tmp_path: Path, hook: Hook) -> None:
    settings = config(tmp_path, crm=f"{{start: latest, destination: {{url: '{hook.url}'}}}}")
    log = await SQLiteLog.open(settings.path("shop.log.db"))
    await log.append([order_event(1)], source="shop", state=b"")
    await log.close()
    async with running(settings) as work:
        await until(lambda: work.consumers[0].status()["offset"] == [1])
        await work.log.append([order_event(2)], source="shop", state=b"")
        await until(lambda: numbers(hook) == [2])


async def test_a_paused_sink_waits_over_a_restart_and_goes_on(tmp_path: Path, hook: Hook) -> None:
    settings = config(tmp_path, crm=f"destination: {{url: '{hook.url}'}}")
    store = SinkFile(tmp_path / "shop.log.db.sinks")
    await store.pause("crm", 1_700_000_000_000_000)
    async with running(settings) as work:
        consumer = work.consumers[0]
        await work.log.append([order_event(1)], source="shop", state=b"")
        await until(lambda: consumer.status()["held_events"] == 1)
        verdict = next(iter(consumer.health()))
        assert not verdict.is_ready and "paused by a person since 2023-11-14 22:13:20 UTC" in verdict.reason
        assert hook.requests == 0
        await store.resume("crm")
        await until(lambda: numbers(hook) == [1])
    await store.close()


async def test_a_held_key_goes_on_once_its_dead_letters_are_gone(tmp_path: Path, hook: Hook) -> None:
    settings = config(tmp_path, crm=f"{{poison: hold, destination: {{url: '{hook.url}'}}}}")
    hook.answer = lambda body: 422 if body["id"] == "shop-1" else 200
    store = SinkFile(tmp_path / "shop.log.db.sinks")
    async with running(settings) as work:
        await work.log.append([order_event(n, key="a" if n < 4 else "b") for n in range(6)], source="shop", state=b"")
        await until(lambda: work.consumers[0].status()["offset"] == [6])
        letters = await store.letters("crm")
        assert [(letter.offset, letter.is_held, letter.reason) for letter in letters] == [
            (1, False, "127.0.0.1 answers 422"),
            (2, True, "held back: event 1 of its key is a dead letter"),
            (3, True, "held back: event 1 of its key is a dead letter"),
        ]
        assert sorted(numbers(hook)) == [0, 4, 5]
        await store.remove(letters)
        await asyncio.sleep(0)
        consumer = work.consumers[0]
        await consumer._look()
        await work.log.append([order_event(9, key="a")], source="shop", state=b"")
        await until(lambda: 9 in numbers(hook))
    await store.close()


async def test_a_busy_kind_of_request_leaves_room_for_the_others(hook: Hook) -> None:
    destination = msgspec.convert(
        {
            "url": hook.url,
            "actions": [
                {"when": {"name": ["busy"]}, "body": {"id": "{id}"}},
                {"when": {"name": ["rare"]}, "body": {"id": "{id}"}},
            ],
        },
        Destination,
    )
    log = ShopLog()
    await log.append([order_event(number, name="rare" if number == 0 else "busy") for number in range(400, -1, -1)])
    section = HttpConfig(destination=destination, concurrency=1)
    consumer = SinkConsumer("crm", HttpSink(destination), section, log=log, store=MemorySinkStore())
    running = asyncio.create_task(consumer.run())
    await until(lambda: consumer.status()["offset"] == [401])
    await end(running)
    assert len(hook.got) == 401
    place = [body["id"] for body in hook.got].index("shop-0")
    assert place < 100, "it needn't wait for all the others"


class FailingStore(MemorySinkStore):
    """Its disk is full until ``is_full`` is taken back."""

    is_full = True

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        if self.is_full:
            raise SinkStoreError("the disk is full")
        await super().bury(letters)


async def test_without_a_durable_dead_letter_nothing_goes_on_and_the_next_run_does(hook: Hook) -> None:
    hook.answer = lambda body: 422 if body["id"] == "shop-1" else 200
    log, store = ShopLog(), FailingStore()
    await log.append([order_event(number, key="a") for number in range(3)])
    destination = Destination(url=hook.url)
    section = HttpConfig(destination=destination)
    consumer = SinkConsumer("crm", HttpSink(destination), section, log=log, store=store)
    with pytest.raises(SinkStoreError):
        await consumer.run()
    assert numbers(hook) == [0] and consumer.status()["offset"] == [1]
    store.is_full = False
    running = asyncio.create_task(consumer.run())
    await until(lambda: consumer.status()["offset"] == [3])
    await end(running)
    assert numbers(hook) == [0, 2], "what had its answer isn't sent again"


async def test_what_was_buried_before_a_crash_is_not_sent_again_behind_its_followers(hook: Hook) -> None:
    log, store = ShopLog(), MemorySinkStore()
    await log.append([order_event(number, key="a") for number in range(3)])
    # The cursor of the process that crashed was still before what it had buried, and what it had delivered after that.
    await store.bury([msgspec.structs.replace(_letter(0), generation=log.generation)])
    destination = Destination(url=hook.url)
    consumer = SinkConsumer("crm", HttpSink(destination), HttpConfig(destination=destination), log=log, store=store)
    running = asyncio.create_task(consumer.run())
    await until(lambda: consumer.status()["offset"] == [3])
    await end(running)
    assert numbers(hook) == [1, 2]


async def test_a_defect_of_a_sink_type_stops_that_sink_loudly(hook: Hook) -> None:
    class Broken(HttpSink):
        async def send(self, call: str, items: Sequence[Item]) -> Answer:
            raise ZeroDivisionError

    log = ShopLog()
    await log.append([order_event(1)])
    destination = Destination(url=hook.url)
    consumer = SinkConsumer(
        "crm", Broken(destination), HttpConfig(destination=destination), log=log, store=MemorySinkStore()
    )
    with pytest.raises(ZeroDivisionError):
        await consumer.run()
    assert consumer.status()["offset"] == [0]


def _letter(offset: int, *, sink: str = "crm", partition: int = 0) -> DeadLetter:
    return DeadLetter(sink, "g1", partition, offset, f"k{offset}", "no", 1, False, 5, order_event(offset))


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_dead_letters_are_kept_in_order_once_and_whole(kind: str, tmp_path: Path) -> None:
    store: Any = SinkFile(tmp_path / "x.sinks") if kind == "file" else MemorySinkStore()
    letters = [_letter(3), _letter(1), _letter(2, partition=1), _letter(7, sink="other")]
    await store.bury(letters)
    await store.bury([_letter(1), _letter(4)])
    assert await store.counts() == {"crm": 4, "other": 1}
    assert [letter.offset for letter in await store.letters("crm")] == [1, 3, 4, 2]
    assert (await store.letters("crm", after=(0, 3), limit=1)) == [_letter(4)]
    assert await store.stopped_keys("crm") == {"k1", "k2", "k3", "k4"}
    assert sorted(await store.buried("crm", "g1", 0, 3)) == [3, 4]
    assert await store.buried("crm", "g2", 0, 0) == []
    await store.remove([_letter(1), _letter(1)])
    assert await store.stopped_keys("crm") == {"k2", "k3", "k4"}
    await store.pause("crm", 5)
    await store.pause("crm", 9)
    assert await store.paused() == {"crm": 5}
    await store.close()
    if kind == "file":
        again = SinkFile(tmp_path / "x.sinks")
        assert (await again.letters("crm", limit=1)) == [_letter(3)]
        assert (tmp_path / "x.sinks").stat().st_mode & 0o077 == 0, "it holds whole events"
        await again.resume("crm")
        assert await again.paused() == {}
        await again.close()
