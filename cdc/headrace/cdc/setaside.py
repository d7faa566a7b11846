"""Events as dead letters: written so that a person can read them, and read back exactly.

The body is one JSON object; JSON that the event holds as bytes stands in it as it is. The context says that it is an event, and of an SDK's event
by which bytes its repetitions are known, so that a retry makes it known as it would have been.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.event import CustomerEvent, Kind, Op, RowPart, SdkPart
from headrace.cdc.log.base import DeadLetter

_FORM: Final = "event"
_ABSENT: Final = Raw()
"""Left out when written: msgspec omits a field that is its very default."""


class _Row(msgspec.Struct, omit_defaults=True):
    schema: str
    table: str
    op: Op
    xid: int
    ordinal: int
    is_last: bool
    schema_version: int
    key: Raw = _ABSENT
    before: Raw = _ABSENT
    unchanged: tuple[str, ...] = ()
    undecodable: tuple[str, ...] = ()


class _Sdk(msgspec.Struct, omit_defaults=True):
    writer: str
    message_id: str | None
    group_id: str | None = None
    previous_id: str | None = None
    category: str | None = None
    channel: str | None = None
    original_timestamp: str | None = None
    sent_at: str | None = None
    integrations: Raw = _ABSENT


class _Event(msgspec.Struct, omit_defaults=True):
    id: str
    kind: Kind
    name: str
    key: str | None
    properties: Raw
    occurred_us: int
    committed_us: int
    received_us: int
    source: str
    position: str
    user_id: str | None = None
    anonymous_id: str | None = None
    context: Raw = _ABSENT
    row: _Row | None = None
    sdk: _Sdk | None = None


class EventContext(msgspec.Struct, omit_defaults=True, frozen=True):
    """form: always "event". key, body: hexadecimal, of an SDK's event; "" when it had no messageId."""

    form: str = ""
    key: str = ""
    body: str = ""


def letter_of(event: CustomerEvent, refusal: Refusal, *, key: bytes = b"", body: bytes = b"") -> DeadLetter:
    """The event as it stands, set aside."""
    row, sdk = event.row, event.sdk
    kept = _Event(
        event.id, event.kind, event.name, event.key, Raw(event.properties), event.occurred_us, event.committed_us,
        event.received_us, event.source, event.position, event.user_id, event.anonymous_id, _raw(event.context),
    )  # fmt: skip
    if row is not None:
        kept.row = _Row(
            row.schema, row.table, row.op, row.xid, row.ordinal, row.is_last, row.schema_version, _raw(row.key),
            _raw(row.before), row.unchanged, row.undecodable,
        )  # fmt: skip
    if sdk is not None:
        kept.sdk = _Sdk(
            sdk.writer, sdk.message_id, sdk.group_id, sdk.previous_id, sdk.category, sdk.channel, sdk.original_timestamp,
            sdk.sent_at, _raw(sdk.integrations),
        )  # fmt: skip
    # form has to be said although it is what the reader looks for.
    context = {"form": _FORM} | ({"key": key.hex(), "body": body.hex()} if key else {})
    return DeadLetter(
        event.source,
        refusal.reason,
        refusal.detail,
        event.received_us,
        msgspec.json.encode(kept),
        msgspec.json.encode(context),
    )


def event_of(letter: DeadLetter) -> tuple[CustomerEvent, EventContext] | None:
    """The event that was set aside; None for a letter of another form."""
    try:
        context = msgspec.json.decode(letter.context, type=EventContext)
        if context.form != _FORM:
            return None
        kept = msgspec.json.decode(letter.body, type=_Event)
    except msgspec.MsgspecError:
        return None
    row, sdk = kept.row, kept.sdk
    event = CustomerEvent(
        kept.id, kept.kind, kept.name, kept.key, kept.occurred_us, kept.committed_us, kept.received_us, kept.source,
        kept.position, bytes(kept.properties),
        None if row is None else RowPart(
            row.schema, row.table, row.op, _bytes(row.key), _bytes(row.before), row.unchanged, row.xid, row.ordinal,
            row.is_last, row.schema_version, row.undecodable,
        ),
        kept.user_id, kept.anonymous_id, _bytes(kept.context),
        None if sdk is None else SdkPart(
            sdk.writer, sdk.message_id, sdk.group_id, sdk.previous_id, sdk.category, sdk.channel, sdk.original_timestamp,
            sdk.sent_at, _bytes(sdk.integrations),
        ),
    )  # fmt: skip
    return event, context


def _raw(value: bytes | None) -> Raw:
    return _ABSENT if value is None else Raw(value)


def _bytes(value: Raw) -> bytes | None:
    return bytes(value) or None


__all__ = ["EventContext", "event_of", "letter_of"]
