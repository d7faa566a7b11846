"""headrace features apply and get, as a user types them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from fix_features import DEFINITIONS, START_US
from headrace.cdc.cli import main
from headrace.features.loading import load_definitions
from headrace.features.store.base import Checkpoint, EntityWrite, ViewWrite
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with headrace.yaml and definitions; result: the yaml."""
    (tmp_path / "shop_features.py").write_text(DEFINITIONS.replace('ttl="90d"', 'ttl="90000d"'))
    path = tmp_path / "headrace.yaml"
    path.write_text(
        """
log: {type: memory}
sources:
  shop: {type: postgres, dsn: "host=nowhere"}
features: {definitions: shop_features.py, project: shop}
"""
    )
    return path


def fill(shop: Path) -> None:
    """One row of customer 42, as the engine would write it."""

    async def write() -> None:
        (view,) = load_definitions(shop.parent / "shop_features.py")
        store = SQLiteStore.from_config(SQLiteStoreConfig(), project="shop", folder=shop.parent)
        await store.open()
        values = (1, 2, 1.5, 2.5, 0.0, 99.25, 7, "paid", None)
        checkpoint = Checkpoint(view.spec.spec_hash, "g", (1,), START_US)
        await store.write([ViewWrite(view.spec, [EntityWrite((42,), values, START_US, b"")], {}, checkpoint)])
        await store.close()

    asyncio.run(write())


def test_apply_plans_by_what_the_store_has(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def plan() -> list[str]:
        assert main(["features", "apply", str(shop), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["feast"] is None
        return [f"{line['view']} {line['change']}" for line in answer["views"]]

    assert plan() == ["customer_orders added"]
    fill(shop)
    assert plan() == ["customer_orders unchanged"]
    definitions = shop.parent / "shop_features.py"
    definitions.write_text(DEFINITIONS.replace('"cancelled"', '"open"'))
    assert plan() == ["customer_orders changed"]


def test_apply_tells_people_what_will_happen(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "apply", str(shop), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "added     customer_orders  (orders_1m, orders_1h" in out
    assert "filled from the log" in out


def test_get_prints_a_row_for_people_and_for_machines(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(shop)
    assert main(["features", "get", str(shop), "customer_orders", "customer_id=42", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["features"]["total_ever"] == 99.25
    assert answer["status"] == "PRESENT"
    assert answer["freshness_ms"] > 0
    assert main(["features", "get", str(shop), "customer_orders", "customer_id=42"]) == 0
    out = capsys.readouterr().out
    assert "customer_orders  customer_id=42" in out
    assert "total_ever" in out
    assert "event time 2023-11-14T22:13:20Z" in out
    assert main(["features", "get", str(shop), "customer_orders", "customer_id=1"]) == 0
    assert "has no row for customer_id=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["get", "customers", "customer_id=1"], "view 'customers' is not defined"),
        (["get", "customer_orders", "customer_id"], "is no KEY=VALUE"),
        (["get", "customer_orders", "id=1"], "id is unknown"),
        (["get", "customer_orders", "customer_id=abc"], "customer_id must be of type Int64"),
    ],
)
def test_a_wrong_question_is_answered_with_the_cure(
    shop: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main(["features", words[0], str(shop), *words[1:]]) == 2
    assert reason in capsys.readouterr().err


def test_wrong_definitions_end_with_code_2_and_the_line(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shop.parent / "shop_features.py").write_text("from headrace.features import *\n\ncount(over='x')\n")
    assert main(["features", "apply", str(shop)]) == 2
    assert f"{shop.parent / 'shop_features.py'}:3: " in capsys.readouterr().err


def test_a_configuration_without_features_says_so(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop.write_text('sources: {shop: {type: postgres, dsn: "host=nowhere"}}\n')
    assert main(["features", "apply", str(shop)]) == 2
    assert "features: is missing" in capsys.readouterr().err


def test_apply_registers_in_feast_and_writes_its_configuration_once(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feast = pytest.importorskip("feast", reason='pip install "headrace[feast]"', exc_type=ImportError)
    shop.write_text(shop.read_text().replace("project: shop", "project: shop, feast: feast/feature_store.yaml"))
    assert main(["features", "apply", str(shop), "--dry-run"]) == 0
    assert not (shop.parent / "feast").exists()
    assert main(["features", "apply", str(shop)]) == 0
    assert "registered in Feast" in capsys.readouterr().out
    fill(shop)
    repository = feast.FeatureStore(repo_path=str(shop.parent / "feast"))
    answer = repository.get_online_features(
        features=["customer_orders:total_ever", "customer_orders:status"], entity_rows=[{"customer_id": 42}]
    ).to_dict()
    assert answer == {"customer_id": [42], "total_ever": [99.25], "status": ["paid"]}
