"""An event as the one JSON object that ``headrace tail --json`` prints, ``GET /v1/events`` serves and ``{event}`` of a destination is.

JSON that the event holds as bytes is embedded as it is. Structs in place of dictionaries: they cost less than half, and every subscriber's and
destination's event is one. Encode them with ``msgspec.json``.
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

from headrace.cdc.event import CustomerEvent, Kind, Op

_WITH_AFTER = frozenset({"insert", "update", "read", "message"})


class EventLine(Struct, gc=False):
    """What every line has. partition, offset: left out where the event has no place in a log."""

    id: str
    partition: int | UnsetType
    offset: int | UnsetType
    kind: Kind
    name: str
    customer_key: str | None
    user_id: str | None
    anonymous_id: str | None
    occurred_us: int
    committed_us: int
    received_us: int
    source: str
    position: str


class RowLine(EventLine, gc=False):
    """Of a row. properties: of a schema event."""

    schema: str
    table: str
    op: Op
    key: Raw | None
    before: Raw | None
    after: Raw | None
    unchanged: tuple[str, ...]
    undecodable: tuple[str, ...]
    transaction_id: int | None
    ordinal: int
    last_in_transaction: bool
    schema_version: int
    properties: Raw | UnsetType = UNSET


class CallLine(EventLine, gc=False):
    """Of any other event; of an SDK's call with what else it said."""

    properties: Raw
    context: Raw | None
    writer: str | UnsetType = UNSET
    message_id: str | UnsetType | None = UNSET
    group_id: str | UnsetType | None = UNSET
    previous_id: str | UnsetType | None = UNSET
    category: str | UnsetType | None = UNSET
    channel: str | UnsetType | None = UNSET
    original_timestamp: str | UnsetType | None = UNSET
    sent_at: str | UnsetType | None = UNSET
    integrations: Raw | UnsetType | None = UNSET


def event_line(
    event: CustomerEvent, *, partition: int | UnsetType = UNSET, offset: int | UnsetType = UNSET
) -> EventLine:
    """See the module."""
    row = event.row
    if row is None:
        return _call_line(event, partition, offset)
    line = RowLine(
        event.id, partition, offset, event.kind, event.name, event.key, event.user_id, event.anonymous_id, event.occurred_us,
        event.committed_us, event.received_us, event.source, event.position, row.schema, row.table, row.op,
        None if row.key is None else Raw(row.key),
        None if row.before is None else Raw(row.before),
        Raw(event.properties) if row.op in _WITH_AFTER else None,
        row.unchanged, row.undecodable, row.xid or None, row.ordinal, row.is_last, row.schema_version,
    )  # fmt: skip
    if row.op == "schema":
        line.properties = Raw(event.properties)
    return line


def _call_line(event: CustomerEvent, partition: int | UnsetType, offset: int | UnsetType) -> EventLine:
    line = CallLine(
        event.id, partition, offset, event.kind, event.name, event.key, event.user_id, event.anonymous_id, event.occurred_us,
        event.committed_us, event.received_us, event.source, event.position, Raw(event.properties),
        None if event.context is None else Raw(event.context),
    )  # fmt: skip
    sdk = event.sdk
    if sdk is not None:
        line.writer = sdk.writer
        line.message_id = sdk.message_id
        line.group_id = sdk.group_id
        line.previous_id = sdk.previous_id
        line.category = sdk.category
        line.channel = sdk.channel
        line.original_timestamp = sdk.original_timestamp
        line.sent_at = sdk.sent_at
        line.integrations = None if sdk.integrations is None else Raw(sdk.integrations)
    return line


__all__ = ["CallLine", "EventLine", "RowLine", "event_line"]
