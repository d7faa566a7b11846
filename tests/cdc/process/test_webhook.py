"""Rules that make events of webhooks: each place, each way it can be missing, and bytes that stay as they are."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.event import CustomerEvent
from headrace.cdc.process.sdkcall import Identified
from headrace.cdc.process.webhook import Came, Outcome, Rule, WebhookMap
from headrace.cdc.sources.webhook_config import Preset, preset

RECEIVED_US = 1_800_000_000_000_000


def mapped(
    rules: list[Rule], body: Any, *, each: str = "", form_field: str = "", ignores: bool = False, **headers: str
) -> list[Outcome]:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    made = WebhookMap("crm", tuple(rules), each=each, form_field=form_field, ignores_others=ignores)
    came = Came(RECEIVED_US, {name.replace("_", "-"): value for name, value in headers.items()})
    unique = (f"{number:032x}" for number in itertools.count())
    return [outcome for _, _, outcome in made.read(raw, came, unique)]


def event(outcome: Outcome) -> CustomerEvent:
    assert isinstance(outcome, Identified), outcome
    return outcome.event


def reasons(outcomes: list[Outcome]) -> list[str | None]:
    return [outcome.reason if isinstance(outcome, Refusal) else None for outcome in outcomes]


def test_a_body_becomes_the_event_that_its_rule_says() -> None:
    rule = Rule(
        name="Deal {data.state}",
        key="data.who | data.owner.id",
        id="id",
        occurred_at="at",
        properties={"sum": "data.sums.1"},
    )
    body = {"id": "e1", "at": 1_700_000_000, "data": {"state": "won", "who": None, "owner": {"id": 42}, "sums": [1, 2]}}
    found = event(mapped([rule], body)[0])
    assert (found.kind, found.name, found.key, found.properties) == ("track", "Deal won", "42", b'{"sum":2}')
    assert (found.occurred_us, found.received_us) == (1_700_000_000_000_000, RECEIVED_US)
    assert found.sdk is not None
    assert (found.sdk.message_id, found.source, found.user_id) == ("e1", "crm", None)


def test_the_first_rule_that_fits_counts_and_others_are_set_aside_or_left_out() -> None:
    rules = [
        Rule(when={"type": "contact.*", "n": "1"}, kind="identify", key="id"),
        Rule(when={"type": ["ping", "a?[b]"]}, kind="ignore"),
        Rule(when={"type": "contact.*"}, name="{type}"),
    ]
    assert event(mapped(rules, {"type": "contact.new", "n": 1, "id": "x"})[0]).kind == "identify"
    assert event(mapped(rules, {"type": "contact.new", "n": 2})[0]).name == "contact.new"
    assert mapped(rules, {"type": "ping"}) == [None]
    assert mapped(rules, {"type": "a?[b]"}) == [None]
    assert reasons(mapped(rules, {"type": "axb"})) == ["unmapped"]
    assert mapped(rules, {"type": "else"}, ignores=True) == [None]


@pytest.mark.parametrize(
    ("rule", "body", "reason"),
    [
        (Rule(name="A", key="k"), {}, "no_customer"),
        (Rule(name="A", key="k"), {"k": ""}, "no_customer"),
        (Rule(name="A", key=["k", "l"]), {"k": 1}, "no_customer"),
        (Rule(name="A", key="k"), {"k": {"x": 1}}, "wrong_type"),
        (Rule(name="A", key="k"), {"k": "x" * 1025}, "too_long"),
        (Rule(name="A", id="i"), {}, "no_id"),
        (Rule(name="A {n}"), {}, "unmapped"),
        (Rule(name="A", properties="p"), {"p": [1]}, "unmapped"),
        (Rule(name="A"), [1], "unmapped"),
        (Rule(name="A", occurred_at="t"), {"t": "soon"}, "bad_time"),
        (Rule(name="A"), b"{", "not_json"),
        (Rule(name="A"), b"", "not_json"),
        (Rule(name="A"), b'{"a": NaN}', "not_json"),
        (Rule(name="A"), b'{"a": "\xff"}', "not_utf8"),
        (Rule(name="A"), b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "too_deep"),
        (Rule(name="A"), b"[" * 300 + b"1" * 500 + b"]" * 300, "too_deep"),
    ],
)  # fmt: skip
def test_what_cant_be_mapped_says_why(rule: Rule, body: Any, reason: str) -> None:
    assert reasons(mapped([rule], body)) == [reason]


def test_a_missing_key_is_taken_or_left_out_as_the_rule_says() -> None:
    assert event(mapped([Rule(name="A", key="k", without_key="take")], {})[0]).key is None
    assert mapped([Rule(name="A", key="k", without_key="ignore")], {}) == [None]


def test_values_stay_the_bytes_they_were() -> None:
    body = b'{"o": {"big":12345678901234567890123, "price":0.1000000000000000055511151231257827, "s":"\\u00e9", "s":"\\ud83d"}}'
    assert event(mapped([Rule(name="A", properties="o")], body)[0]).properties == (
        b'{"big":12345678901234567890123, "price":0.1000000000000000055511151231257827, "s":"\\u00e9", "s":"\\ufffd"}'
    )
    assert (
        event(mapped([Rule(name="A", properties={"x": "o.big"})], body)[0]).properties
        == b'{"x":12345678901234567890123}'
    )


def test_repetitions_share_id_and_hash_and_what_is_left_out_doesnt_count() -> None:
    rule = Rule(name="A", id="id", leave_out=["attempt"])
    first, again, other = (
        mapped([rule], {"id": 1, "attempt": attempt, "x": x})[0] for attempt, x in [(1, 1), (2, 1), (3, 2)]
    )
    assert isinstance(first, Identified)
    assert isinstance(again, Identified)
    assert isinstance(other, Identified)
    assert (first.key, first.body, first.event.id) == (again.key, again.body, again.event.id)
    assert (first.key == other.key, first.body == other.body) == (True, False)


def test_without_an_id_each_is_an_event_of_its_own() -> None:
    both = [
        found for found in mapped([Rule(name="A")], b'[{"a":1},{"a":1}]', each=".") if isinstance(found, Identified)
    ]
    assert [found.key for found in both] == [b"", b""]
    assert both[0].event.id != both[1].event.id


def test_each_element_is_mapped_alone() -> None:
    rule = Rule(name="{t}", id="i")
    found = mapped([rule], {"list": [{"t": "a", "i": 1}, {"i": 2}, 5, {"t": "b", "i": 4}]}, each="list")
    assert reasons(found) == [None, "unmapped", "no_id", None]
    assert reasons(mapped([rule], {"list": {}}, each="list")) == ["unmapped"]


def test_forms_are_objects_or_hold_json() -> None:
    rule = Rule(name="{type}", key="data[id]", without_key="take")
    form = {"content_type": "application/x-www-form-urlencoded; charset=utf-8"}
    found = event(mapped([rule], b"type=sub%C3%A9&data%5Bid%5D=7&x=1&x=2&y=", **form)[0])
    assert (found.name, found.key) == ("subé", "7")
    assert json.loads(found.properties) == {"type": "subé", "data[id]": "7", "x": ["1", "2"], "y": ""}
    assert event(mapped([rule], b"payload=%7B%22type%22%3A%22t%22%7D", form_field="payload", **form)[0]).name == "t"
    assert reasons(mapped([rule], b"a=1", form_field="payload", **form)) == ["unmapped"]
    assert reasons(mapped([rule], b"a=%ff", **form)) == ["not_utf8"]
    assert reasons(mapped([rule], b"&".join(b"a=1" for _ in range(1001)), **form)) == ["too_large"]


@pytest.mark.parametrize("place", ["", "a..b", "a b", "header:", "{a}", "a |", "query:x"])
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="is no place"):
        Rule(name="A", key=place)


def of_preset(name: Preset, body: Any, **headers: str) -> CustomerEvent:
    return event(mapped(preset(name).map, body, form_field=preset(name).form_field, **headers)[0])


def test_the_presets_read_what_their_services_send() -> None:
    paid = {
        "id": "evt_1",
        "object": "event",
        "type": "invoice.paid",
        "created": 1_700_000_000,
        "data": {"object": {"id": "in_1", "customer": "cus_1"}},
    }
    found = of_preset("stripe", paid)
    assert (found.kind, found.name, found.key, found.occurred_us) == (
        "track",
        "invoice.paid",
        "cus_1",
        1_700_000_000_000_000,
    )
    found = of_preset(
        "stripe", paid | {"type": "customer.updated", "data": {"object": {"id": "cus_1", "email": "a@b.c"}}}
    )
    assert (found.kind, found.key, json.loads(found.properties)["email"]) == ("identify", "cus_1", "a@b.c")
    assert of_preset("stripe", paid | {"type": "payout.paid", "data": {"object": {}}}).key is None
    found = of_preset(
        "github", {"action": "opened", "sender": {"login": "octo"}}, x_github_event="issues", x_github_delivery="d1"
    )
    assert (found.name, found.key) == ("issues opened", "octo")
    assert found.sdk is not None
    assert found.sdk.message_id == "d1"
    assert mapped(preset("github").map, {"zen": "z"}, x_github_event="ping") == [None]
    shopify = {"x_shopify_webhook_id": "w", "x_shopify_triggered_at": "2026-01-01T00:00:00.5Z"}
    found = of_preset("shopify", {"id": 1, "customer": {"id": 207119551}}, x_shopify_topic="orders/create", **shopify)
    assert (found.name, found.key, found.occurred_us % 1_000_000) == ("orders/create", "207119551", 500_000)
    assert of_preset("shopify", {"id": 9}, x_shopify_topic="customers/update", **shopify).kind == "identify"
    assert (
        of_preset(
            "standard", {"type": "user.created", "timestamp": "2026-01-01T00:00:00Z", "data": {"a": 1}}, webhook_id="m"
        ).name
        == "user.created"
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary() | JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    each=st.sampled_from(["", "."]),
)
def test_any_bytes_are_events_or_reasons_and_events_can_be_read(body: bytes, each: str) -> None:
    rules = [Rule(name="{a}", key="b | a", id=["a", "b.0"], occurred_at="b", without_key="take"), Rule(name="A")]
    for form in ({}, {"content_type": "application/x-www-form-urlencoded"}):
        for outcome in mapped(rules, body, each=each, **form):
            if isinstance(outcome, Identified):
                assert isinstance(msgspec.json.decode(outcome.event.properties), dict)
            else:
                assert isinstance(outcome, Refusal)
