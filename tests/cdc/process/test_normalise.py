"""Normalisation: which event a row change becomes, whose it is, when it happened; absent values stay absent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cdc.config import EventConfig
from headrace.cdc.event import UNCHANGED, UNDECODABLE, Change, Column, CustomerEvent, RowPart, TableSchema
from headrace.cdc.process.normalise import Normaliser

COLUMNS = ("id", "customer_id", "note", "made")
ORDERS = TableSchema("public", "orders", tuple(Column(name, 25, "text") for name in COLUMNS), (0,), version=4)
COMMITTED_US, RECEIVED_US = 1_700_000_000_000_000, 1_700_000_000_000_777


def _change(op: Any, before: Any, after: Any, table: TableSchema = ORDERS) -> Change:
    return Change(table, op, before, after, "0/AB:3", "shop-AB-3", 9, 3, True, COMMITTED_US)


def _event(op: Any, before: Any, after: Any, *, table: TableSchema = ORDERS, **config: Any) -> CustomerEvent:
    events = {table.name: EventConfig(**config)} if config else {}
    (event,) = Normaliser("shop", events).events([_change(op, before, after, table)], RECEIVED_US)
    return event


def _row(event: CustomerEvent) -> RowPart:
    assert event.row is not None
    return event.row


def _json(data: bytes | None) -> Any:
    return None if data is None else msgspec.json.decode(data)


ROW = (1, 7, "n", "2024-02-29 12:00:00+00")
AFTER = dict(zip(COLUMNS, ROW, strict=True))


def test_without_configuration_a_row_is_a_track_event_keyed_by_its_primary_key() -> None:
    event = _event("insert", None, ROW)
    assert msgspec.structs.astuple(event)[:9] == (
        "shop-AB-3", "track", "orders inserted", "1", COMMITTED_US, COMMITTED_US, RECEIVED_US, "shop", "0/AB:3",
    )  # fmt: skip
    assert _json(event.properties) == AFTER
    assert event.row == RowPart("public", "orders", "insert", b'{"id":1}', None, (), 9, 3, True, 4)
    assert event.user_id is None  # an order is no person


@pytest.mark.parametrize(
    ("op", "before", "after", "default", "named"),
    [
        ("insert", None, ROW, "orders inserted", "I"),
        ("read", None, ROW, "orders inserted", "I"),
        ("update", None, ROW, "orders updated", "U"),
        ("delete", ROW, None, "orders deleted", "D"),
        ("truncate", None, None, "orders truncated", "orders truncated"),
    ],
)
def test_each_operation_has_a_name(op: str, before: Any, after: Any, default: str, named: str) -> None:
    assert _event(op, before, after).name == default
    assert _event(op, before, after, insert="I", update="U", delete="D").name == named
    assert _row(_event(op, before, after)).op == op


def test_one_name_leaves_the_others_at_their_defaults() -> None:
    assert _event("insert", None, ROW, insert="Order Completed").name == "Order Completed"
    assert _event("update", None, ROW, insert="Order Completed").name == "orders updated"


def test_the_configured_column_is_the_customer_and_the_user() -> None:
    event = _event("insert", None, ROW, key="customer_id")
    assert (event.key, event.user_id, _row(event).key) == ("7", "7", b'{"id":1}')


def test_several_columns_make_one_customer_key() -> None:
    assert _event("insert", None, ROW, key=["customer_id", "note"]).key == '["7","n"]'


def test_an_identify_table_names_its_person_by_primary_key() -> None:
    event = _event("insert", None, ROW, kind="identify")
    assert (event.kind, event.key, event.user_id) == ("identify", "1", "1")


def test_a_null_customer_is_none() -> None:
    event = _event("insert", None, (1, None, None, None), key="customer_id")
    assert (event.key, event.user_id) == (None, None)
    assert _json(event.properties) == dict.fromkeys(COLUMNS) | {"id": 1}


def test_a_missing_customer_column_gives_no_customer_rather_than_another() -> None:
    assert _event("insert", None, ROW, key=["customer_id", "gone"]).key is None


def test_a_delete_with_only_the_key_tells_the_key_and_nothing_else() -> None:
    event = _event("delete", (1, UNCHANGED, UNCHANGED, UNCHANGED), None, key="customer_id")
    assert (event.properties, _row(event).key, _row(event).before) == (b"{}", b'{"id":1}', b'{"id":1}')
    assert event.key is None  # the server didn't say whose order it was
    assert _event("delete", (1, UNCHANGED, UNCHANGED, UNCHANGED), None).key == "1"


def test_a_delete_with_the_whole_row_knows_its_customer() -> None:
    event = _event("delete", ROW, None, key="customer_id")
    assert (event.key, _json(_row(event).before), event.properties) == ("7", AFTER, b"{}")


def test_unsent_values_are_listed_and_absent_and_never_null() -> None:
    event = _event("update", None, (1, None, UNCHANGED, UNCHANGED))
    assert _json(event.properties) == {"id": 1, "customer_id": None}
    assert _row(event).unchanged == ("note", "made")
    assert _row(event).undecodable == ()


def test_bytes_that_are_no_text_are_listed_and_absent() -> None:
    event = _event("insert", None, (1, 7, UNDECODABLE, None))
    assert _json(event.properties) == {"id": 1, "customer_id": 7, "made": None}
    assert (_row(event).undecodable, _row(event).unchanged) == (("note",), ())
    assert _event("insert", None, (1, UNDECODABLE, "", None), key="customer_id").key is None


def test_a_key_change_is_one_event_with_the_new_key_and_the_old_one_before() -> None:
    event = _event("update", (1, UNCHANGED, UNCHANGED, UNCHANGED), (2, 7, "n", None))
    assert (event.key, _row(event).key, _row(event).before) == ("2", b'{"id":2}', b'{"id":1}')


def test_a_key_that_was_not_sent_again_is_taken_from_the_old_image() -> None:
    before = ("long", UNCHANGED, UNCHANGED, UNCHANGED)
    for config in ({}, {"key": "id"}, {"kind": "identify"}):
        event = _event("update", before, (UNCHANGED, 7, "n", None), **config)
        assert (event.key, _row(event).key) == ("long", b'{"id":"long"}'), config
        assert _row(event).unchanged == ("id",)
    assert _event("update", before, (UNCHANGED, UNCHANGED, "n", None), key="customer_id").key is None


def test_a_table_without_a_key_has_no_row_key_and_no_customer() -> None:
    table = TableSchema("public", "orders", ORDERS.columns, ())
    event = _event("insert", None, ROW, table=table)
    assert (event.key, _row(event).key) == (None, None)


def test_a_truncate_has_neither_key_nor_images() -> None:
    event = _event("truncate", None, None, key="customer_id")
    assert (event.key, event.properties, _row(event).key, _row(event).before) == (None, b"{}", None, None)


@pytest.mark.parametrize(
    ("made", "occurred_us"),
    [
        ("2024-02-29 12:00:00+00", 1_709_208_000_000_000),
        ("2024-02-29", 1_709_164_800_000_000),
        ("infinity", COMMITTED_US),
        ("no time", COMMITTED_US),
        (None, COMMITTED_US),
        (5, COMMITTED_US),
        (UNCHANGED, COMMITTED_US),
        ("5874897-12-31", COMMITTED_US),
    ],
)
def test_when_it_happened_is_the_configured_column_or_the_commit(made: Any, occurred_us: int) -> None:
    event = _event("insert", None, (1, 7, None, made), occurred_at="made")
    assert (event.occurred_us, event.committed_us) == (occurred_us, COMMITTED_US)
    assert _event("insert", None, ROW, occurred_at="gone").occurred_us == COMMITTED_US


def test_a_new_version_of_a_table_is_planned_anew() -> None:
    normaliser = Normaliser("shop", {"public.orders": EventConfig(key="customer_id")})
    wider = TableSchema("public", "orders", (Column("new", 25, "text"), *ORDERS.columns), (1,), version=5)
    changes = [
        _change("insert", None, ROW),
        _change("insert", None, ("x", *ROW), wider),
        _change("insert", None, ROW),
    ]
    events = normaliser.events(changes, RECEIVED_US)
    assert [event.key for event in events] == ["7", "7", "7"]
    assert [_json(event.properties) for event in events] == [AFTER, {"new": "x"} | AFTER, AFTER]
    assert [_row(event).schema_version for event in events] == [4, 5, 4]


def test_thousands_of_announcements_leave_every_plan_right() -> None:
    normaliser = Normaliser("shop", {})
    for number in range(10_050):
        table = TableSchema("public", f"t{number}", (Column(f"c{number}", 23, "int4"),), (0,))
        (event,) = normaliser.events([_change("insert", None, (number,), table)], 0)
        assert (event.name, event.key) == (f"t{number} inserted", str(number))


def test_a_heartbeat_is_an_event_of_nobody_whose_id_is_its_time() -> None:
    event = Normaliser("shop", {}).heartbeat(5, 6, "0/1")
    assert (event.id, event.kind, event.key, event.row) == ("shop-hb-5", "heartbeat", None, None)
    assert (event.occurred_us, event.committed_us, event.received_us, event.position) == (5, 5, 6, "0/1")


_values = (
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.text() | st.floats(allow_nan=False, allow_infinity=False)
    | st.just(UNCHANGED) | st.just(UNDECODABLE)
)  # fmt: skip


@given(row=st.tuples(*[_values] * 4))
def test_every_value_that_is_there_comes_back_exactly_and_no_other(row: tuple[Any, ...]) -> None:
    event = _event("update", None, row)
    came = _json(event.properties)
    absent = {*_row(event).unchanged, *_row(event).undecodable}
    assert came.keys() | absent == set(COLUMNS) and not came.keys() & absent
    for name, value in zip(COLUMNS, row, strict=True):
        if name in came:
            assert repr(came[name]) == repr(value)
        else:
            assert (value is UNCHANGED) == (name in _row(event).unchanged)


@pytest.mark.parametrize("name", ['quo"ted', "back\\slash", "two\nlines", "c1", "", "Käse ☃"])
def test_any_column_name_stands_in_properties_and_key_as_it_is(name: str) -> None:
    table = TableSchema("public", "odd", (Column(name, 25, "text"), Column("plain", 25, "text")), (0,))
    event = _event("insert", None, ("a", "b"), table=table)
    assert _json(event.properties) == {name: "a", "plain": "b"}
    assert _json(_row(event).key) == {name: "a"}
