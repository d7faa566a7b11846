"""An event in the shapes that others know: CloudEvents, Debezium's change event, a Segment message.

Follows CloudEvents 1.0.2 (JSON event format); Debezium 3 (data change events of its PostgreSQL and MySQL connectors, without the schema
part, as ``schemas.enable=false`` writes them); Segment's spec of common fields. Pure; knows no transport.

What a shape has no place for is never dropped in silence: CloudEvents carry our whole event as ``data``, a Debezium ``source`` has our
position and id, and a row told as a Segment track has the rest in ``context.headrace``.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from headrace.cdc import __version__
from headrace.cdc.event import CustomerEvent, RowPart, SchemaEvent
from headrace.cdc.eventline import EventLine, event_line

Envelope: TypeAlias = Literal["headrace", "cloudevents", "debezium", "segment"]
Place: TypeAlias = tuple[int, int] | None
"""Partition and offset in our log; None where the event has none, as at a sink, which may replay it from the dead letters."""

CONTENT_TYPES: Final[dict[Envelope, str]] = {
    "headrace": "application/json",
    "cloudevents": "application/cloudevents+json",
    "debezium": "application/json",
    "segment": "application/json",
}

UNAVAILABLE: Final = "__debezium_unavailable_value"
"""What Debezium writes for a column whose value the server didn't send (its ``unavailable.value.placeholder``)."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OPS: Final = {
    "insert": "c", "update": "u", "delete": "d", "read": "r", "truncate": "t", "message": "m",
}  # fmt: skip
_encode = msgspec.json.Encoder().encode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_schema = msgspec.json.Decoder(SchemaEvent).decode


def whole(event: CustomerEvent, place: Place = None) -> EventLine:
    """The event line of ``headrace tail --json``; without partition and offset where there is no place."""
    return event_line(event) if place is None else event_line(event, partition=place[0], offset=place[1])


def cloud_event(event: CustomerEvent, place: Place = None) -> dict[str, Any]:
    """A CloudEvent whose data is the event line. subject and time are left out where the event has none that fits."""
    made: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/headrace/{event.source}",
        "type": f"headrace.{event.kind}",
    }
    if event.key:
        made["subject"] = event.key
    time = rfc3339(event.occurred_us)
    if time is not None:
        made["time"] = time
    made["datacontenttype"] = "application/json"
    made["hrpos"] = event.position
    if place is not None:
        made["hrpart"] = place[0]
        made["hroffset"] = str(place[1])  # a CloudEvents integer has 32 bits only
    made["data"] = whole(event, place)
    return made


def debezium(event: CustomerEvent, place: Place = None) -> dict[str, Any]:
    """The value of a Debezium change event: before, after, source, op, ts_ms.

    Images hold the columns that are known; one that the server didn't send, or whose bytes are no text, is UNAVAILABLE. A schema event
    becomes ``tableChanges``, a heartbeat ``ts_ms`` alone. A call of an SDK is a row created in table ``headrace.<kind>``: its columns
    are those of the event line.
    """
    row = event.row
    if event.kind == "heartbeat":
        return {"ts_ms": event.committed_us // 1_000}
    if row is not None and row.op == "schema":
        return _table_change(event, row, place)
    made: dict[str, Any] = {"before": None, "after": None, "source": _source(event, place)}
    if row is None:
        made["after"] = whole(event)
        made["op"] = "c"
    elif row.op == "message":
        del made["before"], made["after"]
        made["message"] = _message(event, row)
        made["op"] = "m"
    else:
        made["before"] = None if row.before is None else msgspec.Raw(row.before)
        if row.op not in ("delete", "truncate"):
            missing = dict.fromkeys((*row.unchanged, *row.undecodable), UNAVAILABLE)
            made["after"] = msgspec.Raw(_with(event.properties, missing) if missing else event.properties)
        elif row.op == "delete" and row.before is None and row.key is not None:
            made["before"] = msgspec.Raw(row.key)
        made["op"] = _OPS[row.op]
    made |= _times(event.received_us)
    made["transaction"] = None
    return made


def _source(event: CustomerEvent, place: Place) -> dict[str, Any]:
    """connector is ours: which database stands behind a source is in the configuration, not in the event; so ``db`` is left out too."""
    row = event.row
    made: dict[str, Any] = {
        "version": __version__,
        "connector": "headrace",
        "name": event.source,
        **_times(event.committed_us),
        "snapshot": "true" if row is not None and row.op == "read" else "false",
        "schema": "headrace" if row is None else row.schema,
        "table": event.kind if row is None else row.table,
    }
    if row is not None:
        made |= {"txId": row.xid or None, "ordinal": row.ordinal}
        if row.undecodable:
            made["undecodable"] = row.undecodable
    made |= {"position": event.position, "event_id": event.id, "customer_key": event.key}
    if place is not None:
        made |= {"partition": place[0], "offset": place[1]}
    return made


def _times(us: int) -> dict[str, int]:
    return {"ts_ms": us // 1_000, "ts_us": us, "ts_ns": us * 1_000}


def _message(event: CustomerEvent, row: RowPart) -> dict[str, Any]:
    columns = _decode_object(event.properties)
    text, digits = columns.get("content"), columns.get("content_hex")
    content = bytes.fromhex(digits) if text is None and isinstance(digits, str) else str(text or "").encode()
    return {"prefix": row.table, "content": base64.b64encode(content).decode()}


def _table_change(event: CustomerEvent, row: RowPart, place: Place) -> dict[str, Any]:
    schema = _decode_schema(event.properties)
    table = {
        "primaryKeyColumnNames": schema.key,
        "columns": [
            {"name": column.name, "typeName": column.type, "position": number}
            for number, column in enumerate(schema.columns, 1)
        ],
    }
    change = {"type": "ALTER", "id": f'"{row.schema}"."{row.table}"', "table": table}
    return {
        "source": _source(event, place), **_times(event.received_us),
        "schemaName": row.schema, "ddl": None, "tableChanges": [change],
    }  # fmt: skip


def segment(event: CustomerEvent, place: Place = None) -> dict[str, Any]:
    """A Segment message. An SDK's call as it came, its message id too; a row as a track, whose messageId is the event's id.

    A row that names no customer has neither userId nor anonymousId, which Segment itself would refuse.
    """
    kind, row, sdk = event.kind, event.row, event.sdk
    is_call = kind in ("identify", "page", "screen", "group", "alias")
    made: dict[str, Any] = {
        "type": kind if is_call else "track",
        "messageId": (sdk.message_id if sdk is not None else None) or event.id,
    }
    user_id = event.user_id
    if user_id is None and event.key != event.anonymous_id:
        user_id = event.key
    names = {"userId": user_id, "anonymousId": event.anonymous_id}
    if sdk is not None:
        names |= {"groupId": sdk.group_id, "previousId": sdk.previous_id, "category": sdk.category}
        names |= {"channel": sdk.channel, "originalTimestamp": sdk.original_timestamp, "sentAt": sdk.sent_at}
    made |= {name: value for name, value in names.items() if value is not None}
    if kind in ("page", "screen"):
        made["name"] = event.name
    elif not is_call:
        made["event"] = event.name
    if kind != "alias":
        made["traits" if kind in ("identify", "group") else "properties"] = msgspec.Raw(event.properties)
    if sdk is not None and sdk.integrations is not None:
        made["integrations"] = msgspec.Raw(sdk.integrations)
    if row is not None or place is not None:
        made["context"] = _segment_context(event, row, place)
    elif event.context is not None:
        made["context"] = msgspec.Raw(event.context)
    for name, us in (("timestamp", event.occurred_us), ("receivedAt", event.received_us)):
        time = rfc3339(us)
        if time is not None:
            made[name] = time
    return made


def _segment_context(event: CustomerEvent, row: RowPart | None, place: Place) -> dict[str, Any]:
    rest: dict[str, Any] = {"source": event.source, "event_id": event.id}
    if row is not None:
        rest |= {
            "position": event.position, "schema": row.schema, "table": row.table, "op": row.op,
            "key": None if row.key is None else msgspec.Raw(row.key),
            "before": None if row.before is None else msgspec.Raw(row.before),
            "unchanged": row.unchanged, "undecodable": row.undecodable,
        }  # fmt: skip
    if place is not None:
        rest |= {"partition": place[0], "offset": place[1]}
    context = {} if event.context is None else _decode_object(event.context)
    return context | {"headrace": rest}


def rfc3339(us: int) -> str | None:
    """us: microseconds since 1970 UTC. None: a year that RFC 3339 can't spell."""
    try:
        return f"{(_EPOCH + timedelta(microseconds=us)).replace(tzinfo=None).isoformat()}Z"
    except OverflowError:
        return None


def _with(raw: bytes, more: dict[str, Any]) -> bytes:
    """A JSON object with more members, none of which it has; its own are kept byte for byte."""
    body = raw.strip()
    return _encode(more) if not body[1:-1].strip() else b"%b,%b" % (body[:-1], _encode(more)[1:])


SHAPES: Final[dict[Envelope, Callable[[CustomerEvent, Place], dict[str, Any] | EventLine]]] = {
    "headrace": whole,
    "cloudevents": cloud_event,
    "debezium": debezium,
    "segment": segment,
}
"""JSON that an event holds as bytes is embedded as it is (msgspec.Raw): encode the result with ``msgspec.json``."""


def encode(envelope: Envelope, event: CustomerEvent, place: Place = None) -> bytes:
    """The event as one JSON object."""
    return _encode(SHAPES[envelope](event, place))


__all__ = ["CONTENT_TYPES", "SHAPES", "UNAVAILABLE", "Envelope", "Place", "encode", "rfc3339"]
