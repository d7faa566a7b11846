"""A stock Feast SDK, in a repository that our adapter made, reads what our stores wrote."""

from __future__ import annotations

import datetime
import importlib
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.cdc.config import Section
from headrace.cdc.errors import DefinitionError
from headrace.features import feast as adapter
from headrace.features.spec import FeatureValue, Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, EntityWrite, OnlineStore, ViewWrite
from headrace.features.store.memory import MemoryStoreConfig
from headrace.features.store.redis import RedisStore, RedisStoreConfig
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig

# Feast's own warnings, about its coming releases and its libraries', are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore")

SECOND_US = 1_000_000
EVENT_US = 1_751_500_000_123_456
"""2 July 2025: summer time in New York, 4 hours behind UTC."""

CUSTOMER = Field("customer_id", ValueType.INT64)
EVERY_TYPE = ViewSpec(
    "every_type",
    (CUSTOMER,),
    tuple(Field(f"f_{dtype.name.lower()}", dtype) for dtype in ValueType),
    "e1",
    ttl_us=60 * SECOND_US,
)
TOTALS = ViewSpec("totals", (CUSTOMER, Field("zone", ValueType.STRING)), (Field("clicks_1h", ValueType.INT64),), "t1")
SHOP = ViewSpec("shop_totals", (), (Field("orders", ValueType.INT64),), "s1")
VIEWS = (EVERY_TYPE, TOTALS, SHOP)

VALUES: dict[ValueType, FeatureValue] = {
    ValueType.INT32: -(1 << 31),
    ValueType.INT64: (1 << 63) - 1,
    ValueType.FLOAT32: 0.5,
    ValueType.FLOAT64: 0.1,
    ValueType.STRING: "naïve 🎈",
    ValueType.BOOL: False,
    ValueType.BYTES: b"\x00\xff",
    ValueType.UNIX_TIMESTAMP: 1_700_000_000 * SECOND_US,
    ValueType.INT64_LIST: (1, -(1 << 63), (1 << 63) - 1),
    ValueType.FLOAT64_LIST: (0.1, -0.0),
    ValueType.STRING_LIST: ("naïve 🎈", ""),
}
ROW = tuple(VALUES[field.dtype] for field in EVERY_TYPE.fields)
NULLS = (None,) * len(ROW)
REFERENCES = [f"every_type:{field.name}" for field in EVERY_TYPE.fields]


def set_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        set_zone(patch, "UTC")
        yield
    time.tzset()


@pytest.fixture
def feast() -> Any:
    return importlib.import_module("feast")


@pytest.fixture
def sqlite_config() -> SQLiteStoreConfig:
    return SQLiteStoreConfig("online.db")


@pytest.fixture
def redis_config(redis_url: str) -> RedisStoreConfig:
    return RedisStoreConfig(redis_url)


class Repository:
    """A Feast repository in a folder of its own, and a store of ours that is open."""

    def __init__(self, store: OnlineStore, config: Section, folder: Path) -> None:
        self.store = store
        self.config = config
        self.folder = folder
        self.yaml = folder / "feature_store.yaml"

    def apply(self, views: tuple[ViewSpec, ...] = VIEWS) -> None:
        if not self.yaml.exists():
            self.yaml.write_text(
                adapter.feature_store_yaml(self.config, project="shop", folder=self.folder, repo=self.folder)
            )
        adapter.apply(views, project="shop", feature_store_yaml=self.yaml, store=self.config, folder=self.folder)

    async def write(
        self, view: ViewSpec, rows: dict[tuple[FeatureValue, ...], tuple[FeatureValue, ...] | None]
    ) -> None:
        stored = await self.store.checkpoint(view)
        offset = 1 if stored is None else stored.offsets[0] + 1
        entities = [EntityWrite(key, values, EVENT_US, b"private state", EVENT_US + 1) for key, values in rows.items()]
        contributions = {repr(key).encode(): Contribution(key, b"blob") for key in rows}
        await self.store.write(
            [ViewWrite(view, entities, contributions, Checkpoint(view.spec_hash, "g", (offset,), EVENT_US))]
        )

    def read(self, feast: Any, features: list[str], entities: list[dict[str, Any]]) -> Any:
        reader = feast.FeatureStore(repo_path=str(self.folder))
        return reader.get_online_features(features=features, entity_rows=entities)


@pytest.fixture(params=["sqlite", "redis"])
async def repository(request: pytest.FixtureRequest, tmp_path: Path, utc: None) -> AsyncIterator[Repository]:
    if request.param == "sqlite":
        config = request.getfixturevalue("sqlite_config")
        store: OnlineStore = SQLiteStore.from_config(config, project="shop", folder=tmp_path)
    else:
        config = request.getfixturevalue("redis_config")
        store = RedisStore.from_config(config, project="shop", folder=tmp_path)
    await store.open()
    yield Repository(store, config, tmp_path)
    await store.close()


def times_us(response: Any, feature: str) -> list[int]:
    column = list(response.proto.metadata.feature_names.val).index(feature)
    return [stamp.ToMicroseconds() for stamp in response.proto.results[column].event_timestamps]


def statuses(response: Any, feature: str) -> list[str]:
    status: Any = importlib.import_module("feast.protos.feast.serving.ServingService_pb2").FieldStatus
    column = list(response.proto.metadata.feature_names.val).index(feature)
    return [status.Name(number) for number in response.proto.results[column].statuses]


@pytest.mark.parametrize("is_applied_first", [True, False])
async def test_feast_reads_every_type_with_its_time(repository: Repository, feast: Any, is_applied_first: bool) -> None:
    if is_applied_first:
        repository.apply()
    await repository.write(EVERY_TYPE, {(1,): ROW, (2,): NULLS})
    if not is_applied_first:
        repository.apply()
    response = repository.read(feast, REFERENCES, [{"customer_id": 1}, {"customer_id": 2}, {"customer_id": 3}])
    found = response.to_dict()
    expected: dict[str, list[Any]] = {field.name: [VALUES[field.dtype], None, None] for field in EVERY_TYPE.fields}
    for name in ("f_int64_list", "f_float64_list", "f_string_list"):
        expected[name][0] = list(expected[name][0])
    expected["f_unix_timestamp"] = [datetime.datetime.fromtimestamp(1_700_000_000, datetime.UTC), None, None]
    assert {name: found[name] for name in expected} == expected
    # Whole seconds in SQLite. In Redis Feast can't tell absent from null, and says PRESENT and 1970.
    is_sqlite = isinstance(repository.store, SQLiteStore)
    exact_us = EVENT_US // SECOND_US * SECOND_US if is_sqlite else EVENT_US
    assert times_us(response, "f_int64")[:2] == [exact_us, exact_us]
    assert statuses(response, "f_int64")[2] == ("NOT_FOUND" if is_sqlite else "PRESENT")


async def test_feast_reads_composite_keys_and_a_view_without_entities(repository: Repository, feast: Any) -> None:
    repository.apply()
    await repository.write(TOTALS, {(7, "eu"): (3,), (7, "us"): (4,)})
    await repository.write(SHOP, {(): (12,)})
    asked = [{"zone": "us", "customer_id": 7}, {"zone": "eu", "customer_id": 7}]
    found = repository.read(feast, ["totals:clicks_1h", "shop_totals:orders"], asked).to_dict()
    assert (found["clicks_1h"], found["orders"]) == ([4, 3], [12, 12])


async def test_feast_sees_a_correction_and_a_removal_at_once(repository: Repository, feast: Any) -> None:
    repository.apply()
    for written, seen in (((3,), 3), ((2,), 2), (None, None)):  # all with one event time, which Feast's writers refuse
        await repository.write(TOTALS, {(7, "eu"): written})
        found = repository.read(feast, ["totals:clicks_1h"], [{"zone": "eu", "customer_id": 7}]).to_dict()
        assert found["clicks_1h"] == [seen]


async def test_two_views_of_one_entity_are_read_in_one_request(repository: Repository, feast: Any) -> None:
    orders = ViewSpec("orders", (CUSTOMER,), (Field("orders_7d", ValueType.INT64),), "o1")
    repository.apply((EVERY_TYPE, orders))
    await repository.write(EVERY_TYPE, {(1,): ROW})
    await repository.write(orders, {(1,): (9,)})
    await repository.store.drop(EVERY_TYPE)
    found = repository.read(feast, ["every_type:f_int64", "orders:orders_7d"], [{"customer_id": 1}]).to_dict()
    assert (found["f_int64"], found["orders_7d"]) == ([None], [9])


async def test_applying_again_keeps_rows_and_takes_over_a_new_feature(repository: Repository, feast: Any) -> None:
    repository.apply((TOTALS,))
    await repository.write(TOTALS, {(7, "eu"): (3,)})
    wider = ViewSpec(TOTALS.name, TOTALS.join_keys, (*TOTALS.fields, Field("spend", ValueType.FLOAT64)), "t2")
    repository.apply((TOTALS,))
    repository.apply((wider,))
    view = feast.FeatureStore(repo_path=str(repository.folder)).get_feature_view("totals")
    assert view.tags[adapter.SPEC_TAG] == "t2"
    found = repository.read(feast, ["totals:clicks_1h"], [{"zone": "eu", "customer_id": 7}]).to_dict()
    assert found["clicks_1h"] == [3]


async def test_our_rows_are_cell_by_cell_what_feast_itself_writes(
    tmp_path: Path, sqlite_config: SQLiteStoreConfig, redis_url: str, feast: Any, utc: None
) -> None:
    """Feast's own writer and ours, each into a file and a database of its own."""
    pandas: Any = importlib.import_module("pandas")
    columns = {field.name: VALUES[field.dtype] for field in EVERY_TYPE.fields}
    columns["f_unix_timestamp"] = pandas.Timestamp(1_700_000_000, unit="s", tz="UTC")
    stamp = pandas.Timestamp(EVENT_US * 1000, tz="UTC")
    frame = pandas.DataFrame([{"customer_id": 1, **columns, "event_timestamp": stamp, "created": stamp}])
    frame = frame.astype({"f_int32": "int32", "f_float32": "float32"})

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    tables = []
    for folder in (ours, theirs):
        folder.mkdir()
        store = SQLiteStore.from_config(sqlite_config, project="shop", folder=folder)
        await store.open()
        repository = Repository(store, sqlite_config, folder)
        if folder is ours:
            await repository.write(EVERY_TYPE, {(1,): ROW})
            await store.close()
        else:
            await store.close()
            (folder / "online.db").unlink()
            repository.apply((EVERY_TYPE,))
            feast.FeatureStore(repo_path=str(folder)).write_to_online_store("every_type", frame)
        with sqlite3.connect(folder / "online.db") as connection:
            # All but created_ts, which nobody reads: Feast fills it from the frame, we leave it empty.
            columns_read = "entity_key, feature_name, value, value_text, vector_value, event_ts"
            cells = connection.execute(f"select {columns_read} from shop_every_type order by feature_name").fetchall()
            layout = connection.execute("pragma table_info(shop_every_type)").fetchall()
            indexes = connection.execute("select name from sqlite_master where tbl_name = 'shop_every_type'").fetchall()
        connection.close()
        tables.append((cells, layout, sorted(indexes)))
    assert tables[0] == tables[1]

    redis: Any = importlib.import_module("redis")
    hashes = []
    for database in (1, 2):
        config = RedisStoreConfig(redis_url.removesuffix("0") + str(database))
        folder = tmp_path / f"redis{database}"
        folder.mkdir()
        redis_store = RedisStore.from_config(config, project="shop", folder=folder)
        await redis_store.open()
        repository = Repository(redis_store, config, folder)
        if database == 1:
            await repository.write(EVERY_TYPE, {(1,): ROW})
        else:
            repository.apply((EVERY_TYPE,))
            feast.FeatureStore(repo_path=str(folder)).write_to_online_store("every_type", frame)
        await redis_store.close()
        with redis.Redis.from_url(config.url) as client:
            hashes.append({key: client.hgetall(key) for key in client.scan_iter() if not key.startswith(b"_hr:")})
            client.flushdb()
    private = b"_hr:every_type"
    ((_, fields),) = hashes[0].items()
    assert fields.pop(private) == b"private state"
    assert hashes[0] == hashes[1]


async def test_a_feast_reader_of_the_sqlite_store_must_run_in_utc(
    tmp_path: Path, sqlite_config: SQLiteStoreConfig, feast: Any, utc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feast takes the stored UTC seconds for local time. We store the true time; the values are right in any zone."""
    store = SQLiteStore.from_config(sqlite_config, project="shop", folder=tmp_path)
    await store.open()
    repository = Repository(store, sqlite_config, tmp_path)
    repository.apply((TOTALS,))
    await repository.write(TOTALS, {(7, "eu"): (3,)})
    set_zone(monkeypatch, "America/New_York")
    response = repository.read(feast, ["totals:clicks_1h"], [{"zone": "eu", "customer_id": 7}])
    assert response.to_dict()["clicks_1h"] == [3]
    assert times_us(response, "clicks_1h") == [EVENT_US // SECOND_US * SECOND_US - 4 * 3600 * SECOND_US]
    await store.close()


def repository_yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "feature_store.yaml"
    path.write_text(text)
    return path


BASE = "project: shop\nprovider: local\nregistry: registry.db\n"
VERSION = "entity_key_serialization_version: 3\n"
SQLITE = "online_store: {type: sqlite, path: online.db}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BASE.replace("shop", "other") + SQLITE + VERSION, "project 'other'"),
        (BASE + SQLITE + VERSION.replace("3", "2"), "entity_key_serialization_version 2"),
        (BASE + SQLITE.replace("online.db", "data/online.db") + VERSION, "data/online.db"),
        (BASE + "online_store: {type: redis, connection_string: 'localhost:6379'}\n" + VERSION, "is redis"),
        (BASE + "online_store: null\n" + VERSION, "is none"),
        (
            BASE.replace(
                "registry: registry.db", "registry: {path: registry.db, enable_online_feature_view_versioning: true}"
            )
            + SQLITE
            + VERSION,
            "versioned",
        ),
        (BASE + "online_store: {type: sqlite, path: [1]}\n", "can't use its configuration"),
        ("a: [", "can't use its configuration"),
    ],
)
def test_a_feast_configuration_that_reads_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = repository_yaml(tmp_path, text)
    with pytest.raises(DefinitionError, match=said) as refused:
        adapter.apply((TOTALS,), project="shop", feature_store_yaml=path, store=SQLiteStoreConfig(), folder=tmp_path)
    assert refused.value.advice
    assert not (tmp_path / "registry.db").exists()


@pytest.mark.parametrize(
    ("connection", "is_same"),
    [
        ("localhost:6379", True),
        ("127.0.0.1:6379,db=0,password=secret", True),
        ("localhost:6379,db=1", False),
        ("localhost:6380", False),
        ("redis.example.com:6379", False),
    ],
)
def test_a_feast_configuration_of_another_redis_is_refused_without_its_password(
    tmp_path: Path, connection: str, is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repository_yaml(
        tmp_path, BASE + f"online_store: {{type: redis, connection_string: '{connection}'}}\n" + VERSION
    )
    # Only the check is of interest: where it passes, Feast would go on to its registry.
    monkeypatch.setattr("feast.FeatureStore.apply", lambda self, objects: None)
    store = RedisStoreConfig("redis://:secret@127.0.0.1")
    if is_same:
        adapter.apply((TOTALS,), project="shop", feature_store_yaml=path, store=store, folder=tmp_path)
        return
    with pytest.raises(DefinitionError, match="localhost:6379 database 0") as refused:
        adapter.apply((TOTALS,), project="shop", feature_store_yaml=path, store=store, folder=tmp_path)
    assert "secret" not in refused.value.paragraph()


def test_the_generated_file_holds_no_password_and_feast_reads_it(
    tmp_path: Path, feast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStoreConfig("rediss://feeder:hunter2@redis.example.com:6380/3")
    text = adapter.feature_store_yaml(store, project="shop", folder=tmp_path, repo=tmp_path)
    assert "hunter2" not in text
    monkeypatch.setenv("REDIS_PASSWORD", "hunter2")
    repository_yaml(tmp_path, text)
    online = feast.FeatureStore(repo_path=str(tmp_path)).config.online_store
    assert online.connection_string == "redis.example.com:6380,db=3,ssl=true,username=feeder,password=hunter2"


def test_a_store_that_feast_cannot_read_is_a_wrong_definition(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="MemoryStoreConfig"):
        adapter.feature_store_yaml(MemoryStoreConfig(), project="shop", folder=tmp_path, repo=tmp_path)
    with pytest.raises(DefinitionError, match="unix socket"):
        adapter.feature_store_yaml(
            RedisStoreConfig("unix:///run/redis.sock"), project="shop", folder=tmp_path, repo=tmp_path
        )


def test_one_join_key_of_two_types_is_a_wrong_definition(tmp_path: Path) -> None:
    other = ViewSpec("other", (Field("customer_id", ValueType.STRING),), TOTALS.fields, "x")
    with pytest.raises(DefinitionError, match=r"customer_id.*Int64.*totals.*String.*other"):
        adapter.apply(
            (TOTALS, other),
            project="shop",
            feature_store_yaml=tmp_path / "none",
            store=SQLiteStoreConfig(),
            folder=tmp_path,
        )


def test_a_missing_feast_is_told_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == "feast" or name.startswith("feast.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "feast", None)
    with pytest.raises(DefinitionError, match="feast") as refused:
        adapter.apply(
            (TOTALS,), project="shop", feature_store_yaml=tmp_path / "f", store=SQLiteStoreConfig(), folder=tmp_path
        )
    assert refused.value.advice == 'pip install "headrace[feast]"'


def test_importing_the_adapter_does_not_import_feast() -> None:
    code = "import sys, headrace.features.feast, headrace.features.store.redis; print('feast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
