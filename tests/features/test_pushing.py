"""What a stock Feast SDK pushes becomes events, and features: through its own ``remote`` online store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from fix_features import SlicedLog, until
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.store.memory import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Feast's own warnings are none of ours

DEFINITIONS = """
from headrace.features import *

driver = Entity("driver", join_keys={"driver_id": Int64})
driver_stats = FeatureView(
    "driver_stats",
    entity=driver,
    source=Events("driver_stats", kind="record", source="push"),
    entity_key={"driver_id": "driver_id"},
    features=[latest("rating", Float64), latest("trips", Int64), count(name="pushes")],
)
orders = FeatureView("orders", entity=driver, source=Table("public.orders"), features=[count(name="n")])
"""


class Served:
    def __init__(self, log: SlicedLog, client: TestClient[web.Request, web.Application]) -> None:
        self.log = log
        self.client = client

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.client.post(path, json=body) as response:
            return response.status, await response.json()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "definitions.py").write_text(DEFINITIONS)
    log = SlicedLog()
    store = MemoryStore()
    engine = FeatureEngine(load_definitions(tmp_path / "definitions.py"), lambda: store, log, CollectorRegistry())
    app = web.Application()
    app.add_routes(engine.routes())
    running = asyncio.create_task(engine.run())
    await until(lambda: engine._main is not None)
    async with TestClient(TestServer(app)) as client:
        yield Served(log, client)
    running.cancel()
    await asyncio.wait([running])


ASKED = {
    "features": ["driver_stats:rating", "driver_stats:trips", "driver_stats:pushes"],
    "entities": {"driver_id": [7, 8]},
}


@pytest.mark.parametrize("path", ["/push", "/write-to-online-store"])
async def test_pushed_rows_are_events_and_are_served_at_once(served: Served, path: str) -> None:
    field = "push_source_name" if path == "/push" else "feature_view_name"
    df = {
        "driver_id": [7, 7],
        "rating": [4.5, 4.75],
        "trips": [3, None],
        "event_timestamp": ["2026-01-02T03:04:05", "2026-01-02T05:04:06+01:00"],
    }
    assert await served.post(path, {field: "driver_stats", "df": df, "to": "online", "allow_registry_cache": True}) == (
        200,
        None,
    )
    _, body = await served.post("/get-online-features", ASKED)
    assert [column["values"] for column in body["results"][1:]] == [[4.75, None], [None, None], [2, None]]
    events = (await served.log.read(0, 0)).events
    assert [(event.kind, event.name, event.source) for event in events] == [("record", "driver_stats", "push")] * 2
    assert json.loads(events[0].properties) == {"driver_id": 7, "rating": 4.5, "trips": 3}
    assert events[1].occurred_us - events[0].occurred_us == 3_601_000_000
    assert len({event.id for event in events}) == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (
            "/push",
            {"push_source_name": "orders", "df": {"driver_id": [1]}},
            422,
            "computed by headrace from public.orders",
        ),
        ("/push", {"push_source_name": "other", "df": {"driver_id": [1]}}, 422, "no view takes"),
        ("/push", {"df": {"driver_id": [1]}}, 422, "no push_source_name"),
        ("/write-to-online-store", {"push_source_name": "driver_stats", "df": {}}, 422, "no feature_view_name"),
        ("/push", {"push_source_name": "driver_stats", "df": {"a": [1], "b": []}}, 422, "different lengths"),
        ("/push", {"push_source_name": "driver_stats", "df": {"a": 1}}, 422, "can't be read"),
        ("/push", {"push_source_name": "driver_stats", "df": {"event_timestamp": ["soon"]}}, 422, "ISO 8601"),
        ("/push", {"push_source_name": "driver_stats", "df": {"a": [0] * 10_001}}, 422, "10000 at most"),
    ],
)
async def test_what_cannot_be_taken_is_refused_in_feasts_form(
    served: Served, path: str, body: Any, status: int, said: str
) -> None:
    found, text = await served.post(path, body)
    assert found == status
    assert said in json.loads(text)["message"]
    assert (await served.log.bounds(0)).end == 0


async def test_nothing_is_nothing_and_a_form_of_a_page_is_refused(served: Served) -> None:
    assert (await served.post("/push", {"push_source_name": "driver_stats", "df": {"driver_id": []}}))[0] == 200
    async with served.client.post("/push", data=b"{}", headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 415


async def test_a_stock_sdk_with_a_remote_store_writes_and_reads(served: Served, tmp_path: Path) -> None:
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    url = str(served.client.make_url("")).rstrip("/")

    def work() -> Any:
        config = RepoConfig(
            project="p", provider="local", registry=str(tmp_path / "registry.db"), entity_key_serialization_version=3,
            online_store={"type": "remote", "path": url}, repo_path=tmp_path,
        )  # fmt: skip
        store = FeatureStore(config=config)
        driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
        source = FileSource(path=str(tmp_path / "none.parquet"), timestamp_field="event_timestamp")
        fields = [
            Field(name="rating", dtype=Float64),
            Field(name="trips", dtype=Int64),
            Field(name="pushes", dtype=Int64),
        ]
        store.apply([driver, FeatureView(name="driver_stats", entities=[driver], schema=fields, source=source)])
        frame = pd.DataFrame(
            {
                "driver_id": [7],
                "rating": [4.5],
                "trips": [3],
                "pushes": [0],
                "event_timestamp": [datetime(2026, 1, 2, tzinfo=UTC)],
            }
        )
        store.write_to_online_store("driver_stats", frame)
        return store.get_online_features(
            features=ASKED["features"], entity_rows=[{"driver_id": 7}, {"driver_id": 8}]
        ).to_dict()

    found = await asyncio.to_thread(work)
    assert found["rating"] == [4.5, None] and found["trips"] == [3, None] and found["pushes"] == [1, None]
