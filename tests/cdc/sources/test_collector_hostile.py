"""Whatever bytes come: a clear answer, the service goes on, memory stays bounded, and each readable good event is taken.

Bodies are made from good ones by a seed: cut, flipped, nested, repeated, packed wrongly, or huge. ``-k 'hostile and 7'`` runs a seed again.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import zlib
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from collecting import KEY, basic, collecting

DEADLINE_S = 60.0
ANSWERS = {200, 400, 401, 413, 415, 429}


def call(number: int) -> dict[str, object]:
    return {
        "type": "track",
        "event": "A",
        "userId": f"u{number}",
        "messageId": f"m{number}",
        "properties": {"n": number, "text": "ä\u2028"},
    }


def hostile(rng: random.Random, number: int) -> tuple[str, bytes, dict[str, str]]:
    """What is wrong with it, the body, and headers."""
    good = json.dumps({"batch": [call(number), call(number + 1)]}).encode()
    headers: dict[str, str] = {}
    kind = rng.choice(
        ["cut", "flip", "insert", "deep", "number", "twice", "utf8", "surrogate", "null", "gzip cut", "gzip bomb", "gzip twice",
         "wrong encoding", "types", "huge array", "long name", "empty", "zlib", "bom", "nested batch", "many"]
    )  # fmt: skip
    match kind:
        case "cut":
            body = good[: rng.randrange(len(good))]
        case "flip":
            flipped = bytearray(good)
            for _ in range(rng.randrange(1, 8)):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            body = bytes(flipped)
        case "insert":
            at = rng.randrange(len(good))
            body = good[:at] + rng.randbytes(rng.randrange(1, 40)) + good[at:]
        case "deep":
            depth = rng.choice([199, 201, 10_000, 100_000])
            opening, closing = rng.choice([(b"[", b"]"), (b'{"a":', b"}")])
            body = (
                b'{"batch":[{"type":"track","event":"A","userId":"u","properties":{"x":'
                + opening * depth
                + b"1"
                + closing * depth
                + b"}}]}"
            )
        case "number":
            text = rng.choice(
                [b"1e999", b"-1e999", b"9" * 5000, b"NaN", b"-Infinity", b"1" + b"0" * 400, b"0x10", b"01", b"1.", b"-"]
            )
            body = (
                b'{"batch":[{"type":"track","event":"A","userId":"u","timestamp":'
                + text
                + b',"properties":{"x":'
                + text
                + b"}}]}"
            )
        case "twice":
            body = b'{"batch":[{"type":"track","type":"identify","event":"A","event":5,"userId":"u","userId":null}],"batch":[]}'
        case "utf8":
            body = good.replace(b"A", rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]))
        case "surrogate":
            body = good.replace(b'"A"', rng.choice([b'"\\ud800"', b'"\\udc00x"', b'"\\ud83d"', b'"\\u0000"']))
        case "null":
            body = rng.choice(
                [
                    b"null",
                    b"[]",
                    b"{}",
                    b'""',
                    b"0",
                    b'{"batch":null}',
                    b'{"batch":{}}',
                    b'{"batch":[null,1,"x",[],{}]}',
                ]
            )
        case "gzip cut":
            packed = gzip.compress(good)
            body, headers = packed[: rng.randrange(len(packed))], {"Content-Encoding": "gzip"}
        case "gzip bomb":
            body, headers = gzip.compress(b'{"batch":[' + b" " * (30 << 20), 1), {"Content-Encoding": "gzip"}
        case "gzip twice":
            body, headers = gzip.compress(gzip.compress(good)), {"Content-Encoding": "gzip"}
        case "wrong encoding":
            body, headers = good, {"Content-Encoding": rng.choice(["gzip", "br", "deflate", "x" * 200])}
        case "types":
            wrong = [5, None, True, [], {}, 1.5, "x" * 3000]
            made = {
                name: rng.choice(wrong)
                for name in (
                    "type",
                    "event",
                    "userId",
                    "anonymousId",
                    "messageId",
                    "properties",
                    "context",
                    "timestamp",
                    "sentAt",
                )
            }
            body = json.dumps({"batch": [made], "sentAt": rng.choice(wrong), "context": rng.choice(wrong)}).encode()
        case "huge array":
            body = b'{"batch":[' + b"1," * 200_000 + b"1]}"
        case "long name":
            body = json.dumps({"batch": [{**call(number), "event": "x" * 20_000, "messageId": "m" * 5000}]}).encode()
        case "empty":
            body = b""
        case "zlib":
            body, headers = zlib.compress(good), {"Content-Encoding": "deflate"}
        case "bom":
            body = b"\xef\xbb\xbf" + good
        case "nested batch":
            body = json.dumps({"batch": [[call(number)], {"batch": [call(number)]}]}).encode()
        case _:
            body = json.dumps({"batch": [{"type": "track"}] * 2000}).encode()
    return kind, body, headers


def resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def assault(seed: int, count: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(seed)
    met: Counter[str] = Counter()
    async with collecting(max_body=1 << 20) as here:
        with caplog.at_level(logging.WARNING):
            before = 0.0
            for number in range(count):
                kind, body, headers = hostile(rng, 10_000 + number * 2)
                path = rng.choice(["/v1/batch", "/v1/batch", "/v1/track", "/v1/import", "/v1/b", "/v1/t"])
                async with asyncio.timeout(DEADLINE_S):
                    try:
                        status, said = await here.post(path, body, **headers)
                    except aiohttp.ClientError:
                        status, said = 0, ""  # a connection that is cut in the middle of an upload that is too large
                assert status in ANSWERS | {0}, f"seed {seed}, {number}: {kind} was answered {status} {said}"
                met[f"{kind} {status}"] += 1
                if number % 25 == 0:
                    assert (await here.post("/v1/track", call(number)))[0] == 200, (
                        f"seed {seed}, behind {number}: {kind}"
                    )
                if number == count // 3:
                    before = resident_mib()
            assert resident_mib() - before < 150, f"seed {seed}: memory grew by {resident_mib() - before:.0f} MiB"
        wanted = {f"u{number}" for number in range(0, count, 25)}
        assert wanted <= {event.user_id for event in await here.events()}, f"seed {seed}"
        assert not [record for record in caplog.records if record.exc_info], f"seed {seed}: a traceback was logged"
    assert met.total() == count


@pytest.mark.parametrize("seed", [1, 2])
async def test_hostile_bodies_are_answered_and_harm_nobody(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    await assault(seed, 300, caplog)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 120))
async def test_many_hostile_bodies_are_answered_and_harm_nobody(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    await assault(seed, 3000, caplog)


async def test_a_burst_of_connections_is_served_in_bounded_memory() -> None:
    """As many requests as a stadium sends at once, over 400 connections; a few of them never say anything."""
    async with collecting() as here:
        silent = [await asyncio.open_connection("127.0.0.1", here.port) for _ in range(100)]
        before = resident_mib()
        connector = aiohttp.TCPConnector(limit=400)
        async with aiohttp.ClientSession(connector=connector, headers=basic(KEY)) as http:

            async def one(number: int) -> int:
                async with http.post(f"{here.url}/v1/track", json=call(number)) as response:
                    return response.status

            async with asyncio.timeout(DEADLINE_S):
                said = Counter(await asyncio.gather(*(one(number) for number in range(4000))))
        assert set(said) <= {200, 429} and said[200] > 0, said
        assert len(await here.events()) == said[200]
        assert resident_mib() - before < 200
        for _, writer in silent:
            writer.close()
