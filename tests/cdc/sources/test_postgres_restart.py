"""Stops, crashes and foreign histories: nothing lost, nothing twice, and a position of another history is refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from source_reader import Reader

from fix_servers import Database, drop_slot
from fold import server_rows
from headrace.cdc.errors import HistoryMismatch, SourceRefused, SourceUnavailable

MakeReader = Callable[..., Awaitable[Any]]


@pytest.mark.parametrize("seed", range(4))
async def test_snapshot_under_writes_with_crashes_folds_to_the_tables(
    database: Database, reader: MakeReader, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random inserts, updates, key moves with unchanged large values, deletes, while the copy runs in small chunks."""
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_ROWS", 37)
    rng = random.Random(seed)
    database.execute("create table a (id int primary key, n int, big text)")
    database.execute("alter table a alter big set storage external")
    database.execute("create table b (k text, id int, v float8, primary key (id, k))")
    database.execute("insert into a select n, 0, repeat(chr(65 + n % 26), 3000) from generate_series(1, 400) n")
    database.execute("insert into b select 'k' || n % 7, n, n / 3.0 from generate_series(1, 400) n")
    r: Reader = await reader()

    def step(connection: psycopg.Connection[Any]) -> None:
        row = rng.randrange(1, 500)
        move = "update a set id = %s where id = %s and not exists (select from a where id = %s)"
        match rng.randrange(8):
            case 0:
                connection.execute("insert into a values (%s, 1, repeat('z', 2500)) on conflict do nothing", [row])
            case 1 | 2:
                connection.execute("update a set n = n + 1 where id between %s and %s", [row, row + 3])
            case 3:
                there = rng.randrange(1, 500)
                connection.execute(move, [there, row, there])
            case 4:
                connection.execute("delete from a where id = %s", [row])
            case 5:
                connection.execute("update b set v = v * 1.5, k = k || 'x' where id = %s", [row])
            case 6:
                connection.execute("delete from b where id = %s", [row])
            case _:
                connection.execute("insert into b values ('new', %s, -0.0) on conflict do nothing", [row])

    async def write() -> None:
        with psycopg.connect(database.dsn) as connection:
            for _ in range(150):
                for _ in range(rng.randrange(1, 5)):
                    step(connection)
                connection.commit() if rng.random() < 0.85 else connection.rollback()
                await asyncio.sleep(0)

    async def read() -> None:
        while not writing.done() or r.source.status().phase != "streaming":
            seen = len(r.changes)
            await r.until(lambda seen=seen: len(r.changes) > seen or r.source.status().phase == "streaming")
            if rng.random() < 0.1:
                await r.restart(forget_confirmations=rng.random() < 0.7)
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    await read()
    await writing
    r.fold.is_snapshotting = False
    database.execute("insert into a values (100000, 0, 'end')")
    await r.until(lambda: any(c.after is not None and c.after[0] == 100000 for c in r.changes))
    for table in ("public.a", "public.b"):
        assert r.fold.rows(table) == server_rows(database.dsn, table), f"seed {seed}"


async def test_a_restart_after_a_crash_repeats_nothing(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r: Reader = await reader()
    await r.until_streaming()
    for number in range(20):
        database.execute("insert into t values (%s)", number)
        await r.until_op("insert", number + 1)
        await r.restart(forget_confirmations=True)
    assert [change.after for change in r.changes] == [(number,) for number in range(20)]


async def test_ids_are_the_same_when_a_transaction_is_read_again(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r: Reader = await reader()
    await r.until_streaming()
    state = r.state
    database.execute("insert into t select generate_series(1, 5)")
    first = [change.id for change in await r.until_op("insert", 5)]
    # The crash came before the log had them.
    r.state, r.changes, r.fold.ids = state, [], set()
    r.fold.tables.clear()
    await r.restart(forget_confirmations=True)
    assert [change.id for change in await r.until_op("insert", 5)] == first


async def test_a_table_new_in_the_configuration_is_copied(database: Database, reader: MakeReader) -> None:
    database.execute("create table a (id int primary key)")
    database.execute("create table b (id int primary key)")
    database.execute("insert into b values (1), (2)")
    r: Reader = await reader(tables=["public.a"])
    await r.until_streaming()
    await r.stop()
    again: Reader = Reader(database.dsn, tables=["public.a", "public.b"])
    again.state, again.fold = r.state, r.fold
    await again.start()
    database.execute("insert into b values (3)")
    await again.until(lambda: len(again.changes) >= 3)
    assert again.fold.rows("public.b") == server_rows(database.dsn, "public.b")
    await again.stop()


async def test_a_dropped_slot_is_refused_with_the_cure(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r: Reader = await reader()
    await r.until_streaming()
    await r.stop()
    drop_slot(database.connection, r.source._server.slot)
    with pytest.raises(HistoryMismatch, match="was dropped") as refused:
        await r.start()
    assert "log.path" in refused.value.paragraph()


async def test_a_slot_that_somebody_else_advanced_is_refused(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r: Reader = await reader()
    await r.until_streaming()
    await r.stop()
    database.execute("insert into t values (1)")
    database.execute(f"select pg_replication_slot_advance('{r.source._server.slot}', pg_current_wal_lsn())")
    with pytest.raises(HistoryMismatch, match="past the log's position"):
        await r.start()


async def test_another_database_is_refused(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r: Reader = await reader()
    await r.until_streaming()
    await r.stop()
    other = Database(database.server)
    try:
        other.execute("create table t (id int primary key)")
        foreign = Reader(other.dsn)
        foreign.state = r.state
        with pytest.raises(HistoryMismatch, match="another server or database"):
            await foreign.start()
    finally:
        other.drop()


async def test_a_slot_in_use_names_the_reader(
    database: Database, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgstart._SLOT_WAIT_S", 0.2)
    database.execute("create table t (id int primary key)")
    first: Reader = await reader()
    await first.until_streaming()
    second = Reader(database.dsn)
    with pytest.raises(SourceRefused, match="in use by another reader") as refused:
        await second.start()
    assert "slot" in refused.value.advice
    database.execute("insert into t values (1)")
    await first.until_op("insert")


async def test_a_cut_connection_is_tried_again_and_loses_nothing(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r: Reader = await reader()
    await r.until_streaming()
    database.execute("insert into t values (1)")
    database.execute(
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s", r.source._server.slot
    )
    with pytest.raises(SourceUnavailable):
        await r.until_op("insert", 2)
    database.execute("insert into t values (2)")
    await r.start()
    assert [change.after for change in await r.until_op("insert", 2)] == [(1,), (2,)]


async def test_only_durable_places_are_confirmed(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r: Reader = await reader()
    await r.until_streaming()
    before = database.execute("select pg_current_wal_lsn()::text")[0][0]
    database.execute("insert into t values (1)")
    batches = []
    async with asyncio.timeout(10):
        while not any(batch.changes for batch in batches):
            batches.append(await r.source.read())
        for _ in range(2):  # two heartbeats, not made durable either
            batches.append(await r.source.read())
    (confirmed,) = database.execute(
        "select confirmed_flush_lsn <= %s::pg_lsn from pg_replication_slots where slot_name = %s",
        before,
        r.source._server.slot,
    )
    assert confirmed[0], "the server was told of a place that no log holds"


async def test_a_row_whose_key_moves_behind_the_copy_keeps_its_large_value(
    database: Database, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_ROWS", 10)
    database.execute("create table a (id int primary key, big text)")
    database.execute("alter table a alter big set storage external")
    database.execute("insert into a select n, repeat(chr(65 + n % 26), 3000) from generate_series(1, 100) n")
    r: Reader = await reader()
    await r.until(lambda: len(r.changes) >= 10)
    database.execute("update a set id = -90 where id = 90")
    database.execute("update a set id = -91 where id = 91")
    database.execute("delete from a where id = -91")
    await r.until(lambda: len(r.changes) >= 20)
    await r.restart()
    await r.until_streaming()
    assert r.fold.rows("public.a") == server_rows(database.dsn, "public.a")


async def test_a_stop_that_a_task_swallows_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.sources.ending._ASK_AGAIN_S", 0.01)
    source = Reader("host=127.0.0.1 port=1 dbname=none").source
    is_deaf = True

    async def deaf_once() -> None:
        nonlocal is_deaf
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not is_deaf:
                    raise
                is_deaf = False

    source._monitor_task = asyncio.create_task(deaf_once())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await source.stop()
