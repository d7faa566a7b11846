"""The Table_map event: which table the rows behind it are of, with everything that reading them takes.

With ``binlog_row_metadata=FULL`` it names columns, signedness, character sets, labels and the primary key (MySQL 9 source documentation,
"Table_map_event"; MariaDB's is the same). So no history of schemas is kept: each row is read by the map of its own statement.
With less than that the caller brings the names (KnownTable), and they must fit what the map does say.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeAlias

import msgspec

from headrace.cdc.decode.mysqlcharset import BINARY
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import Column, TableSchema

TINY, SHORT, LONG, FLOAT, DOUBLE, NULL, TIMESTAMP, LONGLONG, INT24 = range(1, 10)
DATE, TIME, DATETIME, YEAR, NEWDATE, VARCHAR, BIT, TIMESTAMP2, DATETIME2, TIME2 = range(10, 20)
BLOB_COMPRESSED, VARCHAR_COMPRESSED = 140, 141
VECTOR, JSON, NEWDECIMAL, ENUM, SET = 242, 245, 246, 247, 248
TINY_BLOB, MEDIUM_BLOB, LONG_BLOB, BLOB, VAR_STRING, STRING, GEOMETRY = range(249, 256)

_METADATA_BYTES = {
    FLOAT: 1, DOUBLE: 1, VARCHAR: 2, BIT: 2, NEWDECIMAL: 2, BLOB: 1, TINY_BLOB: 1, MEDIUM_BLOB: 1, LONG_BLOB: 1,
    STRING: 2, VAR_STRING: 2, ENUM: 2, SET: 2, GEOMETRY: 1, JSON: 1, VECTOR: 1, TIMESTAMP2: 1, DATETIME2: 1, TIME2: 1,
    BLOB_COMPRESSED: 1, VARCHAR_COMPRESSED: 2,
}  # fmt: skip
_NUMERIC = frozenset((TINY, SHORT, INT24, LONG, LONGLONG, NEWDECIMAL, FLOAT, DOUBLE, YEAR))
_CHARACTER = frozenset(
    (VARCHAR, VAR_STRING, STRING, BLOB, TINY_BLOB, MEDIUM_BLOB, LONG_BLOB, BLOB_COMPRESSED, VARCHAR_COMPRESSED)
)
_NAMES = {
    TINY: "tinyint", SHORT: "smallint", INT24: "mediumint", LONG: "int", LONGLONG: "bigint", FLOAT: "float",
    DOUBLE: "double", NEWDECIMAL: "decimal", BIT: "bit", YEAR: "year", DATE: "date", NEWDATE: "date", TIME: "time",
    TIME2: "time", DATETIME: "datetime", DATETIME2: "datetime", TIMESTAMP: "timestamp", TIMESTAMP2: "timestamp",
    ENUM: "enum", SET: "set", JSON: "json", GEOMETRY: "geometry", VECTOR: "vector", NULL: "null",
}  # fmt: skip

_FAMILY = {
    **dict.fromkeys((TINY_BLOB, MEDIUM_BLOB, LONG_BLOB), BLOB), VAR_STRING: VARCHAR, NEWDATE: DATE,
    TIMESTAMP: TIMESTAMP2, DATETIME: DATETIME2, TIME: TIME2,
}  # fmt: skip
"""Types that the catalogue calls by one word."""


class MappedColumn(msgspec.Struct, frozen=True):
    """type: the real one, also of what hides under STRING. metadata: the event's two bytes as it means them for the type.

    labels: of ENUM and SET, as bytes in the label's own character set. collation: 63 for bytes.
    """

    name: str
    type: int
    metadata: int
    is_unsigned: bool
    collation: int
    labels: tuple[bytes, ...] = ()
    is_visible: bool = True


class KnownTable(msgspec.Struct, frozen=True, array_like=True):
    """What the server's catalogue says of a table, for maps that don't. key: as in TableMap."""

    columns: tuple[MappedColumn, ...]
    key: tuple[int, ...]


Lookup: TypeAlias = Callable[[str, str], "KnownTable | None"]
"""By schema and table; None when the catalogue has to be read first."""


class Unnamed(Exception):
    """Rows of a table come whose columns the server doesn't name, and the catalogue that would hasn't been read."""

    def __init__(self, schema: str, table: str) -> None:
        super().__init__(f"{schema}.{table}")
        self.schema = schema
        self.table = table


class TableMap(msgspec.Struct, frozen=True):
    """table_id: only good until the server forgets it. key: indexes of the primary key's columns; empty for none.

    is_named: the server itself named the columns.
    """

    table_id: int
    schema: str
    table: str
    columns: tuple[MappedColumn, ...]
    key: tuple[int, ...]
    is_named: bool = True

    def table_schema(self) -> TableSchema:
        """As consumers see it; without lengths, which the catalogue says in other words. The OID is made of the name: the servers
        have none that lasts.
        """
        return TableSchema(
            self.schema,
            self.table,
            tuple([Column(each.name, each.type, type_name(each)) for each in self.columns]),
            tuple(sorted(self.key)),
            "d",
            int.from_bytes(blake2b(f"{self.schema}.{self.table}".encode(), digest_size=6).digest(), "big"),
        )


def type_name(column: MappedColumn) -> str:
    """The server's name of the type without length, e.g. ``bigint unsigned``, ``varbinary``."""
    kind, is_binary = column.type, column.collation == BINARY
    if kind in (BLOB, TINY_BLOB, MEDIUM_BLOB, LONG_BLOB, BLOB_COMPRESSED):
        return "blob" if is_binary else "text"
    if kind in (VARCHAR, VAR_STRING, VARCHAR_COMPRESSED):
        return "varbinary" if is_binary else "varchar"
    if kind == STRING:
        return "binary" if is_binary else "char"
    return _NAMES[kind] + (" unsigned" if column.is_unsigned and kind != YEAR else "")


def parse_table_map(
    body: bytes,
    wants: Callable[[str, str], bool] = lambda schema, table: True,
    *,
    is_mariadb: bool,
    known: Lookup | None = None,
) -> TableMap:
    """The body of event 19, without header and checksum. wants: of another table only the name is told.

    Raises DecodeError, also where neither the server nor ``known`` names the columns; Unnamed where known has to be asked again.
    """
    try:
        return _parse(body, wants, is_mariadb=is_mariadb, known=known)
    except (IndexError, ValueError, struct.error) as error:
        raise DecodeError("the table map ends too early, or makes no sense", kind="Table_map") from error


def _parse(body: bytes, wants: Callable[[str, str], bool], *, is_mariadb: bool, known: Lookup | None) -> TableMap:
    table_id = int.from_bytes(body[:6], "little")
    pos = 8
    schema, pos = _counted(body, pos, body[pos], 1)
    table, pos = _counted(body, pos + 1, body[pos + 1], 1)
    if not wants(schema, table):
        return TableMap(table_id, schema, table, (), ())
    count, pos = packed(body, pos + 1)
    types = list(body[pos : pos + count])
    if len(types) != count:
        raise IndexError
    pos += count
    _, pos = packed(body, pos)
    metadata: list[int] = []
    for index, kind in enumerate(types):
        size = _METADATA_BYTES.get(kind, 0)
        if kind not in _METADATA_BYTES and kind not in _NAMES:
            raise DecodeError(f"a column of the unknown type {kind}", kind="Table_map", index=pos)
        raw = body[pos : pos + size]
        if len(raw) != size:
            raise IndexError
        pos += size
        if kind == STRING:
            types[index], value = _hidden(raw[0], raw[1])
        elif kind in (BIT, NEWDECIMAL, ENUM, SET):
            value = raw[0] << 8 | raw[1]
        else:
            value = int.from_bytes(raw, "little")
        metadata.append(value)
    pos += (count + 7) // 8
    optional = _optional(body, pos)
    if 4 in optional:
        return _with_names(table_id, schema, table, types, metadata, optional, is_mariadb=is_mariadb)
    if known is None:
        raise DecodeError(
            f"the server names no columns of {schema}.{table}: set global binlog_row_metadata = 'FULL'",
            kind="Table_map",
        )
    found = known(schema, table)
    if found is None:
        raise Unnamed(schema, table)
    return _named_by(found, table_id, schema, table, types, metadata, optional, is_mariadb=is_mariadb)


def _counted(body: bytes, pos: int, length: int, head: int) -> tuple[str, int]:
    """A name behind its length byte, and the index of its closing zero."""
    end = pos + head + length
    if body[end] != 0:
        raise IndexError
    return body[pos + head : end].decode(), end


def _hidden(first: int, second: int) -> tuple[int, int]:
    """ENUM and SET hide under STRING, and so do two bits of a CHAR's length."""
    if first & 0x30 != 0x30:
        return first | 0x30, second | ((first & 0x30) ^ 0x30) << 4
    return first, second


def packed(body: bytes, pos: int) -> tuple[int, int]:
    """A length-encoded integer, and the index behind it."""
    first = body[pos]
    if first < 251:
        return first, pos + 1
    size = {252: 2, 253: 3, 254: 8}[first] if first != 251 and first != 255 else 0
    if not size or pos + 1 + size > len(body):
        raise IndexError
    return int.from_bytes(body[pos + 1 : pos + 1 + size], "little"), pos + 1 + size


def _optional(body: bytes, pos: int) -> dict[int, bytes]:
    """What is told beyond types, by its kind."""
    optional: dict[int, bytes] = {}
    while pos < len(body):
        kind = body[pos]
        length, pos = packed(body, pos + 1)
        if pos + length > len(body):
            raise IndexError
        optional[kind] = body[pos : pos + length]
        pos += length
    return optional


def _with_names(
    table_id: int,
    schema: str,
    table: str,
    types: list[int],
    metadata: list[int],
    optional: dict[int, bytes],
    *,
    is_mariadb: bool,
) -> TableMap:
    names = [name.decode() for name in _strings(optional[4])]
    if len(names) != len(types):
        raise IndexError
    unsigned = _signedness(optional.get(1, b""), types)
    collations = _of_texts(types, optional, is_mariadb=is_mariadb)
    of_labels = _collations(types, frozenset((ENUM, SET)), optional, 10, 11)
    enums, sets = iter(_lists(optional.get(6, b""))), iter(_lists(optional.get(5, b"")))
    visible = optional.get(12, b"")
    columns: list[MappedColumn] = []
    for index, kind in enumerate(types):
        labels: tuple[bytes, ...] = ()
        if kind == ENUM:
            labels = next(enums, ())
        elif kind == SET:
            labels = next(sets, ())
        columns.append(
            MappedColumn(
                names[index],
                kind,
                metadata[index],
                unsigned[index],
                of_labels.get(index, BINARY) if kind in (ENUM, SET) else collations.get(index, BINARY),
                labels,
                not visible or bool(visible[index // 8] & (0x80 >> index % 8)),
            )
        )
    return TableMap(table_id, schema, table, tuple(columns), _key(optional))


def _named_by(
    known: KnownTable,
    table_id: int,
    schema: str,
    table: str,
    types: list[int],
    metadata: list[int],
    optional: dict[int, bytes],
    *,
    is_mariadb: bool,
) -> TableMap:
    """The map with the catalogue's names, labels and key; what the map says of its own counts, and must not contradict."""
    unsigned = _signedness(optional[1], types) if 1 in optional else None
    collations = _of_texts(types, optional, is_mariadb=is_mariadb)
    if len(known.columns) != len(types):
        raise _unfit(schema, table, f"{len(types)} columns are logged and {len(known.columns)} known")
    columns: list[MappedColumn] = []
    for index, (kind, column) in enumerate(zip(types, known.columns, strict=True)):
        fits = _FAMILY.get(kind, kind) == _FAMILY.get(column.type, column.type)
        fits = fits and (kind != NEWDECIMAL or metadata[index] == column.metadata)
        if unsigned is not None and kind in _NUMERIC and kind != YEAR:
            fits = fits and unsigned[index] == column.is_unsigned
        if kind in _CHARACTER and index in collations:
            fits = fits and collations[index] == column.collation
        if not fits:
            raise _unfit(schema, table, f"column {column.name} is logged as another type than the known one")
        columns.append(
            MappedColumn(column.name, kind, metadata[index], column.is_unsigned, column.collation, column.labels)
        )
    return TableMap(table_id, schema, table, tuple(columns), known.key, is_named=False)


def _unfit(schema: str, table: str, why: str) -> DecodeError:
    return DecodeError(
        f"the server names no columns of {schema}.{table}, and what its catalogue said doesn't fit its rows: {why}; "
        "set global binlog_row_metadata = 'FULL', and copy the table again",
        kind="Table_map",
    )


def _of_texts(types: list[int], optional: dict[int, bytes], *, is_mariadb: bool) -> dict[int, int]:
    # A geometry is a blob with a collation for MariaDB, and none of the character columns for MySQL.
    return _collations(types, _CHARACTER | {GEOMETRY} if is_mariadb else _CHARACTER, optional, 2, 3)


def _signedness(bits: bytes, types: list[int]) -> list[bool]:
    """One bit a numeric column, the highest first. Both servers count YEAR among them (MariaDB 10.11, MySQL 9.7)."""
    numeric = [index for index, kind in enumerate(types) if kind in _NUMERIC]
    found = [False] * len(types)
    for place, index in enumerate(numeric):
        if place // 8 < len(bits):
            found[index] = bool(bits[place // 8] & (0x80 >> place % 8))
    return found


def _collations(
    types: list[int], kinds: frozenset[int], optional: dict[int, bytes], default: int, each: int
) -> dict[int, int]:
    """Collation by column index: one default and its exceptions, or one for each."""
    indexes = [index for index, kind in enumerate(types) if kind in kinds]
    if each in optional:
        return dict(zip(indexes, _numbers(optional[each]), strict=True))
    if default not in optional:
        return {}
    first, *rest = _numbers(optional[default])
    found = dict.fromkeys(indexes, first)
    for place, collation in zip(rest[::2], rest[1::2], strict=True):
        found[indexes[place]] = collation
    return found


def _key(optional: dict[int, bytes]) -> tuple[int, ...]:
    if 8 in optional:
        return tuple(_numbers(optional[8]))
    return tuple(_numbers(optional[9])[::2]) if 9 in optional else ()


def _numbers(data: bytes) -> list[int]:
    found: list[int] = []
    pos = 0
    while pos < len(data):
        number, pos = packed(data, pos)
        found.append(number)
    return found


def _strings(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    pos = 0
    while pos < len(data):
        length, pos = packed(data, pos)
        found.append(data[pos : pos + length])
        pos += length
    return found


def _lists(data: bytes) -> list[tuple[bytes, ...]]:
    found: list[tuple[bytes, ...]] = []
    pos = 0
    while pos < len(data):
        count, pos = packed(data, pos)
        labels: list[bytes] = []
        for _ in range(count):
            length, pos = packed(data, pos)
            labels.append(data[pos : pos + length])
            pos += length
        found.append(tuple(labels))
    return found
