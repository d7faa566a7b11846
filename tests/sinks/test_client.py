"""The Python client against the real server, through links that are cut: each event once, in order."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cdc.config import ServerConfig
from headrace.sinks import client as client_module
from headrace.sinks.client import SseParser, SubscriptionRefused, SubscriptionTrimmed, subscribe
from proxy import Proxy
from serving import DEADLINE_S, serving
from shop_log import ShopLog, order_event


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(client_module, "_LONGEST_PAUSE_S", 0.05)


@pytest.mark.parametrize("seed", range(3))
async def test_cut_links_lose_and_double_nothing(seed: int) -> None:
    rng = random.Random(seed)
    log = ShopLog()
    total = 800
    async with serving(log) as served:
        proxy = Proxy(int(served.url.rpartition(":")[2]))
        await proxy.start()

        async def write() -> None:
            for number in range(total):
                await log.append([order_event(number)])
                if rng.random() < 0.02:
                    (proxy.cut if rng.random() < 0.5 else proxy.reset)()
                if number % 20 == 0:
                    await asyncio.sleep(0.001)

        seen: list[int] = []
        async with (
            asyncio.timeout(DEADLINE_S * 4),
            subscribe(f"http://127.0.0.1:{proxy.port}", start="earliest") as events,
        ):
            writing = asyncio.create_task(write())
            async for event in events:
                seen.append(event.data["offset"])
                if len(seen) == total:
                    break
            await writing
            assert events.cursor == f"g1.{total}"
            assert events.connections > 1, f"seed {seed}: no link was cut"
        assert seen == list(range(total)), f"seed {seed}"
        await proxy.stop()


async def test_a_named_subscription_is_committed_and_goes_on() -> None:
    log = ShopLog()
    await log.append([order_event(number, key=str(number)) for number in range(10)])
    async with serving(log) as served:
        async with (
            asyncio.timeout(DEADLINE_S),
            subscribe(served.url, subscription="mailer", start="earliest") as events,
        ):
            async for event in events:
                if event.data["offset"] == 3:
                    await events.commit()
                    break
        async with (
            asyncio.timeout(DEADLINE_S),
            subscribe(served.url, subscription="mailer", where={"properties.id": {"not": 5}}) as events,
        ):
            found = [(await anext(aiter(events))).data["offset"] for _ in range(5)]
        assert found == [4, 6, 7, 8, 9]
        async with (
            asyncio.timeout(DEADLINE_S),
            subscribe(served.url, subscription="mailer", share="0/2", start="earliest") as events,
        ):
            await anext(aiter(events))
            await events.commit()
        async with subscribe(served.url) as events:
            with pytest.raises(SubscriptionRefused, match="with a name"):
                await events.commit("g1.1")


async def test_what_the_server_refuses_is_raised_with_its_words() -> None:
    log = ShopLog()
    await log.append_one_by_one([order_event(number) for number in range(4)])
    await log.trim(0, 2, force=True)
    config = ServerConfig(listen="127.0.0.1:0", tokens={"reader": "t"})
    async with serving(log, config=config) as served, asyncio.timeout(DEADLINE_S):
        for more, said in (
            ({}, "bearer token"),
            ({"token": "t", "start": "99"}, "beyond the end"),
            ({"token": "t", "kind": ["x"]}, "parameter kind"),
        ):
            async with subscribe(served.url, **more) as events:  # type: ignore[arg-type]  # by name
                with pytest.raises(SubscriptionRefused, match=said):
                    await anext(aiter(events))
        async with subscribe(served.url, token="t", start="g1.0") as events:
            with pytest.raises(SubscriptionTrimmed) as told:
                await anext(aiter(events))
            assert told.value.earliest == "g1.2"


@given(st.lists(st.integers(1, 9), max_size=30))
def test_the_parser_is_blind_to_how_bytes_are_cut(sizes: list[int]) -> None:
    raw = b'retry: 1000\r\nid: g.1\r\n\r\n: comment\nid: g.2\nevent: track\ndata: {"a":\ndata: 1}\n\nid: g.3\n\ndata:x\n\n'
    parser = SseParser()
    found = []
    at = 0
    for size in [*sizes, len(raw)]:
        found += parser.feed(raw[at : at + size])
        at += size
    assert found == [("g.2", "track", '{"a":\n1}'), ("g.3", "", "x")]
    assert parser.last_id == "g.3"
