"""What an event becomes for a destination, declared: JSON with ``{field}`` in its texts.

A text that is one reference alone becomes the value itself, whatever its JSON type; in a longer text values are spelled out. Fields:
``id key name kind source user_id anonymous_id position schema table op``; ``properties``, ``context``, ``before`` and ``row_key`` whole or
with a path (``properties.total``, ``context.traits.email``); times as ``occurred committed received`` (RFC 3339) or with ``_us _ms _s``;
``event`` is everything, as ``headrace tail --json`` prints it but for its place in our log, which a replay from the dead letters no longer has;
``cloudevent``, ``debezium`` and ``segment`` are the same in the shapes of envelope.py.

``{properties.total:number}`` and ``:text`` make a value that type: exact numbers of a database come as text. ``:lower`` trims and lowers;
``:sha256`` (hexadecimal) and ``:base64`` are of the value as text, ``:sha256_lower`` of the trimmed text in lower case; ``:md5`` shortens an id,
``:snake`` makes ``order_completed`` of ``Order Completed``.

A field the event lacks, or that is null, is left out of its object; ``{field!}`` must be there, else the event is a dead letter;
``{field|text}`` has a default. ``{{`` and ``}}`` are braces. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast
from urllib.parse import quote

import msgspec

from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import Unfit
from headrace.sinks.envelope import SHAPES

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_REFERENCE: Final = re.compile(r"\{\{|\}\}|\{([a-z_]+)((?:\.[^.{}|!:]+)*)(:[a-z0-9_]+)?(!|\|[^{}]*)?\}|[{}]")
_NO_WORD: Final = re.compile(r"[^A-Za-z0-9]+")
_WHOLE: Final = re.compile(r"-?\d{1,18}")
_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


class Subject:
    """One event as templates see it; JSON parts are decoded once, when first asked for."""

    __slots__ = ("_parts", "event")

    def __init__(self, event: CustomerEvent) -> None:
        self.event = event
        self._parts: dict[str, Any] = {}

    def part(self, name: str) -> Any:
        """properties, context, before or row_key, decoded; MISSING when the event has none."""
        if name not in self._parts:
            self._parts[name] = self._decoded(name)
        return self._parts[name]

    def _decoded(self, name: str) -> Any:
        try:
            return self._read(name)
        except msgspec.DecodeError:
            raise Unfit(f"its {name} are no JSON") from None

    def _read(self, name: str) -> Any:
        event = self.event
        if name == "properties":
            return _decode(event.properties)
        if name == "context":
            return MISSING if event.context is None else _decode(event.context)
        row = event.row
        raw = None if row is None else row.before if name == "before" else row.key
        return MISSING if raw is None else _decode(raw)


Reader = Callable[[Subject], Any]

_PARTS: Final = ("properties", "context", "before", "row_key")
_TIMES: Final = ("occurred", "committed", "received")
_PLAIN: Final[dict[str, Reader]] = {
    "id": lambda subject: subject.event.id,
    "key": lambda subject: subject.event.key,
    "name": lambda subject: subject.event.name,
    "kind": lambda subject: subject.event.kind,
    "source": lambda subject: subject.event.source,
    "position": lambda subject: subject.event.position,
    "user_id": lambda subject: subject.event.user_id,
    "anonymous_id": lambda subject: subject.event.anonymous_id,
    "schema": lambda subject: None if subject.event.row is None else subject.event.row.schema,
    "table": lambda subject: None if subject.event.row is None else subject.event.row.table,
    "op": lambda subject: None if subject.event.row is None else subject.event.row.op,
    "event": lambda subject: SHAPES["headrace"](subject.event, None),
    "cloudevent": lambda subject: SHAPES["cloudevents"](subject.event, None),
    "debezium": lambda subject: SHAPES["debezium"](subject.event, None),
    "segment": lambda subject: SHAPES["segment"](subject.event, None),
}
FIELDS: Final = (*_PLAIN, *_PARTS, *(f"{time}{unit}" for time in _TIMES for unit in ("", "_us", "_ms", "_s")))


class Template:
    """A compiled template. tree: what the configuration gives. Raises ValueError with the words for a problem."""

    def __init__(self, tree: Any) -> None:
        self._build = _compile(tree)

    def value(self, subject: Subject) -> Any:
        """The value for this event. Raises Unfit when a needed field is missing; an absent whole is None."""
        found = self._build(subject)
        return None if found is MISSING else found

    def json(self, subject: Subject) -> bytes:
        """The value as JSON."""
        return _encode(self.value(subject))


class Text:
    """A text template, as in a URL or a header. is_quoted: values are percent-encoded; a missing one always makes the event unfit."""

    def __init__(self, text: str, *, is_quoted: bool = False) -> None:
        self._pieces = list(_pieces(text))
        self._is_quoted = is_quoted

    @property
    def constant(self) -> str | None:
        """The text, when it is the same for every event."""
        return "".join(str(piece) for piece in self._pieces) if all(isinstance(p, str) for p in self._pieces) else None

    def value(self, subject: Subject) -> str:
        """Raises Unfit."""
        parts: list[str] = []
        for piece in self._pieces:
            if isinstance(piece, str):
                parts.append(piece)
                continue
            name, read = piece
            value = read(subject)
            if value is MISSING:
                raise Unfit(f"it has no {name}")
            text = _spelled(value)
            if not self._is_quoted and any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
                raise Unfit(f"its {name} holds control characters, which no header takes")
            parts.append(quote(text, safe="") if self._is_quoted else text)
        return "".join(parts)


def _compile(tree: Any) -> Reader:
    if isinstance(tree, str):
        return _compile_text(tree)
    if isinstance(tree, dict):
        fields = [(str(key), _compile(value)) for key, value in cast("dict[Any, Any]", tree).items()]

        def build_object(subject: Subject) -> Any:
            made: dict[str, Any] = {}
            for key, build in fields:
                value = build(subject)
                if value is not MISSING:
                    made[key] = value
            return made

        return build_object
    if isinstance(tree, list):
        items = [_compile(value) for value in cast("list[Any]", tree)]
        return lambda subject: [value for value in (build(subject) for build in items) if value is not MISSING]
    return lambda subject: tree


def _compile_text(text: str) -> Reader:
    pieces = list(_pieces(text))
    if len(pieces) == 1 and not isinstance(pieces[0], str):
        return pieces[0][1]
    if all(isinstance(piece, str) for piece in pieces):
        constant = "".join(cast("list[str]", pieces))
        return lambda subject: constant

    def spell(subject: Subject) -> Any:
        parts: list[str] = []
        for piece in pieces:
            value = piece if isinstance(piece, str) else piece[1](subject)
            if value is MISSING:
                return MISSING
            parts.append(_spelled(value))
        return "".join(parts)

    return spell


def _pieces(text: str) -> Iterator[str | tuple[str, Reader]]:
    """Literal texts and (field, reader). Raises ValueError."""
    at = 0
    for match in _REFERENCE.finditer(text):
        if match.start() > at:
            yield text[at : match.start()]
        at = match.end()
        if match[0] in ("{{", "}}"):
            yield match[0][0]
        elif match[1] is None:
            raise ValueError(f"{text!r} has a lone brace; write {{{{ or }}}} for one that is meant")
        else:
            yield f"{match[1]}{match[2]}", _reference(match[1], match[2], match[3] or "", match[4] or "")
    if at < len(text):
        yield text[at:]


def _reference(name: str, path: str, type: str, ending: str) -> Reader:
    if name not in FIELDS:
        raise ValueError(f"{{{name}}} is no field of an event; known: {', '.join(FIELDS)}")
    keys = path.split(".")[1:]
    if keys and name not in _PARTS:
        raise ValueError(f"{{{name}{path}}}: {name} has no parts")
    if type and type[1:] not in _FILTERS:
        raise ValueError(f"{{{name}{path}{type}}}: a value can be made {', '.join(_FILTERS)}")
    plain = _typed(_reader(name, keys), f"{name}{path}", type[1:])
    if ending == "!":

        def needed(subject: Subject) -> Any:
            value = plain(subject)
            if value is MISSING:
                raise Unfit(f"it has no {name}{path}")
            return value

        return needed
    if ending:
        default = ending[1:]

        def defaulted(subject: Subject) -> Any:
            value = plain(subject)
            return default if value is MISSING else value

        return defaulted
    return plain


def _typed(read: Reader, name: str, type: str) -> Reader:
    if not type:
        return read

    def typed(subject: Subject) -> Any:
        value = read(subject)
        if value is MISSING:
            return value
        if type != "number":
            return _TEXTS[type](_spelled(value))
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        try:
            found = float(value)
        except (TypeError, ValueError):
            raise Unfit(f"its {name} is no number") from None
        if not math.isfinite(found):
            raise Unfit(f"its {name} is no finite number")
        return int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else found

    return typed


_TEXTS: Final[dict[str, Callable[[str], str]]] = {
    "text": lambda text: text,
    "lower": lambda text: text.strip().lower(),
    "sha256": lambda text: hashlib.sha256(text.encode()).hexdigest(),
    # As services want e-mail addresses hashed: equal ones must hash equally however a person typed them.
    "sha256_lower": lambda text: hashlib.sha256(text.strip().lower().encode()).hexdigest(),
    # No protection: a short id of a long one, for services whose ids are short.
    "md5": lambda text: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
    "snake": lambda text: _NO_WORD.sub("_", text).strip("_").lower(),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
}
_FILTERS: Final = ("number", *_TEXTS)


def _reader(name: str, keys: list[str]) -> Reader:
    if name in _PARTS and len(keys) == 1:
        key = keys[0]

        def field(subject: Subject) -> Any:
            part = subject.part(name)
            value = cast("dict[str, Any]", part).get(key) if isinstance(part, dict) else None
            return MISSING if value is None else value

        return field
    if name in _PARTS:

        def walk(subject: Subject) -> Any:
            value = subject.part(name)
            for key in keys:
                if not isinstance(value, dict):
                    return MISSING
                value = cast("dict[str, Any]", value).get(key, MISSING)
            return MISSING if value is None else value

        return walk
    if name in _PLAIN:
        read = _PLAIN[name]

        def plain(subject: Subject) -> Any:
            value = read(subject)
            return MISSING if value is None else value

        return plain
    time, _, unit = name.partition("_")
    return lambda subject: _time(getattr(subject.event, f"{time}_us"), unit)


def _time(us: int, unit: str) -> Any:
    if unit == "us":
        return us
    if unit == "ms":
        return us // 1_000
    if unit == "s":
        return us // 1_000_000
    try:
        return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except OverflowError:
        return MISSING


def _spelled(value: Any) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


__all__ = ["FIELDS", "MISSING", "Subject", "Template", "Text"]
