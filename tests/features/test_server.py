"""Feast's HTTP shapes, with true statuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from fix_features import START_US
from headrace.cdc.errors import StoreError
from headrace.features.server import Applied, FeatureServer
from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, EntityWrite, OnlineStore, ViewWrite
from headrace.features.store.memory import MemoryStore

DAY_US = 86_400_000_000
CHECKPOINT = Checkpoint("h", "g", (1,), START_US)

ORDERS = ViewSpec(
    "orders",
    (Field("customer_id", ValueType.INT64),),
    (Field("count_1h", ValueType.INT64), Field("total", ValueType.FLOAT64), Field("status", ValueType.STRING)),
    "h",
    DAY_US,
)
PROFILE = ViewSpec(
    "profile",
    (Field("customer_id", ValueType.INT64), Field("shop", ValueType.STRING)),
    (
        Field("status", ValueType.STRING),
        Field("seen", ValueType.UNIX_TIMESTAMP),
        Field("token", ValueType.BYTES),
        Field("vip", ValueType.BOOL),
    ),
    "h",
)


class Place:
    """The store that the server reads now; None: not open."""

    store: OnlineStore | None = None
    now_s = START_US / 1e6


@pytest.fixture
async def place() -> Place:
    store = MemoryStore()
    await store.open()
    at = Place()
    at.store = store
    rows = [
        EntityWrite((1,), (3, 0.5, "paid"), START_US, b""),
        EntityWrite((2,), (0, float("nan"), None), START_US - 2 * DAY_US, b""),
        EntityWrite((3,), (0, float("inf"), None), START_US - 1_500_000, b""),
    ]
    profile = [EntityWrite((1, "north"), ("gold", 1_700_000_001_000_000, b"\x00\xff", True), START_US, b"")]
    await store.write([ViewWrite(ORDERS, rows, {}, CHECKPOINT), ViewWrite(PROFILE, profile, {}, CHECKPOINT)])
    return at


@pytest.fixture
async def client(place: Place) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application()
    app.add_routes(FeatureServer([ORDERS, PROFILE], lambda: place.store, clock=lambda: place.now_s).routes())
    async with TestClient(TestServer(app)) as made:
        yield made


Client = TestClient[web.Request, web.Application]


async def ask(client: Client, body: Any) -> tuple[int, Any]:
    async with client.post("/get-online-features", json=body) as response:
        return response.status, await response.json()


async def test_features_come_in_columns_with_statuses_and_timestamps_as_feast_has_them(client: Client) -> None:
    body = {"features": ["orders:count_1h", "orders:total", "orders:status"], "entities": {"customer_id": [1, 2, 3, 4]}}
    status, answer = await ask(client, body)
    assert status == 200
    times = ["2023-11-14T22:13:20Z", "2023-11-12T22:13:20Z", "2023-11-14T22:13:18.500000Z", "1970-01-01T00:00:00Z"]
    missing = ["OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND"]
    assert answer == {
        "metadata": {"feature_names": ["customer_id", "count_1h", "total", "status"]},
        "results": [
            {"values": [1, 2, 3, 4], "statuses": ["PRESENT"] * 4, "event_timestamps": ["1970-01-01T00:00:00Z"] * 4},
            {"values": [3, None, 0, None], "statuses": ["PRESENT", *missing], "event_timestamps": times},
            {"values": [0.5, None, "Infinity", None], "statuses": ["PRESENT", *missing], "event_timestamps": times},
            {
                "values": ["paid", None, None, None],
                "statuses": ["PRESENT", "OUTSIDE_MAX_AGE", "NULL_VALUE", "NOT_FOUND"],
                "event_timestamps": times,
            },
        ],
    }


async def test_views_of_other_join_keys_are_read_in_one_request_under_full_names(client: Client) -> None:
    body = {
        "features": ["profile:status", "orders:status", "profile:seen", "profile:token", "profile:vip"],
        "entities": {"customer_id": [1], "shop": ["north"]},
        "full_feature_names": True,
    }
    status, answer = await ask(client, body)
    assert status == 200
    values = {
        name: column["values"][0]
        for name, column in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
    }
    assert values == {
        "customer_id": 1,
        "shop": "north",
        "profile__status": "gold",
        "profile__seen": 1_700_000_001,
        "profile__token": "AP8=",
        "profile__vip": True,
        "orders__status": "paid",
    }


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        (
            {"features": ["x:y"], "entities": {"customer_id": [1]}},
            404,
            "FeatureViewNotFoundException",
            "x does not exist; known: orders, profile",
        ),
        (
            {"features": ["orders:y"], "entities": {"customer_id": [1]}},
            404,
            "FeatureViewNotFoundException",
            "known: count_1h",
        ),
        (
            {"feature_service": "s", "entities": {"customer_id": [1]}},
            404,
            "FeatureServiceNotFoundException",
            "name features as view:feature",
        ),
        (
            {"features": ["orders:total"], "entities": {"id": [1]}},
            422,
            "EntityDFNotFound",
            "join key customer_id is missing",
        ),
        (
            {"features": ["orders:total"], "entities": {"customer_id": ["abc"]}},
            422,
            "FeastError",
            "must be of type Int64",
        ),
        (
            {"features": ["orders:total"], "entities": {"customer_id": [None]}},
            422,
            "FeastError",
            "must be of type Int64",
        ),
        (
            {"features": ["orders:total"], "entities": {"customer_id": [1], "shop": []}},
            422,
            "FeastError",
            "same number of values",
        ),
        ({"features": ["orders:total"], "entities": {}}, 422, "FeastError", "same number of values"),
        (
            {"features": ["orders:total"], "entities": {"customer_id": list(range(10_001))}},
            422,
            "FeastError",
            "10000 at most",
        ),
        ({"features": ["total"], "entities": {"customer_id": [1]}}, 422, "FeastError", "write view:feature"),
        ({"features": [], "entities": {"customer_id": [1]}}, 422, "FeastError", "names no features"),
        (
            {"features": ["orders:status", "profile:status"], "entities": {"customer_id": [1], "shop": ["n"]}},
            422,
            "FeatureNameCollisionError",
            "full_feature_names",
        ),
        ({"features": ["orders:total"]}, 422, "FeastError", "entities"),
    ],
)
async def test_a_refusal_has_feasts_shape_and_says_what_to_do(
    client: Client, body: Any, status: int, kind: str, words: str
) -> None:
    found, answer = await ask(client, body)
    assert found == status
    detail = json.loads(answer)  # a JSON text inside a JSON text
    assert detail["module"] == "feast.errors"
    assert detail["class"] == kind
    assert words in detail["message"]
    assert "abc" not in detail["message"], "a request's values are nobody's business"


async def test_a_body_that_is_no_json_is_refused(client: Client) -> None:
    async with client.post("/get-online-features", data=b"{") as response:
        assert response.status == 422
        assert "can't be read" in json.loads(await response.json())["message"]


async def test_the_same_list_of_features_means_the_same_again_and_with_full_names_another(client: Client) -> None:
    body: dict[str, Any] = {"features": ["orders:count_1h", "orders:status"], "entities": {"customer_id": [1]}}
    first = await ask(client, body)
    assert await ask(client, body | {"entities": {"customer_id": [2]}}) != first
    assert await ask(client, body) == first
    _, full = await ask(client, body | {"full_feature_names": True})
    assert full["metadata"]["feature_names"] == ["customer_id", "orders__count_1h", "orders__status"]
    assert full["results"] == first[1]["results"]
    status, _ = await ask(client, body | {"feature_service": "shop"})
    assert status == 404
    assert await ask(client, body) == first


async def test_a_list_of_features_too_long_to_be_kept_is_answered_all_the_same(client: Client) -> None:
    body = {"features": ["orders:status", "orders:count_1h"] * 2_000, "entities": {"customer_id": [1]}}
    status, answer = await ask(client, body)
    assert (status, answer["metadata"]["feature_names"]) == (200, ["customer_id", "status", "count_1h"])


@pytest.mark.parametrize("features", [[1], ["orders:status", None], "orders:status", {}])
async def test_a_list_of_features_of_another_shape_is_named_by_its_place(client: Client, features: Any) -> None:
    for _ in range(2):
        status, answer = await ask(client, {"features": features, "entities": {"customer_id": [1]}})
        assert status == 422 and "$.features" in json.loads(answer)["message"]


async def test_one_entity_is_read_by_a_plain_get(client: Client) -> None:
    async with client.get("/v1/features/orders?customer_id=3") as response:
        assert response.status == 200
        assert await response.json() == {
            "view": "orders",
            "entity": {"customer_id": 3},
            "status": "PRESENT",
            "features": {"count_1h": 0, "total": "Infinity", "status": None},
            "statuses": {"count_1h": "PRESENT", "total": "PRESENT", "status": "NULL_VALUE"},
            "event_timestamp": "2023-11-14T22:13:18.500000Z",
            "freshness_ms": 1500.0,
        }
    async with client.get("/v1/features/orders?customer_id=9") as response:
        assert response.status == 404
        assert (await response.json())["status"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("nothing?customer_id=1", 404, "known: orders, profile"),
        ("orders?id=1", 400, "parameter id is unknown: view orders is read by customer_id"),
        ("orders", 400, "parameter customer_id is missing"),
        ("orders?customer_id=abc", 400, "parameter customer_id must be of type Int64"),
        ("profile?customer_id=1", 400, "parameter shop is missing"),
    ],
)
async def test_a_wrong_get_says_which_parameter(client: Client, path: str, status: int, words: str) -> None:
    async with client.get(f"/v1/features/{path}") as response:
        assert response.status == status
        assert words in (await response.json())["error"]


class BrokenStore(MemoryStore):
    async def read(self, view: Any, features: Any, keys: Any) -> Any:
        raise StoreError("online store at 127.0.0.1:1 doesn't answer")


@pytest.mark.parametrize(("store", "words"), [(None, "isn't open"), (BrokenStore(), "doesn't answer")])
async def test_a_store_that_is_away_answers_503_in_words(
    client: Client, place: Place, store: OnlineStore | None, words: str
) -> None:
    place.store = store
    status, answer = await ask(client, {"features": ["orders:total"], "entities": {"customer_id": [1]}})
    assert status == 503
    assert words in json.loads(answer)["message"]
    async with client.get("/v1/features/orders?customer_id=1") as response:
        assert response.status == 503
        assert words in (await response.json())["error"]


async def test_a_reader_may_wait_for_its_own_write(place: Place) -> None:
    applied = Applied(5, START_US, {"shop": "0/10:3"})
    server = FeatureServer([ORDERS], lambda: place.store, clock=lambda: place.now_s, applied=lambda: applied)
    app = web.Application()
    app.add_routes(server.routes())
    async with TestClient(TestServer(app)) as client:

        async def asked(**min_position: Any) -> tuple[int, Any]:
            return await ask(
                client, {"features": ["orders:total"], "entities": {"customer_id": [1]}, "min_position": min_position}
            )

        status, body = await asked(offset=5)
        assert status == 200 and body["metadata"]["offset"] == 5 and body["metadata"]["log_time"].startswith("2023-")
        assert (await asked(source="shop", position="0/10"))[0] == 200
        status, body = await asked(offset=6, wait_ms=20)
        assert status == 503 and "applied is offset 5" in body
        status, body = await asked(source="shop", position="0/11", wait_ms=20)
        assert status == 503 and "applied is 0/10:3" in body
        waiting = asyncio.create_task(asked(source="shop", position="0/1F", wait_ms=20_000))
        await asyncio.sleep(0)
        applied = Applied(6, START_US, {"shop": "0/20"})
        while not waiting.done():
            server.moved()
            await asyncio.sleep(0.001)
        assert (await waiting)[0] == 200
        for wrong in (
            {},
            {"offset": 1, "source": "shop"},
            {"source": "shop"},
            {"source": "shop", "position": "uuid:1-5"},
            {"offset": 1, "wait_ms": 99_999},
            {"lsn": 1},
        ):
            assert (await asked(**wrong))[0] == 422
