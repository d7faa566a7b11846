"""Places in a source. An *offset* is a place in our log and is a plain int elsewhere: the two are never mixed.

A PostgreSQL position is (end LSN of the commit record, ordinal of the change in its transaction). A row's own LSN is no
position: rows of one COPY share it, and it isn't monotonic over transactions (PostgreSQL manual, chapter "Logical
Streaming Replication Protocol"). Resume is by whole transactions only.
"""

from __future__ import annotations

import re

import msgspec

from headrace.cdc.errors import DecodeError

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_POSITION = re.compile(r"([^:]*):([0-9]{1,19})")


def format_lsn(lsn: int) -> str:
    """LSN as PostgreSQL prints it, e.g. ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def parse_lsn(text: str) -> int:
    """Inverse of format_lsn. Raises DecodeError when the text isn't two hex numbers of 32 bits with a slash."""
    match = _LSN.fullmatch(text)
    if match is None:
        raise DecodeError(f"{text!r} is not an LSN")
    return (int(match[1], 16) << 32) | int(match[2], 16)


class PostgresPosition(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """A change's place in a Postgres source; ordered by commit, then by the order inside the transaction."""

    commit_end_lsn: int
    ordinal: int

    def __str__(self) -> str:
        return f"{format_lsn(self.commit_end_lsn)}:{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> PostgresPosition:
        """Inverse of ``str``. Raises DecodeError."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise DecodeError(f"{text!r} is not a Postgres position")
        return cls(parse_lsn(match[1]), int(match[2]))
