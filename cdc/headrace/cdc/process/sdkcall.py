"""A call of an SDK becomes a customer event: whose it is, when it happened, which id it has. Pure: no I/O, no clock.

Follows the Segment spec (Common Fields, Identify, Track, Page, Screen, Group, Alias): ``timestamp`` is ``receivedAt - (sentAt -
originalTimestamp)``, which takes the error of the client's clock out; server SDKs name the client's time ``timestamp``.

The id is a hash of source, writer and messageId, so the same message has the same id however often it is sent. Beside it stands a
hash of what the message says (not of context and sentAt, which differ between two tries of the same message): two messages that share an
id and don't say the same are a conflict.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Final

import msgspec

from headrace.cdc.decode.sdkpayload import Refusal, Scalar, SdkCall
from headrace.cdc.event import CustomerEvent, Kind, SdkPart, key_text

LONGEST_ID: Final = 1024

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST_MILLISECOND: Final = 100_000_000_000
"""Numbers from here on count milliseconds (1973 in those, the year 5138 in seconds)."""
_LAST_US: Final = 253_402_300_800_000_000  # the year 10000
_EMPTY: Final = b"{}"

_KINDS: Final[dict[str, Kind]] = {
    "identify": "identify",
    "track": "track",
    "page": "page",
    "screen": "screen",
    "group": "group",
    "alias": "alias",
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
    kind = _KINDS.get((call.type or delivery.kind).lower())
    if kind is None:
        return Refusal("unknown_type", "the event's type is none of identify, track, page, screen, group and alias")
    try:
        user_id = _id("userId", call.user_id)
        anonymous_id = _id("anonymousId", call.anonymous_id)
        group_id = _id("groupId", call.group_id)
        previous_id = _id("previousId", call.previous_id)
        message_id = _id("messageId", call.message_id)
        properties = _object("properties", call.properties)
        traits = _object("traits", call.traits)
        context = _object("context", call.context) or delivery.context or None
        integrations = _object("integrations", call.integrations) or delivery.integrations or None
        original = call.original_timestamp if call.original_timestamp not in (None, "") else call.timestamp
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
    sent_at = call.sent_at if call.sent_at not in (None, "") else delivery.sent_at
    said = traits or properties if kind in ("identify", "group") else properties or traits
    if said is None and kind == "identify" and context is not None:
        said = _traits_in(context)
    key = body = b""
    if message_id is not None:
        key = _hash(16, delivery.source, delivery.writer, message_id)
        body = _body_hash(call, kind, name)
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
            _text(original),
            _text(sent_at),
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
    """The object's bytes; None for null, for an absent field, and for an empty array, which PHP makes of an empty map."""
    if not raw:
        return None
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
            return (moment - _EPOCH) // _MICROSECOND
    if isinstance(value, bool):
        raise _RefusedError("bad_time", "the event's timestamp is true or false")
    per_unit = 1_000 if abs(value) >= _FIRST_MILLISECOND else 1_000_000
    at_us = round(value * per_unit)
    if not -_LAST_US < at_us < _LAST_US:
        raise _RefusedError("bad_time", "the event's timestamp is outside the years that have four digits")
    return at_us


def _occurred_us(original_us: int | None, sent_at: Scalar, delivery: Delivery) -> int:
    if original_us is None:
        return delivery.received_us
    if delivery.is_history:
        return original_us
    try:
        sent_us = _time_us(sent_at)
    except _RefusedError:
        sent_us = None  # only a correction would come of it
    return original_us if sent_us is None else delivery.received_us - (sent_us - original_us)


def _text(value: Scalar) -> str | None:
    return None if value is None else key_text(value)


def _body_hash(call: SdkCall, kind: Kind, name: str) -> bytes:
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
    said = msgspec.json.encode(words)
    return blake2b(b"\0".join((said, bytes(call.properties), bytes(call.traits))), digest_size=8).digest()


def _hash(size: int, *words: str) -> bytes:
    return blake2b("\0".join(words).encode("utf-8", "surrogatepass"), digest_size=size).digest()
