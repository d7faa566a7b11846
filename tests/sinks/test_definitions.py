"""The shipped definitions: each keeps the contract made from it against a stub, and makes the request that was written by hand here."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.cli import main
from headrace.cdc.errors import ConfigError
from headrace.sinks.shipped import FOLDER, names, shipped
from headrace.sinks.verdict import Fault
from http_destination import http_stub, keeps_contract
from shipped_definitions import AT, AT_MS, AT_S, AT_US, SAID, event, kind_of, loaded

TRACKED: dict[str, Any] = {
    "event_name": "Item Viewed",
    "event_time": AT_S,
    "event_id": "web-7",
    "action_source": "website",
}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


EXAMPLES: dict[str, tuple[str, str, dict[str, str], Any]] = {
    "amplitude": ("POST", "/batch", {}, {
        "user_id": "u1", "device_id": "v1", "event_type": "Item Viewed", "time": AT_MS, "insert_id": "web-7", "event_properties": SAID,
    }),
    "customerio": ("POST", "/api/v2/batch", {"authorization": "Basic c2l0ZTprZXk="}, {
        "type": "person", "action": "event", "identifiers": {"id": "u1"}, "id": "web-7", "name": "Item Viewed", "timestamp": AT_S,
        "attributes": SAID,
    }),
    "mixpanel": ("POST", "/import?strict=1", {"authorization": "Basic czo="}, {
        "event": "Item Viewed", "properties": {
            "distinct_id": "u1", "time": AT_MS, "$insert_id": hashlib.md5(b"web-7").hexdigest(), "data": SAID,
        },
    }),
    "posthog": ("POST", "/batch/", {}, {"event": "Item Viewed", "distinct_id": "u1", "timestamp": AT, "properties": SAID}),
    "slack": ("POST", "/services/T/B/x", {}, {"text": "Item Viewed (u1)"}),
    "ga4": ("POST", "/mp/collect?measurement_id=G-1&api_secret=s", {}, {
        "client_id": "v1", "user_id": "u1", "timestamp_micros": AT_US, "events": [{"name": "item_viewed", "params": SAID}],
    }),
    "facebook": ("POST", "/v21.0/42/events?access_token=tok", {}, TRACKED | {
        "user_data": {
            "em": sha256("ann@example.com"), "external_id": sha256("u1"), "client_ip_address": "192.0.2.1", "client_user_agent": "UA",
        },
        "custom_data": SAID,
    }),
    "braze": ("POST", "/users/track", {"authorization": "Bearer k"}, {
        "external_id": "u1", "name": "Item Viewed", "time": AT, "properties": SAID,
    }),
    "klaviyo": ("POST", "/api/events/", {"authorization": "Klaviyo-API-Key k", "revision": "2024-10-15"}, {"data": {
        "type": "event", "attributes": {
            "unique_id": "web-7", "time": AT, "properties": SAID,
            "metric": {"data": {"type": "metric", "attributes": {"name": "Item Viewed"}}},
            "profile": {"data": {"type": "profile", "attributes": {"external_id": "u1", "email": " Ann@Example.com "}}},
        },
    }}),
    "intercom": ("POST", "/events", {"intercom-version": "2.11"}, {
        "event_name": "Item Viewed", "created_at": AT_S, "user_id": "u1", "metadata": SAID,
    }),
    "hubspot": ("POST", "/crm/v3/objects/contacts/batch/upsert", {"authorization": "Bearer t"}, {
        "idProperty": "email", "id": "Ann@Example.com", "properties": SAID,
    }),
    "gorse": ("PUT", "/api/feedback", {"x-api-key": "k"}, {
        "FeedbackType": "item_viewed", "UserId": "u1", "ItemId": "i1", "Timestamp": AT,
    }),
    "recombee": ("POST", "/db/batch/?hmac_timestamp=1700000000&hmac_sign=" + hmac.new(
        b"tok", b"/db/batch/?hmac_timestamp=1700000000", "sha1").hexdigest(), {}, {
        "method": "POST", "path": "/detailviews/", "params": {"userId": "u1", "itemId": "i1", "timestamp": AT, "cascadeCreate": True},
    }),
    "recommender": ("POST", "/v1/events", {"authorization": "Bearer t"}, {
        "id": "web-7", "user": "u1", "item": "i1", "type": "Item Viewed", "at": AT_MS,
    }),
    "segment": ("POST", "/v1/batch", {"authorization": "Basic dzo="}, {
        "type": "track", "messageId": "web-7", "userId": "u1", "anonymousId": "v1", "event": "Item Viewed", "properties": SAID,
        "context": {"ip": "192.0.2.1", "userAgent": "UA", "traits": {"email": " Ann@Example.com "}},
        "timestamp": "2023-11-14T22:13:20.123456Z", "receivedAt": "2023-11-14T22:13:20.123456Z",
    }),
}  # fmt: skip


def test_each_shipped_definition_has_its_example() -> None:
    assert names() == sorted(EXAMPLES)


@pytest.mark.parametrize("name", names())
async def test_it_keeps_the_contract_made_from_it(name: str) -> None:
    assert len((FOLDER / f"{name}.yaml").read_text().splitlines()) <= 40
    await keeps_contract(loaded(name), [event(number, kind_of(name)) for number in range(5)])


@pytest.mark.parametrize("name", EXAMPLES)
async def test_it_makes_what_the_service_asks_for(name: str) -> None:
    method, path, headers, body = EXAMPLES[name]
    async with http_stub(loaded(name), wall=lambda: float(AT_S)) as (stub, sink):
        item = sink.prepare(event(kind=kind_of(name)), 0, "u1")
        assert item is not None
        await sink.send(item.call, [item])
        assert stub.requests[0][:2] == (method, path)
        assert stub.requests[0][2] | headers == stub.requests[0][2]
        assert stub.bodies == [[body]]


def test_a_name_is_shipped_a_path_is_a_file_and_a_wrong_name_is_told() -> None:
    assert shipped("amplitude") == FOLDER / "amplitude.yaml"
    assert shipped("amplitude.yaml") is None and shipped("./amplitude") is None
    with pytest.raises(ConfigError, match="no definition 'amplitud' is shipped"):
        shipped("amplitud")


def test_a_sink_takes_a_definition_by_name_and_the_command_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLACK_WEBHOOK_URL", "http://127.0.0.1:1/x")
    path = tmp_path / "headrace.yaml"
    path.write_text(
        "sources: {shop: {type: postgres, dsn: host=none}}\nsinks: {team: {type: http, definition: slack}}\n"
    )
    assert main(["sink", "check", str(path)]) == 7
    assert "127.0.0.1 can't be reached" in capsys.readouterr().out
    assert main(["sink", "definitions"]) == 0
    assert capsys.readouterr().out.split() == names()


async def test_recombee_gets_what_its_own_client_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("recombee_api_client.api_requests")
    client = pytest.importorskip("recombee_api_client.api_client")
    sent: dict[str, Any] = {}

    class Reply:
        status_code = 200

        def json(self) -> list[Any]:
            return []

    def post(uri: str, **more: Any) -> Reply:
        sent.update(more, uri=uri)
        return Reply()

    monkeypatch.setattr("requests.post", post)
    monkeypatch.setattr("time.time", lambda: float(AT_S))
    parts = {"timestamp": AT, "cascade_create": True, "recomm_id": "r1"}
    priced = parts | {"amount": 2, "price": 9.5}
    asked = {
        "Product Viewed": api.AddDetailView("u1", "i1", **parts),
        "Product Added": api.AddCartAddition("u1", "i1", **priced),
        "Product Added to Wishlist": api.AddBookmark("u1", "i1", **parts),
        "Product Purchased": api.AddPurchase("u1", "i1", **priced),
    }
    said = {"item_id": "i1", "recommendationId": "r1", "quantity": 2, "price": "9.50"}
    async with http_stub(loaded("recombee"), wall=lambda: float(AT_S)) as (stub, sink):
        for number, (name, request) in enumerate(asked.items()):
            client.RecombeeClient("db", "tok").send(api.Batch([request]))
            item = sink.prepare(
                msgspec.structs.replace(event(number), name=name, properties=msgspec.json.encode(said)), number, "u1"
            )
            assert item is not None
            await sink.send(item.call, [item])
            method, path, _, body = stub.requests[-1]
            assert (method, f"https://rapi.recombee.com{path}") == ("POST", sent["uri"])
            assert msgspec.json.decode(body) == msgspec.json.decode(sent["data"]), name


async def test_recombees_verdicts_are_each_events_own() -> None:
    async with http_stub(loaded("recombee")) as (stub, sink):
        items = [item for n in range(4) if (item := sink.prepare(event(n), n, str(n))) is not None]
        codes = [(200, "ok"), (409, {"message": "already there"}), (404, {"message": "no such item"}), (503, {})]
        stub.reply = lambda bodies: (200, {}, [{"code": code, "json": said} for code, said in codes])
        answer = await sink.send(items[0].call, items)
        assert not isinstance(answer, Fault)
        assert [verdict.outcome.value for verdict in answer] == ["delivered", "delivered", "refused", "retry"]
        assert "no such item" in answer[2].reason
