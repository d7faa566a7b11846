"""The stream against a real server: every row shape, in order, equal to the server's own SELECT."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from fix_servers import Database
from fold import server_rows
from headrace.cdc.event import UNCHANGED

MakeReader = Callable[..., Awaitable[Any]]


@pytest.mark.parametrize("database", [15, 16, 18], indirect=True)
async def test_snapshot_and_stream_fold_to_the_tables(database: Database, reader: MakeReader) -> None:
    database.execute("create table customers (id int primary key, name text, city text)")
    database.execute("create table orders (id bigint primary key, customer_id int, total numeric(12,2), paid bool)")
    database.execute("insert into customers select n, 'name ' || n, null from generate_series(1, 25000) n")
    r = await reader()
    database.execute("insert into orders select n, n % 100, n / 7.0, n % 2 = 0 from generate_series(1, 2000) n")
    database.execute("update customers set city = 'Bern' where id % 3 = 0")
    database.execute("delete from customers where id % 5 = 0")
    database.execute("update orders set id = id + 100000 where id % 10 = 0")
    database.execute("insert into customers values (-1, 'the', 'end')")
    await r.until_streaming()
    await r.until(lambda: any(c.after is not None and c.after[0] == -1 for c in r.changes))
    for table in ("public.customers", "public.orders"):
        assert r.fold.rows(table) == server_rows(database.dsn, table)


async def test_a_key_change_carries_the_old_key(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (a int, b text, v text, primary key (b, a))")
    database.execute("insert into t values (1, 'x', 'v')")
    r = await reader()
    await r.until_streaming()
    database.execute("update t set a = 2")
    (update,) = await r.until_op("update")
    assert update.before == (1, "x", UNCHANGED)
    assert update.after == (2, "x", "v")


async def test_an_unchanged_large_value_is_listed_never_null(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, n int, big text)")
    database.execute("alter table t alter big set storage external")
    database.execute("insert into t values (1, 0, repeat('x', 20000))")
    r = await reader()
    await r.until_streaming()
    database.execute("update t set n = 1")
    (update,) = await r.until_op("update")
    assert update.after == (1, 1, UNCHANGED)
    assert r.fold.rows("public.t") == server_rows(database.dsn, "public.t")


async def test_full_identity_fills_what_was_not_sent(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, n int, big text)")
    database.execute("alter table t alter big set storage external")
    database.execute("alter table t replica identity full")
    database.execute("insert into t values (1, 0, repeat('x', 20000))")
    r = await reader()
    await r.until_streaming()
    database.execute("update t set n = 1")
    (update,) = await r.until_op("update")
    assert update.before == (1, 0, "x" * 20000)
    assert update.after == (1, 1, "x" * 20000)
    assert update.table.key == (0,), "under FULL the key is still the primary key"


async def test_a_table_without_key_is_a_bag_of_rows(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (a int, b text)")
    database.execute("alter table t replica identity full")
    database.execute("insert into t values (1, 'x'), (1, 'x'), (2, 'y')")
    r = await reader()
    await r.until_streaming()
    database.execute("delete from t where ctid in (select ctid from t where a = 1 limit 1)")
    database.execute("insert into t values (2, 'y')")
    database.execute("update t set b = null where a = 1")
    await r.until_op("update")
    assert r.fold.rows("public.t") == server_rows(database.dsn, "public.t")


async def test_truncate_of_several_tables_is_an_event_for_each(database: Database, reader: MakeReader) -> None:
    database.execute("create table a (id int primary key)")
    database.execute("create table b (id int primary key references a)")
    database.execute("insert into a values (1)")
    database.execute("insert into b values (1)")
    r = await reader()
    await r.until_streaming()
    database.execute("truncate a cascade")
    truncates = await r.until_op("truncate", 2)
    assert sorted(change.table.table for change in truncates) == ["a", "b"]
    assert r.fold.rows("public.a") == r.fold.rows("public.b") == []


async def test_a_rolled_back_savepoint_is_never_seen_and_the_last_change_is_flagged(
    database: Database, reader: MakeReader
) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    with psycopg.connect(database.dsn) as connection:
        connection.execute("insert into t values (1)")
        with connection.transaction(force_rollback=True):
            connection.execute("insert into t values (2)")
        connection.execute("insert into t select generate_series(10, 12)")
    inserts = await r.until_op("insert", 4)
    assert [change.after for change in inserts] == [(1,), (10,), (11,), (12,)]
    assert [change.is_last for change in inserts] == [False, False, False, True]
    assert [change.ordinal for change in inserts] == [0, 1, 2, 3]
    assert len({change.xid for change in inserts}) == 1


async def test_partitions_are_one_table_under_their_root(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int, region text, v int, primary key (id, region)) partition by list (region)")
    database.execute("create table t_eu partition of t for values in ('eu')")
    # A leaf with its columns in another order.
    database.execute("create table t_us (v int, region text not null, id int not null)")
    database.execute("alter table t attach partition t_us for values in ('us')")
    database.execute(
        "insert into t select n, case n % 2 when 0 then 'eu' else 'us' end, n from generate_series(1, 50) n"
    )
    r = await reader()
    database.execute("update t set region = 'us' where id = 2")
    database.execute("update t set v = -1 where id = 3")
    database.execute("insert into t values (1000, 'eu', 0)")
    await r.until_streaming()
    await r.until(lambda: any(c.after is not None and c.after[0] == 1000 for c in r.changes))
    assert r.fold.rows("public.t") == server_rows(database.dsn, "public.t")
    assert {change.table.name for change in r.changes} == {"public.t"}


async def test_odd_names_survive(database: Database, reader: MakeReader) -> None:
    database.execute('create schema "Wärme \'n"')
    database.execute('create table "Wärme \'n"."a""b %s" ("id""" int primary key, "Grüße 🙂" text)')
    database.execute('insert into "Wärme \'n"."a""b %s" values (1, $$x$$)')
    r = await reader(tables=["Wärme 'n.*"])
    await r.until_streaming()
    database.execute('insert into "Wärme \'n"."a""b %s" values (2, $$y$$)')
    (insert,) = await r.until_op("insert")
    assert insert.table.name == "Wärme 'n.a\"b %s"
    assert [column.name for column in insert.table.columns] == ['id"', "Grüße 🙂"]
    assert [change.after for change in r.changes] == [(1, "x"), (2, "y")]


async def test_columns_added_mid_stream_make_a_new_version(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    database.execute("insert into t values (1)")
    database.execute("alter table t add column note text")
    database.execute("insert into t values (2, 'new')")
    database.execute("alter table t drop column note")
    database.execute("insert into t values (3)")
    inserts = await r.until_op("insert", 3)
    assert [change.after for change in inserts] == [(1,), (2, "new"), (3,)]
    assert [change.table.version for change in inserts] == [1, 2, 3]
    await r.restart()
    database.execute("insert into t values (4)")
    inserts = await r.until_op("insert", 4)
    assert inserts[-1].table.version == 3, "the same columns after a restart are the same version"


async def test_database_defaults_change_no_value(database: Database, reader: MakeReader) -> None:
    for setting in (
        "datestyle = 'German'",
        "intervalstyle = 'sql_standard'",
        "timezone = 'Asia/Kolkata'",
        "bytea_output = 'escape'",
        "extra_float_digits = -10",
        "client_encoding = 'LATIN1'",
        "search_path = 'pg_catalog'",
    ):
        database.execute(f"alter database {database.name} set {setting}")
    database.execute(
        "create table public.t (id int primary key, d date, ts timestamptz, i interval, b bytea, f float8, m money, t text)"
    )
    values = "'2024-02-29', '2024-02-29 12:00+00', '1 day 02:03:04', '\\x00ff', 0.1::float8 + 0.2, 12.5, 'ü'"
    database.execute(f"insert into public.t values (1, {values})")
    r = await reader()
    await r.until_streaming()
    database.execute(f"insert into public.t values (2, {values})")
    await r.until_op("insert")
    read, insert = r.changes
    assert read.after[1:] == insert.after[1:]
    assert insert.after[1:] == (
        "2024-02-29",
        "2024-02-29 12:00:00+00",
        "1 day 02:03:04",
        "\\x00ff",
        0.30000000000000004,
        "$12.50",
        "ü",
    )


async def test_a_quiet_table_beside_a_busy_one_does_not_hold_wal(database: Database, reader: MakeReader) -> None:
    database.execute("create table quiet (id int primary key)")
    database.execute("create table busy (id int primary key, v text)")
    r = await reader(tables=["public.quiet"])
    await r.until_streaming()
    database.execute("insert into busy select n, repeat('x', 100) from generate_series(1, 20000) n")
    end = database.execute("select pg_current_wal_flush_lsn()::text")[0][0]
    slot = r.source._server.slot

    def is_confirmed() -> bool:
        (found,) = database.execute(
            "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s", end, slot
        )
        return bool(found[0])

    await r.until(is_confirmed)
    assert not [change for change in r.changes if change.op != "read"]
