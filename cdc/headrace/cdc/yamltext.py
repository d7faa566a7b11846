"""Values as YAML, for files that people go on writing."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import yaml

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*([ ./-]?[A-Za-z0-9_]+)*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
"""What a parser of YAML may take for something else than text."""


def block(value: Any) -> str:
    """Lines, in the order of the value, with the line break at the end."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)  # pyright: ignore[reportUnknownMemberType]
    return text


def flow(value: Any) -> str:
    """In one line, whatever is in it. value: of JSON's types."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(name)}: {flow(each)}" for name, each in value.items()) + "}"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return "[" + ", ".join(flow(each) for each in value) + "]"  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    text: str = yaml.safe_dump(value, default_style='"', width=1 << 30, allow_unicode=True)  # pyright: ignore[reportUnknownMemberType]
    return text.removesuffix("\n")


__all__ = ["block", "flow"]
