"""Steps of a pipeline: what each does to rows and SDK events, and what it says of a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.config import Config, parse
from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, RowPart, SdkPart
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.process.pipeline import Pipeline
from headrace.cdc.setaside import event_of, letter_of


def config(transforms: list[Any], folder: Path = Path()) -> Config:
    return parse({"sources": {"web": {"type": "http"}}, "pipeline": {"transforms": transforms}}, folder=folder)


def pipeline(*transforms: Any, folder: Path = Path()) -> Pipeline:
    made = build_pipeline(config(list(transforms), folder))
    assert made is not None
    return made


def sdk(
    properties: str = "{}", *, name: str = "Order Completed", user: str = "u1", context: str | None = None
) -> CustomerEvent:
    return CustomerEvent(
        "i1", "track", name, user, 1, 2, 3, "web", "", properties.encode(), None, user, None,
        None if context is None else context.encode(), SdkPart("website", "m1", integrations=b'{"All":true}'),
    )  # fmt: skip


def row(
    after: str, before: str | None = None, *, op: Any = "update", unchanged: tuple[str, ...] = (), is_last: bool = True
) -> CustomerEvent:
    part = RowPart(
        "public", "orders", op, b'{"id":1}', None if before is None else before.encode(), unchanged, 9, 0, is_last, 1
    )
    return CustomerEvent("r1", "track", "orders updated", "7", 1, 2, 3, "shop", "0/1", after.encode(), part, "7")


def passed(event: CustomerEvent, *transforms: Any) -> CustomerEvent:
    found = pipeline(*transforms).one(event)
    assert isinstance(found, CustomerEvent)
    return found


def test_what_no_step_touches_keeps_every_byte() -> None:
    properties = '{"mail": "a@b.c", "n": 1.10, "big": 1e999, "deep": {"x": 1.0}}'
    event = sdk(properties)
    assert passed(event, {"remove": ["properties.nothing"]}) is event
    moved = passed(event, {"rename": {"properties.mail": "properties.email"}})
    assert moved.properties == b'{"n":1.10,"big":1e999,"deep":{"x": 1.0},"email":"a@b.c"}'


@pytest.mark.parametrize(
    ("step", "properties"),
    [
        ({"rename": {"properties.a": "properties.new.place"}}, b'{"b":[{"x":1},{"x":2}],"new":{"place":{"x":1}}}'),
        ({"remove": ["properties.a.x"]}, b'{"a":{},"b":[{"x":1},{"x":2}]}'),
        ({"remove": ["properties.b[*].x"]}, b'{"a":{"x":1},"b":[{},{}]}'),
        ({"remove": ["properties.**.x"]}, b'{"a":{},"b":[{},{}]}'),
        ({"remove": ["properties.b.*"]}, b'{"a":{"x":1},"b":[]}'),
        ({"keep": ["properties.a.x", "properties.gone"]}, b'{"a":{"x":1}}'),
        ({"set": {"properties.c": {"from": "properties.a.x"}}}, b'{"a":{"x":1},"b":[{"x":1},{"x":2}],"c":1}'),
        ({"set": {"properties.who": {"from": "user_id"}, 'properties."a.b"': [1]}}, b'{"a":{"x":1},"b":[{"x":1},{"x":2}],"who":"u1","a.b":[1]}'),
    ],
)  # fmt: skip
def test_steps_on_fields(step: Any, properties: bytes) -> None:
    assert passed(sdk('{"a":{"x":1},"b":[{"x":1},{"x":2}]}'), step).properties == properties


def test_words_of_the_event_are_set_and_the_customer_key_follows_the_user() -> None:
    event = passed(sdk('{"customer":42}'), {"set": {"user_id": {"from": "properties.customer"}}}, {"name": "Bought"})
    assert (event.user_id, event.key, event.name) == ("42", "42", "Bought")
    without = passed(sdk(context='{"ip":"1.2.3.4","os":{"name":"x"}}'), {"remove": ["context.ip"]})
    assert without.context == b'{"os":{"name":"x"}}'


def test_the_images_of_a_row_change_together_and_its_key_stays_whole() -> None:
    event = row('{"id":1,"mail":"new"}', '{"id":1,"mail":"old"}', unchanged=("note",))
    renamed = passed(
        event,
        {
            "rename": {
                "properties.mail": "properties.email",
                "properties.id": "properties.order_id",
                "properties.note": "properties.text",
            }
        },
    )
    assert renamed.properties == b'{"email":"new","order_id":1}'
    assert renamed.row is not None
    assert (renamed.row.before, renamed.row.key, renamed.row.unchanged) == (
        b'{"email":"old","order_id":1}',
        b'{"order_id":1}',
        ("text",),
    )
    removed = passed(event, {"keep": ["properties.mail"]})
    assert removed.properties == b'{"mail":"new"}'
    assert removed.row is not None
    assert (removed.row.before, removed.row.unchanged) == (b'{"id":1,"mail":"old"}', ())
    setting = passed(event, {"set": {"properties.copy": {"from": "properties.mail"}}})
    assert setting.row is not None
    assert (setting.properties, setting.row.before) == (
        b'{"id":1,"mail":"new","copy":"new"}',
        b'{"id":1,"mail":"old","copy":"old"}',
    )


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        ({"names": ["Order Completed"]}, True),
        ({"names": ["Other"]}, False),
        ({"kinds": ["identify"]}, False),
        ({"tables": ["orders"]}, False),
        ({"where": {"properties.total": {"above": 5, "at_most": 10}}}, True),
        ({"where": {"properties.total": {"below": 10}}}, False),
        ({"where": {"properties.total": [1, 10]}}, True),
        ({"where": {"properties.flag": 1}}, False),
        ({"where": {"properties.flag": True, "writer": "website"}}, True),
        ({"where": {"properties.none": {"exists": True}}}, False),
        ({"where": {"properties.other": {"exists": False}}}, True),
        ({"where": {"properties.text": {"matches": "^ab"}}}, True),
        ({"where": {"properties.text": {"not": ["abc", "x"]}}}, False),
        ({"where": {"properties.huge": {"above": 5}}}, False),
    ],
)  # fmt: skip
def test_a_step_concerns_the_events_that_all_its_conditions_fit(when: Any, fits: bool) -> None:
    event = sdk('{"total":10,"flag":true,"none":null,"text":"abc","huge":1e999}')
    assert (pipeline({"drop": True, "when": when}).one(event) is None) == fits


def test_a_table_is_named_with_or_without_its_schema() -> None:
    for table in ("orders", "public.orders"):
        assert pipeline({"drop": True, "when": {"tables": [table]}}).one(row("{}")) is None


def test_a_sample_keeps_all_events_of_the_same_customers_everywhere() -> None:
    half = pipeline({"sample": 0.5})
    kept = {f"c{number}" for number in range(2000) if half.one(sdk(user=f"c{number}")) is not None}
    assert 900 < len(kept) < 1100
    again = pipeline({"sample": 0.5})
    assert {
        f"c{number}" for number in range(2000) if again.one(sdk(user=f"c{number}", name="Other")) is not None
    } == kept
    tenth = pipeline({"sample": 0.1})
    assert {user for user in kept if tenth.one(sdk(user=user)) is not None} < kept
    assert pipeline({"sample": 0}).one(sdk()) is None
    assert pipeline({"sample": 1}).one(sdk()) is not None


def test_heartbeats_and_schema_events_pass_every_step() -> None:
    beat = CustomerEvent("h", "heartbeat", "heartbeat", None, 1, 1, 1, "shop", "", b"{}")
    assert pipeline({"drop": True}).one(beat) is beat


def test_the_last_event_that_goes_on_ends_the_transaction() -> None:
    steps = pipeline({"drop": True, "when": {"where": {"properties.gone": True}}})
    found = steps.many([row("{}", is_last=False), row('{"gone":true}', is_last=True)]).events
    assert [event.row.is_last for event in found if event.row] == [True]
    assert steps.many([row('{"gone":true}')]).events == []


PYTHON = """
def enrich(event):
    if event.properties.get("secret"):
        return undefined_name(event.properties["secret"])
    if event.properties.get("skip"):
        return None
    if event.properties.get("odd"):
        return 5
    event.properties["n"] = event.properties.get("n", 0) + 1
    if event.properties["n"] == 10:
        event.properties["n"] = float("nan")
    event.user_id = "u9"
    return event

async def later(event):
    return event

def two(event, other):
    return event
"""


def test_a_function_changes_drops_and_fails_by_event(tmp_path: Path) -> None:
    file = tmp_path / "t.py"
    file.write_text(PYTHON)
    steps = pipeline("t.py:enrich", {"set": {"properties.after": 1}}, folder=tmp_path)
    event = steps.one(sdk('{"n":1}'))
    assert isinstance(event, CustomerEvent)
    assert (event.properties, event.user_id, event.key) == (b'{"n":2,"after":1}', "u9", "u9")
    assert steps.one(sdk('{"skip":true}')) is None
    failed = steps.one(sdk('{"secret":"sesame"}'))
    assert isinstance(failed, Refusal)
    assert failed.detail == f"NameError in enrich at {file}:4"
    odd = steps.one(sdk('{"odd":true}'))
    assert isinstance(odd, Refusal) and "returned int" in odd.detail
    nan = steps.one(sdk('{"n":9}'))
    assert isinstance(nan, Refusal) and "JSON has no word for" in nan.detail
    assert (steps.counts.dropped, steps.counts.set_aside) == (1, 3)


def test_a_function_with_conditions_and_one_that_looks_at_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("def f(event):\n    return event\n")
    event = sdk('{"n": 1.10}')
    assert pipeline({"python": "t.py:f", "when": {"names": ["Other"]}}, "t.py:f", folder=tmp_path).one(event) is event


def test_a_value_in_the_way_of_a_new_place_sets_the_event_aside() -> None:
    found = pipeline({"set": {"properties.a.b": 1}}).one(sdk('{"a":"text"}'))
    assert found == Refusal("transform_failed", "properties.a.b lies in something that is no object")


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({}, "pipeline.transforms[0]: a step does one thing of name, rename, set, remove, keep, drop, sample, python, parse, locate, lookup, fetch, credit; it has none"),
        ({"drop": True, "sample": 0.5}, "it has drop and sample"),
        ({"renam": {}}, 'pipeline.transforms[0].renam: unknown key; did you mean "rename"?'),
        ({"sample": 2}, "pipeline.transforms[0].sample: expected"),
        ({"remove": ["email"]}, 'pipeline.transforms[0].remove[0]: "email" begins with nothing of an event; known: context.NAME, properties.NAME'),
        ({"rename": {"properties.*": "properties.x"}}, "pipeline.transforms[0].rename.properties.*: * can't stand here"),
        ({"rename": {"user_id": "properties.x"}}, "use set: {properties.x: {from: user_id}}"),
        ({"set": {"properties": 1}}, "name a field of it, such as properties.email"),
        ({"set": {"properties.a..b": 1}}, "is no path"),
        ({"keep": ["name"]}, "keep: name always stays"),
        ({"drop": True, "when": {"kinds": ["tracks"]}}, 'pipeline.transforms[0].when.kinds: "tracks" is no kind of event'),
        ({"drop": True, "when": {"where": {"properties.a": {"abov": 1}}}}, 'when.where.properties.a: unknown test "abov"; known: above'),
        ({"drop": True, "when": {"where": {"properties.a": {"matches": "("}}}}, "in the pattern"),
        ({"drop": True, "when": {"where": {"properties.a": {"above": "x"}}}}, "above: must be a number"),
        ("t.py", '"t.py" is neither a mapping nor FILE.py:FUNCTION'),
        ("none.py:f", "none.py is no file"),
        ("t.py:nothing", 't.py has no function "nothing"'),
        ("t.py:later", "later of"),
        ("t.py:two", "doesn't take one argument, the event"),
        ("bad.py:f", "bad.py:1: invalid syntax"),
        ("raises.py:f", "raises.py:2: ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_path(step: Any, problem: str, tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(PYTHON)
    (tmp_path / "bad.py").write_text("x = = 1\n")
    (tmp_path / "raises.py").write_text("def f(e): return e\n1 / 0\n")
    with pytest.raises(ConfigError) as caught:
        build_pipeline(config([step], tmp_path))
    assert problem in "\n".join(caught.value.problems)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_pipeline(config([{"remove": ["x", "y"]}, {"name": "fine"}, {"keep": ["z"]}]))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "pipeline.transforms[0].remove[0]", "pipeline.transforms[0].remove[1]", "pipeline.transforms[2].keep[0]",
    ]  # fmt: skip


def test_an_event_set_aside_is_read_back_exactly() -> None:
    for event in (
        row('{"id":1,"n":1.10}', '{"id": 1}', unchanged=("note",)),
        sdk('{"n": 1e999}', context='{"ip": "x"}'),
        CustomerEvent("i", "identify", "identify", None, 1, 1, 1, "web", "", b"{}", None, None, "a"),
    ):
        letter = letter_of(event, Refusal("transform_failed", "why"), key=b"k" * 16, body=b"b" * 8)
        kept = event_of(letter)
        assert kept is not None
        assert kept[0] == event
        assert (kept[1].key, kept[1].body) == ((b"k" * 16).hex(), (b"b" * 8).hex())
        assert msgspec.json.decode(letter.context)["form"] == "event"
