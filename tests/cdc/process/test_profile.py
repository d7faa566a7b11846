"""A plan learned from events: what they have in common, and nothing that only some of them have."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cdc.event import CustomerEvent, Kind
from headrace.cdc.plantext import plan_text
from headrace.cdc.process.profile import ENOUGH, LogProfile
from headrace.cdc.process.validate import Plan, PlanFile


def event(
    properties: dict[str, Any], *, name: str = "Order Completed", kind: Kind = "track", at_us: int = 0
) -> CustomerEvent:
    return CustomerEvent("i", kind, name, "u", at_us, at_us, at_us, "web", "", msgspec.json.encode(properties))


def learned(events: list[CustomerEvent]) -> tuple[str, dict[str, Any]]:
    profile = LogProfile()
    for each in events:
        profile.add(each)
    text = plan_text(profile)
    return text, yaml.safe_load(text)


def test_what_all_events_have_becomes_rules_and_the_rest_a_comment() -> None:
    rng = random.Random(7)
    events = [
        event(
            {
                "order_id": f"{number:08x}-0000-4000-8000-{number:012x}",
                "total": round(rng.uniform(0.5, 900), 2) if number % 4 else 12,
                "currency": rng.choice(["EUR", "USD"]),
                "items": [{"sku": f"s{number}", "quantity": rng.randrange(1, 5)}],
                **({"coupon": f"code {number}"} if number % 10 == 0 else {}),
                "note": None if number % 2 else "x",
            },
            at_us=number * 3_600_000_000,
        )
        for number in range(1000)
    ]
    events[500] = event({**msgspec.json.decode(events[500].properties), "total": "12"}, at_us=500 * 3_600_000_000)
    text, plan = learned(events)
    schema = plan["track"]["Order Completed"]["schema"]
    assert schema["required"] == ["currency", "items", "note", "order_id", "total"]
    fields = schema["properties"]
    assert fields["total"] == {"type": "number", "minimum": 0}
    assert fields["currency"] == {"type": "string", "enum": ["EUR", "USD"]}
    assert fields["order_id"]["pattern"].startswith("^[0-9a-fA-F]{8}")
    assert fields["coupon"] == {"type": "string"}
    assert fields["note"]["type"] == ["null", "string"]
    assert fields["items"]["items"]["properties"]["quantity"] == {"type": "integer", "minimum": 0}
    assert "1,000 seen, 1.0 an hour" in text
    assert "in 10.0%" in text and "taken for a mistake: string 1x" in text and "a UUID" in text
    assert "code 10" not in text, "values of a text that differs are nobody's business"
    judge = Plan(msgspec.convert(plan, PlanFile))
    assert [judge.verdict(each).violation for each in events].count("quarantine") == 1, "the mistake alone"
    assert plan["shadow"] is True


def test_of_few_events_nothing_is_required_and_no_value_is_named() -> None:
    _, plan = learned([event({"plan": "gold", "age": 3})] * (ENOUGH - 1))
    assert plan["track"]["Order Completed"]["schema"] == {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "plan": {"type": "string"}},
    }


def test_kinds_have_sections_and_rows_none() -> None:
    text, plan = learned([event({"email": "a@example.com"}, kind="identify", name="identify")] * ENOUGH)
    assert plan["identify"]["schema"]["required"] == ["email"]
    assert "example.com" not in text and "an e-mail address" in text
    assert "track" not in plan


names = st.text(max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.tuples(names, st.dictionaries(names, values, max_size=4)), min_size=1, max_size=8))
def test_whatever_they_are_the_plan_can_be_read_and_fits_them(calls: list[tuple[str, dict[str, Any]]]) -> None:
    events = [event(properties, name=name) for name, properties in calls]
    text, plan = learned(events)
    judge = Plan(msgspec.convert(plan, PlanFile))
    for each in events:
        assert judge.verdict(each).violation is None, text
