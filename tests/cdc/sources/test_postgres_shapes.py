"""Every shape that a row's way through a table can take, folded and compared with the server's own SELECT."""

from __future__ import annotations

import gc
import hashlib
import resource
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from fix_servers import Database
from fold import server_rows
from headrace.cdc.event import UNCHANGED

MakeReader = Callable[..., Awaitable[Any]]

both = pytest.mark.parametrize("database", [15, 18], indirect=True)

BIG, OTHER = "x" * 20_000, "y" * 20_000
IDENTITIES = {
    "default": "default",
    "full": "full",
    "index": "using index t_code",
    "nothing": "nothing",
}


@both
@pytest.mark.parametrize("identity", IDENTITIES)
async def test_each_change_under_each_replica_identity(database: Database, reader: MakeReader, identity: str) -> None:
    """Insert, update, key change and delete, with a large value that is rewritten, left alone, or NULL."""
    database.execute("create table t (id int primary key, code text not null, n int, big text, small text)")
    database.execute("alter table t alter big set storage external")
    database.execute("create unique index t_code on t (code)")
    if identity != "nothing":
        database.execute(f"alter table t replica identity {IDENTITIES[identity]}")
    insert = "insert into t select n, 'c' || n, 0, case when n %% 2 = 1 then %s::text end, 's' from generate_series(%s::int, %s::int) n"
    database.execute(insert, BIG, 1, 3)
    r = await reader()
    await r.until_streaming()
    database.execute(insert, BIG, 4, 6)
    if identity == "nothing":  # such a table is refused at the start; this one loses its identity later
        database.execute("alter table t replica identity nothing")
        database.execute(insert, BIG, 7, 9)
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            database.execute("update t set n = 1")
        await r.until_op("insert", 6)
        assert r.fold.rows("public.t") == server_rows(database.dsn, "t")
        return
    database.execute("update t set n = 1 where id = 1")  # left alone
    database.execute("update t set n = 1 where id = 2")  # NULL
    database.execute("update t set big = %s where id = 3", OTHER)  # rewritten
    database.execute("update t set big = null where id = 5")
    database.execute("update t set big = %s where id = 4", OTHER)
    database.execute("update t set id = id + 100, code = code || 'x' where id in (3, 6)")
    database.execute("delete from t where id in (2, 103)")
    await r.until_op("delete", 2)
    updates = [change for change in r.changes if change.op == "update"]
    assert [(change.after[3] is UNCHANGED, change.after[3] is None) for change in updates] == [
        (identity != "full", False),
        (False, True),
        (False, False),
        (False, True),
        (False, False),
        (identity != "full", False),
        (False, True),
    ]
    before = [
        None if c.before is None else [name for name, v in zip(["id", "code", "n", "big", "small"], c.before, strict=True) if v is not UNCHANGED]
        for c in [*updates, r.changes[-1]]
    ]  # fmt: skip
    key = ["id", "code", "n", "big", "small"] if identity == "full" else ["id"] if identity == "default" else ["code"]
    unmoved = key if identity == "full" else None
    assert before == [unmoved] * 5 + [key] * 3
    assert r.changes[0].table.key == ((1,) if identity == "index" else (0,))
    assert r.fold.rows("public.t") == server_rows(database.dsn, "t")


@both
async def test_an_identity_index_that_is_dropped_leaves_a_table_that_only_grows(
    database: Database, reader: MakeReader
) -> None:
    database.execute("create table t (id int primary key, code text not null)")
    database.execute("create unique index t_code on t (code)")
    database.execute("alter table t replica identity using index t_code")
    r = await reader()
    await r.until_streaming()
    r.fold.is_snapshotting = True  # a fold can't follow rows whose key becomes another
    database.execute("insert into t values (1, 'a')")
    database.execute("drop index t_code")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        database.execute("update t set code = 'b'")
    database.execute("insert into t values (2, 'c')")
    database.execute("alter table t replica identity default")
    database.execute("update t set code = 'd' where id = 2")
    database.execute("delete from t where id = 1")
    await r.until_op("delete")
    assert [(change.op, change.table.key, change.table.identity) for change in r.changes if change.op != "schema"] == [
        ("insert", (1,), "i"),
        ("insert", (), "i"),
        ("update", (0,), "d"),
        ("delete", (0,), "d"),
    ]


@both
@pytest.mark.parametrize("stored", ["none", "stored"])
async def test_generated_columns_come_where_the_server_sends_them(
    database: Database, reader: MakeReader, stored: str
) -> None:
    is_18 = database.connection.info.server_version >= 180000
    if stored == "stored" and not is_18:
        pytest.skip("publish_generated_columns came with 18")
    virtual = ", w int generated always as (v + 1) virtual" if is_18 else ""
    database.execute(
        f"create table t (id int primary key, v int, s int generated always as (v * 2) stored{virtual}, z int)"
    )
    option = f"with (publish_generated_columns = {stored})" if is_18 else ""
    database.execute(f"create publication p for table t {option}")
    database.execute("insert into t values (1, 10)")
    r = await reader(publication="p")
    await r.until_streaming()
    database.execute("insert into t values (2, 20)")
    database.execute("update t set v = 30 where id = 2")
    database.execute("alter table t add later int")
    database.execute("insert into t values (3, 40)")
    await r.until_op("insert", 2)
    names = [[column.name for column in change.table.columns] for change in r.changes]
    columns = ["id", "v", "s", "z"] if stored == "stored" else ["id", "v", "z"]
    assert names == [columns, columns, columns, [*columns, "later"], [*columns, "later"]]
    sent = [change.after[:3] for change in r.changes if change.op != "schema"]
    assert sent == (
        [(1, 10, 20), (2, 20, 40), (2, 30, 60), (3, 40, 80)]
        if stored == "stored"
        else [(1, 10, None), (2, 20, None), (2, 30, None), (3, 40, None)]
    )


@both
async def test_copy_and_multi_insert_are_rows_in_order(database: Database, reader: MakeReader) -> None:
    """All rows of a page share one LSN."""
    database.execute("create table t (id int primary key, v text)")
    r = await reader()
    await r.until_streaming()
    with database.connection.transaction(), database.connection.cursor() as cursor:
        with cursor.copy("copy t from stdin") as copy:
            for number in range(10_000):
                copy.write_row((number, f"v{number}"))
        cursor.execute("insert into t select n, 'm' || n from generate_series(10000, 19999) n")
    inserts = await r.until_op("insert", 20_000)
    assert [change.after[0] for change in inserts] == list(range(20_000))
    assert [change.ordinal for change in inserts] == list(range(20_000))
    assert len({change.id for change in inserts}) == 20_000
    assert [change.is_last for change in inserts] == [False] * 19_999 + [True]


@both
async def test_partitions_come_go_and_nest(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int, region text, v int, primary key (id, region)) partition by list (region)")
    database.execute("create table t_eu partition of t for values in ('eu') partition by range (id)")
    database.execute("create table t_eu_low partition of t_eu for values from (0) to (100)")
    database.execute("create table t_eu_high (v int, id int not null, region text not null)")
    database.execute("alter table t_eu attach partition t_eu_high for values from (100) to (200)")
    database.execute("insert into t values (1, 'eu', 1), (101, 'eu', 1)")
    r = await reader()
    await r.until_streaming()
    database.execute("update t set id = 102 where id = 1")  # between leaves: a delete and an insert
    database.execute("create table t_us (gone int, id int not null, region text not null, v int)")
    database.execute("alter table t_us drop gone")
    database.execute("alter table t attach partition t_us for values in ('us')")
    database.execute("insert into t values (7, 'us', 1)")
    database.execute("insert into t_us (id, region, v) values (8, 'us', 1)")  # by its own name
    database.execute("update t set region = 'eu' where id = 7")
    database.execute("delete from t where id = 101")
    await r.until_op("delete", 3)
    assert r.fold.rows("public.t") == server_rows(database.dsn, "t")
    database.execute("alter table t detach partition t_us")
    database.execute("insert into t_us (id, region, v) values (9, 'us', 1)")  # no longer of this table
    database.execute("insert into t values (50, 'eu', 5)")
    await r.until(lambda: any(change.after is not None and change.after[0] == 50 for change in r.changes))
    assert {change.table.name for change in r.changes} == {"public.t"}
    assert not any(change.after is not None and change.after[0] == 9 for change in r.changes)


@both
async def test_1600_columns(database: Database, reader: MakeReader) -> None:
    columns = ", ".join(f"c{number} int" for number in range(1599))
    database.execute(f"create table t (id int primary key, {columns})")
    database.execute("insert into t (id, c0, c1598) values (1, 5, 7)")
    r = await reader()
    await r.until_streaming()
    database.execute("insert into t (id, c0, c1598) values (2, 5, 7)")
    database.execute("update t set c800 = -1")
    await r.until_op("update", 2)
    assert len(r.changes[0].table.columns) == 1600
    assert r.fold.rows("public.t") == server_rows(database.dsn, "t")


async def test_values_of_100_megabytes(database: Database, reader: MakeReader) -> None:
    """One text of 100 MB and one bytea of 60 MB, by the copy and by the stream; memory is given back."""
    database.execute("create table t (id int primary key, v text, b bytea)")
    database.execute("alter table t alter v set storage external, alter b set storage external")
    text = "repeat('0123456789', 10 * 1024 * 1024)"
    data = "decode(repeat('00ff', 30 * 1024 * 1024), 'hex')"
    database.execute(f"insert into t values (1, {text}, null)")
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    r = await reader()
    await r.until_streaming()
    database.execute(f"insert into t values (2, null, {data})")
    await r.until_op("insert")
    read, insert = r.changes
    assert len(read.after[1]) == 100 * 1024 * 1024
    assert hashlib.sha256(read.after[1].encode()).digest() == hashlib.sha256(b"0123456789" * (10 << 20)).digest()
    assert len(insert.after[2]) == 2 + 4 * 30 * 1024 * 1024
    assert insert.after[2].startswith("\\x00ff00ff") and insert.after[2].endswith("00ff")
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"memory grew by at most {grown_mb:.0f} MiB")
    assert grown_mb < 1000


@both
async def test_identifiers_of_63_bytes_and_any_character(database: Database, reader: MakeReader) -> None:
    names = ["ä" * 31 + "x", "\t\n\r \\ \x01'\"%s", "SELECT", "a.b", "🙂" * 15, "-- ; drop"]
    assert len(names[0].encode()) == 63
    for number, name in enumerate(names):
        quoted = psycopg.sql.Identifier(name).as_string(database.connection)
        database.execute(f"create table {quoted} (id int primary key, {quoted} text)")
        database.execute(f"insert into {quoted} values (1, 'v{number}')")
    r = await reader()
    await r.until_streaming()
    for name in names:
        quoted = psycopg.sql.Identifier(name).as_string(database.connection)
        database.execute(f"update {quoted} set id = 2")
    await r.until_op("update", len(names))
    updates = [change for change in r.changes if change.op == "update"]
    assert [change.table.table for change in updates] == names
    assert [change.table.columns[1].name for change in updates] == names
    assert [change.after[1] for change in updates] == [f"v{number}" for number in range(len(names))]


@both
async def test_a_table_without_columns_has_rows(database: Database, reader: MakeReader) -> None:
    database.execute("create table t ()")
    database.execute("alter table t replica identity full")
    database.execute("create table u (id int primary key)")
    database.execute("insert into t default values")
    r = await reader()
    await r.until_streaming()
    database.execute("insert into t default values")
    database.execute("insert into t select from generate_series(1, 3)")
    await r.until_op("insert", 4)
    assert [(change.op, change.after) for change in r.changes if change.op != "truncate"] == [
        ("read", ()),
        *[("insert", ())] * 4,
    ]


@both
async def test_upserts_merges_cascades_and_deferred_constraints(database: Database, reader: MakeReader) -> None:
    database.execute("create table a (id int primary key deferrable initially deferred, v int)")
    database.execute("create table p (id int primary key, n int)")
    database.execute("create table c (id int primary key, p int references p on delete cascade on update cascade)")
    database.execute("create table s (id int primary key, p int references p on delete set null)")
    database.execute("alter table a replica identity full")
    database.execute("insert into a values (1, 1), (2, 2)")
    database.execute("insert into p select n, 0 from generate_series(1, 10) n")
    database.execute("insert into c select n, n from generate_series(1, 10) n")
    database.execute("insert into s select n, n from generate_series(1, 10) n")
    r = await reader()
    await r.until_streaming()
    database.execute("insert into p values (1, 5), (11, 5) on conflict (id) do update set n = p.n + excluded.n")
    database.execute("insert into p values (1, 9) on conflict do nothing")
    database.execute(
        "merge into p using (values (2), (3), (12)) v(id) on p.id = v.id when matched and v.id = 2 then delete"
        " when matched then update set n = 7 when not matched then insert values (v.id, 8)"
    )
    database.execute("update p set id = 100 where id in (select p from c where p = 4) and false")
    database.execute("delete from s where p = 5")
    database.execute("update p set id = 105 where id = 5")
    database.execute("delete from p where id in (6, 7)")
    database.execute("insert into p values (99, 99)")
    await r.until(lambda: any(change.after == (99, 99) for change in r.changes))
    for table in ("p", "c", "s"):
        assert r.fold.rows(f"public.{table}") == server_rows(database.dsn, table), table


@both
async def test_keys_that_swap_under_a_deferred_constraint(database: Database, reader: MakeReader) -> None:
    """Between the two updates both rows have one key: what comes out is still the two updates, in their order."""
    database.execute("create table a (id int, v text, constraint k unique (id) deferrable initially deferred)")
    database.execute("alter table a replica identity full")
    database.execute("insert into a values (1, 'x'), (2, 'y')")
    r = await reader()
    await r.until_streaming()
    with database.connection.transaction():
        database.execute("update a set id = 2 where v = 'x'")
        database.execute("update a set id = 1 where v = 'y'")
    await r.until_op("update", 2)
    assert r.fold.rows("public.a") == server_rows(database.dsn, "a")


@both
async def test_a_table_that_becomes_logged_while_the_source_runs(database: Database, reader: MakeReader) -> None:
    """Unlogged tables can't be published: the server itself refuses the switch of one that is."""
    database.execute("create unlogged table u (id int primary key)")
    database.execute("create table t (id int primary key)")
    database.execute("insert into u values (1)")
    r = await reader()
    await r.until_streaming()
    with pytest.raises(psycopg.Error):
        database.execute("alter table t set unlogged")
    database.execute("alter table u set logged")
    await r.restart()
    database.execute("insert into u values (2)")
    r.fold.is_snapshotting = True
    await r.until(lambda: len(r.fold.rows("public.u")) == 2)
    await r.until_streaming()
    assert r.fold.rows("public.u") == server_rows(database.dsn, "u")
