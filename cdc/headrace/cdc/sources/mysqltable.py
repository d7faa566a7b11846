"""A table as the server's catalogue has it, so that copied rows are those of the binlog: the same columns, types and values.

The binlog's table map says a column's type by number (decode/tablemap.py); the catalogue says it in words. Both must make the same column, or
each table would seem to change between its copy and its first streamed row.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec
import pymysql

from headrace.cdc.decode import tablemap as t
from headrace.cdc.decode.mysqlcharset import bytes_of, codec_of
from headrace.cdc.decode.mysqlvalue import shortest_float
from headrace.cdc.errors import SourceRefused
from headrace.cdc.event import UNDECODABLE, Absent, Column, Row, TableSchema, Value

_Convert: TypeAlias = Callable[[bytes], "Value | Absent"]

_TYPES = {
    "tinyint": t.TINY, "smallint": t.SHORT, "mediumint": t.INT24, "int": t.LONG, "bigint": t.LONGLONG, "float": t.FLOAT,
    "double": t.DOUBLE, "decimal": t.NEWDECIMAL, "bit": t.BIT, "year": t.YEAR, "date": t.DATE, "time": t.TIME2,
    "datetime": t.DATETIME2, "timestamp": t.TIMESTAMP2, "char": t.STRING, "binary": t.STRING, "uuid": t.STRING,
    "inet4": t.STRING, "inet6": t.STRING, "varchar": t.VARCHAR, "varbinary": t.VARCHAR, "enum": t.ENUM, "set": t.SET,
    "json": t.JSON, "vector": t.VECTOR,
    **dict.fromkeys(("tinytext", "text", "mediumtext", "longtext", "tinyblob", "blob", "mediumblob", "longblob"), t.BLOB),
    **dict.fromkeys(
        ("geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon", "geometrycollection"),
        t.GEOMETRY,
    ),
}  # fmt: skip
_INTEGERS = ("tinyint", "smallint", "mediumint", "int", "bigint", "year")
_UNKNOWN_COLUMN = 1054
_LABEL = re.compile(r"'((?:[^'\\]|''|\\.)*)'", re.DOTALL)
_ESCAPE = re.compile(r"''|\\.", re.DOTALL)
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r", "t": "\t", "b": "\b", "Z": "\x1a"}
_RAW_BYTES = ("uuid", "inet4", "inet6")

_COLUMNS = """
select column_name, data_type, column_type, character_set_name, collation_name
  from information_schema.columns where table_schema = %s and table_name = %s order by ordinal_position
"""
_COLLATIONS = "select collation_name, id from information_schema.collations"
# MariaDB's newer collations have a name for each character set, and are in no other view by it.
_FULL_COLLATIONS = "select full_collation_name, id from information_schema.collation_character_set_applicability"
_KEY = """
select column_name from information_schema.statistics
 where table_schema = %s and table_name = %s and index_name = 'PRIMARY' order by seq_in_index
"""


_ENGINE = """
select t.engine, e.transactions from information_schema.tables t left join information_schema.engines e on e.engine = t.engine
 where t.table_schema = %s and t.table_name = %s
"""


class CopiedTable(msgspec.Struct):
    """One table. key: names in the order of the primary key; empty where rows can't be read in its order.

    expressions: what a SELECT asks for, a column each. key_expressions, key_places: the same of the key's columns as text, and how that text
    stands in a condition. engine: "" while a statement is just changing or dropping the table, so that it can't be told.
    is_transactional: its engine shows a transaction one moment of it. unreadable: columns of a character
    set that Python doesn't know, with its name: their values are UNDECODABLE. known: for a binlog that names no columns.
    """

    schema: TableSchema
    key: tuple[str, ...]
    expressions: list[str]
    convert: list[_Convert]
    key_expressions: list[str]
    key_places: list[str]
    engine: str = ""
    is_transactional: bool = True
    unreadable: tuple[tuple[str, str], ...] = ()
    known: t.KnownTable = t.KnownTable((), ())

    def row(self, texts: Sequence[bytes | None]) -> Row:
        """The values of a row of the server's text protocol."""
        return tuple(
            [None if text is None else convert(text) for text, convert in zip(texts, self.convert, strict=True)]
        )


async def read_table(
    query: Callable[..., Any], schema: str, table: str, collations: dict[str, int]
) -> CopiedTable | None:
    """The table as it is; None when it is gone. Raises SourceRefused for a column of a type that isn't known here."""
    rows = await query(_COLUMNS, schema, table)
    if not rows:
        return None
    key = tuple([str(name) for (name,) in await query(_KEY, schema, table)])
    columns: list[Column] = []
    known: list[t.MappedColumn] = []
    expressions: list[str] = []
    converts: list[_Convert] = []
    for name, data_type, column_type, _, collation in rows:
        kind = _TYPES.get(str(data_type))
        if kind is None:
            raise SourceRefused(
                f"{schema}.{table} has the column {name} of the type {data_type}, whose rows headrace can't read",
                source="",
                advice="put the table under the source's exclude",
            )
        number = collations.get(str(collation), 63) if collation is not None else 63
        is_compressed = "compressed" in str(column_type).lower()
        if is_compressed:
            kind = t.VARCHAR_COMPRESSED if kind == t.VARCHAR else t.BLOB_COMPRESSED
        is_unsigned = "unsigned" in str(column_type) and data_type != "year"
        mapped = t.MappedColumn(
            str(name),
            kind,
            _metadata(kind, str(column_type)),
            is_unsigned,
            number,
            _labels(kind, str(column_type), number),
        )
        known.append(mapped)
        columns.append(Column(str(name), kind, t.type_name(mapped)))
        quoted = "`" + str(name).replace("`", "``") + "`"
        expression, convert = _reading(str(data_type), quoted, codec_of(number))
        expressions.append(expression)
        converts.append(convert)
    engine, transactions = (await query(_ENGINE, schema, table) or [("", "")])[0]
    names = [column.name for column in columns]
    in_order = {
        str(name): _key_reading(str(data_type), str(name), str(charset)) for name, data_type, _, charset, *_ in rows
    }
    readings = [in_order[name] for name in key]
    usable = [reading for reading in readings if reading is not None]
    places = tuple(sorted(names.index(name) for name in key))
    if len(usable) < len(key):
        key, usable = (), []
    oid = int.from_bytes(blake2b(f"{schema}.{table}".encode(), digest_size=6).digest(), "big")
    return CopiedTable(
        TableSchema(schema, table, tuple(columns), places, "d", oid),
        key,
        expressions,
        converts,
        [expression for expression, _ in usable],
        [place for _, place in usable],
        str(engine or ""),
        transactions == "YES",
        tuple([(str(row[0]), str(row[3])) for row in rows if _codec(row[4], collations) == "?"]),
        t.KnownTable(tuple(known), places),
    )


def _metadata(kind: int, column_type: str) -> int:
    """Of a DECIMAL, as the binlog has it: precision and scale, a byte each. 0 for others, of which the binlog itself tells enough."""
    if kind != t.NEWDECIMAL:
        return 0
    precision, _, scale = column_type.partition("(")[2].partition(")")[0].partition(",")
    return int(precision or 10) << 8 | int(scale or 0)


def _labels(kind: int, column_type: str, collation: int) -> tuple[bytes, ...]:
    """Of ENUM and SET, in the column's own character set."""
    if kind not in (t.ENUM, t.SET):
        return ()
    codec = codec_of(collation)
    return tuple([bytes_of(_unescaped(label), codec) for label in _LABEL.findall(column_type)])


def _unescaped(label: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found.group()[1], found.group()[1]), label)


def _codec(collation: object, collations: dict[str, int]) -> str:
    return "" if collation is None else codec_of(collations.get(str(collation), 63))


def quoted_name(schema: str, table: str) -> str:
    return ".".join("`" + name.replace("`", "``") + "`" for name in (schema, table))


def _key_reading(data_type: str, name: str, charset: str) -> tuple[str, str] | None:
    """A key's column as text, and a place for that text in a condition that compares as the column does; None where there is none.

    A text beside a number would be compared as a double. ENUM and SET are ordered by number and compared as text.
    """
    quoted = "`" + name.replace("`", "``") + "`"
    if data_type in _INTEGERS:
        return f"{quoted} + 0", "cast(%s as signed)" if data_type != "bigint" else "cast(%s as decimal(20, 0))"
    if data_type == "decimal":
        return quoted, "cast(%s as decimal(65, 30))"
    if data_type in ("binary", "varbinary"):
        return f"hex({quoted})", "unhex(%s)"
    if data_type in ("date", "time", "datetime", "timestamp", "uuid", "inet4", "inet6"):
        return quoted, "%s"
    if data_type in ("char", "varchar") and charset:
        return quoted, "%s"
    return None


async def read_collations(query: Callable[..., Any]) -> dict[str, int]:
    try:
        rows = await query(_FULL_COLLATIONS)
    except pymysql.err.OperationalError as error:
        if error.args[0] != _UNKNOWN_COLUMN:
            raise
        rows = await query(_COLLATIONS)
    return {str(name): int(number) for name, number in rows}


def _reading(data_type: str, quoted: str, codec: str) -> tuple[str, _Convert]:
    """What to select, and how its text becomes the binlog's value."""
    if data_type in _INTEGERS:
        return f"{quoted} + 0" if data_type == "year" else quoted, int
    if data_type == "bit":
        return f"{quoted} + 0", int
    if data_type == "float":
        return f"cast({quoted} as double)", _float
    if data_type == "double":
        return quoted, float
    if data_type in _RAW_BYTES:
        return f"unhex(hex({quoted}))", _hexadecimal
    if data_type in ("decimal", "date", "time", "datetime", "timestamp"):
        return quoted, _ascii
    if data_type == "json":
        return quoted, _text
    if codec == "?":
        return quoted, lambda text: UNDECODABLE
    if codec:
        return quoted, _text
    return quoted, _hexadecimal


def _ascii(text: bytes) -> str:
    return text.decode("ascii")


def _text(text: bytes) -> Value | Absent:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return UNDECODABLE


def _hexadecimal(text: bytes) -> str:
    return "0x" + text.hex()


def _float(text: bytes) -> Value:
    return shortest_float(struct.pack("<f", float(text)))


__all__ = ["CopiedTable", "quoted_name", "read_collations", "read_table"]
