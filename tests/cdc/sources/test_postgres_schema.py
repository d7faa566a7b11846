"""Tables that change while the stream runs: a schema event before the first row of each version, the same after any restart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from fix_servers import Database
from fold import server_rows
from headrace.cdc.event import Change, CustomerEvent, SchemaEvent
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.readable import ReadableLines

MakeReader = Callable[..., Awaitable[Any]]

both = pytest.mark.parametrize("database", [15, 18], indirect=True)


def told(change: Change) -> SchemaEvent:
    """The properties of a schema change's event."""
    return msgspec.json.decode(event_of(change).properties, type=SchemaEvent)


def event_of(change: Change) -> CustomerEvent:
    (event,) = Normaliser("shop", {}).events([change], 7)
    return event


def order(reader: Any, table: str = "public.t") -> list[tuple[str, int]]:
    return [(change.op, change.table.version) for change in reader.changes if change.table.name == table]


@both
async def test_each_alter_is_told_before_the_first_row_of_its_version(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v int)")
    r = await reader()
    await r.until_streaming()
    database.execute("insert into t values (1, 1)")
    database.execute("alter table t add note text, add price numeric(10,2) not null default 0")
    database.execute("insert into t values (2, 2, 'x', 1.5)")
    database.execute("alter table t rename v to w")
    database.execute("insert into t values (3, 3, 'x', 1.5)")
    database.execute("alter table t alter w type bigint")
    database.execute("update t set w = 4 where id = 3")
    database.execute("alter table t drop note")
    database.execute("delete from t where id = 3")
    await r.until_op("delete")
    assert order(r) == [
        ("insert", 1),
        ("schema", 2), ("insert", 2),
        ("schema", 3), ("insert", 3),
        ("schema", 4), ("update", 4),
        ("schema", 5), ("delete", 5),
    ]  # fmt: skip
    schemas = [change for change in r.changes if change.op == "schema"]
    assert [[(column.name, column.type) for column in told(change).columns] for change in schemas] == [
        [("id", "int4"), ("v", "int4"), ("note", "text"), ("price", "numeric")],
        [("id", "int4"), ("w", "int4"), ("note", "text"), ("price", "numeric")],
        [("id", "int4"), ("w", "int8"), ("note", "text"), ("price", "numeric")],
        [("id", "int4"), ("w", "int8"), ("price", "numeric")],
    ]
    for change in schemas:
        row = r.changes[r.changes.index(change) + 1]
        assert (change.position, change.ordinal, change.xid) == (row.position, row.ordinal, row.xid)
        assert change.id == row.id + "s" and row.is_last and not change.is_last
    assert told(schemas[0]).key == ("id",)
    assert told(schemas[0]).columns[3].modifier == (10 << 16 | 2) + 4


@both
async def test_ddl_between_rows_of_one_transaction_is_told_in_its_place(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    with database.connection.transaction():
        database.execute("insert into t values (1)")
        database.execute("alter table t add note text")
        database.execute("insert into t values (2, 'x')")
        database.execute("alter table t drop note")
        database.execute("insert into t values (3)")
    await r.until_op("insert", 3)
    assert order(r) == [("insert", 1), ("schema", 2), ("insert", 2), ("schema", 3), ("insert", 3)]
    assert [change.ordinal for change in r.changes] == [0, 1, 1, 2, 2], "rows keep their ordinals, and so their ids"
    assert len({change.id for change in r.changes}) == 5


async def test_versions_and_ids_are_the_same_after_a_crash_at_any_batch(database: Database, reader: MakeReader) -> None:
    """Go on from every state that a log could hold: what comes again, and only that, is the same to the byte."""
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    states: list[tuple[bytes, int]] = [(r.state, len(r.changes))]
    for number in range(4):
        database.execute(f"alter table t add c{number} int")
        database.execute(f"insert into t (id) values ({number})")
        await r.until(lambda number=number: sum(change.op == "insert" for change in r.changes) > number)
        states.append((r.state, len(r.changes)))
        r.source._durable = 0  # the server isn't told: it sends everything again
    await r.stop()
    whole = [(event_of(change), change.table) for change in r.changes]
    r.source = r._make()
    for state, count in states:
        r.state, r.changes = state, []
        r.fold.ids = set()
        r.fold.is_snapshotting = True
        await r.restart(forget_confirmations=True)
        r.source.durable = lambda mark: None
        if count < len(whole):
            await r.until(lambda count=count: len(r.changes) >= len(whole) - count)
        assert [(event_of(change), change.table) for change in r.changes] == whole[count:]


@both
async def test_a_renamed_table_is_told_with_its_former_name(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v int)")
    database.execute("insert into t values (1, 1)")
    r = await reader()
    await r.until_streaming()
    database.execute("alter table t rename to orders")
    database.execute("update orders set v = 2")
    await r.until_op("update")
    (schema,) = [change for change in r.changes if change.op == "schema"]
    assert (schema.table.name, told(schema).renamed_from, told(schema).version) == ("public.orders", "public.t", 2)
    assert r.fold.rows("public.orders") == server_rows(database.dsn, "orders")
    assert r.fold.rows("public.t") == []
    line = ReadableLines(has_colour=False, width=None, partitions=1).line(event_of(schema), partition=0, offset=0)
    assert line.endswith("version 2, was public.t: id int4, v int4")


@both
async def test_a_table_recreated_under_its_name_empties_it_and_is_copied(
    database: Database, reader: MakeReader
) -> None:
    database.execute("create table t (id int primary key, v int)")
    database.execute("create table other (id int primary key)")
    database.execute("insert into t select n, n from generate_series(1, 10) n")
    database.execute("create publication everything for all tables with (publish_via_partition_root)")
    r = await reader(publication="everything")
    await r.until_streaming()
    database.execute("drop table t")
    database.execute("create table t (id int primary key, other text)")
    database.execute("insert into t values (1, 'new')")
    await r.until_op("insert")
    assert order(r)[-3:] == [("truncate", 1), ("schema", 2), ("insert", 2)]
    schema = next(change for change in r.changes if change.op == "schema")
    assert told(schema).replaced_oid and told(schema).oid != told(schema).replaced_oid
    assert r.source.status().phase == "snapshot"
    r.fold.is_snapshotting = True
    await r.until_streaming()
    assert [change.after for change in r.changes if change.op == "read"][-1] == (1, "new")
    assert r.fold.rows("public.t") == server_rows(database.dsn, "t")
    await r.restart(forget_confirmations=True)
    database.execute("insert into t values (2, 'newer')")
    await r.until_op("insert", 2)
    assert [op for op, _ in order(r)].count("schema") == 1
    assert r.fold.rows("public.t") == server_rows(database.dsn, "t")


async def test_a_table_recreated_while_nobody_looked_is_found_at_the_start(
    database: Database, reader: MakeReader
) -> None:
    database.execute("create table t (id int primary key, v int)")
    database.execute("insert into t values (1, 1), (2, 2)")
    r = await reader()
    await r.until_streaming()
    await r.stop()
    database.execute("drop table t")
    database.execute("create table t (id int primary key, other text)")
    database.execute("insert into t values (7, 'before the publication had it')")
    r.fold.is_snapshotting = True
    await r.restart()
    await r.until(lambda: any(change.after == (7, "before the publication had it") for change in r.changes))
    await r.until_streaming()
    assert order(r)[-3:] == [("truncate", 1), ("schema", 2), ("read", 2)]
    assert r.fold.rows("public.t") == server_rows(database.dsn, "t")


async def test_two_tables_that_swap_names_are_told_apart(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v int)")
    database.execute("create table next (id int primary key, w text)")
    database.execute("insert into t values (1, 1)")
    database.execute("insert into next values (5, 'x')")
    r = await reader()
    await r.until_streaming()
    with database.connection.transaction():
        database.execute("alter table t rename to old")
        database.execute("alter table next rename to t")
    database.execute("insert into t values (6, 'y')")
    await r.until_op("insert")
    assert r.fold.rows("public.t") == server_rows(database.dsn, "t")
    assert r.fold.rows("public.next") == []


async def test_a_table_made_mid_stream_comes_with_its_first_row(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    database.execute("create publication everything for all tables with (publish_via_partition_root)")
    r = await reader(publication="everything")
    await r.until_streaming()
    database.execute("create table late (id int primary key, v text)")
    database.execute("insert into late values (1, 'a')")
    await r.until_op("insert")
    r.fold.is_snapshotting = True
    database.execute("update late set v = 'b'")
    await r.until_streaming()
    await r.until_op("update")
    assert not [change for change in r.changes if change.op in ("schema", "truncate")]
    assert r.fold.rows("public.late") == server_rows(database.dsn, "late")


@both
async def test_an_enum_label_added_between_two_rows_simply_comes(database: Database, reader: MakeReader) -> None:
    database.execute("create type mood as enum ('sad')")
    database.execute("create table t (id int primary key, m mood, ms mood[])")
    r = await reader()
    await r.until_streaming()
    database.execute("insert into t values (1, 'sad', '{sad}')")
    database.execute("alter type mood add value 'ok'")
    database.execute("alter type mood rename value 'sad' to 'blue'")
    database.execute("insert into t values (2, 'ok', '{ok,blue}')")
    inserts = await r.until_op("insert", 2)
    assert inserts[-1].after == (2, "ok", "{ok,blue}")
    assert {op for op, _ in order(r)} == {"insert"}


@pytest.mark.parametrize("ddl", ["add b int", "drop v", "rename v to w", "alter v type text", "rename to t2"])
async def test_ddl_while_a_table_is_copied_leaves_no_row_of_the_former_version(
    database: Database, reader: MakeReader, monkeypatch: pytest.MonkeyPatch, ddl: str
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_ROWS", 7)
    database.execute("create table t (id int primary key, v int)")
    database.execute("insert into t select n, n from generate_series(1, 50) n")
    r = await reader()
    await r.until(lambda: len(r.changes) >= 7)
    # It waits for a chunk that is being read in this loop.
    await asyncio.to_thread(database.execute, f"alter table t {ddl}")
    name = "t2" if "t2" in ddl else "t"
    database.execute(f"insert into {name} (id) values (100)")
    database.execute(f"insert into {name} (id) values (-100)")
    await r.until_streaming()
    await r.until_op("insert", 2)
    versions = [change.table.version for change in r.changes if change.op != "schema"]
    assert versions == sorted(versions) and set(versions) == {1, 2}
    assert {row["id"] for row in r.fold.rows(f"public.{name}")} == {*range(1, 51), 100, -100}


async def test_a_table_dropped_while_it_is_copied_does_not_stop_the_copy(
    database: Database, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_ROWS", 7)
    database.execute("create table a (id int primary key)")
    database.execute("create table b (id int primary key)")
    database.execute("insert into a select generate_series(1, 50)")
    database.execute("insert into b select generate_series(1, 50)")
    r = await reader()
    await r.until(lambda: len(r.changes) >= 7)
    await asyncio.to_thread(database.execute, "drop table a")
    await r.until_streaming()
    assert r.fold.rows("public.b") == server_rows(database.dsn, "b")
