"""GET /v1/events: pages, long polls, cursors, and what is said of a bad request."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from serving import DEADLINE_S, Served, serving, until
from shop_log import ShopLog, heartbeat, order_event


async def pull(served: Served, query: str = "") -> tuple[list[dict[str, Any]], str]:
    async with asyncio.timeout(DEADLINE_S):
        response = await served.http.get(f"{served.url}/v1/events{query}")
        body = await response.read()
    assert response.status == 200, body
    assert response.content_type == "application/x-ndjson"
    return [msgspec.json.decode(line) for line in body.splitlines()], response.headers["Headrace-Next"]


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_pages_joined_by_their_cursor_are_the_log(partitions: int, limit: int) -> None:
    log = ShopLog(partitions)
    await log.append([order_event(number) if number % 9 else heartbeat(number) for number in range(300)])
    async with serving(log) as served:
        seen: list[dict[str, Any]] = []
        page, cursor = await pull(served, f"?limit={limit}")
        while page:
            assert len(page) <= limit
            seen += page
            page, cursor = await pull(served, f"?limit={limit}&from={cursor}")
        for partition in range(partitions):
            lane = [line["offset"] for line in seen if line["partition"] == partition]
            assert lane == sorted(set(lane))
        assert {line["id"] for line in seen} == {f"shop-{number}" for number in range(300) if number % 9}


async def test_small_pages_reach_every_partition() -> None:
    log = ShopLog(partitions=4)
    await log.append([order_event(number) for number in range(400)])
    async with serving(log) as served:
        reached: set[int] = set()
        cursor = "earliest"
        for _ in range(20):
            page, cursor = await pull(served, f"?limit=3&from={cursor}")
            reached |= {line["partition"] for line in page}
        assert reached == {0, 1, 2, 3}


async def test_a_long_poll_answers_with_the_first_event_that_passes() -> None:
    log = ShopLog()
    async with serving(log) as served:
        polling = asyncio.create_task(pull(served, "?from=latest&wait=60&kind=page"))
        await until(lambda: any(reader.waker for reader in served.subscriptions._readers))
        await log.append([order_event(1)])
        await log.append([order_event(2, kind="page")])
        page, cursor = await polling
        assert ([line["id"] for line in page], cursor) == (["shop-2"], "g1.2")


async def test_a_long_poll_without_events_ends_with_a_cursor_past_what_was_filtered() -> None:
    log = ShopLog()
    await log.append([order_event(1), order_event(2)])
    async with serving(log) as served:
        assert await pull(served, "?kind=page&wait=0.01") == ([], "g1.2")


async def test_a_trimmed_place_is_410_with_the_oldest_that_is_kept() -> None:
    log = ShopLog()
    await log.append_one_by_one([order_event(number) for number in range(10)])
    await log.trim(0, 6)
    async with serving(log) as served:
        response = await served.http.get(f"{served.url}/v1/events?from=2")
        body = await response.json()
        assert response.status == 410
        assert (body["first_offset"], body["earliest"], body["reason"]) == (6, "g1.6", "trimmed")
        assert len((await pull(served, f"?from={body['earliest']}"))[0]) == 4


async def test_a_cursor_of_another_log_is_refused_in_words() -> None:
    async with serving(ShopLog(generation="new")) as served:
        for path in ("events", "stream"):
            response = await served.http.get(f"{served.url}/v1/{path}?from=old.0")
            assert response.status == 409
            assert "another log" in (await response.json())["error"]


async def test_a_cursor_ahead_of_an_older_copy_of_the_log_is_refused() -> None:
    async with serving(ShopLog()) as served:
        response = await served.http.get(f"{served.url}/v1/events?from=g1.7")
        assert response.status == 409
        assert "older copy" in (await response.json())["advice"]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("from=yesterday", "from"),
        ("from=-1", "from"),
        ("from=5", "from"),
        ("from=g1.0-0", "from"),
        ("from=g1.7@0", "from"),
        ("from=1&from=2", "from"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=many", "limit"),
        ("limit=%D9%A3", "limit"),
        ("wait=61", "wait"),
        ("wait=soon", "wait"),
        ("partition=1", "partition"),
        ("kind=purchase", "kind"),
        ("name=", "name"),
        ("heartbeats=yes", "heartbeats"),
        ("envelope=avro", "envelope"),
        ("tabel=orders", "tabel"),
    ],
)
async def test_a_bad_parameter_is_named(query: str, parameter: str) -> None:
    async with serving(ShopLog()) as served:
        response = await served.http.get(f"{served.url}/v1/events?{query}")
        body = await response.json()
        assert response.status == 400, body
        assert body["parameter"] == parameter
        assert parameter in body["error"]
        assert body["advice"]


async def test_an_offset_of_a_log_with_partitions_needs_the_partition() -> None:
    log = ShopLog(partitions=2)
    await log.append([order_event(number) for number in range(20)])
    async with serving(log) as served:
        response = await served.http.get(f"{served.url}/v1/events?from=3")
        assert response.status == 400
        assert "partition" in (await response.json())["error"]
        page, cursor = await pull(served, "?from=3&partition=1&limit=2")
        assert [(line["partition"], line["offset"]) for line in page] == [(1, 3), (1, 4)]
        assert cursor == "g1.1@5"


async def test_stream_knows_no_limit_and_no_head() -> None:
    async with serving(ShopLog()) as served:
        assert (await served.http.get(f"{served.url}/v1/stream?limit=3")).status == 400
        assert (await served.http.head(f"{served.url}/v1/stream")).status == 405


async def test_a_pull_sees_what_was_appended_while_nobody_read() -> None:
    log = ShopLog()
    async with serving(log) as served:
        assert await pull(served) == ([], "g1.0")
        await log.append([order_event(1)])
        assert (await pull(served))[1] == "g1.1"
