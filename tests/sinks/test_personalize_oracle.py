"""Our Personalize requests against botocore's own serialiser, validator and signer, on random calls, and against its model's limits.

botocore checks no maximum and no pattern itself, so these are read from its model. The default run tries 300 calls; the campaign 10,000.
"""

from __future__ import annotations

import json
import random
import string
import time
from typing import Any

import pytest

botocore_serialize = pytest.importorskip("botocore.serialize")
import botocore.validate

from headrace.sinks import personalizemodel as model
from headrace.sinks.base import Unfit
from headrace.sinks.sigv4 import Credentials, Signer
from personalize_stub import _MODEL, ACCESS_KEY, SECRET_KEY, problems, signature

SERIALIZER = botocore_serialize.create_serializer("rest-json", include_validation=False)
OPERATIONS = {
    "events": "PutEvents",
    "users": "PutUsers",
    "items": "PutItems",
    "actions": "PutActions",
    "action_interactions": "PutActionInteractions",
}
ARN = "arn:aws:personalize:eu-west-1:123456789012:dataset/shop/USERS"


def _text(chance: random.Random, longest: int = 300) -> str:
    letters = string.ascii_letters + string.digits + " -_.:/\\\"'é漢😀\t\n\x00"
    length = chance.choice([0, 1, 5, 40, 41, 255, 256, 257, longest])
    return "".join(chance.choice(letters) for _ in range(min(length, longest)))


def _maybe(chance: random.Random, make: Any) -> Any:
    return make() if chance.random() < 0.5 else None


def _properties(chance: random.Random) -> Any:
    if chance.random() < 0.05:
        return {"big": "x" * chance.choice([900, 1_005, 24_000, 32_000])}
    return {f"p{n}": chance.choice([1, 2.5, True, _text(chance, 40), None]) for n in range(chance.randrange(4))}


def _record(chance: random.Random, call: str) -> tuple[bytes, dict[str, Any]]:
    """Our record, and the parameters that a user of boto3 would give for the same. Raises Unfit."""
    at_us = chance.randrange(0, 2_000_000_000_000_000)
    extra = _properties(chance)
    dumped = json.dumps(extra, separators=(",", ":"), ensure_ascii=False) if extra else None
    identity = _text(chance) or "i"
    if call in ("users", "items", "actions"):
        field = {"users": "userId", "items": "itemId", "actions": "actionId"}[call]
        ours = model.entity_record(call, identity=identity, extra=extra)
        return ours, _dropped({field: identity, "properties": dumped})
    recommendation = _maybe(chance, lambda: _text(chance, 45))
    shown = _maybe(chance, lambda: [_text(chance, 20) or "i" for _ in range(chance.choice([1, 25, 26]))])
    if call == "events":
        kind, item, value = (
            _text(chance),
            _maybe(chance, lambda: _text(chance)),
            _maybe(chance, lambda: chance.uniform(-1e6, 1e6)),
        )
        source = _maybe(chance, lambda: chance.choice(["shop", "  ", "é", "x" * 1_024, "x" * 1_025]))
        ours = model.event_record(
            identity=identity, event_type=kind, occurred_us=at_us, item_id=item, value=value, recommendation_id=recommendation,
            impressions=shown, attribution_source=source, extra=extra,
        )  # fmt: skip
        return ours, _dropped(
            {
                "eventId": model.event_id(identity), "eventType": kind, "eventValue": value, "itemId": item, "properties": dumped,
                "sentAt": at_us // 1_000_000, "recommendationId": recommendation, "impression": shown,
                "metricAttribution": None if source is None else {"eventAttributionSource": source},
            }
        )  # fmt: skip
    kind = chance.choice(["Viewed", "Taken", "Not Taken"])
    action, user, session = _text(chance), _maybe(chance, lambda: _text(chance)), _text(chance)
    ours = model.interaction_record(
        identity=identity, action_id=action, user_id=user, session_id=session, event_type=kind, occurred_us=at_us,
        recommendation_id=recommendation, impressions=shown, extra=extra,
    )  # fmt: skip
    return ours, _dropped(
        {
            "actionId": action, "userId": user, "sessionId": session, "timestamp": at_us // 1_000_000, "eventType": kind,
            "eventId": model.event_id(identity), "recommendationId": recommendation, "impression": shown, "properties": dumped,
        }
    )  # fmt: skip


def _dropped(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _try(seed: int) -> bool:
    """False: the call was refused by us, as it should be."""
    chance = random.Random(seed)
    call = chance.choice(list(OPERATIONS))
    operation = _MODEL.operation_model(OPERATIONS[call])
    records, params = [], []
    for _ in range(chance.randrange(1, 11)):
        try:
            ours, theirs = _record(chance, call)
        except Unfit:
            continue
        records.append(ours)
        params.append(theirs)
    if not records:
        return False
    head: dict[str, Any] = {"datasetArn": ARN} if call in ("users", "items", "actions") else {"trackingId": "t-1"}
    if call == "events":
        head |= {"userId": "u", "sessionId": "s"} if chance.random() < 0.5 else {"sessionId": "s"}
    body = model.request_body(call, json.dumps(head).encode(), records)
    whole = head | {model._LISTS[call]: params}
    report = botocore.validate.ParamValidator().validate(whole, operation.input_shape)
    assert not report.has_errors(), report.generate_report()
    request = SERIALIZER.serialize_to_request(whole, operation)
    assert (request["method"], request["url_path"]) == ("POST", model.PATHS[call])
    assert json.loads(body) == json.loads(request["body"])
    assert not problems(operation.input_shape, json.loads(body))

    token = chance.choice(["", "a/token+with=signs"])
    now_s = chance.randrange(0, 4_000_000_000)
    host = chance.choice(["personalize-events.eu-west-1.amazonaws.com", "127.0.0.1:4711"])
    region = chance.choice(["eu-west-1", "us-east-1"])
    headers = Signer(host, region, "personalize").headers(
        Credentials(ACCESS_KEY, SECRET_KEY, token), model.PATHS[call], body, now_s
    )
    assert headers["Content-Type"] == request["headers"]["Content-Type"]
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    assert headers["X-Amz-Date"] == stamp
    assert headers.get("X-Amz-Security-Token", "") == token
    scheme = "http" if ":" in host else "https"
    assert headers["Authorization"] == signature(
        "POST", f"{scheme}://{host}{model.PATHS[call]}", body, headers, stamp, region
    )
    return True


def test_headers_and_bodies_equal_botocores_on_random_calls() -> None:
    sent = sum(_try(seed) for seed in range(300))
    assert sent > 200, "most calls are sendable"


@pytest.mark.campaign
def test_headers_and_bodies_equal_botocores_on_ten_thousand_calls() -> None:
    assert sum(_try(seed) for seed in range(10_000)) > 7_000


@pytest.mark.parametrize(("call", "field"), [("events", "properties"), ("users", "properties"), ("items", "properties"), ("actions", "properties"), ("action_interactions", "properties")])  # fmt: skip
def test_limits_of_properties_are_the_models(call: str, field: str) -> None:
    shape = _MODEL.operation_model(OPERATIONS[call]).input_shape.members[model._LISTS[call]].member.members[field]
    assert model.MAX_PROPERTIES[call] == shape.metadata["max"]


def test_the_other_limits_are_the_models() -> None:
    events = _MODEL.operation_model("PutEvents").input_shape
    event = events.members["eventList"].member.members
    assert events.members["eventList"].metadata["max"] == model.MAX_RECORDS
    assert model.MAX_ID == event["itemId"].metadata["max"] == events.members["sessionId"].metadata["max"]
    assert event["recommendationId"].metadata["max"] == model.MAX_RECOMMENDATION_ID
    assert event["impression"].metadata["max"] == model.MAX_IMPRESSION
    source = event["metricAttribution"].members["eventAttributionSource"].metadata
    assert source["max"] == model.MAX_ATTRIBUTION
    assert model.ARN.pattern == _MODEL.shape_for("Arn").metadata["pattern"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"event_type": "x" * 257}, "its event type has 257 characters"),
        ({"event_type": None}, "it has no event type"),
        ({"value": "nan"}, "its value is no finite number"),
        ({"value": "much"}, "its value is no number"),
        ({"impressions": ["a"] * 26}, "its impression has 26 items"),
        ({"attribution_source": " "}, "its attribution source isn't printable ASCII"),
        ({"extra": {"userId": 1}}, "its properties hold the reserved name userId"),
        ({"extra": {"a": "x" * 1_025}}, "its properties take 1033 characters; 1024 are allowed"),
        ({"recommendation_id": "x" * 41}, "its recommendation id has 41 characters"),
    ],
)
def test_an_event_that_the_service_would_refuse_is_named_first(fields: dict[str, Any], words: str) -> None:
    whole: dict[str, Any] = {"identity": "e", "event_type": "buy", "occurred_us": 1} | fields
    with pytest.raises(Unfit, match=words):
        model.event_record(**whole)
