"""Changes of a JSON document as MySQL logs them with binlog_row_value_options = PARTIAL_JSON, applied to the text of the old one.

Follows the MySQL 9 source documentation, "Partial_update_rows_event" and sql/json_diff.h. A column's changes are a row of

    operation (0 replace, 1 insert, 2 remove), path with its packed length, and but for remove a binary document with its packed length

A path is ``$``, then ``.name``, ``."any name"`` or ``[cell]`` for each step. An insert makes room in an array, and adds a member to an object.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from headrace.cdc.decode.mysqljson import json_text
from headrace.cdc.decode.tablemap import packed
from headrace.cdc.errors import DecodeError

_REPLACE, _INSERT, _REMOVE = 0, 1, 2
_STEP = re.compile(r"""\.(?P<quoted>"(?:[^"\\]|\\.)*")|\.(?P<name>[^.\["]+)|\[(?P<cell>\d+)\]""")


class _Number(str):
    """As it stands in the text, with all its digits."""

    __slots__ = ()


def patched(text: str, changes: bytes) -> str:
    """The new document's text. Raises DecodeError where the changes don't fit the old one."""
    try:
        document = _parsed(text)
        pos = 0
        while pos < len(changes):
            operation = changes[pos]
            length, pos = packed(changes, pos + 1)
            path = changes[pos : pos + length].decode()
            pos += length
            value: Any = None
            if operation != _REMOVE:
                length, pos = packed(changes, pos)
                if pos + length > len(changes):
                    raise IndexError
                value = _parsed(json_text(changes[pos : pos + length]))
                pos += length
            document = _applied(document, operation, _steps(path), value)
        return _text(document)
    except (IndexError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DecodeError("a partial JSON update that doesn't fit the old document", kind="JSON") from error


def _parsed(text: str) -> Any:
    return json.loads(text, parse_float=_Number, parse_int=_Number)


def _text(node: Any) -> str:
    if isinstance(node, dict):
        members = cast("dict[str, Any]", node).items()
        return (
            "{"
            + ", ".join([f"{json.dumps(name, ensure_ascii=False)}: {_text(value)}" for name, value in members])
            + "}"
        )
    if isinstance(node, list):
        return "[" + ", ".join([_text(value) for value in cast("list[Any]", node)]) + "]"
    return str(node) if isinstance(node, _Number) else json.dumps(node, ensure_ascii=False)


def _steps(path: str) -> list[str | int]:
    if not path.startswith("$"):
        raise ValueError(path)
    steps: list[str | int] = []
    pos = 1
    while pos < len(path):
        match = _STEP.match(path, pos)
        if match is None:
            raise ValueError(path)
        if match["cell"] is not None:
            steps.append(int(match["cell"]))
        else:
            steps.append(json.loads(match["quoted"]) if match["quoted"] is not None else match["name"])
        pos = match.end()
    return steps


def _applied(document: Any, operation: int, steps: list[str | int], value: Any) -> Any:
    if not steps:
        if operation != _REPLACE:
            raise ValueError("the document itself can only be replaced")
        return value
    parent: Any = document
    for step in steps[:-1]:
        parent = parent[step]
    last: Any = steps[-1]
    if operation == _REMOVE:
        del parent[last]
    elif operation == _REPLACE and _has(parent, last):
        parent[last] = value
    elif operation == _INSERT and isinstance(parent, list):
        cast("list[Any]", parent).insert(last, value)
    elif operation == _INSERT and isinstance(last, str):
        parent[last] = value
        _sort(parent)
    else:
        raise ValueError("a step to nowhere")
    return document


def _has(parent: Any, last: str | int) -> bool:
    return last in parent if isinstance(last, str) else last < len(parent)


def _sort(members: dict[str, Any]) -> None:
    """Into the order that the server keeps: by length, then by bytes."""
    ordered = sorted(members.items(), key=lambda member: (len(member[0].encode()), member[0].encode()))
    members.clear()
    members.update(ordered)


__all__ = ["patched"]
