"""Hidden columns: no plain value of them is in any part of an event, keys stay joinable, NULL and absent stay what they are."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from headrace.cdc.config import ColumnsConfig, EventConfig, parse
from headrace.cdc.errors import ConfigError, SourceRefused
from headrace.cdc.event import UNCHANGED, UNDECODABLE, Change, Column, CustomerEvent, TableSchema
from headrace.cdc.process.normalise import Normaliser

SALT = "a salt of sixteen and more"
NAMES = ("id", "email", "note", "phone")


def _table(*names: str, key: tuple[int, ...] = (0,), version: int = 1) -> TableSchema:
    return TableSchema("public", "t", tuple(Column(name, 25, "text") for name in names), key, version=version)


def _event(op: Any, before: Any, after: Any, *, table: TableSchema | None = None, **fields: Any) -> CustomerEvent:
    change = Change(table or _table(*NAMES), op, before, after, "0/1:0", "x", 1, 0, True, 0)
    (event,) = Normaliser("shop", {"public.t": EventConfig(**fields)}, SALT).events([change], 0)
    return event


def _hash(text: str) -> str:
    return hmac.new(SALT.encode(), text.encode(), hashlib.sha256).hexdigest()


HIDING = ColumnsConfig(exclude=["note"], hash=["email"], mask={"phone": "***"})


def test_every_image_is_left_out_hashed_and_masked() -> None:
    event = _event("update", (1, "old@x", "old note", "12"), (2, "new@x", "new note", None), columns=HIDING)
    assert msgspec.json.decode(event.properties) == {"id": 2, "email": _hash("new@x"), "phone": None}
    assert event.row is not None and event.row.before is not None
    assert msgspec.json.decode(event.row.before) == {"id": 1, "email": _hash("old@x"), "phone": "***"}
    assert event.row.key == b'{"id":2}'
    told = msgspec.json.encode(event)
    for plain in (b"old@x", b"new@x", b"old note", b"new note"):
        assert plain not in told


def test_a_hashed_key_stays_joinable_and_int_and_digits_are_one() -> None:
    event = _event(
        "delete", (42, "a@x", UNCHANGED, UNCHANGED), None, key="email", columns=ColumnsConfig(hash=["id", "email"])
    )
    assert event.key == event.user_id == _hash("a@x")
    assert event.row is not None and event.row.key is not None
    assert msgspec.json.decode(event.row.key) == {"id": _hash("42")}
    text = _event("insert", None, ("42", None, "n", "1"), key="email", columns=ColumnsConfig(hash=["id", "email"]))
    assert text.row is not None and text.row.key == event.row.key
    assert text.key is None, "NULL stays NULL"


def test_absent_values_are_listed_only_for_columns_that_stay() -> None:
    after = (1, UNCHANGED, UNCHANGED, UNDECODABLE)
    event = _event("update", None, after, columns=HIDING)
    assert event.row is not None
    assert (event.row.unchanged, event.row.undecodable) == (("email",), ("phone",))
    event = _event("update", None, (1, "e", UNDECODABLE, UNCHANGED), columns=ColumnsConfig(include=["id"]))
    assert event.row is not None
    assert (event.properties, event.row.unchanged, event.row.undecodable) == (b'{"id":1}', (), ())


def test_indexes_of_a_composite_key_follow_the_columns_that_stay() -> None:
    table = _table("note", "a", "email", "b", key=(1, 3))
    event = _event("insert", None, ("n", 1, "e", 2), table=table, columns=ColumnsConfig(exclude=["note", "email"]))
    assert event.row is not None
    assert (event.row.key, event.key) == (b'{"a":1,"b":2}', '["1","2"]')


@pytest.mark.parametrize("columns", [ColumnsConfig(exclude=["id"]), ColumnsConfig(mask={"id": "*"})])
def test_a_hidden_row_key_stops(columns: ColumnsConfig) -> None:
    with pytest.raises(SourceRefused, match="row key of public.t"):
        _event("insert", None, (1, "e", "n", "p"), columns=columns)


def test_without_a_salt_nothing_goes_on_in_plain() -> None:
    change = Change(_table(*NAMES), "insert", None, (1, "e", "n", "p"), "0/1:0", "x", 1, 0, True, 0)
    with pytest.raises(SourceRefused, match=r"privacy\.salt"):
        Normaliser("shop", {"public.t": EventConfig(columns=HIDING)}).events([change], 0)


@pytest.mark.parametrize(
    ("later", "is_refused"),
    [
        (("id", "e_mail", "note", "phone"), True),
        (("id", "note", "phone"), False),
        (("id", "email", "note", "phone", "more"), False),
    ],
    ids=["renamed", "dropped", "added"],
)
def test_a_renamed_column_is_never_logged_plain(later: tuple[str, ...], is_refused: bool) -> None:
    normaliser = Normaliser("shop", {"public.t": EventConfig(columns=HIDING)}, SALT)

    def insert(table: TableSchema) -> list[CustomerEvent]:
        row = tuple(range(len(table.columns)))
        return normaliser.events([Change(table, "insert", None, row, "0/1:0", "x", 1, 0, True, 0)], 0)

    insert(_table(*NAMES))
    if is_refused:
        with pytest.raises(SourceRefused, match="renamed"):
            insert(_table(*later, version=2))
    else:
        insert(_table(*later, version=2))


@pytest.mark.parametrize(
    ("events", "privacy", "words"),
    [
        ("{columns: {exclude: [note], hash: [email]}}", "", "privacy.salt"),
        ("{columns: {hash: [email]}}", "{salt: short}", "at least 16"),
        ("{key: email, columns: {exclude: [email]}}", "", "customer key"),
        ("{key: [id, email], columns: {include: [id]}}", "", "customer key"),
        ("{key: email, columns: {mask: {email: x}}}", "", "customer key"),
        ("{occurred_at: made, columns: {exclude: [made]}}", "", "occurred_at"),
        ("{columns: {include: [id], exclude: [note]}}", "", "not both"),
        ("{columns: {include: [id], hash: [email]}}", "", "left out as well"),
    ],
)
def test_what_can_not_be_is_refused_with_its_path(events: str, privacy: str, words: str) -> None:
    text = f"sources: {{s: {{type: postgres, dsn: x}}}}\nevents: {{public.t: {events}}}\nprivacy: {privacy}\n"
    with pytest.raises(ConfigError) as refused:
        parse(yaml.safe_load(text), folder=Path())
    (problem,) = refused.value.problems
    assert words in problem
    assert problem.startswith(("events.public.t", "privacy"))


def test_the_salt_is_in_no_repr() -> None:
    text = f"sources: {{s: {{type: postgres, dsn: x}}}}\nprivacy: {{salt: '{SALT}'}}\n"
    assert SALT not in repr(parse(yaml.safe_load(text), folder=Path()))
