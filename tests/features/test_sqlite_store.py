"""What only the SQLite store has: a file, its rights, other processes on it, and Feast tables of other versions."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from headrace.cdc.errors import Action, StoreError, StoreRefused
from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, EntityWrite, ViewWrite
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig

CLICKS = ViewSpec(
    "clicks",
    (Field("customer_id", ValueType.INT64),),
    (Field("clicks_1h", ValueType.INT64), Field("is_new", ValueType.BOOL), Field("page", ValueType.STRING)),
    "c1",
)


def store_in(folder: Path, path: str = "online.db") -> SQLiteStore:
    return SQLiteStore.from_config(SQLiteStoreConfig(path), project="shop", folder=folder)


def write_of(offset: int) -> ViewWrite:
    return ViewWrite(CLICKS, [EntityWrite((1,), (offset, True, "a"), 1, b"")], {}, Checkpoint("c1", "g", (offset,), 1))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    store = store_in(tmp_path)
    await store.open()
    yield store
    await store.close()


async def test_the_file_is_readable_by_its_owner_only(store: SQLiteStore) -> None:
    await store.write([write_of(1)])
    files = sorted(store.path.parent.glob("online.db*"))
    assert [file.name for file in files] == ["online.db", "online.db-shm", "online.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_the_rights_of_a_file_that_was_there_stay(tmp_path: Path) -> None:
    (tmp_path / "online.db").touch(mode=0o640)
    (tmp_path / "online.db").chmod(0o640)
    store = store_in(tmp_path)
    await store.open()
    await store.close()
    assert stat.S_IMODE((tmp_path / "online.db").stat().st_mode) == 0o640


@pytest.mark.parametrize("path", ["missing/online.db", "."])
async def test_a_folder_that_is_missing_or_no_file_is_refused_with_what_to_do(tmp_path: Path, path: str) -> None:
    with pytest.raises(StoreRefused, match=str(tmp_path)) as refused:
        await store_in(tmp_path, path).open()
    assert refused.value.action is Action.STOP
    assert "features.store.path" in refused.value.advice


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "online.db").write_text("these are my notes, " * 100)
    with pytest.raises(StoreRefused, match="online.db"):
        await store_in(tmp_path).open()
    assert (tmp_path / "online.db").read_text() == "these are my notes, " * 100


async def test_a_lock_of_another_process_is_waited_for_without_holding_up_the_loop_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.store.sqlite._BUSY_TIMEOUT_S", 0.2)
    store = store_in(tmp_path)
    await store.open()
    await store.write([write_of(1)])
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("begin immediate")
        writing = asyncio.create_task(store.write([write_of(2)]))
        longest = 0.0
        while not writing.done():
            before = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - before)
        with pytest.raises(StoreError, match="locked") as locked:
            await writing
        assert locked.value.action is Action.RETRY
        assert longest < 0.15, f"the loop stood still for {longest:.3f} s"
        assert await store.checkpoint(CLICKS) == Checkpoint("c1", "g", (1,), 1), "readers go on during a lock"
        other.execute("rollback")
    await store.write([write_of(2)])
    assert await store.checkpoint(CLICKS) == Checkpoint("c1", "g", (2,), 1)
    await store.close()


async def test_a_write_whose_caller_was_cancelled_is_whole_and_can_be_written_again(store: SQLiteStore) -> None:
    writing = asyncio.create_task(store.write([write_of(1)]))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await store.write([write_of(1)])
    await store.write([write_of(2)])
    assert await store.checkpoint(CLICKS) == Checkpoint("c1", "g", (2,), 1)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("value BLOB, vector_value BLOB", [("5", None), ("True", None), ("a", None)]),
        ("value BLOB, value_text TEXT, value_num REAL, vector_value BLOB", [("5", 5.0), ("True", 1.0), ("a", None)]),
    ],
    ids=["feast 0.63", "feast 0.67 with numbers"],
)
async def test_a_table_that_another_feast_made_is_filled_as_that_feast_fills_it(
    tmp_path: Path, columns: str, expected: list[tuple[str, float | None]]
) -> None:
    with closing(sqlite3.connect(tmp_path / "online.db")) as feast:
        feast.execute(
            f"create table shop_clicks (entity_key BLOB, feature_name TEXT, {columns}, event_ts timestamp,"
            " created_ts timestamp, PRIMARY KEY(entity_key, feature_name))"
        )
        feast.commit()
        store = store_in(tmp_path)
        await store.open()
        await store.write([write_of(5)])
        number = "value_num" if "value_num" in columns else "null"
        assert (
            feast.execute(f"select value_text, {number} from shop_clicks order by feature_name").fetchall() == expected
        )
        await store.close()


async def test_a_table_dropped_by_another_process_is_made_again(store: SQLiteStore) -> None:
    await store.write([write_of(1)])
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("drop table shop_clicks")
    with pytest.raises(StoreError, match="no such table"):
        await store.write([write_of(2)])
    await store.write([write_of(2)])
    assert await store.keys(CLICKS) == [(1,)]


async def test_a_row_that_another_writer_put_later_is_told_with_that_writers_time(store: SQLiteStore) -> None:
    await store.write([write_of(1)])
    with closing(sqlite3.connect(store.path)) as feast:
        feast.execute("update shop_clicks set event_ts = 77")
        feast.commit()
    (row,) = await store.read(CLICKS, ["page"], [(1,)])
    assert row is not None
    assert row.event_time_us == 77_000_000


async def test_what_a_promotion_left_behind_goes_with_the_next_start(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("headrace.features.store.sqlite._SLICE", 2)
    entities = [EntityWrite((key,), (key, True, "secret"), 1, b"") for key in range(20)]
    await store.write([ViewWrite(CLICKS, entities, {}, Checkpoint("c1", "g", (1,), 1))])
    await store.write(
        [ViewWrite(CLICKS.draft, [EntityWrite((1,), (5, True, "new"), 1, b"")], {}, Checkpoint("c1", "g", (1,), 1))]
    )
    calls = 0
    real = SQLiteStore._has_table

    def cut(self: SQLiteStore, connection: sqlite3.Connection, view: str) -> bool:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise sqlite3.OperationalError("disk I/O error")
        return real(self, connection, view)

    monkeypatch.setattr(SQLiteStore, "_has_table", cut)
    with pytest.raises(StoreError):
        await store.promote(CLICKS)
    assert [row.values for row in await store.read(CLICKS, ["clicks_1h"], [(1,)]) if row] == [(5,)]

    def tables() -> list[str]:
        with closing(sqlite3.connect(store.path)) as connection:
            return [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]

    assert "shop_clicks__former" in tables()
    await store.close()
    await store.open()
    assert sorted(name for name in tables() if name.startswith("shop_")) == ["shop_clicks"]
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("select count(*) from _hr_view").fetchone() == (1,)
        assert connection.execute("select count(*) from _hr_state").fetchone() == (1,)
