"""Tracking plans: the verdict on each event, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.config import load
from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, Kind
from headrace.cdc.plan import read_plan
from headrace.cdc.process.validate import Plan, PlanFile

ORDER: dict[str, Any] = {
    "type": "object",
    "required": ["order_id"],
    "properties": {"order_id": {"type": "string"}, "total": {"type": "number", "minimum": 0}},
    "additionalProperties": False,
}


def plan(**rest: Any) -> Plan:
    return Plan(msgspec.convert({"track": {"Order Completed": {"schema": ORDER}}} | rest, PlanFile))


def event(properties: dict[str, Any], *, name: str = "Order Completed", kind: Kind = "track") -> CustomerEvent:
    return CustomerEvent("i", kind, name, "u", 1, 1, 1, "web", "", msgspec.json.encode(properties))


def test_an_event_that_fits_goes_on_as_it_is() -> None:
    made = event({"order_id": "1", "total": 2})
    assert plan().judge(made) is made


def test_one_that_does_not_fit_is_told_by_places_of_the_plan_alone() -> None:
    judged = plan().judge(event({"total": "secret", "mail@example.com": 1}))
    assert isinstance(judged, Refusal)
    assert judged.reason == "violation"
    assert "properties/total/type" in judged.detail
    assert "required (order_id)" in judged.detail
    assert "secret" not in judged.detail and "mail" not in judged.detail


def test_a_verdict_may_be_to_let_it_pass() -> None:
    made = event({"total": "x"})
    judging = plan(violation="pass")
    assert judging.judge(made) is made
    assert judging.violations == {"pass": 1, "strip": 0, "quarantine": 0, "shadow": 0}


def test_a_verdict_may_be_to_strip_what_is_at_fault_if_the_rest_then_fits() -> None:
    judging = plan(violation="strip")
    stripped = judging.judge(event({"order_id": "1", "total": -5, "extra": {"a": 1}}))
    assert isinstance(stripped, CustomerEvent)
    assert stripped.properties == b'{"order_id":"1"}'
    assert isinstance(judging.judge(event({"order_id": 5, "total": 1})), Refusal), (
        "without it a required one is missing"
    )
    assert judging.violations == {"pass": 0, "strip": 1, "quarantine": 1, "shadow": 0}


def test_an_event_may_have_a_verdict_of_its_own() -> None:
    judging = plan(track={"Order Completed": {"schema": ORDER, "violation": "pass"}}, violation="quarantine")
    assert isinstance(judging.judge(event({})), CustomerEvent)


def test_unplanned_track_events_pass_or_not_and_other_kinds_need_no_plan() -> None:
    assert isinstance(plan().judge(event({}, name="Other")), CustomerEvent)
    strict = plan(unplanned="quarantine")
    judged = strict.judge(event({}, name="Other"))
    assert isinstance(judged, Refusal)
    assert judged.reason == "unplanned"
    assert isinstance(strict.judge(event({}, name="identify", kind="identify")), CustomerEvent)


def test_in_shadow_everything_passes_and_what_would_not_have_is_counted() -> None:
    judging = plan(shadow=True, violation="strip", unplanned="quarantine")
    for made in (event({"total": "x"}), event({"order_id": "1", "extra": 1}), event({}, name="Other")):
        assert judging.judge(made) is made
    assert judging.violations == {"pass": 0, "strip": 0, "quarantine": 0, "shadow": 3}


def test_an_event_that_says_its_version_is_held_to_that_one() -> None:
    judging = plan(track={"A": {"schema": {"required": ["old"]}, "versions": {"2": {"required": ["new"]}}}})

    def fits(properties: dict[str, Any], context: Any) -> bool:
        made = msgspec.structs.replace(event(properties, name="A"), context=msgspec.json.encode(context))
        return isinstance(judging.judge(made), CustomerEvent)

    second = {"protocols": {"event_version": 2}}
    assert fits({"new": 1}, second) and not fits({"old": 1}, second)
    for other in ({}, {"protocols": {"event_version": "7"}}, {"protocols": None}):
        assert fits({"old": 1}, other) and not fits({"new": 1}, other)


@pytest.mark.parametrize("kind", ["identify", "page", "screen", "group"])
def test_other_kinds_are_planned_by_their_kind(kind: Kind) -> None:
    judging = plan(**{kind: {"schema": {"required": ["email"]}}})
    assert isinstance(judging.judge(event({}, name="any", kind=kind)), Refusal)
    assert isinstance(judging.judge(event({"email": "x"}, name="any", kind=kind)), CustomerEvent)


def test_schemas_that_are_none_and_references_to_elsewhere_are_all_told() -> None:
    with pytest.raises(ValueError, match=r"^track\.A\.schema: ") as told:
        plan(
            track={"A": {"schema": {"type": "nonsense"}}, "B": {"schema": {"$ref": "http://127.0.0.1:1/x"}}},
            page={"schema": {"$ref": "#/$defs/none"}},
        )
    assert [line.split(":")[0] for line in str(told.value).splitlines()] == [
        "track.A.schema",
        "track.B.schema",
        "page.schema",
    ]


def test_a_plan_is_read_from_its_file_and_its_mistakes_are_words(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text("sources: {web: {type: http}}\npipeline: {plan: plan.yaml}\n")
    config = load(tmp_path / "headrace.yaml")
    with pytest.raises(ConfigError, match=r"plan\.yaml can't be read"):
        read_plan(config)
    for text, problem in (
        ("track: {A: {schema: {type: nonsense}}}", "track.A.schema: "),
        ("track: {A: {}}", "it has neither a schema nor versions"),
        ("trakc: {}", "unknown field `trakc`"),
        ("[]", "Expected `object`"),
    ):
        (tmp_path / "plan.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"plan\.yaml can't be used") as told:
            read_plan(config)
        assert any(problem in line for line in told.value.problems), told.value.problems
    (tmp_path / "plan.yaml").write_text("track: {A: {schema: {required: [a]}}}")
    assert read_plan(config) is not None
    (tmp_path / "headrace.yaml").write_text("sources: {web: {type: http}}\n")
    assert read_plan(load(tmp_path / "headrace.yaml")) is None
