"""A training set holds what serving had at each moment, and a stock Feast SDK makes the same from the same files."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.test_engine import run_to_the_end
from features.test_feature_log import RecordingStore, bits, make_engine, two_views
from fix_features import SlicedLog, random_life
from headrace.cdc.cli import main
from headrace.cdc.errors import DefinitionError
from headrace.features.compiled import CompiledView
from headrace.features.offline.logged import LoggedStore
from headrace.features.offline.training import training_set
from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, EntityWrite, ViewWrite
from headrace.features.store.memory import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore")  # Feast's own warnings are none of ours

TIME = pa.timestamp("us", tz="UTC")
ASKED = 400


async def live(folder: Path, seed: int) -> tuple[tuple[CompiledView, ...], RecordingStore]:
    """A shop's life through the engine, with headrace.yaml beside it."""
    views = two_views(folder / "shop_features.py")
    table = random_life(seed, 200)
    log = SlicedLog()
    log.most = 5
    await log.add(*table.events)
    store = RecordingStore()
    await run_to_the_end(make_engine(views, store, log, folder / "feature_log", roll_bytes=20_000), len(table.events))
    (folder / "headrace.yaml").write_text(
        "log: {type: memory}\nsources: {shop: {type: postgres, dsn: host=nowhere}}\n"
        "features: {definitions: shop_features.py, project: shop, offline: {path: feature_log},"
        " feast: feature_store.yaml}\n"
    )
    return views, store


def asked_of(store: RecordingStore, seed: int) -> list[tuple[int, int]]:
    """(customer, time): random moments, and the very microseconds at which rows took effect, one before and one after."""
    draw = random.Random(seed)
    rows = store.taken["customer_orders"]
    times = [draw.choice(rows)[1] + draw.choice((-1, 0, 1, draw.randint(-(10**9), 10**9))) for _ in range(ASKED)]
    return [(draw.randint(1, 6), time) for time in times]


def write_entities(path: Path, asked: list[tuple[int, int]]) -> None:
    pq.write_table(
        pa.table(
            {
                "customer_id": pa.array([customer for customer, _ in asked], pa.int64()),
                "event_timestamp": pa.array([time for _, time in asked], TIME),
            }
        ),
        path,
    )


def served(rows: list[tuple[Any, ...]], view: ViewSpec, key: Any, time_us: int) -> Any:
    """By hand: the last row that the store took until then, as a reader would have been told."""
    newest = None
    for _, log_time_us, entity, values, event_time_us in rows:
        if entity == (key,) and log_time_us <= time_us:
            newest = (values, event_time_us)
    if newest is None or newest[0] is None or (view.ttl_us and time_us - newest[1] > view.ttl_us):
        return (None,) * len(view.fields)
    return newest[0]


@pytest.mark.parametrize("seed", [91, 92])
async def test_the_training_set_is_what_serving_had(tmp_path: Path, seed: int) -> None:
    views, store = await live(tmp_path, seed)
    asked = asked_of(store, seed)
    write_entities(tmp_path / "entities.parquet", asked)
    out = tmp_path / "train.parquet"
    specs = [view.spec for view in views]
    count = training_set(specs, tmp_path / "feature_log", str(tmp_path / "entities.parquet"), out, full_names=True)
    assert count == ASKED
    table = pq.read_table(out)
    assert table["customer_id"].to_pylist() == [customer for customer, _ in asked], "in the order asked"
    found_values = 0
    for view in specs:
        columns = [table[f"{view.name}__{field.name}"].to_pylist() for field in view.fields]
        found = [bits(row) for row in zip(*columns, strict=True)]
        wanted = [served(store.taken[view.name], view, customer, time) for customer, time in asked]
        assert found == wanted, f"seed {seed}, view {view.name}"
        found_values += sum(value is not None for row in found for value in row)
    assert found_values > ASKED


def test_stock_feast_gives_the_same_bits(tmp_path: Path) -> None:
    feast: Any = importlib.import_module("feast")
    views, store = asyncio.run(live(tmp_path, 93))
    assert main(["features", "apply", str(tmp_path / "headrace.yaml"), "--json"]) == 0
    yaml = tmp_path / "feature_store.yaml"
    assert "type: duckdb" in yaml.read_text()
    asked = asked_of(store, 93)
    write_entities(tmp_path / "entities.parquet", asked)
    out = tmp_path / "train.parquet"
    specs = [view.spec for view in views]
    training_set(specs, tmp_path / "feature_log", str(tmp_path / "entities.parquet"), out, full_names=True)
    ours = pq.read_table(out)
    entities = duckdb.sql(f"select * from '{tmp_path}/entities.parquet'").df()
    entities["event_timestamp"] = entities["event_timestamp"].astype("datetime64[us, UTC]")
    reader = feast.FeatureStore(repo_path=str(tmp_path))
    references = [f"{view.name}:{field.name}" for view in specs for field in view.fields]
    job = reader.get_historical_features(entity_df=entities, features=references, full_feature_names=True)
    theirs = job.to_arrow()
    names = [f"{view.name}__{field.name}" for view in specs for field in view.fields]

    def rows_of(table: pa.Table) -> list[Any]:
        times = table["event_timestamp"].cast(TIME).cast(pa.int64()).to_pylist()
        columns = [table[name].to_pylist() for name in names]
        rows = [bits(row) for row in zip(table["customer_id"].to_pylist(), times, *columns, strict=True)]
        return sorted(set(rows), key=repr)

    found, wanted = rows_of(theirs), rows_of(ours)
    assert any(row[2] is not None for row in wanted)
    assert found == wanted


async def test_ttl_counts_from_the_newest_event_and_the_later_created_row_wins(tmp_path: Path) -> None:
    view = ViewSpec("ones", (Field("k", ValueType.INT64),), (Field("x", ValueType.FLOAT64),), "v", ttl_us=10)
    logging = LoggedStore(MemoryStore(), tmp_path, roll_every_s=60)
    await logging.open()
    await logging.checkpoint(view)
    for offset, value in enumerate((0.1, 0.2, 0.3), 1):
        row = EntityWrite((1,), (value,), 100, b"%d" % offset)
        await logging.write([ViewWrite(view, [row], {}, Checkpoint("v", "g", (offset,), 105))])
    out = tmp_path / "out.csv"
    query = "select 1 as k, make_timestamptz(t) as event_timestamp from (values (104), (105), (110), (111)) as asked(t)"
    assert training_set([view], tmp_path, query, out) == 4  # from the journal: nothing is sealed yet
    assert duckdb.sql(f"select x from '{out}'").fetchall() == [(None,), (0.3,), (0.3,), (None,)]
    await logging.close()
    training_set([view], tmp_path, query, out)
    assert duckdb.sql(f"select x from '{out}'").fetchall() == [(None,), (0.3,), (0.3,), (None,)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--entities", "gone.parquet"], "entities file gone.parquet doesn't exist"),
        (["--entities", "select frm"], "--entities can't be read"),
        (["--entities", "select 1 as customer_id"], "no column event_timestamp"),
        (["--entities", "select 1 as k, now() as event_timestamp"], "no view has join keys"),
        (["--entities", "select 1 as customer_id, now() as event_timestamp", "--features", "gone"], "is not defined"),
        (
            ["--entities", "select 1 as customer_id, now() as event_timestamp", "--features", "statuses:gone"],
            "has no feature 'gone'",
        ),
        (["--entities", "select 1 as customer_id, now() as event_timestamp", "--out", "x.txt"], "has no format known"),
    ],
)
def test_a_wrong_question_names_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    asyncio.run(live(tmp_path, 94))
    out = [] if "--out" in words else ["--out", str(tmp_path / "x.csv")]
    assert main(["features", "training-set", str(tmp_path / "headrace.yaml"), *words, *out]) == 2
    assert reason in capsys.readouterr().err


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(live(tmp_path, 95))
    out = tmp_path / "x.csv"
    query = "select 1 as customer_id, now() as event_timestamp"
    words = ["--entities", query, "--out", str(out), "--features", "statuses:status"]
    assert main(["features", "training-set", str(tmp_path / "headrace.yaml"), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 1, "out": str(out)}
    assert out.read_text().startswith("customer_id,event_timestamp,status\n")


def test_a_view_without_a_log_says_how_to_get_one(tmp_path: Path) -> None:
    view = ViewSpec("ones", (Field("k", ValueType.INT64),), (Field("x", ValueType.FLOAT64),), "v")
    with pytest.raises(DefinitionError, match="has no feature log"):
        training_set([view], tmp_path, "select 1 as k, now() as event_timestamp", tmp_path / "o.csv")
