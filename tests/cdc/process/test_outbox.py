"""Logical messages with JSON content: an outbox without a table."""

from __future__ import annotations

import pytest

from headrace.cdc.config import ColumnsConfig, EventConfig
from headrace.cdc.event import MESSAGE_SCHEMA, UNDECODABLE, Change, Column, CustomerEvent, TableSchema
from headrace.cdc.process.normalise import Normaliser

TABLE = TableSchema(
    MESSAGE_SCHEMA, "outbox", tuple([Column(name, 25, "text") for name in ("prefix", "content", "content_hex")]), ()
)


def event(content: object, config: EventConfig) -> CustomerEvent:
    row = ("outbox", UNDECODABLE, "\\\\x00ff") if content is None else ("outbox", content, None)
    change = Change(TABLE, "message", None, row, "0/10:3", "s-3", 77, 3, True, 1_000)  # type: ignore[arg-type]  # a test's row
    [made] = Normaliser("s", {"pg_message.outbox": config}).events([change], 5)
    return made


def test_a_json_object_is_the_event() -> None:
    config = EventConfig(content="json", name="type", key="customer", occurred_at="at", insert="Something Told")
    content = (
        '{"type": "Order Completed", "customer": 42, "at": "2026-01-02T03:04:05.25Z", "total": 12.50, "total": 1e400}'
    )
    made = event(content, config)
    assert made.name == "Order Completed"
    assert (made.key, made.user_id) == ("42", "42")
    assert made.occurred_us == 1_767_323_045_250_000
    assert made.properties == content.encode(), "exactly as it was written"
    assert made.row is not None
    assert (made.row.op, made.row.ordinal, made.row.is_last, made.row.xid) == ("message", 3, True, 77)


def test_what_a_content_lacks_has_a_default() -> None:
    config = EventConfig(
        content="json", name="type", key=["shop", "customer"], occurred_at="at", insert="Something Told"
    )
    made = event('{"type": 5, "customer": "a", "at": "yesterday"}', config)
    assert (made.name, made.key, made.occurred_us) == ("Something Told", None, 1_000)
    assert event('{"shop": 1, "customer": "a"}', config).key == '["1","a"]'
    assert event("{}", EventConfig(content="json")).name == "outbox inserted"


@pytest.mark.parametrize("content", ["plain", "[1]", '{"a": ', "", None])
def test_any_other_content_stays_as_it_is(content: str | None) -> None:
    made = event(content, EventConfig(content="json", key="customer"))
    assert made.name == "outbox sent"
    assert made == event(content, EventConfig())


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="content: json"):
        EventConfig(name="type")
    with pytest.raises(ValueError, match="columns"):
        EventConfig(content="json", columns=ColumnsConfig(exclude=["a"]))
