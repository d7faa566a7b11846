"""Places inside an event's JSON, and trees that are opened only where somebody looks.

A path is names with dots between them, the first of which says what of the event is meant: ``properties.address.city``. A name that holds a
dot stands in double quotes; ``*`` is every field of an object or every item of an array (``items[*]`` is ``items.*``), ``**`` any depth.
What isn't looked at stays the bytes it came as, so that numbers keep their spelling. Pure.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw

ANY: Final = "*"
DEEP: Final = "**"
_PART: Final = re.compile(r'"([^"]+)"|([^."\[\]]+)')
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_array = msgspec.json.Decoder(list[Raw]).decode

Node: TypeAlias = Any
"""An undecoded Raw, an opened dict or list, or a plain value."""


class Gone(enum.Enum):
    """No value at all, which isn't null."""

    GONE = "gone"


GONE: Final = Gone.GONE


class FieldPath(msgspec.Struct, frozen=True):
    """root: what of the event. parts: the names below it, none for a word of the event itself, such as user_id."""

    text: str
    root: str
    parts: tuple[str, ...]

    @property
    def is_one(self) -> bool:
        """Whether it names one place at most."""
        return ANY not in self.parts and DEEP not in self.parts


def parse_path(text: str, trees: frozenset[str], words: frozenset[str]) -> FieldPath:
    """Raises ValueError with what is wrong. trees: roots that have fields; words: roots that have none."""
    parts: list[str] = []
    at = 0
    plain = text.replace("[*]", ".*")
    while True:
        match = _PART.match(plain, at)
        if match is None:
            raise ValueError(f'"{text}" is no path; write names with dots between them, such as properties.email')
        parts.append(match[1] or match[2])
        at = match.end()
        if at == len(plain):
            break
        if plain[at] != ".":
            raise ValueError(f'"{text}" is no path; write names with dots between them, such as properties.email')
        at += 1
    root, *below = parts
    if root in words:
        if below:
            raise ValueError(f'"{text}": {root} has no fields')
    elif root not in trees:
        known = ", ".join([*(f"{tree}.NAME" for tree in sorted(trees)), *sorted(words)])
        raise ValueError(f'"{text}" begins with nothing of an event; known: {known}')
    elif not below:
        raise ValueError(f'"{text}": name a field of it, such as {root}.email')
    return FieldPath(text, root, tuple(below))


def opened(node: Node) -> Node:
    """An object or array opened by one level; anything else as it is."""
    if isinstance(node, Raw):
        text = bytes(node)
        if text[:1] == b"{":
            return _object(text)
        if text[:1] == b"[":
            return _array(text)
    return node


def plain(node: Node) -> Any:
    """The value that a leaf says; the leaf itself when Python can't say it (1e999)."""
    if isinstance(node, Raw):
        try:
            return _decode(node)
        except msgspec.DecodeError:
            return node
    return node


def find(tree: dict[str, Node], parts: tuple[str, ...]) -> Node | Gone:
    """What stands at the one place; GONE when nothing does."""
    node: Node = tree
    for part in parts:
        if not isinstance(node, dict):
            return GONE
        below: Node = node.get(part, GONE)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        if below is GONE:
            return GONE
        if isinstance(below, Raw):
            below = node[part] = opened(below)
        node = below  # pyright: ignore[reportUnknownVariableType]
    return node  # pyright: ignore[reportUnknownVariableType]


def put(tree: dict[str, Node], parts: tuple[str, ...], value: Node) -> bool:
    """Set the one place, making objects on the way; False when something else than an object is in the way."""
    node: Node = tree
    for part in parts[:-1]:
        below = opened(node.get(part, GONE))
        if below is GONE or below is None or (isinstance(below, Raw) and plain(below) is None):
            below = {}
        if not isinstance(below, dict):
            return False
        node[part] = below
        node = below  # pyright: ignore[reportUnknownVariableType]
    node[parts[-1]] = value
    return True


def visit(node: Node, parts: tuple[str, ...], act: Callable[[Node], Node | Gone]) -> bool:
    """Give every value that fits to act, and put what it answers in its place; whether anything changed.

    An answer that is the same object changes nothing; GONE takes the field or item out.
    """
    part, rest = parts[0], parts[1:]
    is_changed = False
    if part == DEEP:
        if rest:
            is_changed = visit(node, rest, act)
        for key in _keys(node, ANY):
            child = node[key] = opened(node[key])
            if isinstance(child, dict | list):
                is_changed |= visit(child, parts, act)
            elif not rest:
                is_changed |= _replace(node, key, act)
    else:
        for key in _keys(node, part):
            if not rest:
                is_changed |= _replace(node, key, act)
                continue
            child = node[key] = opened(node[key])
            if isinstance(child, dict | list):
                is_changed |= visit(child, rest, act)
    if is_changed and isinstance(node, list):
        node[:] = [item for item in node if item is not GONE]  # pyright: ignore[reportUnknownVariableType]
    return is_changed


def keys_of(node: Node) -> list[Any]:
    """Names of an object's fields, or places of an array's items."""
    return list(node) if isinstance(node, dict) else list(range(len(node)))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _keys(node: Node, part: str) -> list[Any]:
    if part == ANY:
        return keys_of(node)
    return [part] if isinstance(node, dict) and part in node else []


def _replace(node: Node, key: Any, act: Callable[[Node], Node | Gone]) -> bool:
    former = node[key]
    value = act(former)
    if value is former:
        return False
    if value is GONE and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    return True


def encoded(tree: Node) -> bytes:
    """JSON of an opened tree."""
    return _encode(tree)


__all__ = [
    "ANY",
    "DEEP",
    "GONE",
    "FieldPath",
    "Gone",
    "Node",
    "encoded",
    "find",
    "keys_of",
    "opened",
    "parse_path",
    "plain",
    "put",
    "visit",
]
