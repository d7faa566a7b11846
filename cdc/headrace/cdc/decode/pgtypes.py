"""PostgreSQL's types: what comes out of the decoders for each. docs/types.md is printed from here (``headrace schema --types``).

Follows the PostgreSQL 18 manual, "Data Types", and its pg_type.dat. A type that isn't listed, of an extension for instance, comes
as its own text.
"""

from __future__ import annotations

from typing import Final

import msgspec

TEXT: Final = 0
INT: Final = 1
BOOL: Final = 2
FLOAT: Final = 3


class PgType(msgspec.Struct, frozen=True):
    """A built-in type. kind: TEXT, INT, BOOL or FLOAT. note: what its text looks like, and its traps."""

    oid: int
    name: str
    kind: int
    note: str


TYPES: Final[tuple[PgType, ...]] = tuple(
    PgType(oid, name, kind, note)
    for oid, name, kind, note in (
        (16, "bool", BOOL, ""),
        (21, "int2", INT, ""),
        (23, "int4", INT, ""),
        (20, "int8", INT, "beyond 2^53 a JSON reader must not take it for a double"),
        (26, "oid", INT, "0 to 4294967295"),
        (
            700,
            "float4",
            FLOAT,
            "the shortest digits that read back as the same float4; `NaN`, `Infinity`, `-Infinity` are text",
        ),
        (
            701,
            "float8",
            FLOAT,
            "the shortest digits that read back as the same double; `NaN`, `Infinity`, `-Infinity` are text",
        ),
        (1700, "numeric", TEXT, "every digit and the scale, `1.10`; `NaN`, from 14 on `Infinity`"),
        (790, "money", TEXT, "in the C locale, `-$92,233,720,368,547,758.08`"),
        (25, "text", TEXT, ""),
        (1043, "varchar", TEXT, ""),
        (1042, "bpchar", TEXT, "`char(n)`, padded to its length"),
        (18, "char", TEXT, '`"char"`, one byte'),
        (19, "name", TEXT, ""),
        (17, "bytea", TEXT, "`\\x` and hexadecimal digits"),
        (1082, "date", TEXT, "ISO, years to 5874897, `0044-03-15 BC`, `infinity`"),
        (1083, "time", TEXT, "up to `24:00:00`, microseconds"),
        (1266, "timetz", TEXT, "with the offset it was given"),
        (1114, "timestamp", TEXT, "ISO, years to 294276, `BC`, `infinity`"),
        (1184, "timestamptz", TEXT, "ISO in UTC, `2024-02-29 11:00:00+00`"),
        (1186, "interval", TEXT, "months, days and time apart: `1 mon -1 days +00:00:00.000001`"),
        (2950, "uuid", TEXT, "lower case"),
        (114, "json", TEXT, "byte for byte as it was given: spaces, order and doubled keys too"),
        (3802, "jsonb", TEXT, "the server's normal form; its numbers keep every digit"),
        (4072, "jsonpath", TEXT, ""),
        (142, "xml", TEXT, "as SELECT prints it: without the encoding of an XML declaration"),
        (1560, "bit", TEXT, "`10101`"),
        (1562, "varbit", TEXT, "`10101`"),
        (869, "inet", TEXT, "`10.0.0.1/8`"),
        (650, "cidr", TEXT, ""),
        (829, "macaddr", TEXT, ""),
        (774, "macaddr8", TEXT, ""),
        (600, "point", TEXT, "`(0.1,-0)`"),
        (628, "line", TEXT, "`{1,2,3}`"),
        (601, "lseg", TEXT, ""),
        (603, "box", TEXT, "in arrays the separator is `;`"),
        (602, "path", TEXT, "`[...]` open, `(...)` closed"),
        (604, "polygon", TEXT, ""),
        (718, "circle", TEXT, ""),
        (3614, "tsvector", TEXT, ""),
        (3615, "tsquery", TEXT, ""),
        (3904, "int4range", TEXT, "`[1,5)`, `empty`"),
        (3926, "int8range", TEXT, ""),
        (3906, "numrange", TEXT, ""),
        (3908, "tsrange", TEXT, ""),
        (3910, "tstzrange", TEXT, "in UTC"),
        (3912, "daterange", TEXT, ""),
        (4451, "int4multirange", TEXT, "from 14 on; `{[1,3),[5,7)}`"),
        (4536, "int8multirange", TEXT, "from 14 on"),
        (4532, "nummultirange", TEXT, "from 14 on"),
        (4533, "tsmultirange", TEXT, "from 14 on"),
        (4534, "tstzmultirange", TEXT, "from 14 on"),
        (4535, "datemultirange", TEXT, "from 14 on"),
        (3220, "pg_lsn", TEXT, "`16/B374D848`"),
        (28, "xid", TEXT, ""),
        (5069, "xid8", TEXT, ""),
        (29, "cid", TEXT, ""),
        (27, "tid", TEXT, "`(0,1)`"),
        (2970, "txid_snapshot", TEXT, ""),
        (5038, "pg_snapshot", TEXT, ""),
        (24, "regproc", TEXT, "schema-qualified, as the search path is empty"),
        (2202, "regprocedure", TEXT, "schema-qualified"),
        (2203, "regoper", TEXT, "schema-qualified"),
        (2204, "regoperator", TEXT, "schema-qualified"),
        (2205, "regclass", TEXT, "schema-qualified"),
        (4191, "regcollation", TEXT, "schema-qualified"),
        (2206, "regtype", TEXT, "schema-qualified"),
        (4096, "regrole", TEXT, ""),
        (4089, "regnamespace", TEXT, ""),
        (3734, "regconfig", TEXT, "schema-qualified"),
        (3769, "regdictionary", TEXT, "schema-qualified"),
        (22, "int2vector", TEXT, "`1 2 3`"),
        (30, "oidvector", TEXT, "`1 2 3`"),
        (1790, "refcursor", TEXT, ""),
        (1033, "aclitem", TEXT, ""),
    )
)

KINDS: Final[dict[int, int]] = {each.oid: each.kind for each in TYPES if each.kind != TEXT}
"""Type OID -> how its text becomes a value; text where an OID is missing."""

FAMILIES: Final[tuple[tuple[str, str], ...]] = (
    (
        "arrays",
        "the server's array text, `{1,NULL,\"NULL\"}`, with bounds where they aren't 1: `[0:1]={1,2}`; elements in their own text",
    ),
    ("enums", "the label; a label added later simply comes"),
    (
        "domains",
        "text of the base type, also over integers, booleans and floats: the stream names the domain, not its base",
    ),
    ("composites", '`(1,"a b",)`: an empty field is NULL, and a row of NULLs, `(,)`, is not NULL'),
    ("ranges of your own", "`[a,b)` in the text of the base type"),
    (
        "types of extensions",
        "their own text: hstore, citext, ltree, isn, pgvector, PostGIS (hexadecimal EWKB) and any other",
    ),
)
"""Types that are known by their making, not by their OID."""

_WORDS: Final = {TEXT: "text", INT: "number", BOOL: "true, false", FLOAT: "number"}


def types_page() -> str:
    """docs/types.md."""
    lines = [
        "# Types",
        "",
        "What a column's value is in an event, for each type of Postgres. This page is made by `headrace schema --types` from the",
        "decoder's own table. Snapshot, stream and a SELECT in a session with the same settings agree on every one; settings of the",
        "database or the role change nothing, as every connection pins its own: ISO dates, UTC, hexadecimal bytea, shortest exact",
        "floats, C money, an empty search path.",
        "",
        "A *number* or *true, false* is JSON's own. *Text* is the server's text of the value: given back as a literal of the column's",
        "type, it is the same value. NULL is null. A large value that an update did not touch isn't sent again: its column is absent",
        "and listed under `unchanged`. Bytes that are no UTF-8 (possible in a SQL_ASCII database only) are absent and listed",
        "under `undecodable`.",
        "",
        "| type | comes out as | remarks |",
        "|---|---|---|",
    ]
    lines += [f"| `{each.name}` | {_WORDS[each.kind]} | {each.note} |" for each in TYPES]
    lines += [f"| {name} | text | {note} |" for name, note in FAMILIES]
    lines += [
        "",
        "Stored generated columns come from Postgres 18 on, where the publication says `publish_generated_columns = stored`; virtual",
        "ones are in no WAL. Values have no limit of our own: Postgres' is 1 GB.",
    ]
    return "\n".join(lines) + "\n"
