"""COPY ... TO STDOUT in text format: one line in, one row image out, with the same values as the stream.

Follows the PostgreSQL 18 manual, COPY, "Text Format": columns are separated by tabs, NULL is ``\\N``, and a backslash escapes
backslash, tab, newline and other control characters.
"""

from __future__ import annotations

import re

from headrace.cdc.decode.pgoutput import text_value
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import Row

_ESCAPES = {
    b"b": b"\b",
    b"f": b"\f",
    b"n": b"\n",
    b"r": b"\r",
    b"t": b"\t",
    b"v": b"\v",
}
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)


def copy_row(line: bytes, kinds: bytes) -> Row:
    """The row of one COPY line (with or without its newline). kinds: see pgoutput.row_kinds.

    Raises DecodeError when the number of columns differs from len(kinds).
    """
    if line.endswith(b"\n"):
        line = line[:-1]
    parts = line.split(b"\t") if kinds else []
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
    return _ESCAPES.get(match[1], match[1])
