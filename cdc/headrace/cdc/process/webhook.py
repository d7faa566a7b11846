"""A webhook's body becomes customer events, as rules say that people write. Pure: no I/O, no clock.

A rule names places: ``data.object.id`` in the body (a number counts in an array), ``.`` the body itself, ``header:NAME`` a header, and
``a | b`` the first of them that is there and not null. What is taken stays as its bytes: a number of any size is the same in the event.
A form is read as an object of its fields, and a field may hold the JSON itself.

The id of an event is a hash of source and the sender's own id, so a delivery that is repeated has the same; a hash of what the event says
stands beside it, as for calls of SDKs (sdkcall.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, TypeAlias, cast
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta

from headrace.cdc.config import Section
from headrace.cdc.decode.sdkpayload import Refusal, Scalar, read_value
from headrace.cdc.event import CustomerEvent, Kind, SdkPart, customer_key, key_text
from headrace.cdc.process.sdkcall import LONGEST_ID, Identified, moment_us

FORM: Final = "application/x-www-form-urlencoded"
_MOST_FIELDS: Final = 1000
_PLACE: Final = re.compile(r"\.|header:[A-Za-z0-9-]+|[^.|{}\s:]+(?:\.[^.|{}\s:]+)*")
_IN_NAME: Final = re.compile(r"\{([^{}]+)\}")

_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_read_any = msgspec.json.decode
_encode = msgspec.json.Encoder().encode

Place: TypeAlias = str


class Rule(Section, frozen=True):
    """What a body, or each element of one, becomes. Places: data.object.id, "." (the body), header:NAME; alternatives by |."""

    when: Annotated[
        dict[Place, str | list[str]],
        Meta(
            description="Place -> text it must hold, or several of which one; * stands for any characters. All must fit.",
            examples=[{"type": ["customer.created", "customer.updated"]}],
        ),
    ] = msgspec.field(default_factory=dict[str, "str | list[str]"])
    kind: Annotated[Literal["track", "identify", "ignore"], Meta(description="Kind of the event; ignore: none.")] = (
        "track"
    )
    name: Annotated[
        str,
        Meta(description="Name of a track event, with places in braces.", examples=["{type}", "Ticket {data.status}"]),
    ] = ""
    key: Annotated[
        Place | list[Place] | None,
        Meta(description="Customer key; several make one of all. Absent: the events name no customer."),
    ] = None
    without_key: Annotated[
        Literal["quarantine", "take", "ignore"],
        Meta(description="What becomes of a body that lacks the key; take: an event that names no customer."),
    ] = "quarantine"
    id: Annotated[
        Place | list[Place] | None,
        Meta(description="The sender's id of this event, by which repeated deliveries count once."),
    ] = None
    occurred_at: Annotated[
        Place | None,
        Meta(description="When it happened: ISO 8601, or seconds or milliseconds since 1970. Default: when it came."),
    ] = None
    properties: Annotated[
        Place | dict[str, Place],
        Meta(description="Place of an object, or name -> place of each property. Default: the whole body."),
    ] = "."
    leave_out: Annotated[
        list[str],
        Meta(description="Properties that aren't taken; put those here that change when a delivery is repeated."),
    ] = msgspec.field(default_factory=list[str])

    def __post_init__(self) -> None:
        if self.kind == "track" and not self.name:
            raise ValueError('a track event needs a name, such as name: "{type}"')
        for place in self.places():
            for one in place.split("|"):
                if _PLACE.fullmatch(one.strip()) is None:
                    raise ValueError(
                        f'"{place}" is no place; write data.object.id, ".", or header:NAME, alternatives with |'
                    )

    def places(self) -> Iterator[Place]:
        """Every place that the rule looks at."""
        yield from self.when
        yield from _IN_NAME.findall(self.name)
        for given in (self.key, self.id, self.occurred_at):
            yield from [given] if isinstance(given, str) else given or ()
        yield from [self.properties] if isinstance(self.properties, str) else self.properties.values()


class Came(msgspec.Struct, frozen=True):
    """How a body came, as far as it decides what it becomes; a dead letter keeps it.

    headers: those that rules name, and Content-Type; names in lower case. is_element: the bytes are one element of the body that came.
    """

    received_us: int
    headers: dict[str, str]
    is_element: bool = False


Outcome: TypeAlias = Identified | Refusal | None
"""None: the rules say to ignore it."""


class WebhookMap:
    """The rules of one source, ready to use."""

    def __init__(
        self, source: str, rules: tuple[Rule, ...], *, each: Place = "", form_field: str = "", ignores_others: bool
    ) -> None:
        """each: place of an array whose elements are mapped one by one. form_field: of a form, holds the JSON."""
        self._source = source
        self._rules = rules
        self._each = each
        self._form_field = form_field
        self._ignores_others = ignores_others
        self.header_names = {"content-type"} | {
            one.strip().removeprefix("header:").lower()
            for rule in rules
            for place in rule.places()
            for one in place.split("|")
            if one.strip().startswith("header:")
        }

    def read(self, body: bytes, came: Came, unique: Iterator[str]) -> list[tuple[bytes, Came, Outcome]]:
        """What the body comes to: bytes, how they came, what they become, in the order of the body.

        unique: 32 hexadecimal digits at a time, ids of events without one.
        """
        found = body if came.is_element else self._json(body, came)
        if isinstance(found, bytes):
            found = read_value(found)
        if isinstance(found, Refusal):
            return [(body, came, found)]
        if came.is_element or not self._each:
            return [(body, came, self._mapped(found, came, unique))]
        array = _Document(found, came.headers).at(self._each)
        if array is None or not array.startswith(b"["):
            return [(body, came, Refusal("unmapped", f"there is no array at {self._each} (each)"))]
        of_element = msgspec.structs.replace(came, is_element=True)
        return [
            (bytes(element), of_element, self._mapped(bytes(element), of_element, unique))
            for element in _read_array(array)
        ]

    def _json(self, body: bytes, came: Came) -> bytes | Refusal:
        if came.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
            return body.removeprefix(b"\xef\xbb\xbf").strip()
        try:
            fields = parse_qs(
                body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
            )
        except UnicodeDecodeError:
            return Refusal("not_utf8", "the form's bytes are not UTF-8")
        except ValueError:
            return Refusal("too_large", f"the form has more than {_MOST_FIELDS} fields")
        if self._form_field:
            values = fields.get(self._form_field)
            if not values:
                return Refusal("unmapped", f"the form has no field {self._form_field} (form_field)")
            return values[0].encode("utf-8", "surrogatepass")
        return _encode({name: values[0] if len(values) == 1 else values for name, values in fields.items()})

    def _mapped(self, raw: bytes, came: Came, unique: Iterator[str]) -> Outcome:
        document = _Document(raw, came.headers)
        for rule in self._rules:
            if all(_fits(document.text(place), wanted) for place, wanted in rule.when.items()):
                if rule.kind == "ignore":
                    return None
                try:
                    return self._made(rule, rule.kind, document, came, unique)
                except _RefusedError as refused:
                    return refused.refusal
        return None if self._ignores_others else Refusal("unmapped", "no rule fits (map, others)")

    def _made(
        self, rule: Rule, kind: Kind, document: _Document, came: Came, unique: Iterator[str]
    ) -> Identified | None:
        key: str | None = None
        if rule.key is not None:
            key = document.joined("key", rule.key)
            if key is None and rule.without_key != "take":
                if rule.without_key == "ignore":
                    return None
                raise _RefusedError("no_customer", f"there is nothing at {rule.key} (key)")
        sender_id: str | None = None
        if rule.id is not None:
            sender_id = document.joined("id", rule.id)
            if sender_id is None:
                raise _RefusedError("no_id", f"there is nothing at {rule.id} (id)")
        name = _IN_NAME.sub(lambda place: document.needed("name", place[1]), rule.name) if kind == "track" else kind
        occurred: Scalar = None if rule.occurred_at is None else document.scalar("occurred_at", rule.occurred_at)
        occurred_us = moment_us(occurred)
        if isinstance(occurred_us, Refusal):
            raise _RefusedError("bad_time", f"what stands at {rule.occurred_at} (occurred_at) is no time")
        properties = _properties(rule, document)
        hashed = body_hash = b""
        if sender_id is not None:
            hashed = blake2b(f"{self._source}\0{self._source}\0{sender_id}".encode(), digest_size=16).digest()
            says = b"\0".join((_encode((kind, name, key, occurred)), properties))
            body_hash = blake2b(says, digest_size=8).digest()
        event = CustomerEvent(
            hashed.hex() or next(unique),
            kind,
            name,
            key,
            came.received_us if occurred_us is None else occurred_us,
            came.received_us,
            came.received_us,
            self._source,
            "",
            properties,
            sdk=SdkPart(self._source, sender_id, original_timestamp=None if occurred is None else key_text(occurred)),
        )
        return Identified(event, hashed, body_hash)


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, detail)


class _Document:
    """A body that was read, looked into on the way to each place only."""

    def __init__(self, raw: bytes, headers: Mapping[str, str]) -> None:
        self._raw = raw
        self._headers = headers
        self._opened: dict[tuple[str, ...], dict[str, msgspec.Raw] | list[msgspec.Raw] | None] = {}

    def at(self, place: Place) -> bytes | None:
        """JSON of the first alternative that is there and not null."""
        for one in place.split("|"):
            one = one.strip()
            if one.startswith("header:"):
                header = self._headers.get(one[7:].lower())
                if header:
                    return _encode(header.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
                continue
            found = self._raw if one == "." else self._walk(tuple(one.split(".")))
            if found is not None and found != b"null":
                return found
        return None

    def _walk(self, steps: tuple[str, ...]) -> bytes | None:
        raw: bytes = self._raw
        for number, step in enumerate(steps):
            before = steps[:number]
            if before not in self._opened:
                self._opened[before] = _opened(raw)
            inside = self._opened[before]
            if isinstance(inside, dict):
                found = inside.get(step)
            elif inside is not None and step.isascii() and step.isdigit() and len(step) < 7 and int(step) < len(inside):
                found = inside[int(step)]
            else:
                found = None
            if found is None:
                return None
            raw = bytes(found)
        return raw

    def scalar(self, field: str, place: Place) -> Scalar:
        """Its value; None when nothing is there."""
        raw = self.at(place)
        value: Any = None if raw is None else _read_any(raw)
        if isinstance(value, dict | list):
            raise _RefusedError("wrong_type", f"what stands at {place} ({field}) is an object or an array")
        return cast("Scalar", value)

    def text(self, place: Place) -> str | None:
        """As scalar, as text; None for an object or an array too."""
        raw = self.at(place)
        value: Any = None if raw is None else _read_any(raw)
        return None if value is None or isinstance(value, dict | list) else key_text(value)

    def needed(self, field: str, place: Place) -> str:
        value = self.scalar(field, place)
        if value is None or value == "":
            raise _RefusedError("unmapped", f"there is nothing at {place} ({field})")
        return key_text(value)

    def joined(self, field: str, places: Place | list[Place]) -> str | None:
        """Of one place its text, of several a JSON array of their texts; None when one has nothing."""
        values = [self.scalar(field, place) for place in ([places] if isinstance(places, str) else places)]
        text = None if "" in values else customer_key(tuple(values))
        if text is not None and len(text) > LONGEST_ID:
            raise _RefusedError("too_long", f"what stands at {places} ({field}) has more than {LONGEST_ID} characters")
        return text


def _opened(raw: bytes) -> dict[str, msgspec.Raw] | list[msgspec.Raw] | None:
    match raw[:1]:
        case b"{":
            return _read_object(raw)
        case b"[":
            return _read_array(raw)
        case _:
            return None


def _fits(text: str | None, wanted: str | list[str]) -> bool:
    patterns = [wanted] if isinstance(wanted, str) else wanted
    return text is not None and any(
        fnmatchcase(text, pattern.replace("[", "[[]").replace("?", "[?]")) for pattern in patterns
    )


def _properties(rule: Rule, document: _Document) -> bytes:
    if isinstance(rule.properties, dict):
        taken = {name: document.at(place) for name, place in rule.properties.items()}
        return _encode({name: msgspec.Raw(raw) for name, raw in taken.items() if raw is not None})
    raw = document.at(rule.properties)
    if raw is None or not raw.startswith(b"{"):
        raise _RefusedError("unmapped", f"there is no object at {rule.properties} (properties)")
    if not rule.leave_out:
        return raw
    return _encode({name: value for name, value in _read_object(raw).items() if name not in rule.leave_out})


__all__ = ["Came", "Outcome", "Place", "Rule", "WebhookMap"]
