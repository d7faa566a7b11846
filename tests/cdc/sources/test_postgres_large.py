"""Transactions too large for memory: streamed before their end or spilled here, they come whole, in commit order, once, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fix_servers import Database
from fold import server_rows
from headrace.cdc.errors import SourceUnavailable
from headrace.cdc.event import Change

MakeReader = Callable[..., Awaitable[Any]]

both = pytest.mark.parametrize("database", [15, 18], indirect=True)


def ways(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    return pytest.mark.parametrize("way", ["streamed", "spilled"])(pytest.mark.usefixtures("small")(test))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Makes transactions of some hundred rows large ones: for the server, or for us only."""
    monkeypatch.setattr("headrace.cdc.sources.spill.PART_BYTES", 2000)
    if way == "spilled":
        monkeypatch.setattr("headrace.cdc.sources.postgres._SPILL_BYTES", 1000)
        # What comes in one gulp, from its beginning to its end, is never spilled.
        monkeypatch.setattr("headrace.cdc.sources.pgstream._GULP_FRAMES", 50)
    monkeypatch.setattr("headrace.cdc.sources.pgstart.DECODING_MEMORY", "64kB" if way == "streamed" else "1GB")


def streamed_bytes(database: Database, reader: Any) -> int:
    [(count,)] = database.execute(
        "select stream_bytes from pg_stat_replication_slots where slot_name = %s", reader.source._server.slot
    )
    return int(str(count))


def order(changes: list[Change]) -> list[str]:
    """Which table each transaction wrote last, in the order they came."""
    return [change.table.table for change in changes if change.is_last and change.op != "read"]


@both
@ways
async def test_it_comes_whole_among_others_in_commit_order(database: Database, reader: MakeReader, way: str) -> None:
    database.execute("create table big (id int primary key, v text)")
    database.execute("create table small (id int primary key, v text)")
    r = await reader()
    with psycopg.connect(database.dsn) as one, psycopg.connect(database.dsn) as other:
        for connection, first in ((one, 0), (other, 10_000)):
            connection.execute(
                "insert into big select n, repeat('v', 50) from generate_series(%s::int, %s::int) n",
                [first, first + 3000],
            )
        database.execute("insert into small values (1, 'before')")
        await r.until(lambda: order(r.changes) == ["small"])
        for connection, first in ((one, 0), (other, 10_000)):
            connection.execute("update big set v = 'u' where id between %s and %s", [first, first + 1500])
        other.commit()
        database.execute("insert into small values (2, 'between')")
        one.commit()
    database.execute("insert into small values (3, 'after')")
    await r.until(lambda: len(order(r.changes)) == 5)
    assert order(r.changes) == ["small", "big", "small", "big", "small"]
    assert r.largest > 10
    for table in ("big", "small"):
        assert r.fold.rows(f"public.{table}") == server_rows(database.dsn, f"public.{table}")
    for xid in {change.xid for change in r.changes if change.xid}:
        ordinals = [change.ordinal for change in r.changes if change.xid == xid]
        assert ordinals == list(range(len(ordinals)))
    if way == "streamed":
        await r.restart()
        assert streamed_bytes(database, r) > 0


@both
@ways
async def test_what_was_rolled_back_is_never_seen(database: Database, reader: MakeReader, way: str) -> None:
    """A whole transaction, subtransactions, nested ones, and one whose table was altered in a part that went."""
    database.execute("create table t (id int primary key, v text)")
    r = await reader()
    fill = "insert into t select n, repeat('v', 60) from generate_series(%s::int, %s::int) n"
    with psycopg.connect(database.dsn) as connection:
        connection.execute(fill, [0, 2000])
        connection.rollback()
        connection.execute(fill, [10_000, 12_000])
        for name, first, is_kept in (("a", 20_000, False), ("b", 30_000, True), ("c", 40_000, False)):
            connection.execute(f"savepoint {name}")
            connection.execute(fill, [first, first + 2000])
            connection.execute(f"savepoint {name}_inner")
            connection.execute(fill, [first + 5000, first + 7000])
            if not is_kept:
                connection.execute(f"rollback to {name}")
        connection.execute("savepoint d")
        connection.execute("alter table t add w int default 5")
        connection.execute("insert into t select n, repeat('v', 60), 7 from generate_series(50000, 52000) n")
        connection.execute("rollback to d")
        connection.execute(fill, [60_000, 62_000])
        connection.commit()
    database.execute("insert into t values (1, 'after')")
    await r.until(lambda: any(change.after == (1, "after") for change in r.changes))
    assert r.fold.rows("public.t") == server_rows(database.dsn, "public.t")
    assert not [change for change in r.changes if change.op == "schema"]
    assert r.largest > 10


@both
@ways
async def test_schema_changes_inside_it(database: Database, reader: MakeReader, way: str) -> None:
    database.execute("create table t (id int primary key, v text)")
    r = await reader()
    database.execute("insert into t values (0, 'announced')")
    with psycopg.connect(database.dsn) as connection:
        connection.execute("insert into t select n, repeat('v', 60) from generate_series(1, 2000) n")
        connection.execute("alter table t add w int")
        connection.execute("insert into t select n, repeat('v', 60), n from generate_series(3001, 5000) n")
        connection.execute("alter table t alter w type bigint")
        connection.execute("update t set w = 1 where id < 1000")
        connection.commit()
    database.execute("insert into t values (9999, 'after', 1)")
    await r.until(lambda: any(change.after == (9999, "after", 1) for change in r.changes))
    assert r.fold.rows("public.t") == server_rows(database.dsn, "public.t")
    assert len([change for change in r.changes if change.op == "schema"]) == 2


@both
@ways
async def test_a_crash_in_the_middle_of_it_and_one_behind_it(database: Database, reader: MakeReader, way: str) -> None:
    database.execute("create table t (id int primary key, v text)")
    database.execute("create table only_inside (id int primary key)")
    r = await reader()
    with psycopg.connect(database.dsn) as connection:
        connection.execute("insert into only_inside values (1)")
        connection.execute("insert into t select n, repeat('v', 60) from generate_series(1, 3000) n")
        connection.commit()
    await r.until(lambda: len(r.parts) > 5)
    await r.restart(forget_confirmations=True)
    assert not [change for change in r.changes if change.op == "insert"]
    await r.until(lambda: sum(change.op == "insert" for change in r.changes) == 3001)
    # The server is told nothing and sends it again: it is known, but its tables must be too.
    await r.restart(forget_confirmations=True)
    database.execute("insert into only_inside values (2)")
    await r.until(lambda: any(change.after == (2,) for change in r.changes))
    assert sum(change.op == "insert" for change in r.changes) == 3002
    for table in ("t", "only_inside"):
        assert r.fold.rows(f"public.{table}") == server_rows(database.dsn, f"public.{table}")


@both
@ways
async def test_cancelled_reads_lose_nothing(database: Database, reader: MakeReader, way: str) -> None:
    database.execute("create table t (id int primary key, v text)")
    r = await reader()
    database.execute("insert into t select n, repeat('v', 60) from generate_series(1, 3000) n")
    found: list[Change] = []
    cancelled = 0
    while len(found) < 3000:
        try:
            async with asyncio.timeout(0 if cancelled % 2 == 0 else 30):
                batch = await r.source.read()
        except TimeoutError:
            cancelled += 1
            continue
        cancelled += cancelled % 2
        found += [change for change in batch.changes if change.op == "insert"]
    assert cancelled > 10
    assert [change.ordinal for change in found] == list(range(3000))
    assert [change.is_last for change in found].index(True) == 2999


@both
async def test_prepared_transactions_come_when_they_are_committed(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader()
    for number, end in ((1, "commit"), (2, "rollback")):
        with psycopg.connect(database.dsn) as connection:
            connection.execute("insert into t values (%s)", [number])
            connection.execute(f"prepare transaction 'x{number}'")
        database.execute("insert into t values (%s)", 10 * number)
        database.execute(f"{end} prepared 'x{number}'")
    database.execute("insert into t values (3)")
    await r.until(lambda: any(change.after == (3,) for change in r.changes))
    assert [change.after for change in r.changes if change.op == "insert"] == [(10,), (1,), (20,), (3,)]


@ways
async def test_a_disk_that_refuses_is_named_with_the_cure(
    database: Database, reader: MakeReader, way: str, tmp_path: Path
) -> None:
    folder = tmp_path / "spill"
    folder.mkdir()
    database.execute("create table t (id int primary key, v text)")
    r = await reader(spill_folder=str(folder))
    folder.rmdir()
    database.execute("insert into t select n, repeat('v', 60) from generate_series(1, 3000) n")
    with pytest.raises(SourceUnavailable, match=r"can't keep a large open transaction in .*spill") as refused:
        await r.until(lambda: False)
    assert "spill_folder" in refused.value.paragraph()
    folder.mkdir()
    await r.restart()
    await r.until(lambda: sum(change.op == "insert" for change in r.changes) == 3000)
    assert not list(folder.iterdir()), "the files have no names"
