"""The page at /features and what it asks: every view with its state, and an entity's values over time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from browser import page_at
from features.test_engine import order
from fix_features import DEFINITIONS, SECOND_US, START_US, SlicedLog, row_event, until
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.offline.logged import LoggedStore
from headrace.features.store.memory import MemoryStore

MORE = """
halves = FeatureView("halves", entity=customer, source=Table("public.orders"), features=[count(name="n"), latest("status", String)],
    on_demand=[on_demand("half", Float64, inputs=["n"], compute=lambda n: n / 2)])
"""


class Shop:
    def __init__(self, folder: Path) -> None:
        path = folder / "shop_features.py"
        path.write_text(DEFINITIONS.replace("import Entity", "import on_demand, Entity") + MORE)
        self.log = SlicedLog()
        self.log.most = 1
        self.now_s = START_US / 1e6
        self.engine = FeatureEngine(
            load_definitions(path),
            lambda: LoggedStore(MemoryStore(), folder / "flog", roll_every_s=3600),
            self.log,
            CollectorRegistry(),
            clock=lambda: self.now_s,
            feature_log=folder / "flog",
        )

    async def applied(self) -> None:
        end = (await self.log.bounds(0)).end
        await until(lambda: self.engine._main is not None and self.engine.status()["offset"] == [end])
        self.now_s = START_US / 1e6 + end


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    for number in range(1, 5):
        await shop.log.add(order(number, customer=1, now_us=START_US + number * SECOND_US, status=f"s{number}"))
    await shop.log.add(row_event("delete", committed_us=START_US + 5 * SECOND_US, before={"id": 4}))
    task = asyncio.create_task(shop.engine.run())
    await shop.applied()
    yield shop
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[TestClient[Any, Any]]:
    application = web.Application()
    application.add_routes(shop.engine.routes())
    async with TestClient(TestServer(application)) as client:
        yield client


async def test_every_view_is_listed_with_its_definition_and_its_state(client: TestClient[Any, Any]) -> None:
    told = await (await client.get("/v1/features")).json()
    assert told["has_history"] is True and told["lag_events"] == 0
    view = next(view for view in told["views"] if view["name"] == "halves")
    assert view["source"] == "public.orders"
    assert view["join_keys"] == [{"name": "customer_id", "type": "Int64"}]
    assert view["features"] == [
        {"name": "n", "type": "Int64", "is_stored": True},
        {"name": "status", "type": "String", "is_stored": True},
        {"name": "half", "type": "Float64", "is_stored": False},
    ]
    assert view["state"]["phase"] == "live"
    assert view["state"]["newest_change_us"] == START_US + 5 * SECOND_US
    assert "/" not in view["defined_at"], "no path of the machine"


async def test_an_entitys_rows_come_back_oldest_first_from_the_one_before(client: TestClient[Any, Any]) -> None:
    # "Now" is START + 5 s: two and a half seconds back, and the row that held then.
    answer = await client.get("/v1/features/halves/history?customer_id=1&since_s=2.5")
    told = await answer.json()
    assert [(row["time_us"] - START_US, row["features"]) for row in told["rows"]] == [
        (2 * SECOND_US, {"n": 2, "status": "s2"}),
        (3 * SECOND_US, {"n": 3, "status": "s3"}),
        (4 * SECOND_US, {"n": 4, "status": "s4"}),
        (5 * SECOND_US, {"n": 3, "status": "s3"}),
    ]
    assert (await (await client.get("/v1/features/halves/history?customer_id=77")).json())["rows"] == []


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/features/gone/history?customer_id=1", 404, "no such view"),
        ("/v1/features/halves/history", 400, "customer_id is missing"),
        ("/v1/features/halves/history?customer_id=x", 400, "must be of type Int64"),
        ("/v1/features/halves/history?customer_id=1&since_s=soon", 400, "since_s is a number"),
        ("/v1/features/halves/history?customer_id=1&since_s=nan", 400, "since_s is negative"),
        ("/v1/features/halves/history?customer_id=1&since_s=inf", 400, "since_s is negative"),
    ],
)
async def test_what_cannot_be_asked_is_said(client: TestClient[Any, Any], path: str, status: int, words: str) -> None:
    answer = await client.get(path)
    assert answer.status == status
    assert words in await answer.text()


async def test_without_a_feature_log_the_history_names_the_cure(shop: Shop) -> None:
    shop.engine._page._log = None
    application = web.Application()
    application.add_routes(shop.engine.routes())
    async with TestClient(TestServer(application)) as client:
        answer = await client.get("/v1/features/halves/history?customer_id=1")
        assert answer.status == 404 and "offline:" in await answer.text()
        assert (await (await client.get("/v1/features")).json())["has_history"] is False


async def test_the_page_lets_nothing_in_but_itself(client: TestClient[Any, Any]) -> None:
    answer = await client.get("/features")
    text = await answer.text()
    assert "/* page.css */" not in text and "--water" in text
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and policy.count("sha256-") == 2


@pytest.mark.matrix("chromium")
async def test_a_person_looks_an_entity_up_and_sees_it_change(shop: Shop, tmp_path: Path) -> None:
    application = web.Application()
    application.add_routes(shop.engine.routes())
    async with (
        TestServer(application) as server,
        page_at(f"http://127.0.0.1:{server.port}/features", tmp_path) as page,
    ):
        cells = (
            "[...document.querySelectorAll('#entity tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        await page.until("document.querySelectorAll('#views tr').length === 3")
        assert await page.value("document.getElementById('state').textContent") == "all views live"
        await page.value(
            "[...document.querySelectorAll('button.view')].find((button) => button.textContent === 'halves').click()"
        )
        await page.value(
            "document.querySelector('#keys input').value = '1'; document.getElementById('since').value = '604800';"
            " document.getElementById('lookup').requestSubmit()"
        )
        await page.until("document.querySelectorAll('#entity tr').length === 4")
        rows = await page.value(cells)
        assert rows[1][:4] == ["n", "Int64", "3", "PRESENT"] and rows[3][:3] == ["half", "Float64, on demand", "1.5"]
        assert "s4" in rows[2][4] and "s2" in rows[2][4], "the values before are from the feature log"
        await shop.log.add(order(9, customer=1, now_us=START_US + 9 * SECOND_US, status="<b>new</b>"))
        await page.until(f"{cells}[1][2] === '4'")
        assert (await page.value(cells))[2][2] == "<b>new</b>", "text stays text"
        assert await page.value("location.hash") == "#view=halves&customer_id=1"
