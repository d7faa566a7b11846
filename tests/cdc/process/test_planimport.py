"""Tracking plans of Segment and RudderStack, in the shapes that their APIs answer."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.cdc.process.planimport import imported

INNER: dict[str, Any] = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}


def call(inner: Any, *, part: str = "properties") -> dict[str, Any]:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {part: inner, "context": {}},
    }


def test_segments_public_api() -> None:
    plan, left = imported(
        {
            "data": {
                "rules": [
                    {"type": "TRACK", "key": "Order Completed", "version": 1, "jsonSchema": call(INNER)},
                    {
                        "type": "TRACK",
                        "key": "Order Completed",
                        "version": 2,
                        "jsonSchema": call({**INNER, "required": []}),
                    },
                    {"type": "IDENTIFY", "version": 1, "jsonSchema": call(INNER, part="traits")},
                    {"type": "COMMON", "version": 1, "jsonSchema": call(INNER)},
                ]
            }
        }
    )
    assert plan["track"] == {"Order Completed": {"schema": INNER, "versions": {"2": {**INNER, "required": []}}}}
    assert plan["identify"] == {"schema": INNER}
    assert left == ["common : plans here know track, identify, page, screen, group"]


def test_segments_config_api() -> None:
    plan, left = imported(
        {
            "name": "workspaces/w/tracking-plans/rs_1",
            "display_name": "Shop",
            "rules": {
                "identify_traits": call(INNER, part="traits"),
                "events": [{"name": "Product Viewed", "description": "", "rules": call(INNER), "version": 1}],
            },
        }
    )
    assert plan == {
        "violation": "quarantine",
        "unplanned": "pass",
        "track": {"Product Viewed": {"schema": INNER}},
        "identify": {"schema": INNER},
    }
    assert not left


def test_rudderstacks_data_catalog() -> None:
    traits = {"type": "object", "properties": {"context": {"properties": {"traits": INNER}}}}
    plan, left = imported(
        {
            "data": [
                {"id": "ev_1", "name": "Product Ordered", "eventType": "track", "rules": call(INNER)},
                {"id": "ev_2", "name": "", "eventType": "identify", "rules": traits},
                {
                    "id": "ev_3",
                    "name": "Empty",
                    "eventType": "track",
                    "rules": {"type": "object", "properties": {"context": {}}},
                },
            ]
        }
    )
    assert plan["track"] == {"Product Ordered": {"schema": INNER}}
    assert plan["identify"] == {"schema": INNER}
    assert left == ["track Empty: it says nothing of its properties"]


@pytest.mark.parametrize("document", [{}, [], {"rules": {}}, {"data": [{"name": "x"}]}, "text", None])
def test_what_has_no_rule_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="no rule of an event"):
        imported(document)
