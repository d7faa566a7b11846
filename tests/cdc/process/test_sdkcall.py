"""What a call of an SDK means: whose, when, which id, or the reason why it is no event."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.cdc.decode.sdkpayload import Refusal, SdkCall, read_call
from headrace.cdc.event import CustomerEvent
from headrace.cdc.process.sdkcall import Delivery, Identified, identified

RECEIVED_US = 1_800_000_000_000_000
HERE = Delivery("web", "website", RECEIVED_US)


def result(call: dict[str, Any], delivery: Delivery = HERE) -> Identified | Refusal:
    read = read_call(msgspec.json.encode(call))
    assert isinstance(read, SdkCall), read
    return identified(read, delivery, "f" * 32)


def made(call: dict[str, Any], delivery: Delivery = HERE) -> CustomerEvent:
    found = result(call, delivery)
    assert isinstance(found, Identified), found
    return found.event


def at(**rest: Any) -> Delivery:
    return msgspec.structs.replace(HERE, **rest)


TRACK: dict[str, Any] = {"type": "track", "userId": "u1", "event": "Order Completed", "messageId": "m1"}


def test_a_track_call_becomes_its_event() -> None:
    event = made(
        TRACK
        | {
            "anonymousId": "a1",
            "properties": {"total": 9.9},
            "context": {"page": {"url": "x"}},
            "integrations": {"All": True},
            "channel": "server",
        }
    )
    assert (event.kind, event.name, event.key) == ("track", "Order Completed", "u1")
    assert (event.user_id, event.anonymous_id, event.source) == ("u1", "a1", "web")
    assert (event.properties, event.context) == (b'{"total":9.9}', b'{"page":{"url":"x"}}')
    assert event.sdk is not None
    assert (event.sdk.writer, event.sdk.message_id, event.sdk.channel) == ("website", "m1", "server")
    assert event.sdk.integrations == b'{"All":true}'
    assert event.occurred_us == event.committed_us == event.received_us == RECEIVED_US


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"type": "track", "event": "A"}, "no_customer"),
        ({"type": "track", "event": "A", "userId": "", "anonymousId": None}, "no_customer"),
        ({"type": "track", "userId": "u"}, "no_name"),
        ({"type": "track", "userId": "u", "event": ""}, "no_name"),
        ({"type": "group", "userId": "u"}, "no_group"),
        ({"type": "alias", "userId": "u"}, "no_previous"),
        ({"type": "alias", "previousId": "a"}, "no_previous"),
        ({"type": "merge", "userId": "u"}, "unknown_type"),
        ({"userId": "u", "event": "A"}, "unknown_type"),
        (TRACK | {"userId": True}, "wrong_type"),
        (TRACK | {"properties": [1]}, "wrong_type"),
        (TRACK | {"properties": "text"}, "wrong_type"),
        (TRACK | {"context": 5}, "wrong_type"),
        (TRACK | {"userId": "u" * 1025}, "too_long"),
        (TRACK | {"messageId": "m" * 1025}, "too_long"),
        (TRACK | {"timestamp": "yesterday"}, "bad_time"),
        (TRACK | {"timestamp": "2026-02-30"}, "bad_time"),
        (TRACK | {"timestamp": True}, "bad_time"),
        (TRACK | {"timestamp": 1e300}, "bad_time"),
        (TRACK | {"timestamp": 10**30}, "bad_time"),
        (TRACK | {"timestamp": "9" * 19}, "bad_time"),
    ],
)
def test_what_is_no_event_says_why(call: dict[str, Any], reason: str) -> None:
    found = result(call)
    assert isinstance(found, Refusal)
    assert found.reason == reason
    assert found.detail[0].isupper() or found.detail[0].islower()


def test_the_path_gives_the_type_only_where_the_call_has_none() -> None:
    assert made({"userId": "u"}, at(kind="page")).kind == "page"
    assert made({"userId": "u", "type": "screen"}, at(kind="page")).kind == "screen"
    assert made({"userId": "u", "type": "IDENTIFY"}).kind == "identify"


def test_ids_are_text_whatever_json_made_of_them() -> None:
    assert made(TRACK | {"userId": 42}).key == "42"
    assert made(TRACK | {"userId": 12345678901234567000}).key == "12345678901234567000"
    assert made(TRACK | {"userId": None, "anonymousId": "a"}).key == "a"
    assert made(TRACK | {"userId": None}, at(anonymous_id="h")).key == "h"
    assert made(TRACK, at(anonymous_id="h")).anonymous_id is None, "the header is only for calls without any id"


def test_names_and_properties_are_the_kinds_own() -> None:
    page = made({"type": "page", "userId": "u", "name": "Home", "category": "Docs", "properties": {"p": 1}})
    assert (page.name, page.properties) == ("Home", b'{"p":1}')
    assert page.sdk is not None and page.sdk.category == "Docs"
    assert made({"type": "screen", "userId": "u"}).name == "screen"
    assert (
        made({"type": "identify", "userId": "u", "traits": {"t": 1}, "context": {"traits": {"t": 2}}}).properties
        == b'{"t":1}'
    )
    assert made({"type": "identify", "userId": "u", "context": {"traits": {"t": 2}}}).properties == b'{"t":2}'
    assert made({"type": "identify", "userId": "u", "context": {"traits": None}}).properties == b"{}"
    group = made({"type": "group", "userId": "u", "groupId": 5, "traits": {"g": 1}})
    assert group.sdk is not None and (group.sdk.group_id, group.properties) == ("5", b'{"g":1}')
    alias = made({"type": "alias", "userId": "u", "previousId": "a"})
    assert alias.sdk is not None and (alias.sdk.previous_id, alias.key) == ("a", "u")
    assert made(TRACK | {"properties": []}).properties == b"{}", "PHP's empty map"
    assert made(TRACK | {"properties": None, "context": None}).context is None


@pytest.mark.parametrize(
    ("call", "delivery", "occurred"),
    [
        # The client's clock is a day ahead; the event was 2.5 s before the sending.
        ({"originalTimestamp": "2027-01-16T08:00:00.000Z", "sentAt": "2027-01-16T08:00:02.500Z"}, HERE, -2_500_000),
        ({"timestamp": "2027-01-16T08:00:00Z"}, at(sent_at="2027-01-16T08:00:01Z"), -1_000_000),
        (
            {"timestamp": "2027-01-16T08:00:00Z", "sentAt": "2027-01-16T08:00:03Z"},
            at(sent_at="2027-01-16T08:00:01Z"),
            -3_000_000,
        ),
        ({"timestamp": "2027-01-16T10:00:00+02:00", "sentAt": "2027-01-16T08:00:01"}, HERE, -1_000_000),
        (
            {"originalTimestamp": "2027-01-16T08:00:00Z", "timestamp": "1999-01-01", "sentAt": "2027-01-16T08:00:01Z"},
            HERE,
            -1_000_000,
        ),
        ({"timestamp": 1_700_000_000, "sentAt": 1_700_000_001}, HERE, -1_000_000),
        ({"timestamp": 1_700_000_000_123, "sentAt": "1700000000124"}, HERE, -1_000),
        ({"sentAt": "2020-01-01"}, HERE, 0),
        ({"timestamp": ""}, HERE, 0),
    ],
)
def test_a_clients_clock_is_corrected_by_when_it_sent(call: dict[str, Any], delivery: Delivery, occurred: int) -> None:
    assert made(TRACK | call, delivery).occurred_us - RECEIVED_US == occurred


def test_without_a_sending_time_and_for_history_the_clients_time_stands() -> None:
    second_us = 1_700_000_000_000_000
    assert made(TRACK | {"timestamp": "2023-11-14T22:13:20Z"}).occurred_us == second_us
    assert made(TRACK | {"timestamp": "2023-11-14T22:13:20Z", "sentAt": "never"}).occurred_us == second_us
    history = at(is_history=True, sent_at="2027-01-16T08:00:01Z")
    assert made(TRACK | {"timestamp": "2023-11-14T22:13:20.000001Z"}, history).occurred_us == second_us + 1
    event = made(TRACK | {"timestamp": "2023-11-14T22:13:20Z", "sentAt": "2023-11-14T22:13:21Z"})
    assert event.sdk is not None
    assert (event.sdk.original_timestamp, event.sdk.sent_at) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:21Z")


def test_a_batchs_context_is_for_calls_without_their_own() -> None:
    shared = at(context=b'{"a":1}', integrations=b'{"All":false}')
    event = made(TRACK, shared)
    assert event.context == b'{"a":1}'
    assert event.sdk is not None and event.sdk.integrations == b'{"All":false}'
    assert made(TRACK | {"context": {"b": 2}}, shared).context == b'{"b":2}'


def key_and_body(call: dict[str, Any], delivery: Delivery = HERE) -> tuple[bytes, bytes]:
    found = result(call, delivery)
    assert isinstance(found, Identified)
    return found.key, found.body


def test_a_message_has_one_id_however_often_it_is_sent() -> None:
    call = TRACK | {"properties": {"n": 1}, "timestamp": "2026-01-01T00:00:00Z"}
    first = key_and_body(call | {"sentAt": "2026-01-01T00:00:01Z", "context": {"retry": 0}})
    assert first == key_and_body(call | {"sentAt": "2026-01-01T00:05:00Z", "context": {"retry": 5}}, at(received_us=1))
    assert made(call).id == first[0].hex()
    assert (len(first[0]), len(first[1])) == (16, 8)


def test_another_writer_source_or_message_has_another_id() -> None:
    keys = {
        key_and_body(TRACK)[0],
        key_and_body(TRACK, at(writer="app"))[0],
        key_and_body(TRACK, at(source="other"))[0],
        key_and_body(TRACK | {"messageId": "m2"})[0],
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    "other",
    [
        {"userId": "u2"},
        {"event": "B"},
        {"properties": {"n": 2}},
        {"timestamp": "2026-01-02"},
        {"anonymousId": "a"},
        {"type": "page"},
    ],
)
def test_what_a_message_says_decides_its_body(other: dict[str, Any]) -> None:
    key, body = key_and_body(TRACK)
    other_key, other_body = key_and_body(TRACK | other)
    assert key == other_key
    assert body != other_body


def test_without_a_message_id_an_event_has_the_given_id_and_no_repetitions() -> None:
    found = result(TRACK | {"messageId": ""})
    assert isinstance(found, Identified)
    assert (found.event.id, found.key, found.body) == ("f" * 32, b"", b"")
    assert found.event.sdk is not None and found.event.sdk.message_id is None
