"""The quick way answers as aiohttp does, whatever is sent and however it is cut; what isn't ordinary it hands over."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from collecting import KEY, Collecting, collecting
from headrace.cdc import web as web_module
from headrace.cdc.sources import collector as collector_module
from headrace.cdc.sources import collector_quick
from headrace.cdc.sources.collector import Collector
from headrace.cdc.sources.collector_config import CollectorConfig
from headrace.cdc.sources.collector_quick import QuickWay
from serving import until

DEADLINE_S = 10.0
AUTH = b"Authorization: Basic " + base64.b64encode(KEY.encode() + b":")


def request(number: int, *more: bytes, path: bytes = b"/v1/track", length: bytes | None = None) -> bytes:
    body = b'{"type":"track","userId":"u%d","event":"A","messageId":"m%d"}' % (number, number)
    head = b"\r\n".join(
        [
            b"POST " + path + b" HTTP/1.1",
            b"Host: 127.0.0.1",
            AUTH,
            b"Content-Length: " + (b"%d" % len(body) if length is None else length),
            *more,
        ]
    )
    return head + b"\r\n\r\n" + body


class Link:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(DEADLINE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split(" ")[1]), headers, body


@asynccontextmanager
async def link(here: Collecting) -> AsyncIterator[Link]:
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
    try:
        yield Link(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """First bytes of each request with which a connection was handed over."""
    seen: list[bytes] = []
    hand_over = collector_quick.QuickConnection._hand_over

    def noted(self: Any, data: bytes) -> None:
        seen.append(data.split(b"\r\n")[0])
        hand_over(self, data)

    monkeypatch.setattr(collector_quick.QuickConnection, "_hand_over", noted)
    return seen


async def users(here: Collecting) -> list[str | None]:
    return [event.user_id for event in await here.events()]


async def test_requests_may_come_byte_by_byte(handed_over: list[bytes]) -> None:
    async with collecting() as here, link(here) as one:
        for number in range(3):
            for byte in request(number):
                one.writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert (await one.answer())[::2] == (200, b"ok")
        assert await users(here) == ["u0", "u1", "u2"]
    assert handed_over == []


async def test_requests_behind_each_other_are_answered_in_their_order(handed_over: list[bytes]) -> None:
    async with collecting() as here, link(here) as one:
        bad = request(7).replace(AUTH, b"Authorization: Basic eDo=")
        one.writer.write(b"".join([*(request(number) for number in range(50)), bad, request(50), b""]))
        assert [(await one.answer())[0] for _ in range(52)] == [200] * 50 + [401, 200]
        assert await users(here) == [f"u{number}" for number in range(51)]
    assert handed_over == []


async def test_a_flood_behind_a_held_request_stops_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_quick, "_BUFFER_BYTES", 1000)
    async with collecting() as here, link(here) as one:
        connection = await held(here, one)
        one.writer.write(b"".join(request(number) for number in range(1, 100)))
        await until(lambda: connection._is_paused)
        here.collector.intake._is_open = True
        here.log.gate.set()
        assert [(await one.answer())[0] for _ in range(100)] == [200] * 100
        assert len(await here.events()) == 100


async def test_a_client_that_reads_no_answers_gets_no_further_ones() -> None:
    async with collecting() as here, link(here) as one:
        one.writer.write(request(0))
        assert (await one.answer())[0] == 200
        (way,) = here.server._quick
        assert isinstance(way, QuickWay)
        (connection,) = way.connections
        connection.pause_writing()
        one.writer.write(request(1) + request(2))
        async with link(here) as other:
            other.writer.write(request(3))
            assert (await other.answer())[0] == 200
        assert await users(here) == ["u0", "u3"]
        connection.resume_writing()
        assert [(await one.answer())[0] for _ in range(2)] == [200, 200]
        assert await users(here) == ["u0", "u3", "u1", "u2"]


async def test_thousands_of_refused_requests_behind_each_other_are_answered(handed_over: list[bytes]) -> None:
    async with collecting() as here, link(here) as one:
        bad = request(7).replace(AUTH, b"Authorization: Basic eDo=")
        one.writer.write(bad * 3000 + request(1))
        assert [(await one.answer())[0] for _ in range(3001)] == [401] * 3000 + [200]
    assert handed_over == []


async def held(here: Collecting, one: Link, *, number: int = 0) -> Any:
    """A request that waits in the log; its connection, None when that was handed over."""
    before = here.collector.intake.counts.requests
    gate = asyncio.Event()
    append = here.log.append

    async def slow(*arguments: Any, **rest: Any) -> Any:
        await gate.wait()
        return await append(*arguments, **rest)

    here.log.append = slow
    here.log.gate = gate
    one.writer.write(request(number))
    await until(lambda: here.collector.intake.counts.requests == before + 1)
    (way,) = here.server._quick
    assert isinstance(way, QuickWay)
    return next((connection for connection in way.connections if connection._is_taken), None)


async def test_what_is_not_ordinary_is_handed_over_with_all_its_bytes(handed_over: list[bytes]) -> None:
    async with collecting() as here, link(here) as one:
        chunked = (
            request(2, b"Transfer-Encoding: chunked", length=b"@")
            .replace(b"Content-Length: @\r\n", b"")
            .split(b"\r\n\r\n")
        )
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(chunked[1]), chunked[1])
        get = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        one.writer.write(request(1) + chunked[0] + b"\r\n\r\n" + body + get + request(3))
        assert [(await one.answer())[::2] for _ in range(4)] == [
            (200, b"ok"),
            (200, b"ok"),
            (200, b"ok\n"),
            (200, b"ok"),
        ]
        assert await users(here) == ["u1", "u2", "u3"]
    assert handed_over == [b"POST /v1/track HTTP/1.1"]


def test_the_quick_way_and_the_handing_over_work_on_uvloop() -> None:
    """What ``headrace run`` uses; its transports are others."""
    get = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    async def scenario() -> None:
        async with collecting() as here, link(here) as one:
            one.writer.write(request(0)[:70])
            await one.writer.drain()
            one.writer.write(request(0)[70:] + request(1))
            assert [(await one.answer())[0] for _ in range(2)] == [200, 200]
            one.writer.write(request(2) + get + request(3))
            assert [(await one.answer())[::2] for _ in range(3)] == [(200, b"ok"), (200, b"ok\n"), (200, b"ok")]
            connection = await held(here, one, number=4)
            assert connection is None, "handed over for good"
            assert await users(here) == ["u0", "u1", "u2", "u3"]
            here.log.gate.set()
            assert (await one.answer())[0] == 200

    uvloop.run(scenario())


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/track HTTP/1.0",
        b"POST  /v1/track HTTP/1.1",
        b"POST /v1/track?writeKey=web-key HTTP/1.1",
        b"POST /v1/tr%61ck HTTP/1.1",
        b"PUT /v1/track HTTP/1.1",
        b"POST /v1/nothing HTTP/1.1",
        b"POST /v1/track HTTP/1.1\r\nContent-Length: 5",
        b"POST /v1/track HTTP/1.1\r\nTransfer-Encoding: identity",
        b"POST /v1/track HTTP/1.1\r\nTransfer-Encoding : chunked",
        b"POST /v1/track HTTP/1.1\r\nX-A: b\r\n folded: yes",
        b"POST /v1/track HTTP/1.1\r\nX-A: b\nTransfer-Encoding: chunked",
        b"POST /v1/track HTTP/1.1\r\nX-A: b\rTransfer-Encoding: chunked",
        b"POST /v1/track HTTP/1.1\r\nX-A: \0",
        b"POST /v1/track HTTP/1.1\r\n: empty",
        b"POST /v1/track HTTP/1.1\r\nExpect: 100-continue",
        b"POST /v1/track HTTP/1.1\r\nConnection: close",
        b"POST /v1/track HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket",
        b"POST /v1/track HTTP/1.1\r\nContent-Encoding: br",
        b"POST /v1/track HTTP/1.1\r\nHost: other",
        b"POST /v1/track HTTP/1.1\r\nX-A: " + b"a" * 20_000,
        b"\x16\x03\x01\x02",
    ],
)
async def test_such_a_head_is_not_read_here(head: bytes, handed_over: list[bytes]) -> None:
    async with collecting() as here, link(here) as one:
        one.writer.write(head + request(1)[len(b"POST /v1/track HTTP/1.1") :])
        await until(lambda: len(handed_over) == 1)


@pytest.mark.parametrize(
    "length", [b"", b"-1", b"+5", b"0x10", b"1_0", b" ", b"5 5", b"5,5", b"9999999999", "５".encode()]
)
async def test_an_odd_length_is_not_read_here(length: bytes, handed_over: list[bytes]) -> None:
    async with collecting() as here, link(here) as one:
        one.writer.write(request(1, length=length))
        await until(lambda: len(handed_over) == 1)
        assert await users(here) == []


def mutated(rng: random.Random, number: int) -> bytes:
    """One or two requests with a few bytes of the first head changed."""
    first = bytearray(request(2 * number, b"User-Agent: analytics-python/2.4.0", b"Content-Type: application/json"))
    end = first.index(b"\r\n\r\n") + 4
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(end)
        match rng.randrange(4):
            case 0:
                first[at] = rng.randrange(256)
            case 1:
                del first[at]
            case 2:
                first[at:at] = rng.choice(
                    [b"\r\n", b"\n", b" ", b"\t", b":", b"\0", b"\r\nContent-Length: 5\r\n", b"\r\nX: y\r\n z"]
                )
            case _:
                first[at:at] = rng.choice(
                    [b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"\r\n\r\n", b"Host: x\r\n"]
                )
        end = first.find(b"\r\n\r\n") + 4
        if end < 4:
            break
    return bytes(first) + (request(2 * number + 1) if rng.random() < 0.5 else b"")


@pytest.mark.parametrize("seed", [1])
async def test_both_ways_say_the_same_to_broken_heads(seed: int) -> None:
    await compare(seed, 300)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(2, 12))
async def test_both_ways_say_the_same_to_many_broken_heads(seed: int) -> None:
    for part in range(10):
        await compare(100 * seed + part, 300)


async def compare(seed: int, count: int) -> None:
    """Statuses of all answers, and the events that came of it."""
    rng = random.Random(seed)
    sent = [mutated(rng, number) for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        # What makes no whole request ends by these.
        patch.setattr(web_module, "IDLE_S", 0.3)
        patch.setattr(collector_quick, "IDLE_S", 0.3)
        patch.setattr(collector_module, "BODY_S", 0.3)
        patch.setattr(web_module, "_LINGER_S", 0.1)
        async with collecting() as quick:
            by_quick = await asyncio.gather(*(statuses(quick, data) for data in sent))
            quick_users = await users(quick)
        patch.setattr(collector_quick, "QuickWay", _Otherwise)
        async with collecting() as plain:
            by_plain = await asyncio.gather(*(statuses(plain, data) for data in sent))
            plain_users = await users(plain)
    for data, one, other in zip(sent, by_quick, by_plain, strict=True):
        # To a request with nonsense behind it in the same piece aiohttp doesn't answer at all.
        assert one == other or other == [], f"seed {seed}: {data!r}"
    assert sorted(map(str, quick_users)) == sorted(map(str, plain_users)), f"seed {seed}"
    assert len(quick_users) > count / 3


class _Otherwise:
    def __init__(self, collector: Collector, otherwise: Any) -> None:
        self._otherwise = otherwise

    def __call__(self) -> Any:
        return self._otherwise()

    async def stop(self, wait_s: float) -> None:
        pass


async def test_a_request_that_is_no_http_leaves_no_key_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with collecting() as here, link(here) as one:
        one.writer.write(b"POST /v1/track HTTP/1.1\r\nHost: x\r\nAuthorization: Basic d2Vi\rLWtleTo=\r\n\r\n")
        assert (await one.answer())[0] == 400
    assert "d2Vi" not in caplog.text


async def statuses(here: Collecting, data: bytes) -> list[bytes]:
    """Of each answer until the server closes."""
    async with link(here) as one:
        one.writer.write(data)
        found = b""
        async with asyncio.timeout(DEADLINE_S):
            try:
                while piece := await one.reader.read(1 << 16):
                    found += piece
            except ConnectionError:
                pass
    return [line[9:12] for line in found.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


async def test_a_stop_answers_what_is_under_way_and_closes_what_is_idle() -> None:
    async with collecting() as here, link(here) as one, link(here) as idle:
        await held(here, one)
        stopping = asyncio.create_task(here.server.stop())
        async with asyncio.timeout(DEADLINE_S):
            assert await idle.reader.read() == b""
        here.log.gate.set()
        assert (await one.answer())[::2] == (200, b"ok")
        async with asyncio.timeout(DEADLINE_S):
            assert await one.reader.read() == b""
        await stopping


async def test_bodies_that_come_slowly_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "READING_BYTES", 3000)
    async with collecting() as here, link(here) as one, link(here) as two:
        head = request(1, length=b"5000").split(b"\r\n\r\n")[0] + b"\r\n\r\n"
        one.writer.write(head + b" " * 2000)
        await until(lambda: here.collector.reading_bytes == 2000)
        two.writer.write(head + b" " * 2000)
        status, headers, _ = await two.answer()
        assert (status, headers["retry-after"]) == (429, "5")
        one.writer.close()
        await until(lambda: here.collector.reading_bytes == 0)


def test_paths_of_events_and_no_others_are_known() -> None:
    collector = Collector("web", CollectorConfig(write_keys={"k": "w"}))
    for path, found in (
        (b"/v1/track", ("track", False)),
        (b"/x/y//v1//b/", ("", False)),
        (b"/v1/import", ("", True)),
        (b"//v1/t", ("track", False)),
    ):
        assert collector.event_path(path) == found
    for path in (
        b"v1/track",
        b"/v1/tracks",
        b"/v1/",
        b"/v1/m",
        b"/xv1/track",
        b"/v1/track?a=b",
        b"/v1/track/x",
        b"/a b/v1/track",
        b"*",
    ):
        assert collector.event_path(path) is None, path
