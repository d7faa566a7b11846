"""Which consumer is kept by which process. Pure.

The first process keeps sources, log, server and every consumer that may not be elsewhere (subscriptions send through the server's own
sockets). A section that is one consumer gets a process of its own, since it may need a whole core; those of a mapping, such as sinks,
are dealt out in turn over what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from headrace.cdc.config import Config


class Part(msgspec.Struct, frozen=True, order=True):
    """A consumer of the configuration: of entry point ``kind``; name: its key where the section is a mapping, else ""."""

    kind: str
    name: str = ""


def movable(config: Config, kinds: Mapping[str, Any]) -> list[Part]:
    """The configured consumers that may live in another process, whole sections first. kinds: the entry points by name."""
    whole: list[Part] = []
    named: list[Part] = []
    for name, kind in sorted(kinds.items()):
        section = config.sections.get(kind.section) if kind.section else None
        if section is None or not getattr(kind, "may_be_elsewhere", False):
            continue
        if isinstance(section, dict):
            named += [Part(name, key) for key in cast("dict[str, Any]", section)]
        else:
            whole.append(Part(name))
    return whole + named


def allot(parts: list[Part], processes: int) -> list[list[Part]]:
    """What each further process keeps; processes: all of them, the first included. Fewer lists when there are fewer parts; none is empty."""
    count = min(processes - 1, len(parts))
    if count <= 0:
        return []
    kept: list[list[Part]] = [[] for _ in range(count)]
    whole = [part for part in parts if not part.name]
    for place, part in enumerate(whole):
        kept[place % count].append(part)
    free = kept[len(whole) :] or kept
    for place, part in enumerate(part for part in parts if part.name):
        free[place % len(free)].append(part)
    return kept


def section_of(config: Config, kind: Any, parts: list[Part], name: str, *, is_ours: bool) -> Any:
    """The part of a kind's section that a process builds. parts: of that process, or with is_ours False those it leaves to others.

    None when nothing of it is to be built here; {} for a mapping without any.
    """
    section = config.sections.get(kind.section) if kind.section else None
    named = {part.name for part in parts if part.kind == name}
    if section is None:
        return None
    if isinstance(section, dict):
        return {key: value for key, value in cast("dict[str, Any]", section).items() if (key in named) is is_ours}
    return section if bool(named) is is_ours else None


__all__ = ["Part", "allot", "movable", "section_of"]
