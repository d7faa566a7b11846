"""COPY ... TO STDOUT in text format: one line in, one row image out, with the same values as the stream.

Follows the PostgreSQL 18 manual, COPY, "Text Format": columns are separated by tabs, NULL is ``\\N``, and a backslash escapes
backslash, tab, newline and other control characters. The octal and hexadecimal escapes of that chapter are for COPY FROM only:
the server never writes them, so they are refused here, as is every other escape it never writes.
"""

from __future__ import annotations

import re

from headrace.cdc.decode.pgvalue import text_value
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNDECODABLE, Absent, Row, Value

_ESCAPES = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
    b"\\": b"\\",
}
_ESCAPE = re.compile(rb"\\(.?)", re.DOTALL)


def copy_rows(lines: list[bytes], kinds: bytes) -> list[Row]:
    """The rows of some COPY lines (with or without their newlines). kinds: see pgvalue.row_kinds.

    Raises DecodeError when the number of columns differs from len(kinds), for an escape that COPY never writes, and for text
    that the column's type never prints.
    """
    rows: list[Row] = []
    for line in lines:
        rows.append(_row(line, kinds))  # compiled, a loop is the faster form
    return rows


def copy_row(line: bytes, kinds: bytes) -> Row:
    """One line, as ``copy_rows``."""
    return _row(line, kinds)


def _row(line: bytes, kinds: bytes) -> Row:
    if line.endswith(b"\n"):
        line = line[:-1]
    count = len(kinds)
    parts = line.split(b"\t") if count > 0 or line else []
    if len(parts) != count:
        raise DecodeError("a row with another number of columns than asked for", kind="COPY")
    has_escapes = b"\\" in line
    values: list[Value | Absent] = []
    for column in range(count):
        part = parts[column]
        kind = kinds[column]
        if has_escapes and b"\\" in part:
            values.append(None if part == b"\\N" else text_value(_ESCAPE.sub(_unescape, part), kind))
        elif kind == 0:
            try:
                values.append(part.decode("utf-8"))
            except UnicodeDecodeError:
                values.append(UNDECODABLE)
        elif kind == 1 and 0 < len(part) < 19:
            try:
                values.append(int(part))
            except ValueError:  # its text quotes the value
                raise DecodeError("a value that is no integer", kind="value") from None
        else:
            values.append(text_value(part, kind))
    return tuple(values)


def _unescape(match: re.Match[bytes]) -> bytes:
    try:
        return _ESCAPES[match[1]]
    except KeyError:  # its text quotes the byte
        raise DecodeError("an escape that COPY never writes", kind="COPY") from None
