"""A call of an SDK becomes a customer event: whose it is, when it happened, which id it has. Pure: no I/O, no clock.

Follows the Segment spec (Common Fields, Identify, Track, Page, Screen, Group, Alias): ``timestamp`` is ``receivedAt - (sentAt -
originalTimestamp)``, which takes the error of the client's clock out; server SDKs name the client's time ``timestamp``.

The id is a hash of source, writer and messageId, so the same message has the same id however often it is sent. Beside it stands a
hash of what the message says (not of context and sentAt, which differ between two tries of the same message): two messages that share an
id and don't say the same are a conflict.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import msgspec

from headrace.cdc.decode.sdkpayload import Refusal, Scalar, SdkCall
from headrace.cdc.event import CustomerEvent, Kind, SdkPart, key_text

LONGEST_ID: Final = 1024

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MILLISECOND: Final = 100_000_000_000
"""Numbers from here on count milliseconds (1973 in those, the year 5138 in seconds)."""
_LAST_US: Final = 253_402_300_800_000_000  # the year 10000
_EMPTY: Final = b"{}"
_encode = msgspec.json.Encoder().encode

_KINDS: Final[dict[str, Kind]] = {
    "identify": "identify",
    "track": "track",
    "page": "page",
    "screen": "screen",
    "group": "group",
    "alias": "alias",
    "record": "record",
}


class Delivery(msgspec.Struct, frozen=True):
    """What the calls of one request share.

    writer: name of the write key. kind: what the path says, "" for a batch. anonymous_id: of the header AnonymousId.
    sent_at, context, integrations: of the batch, for calls without their own. is_history: times are taken as sent (import).
    """

    source: str
    writer: str
    received_us: int
    kind: str = ""
    anonymous_id: str | None = None
    sent_at: Scalar = None
    context: bytes = b""
    integrations: bytes = b""
    is_history: bool = False


class Identified(msgspec.Struct, gc=False):
    """An event with the bytes that its repetitions are known by. key: 16, body: 8; both b"" when the call has no messageId."""

    event: CustomerEvent
    key: bytes
    body: bytes


def identified(call: SdkCall, delivery: Delivery, unique: str) -> Identified | Refusal:
    """The event of a call, or why there is none. unique: 32 hexadecimal digits, the event's id when the call has no messageId."""
    kind = _KINDS.get(call.type or delivery.kind) or _KINDS.get((call.type or "").lower())
    if kind is None:
        return Refusal(
            "unknown_type", "the event's type is none of identify, track, page, screen, group, alias and record"
        )
    try:
        # Nearly every id is a short text, and most fields are absent: no call for those.
        user_id = call.user_id
        if not isinstance(user_id, str) or not user_id or len(user_id) > LONGEST_ID:
            user_id = _id("userId", user_id)
        anonymous_id = call.anonymous_id
        if not isinstance(anonymous_id, str) or not anonymous_id or len(anonymous_id) > LONGEST_ID:
            anonymous_id = _id("anonymousId", anonymous_id)
        message_id = call.message_id
        if not isinstance(message_id, str) or not message_id or len(message_id) > LONGEST_ID:
            message_id = _id("messageId", message_id)
        group_id = None if call.group_id is None else _id("groupId", call.group_id)
        previous_id = None if call.previous_id is None else _id("previousId", call.previous_id)
        properties = _object("properties", call.properties) if call.properties else None
        traits = _object("traits", call.traits) if call.traits else None
        context = (_object("context", call.context) if call.context else None) or delivery.context or None
        integrations = (
            (_object("integrations", call.integrations) if call.integrations else None) or delivery.integrations or None
        )
        original = call.original_timestamp
        if original is None or original == "":
            original = call.timestamp
        original_us = _time_us(original)
    except _RefusedError as refused:
        return refused.refusal
    if user_id is None and anonymous_id is None:
        anonymous_id = delivery.anonymous_id
    customer = user_id or anonymous_id
    if customer is None and not (kind == "alias" and previous_id is not None):
        return Refusal("no_customer", "the event has neither userId nor anonymousId")
    match kind:
        case "track":
            if not call.event:
                return Refusal("no_name", 'the event is a track call without "event"')
            name = call.event
        case "record":
            if not (call.event or call.name):
                return Refusal("no_name", 'the event is a record call without "event"')
            name = call.event or call.name or ""
        case "page" | "screen":
            name = call.name or kind
        case "group":
            if group_id is None:
                return Refusal("no_group", "the event is a group call without groupId")
            name = kind
        case "alias":
            if user_id is None or (previous_id or anonymous_id) is None:
                return Refusal("no_previous", "the event is an alias call without userId, or without a former id")
            name = kind
        case _:
            name = kind
    sent_at = call.sent_at
    if sent_at is None or sent_at == "":
        sent_at = delivery.sent_at
    said = traits or properties if kind in ("identify", "group") else properties or traits
    if said is None and kind == "identify" and context is not None:
        said = _traits_in(context)
    key = body = b""
    if message_id is not None:
        key = blake2b(
            f"{delivery.source}\0{delivery.writer}\0{message_id}".encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        body = _body_hash(call, kind, name, properties or b"", traits or b"")
    event = CustomerEvent(
        key.hex() or unique,
        kind,
        name,
        customer,
        _occurred_us(original_us, sent_at, delivery),
        delivery.received_us,
        delivery.received_us,
        delivery.source,
        "",
        said or _EMPTY,
        None,
        user_id,
        anonymous_id,
        context,
        SdkPart(
            delivery.writer,
            message_id,
            group_id,
            previous_id,
            call.category,
            call.channel,
            original if isinstance(original, str) else _text(original),
            sent_at if isinstance(sent_at, str) else _text(sent_at),
            integrations,
        ),
    )
    return Identified(event, key, body)


class _HasTraits(msgspec.Struct):
    traits: msgspec.Raw = msgspec.Raw()


class _RefusedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(reason, detail)


def _id(field: str, value: Scalar) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        raise _RefusedError("wrong_type", f"{field} is true or false, which is nobody's id")
    text = value if isinstance(value, str) else key_text(value)
    if len(text) > LONGEST_ID:
        raise _RefusedError("too_long", f"{field} has more than {LONGEST_ID} characters")
    return text


def _object(field: str, raw: msgspec.Raw) -> bytes | None:
    """The object's bytes; None for null, and for an empty array, which PHP makes of an empty map."""
    value = bytes(raw)
    if value[0] == 0x7B:
        return value
    if value == b"null" or (value[0] == 0x5B and not value[1:-1].strip()):
        return None
    raise _RefusedError("wrong_type", f"{field} is no object")


def _traits_in(context: bytes) -> bytes | None:
    found = bytes(msgspec.json.decode(context, type=_HasTraits).traits)
    return found if found.startswith(b"{") else None


def _time_us(value: Scalar) -> int | None:
    """Microseconds since 1970 UTC; None for an absent time. A text without an offset is UTC."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            if not (value.isascii() and value.isdigit() and len(value) < 20):
                raise _RefusedError("bad_time", "the event's timestamp is no time that ISO 8601 knows") from None
            value = int(value)
        else:
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            since = moment - _EPOCH
            return since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds
    if isinstance(value, bool):
        raise _RefusedError("bad_time", "the event's timestamp is true or false")
    per_unit = 1_000 if abs(value) >= _FIRST_MILLISECOND else 1_000_000
    at_us = round(value * per_unit)
    if not -_LAST_US < at_us < _LAST_US:
        raise _RefusedError("bad_time", "the event's timestamp is outside the years that have four digits")
    return at_us


def moment_us(value: Scalar) -> int | Refusal | None:
    """Microseconds since 1970 UTC of ISO 8601, or of a number of seconds or milliseconds; None for an absent time."""
    try:
        return _time_us(value)
    except _RefusedError as refused:
        return refused.refusal


def _occurred_us(original_us: int | None, sent_at: Scalar, delivery: Delivery) -> int:
    if original_us is None:
        return delivery.received_us
    if delivery.is_history:
        return original_us
    sent_us = _sent_us(sent_at)
    return original_us if sent_us is None else delivery.received_us - (sent_us - original_us)


@lru_cache(maxsize=64)
def _sent_us(sent_at: Scalar) -> int | None:
    """As _time_us, the same for all calls of a batch; None also when it is no time: only a correction would come of it."""
    try:
        return _time_us(sent_at)
    except _RefusedError:
        return None


def _text(value: Scalar) -> str | None:
    return None if value is None else key_text(value)


def _body_hash(call: SdkCall, kind: Kind, name: str, properties: bytes, traits: bytes) -> bytes:
    words = (
        kind,
        name,
        call.user_id,
        call.anonymous_id,
        call.group_id,
        call.previous_id,
        call.original_timestamp,
        call.timestamp,
    )
    return blake2b(b"\0".join((_encode(words), properties, traits)), digest_size=8).digest()
