"""On-demand features: computed at read, from the stored features that they name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from fix_features import START_US
from headrace.features.compiled import CompiledView
from headrace.features.loading import load_definitions
from headrace.features.server import FeatureServer
from headrace.features.store.base import Checkpoint, EntityWrite, ViewWrite
from headrace.features.store.memory import MemoryStore

DEFINITIONS = """
from headrace.features import *

customer = Entity("customer", join_keys={"customer_id": Int64})
view = FeatureView(
    "orders",
    entity=customer,
    source=Table("public.orders"),
    features=[count(), sum_("total"), last("status", 2)],
    on_demand=[
        on_demand("spend_per_order", Float64, inputs=["total_sum", "count"], compute=lambda total, orders: total / orders),
        on_demand("statuses", StringList, inputs=["status_last_2"], compute=lambda texts: [text.upper() for text in texts]),
        on_demand("wrong_type", Int64, inputs=["total_sum"], compute=lambda total: "text"),
        on_demand("no_value", Int64, inputs=["count"], compute=lambda orders: None),
    ],
)
"""


@pytest.fixture
def view(tmp_path: Path) -> CompiledView:
    path = tmp_path / "definitions.py"
    path.write_text(DEFINITIONS)
    (found,) = load_definitions(path)
    return found


async def ask(view: CompiledView, features: list[str]) -> dict[str, dict[str, Any]]:
    store = MemoryStore()
    await store.open()
    rows = [
        EntityWrite((1,), (4, 10.0, ("paid", "open")), START_US, b""),
        EntityWrite((2,), (0, 10.0, ()), START_US, b""),
    ]
    await store.write([ViewWrite(view.spec, rows, {}, Checkpoint("h", "g", (1,), START_US))])
    app = web.Application()
    app.add_routes(FeatureServer([view.spec], lambda: store, clock=lambda: START_US / 1e6).routes())
    async with TestClient(TestServer(app)) as client:
        body = {"features": features, "entities": {"customer_id": [1, 2, 3]}}
        async with client.post("/get-online-features", json=body) as response:
            assert response.status == 200
            answer = await response.json()
        async with client.get("/v1/features/orders?customer_id=1") as response:
            one = await response.json()
    found = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    return {**found, "one": one}


async def test_on_demand_features_are_computed_from_their_inputs_at_read(view: CompiledView) -> None:
    found = await ask(view, ["orders:spend_per_order", "orders:statuses", "orders:count", "orders:no_value"])
    assert list(found) == ["customer_id", "spend_per_order", "statuses", "count", "no_value", "one"]
    assert found["spend_per_order"]["values"] == [2.5, None, None]
    assert found["spend_per_order"]["statuses"] == ["PRESENT", "INVALID", "NOT_FOUND"], "0 orders: a division by zero"
    assert found["statuses"]["values"] == [["PAID", "OPEN"], [], None]
    assert found["count"]["values"] == [4, 0, None]
    assert found["no_value"]["statuses"] == ["NULL_VALUE", "NULL_VALUE", "NOT_FOUND"]
    assert found["one"]["features"]["spend_per_order"] == 2.5
    assert found["one"]["statuses"]["wrong_type"] == "INVALID"


async def test_a_result_of_another_type_is_invalid_not_passed_on(view: CompiledView) -> None:
    found = await ask(view, ["orders:wrong_type"])
    assert found["wrong_type"]["values"] == [None, None, None]
    assert found["wrong_type"]["statuses"] == ["INVALID", "INVALID", "NOT_FOUND"]


def test_another_function_is_no_other_content(tmp_path: Path, view: CompiledView) -> None:
    path = tmp_path / "other.py"
    path.write_text(DEFINITIONS.replace("total / orders", "orders / total"))
    (other,) = load_definitions(path)
    assert other.spec.spec_hash == view.spec.spec_hash, "nothing is stored for it, so nothing is rebuilt"


def test_definitions_are_loaded_without_feast(tmp_path: Path) -> None:
    code = "import sys; from headrace.features import on_demand; sys.exit('feast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
