"""Named subscriptions, shares and conditions over the real server; tokens with scopes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import pytest

from headrace.cdc.config import Duration, ServerConfig
from headrace.sinks import subscribe as subscribe_module
from headrace.sinks.subscribe import SubscribeConfig
from serving import DEADLINE_S, Sent, Served, sent_events, serving, take
from shop_log import ShopLog, order_event


async def opened(served: Served, query: str) -> tuple[aiohttp.ClientResponse, AsyncGenerator[Sent, None]]:
    response = await served.http.get(f"{served.url}/v1/stream?{query}")
    assert response.status == 200, await response.text()
    return response, sent_events(response)


async def commit(served: Served, name: str, cursor: str) -> tuple[int, Any]:
    async with served.http.post(f"{served.url}/v1/subscriptions/{name}/commit", json={"cursor": cursor}) as response:
        return response.status, await response.json()


async def names(served: Served) -> dict[str, Any]:
    async with served.http.get(f"{served.url}/v1/subscriptions") as response:
        found: dict[str, Any] = (await response.json())["subscriptions"]
        return found


async def test_a_named_subscription_goes_on_behind_what_it_committed() -> None:
    log = ShopLog()
    await log.append_one_by_one([order_event(number) for number in range(6)])
    async with serving(log) as served:
        response, events = await opened(served, "subscription=mailer&from=earliest")
        three = await take(events, 3)
        assert await commit(served, "mailer", three[1].id) == (200, {"committed": three[1].id})
        response.close()
        response, events = await opened(served, "subscription=mailer&from=earliest")
        assert [sent.data["offset"] for sent in await take(events, 4)] == [2, 3, 4, 5], (
            "from= is for its beginning only"
        )
        response.close()
        assert (await names(served))["mailer"] | {"unused_s": 0} == {
            "offsets": {"0": 2},
            "lag_events": 4,
            "unused_s": 0,
        }
        assert await log.trim(0, 6) == 2, "the log keeps what it hasn't read"
        async with served.http.delete(f"{served.url}/v1/subscriptions/mailer") as answer:
            assert answer.status == 200
        assert await names(served) == {} and await log.trim(0, 6) == 6


async def test_a_new_name_holds_the_log_from_its_first_request_on() -> None:
    log = ShopLog()
    await log.append_one_by_one([order_event(number) for number in range(3)])
    async with serving(log) as served:
        response, _ = await opened(served, "subscription=mailer")
        assert (await names(served))["mailer"]["offsets"] == {"0": 3}
        response.close()
        async with served.http.get(f"{served.url}/v1/events?subscription=page&limit=2") as answer:
            assert len((await answer.text()).splitlines()) == 2
        assert (await names(served))["page"]["offsets"] == {"0": 0}, "a page that wasn't committed comes again"


@pytest.mark.parametrize(
    ("name", "cursor", "status"),
    [
        ("mailer", "nonsense", 400),
        ("mailer", "g2.1", 409),
        ("mailer", "g1.99", 409),
        ("mailer", "g1.0", 409),
        ("nobody", "g1.1", 404),
    ],
)
async def test_what_cannot_be_committed_is_refused(name: str, cursor: str, status: int) -> None:
    log = ShopLog()
    await log.append_one_by_one([order_event(number) for number in range(3)])
    async with serving(log) as served:
        response, _ = await opened(served, "subscription=mailer&from=1")
        assert (await commit(served, name, cursor))[0] == status
        response.close()
        async with served.http.post(
            f"{served.url}/v1/subscriptions/mailer/commit", data=b'{"cursor":"g1.2"}'
        ) as answer:
            assert answer.status == 415
        async with served.http.get(f"{served.url}/v1/stream?subscription=a/b") as answer:
            assert answer.status == 400


async def test_a_name_that_nobody_uses_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribe_module, "_TEND_EVERY_S", 0.0)
    monkeypatch.setattr(subscribe_module, "_TICK_S", 0.01)
    monkeypatch.setattr("headrace.sinks.named._TOUCH_EVERY_S", -1.0)
    log = ShopLog()
    async with serving(log, subscribe=SubscribeConfig(forget_after=Duration.parse("1s"))) as served:
        response, _ = await opened(served, "subscription=used")
        other, _ = await opened(served, "subscription=left")
        other.close()
        async with asyncio.timeout(DEADLINE_S):
            while "left" in await names(served):
                await asyncio.sleep(0.02)
        assert "used" in await names(served)
        response.close()


@pytest.mark.parametrize("partitions", [1, 3])
async def test_shares_part_the_customers_and_each_has_its_own_place(partitions: int) -> None:
    log = ShopLog(partitions)
    await log.append([order_event(number, key=f"c{number % 50}") for number in range(200)])
    async with serving(log) as served:
        seen: dict[int, set[str]] = {}
        total = 0
        for share in range(3):
            async with served.http.get(f"{served.url}/v1/events?subscription=s&share={share}/3&limit=1000") as answer:
                lines = [json.loads(line) for line in (await answer.text()).splitlines()]
                seen[share] = {line["customer_key"] for line in lines}
                total += len(lines)
                assert (await commit(served, f"s.{share}-3", answer.headers["Headrace-Next"]))[0] == 200
        assert total == 200 and all(seen.values())
        assert not (seen[0] & seen[1] or seen[1] & seen[2] or seen[0] & seen[2])
        assert set(await names(served)) == {"s.0-3", "s.1-3", "s.2-3"}
        for bad in ("3/3", "x", "1", "0/0"):
            async with served.http.get(f"{served.url}/v1/events", params={"share": bad}) as answer:
                assert answer.status == 400


async def test_conditions_are_those_of_a_pipelines_step() -> None:
    log = ShopLog()
    await log.append([order_event(number, key=str(number)) for number in range(6)])
    async with serving(log) as served:

        async def offsets(where: Any) -> list[int]:
            text = where if isinstance(where, str) else json.dumps(where)
            async with served.http.get(f"{served.url}/v1/events", params={"where": text}) as answer:
                assert answer.status == 200, await answer.text()
                return [json.loads(line)["offset"] for line in (await answer.text()).splitlines()]

        assert await offsets({"properties.id": {"above": 3}}) == [4, 5]
        assert await offsets({"key": ["1", "5"], "properties.id": {"below": 4}}) == [1]
        assert await offsets({"properties.nothing": {"exists": True}}) == []
        for bad in ("x", "[]", json.dumps({"nothing.id": 1}), json.dumps({"properties.id": {"over": 1}})):
            async with served.http.get(f"{served.url}/v1/events", params={"where": bad}) as answer:
                assert answer.status == 400
                assert (await answer.json())["parameter"] == "where"


async def test_a_token_may_what_its_scopes_say() -> None:
    tokens = {"all": "t-all", "mailer": "t-mail", "model": "t-model", "none": "t-none"}
    config = ServerConfig(
        listen="127.0.0.1:0", tokens=tokens, scopes={"mailer": ["events"], "model": ["features", "status"], "none": []}
    )
    async with serving(ShopLog(), config=config) as served:

        async def status(token: str | None, method: str, path: str) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            async with served.http.request(
                method, served.url + path, headers=headers, json={"cursor": "x"} if method == "POST" else None
            ) as answer:
                return answer.status

        for path in ("/v1/events", "/v1/subscriptions"):
            assert [
                await status(token, "GET", path) for token in ("t-all", "t-mail", "t-model", "t-none", None, "t")
            ] == [200, 200, 403, 403, 401, 401]
        assert [await status(token, "GET", "/v1/status") for token in ("t-all", "t-mail", "t-model")] == [200, 403, 200]
        assert await status("t-mail", "POST", "/v1/subscriptions/x/commit") == 404
        assert await status("t-mail", "DELETE", "/v1/subscriptions/x") == 404
        for path in ("/v1/sources/shop/snapshot", "/v1/customers/erase", "/v1/deadletters/drop"):
            assert await status("t-mail", "POST", path) == 403 and await status("t-model", "POST", path) == 403
