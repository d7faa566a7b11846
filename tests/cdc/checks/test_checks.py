"""Checks of e-mail addresses: real DNS messages, a verifier over HTTP, verdicts as events, once over a restart, and without the address."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, socket
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from headrace.cdc.checks.config import EmailCheckConfig, VerifierConfig
from headrace.cdc.checks.consumer import Checks
from headrace.cdc.checks.email import EmailCheck
from headrace.cdc.config import Duration, parse
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, RowPart
from shop_log import ShopLog

FIELDS = ["properties.email", "context.traits.email"]


class Names:
    """A name server: MX of good-mail.com, none of none-mail.com (null MX), no such domain for the rest; silent-mail.com gets no answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket(AF_INET, SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                data, client = self._socket.recvfrom(4096)
            except OSError:
                return
            query = dns.message.from_wire(data)
            question = query.question[0]
            name, kind = question.name.to_text(), question.rdtype
            self.asked.append(name)
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.RA
            if name == "silent-mail.com.":
                continue
            if name == "good-mail.com." and kind == 15:
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", "10 mail.good-mail.com."))
            elif name == "none-mail.com." and kind == 15:
                answer.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", "0 ."))
            elif name not in ("good-mail.com.", "none-mail.com."):
                answer.set_rcode(dns.rcode.NXDOMAIN)
            self._socket.sendto(answer.to_wire(), client)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names()
    yield made
    made.close()


class Verifier:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.key: str | None = None
        verifier = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                verifier.asked.append(self.path)
                verifier.key = self.headers["X-Key"]
                status = 500 if "broken" in self.path else 200
                word = "ok" if "good" in self.path else "no" if "bad" in self.path else "maybe"
                body = json.dumps({"data": {"status": word}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1?email={{email}}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    made = Verifier()
    yield made
    made.server.shutdown()
    made.server.server_close()


def event(number: int, email: Any, *, key: str = "u1", trait: Any = None, op: Any = None) -> CustomerEvent:
    context = None if trait is None else json.dumps({"traits": {"email": trait}}).encode()
    row = None if op is None else RowPart("public", "people", op, b'{"id":1}', None, (), 1, 0, True, 1)
    return CustomerEvent(
        f"e{number}",
        "identify",
        "identify",
        key,
        1,
        2,
        3,
        "web",
        "",
        json.dumps({"email": email}).encode(),
        row,
        key,
        None,
        context,
    )


@pytest.mark.parametrize(
    ("address", "verdict", "reason"),
    [
        ("a@good-mail.com", "valid", "domain takes mail"),
        ("Jörg@good-mail.com", "valid", "domain takes mail"),
        ("a@none-mail.com", "invalid", "domain takes no mail"),
        ("a@gone-mail.com", "invalid", "domain takes no mail"),
        ("no address", "invalid", "syntax"),
        ("a@b@good-mail.com", "invalid", "syntax"),
        ("x" * 400 + "@good-mail.com", "invalid", "syntax"),
    ],
)
async def test_an_address_is_judged_by_syntax_and_by_its_domains_mail_servers(
    names: Names, address: str, verdict: str, reason: str
) -> None:
    check = EmailCheck(EmailCheckConfig(FIELDS, nameserver=names.address))
    answer = await check.of(address)
    assert (answer.verdict, answer.reason) == (verdict, reason)
    if reason == "syntax":
        assert names.asked == []
    await check.close()


async def test_who_does_not_answer_in_time_leaves_it_unknown(names: Names) -> None:
    check = EmailCheck(EmailCheckConfig(FIELDS, nameserver=names.address, timeout=Duration.parse("100ms")))
    assert (await check.of("a@silent-mail.com")).verdict == "unknown"
    await check.close()


async def test_a_verifier_is_asked_in_place_of_dns(verifier: Verifier) -> None:
    config = VerifierConfig(verifier.url, "data.status", ["ok"], ["no"], {"X-Key": "secret"})
    check = EmailCheck(EmailCheckConfig(FIELDS, verifier=config))
    found = [
        (await check.of(address)).verdict
        for address in ("good+x@a-mail.com", "bad@a-mail.com", "else@a-mail.com", "broken@a-mail.com", "no address")
    ]
    assert found == ["valid", "invalid", "unknown", "unknown", "invalid"]
    assert (
        verifier.asked[0] == "/v1?email=good%2Bx@a-mail.com" and verifier.key == "secret" and len(verifier.asked) == 4
    )
    verifier.server.shutdown()
    verifier.server.server_close()
    assert (await check.of("good@b-mail.com")).verdict == "unknown"
    await check.close()


@asynccontextmanager
async def running(log: ShopLog, config: EmailCheckConfig) -> AsyncIterator[Checks]:
    checks = Checks(config, log)
    task = asyncio.create_task(checks.run())
    try:
        yield checks
    finally:
        task.cancel()
        await asyncio.wait([task])


async def verdicts(log: ShopLog, count: int) -> list[tuple[str | None, str, str]]:
    async with asyncio.timeout(20):
        while True:
            events = (await log.read(0, 0)).events
            found = [
                (each.key, json.loads(each.properties)["field"], json.loads(each.properties)["verdict"])
                for each in events
                if each.source == "checks"
            ]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


async def test_verdicts_are_events_of_the_customer_and_come_once(names: Names) -> None:
    log = ShopLog()
    config = EmailCheckConfig(FIELDS, nameserver=names.address)
    await log.append(
        [
            event(1, "a@good-mail.com"),
            event(2, "a@gone-mail.com", key="u2", trait="b@good-mail.com"),
            event(3, 5),
            event(4, "x", op="delete"),
        ]
    )
    async with running(log, config) as checks:
        assert await verdicts(log, 3) == [
            ("u1", "properties.email", "valid"),
            ("u2", "properties.email", "invalid"),
            ("u2", "context.traits.email", "valid"),
        ]
        asked = len(names.asked)
        await log.append([event(5, "a@good-mail.com"), event(6, "a@good-mail.com", key="u3")])
        assert (await verdicts(log, 4))[3:] == [("u3", "properties.email", "valid")], "u1 knows already"
        assert len(names.asked) == asked, "nobody is asked twice"
        assert checks.status()["valid"] == 3
    async with running(log, config):
        await log.append([event(7, "no address", key="u4")])
        assert (await verdicts(log, 5))[4:] == [("u4", "properties.email", "invalid")], "it goes on where it was"
    everything = (await log.read(0, 0)).events
    made = [each for each in everything if each.source == "checks"]
    assert not any(b"good-mail.com" in each.properties for each in made)
    assert len({each.id for each in made}) == len(made) and {each.name for each in made} == {"Email Checked"}
    assert {each.kind for each in made} == {"record"}


async def test_it_may_stop_in_the_middle_of_a_check(names: Names) -> None:
    log = ShopLog()
    await log.append([event(1, "a@silent-mail.com")])
    async with running(log, EmailCheckConfig(FIELDS, nameserver=names.address, timeout=Duration.parse("1s"))):
        async with asyncio.timeout(10):
            while not names.asked:
                await asyncio.sleep(0.01)
    async with running(log, EmailCheckConfig(FIELDS, nameserver=names.address, timeout=Duration.parse("100ms"))):
        assert await verdicts(log, 1) == [("u1", "properties.email", "unknown")]


def test_what_is_wrong_is_said_with_its_path() -> None:
    with pytest.raises(ConfigError) as told:
        Checks(EmailCheckConfig(["nothing.email", "properties.*"]), ShopLog())
    assert [problem.split(":")[0] for problem in told.value.problems] == [
        "checks.email.fields[0]",
        "checks.email.fields[1]",
    ]
    with pytest.raises(ConfigError) as told:
        parse(
            {
                "sources": {"web": {"type": "http"}},
                "checks": {
                    "email": {
                        "fields": ["properties.email"],
                        "verifier": {"url": "http://x/", "verdict": "a", "valid": ["b"]},
                    }
                },
            },
            folder=Path(),
        )
    assert told.value.problems[0].startswith("checks.email.verifier") and "{email}" in told.value.problems[0]
