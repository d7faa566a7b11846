"""Tracking plans of Segment and RudderStack as ours. Pure: their JSON in, a plan as plain values out.

Both describe a whole call, whose properties or traits our plan describes. Segment's Public API lists rules with ``type``, ``key`` and
``jsonSchema``; its older Config API and RudderStack's Data Catalog API list events with ``name`` and ``rules``, RudderStack with ``eventType``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

_KINDS: Final = ("track", "identify", "page", "screen", "group")
_TRAITS: Final = frozenset({"identify", "group"})
_SCHEMA_WORDS: Final = ("jsonSchema", "json_schema", "rules", "schema")
_SECTIONS: Final = {"identify": "identify", "identify_traits": "identify", "group": "group", "group_traits": "group"}


def imported(document: Any) -> tuple[dict[str, Any], list[str]]:
    """The plan, and what of the document couldn't be taken over, one line each. Raises ValueError when it has no rule of an event."""
    plan: dict[str, Any] = {"violation": "quarantine", "unplanned": "pass"}
    left: list[str] = []
    for kind, name, version, schema in _rules(document, left):
        inner = _inner(schema, is_traits=kind in _TRAITS)
        if inner is None:
            left.append(
                f"{kind} {name}".strip() + ": it says nothing of its " + ("traits" if kind in _TRAITS else "properties")
            )
            continue
        section = plan.setdefault("track", {}) if kind == "track" else plan
        place = name if kind == "track" else kind
        former = section.get(place)
        if former is None:
            section[place] = {"schema": inner} if version in ("", "1") else {"versions": {version: inner}}
        elif version in ("", "1"):
            section[place] = {"schema": inner, **({"versions": former["versions"]} if "versions" in former else {})}
        else:
            former.setdefault("versions", {})[version] = inner
    if len(plan) == 2:
        raise ValueError("no rule of an event was found in it")
    return plan, left


def _rules(document: Any, left: list[str]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Kind, name, version ("" for none) and the schema of the whole call."""
    if isinstance(document, list):
        for each in cast("list[Any]", document):
            yield from _rules(each, left)
        return
    if not isinstance(document, dict):
        return
    found = cast("dict[str, Any]", document)
    name = found.get("key", found.get("name"))
    schema = next((found[word] for word in _SCHEMA_WORDS if _is_schema(found.get(word))), None)
    if schema is not None and (isinstance(name, str) or found.get("type") or found.get("eventType")):
        kind = str(found.get("eventType") or found.get("type") or "track").lower()
        if kind not in _KINDS:
            left.append(f"{kind} {name or ''}: plans here know {', '.join(_KINDS)}".replace("  ", " "))
        elif kind == "track" and not name:
            left.append("a track rule without a name")
        else:
            version = found.get("version")
            yield kind, str(name or ""), "" if version is None else str(version), schema
        return
    for word, value in found.items():
        section = _SECTIONS.get(word)
        if section is not None and _is_schema(value):
            yield section, "", "", value
        else:
            yield from _rules(value, left)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict) and bool({"type", "properties", "$schema"} & set(cast("dict[str, Any]", value)))


def _inner(schema: dict[str, Any], *, is_traits: bool) -> dict[str, Any] | None:
    """Of a whole call's schema that of its properties or traits; one that isn't of a call as it is."""
    parts = schema.get("properties")
    if not isinstance(parts, dict):
        return None
    fields = cast("dict[str, Any]", parts)
    if not ({"properties", "traits", "context"} & set(fields)):
        return schema
    found = fields.get("traits" if is_traits else "properties")
    if is_traits and not found:
        context: Any = fields.get("context")
        found = context.get("properties", {}).get("traits") if isinstance(context, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if not isinstance(found, dict) or not found:
        return None
    known = cast("dict[str, Any]", found)
    shared: dict[str, Any] = {word: schema[word] for word in ("definitions", "$defs") if word in schema}
    return {**shared, **known}


__all__ = ["imported"]
