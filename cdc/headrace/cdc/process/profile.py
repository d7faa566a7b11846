"""What a log's events look like, and the JSON Schemas that say it. Pure.

Of every field: how often it is there, its types, the range of its numbers, the shape of its texts, and its values where they are few. What all
events have in common becomes a rule; the rest is a note for people. A type that is rarer than one in RARE is taken for a mistake.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

import msgspec

from headrace.cdc.event import CustomerEvent

ENOUGH: Final = 100
"""Of fewer events nothing is said to be in all of them, and nothing to be rare."""
RARE: Final = 200
_VALUES: Final = 12
_VALUE_CHARS: Final = 40
_OF_EACH_VALUE: Final = 20
_NAMES: Final = 300
_DEPTH: Final = 5
_MAX_EVENTS: Final = 2000

_SHAPES: Final[dict[str, re.Pattern[str]]] = {
    "a date and time": re.compile(r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?$"),
    "a date": re.compile(r"^\d{4}-\d{2}-\d{2}$"),
    "a UUID": re.compile(r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"),
    "an e-mail address": re.compile(r"^[^@\s]+@[^@\s]+\.[^@\s]+$"),
    "a URL": re.compile(r"^https?://\S+$"),
    "digits": re.compile(r"^\d+$"),
}
_PERSONAL: Final = frozenset({"an e-mail address"})
SECTIONS: Final = ("identify", "page", "screen", "group")

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class FieldProfile:
    """One field of one event; of an object its fields, of an array its items."""

    def __init__(self, depth: int = 0) -> None:
        self.seen = 0
        self.types: Counter[str] = Counter()
        self.least: float | None = None
        self.greatest: float | None = None
        self.longest = 0
        self.shapes: Counter[str] | None = Counter()
        self.values: Counter[str] | None = Counter()
        self.fields: dict[str, FieldProfile] = {}
        self.items: FieldProfile | None = None
        self._depth = depth

    def add(self, value: Any) -> None:
        self.seen += 1
        match value:
            case None:
                self.types["null"] += 1
            case bool():
                self.types["boolean"] += 1
            case int() | float():
                self.types["integer" if isinstance(value, int) else "number"] += 1
                self.least = value if self.least is None else min(self.least, value)
                self.greatest = value if self.greatest is None else max(self.greatest, value)
            case str():
                self.types["string"] += 1
                self._add_text(value)
            case list():
                self.types["array"] += 1
                for item in value[:50]:  # pyright: ignore[reportUnknownVariableType]
                    if self.items is None:
                        self.items = FieldProfile(self._depth + 1)
                    self.items.add(item)
            case _:
                self.types["object"] += 1
                self.add_fields(value)

    def add_fields(self, fields: dict[str, Any]) -> None:
        if self._depth >= _DEPTH:
            return
        for name, value in fields.items():
            profile = self.fields.get(name)
            if profile is None:
                if len(self.fields) >= _NAMES:
                    continue
                profile = self.fields[name] = FieldProfile(self._depth + 1)
            profile.add(value)

    def _add_text(self, text: str) -> None:
        self.longest = max(self.longest, len(text))
        if self.values is not None:
            self.values[text] += 1
            if len(self.values) > _VALUES or len(text) > _VALUE_CHARS:
                self.values = None
        if self.shapes is not None:
            shape = next((name for name, pattern in _SHAPES.items() if pattern.match(text)), "")
            self.shapes[shape] += 1
            if self.shapes[""] * RARE > max(self.types["string"], RARE):
                self.shapes = None

    @property
    def shape(self) -> str:
        """What nearly all of its texts are; "" for nothing in particular."""
        if not self.shapes or self.types["string"] < ENOUGH:
            return ""
        name, count = self.shapes.most_common(1)[0]
        return name if (self.types["string"] - count) * RARE <= self.types["string"] else ""

    def schema(self) -> dict[str, Any]:
        """A JSON Schema of what is certain."""
        if not self.seen:
            return {}
        types = [kind for kind, count in self.types.items() if self.seen < ENOUGH or count * RARE >= self.seen]
        if "number" in types and "integer" in types:
            types.remove("integer")
        found: dict[str, Any] = {"type": types[0] if len(types) == 1 else sorted(types)}
        if {"number", "integer"} & set(types) and self.least is not None and self.least >= 0 and self.seen >= ENOUGH:
            found["minimum"] = 0
        if types == ["string"]:
            values = self.values
            if values and self.shape == "" and self.seen >= ENOUGH and min(values.values()) >= _OF_EACH_VALUE:
                found["enum"] = sorted(values)
            elif self.shape:
                found["pattern"] = _SHAPES[self.shape].pattern
        if "object" in types and self.fields:
            found |= self.of_fields(self.types["object"])
        if "array" in types and self.items is not None:
            found["items"] = self.items.schema()
        return found

    def of_fields(self, count: int) -> dict[str, Any]:
        """``required`` and ``properties`` of an object that was seen so often."""
        required = sorted(name for name, field in self.fields.items() if count >= ENOUGH and field.seen == count)
        found: dict[str, Any] = {"required": required} if required else {}
        found["properties"] = {name: field.schema() for name, field in sorted(self.fields.items())}
        return found

    def note(self, of: int) -> str:
        """For people: how often, and what the schema doesn't say. of: how many could have had it."""
        said = [f"in {self.seen / of:.1%}" if self.seen != of else "always"]
        rare = [f"{kind} {count}x" for kind, count in self.types.items() if count * RARE < self.seen >= ENOUGH]
        if rare:
            said.append(f"taken for a mistake: {', '.join(rare)}")
        if self.least is not None and self.greatest is not None:
            said.append(f"{self.least:,} to {self.greatest:,}")
        if self.shape:
            said.append(self.shape)
        elif self.types["string"]:
            said.append(f"up to {self.longest} characters")
        return ", ".join(said)


class EventProfile:
    """All events of one kind and name."""

    def __init__(self) -> None:
        self.count = 0
        self.first_us = 1 << 63
        self.last_us = 0
        self.fields = FieldProfile()

    def add(self, event: CustomerEvent) -> None:
        self.count += 1
        self.first_us = min(self.first_us, event.received_us)
        self.last_us = max(self.last_us, event.received_us)
        self.fields.add_fields(_decode(event.properties))

    def rate(self) -> str:
        hours = (self.last_us - self.first_us) / 3_600_000_000
        per_hour = "" if hours < 0.1 else f", {self.count / hours:,.1f} an hour"
        return f"{self.count:,} seen{per_hour}"


class LogProfile:
    """Events of SDKs and webhooks by kind, and for track by name; of rows nothing. left_out: names beyond the first 2,000."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], EventProfile] = {}
        self.count = 0
        self.left_out = 0

    def add(self, event: CustomerEvent) -> None:
        if event.row is not None or event.kind not in ("track", *SECTIONS):
            return
        key = (event.kind, event.name if event.kind == "track" else "")
        profile = self.events.get(key)
        if profile is None:
            if len(self.events) >= _MAX_EVENTS:
                self.left_out += 1
                return
            profile = self.events[key] = EventProfile()
        self.count += 1
        profile.add(event)


__all__ = ["ENOUGH", "RARE", "SECTIONS", "EventProfile", "FieldProfile", "LogProfile"]
