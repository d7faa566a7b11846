"""The shapes that others know, held against the CloudEvents SDK and against messages as the projects' own documents print them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from multidict import MultiDict

from headrace.cdc.event import CustomerEvent, Kind, Op, RowPart, SdkPart
from headrace.sinks.envelope import CONTENT_TYPES, SHAPES, UNAVAILABLE, Envelope, encode
from headrace.sinks.query import Query, RequestError
from headrace.sinks.template import Subject, Template
from shop_log import heartbeat, order_event

AT_US = 1_700_000_000_123_456


def shaped(envelope: Envelope, event: CustomerEvent, place: tuple[int, int] | None = None) -> Any:
    return msgspec.json.decode(encode(envelope, event, place))


def row(op: Op, after: bytes = b"{}", **more: Any) -> CustomerEvent:
    fields: dict[str, Any] = {
        "schema": "inventory",
        "table": "customers",
        "op": op,
        "key": b'{"id":1004}',
        "before": None,
    }
    fields |= {"unchanged": (), "xid": 571, "ordinal": 2, "is_last": True, "schema_version": 1} | more
    return CustomerEvent(
        "shop-1",
        "track",
        f"customers {op}",
        "1004",
        AT_US,
        AT_US,
        AT_US + 5_000_000,
        "shop",
        "0/1:2",
        after,
        RowPart(**fields),
    )


def call(kind: Kind, said: bytes = b'{"plan":"pro"}', **sdk: Any) -> CustomerEvent:
    return CustomerEvent(
        "f00d", kind, "Order Completed", "u1", AT_US, AT_US, AT_US, "web", "", said, None, "u1", "v1", b'{"ip":"::1"}',
        SdkPart("shop", "m-1", **sdk),
    )  # fmt: skip


def test_every_shape_has_a_content_type() -> None:
    assert set(SHAPES) == set(CONTENT_TYPES) == set(get_args(Envelope))


@pytest.mark.parametrize("event", [order_event(1), heartbeat(2), row("delete"), call("identify")], ids=lambda e: e.name)
@pytest.mark.parametrize("place", [None, (3, 1 << 40)])
def test_the_cloudevents_sdk_takes_what_we_make(event: CustomerEvent, place: tuple[int, int] | None) -> None:
    read = JSONFormat().read(CloudEvent, encode("cloudevents", event, place))
    assert isinstance(read, CloudEvent)
    assert (read.get_id(), read.get_source(), read.get_type()) == (
        event.id, f"/headrace/{event.source}", f"headrace.{event.kind}",
    )  # fmt: skip
    assert read.get_time() == datetime.fromtimestamp(event.occurred_us / 1e6, UTC)
    assert read.get_subject() == event.key
    assert read.get_extension("hrpos") == event.position
    assert read.get_extension("hroffset") == (None if place is None else str(1 << 40))
    assert read.get_data()["id"] == event.id and ("offset" in read.get_data()) == (place is not None)


def test_a_debezium_update_is_as_its_documentation_prints_one() -> None:
    """Debezium's PostgreSQL connector, "update events": the value's payload."""
    made = shaped(
        "debezium",
        row("update", b'{"id":1004,"first_name":"Anne Marie"}', before=b'{"id":1004,"first_name":"Anne"}'),
        (0, 7),
    )
    assert list(made) == ["before", "after", "source", "op", "ts_ms", "ts_us", "ts_ns", "transaction"]
    assert (made["op"], made["before"]["first_name"], made["after"]["first_name"]) == ("u", "Anne", "Anne Marie")
    source = made["source"]
    assert {"version", "connector", "name", "ts_ms", "snapshot", "schema", "table", "txId"} <= source.keys()
    assert (source["name"], source["schema"], source["table"], source["txId"]) == (
        "shop",
        "inventory",
        "customers",
        571,
    )
    # Its own ts_ms is when the change was processed, the source's when it was made.
    assert (source["ts_ms"], made["ts_ms"]) == (AT_US // 1_000, AT_US // 1_000 + 5_000)
    assert (source["snapshot"], source["offset"]) == ("false", 7)


def test_debezium_letters_for_each_operation() -> None:
    image = b'{"id":1004}'
    after = {"insert": "c", "update": "u", "read": "r"}
    for op, letter in after.items():
        made = shaped("debezium", row(op, image))  # type: ignore[arg-type]
        assert (made["op"], made["before"], made["after"]) == (letter, None, {"id": 1004})
    assert shaped("debezium", row("read", image))["source"]["snapshot"] == "true"
    gone = shaped("debezium", row("delete", before=b'{"id":1004,"a":1}'))
    assert (gone["op"], gone["before"], gone["after"]) == ("d", {"id": 1004, "a": 1}, None)
    assert shaped("debezium", row("delete"))["before"] == {"id": 1004}
    empty = shaped("debezium", row("truncate", key=None))
    assert (empty["op"], empty["before"], empty["after"]) == ("t", None, None)


@pytest.mark.parametrize("image", [b'{"id":1}', b"{}", b'{\r\n "id": 1 }\n'])
def test_what_the_server_did_not_send_is_marked_as_debezium_marks_it(image: bytes) -> None:
    made = shaped("debezium", row("update", image, unchanged=("note",), undecodable=("raw",)))
    assert made["after"] == msgspec.json.decode(image) | {"note": UNAVAILABLE, "raw": UNAVAILABLE}
    assert made["source"]["undecodable"] == ["raw"]


@pytest.mark.parametrize(
    ("columns", "content"),
    [({"content": "hé"}, "hé".encode()), ({"content": None, "content_hex": "00ff"}, b"\x00\xff")],
)
def test_a_debezium_message_holds_the_bytes_in_base64(columns: dict[str, Any], content: bytes) -> None:
    event = row("message", msgspec.json.encode({"prefix": "app"} | columns), schema="pg_message", table="app", key=None)
    made = shaped("debezium", event)
    assert made["message"] == {"prefix": "app", "content": base64.b64encode(content).decode()}
    assert made["op"] == "m" and "after" not in made


def test_debezium_schema_heartbeat_and_sdk_call() -> None:
    said = {"version": 2, "oid": 5, "columns": [{"name": "id", "type": "int8", "modifier": -1}], "key": ["id"]}
    (change,) = shaped("debezium", row("schema", msgspec.json.encode(said)))["tableChanges"]
    assert change["id"] == '"inventory"."customers"'
    assert change["table"] == {
        "primaryKeyColumnNames": ["id"],
        "columns": [{"name": "id", "typeName": "int8", "position": 1}],
    }
    assert shaped("debezium", heartbeat(1)) == {"ts_ms": 1_700_000_001_000}
    made = shaped("debezium", call("identify"))
    assert (made["op"], made["source"]["schema"], made["source"]["table"]) == ("c", "headrace", "identify")
    assert made["after"]["user_id"] == "u1" and made["after"]["properties"] == {"plan": "pro"}


def test_an_sdk_call_is_the_segment_message_that_it_was() -> None:
    made = shaped("segment", call("track", channel="web", sent_at="2023-11-14T22:13:21Z"))
    assert made == {
        "type": "track", "messageId": "m-1", "userId": "u1", "anonymousId": "v1", "event": "Order Completed", "channel": "web",
        "properties": {"plan": "pro"}, "context": {"ip": "::1"}, "sentAt": "2023-11-14T22:13:21Z",
        "timestamp": "2023-11-14T22:13:20.123456Z", "receivedAt": "2023-11-14T22:13:20.123456Z",
    }  # fmt: skip
    assert shaped("segment", call("group", group_id="g"))["traits"] == {"plan": "pro"}
    assert shaped("segment", call("group", group_id="g"))["groupId"] == "g"
    alias = shaped("segment", call("alias", b"{}", previous_id="old"))
    assert alias["previousId"] == "old" and "properties" not in alias
    page = shaped("segment", call("page", category="shop"))
    assert (page["name"], page["category"]) == ("Order Completed", "shop") and "event" not in page


def test_a_row_is_a_segment_track_with_the_rest_in_its_context() -> None:
    made = shaped("segment", row("delete", before=b'{"id":1004}'), (1, 2))
    assert (made["type"], made["event"], made["userId"], made["messageId"]) == (
        "track", "customers delete", "1004", "shop-1",
    )  # fmt: skip
    rest = made["context"]["headrace"]
    assert (rest["op"], rest["before"], rest["partition"], rest["offset"]) == ("delete", {"id": 1004}, 1, 2)


def test_format_and_envelope_are_one_parameter() -> None:
    for name in ("format", "envelope"):
        assert Query.parse(MultiDict({name: "debezium"}), partitions=1, is_pull=True).envelope == "debezium"
    with pytest.raises(RequestError, match="one of the two"):
        Query.parse(MultiDict({"format": "segment", "envelope": "segment"}), partitions=1, is_pull=True)


def test_templates_know_the_shapes() -> None:
    for name, field in (("cloudevents", "{cloudevent}"), ("debezium", "{debezium}"), ("segment", "{segment}")):
        made = msgspec.json.decode(Template(field).json(Subject(order_event(3))))
        assert made == shaped(name, order_event(3))  # type: ignore[arg-type]
