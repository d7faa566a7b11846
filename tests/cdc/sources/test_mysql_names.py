"""A binlog that names no columns (binlog_row_metadata NO_LOG, MINIMAL): the catalogue's names, or none at all, but never wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cdc.decode.test_binlog import TYPES, Watched, db, texts
from cdc.sources.test_mysql import MakeReader, Reader, dsn, made_database, reader, run
from fix_mariadb import MariaDBServer
from headrace.cdc.decode.binlog import BinlogDecoder
from headrace.cdc.decode.tablemap import KnownTable
from headrace.cdc.errors import DecodeError, SourceRefused
from headrace.cdc.event import Change
from headrace.cdc.sources.mysqlcatalogue import names_table
from headrace.cdc.sources.mysqltable import read_collations, read_table

__all__ = ["db", "reader", "texts"]  # fixtures

LABELS = {
    "enum('a','it''s','b\\\\c','d\\ne','ä')": (["'a'", "'it''s'", "'b\\\\c'", "'d\\ne'", "'ä'"], "{}"),
    "set('a','it''s','b\\\\c') character set latin1": (["'a,it''s'", "'b\\\\c'"], "{}"),
    "enum('ä','ö') character set latin2": (["'ä'"], "{}"),
    "enum('ä','ö') character set utf16": (["'ö'"], "{}"),
}


@pytest.fixture(params=["NO_LOG", "MINIMAL"])
def metadata(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def nameless(db: Watched, metadata: str) -> Iterator[Watched]:
    if db.is_mysql and metadata == "NO_LOG":
        pytest.skip("a word of MariaDB's")
    db.run(f"set global binlog_row_metadata = '{metadata}'")
    yield db
    db.run("set global binlog_row_metadata = 'FULL'")


async def known_tables(db: Watched) -> dict[str, KnownTable]:
    async def query(text: str, *arguments: object) -> list[tuple[Any, ...]]:
        return db.run(text, *arguments)

    collations = await read_collations(query)
    found: dict[str, KnownTable] = {}
    for (name,) in db.run("show tables"):
        table = await read_table(query, db.name, name, collations)
        assert table is not None
        found[f"{db.name}.{name}"] = table.known
    return found


async def test_every_type_is_read_as_by_the_servers_own_names(nameless: Watched) -> None:
    types = {**TYPES, **LABELS}
    kinds = [
        kind
        for kind in types
        if not nameless.is_mysql or (kind not in ("uuid", "inet4", "inet6") and "compressed" not in kind)
    ]
    for number, kind in enumerate(kinds):
        nameless.run(f"create table t{number} (v {kind}, id int unsigned primary key auto_increment)")
    for _ in range(2):
        for number, kind in enumerate(kinds):
            for literal in [*types[kind][0], "null"]:
                nameless.run(f"insert into t{number} (v) values ({literal})")
        nameless.run("set global binlog_row_metadata = 'FULL'")
    known = await known_tables(nameless)
    decoder = nameless.decoder(known=lambda schema, table: known.get(f"{schema}.{table}"))
    rows = [change for change in changes(decoder, nameless.events()) if change.op == "insert"]
    without, with_names = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert len(with_names) == sum(len(types[kind][0]) + 1 for kind in kinds)
    for one, other in zip(without, with_names, strict=True):
        kind = kinds[int(one.table.table[1:])]
        assert (one.table.columns, one.table.key) == (other.table.columns, other.table.key), kind
        assert one.after is not None
        assert other.after is not None
        assert one.after[0] == other.after[0], kind
        assert int(str(one.after[1])) + len(types[kind][0]) + 1 == other.after[1]


def changes(decoder: BinlogDecoder, events: list[bytes]) -> list[Change]:
    found: list[Change] = []
    for event in events:
        decoder.feed(event)
        for transaction in decoder.transactions:
            found += transaction.changes
        decoder.transactions.clear()
    return found


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("a int, b int", "a int"),
        ("a int, b int", "a int, b varchar(9)"),
        ("a int, b decimal(9,2)", "a int, b decimal(9,3)"),
        ("a datetime, b int", "a timestamp, b int"),
        ("a text, b int", "a json, b int"),
    ],
)
async def test_a_table_that_was_another_is_refused_and_never_read_by_wrong_names(
    nameless: Watched, was: str, now: str
) -> None:
    nameless.run(f"create table t (id int primary key, {was})")
    nameless.run("insert into t (id) values (1)")
    nameless.run("drop table t")
    nameless.run(f"create table t (id int primary key, {now})")
    if nameless.run(
        "select data_type from information_schema.columns where column_name = 'a' and table_schema = database()"
    ) == [("longtext",)]:
        pytest.skip("JSON is a text for MariaDB")
    known = await known_tables(nameless)
    decoder = nameless.decoder(known=lambda schema, table: known.get(f"{schema}.{table}"))
    with pytest.raises(DecodeError, match="binlog_row_metadata = 'FULL'"):
        changes(decoder, nameless.events())


NAMES = [
    ("alter table orders add c int", "orders", True),
    ("ALTER TABLE `shop`.`Orders` ADD c int", "orders", True),
    ("create table archive like orders", "orders", True),
    ("alter table old_orders add c int", "orders", False),
    ("alter table archive add c int", "orders", False),
    ("alter table `we``ird` add c int", "we`ird", True),
    ('alter table "we""ird" add c int', 'we"ird', True),
    ("alter table b\ufffdse add c int", "orders", True),
]
"""The last is a statement in another character set than UTF-8."""


@pytest.mark.parametrize(("statement", "table", "says"), NAMES)
def test_a_statement_counts_for_each_table_that_it_might_be_about(statement: str, table: str, says: bool) -> None:
    assert names_table(statement, table) is says


# the source


@pytest.fixture
def shop(nameless: Watched) -> tuple[MariaDBServer, str]:
    return nameless.server, made_database(nameless.server, nameless.name)


def rows_of(r: Reader) -> list[dict[str, object]]:
    return [
        dict(zip([column.name for column in change.table.columns], change.after, strict=True))
        for change in r.changes
        if change.op == "insert" and change.after is not None
    ]


async def test_it_streams_and_follows_a_renamed_column(shop: tuple[MariaDBServer, str], reader: MakeReader) -> None:
    server, database = shop
    run(server, "create table `we``ird ü` (id int unsigned primary key, e enum('x','y'))", database=database)
    r = await reader(dsn(server), database)
    run(server, "insert into t values (1, 'a')", "insert into `we``ird ü` values (4000000000, 'y')", database=database)
    await r.until_rows(2)
    run(server, "alter table t rename column v to w", "insert into t values (2, 'b')", database=database)
    await r.until_rows(3)
    run(server, "alter table t add u enum('p','q') first", "insert into t values ('q', 3, 'c')", database=database)
    await r.until_rows(4)
    assert rows_of(r) == [
        {"id": 1, "v": "a"},
        {"id": 4000000000, "e": "y"},
        {"id": 2, "w": "b"},
        {"u": "q", "id": 3, "w": "c"},
    ]
    # What is known is kept over a restart.
    await r.restart()
    run(server, "insert into t values ('p', 4, 'd')", database=database)
    await r.until_rows(5)
    assert rows_of(r)[-1] == {"u": "p", "id": 4, "w": "d"}


async def test_rows_from_before_and_after_an_alteration_while_it_was_down(
    shop: tuple[MariaDBServer, str], reader: MakeReader
) -> None:
    server, database = shop
    r = await reader(dsn(server), database)
    run(server, "insert into t values (1, 'a')", database=database)
    await r.until_rows(1)
    await r.source.stop()
    run(server, "insert into t values (2, 'b')", "alter table t rename column v to w", database=database)
    run(server, "insert into t values (3, 'c')", "create table other (id int)", database=database)
    await r.restart()
    await r.until_rows(3)
    assert rows_of(r) == [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}, {"id": 3, "w": "c"}]


async def test_a_table_altered_twice_before_its_rows_were_read_stops_it_by_name(
    shop: tuple[MariaDBServer, str], reader: MakeReader
) -> None:
    """Its columns have the same types all the time: nothing but the statements tells."""
    server, database = shop
    run(server, "alter table t add w varchar(20)", database=database)
    r = await reader(dsn(server), database)
    run(server, "insert into t values (1, 'v1', 'w1')", database=database)
    await r.until_rows(1)
    await r.source.stop()
    run(server, "alter table t rename column v to x", "insert into t values (2, 'x2', 'w2')", database=database)
    run(server, "alter table t rename column w to y", "insert into t values (3, 'x3', 'y3')", database=database)
    await r.restart()
    with pytest.raises(SourceRefused, match=rf"rows of {database}\.t at .* was altered") as refused:
        await r.until_rows(3)
    assert f"headrace snapshot {database} {database}.t" in refused.value.advice
    assert rows_of(r) == [{"id": 1, "v": "v1", "w": "w1"}]


async def test_a_table_that_is_gone_before_its_rows_were_read_stops_it_by_name(
    shop: tuple[MariaDBServer, str], reader: MakeReader
) -> None:
    server, database = shop
    r = await reader(dsn(server), database)
    await r.until(lambda: r.heartbeats > 0)
    await r.source.stop()
    run(server, "create table brief (id int)", "insert into brief values (1)", "drop table brief", database=database)
    await r.restart()
    with pytest.raises(SourceRefused, match=r"brief at .* can't be read"):
        await r.until_rows(1)


async def test_what_is_compressed_or_large_is_read_on_where_it_was(
    shop: tuple[MariaDBServer, str], reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalogue is asked in the middle of a transaction, and of one that is being unpacked."""
    server, database = shop
    monkeypatch.setattr("headrace.cdc.decode.binlog.PART_BYTES", 100)
    r = await reader(dsn(server), database)
    is_mysql = "maria" not in run(server, "select version()")[0][0].lower()
    head = ["set binlog_transaction_compression = on"] if is_mysql else []
    run(server, "create table u (id int primary key, w varchar(20))", database=database)
    for first in (0, 100):
        rows = [f"insert into t values ({number}, 'v{number}')" for number in range(first, first + 20)]
        others = [f"insert into u values ({number}, 'w{number}')" for number in range(first, first + 20)]
        more = [f"insert into t values ({number}, 'v')" for number in range(first + 1000, first + 1005)]
        run(server, *head, "begin", *rows, *others, *more, "commit", database=database)
        await r.until_rows(45 if not first else 90)
        if not first:
            run(server, "alter table u rename column w to w2", "alter table t comment 'x'", database=database)
    numbers = [*range(20), *range(20), *range(1000, 1005)]
    assert [row["id"] for row in rows_of(r)] == [*numbers, *[number + 100 for number in numbers]]
    assert [name for row in rows_of(r)[20:40] for name in row] == ["id", "w"] * 20
    assert [name for row in rows_of(r)[65:85] for name in row] == ["id", "w2"] * 20
