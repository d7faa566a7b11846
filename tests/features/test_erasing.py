"""An erased entity is in no row, state, contribution or file any more, and everybody else's are as they were."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from fix_features import SECOND_US, START_US, SlicedLog, dump, row_event, until
from headrace.cdc.cli import main
from headrace.cdc.errors import DefinitionError, StoreError
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.offline.logged import LoggedStore
from headrace.features.offline.viewlog import segments
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig

DEFINITIONS = """
from headrace.features import *

customer = Entity("customer", join_keys={"email": String})
favourite = Entity("favourite", join_keys={"email": String, "sku": String})
product = Entity("product", join_keys={"sku": String})

spending = FeatureView("spending", entity=customer, source=Table("public.orders"),
    features=[count(over="1h", name="orders"), latest("note", name="note"), max_("total", Float64, name="dearest")])
favourites = FeatureView("favourites", entity=favourite, source=Table("public.orders"), features=[count(name="bought")])
sales = FeatureView("sales", entity=product, source=Table("public.orders"), features=[count(name="sold")])
"""
GONE, STAYS = "gone-7f3a@example.com", "stays-19c2@example.com"
SECRET = "gift for the neighbour"


def order(number: int, email: str, sku: str = "hat", note: str = "") -> Any:
    after = {"id": number, "email": email, "sku": sku, "total": float(number), "note": note}
    return row_event("insert", committed_us=START_US + number * SECOND_US, after=after)


class Shop:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "shop_features.py").write_text(DEFINITIONS)
        self.views = load_definitions(folder / "shop_features.py")
        self.log = SlicedLog()
        self.store: Any = None
        self.task: asyncio.Task[None]
        self.engine = FeatureEngine(self.views, self.make, self.log, CollectorRegistry())

    def make(self) -> LoggedStore:
        inner = SQLiteStore.from_config(SQLiteStoreConfig(), project="shop", folder=self.folder)
        self.store = LoggedStore(inner, self.folder / "feature_log", roll_every_s=3600)
        return self.store

    async def applied(self) -> None:
        end = (await self.log.bounds(0)).end
        await until(lambda: self.engine._main is not None and self.engine.status()["offset"] == [end])

    def logged(self, view: str) -> list[dict[str, Any]]:
        return [row for path in segments(self.folder / "feature_log" / view) for row in pq.read_table(path).to_pylist()]

    def bytes_of(self, text: str) -> list[str]:
        """Files that hold these bytes; Parquet ones are compressed, and looked through as rows."""
        found = [
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix != ".parquet" and text.encode() in path.read_bytes()
        ]
        for path in self.folder.rglob("*.parquet"):
            if text in str(pq.read_table(path).to_pylist()):
                found.append(str(path.relative_to(self.folder)))
        return sorted(found)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    shop = Shop(tmp_path)
    await shop.log.add(
        order(1, GONE, note=SECRET), order(2, STAYS), order(3, GONE, "scarf", note="later"), order(4, STAYS, "scarf")
    )
    shop.task = task = asyncio.create_task(shop.engine.run())
    await shop.applied()
    yield shop
    task.cancel()
    await asyncio.wait([task])


async def test_nothing_is_left_of_an_erased_entity_and_nobody_else_is_touched(shop: Shop) -> None:
    views = {view.spec.name: view.spec for view in shop.views}
    before = {name: await dump(shop.store, view) for name, view in views.items()}
    # Some builds of SQLite overwrite by themselves what is deleted.
    await shop.store._store._writer.call(lambda connection: connection.execute("pragma secure_delete = off"))
    assert shop.bytes_of(GONE) and shop.bytes_of(SECRET), "else the proof below proves nothing"
    told = {erased.view: erased for erased in await shop.engine.erase({"email": GONE})}
    assert {name: (each.entities, each.source_rows, each.left) for name, each in told.items()} == {
        "spending": (1, 2, 0),
        "favourites": (2, 2, 0),
    }
    assert all(each.logged_rows for each in told.values())
    for name, view in views.items():
        kept = {key: rest for key, rest in before[name].items() if GONE not in key}
        assert await dump(shop.store, view) == kept
    assert {row["email"] for row in shop.logged("spending")} == {STAYS}
    assert {row["email"] for row in shop.logged("favourites")} == {STAYS}
    assert shop.bytes_of(GONE) == []
    assert shop.bytes_of(SECRET) == []


async def test_an_erased_entity_that_comes_again_begins_at_nothing(shop: Shop) -> None:
    await shop.engine.erase({"email": GONE})
    await shop.log.add(order(5, GONE))
    await shop.applied()
    (row,) = await shop.store.read(shop.views[0].spec, ["orders", "note", "dearest"], [(GONE,)])
    assert row.values == (1, "", 5.0)
    assert [row["orders"] for row in shop.logged("spending") if row["email"] == GONE] == []  # still in the journal


async def test_one_of_several_join_keys_and_all_of_them(shop: Shop) -> None:
    (told,) = await shop.engine.erase({"email": GONE, "sku": "hat"})
    assert (told.view, told.entities) == ("favourites", 1)
    told = {erased.view: erased for erased in await shop.engine.erase({"sku": "hat"})}
    assert {name: each.entities for name, each in told.items()} == {"favourites": 1, "sales": 1}
    assert sorted(await shop.store.keys(shop.views[1].spec)) == [(GONE, "scarf"), (STAYS, "scarf")]


async def test_what_another_definition_left_is_erased_too(shop: Shop) -> None:
    folder = shop.folder / "feature_log" / "spending"
    await shop.engine.erase({"email": "nobody@example.com"})  # seals what there is
    old = folder / "retired" / "abc-g1"
    old.mkdir(parents=True)
    (segment, *_) = [path for path in segments(folder) if pq.read_table(path).num_rows]
    (old / segment.name).write_bytes(segment.read_bytes())
    await shop.engine.erase({"email": GONE})
    assert {row["email"] for row in pq.read_table(old / segment.name).to_pylist()} == {STAYS}


async def test_a_join_key_that_no_view_has_is_refused_with_the_known_ones(shop: Shop) -> None:
    with pytest.raises(DefinitionError, match="no view has the join key phone") as refused:
        await shop.engine.erase({"phone": "1"})
    assert "email, sku" in refused.value.advice
    assert (await shop.store.read(shop.views[0].spec, ["orders"], [(GONE,)]))[0] is not None


async def test_the_route(shop: Shop) -> None:
    app = web.Application()
    app.add_routes(shop.engine.routes())
    async with TestClient(TestServer(app)) as client:
        path = "/v1/features/erase"
        assert (await client.post(path, data="x")).status == 415
        assert (await client.post(path, json={"email": GONE})).status == 400
        assert (await client.post(path, json={"entity": {"phone": "1"}})).status == 409
        response = await client.post(path, json={"entity": {"email": GONE}})
        body = await response.json()
    assert response.status == 200
    assert (body["left"], [view["view"] for view in body["views"]]) == (0, ["spending", "favourites"])


async def test_a_reader_that_keeps_the_erased_bytes_alive_is_named(shop: Shop) -> None:
    reader = sqlite3.connect(shop.folder / "online.db", isolation_level=None)
    reader.execute("begin")
    reader.execute("select count(*) from _hr_state").fetchone()
    await shop.store._store._writer.call(lambda connection: connection.execute("pragma busy_timeout = 0"))
    with pytest.raises(StoreError, match="a reader keeps the write-ahead log"):
        await shop.engine.erase({"email": GONE})
    reader.close()


async def test_whoever_asked_is_told_when_the_engine_stops_meanwhile(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def stuck(*_: object) -> tuple[int, int]:
        reached.set()
        await asyncio.Event().wait()
        return 0, 0

    monkeypatch.setattr(shop.store, "scrub", stuck)
    asked = [asyncio.create_task(shop.engine.erase({"email": email})) for email in (GONE, STAYS)]
    await reached.wait()
    shop.task.cancel()
    told = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
    assert [str(error) for error in told] == [str(told[0])] * 2
    assert isinstance(told[0], StoreError) and "has stopped" in told[0].message


async def test_rows_that_are_still_there_are_counted(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.features.offline.segment.rewrite", lambda *_: None)
    told = {erased.view: erased for erased in await shop.engine.erase({"email": GONE})}
    assert told["spending"].left == told["spending"].logged_rows > 0


def test_the_command_works_while_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def live() -> Shop:
        shop = Shop(tmp_path)
        await shop.log.add(order(1, GONE, note=SECRET), order(2, STAYS))
        task = asyncio.create_task(shop.engine.run())
        await shop.applied()
        task.cancel()
        await asyncio.wait([task])
        return shop

    shop = asyncio.run(live())
    config = tmp_path / "headrace.yaml"
    config.write_text(
        """
server: {listen: "127.0.0.1:0"}
sources: {shop: {type: postgres, dsn: "host=nowhere"}}
features: {definitions: shop_features.py, project: shop, offline: {path: feature_log}}
"""
    )
    assert shop.bytes_of(GONE)
    assert main(["features", "erase", str(config), f"email={GONE}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left"] == 0
    assert [view["entities"] for view in told["views"]] == [1, 1]
    assert shop.bytes_of(GONE) == []
    assert shop.bytes_of(STAYS)
    assert main(["features", "erase", str(config), f"email={GONE}"]) == 0
    assert "nothing of it is left" in capsys.readouterr().out
    assert main(["features", "erase", str(config), "phone=1"]) == 2
    assert "email, sku" in capsys.readouterr().err
