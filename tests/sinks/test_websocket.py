"""GET /v1/ws over the real server: credit, acks, filters that change, endings."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from serving import DEADLINE_S, Served, serving, until
from shop_log import ShopLog, order_event


async def receive(socket: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(DEADLINE_S):
        return [json.loads((await socket.receive(timeout=DEADLINE_S)).data) for _ in range(count)]


async def is_silent(socket: aiohttp.ClientWebSocketResponse) -> bool:
    """Nothing has come by the time that an ack of now is answered for, or half a round of the server."""
    try:
        await socket.receive(timeout=0.1)
    except TimeoutError:
        return True
    return False


def offsets(messages: list[dict[str, Any]]) -> list[int]:
    assert {message["type"] for message in messages} == {"event"}, messages
    return [message["data"]["offset"] for message in messages]


def opened(served: Served, **headers: str) -> Any:
    return served.http.ws_connect(f"{served.url}/v1/ws", headers=headers)


async def test_no_more_events_come_than_there_is_credit_for() -> None:
    log = ShopLog()
    await log.append([order_event(number) for number in range(600)])
    async with serving(log) as served, opened(served) as socket:
        await socket.send_json({"type": "subscribe", "from": "earliest", "credit": 3})
        assert offsets(await receive(socket, 3)) == [0, 1, 2]
        assert await is_silent(socket)
        await socket.send_json({"type": "credit", "events": 400})
        assert offsets(await receive(socket, 400)) == list(range(3, 403))
        await socket.send_json({"type": "credit", "events": 1000})
        assert offsets(await receive(socket, 197)) == list(range(403, 600))
        await log.append([order_event(600)])
        (last,) = await receive(socket, 1)
        assert (last["data"]["offset"], last["cursor"]) == (600, "g1.601")


async def test_an_ack_commits_and_another_connection_goes_on_behind_it() -> None:
    log = ShopLog()
    await log.append([order_event(number) for number in range(10)])
    async with serving(log) as served:
        async with opened(served) as socket:
            await socket.send_json({"type": "subscribe", "from": "earliest", "subscription": "mailer", "credit": 10})
            messages = await receive(socket, 10)
            await socket.send_json({"type": "ack", "cursor": messages[6]["cursor"]})
            assert await receive(socket, 1) == [{"type": "acked", "cursor": messages[6]["cursor"]}]
        async with opened(served) as socket:
            await socket.send_json({"type": "subscribe", "subscription": "mailer", "credit": 100})
            assert offsets(await receive(socket, 3)) == [7, 8, 9]


async def test_a_filter_may_change_on_the_way() -> None:
    log = ShopLog()
    await log.append([order_event(number, key=str(number % 2)) for number in range(4)])
    async with serving(log) as served, opened(served) as socket:
        await socket.send_json({"type": "subscribe", "from": "earliest", "key": ["1"], "credit": 100})
        assert offsets(await receive(socket, 2)) == [1, 3]
        await socket.send_json({"type": "filter", "where": {"properties.id": {"at_least": 6}}})
        await log.append([order_event(number, key="0") for number in (4, 5, 6, 7)])
        found = [message for message in await receive(socket, 2) if message["type"] == "event"]
        assert offsets(found) == [6, 7][: len(found)]
        await socket.send_json({"type": "filter", "key": ["none"]})
        await log.append([order_event(8, key="0")])
        while (message := (await receive(socket, 1))[0])["type"] == "event":
            pass
        assert message == {"type": "place", "cursor": "g1.9"}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (["{"], "no JSON"),
        (["[]"], "no JSON object"),
        ([{"type": "credit", "events": -1}], "credit must be"),
        ([{"type": "ack", "cursor": "x"}], "an ack needs"),
        ([{"type": "hello"}], "can't be used"),
        ([{"type": "subscribe", "nonsense": 1}], "'nonsense' is unknown"),
        ([{"type": "subscribe", "from": "g2.1", "credit": 1}], "another log"),
        ([{"type": "subscribe", "where": {"a": 1}}], "parameter where"),
        ([{"type": "subscribe"}, {"type": "subscribe"}], "subscribes once"),
        ([{"type": "subscribe"}, {"type": "filter", "from": "latest"}], "'from' is unknown"),
        ([{"type": "subscribe", "subscription": "m"}, {"type": "ack", "cursor": "x"}], "parameter cursor"),
    ],
)
async def test_what_cannot_be_understood_ends_the_connection_with_words(messages: list[Any], said: str) -> None:
    async with serving(ShopLog()) as served, opened(served) as socket:
        for message in messages:
            await socket.send_str(message if isinstance(message, str) else json.dumps(message))
        (error,) = await receive(socket, 1)
        assert error["type"] == "error" and said in error["error"]
        assert (await socket.receive(timeout=DEADLINE_S)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await until(lambda: served.subscriptions.status()["readers"] == 0)


async def test_a_trimmed_place_is_told_with_the_earliest() -> None:
    log = ShopLog()
    await log.append_one_by_one([order_event(number) for number in range(4)])
    await log.trim(0, 2, force=True)
    async with serving(log) as served, opened(served) as socket:
        await socket.send_json({"type": "subscribe", "from": "g1.0", "credit": 1})
        (error,) = await receive(socket, 1)
        assert (error["type"], error["reason"], error["earliest"]) == ("error", "trimmed", "g1.2")


async def test_a_page_of_another_origin_is_refused() -> None:
    async with serving(ShopLog()) as served:
        with pytest.raises(aiohttp.WSServerHandshakeError) as told:
            async with opened(served, Origin="https://evil.example"):
                pass
        assert told.value.status == 403
        async with opened(served, Origin=served.url) as socket:
            await socket.send_json({"type": "subscribe"})


async def test_a_client_that_goes_is_noticed() -> None:
    async with serving(ShopLog()) as served:
        async with opened(served) as socket:
            await socket.send_json({"type": "subscribe", "credit": 1})
            async with asyncio.timeout(DEADLINE_S):
                while served.subscriptions.status()["readers"] != 1:
                    await asyncio.sleep(0.001)
        async with asyncio.timeout(DEADLINE_S):
            while served.subscriptions.status()["readers"]:
                await asyncio.sleep(0.001)


async def test_one_that_would_rather_skip_is_told_what_it_missed_while_it_had_no_credit() -> None:
    log = ShopLog()
    async with serving(log) as served, opened(served) as socket:
        await socket.send_json({"type": "subscribe", "slow": "skip", "behind": 100, "credit": 1})
        await until(lambda: any(reader.place.offsets for reader in served.subscriptions._readers))
        await log.append([order_event(0)])
        assert offsets(await receive(socket, 1)) == [0]
        await log.append([order_event(number) for number in range(1, 301)])
        await socket.send_json({"type": "credit", "events": 5})
        assert await receive(socket, 1) == [
            {"type": "gap", "cursor": "g1.301", "from": "g1.1", "to": "g1.301", "events": 300}
        ]
        await log.append([order_event(301)])
        assert offsets(await receive(socket, 1)) == [301]
