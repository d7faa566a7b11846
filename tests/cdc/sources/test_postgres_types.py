"""Every type exact: snapshot, stream and SELECT agree, and what is printed is, given back as a literal, the same value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import psycopg
import pytest

from fix_servers import Database, drop_slot
from fold import PINNED
from headrace.cdc.decode.pgtypes import TYPES
from headrace.cdc.eventline import RowLine, event_line
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


USERS_TYPES = (
    "create type mood as enum ('sad', 'it''s')",
    "create domain positive as int check (value > 0)",
    "create type pair as (a int, b text)",
)
both = pytest.mark.parametrize("database", [15, 18], indirect=True)


@both
async def test_snapshot_stream_and_select_agree_and_the_text_is_a_literal(
    database: Database, reader: MakeReader
) -> None:
    for statement in USERS_TYPES:
        database.execute(statement)
    await _agree(database, reader, LITERALS)


@both
async def test_arrays_of_everything(database: Database, reader: MakeReader) -> None:
    for statement in USERS_TYPES:
        database.execute(statement)
    arrays: dict[str, list[str]] = {}
    for kind, literals in LITERALS.items():
        if not kind.endswith("[]"):
            quoted = [_quoted(literal) for literal in literals]
            elements = ", ".join(f"{literal}::{kind}" for literal in quoted)
            arrays[f"{kind}[]"] = [
                f"array[{elements}, null]::{kind}[]",
                f"array[array[{elements}], array[{elements}]]::{kind}[]",
                f"('[-1:{len(literals) - 2}]=' || array[{elements}]::{kind}[]::text)::{kind}[]",
            ]
    await _agree(database, reader, arrays)


@both
async def test_types_made_of_types(database: Database, reader: MakeReader) -> None:
    """Composites in composites, domains over arrays and composites, ranges of one's own, enums in all of them."""
    for statement in (
        *USERS_TYPES,
        "create schema app",
        'create type app.inner as (m mood, "odd, ""name" text[], at timestamptz)',
        "create type app.outer as (i app.inner, many app.inner[], f float8, b bytea)",
        "create domain app.numbers as int[] check (array_length(value, 1) < 5)",
        "create domain app.nested as app.numbers check (true)",
        "create domain app.whole as app.outer",
        "create domain flag as bool",
        "create domain ratio as float8",
        "create type app.floats as range (subtype = float8)",
        "create type app.moods as range (subtype = mood)",
    ):
        database.execute(statement)
    inner = "row('it''s', array['a,b', null, 'q\"\\x', ''], '2024-02-29 12:00+02')::app.inner"
    outer = f"row({inner}, array[{inner}, null, row(null, null, null)::app.inner], 0.1::float8 + 0.2, '\\x00ff'::bytea)::app.outer"
    await _agree(
        database,
        reader,
        {
            "app.inner": [inner, "row(null, null, null)::app.inner", "row('sad', '{}', 'infinity')::app.inner"],
            "app.outer": [outer, "row(null, null, null, null)::app.outer"],
            "app.outer[]": [f"array[{outer}, null]"],
            "app.numbers": ["'{1,NULL,3}'::app.numbers", "'[0:1]={1,2}'::app.numbers"],
            "app.nested": ["'{}'::app.nested"],
            "app.numbers[]": ["""'{"{1,2}",NULL,"{}"}'::app.numbers[]"""],
            "app.whole": [f"{outer}::app.whole"],
            "flag": ["true", "false"],
            "ratio": ["(0.1::float8 + 0.2)", "'NaN'::float8"],
            "mood[]": ["array['sad', 'it''s', null]::mood[]"],
            "app.floats": [
                "'[0.1,0.30000000000000004)'::app.floats",
                "'(,Infinity]'::app.floats",
                "'empty'::app.floats",
            ],
            "app.moods": ["'[sad,\"it''s\"]'::app.moods"],
            "app.floats[]": ["array['[0.1,2)'::app.floats]"],
            "datemultirange": ["'{[2024-01-01,2024-02-01)}'::datemultirange"],
        },
    )


CONTRIB = {
    "hstore": ['\'a=>1, "b c"=>NULL, "q"=>"\\"\\\\"\''],
    "citext": ["'MiXed'"],
    "ltree": ["'Top.Science.Astronomy'"],
    "lquery": ["'Top.*{0,2}.a@*'"],
    "isbn13": ["'978-0-393-04002-9'"],
    "ean13": ["'978-0-393-04002-9'"],
    "cube": ["'(0.1, 2),(3, 4)'"],
    "seg": ["'1.5 .. 2.50'"],
    "query_int": ["'1&(2|3)'"],
}


@pytest.mark.parametrize("schema", ["public", "Ext's"])
@pytest.mark.parametrize("database", [15], indirect=True)
async def test_types_of_extensions_in_any_schema(database: Database, reader: MakeReader, schema: str) -> None:
    database.execute(f'create schema if not exists "{schema}"')
    for name in ("hstore", "citext", "ltree", "isn", "cube", "seg", "intarray"):
        database.execute(f'create extension {name} schema "{schema}"')
    plain = {
        f'"{schema}".{kind}': [f'{each}::"{schema}".{kind}' for each in values] for kind, values in CONTRIB.items()
    }
    arrays = {f"{kind}[]": [f"array[{values[0]}, null]"] for kind, values in plain.items()}
    await _agree(database, reader, plain | arrays)


@pytest.mark.parametrize("database", [16, 18], indirect=True)
async def test_vectors(database: Database, reader: MakeReader) -> None:
    database.execute("create schema ext")
    database.execute("create extension vector schema ext")
    await _agree(
        database,
        reader,
        {
            "ext.vector(3)": ["'[0.1,-0,3e38]'::ext.vector", "'[1,2,3]'::ext.vector"],
            "ext.vector": ["'[1]'::ext.vector", "array_fill(0.1::real, array[1536])::ext.vector"],
            "ext.vector(3)[]": ["array['[1,2,3]'::ext.vector(3)]"],
        },
    )


@both
async def test_xml(database: Database, reader: MakeReader) -> None:
    try:
        database.execute("select '<a/>'::xml")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without libxml")
    text = "'<a b=\"ü\">&lt; ]]&gt;</a>'"
    await _agree(
        database,
        reader,
        {"xml": [text, "'content, no document'", "'<a>\n <!-- c --></a>'"], "xml[]": [f"array[{text}::xml]"]},
    )


HOSTILE = (
    "datestyle = 'German'",
    "intervalstyle = 'sql_standard'",
    "timezone = 'Asia/Kolkata'",
    "bytea_output = 'escape'",
    "extra_float_digits = -10",
    "client_encoding = 'LATIN1'",
    "xmlbinary = 'hex'",
    "quote_all_identifiers = on",
    "standard_conforming_strings = off",
    "backslash_quote = off",
    "array_nulls = off",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
    "transform_null_equals = on",
)


@both
async def test_no_setting_of_database_or_role_changes_a_value(database: Database, reader: MakeReader) -> None:
    for statement in USERS_TYPES:
        database.execute(statement)
    role = f"hostile_{database.name}"
    database.execute(f"create role {role} superuser login")
    try:
        for setting in HOSTILE:
            database.execute(f"alter role {role} set {setting}")
            database.execute(f"alter database {database.name} set {setting}")
            database.execute(f"alter role {role} in database {database.name} set {setting}")
        for where in (f"database {database.name}", f"role {role}", f"role {role} in database {database.name}"):
            database.execute(f"alter {where} set search_path = 'nowhere'")
        await _agree(database, reader, LITERALS, dsn=database.dsn.replace("user=postgres", f"user={role}"))
    finally:
        database.execute(f"drop owned by {role}")
        database.execute(f"drop role {role}")


@both
async def test_the_type_table_names_every_type_of_the_server(database: Database) -> None:
    rows = database.execute(
        "select oid::int8, typname::text from pg_type where typnamespace = 'pg_catalog'::regnamespace"
        " and typtype in ('b', 'r', 'm') and typcategory not in ('A', 'Z') and typname not like 'pg\\_%%' escape '\\'"
        " and typname !~ '^(_|gtsvector$)'".replace("%%", "%")
    )
    table = {each.oid: each.name for each in TYPES}
    assert {oid: name for oid, name in rows if table.get(oid) != name} == {}
    for oid, name in table.items():
        found = database.execute("select typname::text from pg_type where oid = %s", oid)
        assert found == [(name,)]


async def _agree(database: Database, reader: MakeReader, literals: dict[str, list[str]], *, dsn: str = "") -> None:
    """Snapshot, stream and SELECT say the same of each literal, and what is said is a literal of the same value."""
    columns = list(literals)
    names = [f"c{index}" for index in range(len(columns))]
    declared = ", ".join(f"{name} {kind}" for name, kind in zip(names, columns, strict=True))
    database.execute(f"create table public.t (id int primary key, {declared})")
    rows = max(len(values) for values in literals.values())

    def insert(first_id: int) -> None:
        for row in range(rows):
            values = [_quoted(literals[kind][row]) if row < len(literals[kind]) else "null" for kind in columns]
            database.execute(f"insert into public.t values ({first_id + row}, {', '.join(values)})")

    insert(0)
    r = await reader(dsn=dsn) if dsn else await reader()
    await r.until_streaming()
    insert(1000)
    await r.until_op("insert", rows)
    events = Normaliser("shop", {}).events(r.changes, 0)
    lines = [msgspec.json.decode(msgspec.json.encode(event_line(event, partition=0, offset=0))) for event in events]
    reads = [line["after"] for line in lines if line["op"] == "read"]
    inserts = [line["after"] for line in lines if line["op"] == "insert"]
    assert len(reads) == len(inserts) == rows
    literal_settings = (
        " -c array_nulls=on -c standard_conforming_strings=on -c search_path=public -c client_encoding=UTF8"
    )
    with psycopg.connect(database.dsn, options=PINNED + literal_settings) as connection:
        for read, insert_ in zip(reads, inserts, strict=True):
            for name, kind in zip(names, columns, strict=True):
                assert repr(read[name]) == repr(insert_[name]), f"{kind}: snapshot and stream differ"
                value = read[name]
                literal = "null" if value is None else psycopg.sql.quote(_text(value))
                # Equal in every bit: as text, for json and the geometric types have no exact equality.
                same = connection.execute(
                    f"select (({literal}::text)::{kind})::text is not distinct from {name}::text from public.t"
                    f" where id = {read['id']}".encode()
                ).fetchone()
                assert same == (True,), f"{kind}: {value!r} given back is another value"


def _quoted(literal: str) -> str:
    return literal if any(mark in literal for mark in ("'", "(", "array")) else f"'{literal}'"


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
                assert isinstance(line, RowLine) and line.undecodable == ("v",)
                assert msgspec.json.decode(msgspec.json.encode(line.after)) == {"id": 1}
            finally:
                await r.stop()
            drop_slot(admin, r.source._server.slot)
        finally:
            admin.execute(f"drop database {name} with (force)")
