"""Every type exact: snapshot, stream and SELECT agree, and what is printed is, given back as a literal, the same value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import psycopg
import pytest

from fix_servers import Database
from fold import PINNED
from headrace.cdc.event import event_line
from headrace.cdc.process.normalise import Normaliser

MakeReader = Callable[..., Awaitable[Any]]

LITERALS: dict[str, list[str]] = {
    "bool": ["true", "false"],
    "int2": ["-32768", "32767"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "oid": ["0", "4294967295"],
    "float4": ["0.1", "-0", "1e-45", "3.4028235e38", "NaN", "Infinity", "-Infinity"],
    "float8": ["0.1", "-0", "5e-324", "1.7976931348623157e308", "123456789012345680", "NaN", "Infinity", "-Infinity"],
    "numeric": ["0", "-0.00", "1e-1000", "9" * 200 + "." + "9" * 100, "NaN", "1.10"],
    "numeric(10,2)": ["99999999.99", "-0.01"],
    "money": ["-92233720368547758.08", "0.01"],
    "text": [
        "''",
        "'\\N'",
        "E'tab\\t newline\\n back\\\\slash quote'' \"'",
        "'🙂 e\u0301 \u200b'",
        "repeat('x', 100000)",
    ],
    "varchar(5)": ["'ab   '"],
    "char(5)": ["'ab'", "''"],
    '"char"': ["'x'"],
    "name": ["'n'"],
    "bytea": ["'\\x'", "'\\x00ff0a5c'"],
    "date": ["'4713-01-01 BC'", "'5874897-12-31'", "'infinity'", "'-infinity'", "'2024-02-29'"],
    "time": ["'00:00:00'", "'24:00:00'", "'12:34:56.789012'"],
    "timetz": ["'12:34:56.7+15:59'", "'00:00:00-15:59'"],
    "timestamp": ["'4713-01-01 00:00:00 BC'", "'294276-12-31 23:59:59.999999'", "'infinity'", "'-infinity'"],
    "timestamptz": [
        "'2024-03-31 02:30:00 Europe/Berlin'",
        "'294276-12-31 23:59:59.999999+00'",
        "'infinity'",
        "'0044-03-15 BC'",
    ],
    "interval": ["'-178000000 years'", "'1 mon -1 day +00:00:00.000001'", "'-00:00:01'", "'0'"],
    "uuid": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "json": ['\'{"b": 1, "a":  [1e400, "x"], "b": 2}\'', "'null'"],
    "jsonb": ['\'{"b": 1, "a": [12345678901234567890.1234567890], "b": 2}\'', "'null'", "'\"\\u00e9\"'"],
    "bit(5)": ["B'10101'"],
    "varbit": ["B''", "B'1'"],
    "inet": ["'::ffff:1.2.3.4/96'", "'10.0.0.1/8'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "macaddr8": ["'08:00:2b:01:02:03:04:05'"],
    "point": ["'(0.1,-0)'"],
    "line": ["'{1,2,3}'"],
    "lseg": ["'[(0,0),(1,1)]'"],
    "box": ["'(1,1),(0,0)'"],
    "path": ["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"],
    "polygon": ["'((0,0),(1,1),(1,0))'"],
    "circle": ["'<(0,0),1.5>'"],
    "tsvector": ["'a:1A b:2'"],
    "tsquery": ["'a & (b | !c)'"],
    "int4range": ["'empty'", "'[1,5)'", "'(,)'"],
    "numrange": ["'[1.10,2.2]'"],
    "tstzrange": ["'[2024-01-01 00:00+01, infinity)'"],
    "int4multirange": ["'{[1,3), [5,7)}'"],
    "int4[]": ["'{}'", "'{1,NULL,3}'", "'[0:1]={1,2}'", "'{{1,2},{3,4}}'"],
    "text[]": ['\'{"a,b","NULL",NULL,"","\\"\\\\"}\''],
    "bytea[]": ["array['\\x00'::bytea]"],
    "box[]": ["array[box '(1,1),(0,0)', box '(2,2),(0,0)']"],
    "pg_lsn": ["'16/B374D848'"],
    "mood": ["'sad'", "'it''s'"],
    "positive": ["5"],
    "pair": ['\'(1,"a ""b""")\'', "row(null, null)"],
    "xid8": ["'18446744073709551615'"],
    "regclass": ["'pg_class'"],
}
NEWER = {"int4multirange": 14, "xid8": 13}


@pytest.mark.parametrize("database", [15, 18], indirect=True)
async def test_snapshot_stream_and_select_agree_and_the_text_is_a_literal(
    database: Database, reader: MakeReader
) -> None:
    database.execute("create type mood as enum ('sad', 'it''s')")
    database.execute("create domain positive as int check (value > 0)")
    database.execute("create type pair as (a int, b text)")
    columns = list(LITERALS)
    names = [f"c{index}" for index in range(len(columns))]
    declared = ", ".join(f"{name} {kind}" for name, kind in zip(names, columns, strict=True))
    database.execute(f"create table t (id int primary key, {declared})")
    rows = max(len(values) for values in LITERALS.values())

    def insert(first_id: int) -> None:
        for row in range(rows):
            values = [LITERALS[kind][row] if row < len(LITERALS[kind]) else "null" for kind in columns]
            quoted = [
                value if "'" in value or value in ("null", "row(null, null)") else f"'{value}'" for value in values
            ]
            database.execute(f"insert into t values ({first_id + row}, {', '.join(quoted)})".replace("%", "%%"))

    insert(0)
    r = await reader()
    await r.until_streaming()
    insert(1000)
    await r.until_op("insert", rows)
    events = Normaliser("shop", {}).events(r.changes, 0)
    lines = [msgspec.json.decode(msgspec.json.encode(event_line(event, partition=0, offset=0))) for event in events]
    reads = [line["after"] for line in lines if line["op"] == "read"]
    inserts = [line["after"] for line in lines if line["op"] == "insert"]
    assert len(reads) == len(inserts) == rows
    with psycopg.connect(database.dsn, options=PINNED) as connection:
        for read, insert_ in zip(reads, inserts, strict=True):
            for name, kind in zip(names, columns, strict=True):
                assert repr(read[name]) == repr(insert_[name]), f"{kind}: snapshot and stream differ"
                value = read[name]
                literal = "null" if value is None else psycopg.sql.quote(_text(value))
                # Equal in every bit: as text, for json and the geometric types have no exact equality.
                same = connection.execute(
                    f"select (({literal}::text)::{kind})::text is not distinct from {name}::text from t where id = {read['id']}"
                ).fetchone()
                assert same == (True,), f"{kind}: {value!r} given back is another value"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


async def test_type_names_are_the_servers(database: Database, reader: MakeReader) -> None:
    database.execute("create type mood as enum ('sad')")
    database.execute("create table t (id int primary key, m mood, n numeric(10,2), a int[])")
    database.execute("insert into t values (1, 'sad', 1, '{1}')")
    r = await reader()
    await r.until_streaming()
    database.execute("insert into t values (2, 'sad', 1, '{1}')")
    await r.until_op("insert")
    assert [[column.type_name for column in change.table.columns] for change in r.changes] == [
        ["int4", "mood", "numeric", "_int4"]
    ] * 2
    assert r.changes[0].table == r.changes[1].table


async def test_an_enum_made_mid_stream_is_named(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    database.execute("create type mood as enum ('sad')")
    database.execute("alter table t add m mood")
    database.execute("insert into t values (1, 'sad')")
    (insert,) = await r.until_op("insert")
    assert insert.table.columns[1].type_name == "mood"
    assert insert.after == (1, "sad")


async def test_bytes_that_are_no_text_are_marked_not_guessed(database: Database, reader: MakeReader) -> None:
    name = f"{database.name}_ascii"
    with psycopg.connect(database.server.dsn, autocommit=True) as admin:
        admin.execute(f"create database {name} encoding 'SQL_ASCII' template template0 locale 'C'")
        try:
            dsn = database.dsn.replace(f"dbname={database.name}", f"dbname={name}")
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("create table t (id int primary key, v text)")
                connection.execute(b"insert into t values (1, E'\\xff')")
            from source_reader import Reader

            r = Reader(dsn)
            await r.start()
            try:
                await r.until(lambda: bool(r.changes))
                (event,) = Normaliser("shop", {}).events(r.changes, 0)
                line = event_line(event, partition=0, offset=0)
                assert line["undecodable"] == ("v",)
                assert msgspec.json.decode(msgspec.json.encode(line["after"])) == {"id": 1}
            finally:
                await r.stop()
            admin.execute("select pg_drop_replication_slot(%s)", [r.source._slot])
        finally:
            admin.execute(f"drop database {name} with (force)")
