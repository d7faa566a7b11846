"""Events: a customer has one key however the row or the SDK spells it, and the line of an event is exact JSON."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cdc.event import (
    UNCHANGED,
    UNDECODABLE,
    Change,
    Column,
    CustomerEvent,
    RowPart,
    TableSchema,
    customer_key,
    key_text,
)
from headrace.cdc.eventline import event_line

values = st.none() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.text() | st.floats(allow_nan=False)


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        ((42,), "42"),
        (("42",), "42"),
        ((True,), "true"),
        ((False,), "false"),
        ((1.5,), "1.5"),
        (("",), ""),
        (("ü\"'\n",), "ü\"'\n"),
        ((None,), None),
        ((1, None), None),
        ((1, "a"), '["1","a"]'),
        (("1", "a"), '["1","a"]'),
        ((True, 'q"'), '["true","q\\""]'),
    ],
)
def test_a_customer_key_is_canonical_text(parts: tuple[Any, ...], key: str | None) -> None:
    assert customer_key(parts) == key


@given(first=st.lists(values, min_size=2, max_size=3), second=st.lists(values, min_size=2, max_size=3))
def test_two_keys_of_several_columns_are_equal_only_if_each_part_is(first: list[Any], second: list[Any]) -> None:
    same = None not in first + second and [key_text(part) for part in first] == [key_text(part) for part in second]
    keys = customer_key(tuple(first)), customer_key(tuple(second))
    assert (keys[0] == keys[1]) == (same or (None in first and None in second))


def test_unchanged_and_undecodable_are_no_values_and_stay_themselves() -> None:
    assert repr((UNCHANGED, UNDECODABLE)) == "(UNCHANGED, UNDECODABLE)"
    assert copy.deepcopy(UNCHANGED) is UNCHANGED
    assert pickle.loads(pickle.dumps(UNDECODABLE)) is UNDECODABLE
    assert UNCHANGED != "unchanged" and UNCHANGED is not None


def _row(op: Any, **fields: Any) -> RowPart:
    given: dict[str, Any] = {
        "schema": "public", "table": "orders", "op": op, "key": b'{"id":1}', "before": None, "unchanged": (), "xid": 7,
        "ordinal": 0, "is_last": True, "schema_version": 1,
    }  # fmt: skip
    return RowPart(**(given | fields))


def _event(row: RowPart | None = None, **fields: Any) -> CustomerEvent:
    given: dict[str, Any] = {
        "id": "shop-1-0", "kind": "track", "name": "orders inserted", "key": "1", "occurred_us": 1, "committed_us": 2,
        "received_us": 3, "source": "shop", "position": "0/1:0", "properties": b'{"total":1.10}', "row": row,
    }  # fmt: skip
    return CustomerEvent(**(given | fields))


def _line(event: CustomerEvent) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(event_line(event, partition=2, offset=9)))


def test_the_line_of_a_row_event_says_everything() -> None:
    row = _row("update", before=b'{"total":1}', unchanged=("note",), undecodable=("raw",))
    assert _line(_event(row)) == {
        "id": "shop-1-0",
        "partition": 2,
        "offset": 9,
        "kind": "track",
        "name": "orders inserted",
        "customer_key": "1",
        "user_id": None,
        "anonymous_id": None,
        "occurred_us": 1,
        "committed_us": 2,
        "received_us": 3,
        "source": "shop",
        "position": "0/1:0",
        "schema": "public",
        "table": "orders",
        "op": "update",
        "key": {"id": 1},
        "before": {"total": 1},
        "after": {"total": 1.1},
        "unchanged": ["note"],
        "undecodable": ["raw"],
        "transaction_id": 7,
        "ordinal": 0,
        "last_in_transaction": True,
        "schema_version": 1,
    }


@pytest.mark.parametrize(
    ("op", "has_after"), [("insert", True), ("update", True), ("read", True), ("delete", False), ("truncate", False)]
)
def test_only_rows_that_are_there_afterwards_have_an_after_image(op: str, has_after: bool) -> None:
    assert (_line(_event(_row(op)))["after"] is not None) == has_after


def test_a_snapshot_row_has_no_transaction() -> None:
    assert _line(_event(_row("read", xid=0)))["transaction_id"] is None


def test_the_line_of_an_sdk_event_has_properties_and_context_and_no_row() -> None:
    line = _line(_event(context=b'{"ip":null}', user_id="u", anonymous_id="a"))
    assert (line["properties"], line["context"], line["user_id"], line["anonymous_id"]) == (
        {"total": 1.1},
        {"ip": None},
        "u",
        "a",
    )
    assert not {"op", "after", "before", "key"} & set(line)


def test_json_of_an_event_stands_in_its_line_byte_for_byte() -> None:
    exact = b'{"total":1.10,"big":123456789012345678901234567890,"total":2}'
    for event in (_event(properties=exact), _event(_row("insert"), properties=exact)):
        assert exact in msgspec.json.encode(event_line(event, partition=0, offset=0))


def test_fields_are_only_ever_appended() -> None:
    # Logs on disks hold events as arrays: an older log decodes only while these places stand.
    assert CustomerEvent.__struct_fields__[:14] == (
        "id", "kind", "name", "key", "occurred_us", "committed_us", "received_us", "source", "position", "properties", "row",
        "user_id", "anonymous_id", "context",
    )  # fmt: skip
    assert RowPart.__struct_fields__[:11] == (
        "schema", "table", "op", "key", "before", "unchanged", "xid", "ordinal", "is_last", "schema_version", "undecodable",
    )  # fmt: skip
    older = msgspec.msgpack.encode(["i", "track", "n", None, 1, 2, 3, "s", "p", b"{}"])
    assert msgspec.msgpack.decode(older, type=CustomerEvent).row is None


def test_an_event_comes_back_from_its_bytes() -> None:
    event = _event(_row("delete", key=None, before=b"{}"), key=None, context=b"{}")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=CustomerEvent) == event


def test_a_table_is_named_by_schema_and_table() -> None:
    table = TableSchema("public", "orders", (Column("id", 23, "int4"),), (0,))
    assert table.name == "public.orders"
    change = Change(table, "insert", None, (1,), "0/1:0", "i", 1, 0, True, 0)
    assert change.table.columns[0].modifier == -1
