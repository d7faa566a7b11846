"""The HTTP sink: definitions, templates, requests on the wire, signatures, and what answers mean."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from headrace.cdc.config import load_part
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, Kind
from headrace.sinks.base import Unfit
from headrace.sinks.http import HttpSink, sign
from headrace.sinks.httpdefinition import AuthConfig, Destination
from headrace.sinks.template import Subject, Template, Text
from headrace.sinks.transport import retry_after_s
from headrace.sinks.verdict import Fault, FaultKind, Outcome
from http_destination import http_stub, keeps_contract
from shop_log import order_event

FOLDER = Path(__file__).parents[2] / "docs" / "destinations"
SECRET = base64.b64encode(b"a secret of 24 bytes ...").decode()
ENVIRON = {
    "CIO_SITE_ID": "site", "CIO_API_KEY": "key", "AMPLITUDE_API_KEY": "akey", "WEBHOOK_URL": "https://me.example/hook?a=1",
    "WEBHOOK_SECRET": SECRET, "PUBSUB_PROJECT": "p", "PUBSUB_TOPIC": "t", "PUBSUB_TOKEN": "tok",
}  # fmt: skip


def event(number: int = 7, kind: Kind = "track", **more: Any) -> CustomerEvent:
    at_us = 1_700_000_000_123_456
    fields: dict[str, Any] = {
        "key": "u1",
        "user_id": "u1",
        "anonymous_id": "v1",
        "properties": b'{"total":"9.90","n":{"a":[1]}}',
    }
    fields |= more
    return CustomerEvent(
        f"web-{number}", kind, "Order Completed", fields["key"], at_us, at_us, at_us, "web", str(number), fields["properties"],
        None, fields["user_id"], fields["anonymous_id"], fields.get("context"),
    )  # fmt: skip


def made(text: str) -> Destination:
    return msgspec.convert(yaml.safe_load(text), Destination)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
async def test_a_definition_keeps_the_contract_made_from_it(path: Path) -> None:
    destination = load_part(path, Destination, ENVIRON)
    assert len(path.read_text().splitlines()) <= 40
    await keeps_contract(destination, [event(number) for number in range(5)])


async def test_a_webhook_is_signed_as_standard_webhooks_asks() -> None:
    destination = load_part(FOLDER / "webhook.yaml", Destination, ENVIRON)
    async with http_stub(destination, wall=lambda: 1_700_000_009.5, is_replay=True) as (stub, sink):
        item = sink.prepare(event(), 0, "u1")
        assert item is not None
        await sink.send(item.call, [item])
    method, path, headers, body = stub.requests[0]
    assert (method, path) == ("POST", "/hook?a=1")
    assert headers["webhook-id"] == headers["idempotency-key"] == "web-7"
    assert headers["headrace-replay"] == "true"
    signed = b"web-7.1700000009." + body
    expected = base64.b64encode(hmac.digest(base64.b64decode(SECRET), signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert msgspec.json.decode(body)["data"]["id"] == "web-7"


def test_a_body_with_braces_is_signed_as_it_is() -> None:
    auth = AuthConfig(type="hmac", secret="s", header="x-sig", over="{body}|{url}", algorithm="sha1")
    body = b'{"a":"{timestamp}{url}"}'
    expected = hmac.digest(b"s", body + b"|http://h/", "sha1").hex()
    assert sign(auth, "POST", "http://h/", body, "e", 5) == ("http://h/", {"x-sig": expected})


async def test_pubsub_gets_data_in_base64_with_an_ordering_key() -> None:
    async with http_stub(load_part(FOLDER / "pubsub.yaml", Destination, ENVIRON)) as (stub, sink):
        item = sink.prepare(event(), 0, "u1")
        assert item is not None
        await sink.send(item.call, [item])
        assert stub.requests[0][:2] == ("POST", "/v1/projects/p/topics/t:publish")
        ((message,),) = stub.bodies
    assert message.keys() == {"data", "orderingKey", "attributes"}
    assert msgspec.json.decode(base64.b64decode(message["data"]))["id"] == "web-7"
    assert (message["orderingKey"], message["attributes"]["id"]) == ("u1", "web-7")


async def test_url_and_headers_of_an_event_are_encoded() -> None:
    destination = made(
        "{url: 'https://h.example/users/{key}/{properties.total}', method: PUT, headers: {X-Kind: '{kind}'},"
        " auth: {type: header, header: X-Api-Key, token: t}, actions: [{body: {n: '{properties.n.a}'}}]}"
    )
    async with http_stub(destination) as (stub, sink):
        item = sink.prepare(event(key="a/b ?"), 0, "k")
        assert item is not None
        answer = await sink.send(item.call, [item])
    assert not isinstance(answer, Fault) and answer[0].outcome is Outcome.DELIVERED
    method, path, headers, body = stub.requests[0]
    assert (method, path, body) == ("PUT", "/users/a%2Fb%20%3F/9.90", b'{"n":[1]}')
    assert (headers["x-kind"], headers["x-api-key"]) == ("track", "t")
    with pytest.raises(Unfit, match="it has no key"):
        sink.prepare(event(key=None), 0, "k")


async def test_without_actions_an_event_goes_whole_and_no_heartbeat_does() -> None:
    async with http_stub(made("{url: 'https://h.example/'}")) as (stub, sink):
        item = sink.prepare(order_event(3), 9, "3")
        assert item is not None
        await sink.send(item.call, [item])
        assert sink.prepare(event(kind="heartbeat"), 0, "k") is None
    assert stub.bodies[0][0] | {"id": "shop-3", "table": "orders"} == stub.bodies[0][0]


async def test_a_cut_a_closed_port_and_a_redirect_say_so_without_a_secret() -> None:
    async with http_stub(made("{url: 'https://h.example/secret-path?token=hush'}")) as (stub, sink):
        item = sink.prepare(event(), 0, "k")
        assert item is not None
        stub.reply = lambda bodies: (307, {"Location": "/elsewhere"}, None)
        answer = await sink.send(item.call, [item])
        assert isinstance(answer, Fault) and answer.kind is FaultKind.DENIED and len(stub.requests) == 1
    lost = HttpSink(made(f"{{url: '{stub.url}/secret-path?token=hush'}}"))
    await lost.open()
    gone = await lost.send(item.call, [item])
    await lost.close()
    assert isinstance(gone, Fault) and gone.kind is FaultKind.OUTAGE
    assert "hush" not in gone.reason + answer.reason and "127.0.0.1" in gone.reason


async def test_a_connection_that_breaks_off_is_an_outage() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    sink = HttpSink(made(f"{{url: 'http://127.0.0.1:{server.sockets[0].getsockname()[1]}/'}}"))
    await sink.open()
    item = sink.prepare(event(), 0, "k")
    assert item is not None
    answer = await sink.send(item.call, [item])
    await sink.close()
    server.close()
    await server.wait_closed()
    assert isinstance(answer, Fault) and answer.kind is FaultKind.OUTAGE and "broke the connection" in answer.reason


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{id}", "web-7"),
        ("{properties.total}", "9.90"),
        ("{properties.total:number}", 9.9),
        ("{properties.n.a}", [1]),
        ("{properties.n.a:text}", "[1]"),
        ("{name:lower}", "order completed"),
        ("{name:snake}", "order_completed"),
        ("{id:base64}", "d2ViLTc="),
        ("{id:sha256}", hashlib.sha256(b"web-7").hexdigest()),
        ("{name:sha256_lower}", hashlib.sha256(b"order completed").hexdigest()),
        ("{properties.none:sha256_lower}", None),
        ("n={properties.n}", 'n={"a":[1]}'),
        ("{properties.none|-}", "-"),
        ("{{{id}}}", "{web-7}"),
        ("{occurred}", "2023-11-14T22:13:20.123Z"),
        ("{occurred_ms}", 1_700_000_000_123),
        ({"a": "{properties.none}", "b": ["{table}", "{kind}"]}, {"b": ["track"]}),
        ({"a": 5, "b": None, "c": True}, {"a": 5, "b": None, "c": True}),
        ("{before.x}", None),
    ],
    ids=str,
)
def test_a_template(text: Any, value: Any) -> None:
    assert Template(text).value(Subject(event())) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{idd}", "is no field"), ("a}b", "lone brace"), ("{id.x}", "has no parts"), ("{id:float}", "a value can be made number, text, lower"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_told_with_the_file(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Template({"a": [text]})


def test_what_is_needed_and_missing_makes_the_event_unfit() -> None:
    for template in ("{context.email!}", {"x": "a {context.email!}"}, "{name:number}"):
        with pytest.raises(Unfit):
            Template(template).value(Subject(event()))
    with pytest.raises(Unfit, match="control characters"):
        Text("{key}").value(Subject(event(key="a\nb")))


def test_a_definitions_problems_come_with_path_and_words(tmp_path: Path) -> None:
    path = tmp_path / "crm.yaml"
    path.write_text("{url: 'ftp://x', auth: {type: bearer}, batch: {max_events: 0}, colour: red}")
    with pytest.raises(ConfigError) as found:
        load_part(path, Destination, {})
    text = "\n".join(found.value.problems)
    for words in ("crm.yaml.auth: auth of type bearer needs token", "batch.max_events", "colour: unknown key"):
        assert words in text
    for text, words in (
        ("{url: 'https://h/{key}', batch: {max_events: 2}}", "differs by event"),
        ("{url: 'https://u:p@h/'}", "put them under auth"),
        ("{url: 'ftp://h/'}", "is no http"),
        ("{url: 'https://h/', batch: {body: {a: 1}}}", "needs the text"),
        ("{url: 'https://h/', auth: {type: hmac, header: x, secret: '%%', secret_encoding: hex}}", "no hex text"),
    ):
        with pytest.raises(ValueError, match=words):
            made(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("5", 5.0), ("0.5", 0.5), ("-3", 0.0), ("1700000060", 60.0), ("99999", 3600.0), ("soon", None), ("nan", None),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
    ],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, 1_700_000_000.0) == seconds
