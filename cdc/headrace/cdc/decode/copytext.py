"""COPY ... TO STDOUT in text format: one line in, one row image out, with the same values as the stream.

Follows the PostgreSQL 18 manual, COPY, "Text Format": columns are separated by tabs, NULL is ``\\N``, and a backslash escapes
backslash, tab, newline and other control characters. The octal and hexadecimal escapes of that chapter are for COPY FROM only:
the server never writes them, so they are refused here, as is every other escape it never writes.
"""

from __future__ import annotations

import re

from headrace.cdc.decode.pgvalue import text_value
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import Row

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


def copy_row(line: bytes, kinds: bytes) -> Row:
    """The row of one COPY line (with or without its newline). kinds: see pgvalue.row_kinds.

    Raises DecodeError when the number of columns differs from len(kinds), for an escape that COPY never writes, and for text
    that the column's type never prints.
    """
    line = line.removesuffix(b"\n")
    parts = line.split(b"\t") if kinds or line else []
    if len(parts) != len(kinds):
        raise DecodeError("a row with another number of columns than asked for", kind="COPY")
    if b"\\" not in line:
        return tuple([text_value(part, kind) for part, kind in zip(parts, kinds, strict=True)])
    return tuple(
        [
            None if part == b"\\N" else text_value(_ESCAPE.sub(_unescape, part), kind)
            for part, kind in zip(parts, kinds, strict=True)
        ]
    )


def _unescape(match: re.Match[bytes]) -> bytes:
    try:
        return _ESCAPES[match[1]]
    except KeyError:  # its text quotes the byte
        raise DecodeError("an escape that COPY never writes", kind="COPY") from None
