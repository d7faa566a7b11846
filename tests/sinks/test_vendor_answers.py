"""What each service answers when something is wrong, and what that does to the events of the request.

Written by hand from the services' public references and their clients' sources, not from our definitions; the values in them are made up.
Each row: service, what happened, status, headers, body, and the verdict on three events, or the fault of the whole request.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest

from headrace.sinks.splitting import carry
from headrace.sinks.verdict import Fault, FaultKind, Outcome
from http_destination import http_stub
from shipped_definitions import AT_S, event, kind_of, loaded

OK, NO, LATER, AGAIN = Outcome.DELIVERED, Outcome.REFUSED, Outcome.RETRY, Outcome.AGAIN
OUTAGE, SLOW, DENIED, SPLIT, WHICH = (
    FaultKind.OUTAGE,
    FaultKind.THROTTLED,
    FaultKind.DENIED,
    FaultKind.TOO_LARGE,
    FaultKind.BAD_BATCH,
)


class Said(NamedTuple):
    service: str
    what: str
    status: int
    body: Any
    means: FaultKind | list[Outcome]
    headers: dict[str, str] = {}  # noqa: RUF012  # never written to
    after_s: float | None = None
    events: int = 3


def meta(code: int, message: str, kind: str = "OAuthException") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, "fbtrace_id": "A1b2C3"}}


def klaviyo(status: int, code: str, title: str) -> dict[str, Any]:
    return {
        "errors": [
            {
                "id": "9a",
                "status": status,
                "code": code,
                "title": title,
                "detail": title,
                "source": {"pointer": "/data"},
            }
        ]
    }


def intercom(code: str, message: str) -> dict[str, Any]:
    return {"type": "error.list", "request_id": "r1", "errors": [{"code": code, "message": message}]}


def hubspot(category: str, message: str, **more: str) -> dict[str, Any]:
    return {"status": "error", "message": message, "correlationId": "c1", "category": category, **more}


NAMED_LATER = {"X-RateLimit-Limit": "250000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(AT_S + 40)}

SAID = [
    # Amplitude, Batch Event Upload: a 400 that names events takes none of the request; a key that is wrong is a 400 too.
    Said("amplitude", "taken", 200, {"code": 200, "events_ingested": 3, "payload_size_bytes": 900}, [OK, OK, OK]),
    Said("amplitude", "fields are wrong", 400, {
        "code": 400, "error": "Request missing required field", "events_with_invalid_fields": {"time": [1]},
        "events_with_missing_fields": {"event_type": [1]},
    }, [AGAIN, NO, AGAIN]),
    Said("amplitude", "ids are too short", 400, {
        "code": 400, "error": "Invalid id length for user_id or device_id", "events_with_invalid_id_lengths": {"user_id": [0, 2]},
    }, [NO, AGAIN, NO]),
    Said("amplitude", "a device is silenced", 400, {
        "code": 400, "error": "Events silenced", "silenced_devices": ["v1"], "silenced_events": [2],
    }, [AGAIN, AGAIN, NO]),
    Said("amplitude", "the key is missing", 400, {
        "code": 400, "error": "Request missing required field", "missing_field": "api_key",
    }, DENIED),
    Said("amplitude", "it is a 400 without a name", 400, {"code": 400, "error": "Invalid JSON request body"}, WHICH),
    Said("amplitude", "too large", 413, {"code": 413, "error": "Payload too large"}, SPLIT),
    Said("amplitude", "a user is too fast", 429, {
        "code": 429, "error": "Too many requests for some devices and users", "eps_threshold": 1000,
        "throttled_users": {"u1": 1200}, "throttled_events": [0, 1],
    }, SLOW),
    Said("amplitude", "its gateway gives up", 504, None, OUTAGE),
    # Mixpanel, Import with strict=1: a 400 has taken what it doesn't name.
    Said("mixpanel", "taken", 200, {"code": 200, "num_records_imported": 3, "status": "OK"}, [OK, OK, OK]),
    Said("mixpanel", "a record is wrong", 400, {
        "code": 400, "error": "some data points in the request failed validation", "status": "Bad Request",
        "num_records_imported": 2, "failed_records": [
            {"index": 1, "$insert_id": "x", "field": "properties.time", "message": "'properties.time' is invalid: must be specified"},
        ],
    }, [OK, NO, OK]),
    Said("mixpanel", "no list", 400, {"code": 400, "error": "request body is not valid JSON", "status": "Bad Request"}, WHICH),
    Said("mixpanel", "wrong secret", 401, {"code": 401, "error": "Invalid credentials", "status": "Unauthorized"}, DENIED),
    Said("mixpanel", "too large", 413, {"code": 413, "error": "request exceeds max limit of 10485760 bytes", "status": "Request Entity Too Large"}, SPLIT),
    Said("mixpanel", "too fast", 429, {"code": 429, "error": "Project exceeded rate limits", "status": "Too Many Requests"}, SLOW),
    Said("mixpanel", "its own trouble", 502, "<html>", OUTAGE),
    # Customer.io, Track API v2, batch.
    Said("customerio", "taken", 200, {}, [OK, OK, OK]),
    Said("customerio", "one is wrong", 207, {
        "errors": [{"batch_index": 2, "reason": "required", "field": "identifiers", "message": "one of id or email is required"}],
    }, [OK, OK, NO]),
    Said("customerio", "the request is wrong", 400, {"errors": [{"reason": "invalid", "field": "batch", "message": "batch is not a list"}]}, WHICH),
    Said("customerio", "wrong key", 401, {"meta": {"error": "Unauthorized request"}}, DENIED),
    Said("customerio", "too fast", 429, {"meta": {"error": "too many requests"}}, SLOW, {"Retry-After": "2"}, 2.0),
    # Braze, Track users.
    Said("braze", "taken", 201, {"message": "success", "events_processed": 3}, [OK, OK, OK]),
    Said("braze", "one is wrong", 201, {
        "message": "success", "events_processed": 2,
        "errors": [{"type": "'external_id', 'braze_id', 'user_alias' or 'email' is required", "input_array": "events", "index": 0}],
    }, [NO, OK, OK]),
    Said("braze", "none is right", 400, {"message": "Valid data must be provided in the 'attributes', 'events', or 'purchases' fields."}, WHICH),
    Said("braze", "wrong key", 401, {"message": "Invalid API Key"}, DENIED),
    Said("braze", "too fast", 429, {"message": "Rate limit exceeded"}, SLOW, NAMED_LATER, 40.0),
    Said("braze", "its own trouble", 503, {"message": "Service Unavailable"}, OUTAGE),
    # Klaviyo, Create Event.
    Said("klaviyo", "taken", 202, None, [OK], events=1),
    Said("klaviyo", "a field is wrong", 400, klaviyo(400, "invalid", "Invalid input."), WHICH, events=1),
    Said("klaviyo", "wrong key", 401, klaviyo(401, "not_authenticated", "Authentication credentials were not provided."), DENIED, events=1),
    Said("klaviyo", "no right", 403, klaviyo(403, "permission_denied", "You do not have permission."), DENIED, events=1),
    Said("klaviyo", "too fast", 429, klaviyo(429, "throttled", "Request was throttled."), SLOW, {"Retry-After": "7"}, 7.0, 1),
    Said("klaviyo", "its own trouble", 503, klaviyo(503, "service_unavailable", "Try again."), OUTAGE, events=1),
    # Intercom, data events.
    Said("intercom", "taken", 202, None, [OK], events=1),
    Said("intercom", "no such user", 404, intercom("not_found", "User Not Found"), WHICH, events=1),
    Said("intercom", "wrong token", 401, intercom("token_unauthorized", "Not authorized to access resource"), DENIED, events=1),
    Said("intercom", "a field is wrong", 422, intercom("parameter_invalid", "created_at is in the future"), WHICH, events=1),
    Said("intercom", "too fast", 429, intercom("rate_limit_exceeded", "Exceeded rate limit"), SLOW, NAMED_LATER, 40.0, 1),
    Said("intercom", "its own trouble", 500, intercom("server_error", "Server Error"), OUTAGE, events=1),
    # HubSpot, contacts, batch upsert: 207 when some were refused; which is told by what the contact is called, not by place.
    Said("hubspot", "taken", 200, {"status": "COMPLETE", "results": [{"id": "1", "new": True}]}, [OK, OK, OK]),
    Said("hubspot", "some are wrong", 207, {
        "status": "COMPLETE", "results": [{"id": "1"}], "numErrors": 1,
        "errors": [{"status": "error", "category": "VALIDATION_ERROR", "message": "Property values were not valid"}],
    }, WHICH),
    Said("hubspot", "one address twice", 400, hubspot("VALIDATION_ERROR", "Duplicate IDs found in batch input"), WHICH),
    Said("hubspot", "outdated token", 401, hubspot("EXPIRED_AUTHENTICATION", "The OAuth token used to make this call expired"), DENIED),
    Said("hubspot", "no scope", 403, hubspot("MISSING_SCOPES", "This app hasn't been granted all required scopes"), DENIED),
    Said("hubspot", "too fast", 429, hubspot("RATE_LIMITS", "You have reached your ten_secondly_rolling limit.", policyName="TEN_SECONDLY_ROLLING"), SLOW),
    Said("hubspot", "its proxy gives up", 502, "<html>", OUTAGE),
    # Meta, Conversions API: the status says little, the code says it.
    Said("facebook", "taken", 200, {"events_received": 3, "messages": [], "fbtrace_id": "A"}, [OK, OK, OK]),
    Said("facebook", "an event is wrong", 400, meta(100, "Invalid parameter"), WHICH),
    Said("facebook", "outdated token", 400, meta(190, "Error validating access token: Session has expired"), DENIED),
    Said("facebook", "no right", 403, meta(200, "Permissions error"), DENIED),
    Said("facebook", "no capability", 400, meta(3, "Application does not have the capability to make this API call."), DENIED),
    Said("facebook", "the app is too fast", 403, meta(4, "Application request limit reached"), SLOW),
    Said("facebook", "the account is too fast", 400, meta(80004, "There have been too many calls to this ad-account."), SLOW),
    Said("facebook", "unknown trouble", 500, meta(1, "An unknown error occurred"), OUTAGE),
    Said("facebook", "trouble that is told as our own", 400, meta(2, "Service temporarily unavailable"), OUTAGE),
    # PostHog, batch capture: what a quota drops is answered by 200.
    Said("posthog", "taken", 200, {"status": "Ok"}, [OK, OK, OK]),
    Said("posthog", "the quota of recordings is used up, not ours", 200, {"status": "Ok", "quota_limited": ["recordings"]}, [OK, OK, OK]),
    Said("posthog", "the quota of events is used up", 200, {"status": "Ok", "quota_limited": ["events"]}, SLOW),
    Said("posthog", "no body", 400, {"type": "validation_error", "code": "invalid_payload", "detail": "Malformed request data"}, WHICH),
    Said("posthog", "wrong key", 401, {"type": "authentication_error", "code": "invalid_api_key", "detail": "Project API key invalid."}, DENIED),
    Said("posthog", "too large", 413, None, SPLIT),
    Said("posthog", "its own trouble", 503, None, OUTAGE, {"Retry-After": "1"}, 1.0),
    # Segment, HTTP API: too large is a 400.
    Said("segment", "taken", 200, {"success": True}, [OK, OK, OK]),
    Said("segment", "too large, or wrong JSON", 400, {"success": False, "message": "exceeded max payload size"}, WHICH),
    Said("segment", "wrong key", 401, None, DENIED),
    Said("segment", "too fast", 429, None, SLOW, {"Retry-After": "4"}, 4.0),
    Said("segment", "its own trouble", 500, None, OUTAGE),
    # Slack, incoming webhooks: a channel that is gone is no event's fault.
    Said("slack", "taken", 200, "ok", [OK], events=1),
    Said("slack", "no text", 400, "invalid_payload", WHICH, events=1),
    Said("slack", "forbidden", 403, "action_prohibited", DENIED, events=1),
    Said("slack", "no such channel", 404, "channel_not_found", DENIED, events=1),
    Said("slack", "archived", 410, "channel_is_archived", DENIED, events=1),
    Said("slack", "too fast", 429, "rate_limited", SLOW, {"Retry-After": "30"}, 30.0, 1),
    Said("slack", "its own trouble", 500, "rollup_error", OUTAGE, events=1),
    # Google Analytics 4 answers 2xx to everything that arrives.
    Said("ga4", "taken, or not", 204, None, [OK], events=1),
    Said("ga4", "its own trouble", 503, None, OUTAGE, events=1),
    # Gorse.
    Said("gorse", "taken", 200, {"RowAffected": 3}, [OK, OK, OK]),
    Said("gorse", "wrong JSON", 400, "unable to read request", WHICH),
    Said("gorse", "wrong key", 401, "unauthorized", DENIED),
    Said("gorse", "its database is gone", 500, "dial tcp: connection refused", OUTAGE),
    # Recombee, Batch: a code for each.
    Said("recombee", "taken, one had it already, one is too many a second", 200, [
        {"code": 200, "json": "ok"}, {"code": 409, "json": {"statusCode": 409, "message": "the interaction exists"}},
        {"code": 429, "json": {"statusCode": 429, "message": "too many requests"}},
    ], [OK, OK, LATER]),
    Said("recombee", "a parameter is wrong", 200, [
        {"code": 200, "json": "ok"}, {"code": 400, "json": {"statusCode": 400, "message": "invalid timestamp"}}, {"code": 200, "json": "ok"},
    ], [OK, NO, OK]),
    Said("recombee", "wrong signature", 401, {"statusCode": 401, "message": "hmac_sign is not valid"}, DENIED),
    Said("recombee", "wrong request", 400, {"statusCode": 400, "message": "'requests' is missing"}, WHICH),
    Said("recombee", "too large", 413, None, SPLIT),
    Said("recombee", "it has no room", 503, None, OUTAGE),
    # A recommender of one's own (definition "recommender") has no vendor; the plain rules hold.
    Said("recommender", "taken", 202, None, [OK]*3),
    Said("recommender", "wrong", 422, {"error": "no"}, WHICH),
]  # fmt: skip


@pytest.mark.parametrize("said", SAID, ids=[f"{said.service}: {said.what}" for said in SAID])
async def test_a_services_answer_means_what_its_reference_says(said: Said) -> None:
    async with http_stub(loaded(said.service), wall=lambda: float(AT_S)) as (stub, sink):
        found = [sink.prepare(event(n, kind_of(said.service)), n, f"u{n}") for n in range(said.events)]
        items = [item for item in found if item is not None][: loaded(said.service).batch.max_events]
        stub.reply = lambda bodies: (said.status, said.headers, said.body)
        answer = await sink.send(items[0].call, items)
    if isinstance(said.means, FaultKind):
        assert isinstance(answer, Fault) and answer.kind is said.means, answer
        assert answer.after_s == said.after_s
        # What a service says may repeat what it was sent; only what the definition itself lists may be in a reason.
        assert all(word not in answer.reason for word in ("token is", "expired", "u1", "Property values"))
    else:
        assert not isinstance(answer, Fault), answer
        assert [verdict.outcome for verdict in answer] == said.means[: len(items)]


def test_every_definition_has_answers_of_its_service() -> None:
    from headrace.sinks.shipped import names

    assert {said.service for said in SAID} == set(names())
    for name in names():
        kinds = {said.means if isinstance(said.means, FaultKind) else "each" for said in SAID if said.service == name}
        assert len(kinds) >= 2, name


async def test_a_contact_that_hubspot_refuses_is_found_and_the_others_are_upserted() -> None:
    """HubSpot answers 207 without places; nobody else's contact may be lost or become a dead letter for it."""
    async with http_stub(loaded("hubspot")) as (stub, sink):
        made = [
            sink.prepare(
                msgspec.structs.replace(event(n, "identify"), properties=b'{"email":"a%d@b.example"}' % n), n, f"u{n}"
            )
            for n in range(7)
        ]
        items = [item for item in made if item is not None]
        upserted: set[str] = set()

        def reply(bodies: list[Any]) -> tuple[int, dict[str, str], Any]:
            fine = [body["id"] for body in bodies if body["id"] != "a4@b.example"]
            upserted.update(fine)
            return (200 if len(fine) == len(bodies) else 207), {}, {"status": "COMPLETE", "results": []}

        stub.reply = reply
        carried = await carry(lambda part: sink.send(part[0].call, part), items)
        assert carried.fault is None
        assert [verdict.outcome for verdict in carried.verdicts] == [OK] * 4 + [NO] + [OK] * 2
        assert upserted == {f"a{n}@b.example" for n in range(7) if n != 4}
