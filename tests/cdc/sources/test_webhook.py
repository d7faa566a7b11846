"""Webhooks over HTTP: signed ones are durable before they are answered and count once, others leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from headrace.cdc.config import Config, ServerConfig, Size, parse
from headrace.cdc.deadletters import DeadLetters, Retried, Selection
from headrace.cdc.errors import ConfigError, ServerError
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.process.pipeline import Pipeline
from headrace.cdc.process.signature import Signing
from headrace.cdc.process.webhook import Rule
from headrace.cdc.sources import webhook as webhook_module
from headrace.cdc.sources.webhook import WebhookSource
from headrace.cdc.sources.webhook_config import ChallengeConfig, WebhookConfig
from headrace.cdc.web import WebServer
from serving import no_snapshot

NOW_S = 1_800_000_000
SECRET = "the-secret"
SIGNING = Signing(header="X-Sig")


def crm(**given: Any) -> WebhookConfig:
    rules = [Rule(name="{type}", key="who", id="id")]
    return WebhookConfig(**({"secrets": [SECRET], "signature": SIGNING, "map": rules} | given))


class Hooked(msgspec.Struct):
    url: str
    log: MemoryLog
    sources: dict[str, WebhookSource]
    registry: CollectorRegistry
    http: aiohttp.ClientSession
    letters_of: DeadLetters

    async def post(
        self, body: Any, *, path: str = "/webhooks/crm", secret: str | None = SECRET, **headers: str
    ) -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if secret is not None:
            headers["X-Sig"] = hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()
        async with self.http.post(self.url + path, data=data, headers=headers) as response:
            return response.status, await response.text()

    async def events(self) -> list[CustomerEvent]:
        return list((await self.log.read(0, 0)).events)

    async def reasons(self) -> list[str]:
        return [stored.letter.reason for stored in await self.log.letters()]


@contextlib.asynccontextmanager
async def hooked(
    log: MemoryLog | None = None, *, pipeline: Pipeline | None = None, **configs: WebhookConfig
) -> AsyncIterator[Hooked]:
    log = log or MemoryLog()
    registry = CollectorRegistry()
    sources = {name: WebhookSource(name, config, clock=lambda: float(NOW_S)) for name, config in configs.items()}
    for source in sources.values():
        source.attach(log, registry, lambda name, count, first_us: None, None, pipeline)
    letters = DeadLetters(log, sources.values(), pipeline)
    server = WebServer(
        ServerConfig(listen="127.0.0.1:0", tokens={"reader": "t"}),
        consumers=[],
        sources=lambda: {name: source.status() for name, source in sources.items()},
        log=log,
        registry=registry,
        troubles=dict,
        snapshot=no_snapshot,
        pushed=list(sources.values()),
        letters=letters,
    )
    await server.start()
    running = [asyncio.create_task(source.run()) for source in sources.values()]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    try:
        async with aiohttp.ClientSession() as http:
            yield Hooked(server.url, log, sources, registry, http, letters)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await server.stop()


class GatedLog(MemoryLog):
    """Appends wait until the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.asked = asyncio.Event()

    async def append(self, events: Sequence[CustomerEvent], **rest: Any) -> tuple[int, ...]:
        self.asked.set()
        await self.gate.wait()
        return await super().append(events, **rest)


async def test_an_answer_means_durable() -> None:
    log = GatedLog()
    async with hooked(log, crm=crm()) as here:
        posting = asyncio.create_task(here.post({"id": 1, "type": "A", "who": 7}))
        await asyncio.wait_for(log.asked.wait(), 10)
        assert not posting.done()
        assert await here.events() == []
        log.gate.set()
        assert await posting == (200, "ok\n")
        (event,) = await here.events()
        assert (event.name, event.key, event.received_us) == ("A", "7", NOW_S * 1_000_000)


async def test_a_repeated_delivery_counts_once_and_a_changed_one_is_a_conflict() -> None:
    async with hooked(crm=crm()) as here:
        answers = await asyncio.gather(*(here.post({"id": 1, "type": "A", "who": 7}) for _ in range(20)))
        assert {status for status, _ in answers} == {200}
        assert len(await here.events()) == 1
        assert (await here.post({"id": 1, "type": "B", "who": 7}))[0] == 200
        assert (len(await here.events()), await here.reasons()) == (1, ["conflict"])


async def test_what_isnt_signed_leaves_nothing_but_a_number_and_a_warning() -> None:
    async with hooked(crm=crm(secrets=["new", SECRET])) as here:
        body = {"id": 1, "type": "A", "who": 7}
        assert await here.post(body, secret="other") == (401, "the request isn't signed as it should be\n")
        assert (await here.post(body, secret=None))[0] == 401
        assert (await here.events(), await here.reasons()) == ([], [])
        assert (await here.post(body))[0] == 200
        assert (await here.post({"id": 2, "type": "A", "who": 7}, secret="new"))[0] == 200
        assert len(await here.events()) == 2
        assert here.sources["crm"].status().warnings == [
            "2 requests were refused, the last one since the header X-Sig is missing"
        ]
        assert 'headrace_webhook_refused_requests_total{source="crm"} 2.0' in generate_latest(here.registry).decode()


async def test_a_body_that_cant_be_mapped_is_kept_as_it_came_and_taken_again_once_the_rule_is_corrected() -> None:
    log = MemoryLog()
    body = b'{"id": 1,  "who": 7, "kind": "A"}'
    async with hooked(log, crm=crm()) as here:
        assert (await here.post(body))[0] == 200
        (stored,) = await log.letters()
        assert (stored.letter.reason, stored.letter.body) == ("unmapped", body)
        assert "SECRET" not in stored.letter.context.decode() and SECRET not in stored.letter.context.decode()
        assert await here.letters_of.retry(Selection()) == Retried(0, 1)
    corrected = crm(map=[Rule(name="{kind}", key="who", id="id")])
    async with hooked(log, crm=corrected) as here:
        assert await here.letters_of.retry(Selection()) == Retried(1, 0)
        assert [event.name for event in await here.events()] == ["A"]
        assert await here.reasons() == []
        assert (await here.post(body))[0] == 200
        assert len(await here.events()) == 1


def steps(*transforms: Any) -> Pipeline:
    tree = {"sources": {"crm": {"type": "http"}}, "pipeline": {"transforms": list(transforms)}}
    made = build_pipeline(parse(tree, folder=Path()))
    assert made is not None
    return made


async def test_webhooks_go_through_the_pipeline_and_what_it_sets_aside_is_taken_again() -> None:
    log = MemoryLog()
    blocks = {"set": {"properties.type.x": 1}, "when": {"names": ["bad"]}}  # no place can be made inside a text
    async with hooked(log, crm=crm(), pipeline=steps({"drop": True, "when": {"names": ["test"]}}, blocks)) as here:
        for number, kind in enumerate(["test", "bad", "good"]):
            assert (await here.post({"id": number, "who": 7, "type": kind}))[0] == 200
        assert [event.name for event in await here.events()] == ["good"]
        assert await here.reasons() == ["transform_failed"]
        assert await here.letters_of.retry(Selection()) == Retried(0, 1)
    async with hooked(log, crm=crm(), pipeline=steps({"name": "mended"})) as here:
        assert await here.letters_of.retry(Selection()) == Retried(1, 0)
        assert [event.name for event in await here.events()] == ["good", "mended"]
        assert await here.reasons() == []


async def test_an_element_and_its_headers_are_taken_again_too() -> None:
    log = MemoryLog()
    given = {"each": ".", "map": [Rule(name="{header:X-Topic} {t}", id="i")]}
    async with hooked(log, crm=crm(**given)) as here:
        assert (
            await here.post([{"i": 1, "t": "a"}, {"i": 2, "s": "b"}], **{"X-Topic": "T", "Authorization": "hidden"})
        )[0] == 200
        assert [event.name for event in await here.events()] == ["T a"]
        (stored,) = await log.letters()
        assert stored.letter.body == b'{"i": 2, "s": "b"}'
        assert b"hidden" not in stored.letter.context
    given["map"] = [Rule(name="{header:X-Topic} {t | s}", id="i")]
    async with hooked(log, crm=crm(**given)) as here:
        assert await here.letters_of.retry(Selection()) == Retried(1, 0)
        assert [event.name for event in await here.events()] == ["T a", "T b"]


async def test_sources_stand_beside_each_other_with_their_own_numbers() -> None:
    stripe = WebhookConfig(preset="stripe", secrets=["whsec"], path="/hooks/pay")
    async with hooked(crm=crm(), pay=stripe) as here:
        body = b'{"id": "evt_1", "type": "invoice.paid", "created": 1, "data": {"object": {"customer": "c"}}}'
        made = hmac.new(b"whsec", f"{NOW_S}.".encode() + body, hashlib.sha256).hexdigest()
        signed = {"Stripe-Signature": f"t={NOW_S},v1={made}"}
        assert await here.post(body, path="/hooks/pay", secret=None, **signed) == (200, "ok\n")
        status, words = await here.post(body, path="/hooks/pay", secret=None, **{"Stripe-Signature": f"t=1,v1={made}"})
        assert (status, "clock" in words) == (401, True)
        assert (await here.post({"id": 1, "type": "A", "who": 7}))[0] == 200
        assert [event.source for event in await here.events()] == ["pay", "crm"]
        numbers = generate_latest(here.registry).decode()
        assert numbers.count("# TYPE headrace_webhook_events_total counter") == 1
        for name in ("crm", "pay"):
            assert f'headrace_webhook_events_total{{source="{name}"}} 1.0' in numbers


async def test_what_is_too_large_packed_or_too_slow_is_refused_and_held_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook_module, "BODY_S", 0.1)
    async with hooked(crm=crm(max_body=Size(1000), max_event=Size(100))) as here:
        assert (await here.post(b" " * 1001))[0] == 413

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 100

        async with here.http.post(here.url + "/webhooks/crm", data=chunks()) as answer:
            assert answer.status == 413
        assert (await here.post(b"{}", **{"Content-Encoding": "gzip"}))[0] == 415
        assert (await here.post({"id": 1, "type": "A", "who": 7, "x": "x" * 100}))[0] == 200
        assert await here.reasons() == ["too_large"]

        never = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await never.wait()

        async with here.http.post(here.url + "/webhooks/crm", data=slow()) as answer:
            assert answer.status == 408
        assert here.sources["crm"].reading_bytes == 0
        assert (await here.post({"id": 2, "type": "A", "who": 7}))[0] == 200


async def test_a_service_may_ask_whether_the_address_is_ours() -> None:
    challenge = ChallengeConfig(query="hub.challenge", token_query="hub.verify_token", token="agreed")
    async with hooked(crm=msgspec.structs.replace(crm(), challenge=challenge)) as here:

        async def get(query: dict[str, str]) -> tuple[int, str]:
            async with here.http.get(f"{here.url}/webhooks/crm", params=query) as response:
                return response.status, await response.text()

        assert await get({"hub.challenge": "1158201444", "hub.verify_token": "agreed"}) == (200, "1158201444")
        for wrong in (
            {},
            {"hub.challenge": "1"},
            {"hub.challenge": "1", "hub.verify_token": "guessed"},
            {"hub.verify_token": "agreed"},
        ):
            assert (await get(wrong))[0] == 403
        assert (await get({"hub.challenge": "x" * 2000, "hub.verify_token": "agreed"}))[0] == 403
        assert await here.events() == []
    async with hooked(crm=msgspec.structs.replace(crm(), challenge=ChallengeConfig(body="challenge"))) as here:
        assert await here.post({"type": "url_verification", "challenge": "3eZbrw"}) == (200, "3eZbrw")
        assert (await here.post({"challenge": "3eZbrw"}, secret="wrong"))[0] == 401
        assert (await here.post({"id": 1, "type": "A", "who": 7})) == (200, "ok\n")
        assert [event.name for event in await here.events()] == ["A"]
        async with here.http.get(f"{here.url}/webhooks/crm") as response:
            assert response.status == 401, "no route of this source: the tokens of the server hold"


async def test_a_connection_that_sends_no_whole_head_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.web.IDLE_S", 0.2)
    async with hooked(crm=crm()) as here:
        port = int(here.url.rpartition(":")[2])
        links = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for number, (_, writer) in enumerate(links):
            writer.write([b"", b"POST /webhooks/crm HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "][number % 2])
        async with asyncio.timeout(20):
            for reader, writer in links:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        assert (await here.post({"id": 1, "type": "A", "who": 7}))[0] == 200


async def test_without_secrets_only_this_machine_may_send() -> None:
    config = crm(secrets=[], signature=None)
    async with hooked(crm=config) as here:
        body = {"id": 1, "type": "A", "who": 7}
        assert (await here.post(body, secret=None))[0] == 200
        assert (await here.post(body, secret=None, Host="shop.example"))[0] == 403
        assert (await here.post(body, secret=None, Origin="http://localhost"))[0] == 403
        with pytest.raises(ServerError, match="sources.crm has no secrets") as raised:
            WebServer(
                ServerConfig(listen="0.0.0.0:0", tokens={"reader": "t"}),
                consumers=[],
                sources=dict,
                log=here.log,
                registry=CollectorRegistry(),
                troubles=dict,
                snapshot=no_snapshot,
                pushed=[here.sources["crm"]],
            )
        assert 'secrets: ["${SECRET}"]' in str(raised.value.advice)
    (finding,) = await WebhookSource("crm", config).check()
    assert (finding.code, finding.severity) == ("no_secrets", "warning")


def parsed(text: str) -> Config:
    import yaml

    return parse({"sources": {"crm": {"type": "webhook"} | yaml.safe_load(text)}}, folder=Path(), environ={"S": "s"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "sources.crm: give map, which says what a body becomes, or a preset"),
        ("{preset: strip}", "sources.crm.preset: invalid enum value 'strip'; known: stripe, github, shopify, standard"),
        ("{secrets: [a], map: [{name: A}]}", "sources.crm: give signature, which says how the secrets are used, or a preset"),
        ("{preset: stripe, path: /v1/track}", 'sources.crm: path "/v1/track" is no path of its own; write one such as /hooks/crm'),
        ("{preset: stripe, secrets: ['']}", "sources.crm: secrets[0] is empty: anybody could sign with it"),
        ("{map: [{kind: track}]}", 'a track event needs a name, such as name: "{type}"'),
        ("{map: [{name: A, key: 'a b'}]}", '"a b" is no place'),
        ("{map: [{name: A, keys: a}]}", "keys"),
        ("{preset: stripe, signature: {header: X}}", 'a signature needs secrets, such as ["${SECRET}"]'),
    ],
)  # fmt: skip
def test_each_problem_of_the_configuration_says_what_to_do(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(text)
    (told,) = raised.value.problems
    assert problem in told
    assert told.startswith("sources.crm")


def test_a_preset_gives_what_isnt_given_and_the_secret_is_never_shown() -> None:
    config = parsed("{preset: stripe, secrets: ['${S}'], map: [{name: Mine}]}").sources["crm"].section
    assert [rule.name for rule in config.rules()] == ["Mine"]
    signing = config.signing()
    assert signing is not None
    assert (signing.header, repr(config)) == ("Stripe-Signature", "WebhookConfig()")
