"""The one HTTP server: who is let in, where it listens, what it says of the process."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from headrace.cdc.config import ServerConfig
from headrace.cdc.consumer import Health
from headrace.cdc.errors import ConfigError, LogUnavailable, RequestRefused, ServerError, StoreError
from headrace.cdc.listen import ListenAddress, is_loopback
from headrace.cdc.sources.base import Asked, SourceStatus
from headrace.cdc.web import WebServer
from serving import STREAMING, Served, no_snapshot, serving
from shop_log import ShopLog, order_event

TOKENS = {"reader": "s3cret-one", "other": "s3cret-two"}


def server(listen: str, tokens: dict[str, str] | None = None) -> WebServer:
    return WebServer(
        ServerConfig(listen=listen, tokens=tokens or {}),
        consumers=[],
        sources=dict,
        log=ShopLog(),
        registry=CollectorRegistry(),
        troubles=dict,
        snapshot=no_snapshot,
    )


class Worker:
    """A consumer with a cursor that is told what to report."""

    name = "features"

    def __init__(self, *, offset: int = 0, health: Health | None = None) -> None:
        self._offset = offset
        self._health = health or Health("features", True)

    def routes(self) -> Iterable[web.RouteDef]:
        async def fail(request: web.Request) -> web.Response:
            raise RuntimeError("customer 42 has a secret")

        async def unavailable(request: web.Request) -> web.Response:
            raise StoreError("the online store at redis:6379 doesn't answer")

        async def echo(request: web.Request) -> web.Response:
            return web.json_response({"bytes": len(await request.read())})

        return [web.get("/fail", fail), web.get("/unavailable", unavailable), web.post("/echo", echo)]

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    def health(self) -> Iterable[Health]:
        return [self._health]

    def status(self) -> dict[str, Any]:
        return {"offset": [self._offset], "views": 2}


async def answer(served: Served, path: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async with served.http.get(served.url + path, headers=headers) as response:
        return response.status, await response.json()


# who is let in


@pytest.mark.parametrize("path", ["/", "/metrics", "/v1/status", "/v1/events", "/v1/stream", "/nothing"])
async def test_every_route_but_health_wants_a_known_token_when_one_is_set(path: str) -> None:
    async with serving(ShopLog(), config=ServerConfig(listen="127.0.0.1:0", tokens=TOKENS)) as served:
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer s3cret"},
            {"Authorization": "Bearer s3cret-one2"},
            {"Authorization": "s3cret-one"},
            {"Authorization": "Basic s3cret-one"},
            {"Authorization": "Bearer s\udcffcret".encode("utf-8", "surrogateescape").decode("latin-1")},
        ):
            async with served.http.get(served.url + path, headers=headers) as response:
                assert response.status == 401, headers
                assert "WWW-Authenticate" in response.headers
                body = await response.text()
                assert "s3cret" not in body
                assert '"advice"' in body
        for open_path in ("/healthz", "/readyz"):
            async with served.http.get(served.url + open_path) as response:
                assert response.status == 200


@pytest.mark.parametrize("token", TOKENS.values())
async def test_each_token_opens_as_bearer_and_as_password(token: str) -> None:
    async with serving(ShopLog(), config=ServerConfig(listen="127.0.0.1:0", tokens=TOKENS)) as served:
        basic = base64.b64encode(f"me:{token}".encode()).decode()
        for authorization in (f"Bearer {token}", f"bearer {token}", f"Basic {basic}"):
            assert (await answer(served, "/v1/status", Authorization=authorization))[0] == 200


async def test_without_tokens_a_request_by_another_host_name_is_refused() -> None:
    async with serving(ShopLog()) as served:
        status, body = await answer(served, "/v1/status", Host="rebound.example.com")
        assert (status, "server.tokens" in body["advice"]) == (403, True)
        for host in ("localhost:8080", "127.0.0.1", "[::1]:99", "shop.localhost"):
            assert (await answer(served, "/v1/status", Host=host))[0] == 200
        async with served.http.get(f"{served.url}/healthz", headers={"Host": "probe.example.com"}) as response:
            assert response.status == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:8080", "[::]:8080", "192.0.2.7:80", "db.example.com:8080"])
def test_a_public_address_without_tokens_is_refused_before_binding(listen: str) -> None:
    with pytest.raises(ServerError, match=r"server\.listen") as refused:
        server(listen)
    assert "server.tokens" in refused.value.message
    assert "127.0.0.1" in refused.value.advice
    server(listen, TOKENS)


@pytest.mark.parametrize("token", ["", "with space", "naïve", "line\nfeed"])
def test_a_token_that_no_header_can_carry_is_refused_by_its_name(token: str) -> None:
    with pytest.raises(ConfigError) as refused:
        server("127.0.0.1:0", {"reader": token})
    assert refused.value.problems[0].startswith("server.tokens.reader: ")
    assert not token or token not in refused.value.paragraph()


# where it listens


@pytest.mark.parametrize(
    "listen",
    [
        "",
        "8080",
        ":8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:http",
        "::1:80",
        "[::1]",
        "[zz]:1",
        "h:70000",
        "http://h:1",
    ],
)
def test_a_malformed_address_is_a_problem_of_server_listen(listen: str) -> None:
    with pytest.raises(ConfigError) as refused:
        server(listen)
    assert refused.value.problems[0].startswith("server.listen: ")


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
async def test_port_zero_takes_a_free_port_that_url_tells(listen: str) -> None:
    started = server(listen)
    assert started.url == ""
    await started.start()
    try:
        assert not started.url.endswith(":0")
        async with aiohttp.ClientSession() as http, http.get(f"{started.url}/healthz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")
    finally:
        await started.stop()
        await started.stop()


async def test_stop_before_start_is_fine() -> None:
    await server("127.0.0.1:0").stop()


async def test_a_taken_port_is_named_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        refused = server(f"127.0.0.1:{port}")
        with pytest.raises(ServerError, match=f"127.0.0.1:{port}") as failed:
            await refused.start()
        assert f"(pid {os.getpid()})" in failed.value.message
        assert failed.value.exit_code == 6
        await refused.stop()


async def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ServerError, match=r"192\.0\.2\.7:80"):
        await server("192.0.2.7:80", TOKENS).start()
    with pytest.raises(ServerError, match=r"no-such-host\.invalid"):
        await server("no-such-host.invalid:80", TOKENS).start()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("LOCALHOST.", True),
        ("app.localhost", True),
        ("localhost.example.com", False),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_what_others_reach(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_address_reads_back_as_written() -> None:
    for text in ("127.0.0.1:8080", "[::1]:8080", "localhost:0"):
        assert str(ListenAddress.parse(text)) == text


# what it says


async def test_readyz_names_every_part_that_is_not_ready() -> None:
    log = ShopLog()
    sources = {
        "shop": STREAMING,
        "crm": SourceStatus("connecting", "db.internal:5432 refused the connection", ""),
        "old": SourceStatus(
            "snapshot", "", "0/1", snapshot={"tables_done": 1, "tables": 4, "rows": 10, "estimated_rows": 99}
        ),
    }
    worker = Worker(health=Health("features", False, "the online store doesn't answer"))
    async with serving(log, sources=lambda: sources, others=[worker]) as served:
        status, body = await answer(served, "/readyz")
        assert (status, body["is_ready"]) == (503, False)
        parts = {part["part"]: part for part in body["parts"]}
        assert parts["source shop"] == {"part": "source shop", "is_ready": True, "reason": ""}
        assert parts["source crm"]["reason"] == "db.internal:5432 refused the connection"
        assert "1 of 4 tables" in parts["source old"]["reason"]
        assert parts["features"]["reason"] == "the online store doesn't answer"
        assert parts["subscribe"]["is_ready"]
        assert parts["log"]["is_ready"]
        del sources["crm"], sources["old"]
        worker._health = Health("features", True)
        assert (await answer(served, "/readyz"))[0] == 200
        log.failure = LogUnavailable("the disk is full")
        status, body = await answer(served, "/readyz")
        assert (status, {"part": "log", "is_ready": False, "reason": "the disk is full"} in body["parts"]) == (
            503,
            True,
        )


async def test_a_stopped_consumer_is_not_ready_with_its_trouble() -> None:
    async with serving(ShopLog(), troubles=lambda: {"features": "a definition is wrong"}, others=[Worker()]) as served:
        status, body = await answer(served, "/readyz")
        assert status == 503
        assert {"part": "features", "is_ready": False, "reason": "a definition is wrong"} in body["parts"]


async def test_status_tells_places_lags_and_what_runs_compiled() -> None:
    log = ShopLog(partitions=1)
    await log.append_one_by_one([order_event(number) for number in range(10)])
    await log.trim(0, 2)
    async with serving(log, others=[Worker(offset=7)]) as served:
        status, body = await answer(served, "/v1/status")
        assert status == 200
        assert body["is_running"] is True
        assert body["log"]["partitions"] == [{"partition": 0, "first": 2, "end": 10}]
        assert body["log"]["generation"] == "g1"
        assert body["sources"]["shop"]["phase"] == "streaming"
        assert body["sources"]["shop"]["retained_bytes"] == 4096
        assert body["consumers"]["features"]["lag_events"] == 3
        assert body["consumers"]["subscribe"]["lag_events"] is None
        assert body["consumers"]["subscribe"]["readers"] == 0
        assert body["is_compiled"] == all(body["compiled"].values())
        log.failure = LogUnavailable("the disk is full")
        assert (await answer(served, "/v1/status"))[1]["troubles"]["log"] == "the disk is full"


async def test_errors_are_words_and_advice_and_never_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ShopLog(), others=[Worker()]) as served:
        status, body = await answer(served, "/fail")
        assert (status, set(body)) == (500, {"error", "advice"})
        assert "42" not in str(body)
        assert "RuntimeError" in caplog.text
        status, body = await answer(served, "/unavailable")
        assert (status, body["error"]) == (503, "the online store at redis:6379 doesn't answer")
        assert "features.store" in body["advice"]
        assert (await answer(served, "/nothing"))[0] == 404
        async with served.http.post(f"{served.url}/v1/status") as response:
            assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
            assert "GET,HEAD" in (await response.json())["advice"]
        async with served.http.post(f"{served.url}/echo", data=io.BytesIO(b"x" * (9 << 20))) as response:
            assert response.status == 413
            assert "8 MiB" in (await response.json())["advice"]


async def test_answers_are_private_typed_and_never_for_other_pages() -> None:
    async with serving(ShopLog()) as served:
        for path in ("/", "/healthz", "/v1/status", "/nothing", "/v1/events"):
            async with served.http.get(served.url + path, headers={"Origin": "http://evil.example"}) as response:
                headers = response.headers
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert headers["Cache-Control"] == "no-store"
                assert headers["Server"] == "headrace"
                assert "Access-Control-Allow-Origin" not in headers
        async with served.http.get(f"{served.url}/") as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            page = await response.text()
            assert len(page) < 60_000
            assert "http://" not in page.replace("http://www.w3.org/", "")
            assert "https://" not in page


# copies that are asked for


async def test_a_snapshot_is_asked_for_by_json_only() -> None:
    asked: list[tuple[str, list[str], str]] = []

    async def snapshot(source: str, tables: Sequence[str], where: str) -> Asked:
        asked.append((source, list(tables), where))
        if source != "shop":
            raise RequestRefused(f'there is no source "{source}"', advice="name another")
        return Asked(2, list(tables))

    async with serving(ShopLog(), snapshot=snapshot) as served:

        async def post(source: str, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
            url = f"{served.url}/v1/sources/{source}/snapshot"
            async with served.http.post(url, data=body, headers={"Content-Type": kind}) as response:
                return response.status, await response.json()

        assert await post("shop", b'{"tables": ["public.t"], "where": "id > 1"}') == (
            202,
            {"number": 2, "tables": ["public.t"]},
        )
        status, document = await post("other", b'{"tables": ["public.t"]}')
        assert (status, document["advice"]) == (400, "name another")
        # Another web page's form can send these without being asked.
        assert (await post("shop", b'{"tables": ["public.t"]}', "text/plain"))[0] == 415
        for body in (b"", b"{}", b'{"tables": []}', b'{"tables": ["t"], "wher": ""}', b"\xff"):
            assert (await post("shop", body))[0] == 400
        assert asked == [("shop", ["public.t"], "id > 1"), ("other", ["public.t"], "")]
