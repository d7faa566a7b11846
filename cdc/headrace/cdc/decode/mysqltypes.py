"""What each type of MySQL and MariaDB comes out as: the second half of docs/types.md, over the names that table maps give (tablemap.type_name)."""

from __future__ import annotations

from headrace.cdc.decode.mysqlcharset import unreadable_charsets

_UNSIGNED = ("tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double")

TYPES: dict[str, tuple[str, str]] = {
    "tinyint": ("number", "`bool` too: the servers have none of their own"),
    "smallint": ("number", ""),
    "mediumint": ("number", ""),
    "int": ("number", "without the zeros of `zerofill`"),
    "bigint": ("number", "beyond 2^53 a JSON reader must not take it for a double"),
    "float": ("number", "the shortest digits that read back as the same float"),
    "double": ("number", "the shortest digits that read back as the same double"),
    "decimal": ("text", "every digit and the scale, `1.10`"),
    "bit": ("number", "up to 64 bits"),
    "year": ("number", "0 is a year here"),
    "date": ("text", "zero dates and zero parts as they are, `2024-00-15`"),
    "time": ("text", "`-838:59:59` to `838:59:59`, with the column's digits of a second"),
    "datetime": ("text", "with the column's digits of a second; zero dates as they are"),
    "timestamp": ("text", "in UTC, whatever the zone of server and session"),
    "char": ("text", "without the spaces at its end"),
    "varchar": ("text", "a compressed column of MariaDB's too"),
    "text": ("text", "of every size"),
    "binary": ("text", "`0x` and hexadecimal digits, to its full length; MariaDB's `uuid`, `inet4` and `inet6` too, as the binlog orders their bytes"),
    "varbinary": ("text", "`0x` and hexadecimal digits"),
    "blob": ("text", "of every size: `0x` and hexadecimal digits"),
    "enum": ("text", "the label; an invalid value is empty"),
    "set": ("text", "the labels, separated by commas, in the order of the column's definition"),
    "json": ("text", "MySQL's, as its server writes it; MariaDB's is `text`"),
    "geometry": ("text", "all spatial types: `0x`, four bytes of SRID, and WKB"),
    "vector": ("text", "`0x` and hexadecimal digits"),
}  # fmt: skip

_HEAD = """
## MySQL and MariaDB

The same for each type of MySQL 9 and MariaDB. Copy, stream and a SELECT in a session with `time_zone = '+00:00'` and an empty `sql_mode` agree on every
one. NULL is null. What a row image leaves out (`binlog_row_image` MINIMAL, NOBLOB) is absent and listed under `unchanged`. Text whose bytes are none
in its character set, and text in a character set that Python doesn't know, is absent and listed under `undecodable`, never guessed; those sets are
{charsets}.

| type | comes out as | remarks |
|---|---|---|
"""


def types_page() -> str:
    """The section as Markdown, ending with a line feed."""
    lines = [
        f"| `{name}`{f', `{name} unsigned`' if name in _UNSIGNED else ''} | {what} | {remarks} |"
        for name, (what, remarks) in TYPES.items()
    ]
    return _HEAD.format(charsets=", ".join(unreadable_charsets())) + "\n".join(lines) + "\n"


__all__ = ["TYPES", "types_page"]
