"""Column lists and row filters: what the configuration leaves out isn't even sent, and the application's own writes never suffer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from source_reader import Reader

from fix_servers import Database
from fold import server_rows
from headrace.cdc.config import ColumnsConfig, EventConfig
from headrace.cdc.errors import SourceRefused

MakeReader = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.parametrize("database", [15, 18], indirect=True)


def published(database: Database, table: str) -> tuple[list[str], str | None]:
    [(names, words)] = database.execute(
        "select attnames::text[], rowfilter from pg_publication_tables where tablename = %s", table
    )
    assert isinstance(names, list)
    return [str(name) for name in names], None if words is None else str(words)


async def test_columns_that_are_left_out_dont_travel(database: Database, reader: MakeReader) -> None:
    for table in ("people", "whole"):
        database.execute(f"create table {table} (id int primary key, note text, city text)")
        database.execute(f"insert into {table} values (1, 'very private', 'Bern')")
    database.execute("alter table whole replica identity full")
    events = {f"public.{table}": EventConfig(columns=ColumnsConfig(exclude=["note"])) for table in ("people", "whole")}
    r = await reader(events=events, column_lists=True)
    await r.until_streaming()
    assert published(database, "people")[0] == ["id", "city"]
    assert published(database, "whole")[0] == ["id", "note", "city"], "the server would refuse its updates"
    for table in ("people", "whole"):
        database.execute(f"insert into {table} values (2, 'very private', 'Lyon')")
        database.execute(f"update {table} set note = 'other', city = 'Genf' where id = 1")
        database.execute(f"delete from {table} where id = 2")
    await r.until_op("delete", 2)
    assert not [change for change in r.changes if change.table.table == "people" and "private" in repr(change)]
    [bern] = r.fold.rows("public.people")
    assert bern == {"id": 1, "city": "Genf"}
    found = await Reader(database.dsn, events=events, column_lists=True).source.check()
    assert not [finding for finding in found if finding.severity == "error"], "the column is known"


async def test_a_row_filter_holds_for_copy_and_stream(database: Database, reader: MakeReader) -> None:
    database.execute("create table orders (id int primary key, status text, v text)")
    database.execute("alter table orders replica identity full")
    database.execute("create table even (id int primary key)")
    database.execute("create table bag (n int)")
    database.execute("alter table bag replica identity full")
    for table in ("even", "bag"):
        database.execute(f"insert into {table} select generate_series(1, 100)")
    database.execute(
        "insert into orders select n, case n % 2 when 0 then 'draft' else 'paid' end from generate_series(1, 100) n"
    )
    events = {
        "public.orders": EventConfig(where="status <> 'draft'"),
        "public.even": EventConfig(where="id % 2 = 0"),
        "public.bag": EventConfig(where="n > 50"),
    }
    r = await reader(events=events)
    await r.until_streaming()
    database.execute("update orders set status = 'paid' where id = 2")
    database.execute("update orders set status = 'draft' where id = 3")
    database.execute("update even set id = 201 where id = 2")
    database.execute("update even set id = 202 where id = 3")
    database.execute("insert into bag values (1), (99)")
    database.execute("insert into orders values (1000, 'paid')")
    await r.until(lambda: any(change.after == (1000, "paid", None) for change in r.changes))
    for table, event in events.items():
        database.execute(f"create view seen_{table[7:]} as select * from {table} where {event.where}")
        assert r.fold.rows(table) == server_rows(database.dsn, f"public.seen_{table[7:]}")


async def test_a_filter_that_would_hurt_the_application_is_refused(database: Database, reader: MakeReader) -> None:
    database.execute("create table orders (id int primary key, status text)")
    for where, words in (
        ("status <> 'draft'", "names status, which the replica identity"),
        ("stat = 1", 'column "stat" does not exist'),
        ("id in (select 1)", "invalid publication WHERE expression; "),
        ("true); drop table orders; --", "cannot insert multiple commands"),
    ):
        with pytest.raises(SourceRefused, match=words):
            await reader(events={"public.orders": EventConfig(where=where)})
    assert database.execute("select count(*) from pg_publication") == [(0,)]
    database.execute("insert into orders values (1, 'draft')")
    database.execute("update orders set status = 'paid'")


async def test_a_publication_of_the_dbas_own_is_honoured(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v text, w text)")
    database.execute("insert into t select n, 'v', 'w' from generate_series(1, 20) n")
    database.execute("create publication theirs for table t (id, v) where (id > 10)")
    r = await reader(publication="theirs")
    await r.until_streaming()
    assert [change.after for change in r.changes] == [(n, "v") for n in range(11, 21)]
    found = await Reader(database.dsn, publication="theirs").source.check()
    assert [finding.severity for finding in found if finding.code == "publication-filter"] == ["info"]
    events = {"public.t": EventConfig(columns=ColumnsConfig(exclude=["v"]))}
    found = await Reader(database.dsn, publication="theirs", events=events, column_lists=True).source.check()
    assert "column-list" in {finding.code for finding in found}


async def test_a_filter_that_the_publication_lacks_is_an_error(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    database.execute("create publication theirs for table t")
    with pytest.raises(SourceRefused, match="made without it"):
        await reader(publication="theirs", events={"public.t": EventConfig(where="id > 5")})
