"""What the text of a statement in the binlog says to a reader of rows: which tables it empties, or that it carries data itself.

No parser of DDL: columns come with the rows (tablemap.py), so an unknown statement is nobody's trouble. Only the head of a statement is read,
behind its comments.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

_TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | --(?:\s[^\n]*|$) | /\*(?![!M])(?:.|\n)*?\*/ | /\*M?!\d* | \*/
    | (?P<quoted>`(?:[^`]|``)*`) | (?P<word>[\w$\u0080-\uffff]+) | (?P<sign>.)""",
    re.VERBOSE,
)


class Kind(Enum):
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    ROLLBACK_TO = "rollback to"
    XA_START = "xa start"
    XA_END = "xa end"
    XA_COMMIT = "xa commit"
    XA_ROLLBACK = "xa rollback"
    TRUNCATE = "truncate"
    DATA = "data"
    """Rows in a statement's form: the server doesn't log by row."""
    OTHER = "other"


class Statement(NamedTuple):
    """name: of the savepoint, or of the XA transaction as it was written. table: (schema, table), "" for the session's own schema."""

    kind: Kind
    name: str = ""
    table: tuple[str, str] = ("", "")


_DATA = frozenset(("INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD"))


def read_statement(query: str) -> Statement:
    """What a Query event's text means."""
    words = _words(query, 6)
    head = words[0].upper() if words else ""
    second = words[1].upper() if len(words) > 1 else ""
    if head == "BEGIN" or (head == "START" and second == "TRANSACTION"):
        return Statement(Kind.BEGIN)
    if head == "COMMIT":
        return Statement(Kind.COMMIT)
    if head == "SAVEPOINT":
        return Statement(Kind.SAVEPOINT, _bare(words[1]) if len(words) > 1 else "")
    if head == "ROLLBACK":
        if second != "TO":
            return Statement(Kind.ROLLBACK)
        place = 3 if len(words) > 3 and words[2].upper() == "SAVEPOINT" else 2
        return Statement(Kind.ROLLBACK_TO, _bare(words[place]) if len(words) > place else "")
    if head == "XA" and second in ("START", "BEGIN", "END"):
        return Statement(Kind.XA_END if second == "END" else Kind.XA_START)
    if head == "XA" and second in ("COMMIT", "ROLLBACK"):
        name = query.strip()[2:].strip()[len(second) :].strip()
        kind = Kind.XA_COMMIT if second == "COMMIT" else Kind.XA_ROLLBACK
        return Statement(kind, re.sub(r"\s+ONE\s+PHASE$", "", name, flags=re.IGNORECASE))
    if head == "TRUNCATE":
        place = 2 if second == "TABLE" else 1
        return Statement(Kind.TRUNCATE, "", _name(words[place:]))
    return Statement(Kind.DATA if head in _DATA else Kind.OTHER)


def _words(query: str, count: int) -> list[str]:
    """The first words and signs, without comments; what stands in a versioned comment counts."""
    found: list[str] = []
    for match in _TOKEN.finditer(query):
        if match.lastgroup is not None:
            found.append(match.group())
            if len(found) == count:
                break
    return found


def _bare(word: str) -> str:
    return word[1:-1].replace("``", "`") if word.startswith("`") else word


def _name(words: list[str]) -> tuple[str, str]:
    if len(words) > 2 and words[1] == ".":
        return _bare(words[0]), _bare(words[2])
    return "", _bare(words[0]) if words else ""


__all__ = ["Kind", "Statement", "read_statement"]
