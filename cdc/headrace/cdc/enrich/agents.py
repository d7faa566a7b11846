"""What a user agent says of browser, system and device; ua-parser behind it, whose patterns are the field's common ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

_MOST_CHARS = 2048
"""Longer ones are nobody's browser, and patterns over them cost time."""


@lru_cache(maxsize=20_000)
def agent(text: str) -> dict[str, dict[str, Any]]:
    """``browser``, ``os`` and ``device`` as far as they are known; device.type is "bot" for what says so of itself."""
    from ua_parser import parse

    found = parse(text[:_MOST_CHARS])
    known: dict[str, dict[str, Any]] = {}
    if found.user_agent is not None:
        known["browser"] = _named(found.user_agent.family, found.user_agent.major, found.user_agent.minor)
    if found.os is not None:
        known["os"] = _named(found.os.family, found.os.major, found.os.minor)
    if found.device is not None:
        if found.device.family == "Spider":
            known["device"] = {"type": "bot"}
        else:
            device = {"manufacturer": found.device.brand, "model": found.device.model}
            known["device"] = {name: value for name, value in device.items() if value}
    return {name: value for name, value in known.items() if value}


def _named(family: str, major: str | None, minor: str | None) -> dict[str, Any]:
    version = ".".join(part for part in (major, minor) if part)
    return {"name": family, "version": version} if version else {"name": family}


__all__ = ["agent"]
