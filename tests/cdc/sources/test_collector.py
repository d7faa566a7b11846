"""The collector over HTTP: what is taken, what is set aside, what is refused, and that a 200 means durable."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import zlib
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec
import pytest
from prometheus_client.exposition import generate_latest

from collecting import KEY, NOW_US, basic, collecting
from contract.log_contract import letter
from headrace.cdc import web as web_module
from headrace.cdc.config import ServerConfig
from headrace.cdc.errors import LogUnavailable, ServerError
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.process.validate import Plan, PlanFile, PlannedEvent
from headrace.cdc.sources import collector as collector_module
from headrace.cdc.sources import collector_quick, intake
from headrace.cdc.sources.collector import Collector
from headrace.cdc.sources.collector_config import CollectorConfig
from serving import no_snapshot, until

DEADLINE_S = 10.0


def track(number: int, **rest: Any) -> dict[str, Any]:
    return {"type": "track", "userId": f"u{number}", "event": "A", "messageId": f"m{number}"} | rest


class GatedLog(MemoryLog):
    """Appends wait until the gate is open. appends: events of each, as they were asked for. failure: raised in place of one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.appends: list[list[str]] = []
        self.failure: Exception | None = None

    async def append(self, events: Sequence[CustomerEvent], **rest: Any) -> tuple[int, ...]:
        self.appends.append([event.sdk.message_id or "" for event in events if event.sdk])
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return await super().append(events, **rest)


class Otherwise:
    """In place of the quick way: aiohttp from the first byte on."""

    def __init__(self, collector: Collector, otherwise: Any) -> None:
        self._otherwise = otherwise

    def __call__(self) -> Any:
        return self._otherwise()

    async def stop(self, wait_s: float) -> None:
        pass


@pytest.fixture(autouse=True, params=["quick", "aiohttp"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every claim holds on both ways."""
    if request.param == "aiohttp":
        monkeypatch.setattr(collector_quick, "QuickWay", Otherwise)
    return str(request.param)


# what is taken


@pytest.mark.parametrize("kind", ["identify", "track", "page", "screen", "group", "alias"])
async def test_each_call_has_its_path_and_its_short_path_at_any_prefix(kind: str) -> None:
    call = {"userId": "u", "event": "A", "groupId": "g", "previousId": "p"}
    paths = [f"/v1/{kind}", f"/v1/{kind[0]}", f"/some/where/v1/{kind}", f"//v1/{kind}/", f"/v1//{kind}"]
    async with collecting() as here:
        for path in paths:
            assert await here.post(path, call) == (200, "ok"), path
        assert [event.kind for event in await here.events()] == [kind] * len(paths)


@pytest.mark.parametrize("path", ["/v1/batch", "/v1/b", "/v1/import", "/beacon/v1/batch", "/x/v1/batch/"])
async def test_a_batch_is_taken_in_its_order(path: str) -> None:
    async with collecting() as here:
        assert await here.post(path, {"batch": [track(n) for n in range(50)]}) == (200, "ok")
        events = await here.events()
        assert [event.user_id for event in events] == [f"u{n}" for n in range(50)]
        assert {event.sdk.writer for event in events if event.sdk} == {"website"}
        assert await here.letters() == []
        await until(lambda: here.reported == [("web", 50)])


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "x"])
async def test_the_content_type_does_not_matter(content_type: str) -> None:
    async with collecting() as here:
        assert (await here.post("/v1/track", track(1), **{"Content-Type": content_type}))[0] == 200
        assert len(await here.events()) == 1


async def test_bodies_come_packed_in_every_way_the_sdks_know() -> None:
    body = json.dumps({"batch": [track(1)]}).encode()
    async with collecting() as here:
        for data, encoding in [
            (gzip.compress(body), "gzip"),
            (gzip.compress(body), ""),
            (body, "gzip"),  # a proxy unpacked it and left the header
            (zlib.compress(body), "deflate"),
            (body, "identity"),
        ]:
            headers = {"Content-Encoding": encoding} if encoding else {}
            assert (await here.post("/v1/batch", data, **headers))[0] == 200, encoding

        async def chunks() -> Any:
            packed = gzip.compress(body)
            for at in range(0, len(packed), 10):
                yield packed[at : at + 10]

        async with here.http.post(
            here.url + "/v1/b", data=chunks(), headers=basic(KEY) | {"Content-Encoding": "gzip"}
        ) as answer:
            assert answer.status == 200
        assert len(await here.events()) == 1
        status, words = await here.post("/v1/batch", body, **{"Content-Encoding": "br"})
        assert (status, "gzip" in words) == (415, True)


async def test_the_key_comes_by_basic_by_query_and_in_the_body() -> None:
    batch = {"batch": [track(1)]}
    async with collecting() as here:
        plain = base64.b64encode(KEY.encode()).decode()
        ways: list[tuple[str, dict[str, Any], dict[str, str]]] = [
            ("/v1/batch", batch, {"Authorization": f"Basic {plain}"}),
            (f"/v1/batch?writeKey={KEY}", batch, {}),
            ("/v1/batch", batch | {"writeKey": KEY}, {}),
            ("/v1/batch", {"batch": [track(1, writeKey=KEY)]}, {}),
            ("/v1/t", track(1, writeKey=KEY), {}),
            ("/v1/t", track(1, writeKey=KEY), {"Authorization": "Bearer oauth-token"}),
        ]
        for path, body, headers in ways:
            assert await here.post(path, body, key=None, **headers) == (200, "ok"), (path, headers)
        assert len(await here.events()) == 1
        assert await here.post("/v1/batch", batch, key="app-key") == (200, "ok")
        assert [event.sdk.writer for event in await here.events() if event.sdk] == ["website", "app"]


async def test_a_wrong_key_or_none_is_refused_and_nothing_is_kept() -> None:
    async with collecting() as here:
        assert await here.post("/v1/track", track(1), key="wrong") == (401, "invalid write key")
        assert await here.post("/v1/track", track(1, writeKey=KEY), key="wrong") == (401, "invalid write key")
        assert await here.post("/v1/track", track(1), key=None) == (401, "failed to read writekey from header")
        assert await here.post("/v1/track", b"{", key="wrong") == (401, "invalid write key")
        for header in ("Basic", "Basic ???", "Basic " + base64.b64encode(b"\xff\xfe").decode(), "x" * 500):
            assert (await here.post("/v1/track", track(1), key=None, Authorization=header))[0] == 401
        assert (await here.events(), await here.letters()) == ([], [])


async def test_each_bad_event_is_set_aside_alone_with_its_reason_and_its_bytes() -> None:
    good = [json.dumps(track(number)).encode() for number in range(3)]
    bad = [
        b'{"type":"track","event":"A"}',
        b'{"userId":"u","n":NaN}',
        b'{"type":"x","userId":"u"}',
        b"[" * 9999 + b"]" * 9999,
    ]
    body = b'{"batch":[' + b",".join([good[0], bad[0], good[1], bad[1], bad[2], good[2], bad[3]]) + b"]}"
    async with collecting() as here:
        assert await here.post("/v1/batch", body) == (200, "ok")
        assert [event.user_id for event in await here.events()] == ["u0", "u1", "u2"]
        letters = [stored.letter for stored in await here.letters()]
        assert [letter.body for letter in letters[:3]] == bad[:3]
        assert [letter.reason for letter in letters] == ["no_customer", "not_json", "unknown_type", "wrong_type"]
        assert {(letter.source, letter.received_us) for letter in letters} == {("web", NOW_US)}


async def test_an_event_above_the_limit_is_set_aside_and_its_neighbours_are_taken() -> None:
    async with collecting(max_event=1000) as here:
        big = track(2, properties={"x": "y" * 1000})
        assert (await here.post("/v1/batch", {"batch": [track(1), big, track(3)]}))[0] == 200
        assert [event.user_id for event in await here.events()] == ["u1", "u3"]
        (stored,) = await here.letters()
        assert stored.letter.reason == "too_large"
        assert "max_event" in stored.letter.detail


async def test_an_unreadable_body_is_refused_in_plain_text_and_kept() -> None:
    async with collecting() as here:
        for path in ("/v1/batch", "/v1/track"):
            assert await here.post(path, b'{"batch":[{"userId":"u') == (400, "invalid json")
        assert [(s.letter.reason, s.letter.body) for s in await here.letters()] == [
            ("unreadable", b'{"batch":[{"userId":"u')
        ] * 2
        assert (await here.post("/v1/batch", b"\x1f\x8b nonsense"))[0] == 400


async def test_anonymous_ids_of_the_header_are_for_calls_without_one() -> None:
    async with collecting() as here:
        encoded = base64.b64encode("änon".encode()).decode()
        calls = [{"type": "page", "messageId": "1"}, {"type": "page", "anonymousId": "own", "messageId": "2"}]
        await here.post("/v1/batch", {"batch": calls}, AnonymousId=encoded)
        await here.post("/v1/page", {"messageId": "3"}, AnonymousId="7d5a-plain")
        assert [event.key for event in await here.events()] == ["änon", "own", "7d5a-plain"]


async def test_imported_events_keep_their_times_and_others_are_corrected() -> None:
    call = track(1, timestamp="2020-01-01T00:00:00Z", messageId=None)
    body = {"batch": [call], "sentAt": "2020-01-01T00:00:01Z"}
    async with collecting() as here:
        await here.post("/v1/import", body)
        await here.post("/v1/batch", body)
        old, corrected = await here.events()
        assert old.occurred_us == 1_577_836_800_000_000
        assert corrected.occurred_us == NOW_US - 1_000_000


# durable, once


async def test_the_answer_comes_after_the_append_and_not_before() -> None:
    log = GatedLog()
    async with collecting(log) as here:
        asking = asyncio.create_task(here.post("/v1/track", track(1)))
        await until(lambda: log.appends == [["m1"]])
        done, _ = await asyncio.wait([asking], timeout=0.05)
        assert not done
        log.gate.set()
        assert await asking == (200, "ok")


async def test_requests_that_come_while_appends_are_under_way_share_the_next() -> None:
    log = GatedLog()
    async with collecting(log) as here:
        asking = [asyncio.create_task(here.post("/v1/track", track(0)))]
        await until(lambda: len(log.appends) == 1)
        asking.append(asyncio.create_task(here.post("/v1/track", track(1))))
        await until(lambda: len(log.appends) == 2)
        asking += [asyncio.create_task(here.post("/v1/track", track(number))) for number in range(2, 12)]
        await until(lambda: here.collector.intake.counts.requests == 12)
        log.gate.set()
        assert await asyncio.gather(*asking) == [(200, "ok")] * 12
        assert [len(ids) for ids in log.appends] == [1, 1, 10]


async def test_a_repetition_counts_once_in_one_body_in_one_group_and_later() -> None:
    log = GatedLog()
    async with collecting(log) as here:
        asking = [asyncio.create_task(here.post("/v1/batch", {"batch": [track(1), track(1)]})) for _ in range(4)]
        await until(lambda: here.collector.intake.counts.requests == 4)
        log.gate.set()
        assert await asyncio.gather(*asking) == [(200, "ok")] * 4
        assert (await here.post("/v1/batch", {"batch": [track(1), track(2)]}))[0] == 200
        assert (await here.post("/v1/batch", {"batch": [track(1)]}, key="app-key"))[0] == 200
        events = await here.events()
        assert [(e.user_id, e.sdk.writer) for e in events if e.sdk] == [
            ("u1", "website"),
            ("u2", "website"),
            ("u1", "app"),
        ]
        assert len({event.id for event in events}) == 3
        assert here.collector.intake.counts.duplicates == 8
        assert await here.letters() == []


async def test_the_same_id_with_another_body_is_a_conflict_and_neither_is_lost() -> None:
    async with collecting() as here:
        await here.post("/v1/batch", {"batch": [track(1), track(1, event="B"), track(2)]})
        await here.post("/v1/track", track(2, properties={"n": 2}))
        assert [event.name for event in await here.events()] == ["A", "A"]
        letters = [stored.letter for stored in await here.letters()]
        assert [letter.reason for letter in letters] == ["conflict", "conflict"]
        assert json.loads(letters[1].body)["properties"] == {"n": 2}


async def test_events_without_a_message_id_are_counted_and_kept_twice() -> None:
    async with collecting() as here:
        for _ in range(2):
            await here.post("/v1/track", track(1, messageId=""))
        one, two = await here.events()
        assert one.id != two.id
        assert here.collector.intake.counts.unnamed == 2
        shown = generate_latest(here.registry).decode()
        assert 'headrace_collector_unnamed_events_total{source="web"} 2.0' in shown
        assert 'headrace_collector_requests_total{source="web"} 2.0' in shown


async def test_a_log_that_fails_is_told_by_503_and_ends_the_collector() -> None:
    log = GatedLog()
    async with collecting(log) as here:
        log.failure = LogUnavailable("log web.db can't be written: the disk is full")
        log.gate.set()
        assert (await here.post("/v1/track", track(1)))[0] == 503
        with pytest.raises(LogUnavailable, match="the disk is full"):
            await asyncio.wait_for(here.running, DEADLINE_S)
        assert (await here.post("/v1/track", track(2)))[0] == 503


async def test_a_stop_finishes_what_was_taken_and_asks_later_ones_to_come_again() -> None:
    log = GatedLog()
    async with collecting(log) as here:
        asking = [asyncio.create_task(here.post("/v1/track", track(number))) for number in range(5)]
        await until(lambda: here.collector.intake.counts.requests == 5)
        here.running.cancel()
        await until(lambda: here.collector.status().phase == "stopped")
        async with here.http.post(here.url + f"/v1/track?writeKey={KEY}", json=track(9)) as late:
            assert (late.status, late.headers["Retry-After"]) == (503, "1")
        log.gate.set()
        assert await asyncio.gather(*asking) == [(200, "ok")] * 5
        assert len(await here.events()) == 5


async def test_without_room_a_request_is_held_and_then_asked_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "HELD_BYTES", 1500)
    log = GatedLog()
    async with collecting(log) as here:
        first = asyncio.create_task(here.post("/v1/track", track(1)))
        await until(lambda: len(log.appends) == 1)
        held = asyncio.create_task(here.post("/v1/batch", {"batch": [track(2), track(3)]}))
        await until(lambda: bool(here.collector.intake._room))
        monkeypatch.setattr(collector_module, "HOLD_S", 0.05)
        async with here.http.post(
            here.url + f"/v1/batch?writeKey={KEY}",
            json={"batch": [track(4), track(5)]},
            headers={"Origin": "https://a.b"},
        ) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "5")
            assert answer.headers["Access-Control-Expose-Headers"].startswith("Retry-After")
        log.gate.set()
        assert (await first, await held) == ((200, "ok"), (200, "ok"))
        assert [event.user_id for event in await here.events()] == ["u1", "u2", "u3"]


async def test_a_client_that_goes_away_takes_nothing_back() -> None:
    log = GatedLog()
    async with collecting(log) as here:
        asking = asyncio.create_task(here.post("/v1/track", track(1)))
        await until(lambda: len(log.appends) == 1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        log.gate.set()
        await until(lambda: here.reported == [("web", 1)])
        assert len(await here.events()) == 1


# hostile


async def test_a_body_above_the_limit_is_refused_before_it_is_read_or_unpacked() -> None:
    async with collecting(max_body=100_000) as here:
        assert (await here.post("/v1/batch", b"x" * 100_001))[0] == 413
        bomb = gzip.compress(b'{"batch":[' + b" " * (50 << 20) + b"]}")
        assert len(bomb) < 100_000
        assert (await here.post("/v1/batch", bomb, **{"Content-Encoding": "gzip"}))[0] == 413

        async def endless() -> Any:
            while True:
                yield b" " * 65_536

        with pytest.raises(aiohttp.ClientError):
            async with here.http.post(here.url + f"/v1/batch?writeKey={KEY}", data=endless()) as answer:
                assert answer.status == 413
                raise aiohttp.ClientError
        assert (await here.events(), await here.letters()) == ([], [])


async def test_a_large_body_is_read_beside_the_loop() -> None:
    async with collecting() as here:
        batch = [track(number, properties={"x": "y" * 500}) for number in range(1500)]
        assert (await here.post("/v1/batch", {"batch": batch}))[0] == 200
        assert (await here.post("/v1/batch", gzip.compress(msgspec.json.encode({"batch": batch}))))[0] == 200
        assert len(await here.events()) == 1500


async def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "BODY_S", 0.1)
    async with collecting() as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST /v1/track?writeKey=web-key HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{")
        async with asyncio.timeout(DEADLINE_S):
            assert (await reader.read(13)) == b"HTTP/1.1 408 "
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/track HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "])
async def test_a_connection_that_sends_no_whole_request_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(web_module, "IDLE_S", 0.2)
    monkeypatch.setattr(collector_quick, "IDLE_S", 0.2)
    async with collecting() as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(sent)
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        writer.close()


async def test_a_connection_is_used_again_after_every_answer() -> None:
    async with collecting() as here:
        with socket.create_connection(("127.0.0.1", here.port)) as link:
            link.setblocking(False)
            loop = asyncio.get_running_loop()
            for path, status in (("/v1/track", 401), ("/v1/track?writeKey=web-key", 400), ("/v1/nothing", 404)):
                await loop.sock_sendall(
                    link, b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n[]" % path.encode()
                )
                if status == 404:
                    break
                async with asyncio.timeout(DEADLINE_S):
                    answer = await loop.sock_recv(link, 1 << 16)
                assert answer.startswith(b"HTTP/1.1 %d " % status), answer


# browsers


async def test_a_preflight_echoes_what_the_browser_asks_for() -> None:
    async with collecting(origins=["https://shop.example"]) as here:
        asked = {
            "Origin": "https://shop.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,rsa-retry-attempt",
        }
        async with here.http.options(here.url + "/v1/track", headers=asked) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization,rsa-retry-attempt"
            assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST, OPTIONS"
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert int(answer.headers["Access-Control-Max-Age"]) > 0
        async with here.http.options(
            here.url + "/v1/track", headers=asked | {"Origin": "https://evil.example"}
        ) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
        evil = {"Origin": "https://evil.example"}
        assert (await here.post("/v1/track", track(1), **evil))[0] == 403
        assert await here.events() == []


async def test_errors_too_can_be_read_by_the_page() -> None:
    async with collecting() as here:
        for path, body in (("/v1/track?writeKey=x", b"{}"), ("/v1/batch?writeKey=web-key", b"{")):
            async with here.http.post(here.url + path, data=body, headers={"Origin": "https://a.example"}) as answer:
                assert answer.status in (400, 401)
                assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
                assert answer.headers["Content-Type"].startswith("text/plain")
                assert "Access-Control-Allow-Credentials" not in answer.headers, "no page was named"


async def test_settings_and_source_config_are_what_the_sdks_check() -> None:
    async with collecting() as here:
        for path in (f"/v1/projects/{KEY}/settings", f"/projects/{KEY}/settings", f"/x/y/v1/projects/{KEY}/settings"):
            async with here.http.get(here.url + path) as answer:
                assert answer.status == 200
                found = await answer.json()
                tag = answer.headers["ETag"]
            prefix = "/x/y" if path.startswith("/x") else ""
            segment = found["integrations"]["Segment.io"]
            assert (segment["apiKey"], segment["apiHost"]) == (KEY, f"127.0.0.1:{here.port}{prefix}/v1")
            assert list(found["integrations"]) == ["Segment.io"]
            assert found["metrics"]["sampleRate"] == 0
            async with here.http.get(here.url + path, headers={"If-None-Match": tag}) as answer:
                assert answer.status == 304
        async with here.http.get(here.url + "/v1/projects/unknown/settings") as answer:
            assert answer.status == 404
        for path in ("/sourceConfig", "/sourceConfig/?p=npm&v=3", "/x/sourceConfig"):
            async with here.http.get(here.url + path, headers=basic(KEY)) as answer:
                found = await answer.json()
                source = found["source"]
                assert source["id"] and source["enabled"] is True and source["destinations"] == []
                assert isinstance(source["config"], dict)
        async with here.http.get(here.url + f"/sourceConfig?writeKey={KEY}") as answer:
            assert answer.status == 200
        async with here.http.get(here.url + "/sourceConfig") as answer:
            assert answer.status == 401


async def test_a_pixel_is_always_the_picture() -> None:
    async with collecting() as here:
        call = json.dumps({"writeKey": KEY, "userId": "p1", "event": "Mail >> Opened?", "messageId": "1"}).encode()
        url_safe = base64.urlsafe_b64encode(call).decode().rstrip("=")
        for path, query in (
            ("/v1/pixel/track", {"data": base64.b64encode(call).decode()}),
            ("/v1/pixel/track", {"data": url_safe}),
            ("/pixel/v1/track", {"writeKey": KEY, "anonymousId": "'p2'", "event": "Opened", "properties": '{"a":1}'}),
            ("/x/pixel/v1/page", {"writeKey": KEY, "anonymousId": "p3"}),
            ("/pixel/v1/track", {"writeKey": KEY, "anonymousId": "p4", "event": ""}),
            ("/pixel/v1/page", {"writeKey": "wrong", "anonymousId": "p5"}),
            ("/v1/pixel/track", {"data": "%%%"}),
            ("/pixel/v1/track", {"writeKey": KEY, "anonymousId": "p6", "event": "x", "properties": "["}),
            ("/pixel/v1/page", {}),
        ):
            async with here.http.get(here.url + path, params=query) as answer:
                assert (answer.status, answer.content_type) == (200, "image/gif"), query
                assert (await answer.read()).startswith(b"GIF89a")
                assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert [(event.key, event.name) for event in await here.events()] == [
            ("p1", "Mail >> Opened?"),
            ("p2", "Opened"),
            ("p3", "Unknown Page"),
        ]


async def test_a_beacon_is_never_refused_for_what_is_in_it() -> None:
    async with collecting() as here:
        status, _ = await here.post(
            f"/beacon/v1/batch?writeKey={KEY}", {"batch": [track(1), {"type": "page"}], "sentAt": ""}, key=None
        )
        assert status == 200
        assert (len(await here.events()), len(await here.letters())) == (1, 1)


async def test_the_sdks_numbers_of_themselves_are_thrown_away_and_health_answers() -> None:
    async with collecting() as here:
        assert await here.post("/v1/m", b'{"series":[1]}', key=None) == (200, "ok")
        for path in ("/health", "/version", "/robots.txt"):
            async with here.http.get(here.url + path) as answer:
                assert answer.status == 200
        assert await here.events() == []


# rights beside the server's own


async def test_tokens_of_the_server_are_for_its_other_routes() -> None:
    async with collecting(tokens={"reader": "t0ken"}) as here:
        assert await here.post("/v1/track", track(1)) == (200, "ok")
        async with here.http.get(here.url + "/v1/status") as answer:
            assert answer.status == 401
        assert (await here.post("/v1/deadletters/drop", b"{}"))[0] == 401
        async with here.http.get(here.url + "/v1/status", headers={"Authorization": "Bearer t0ken"}) as answer:
            assert (await answer.json())["sources"]["web"]["phase"] == "streaming"


async def test_without_keys_only_this_machines_programs_and_pages_may_send() -> None:
    async with collecting(write_keys={}) as here:
        assert (await here.post("/v1/track", track(1), key=None))[0] == 200
        assert (await here.post("/v1/track", track(2), key="whatever", Origin="http://localhost:3000"))[0] == 200
        assert (await here.post("/v1/track", track(3), Origin="https://evil.example"))[0] == 403
        assert (await here.post("/v1/track", track(3), Host="rebound.example"))[0] == 403
        assert [event.sdk.writer for event in await here.events() if event.sdk] == ["any", "any"]


def test_beyond_loopback_it_needs_keys() -> None:
    def server(keys: dict[str, str]) -> web_module.WebServer:
        return web_module.WebServer(
            ServerConfig(listen="0.0.0.0:8080", tokens={"reader": "t0ken"}),
            consumers=[],
            sources=dict,
            log=MemoryLog(),
            registry=web_module.CollectorRegistry(),
            troubles=dict,
            snapshot=no_snapshot,
            pushed=[Collector("web", CollectorConfig(write_keys=keys))],
        )

    with pytest.raises(ServerError, match=r"sources\.web has no write_keys") as refused:
        server({})
    assert "write_keys" in refused.value.advice
    server({"k": "website"})


# dead letters again


async def test_a_dead_letter_is_taken_again_once_what_was_wrong_is_mended() -> None:
    async with collecting(max_event=200) as here:
        big = track(1, properties={"x": "y" * 300}, timestamp="2020-01-01T00:00:00Z", sentAt="2020-01-01T00:00:01Z")
        await here.post("/v1/batch", {"batch": [big, {"type": "page"}, track(2)]})
        await here.post("/v1/track", track(2, event="B"))
        assert [stored.letter.reason for stored in await here.letters()] == ["too_large", "no_customer", "conflict"]
        assert await here.post("/v1/deadletters/retry", {}) == (200, '{"retried":0,"kept":3}\n')
        here.collector._max_event = 1000
        assert await here.post("/v1/deadletters/retry", {"reason": "no_customer"}) == (200, '{"retried":0,"kept":1}\n')
        assert await here.post("/v1/deadletters/retry", {}) == (200, '{"retried":1,"kept":2}\n')
        events = await here.events()
        assert [event.user_id for event in events] == ["u2", "u1"]
        assert events[1].occurred_us == NOW_US - 1_000_000, "by the clock of when it came"
        assert [stored.letter.reason for stored in await here.letters()] == ["no_customer", "conflict"]
        assert await here.post("/v1/deadletters/drop", {"ids": [(await here.letters())[0].id]}) == (
            200,
            '{"dropped":1}\n',
        )
        assert await here.post("/v1/deadletters/drop", {"source": "other"}) == (200, '{"dropped":0}\n')
        assert (await here.post("/v1/deadletters/drop", {"id": 1}))[0] == 400
        assert [stored.letter.reason for stored in await here.letters()] == ["conflict"]
        # Sent again by the SDK it is known, as any other event.
        here.collector._max_event = 1000
        await here.post("/v1/track", big)
        assert len(await here.events()) == 2


async def test_an_unreadable_body_is_taken_again_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with collecting() as here:
        body = msgspec.json.encode({"batch": [track(1), track(2)], "sentAt": "2020-01-01T00:00:01Z"})

        def refuse(body: bytes) -> Any:
            raise collector_module.UnreadableError("a defect of then")

        with monkeypatch.context() as patched:
            patched.setattr(collector_module, "read_batch", refuse)
            assert (await here.post("/v1/batch", body))[0] == 400
            assert await here.post("/v1/deadletters/retry", {}) == (200, '{"retried":0,"kept":1}\n')
        assert await here.post("/v1/deadletters/retry", {}) == (200, '{"retried":1,"kept":0}\n')
        assert [event.user_id for event in await here.events()] == ["u1", "u2"]
        assert await here.letters() == []


async def test_letters_of_other_sources_stay() -> None:
    log = MemoryLog()
    await log.append([], source="gone", state=b"", letters=[msgspec.structs.replace(letter(1), source="gone")])
    async with collecting(log) as here:
        assert await here.post("/v1/deadletters/retry", {}) == (200, '{"retried":0,"kept":1}\n')
        assert len(await here.letters()) == 1


async def test_events_that_do_not_fit_the_plan_are_set_aside_and_fit_a_later_one() -> None:
    schema = {"required": ["total"]}
    plan = Plan(PlanFile(track={"A": PlannedEvent(schema)}))
    async with collecting(plan=plan) as here:
        fit = track(1, properties={"total": 1})
        assert (await here.post("/v1/batch", {"batch": [fit, track(2), track(3, event="B")]}))[0] == 200
        assert [event.user_id for event in await here.events()] == ["u1", "u3"]
        (stored,) = await here.letters()
        assert (stored.letter.reason, "required (total)" in stored.letter.detail) == ("violation", True)
        shown = generate_latest(here.registry).decode()
        assert 'headrace_collector_plan_quarantine_events_total{source="web"} 1.0' in shown
        here.collector._plan = None
        assert await here.post("/v1/deadletters/retry", {}) == (200, '{"retried":1,"kept":0}\n')
        assert [event.user_id for event in await here.events()] == ["u1", "u3", "u2"]
