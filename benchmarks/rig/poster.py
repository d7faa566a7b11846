"""Clients of a collector in a process of their own: closed loop, each connection one request at a time, every event with a fresh id.

    python -m rig.poster HOST PORT CONNECTIONS EVENTS_A_REQUEST SECONDS SKIP_S PACE_S

Prints JSON: requests, seconds, and milliseconds from the first byte sent to the last received. PACE_S 0: the next request at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time

import uvloop

EVENT = json.dumps(
    {
        "type": "track",
        "messageId": "@@@@@@@@-5c0b-4d54-9b2e-0123456789ab",
        "anonymousId": "507f191e-810c-1972-9de8-60ea9a1b2c3d",
        "userId": "019mr8mf4r",
        "event": "Product Viewed",
        "timestamp": "2026-11-26T18:10:10.123Z",
        "properties": {
            "product_id": "507f1f77bcf86cd799439011", "sku": "G-32", "category": "Games", "name": "Monopoly: 3rd Edition",
            "brand": "Hasbro", "variant": "200 pieces", "price": 18.99, "quantity": 1, "coupon": "MAYDEALS", "currency": "usd",
            "position": 3, "value": 18.99, "url": "https://www.example.com/product/path",
            "image_url": "https://www.example.com/product/path.jpg",
        },
        "context": {
            "library": {"name": "analytics-python", "version": "2.4.0"}, "ip": "203.0.113.7", "locale": "en-US",
            "userAgent": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko)",
            "page": {"path": "/academy/", "referrer": "", "title": "Academy", "url": "https://example.com/academy/"},
        },
        "integrations": {"All": True},
    },
    separators=(",", ":"),
).encode()  # fmt: skip


class Poster(asyncio.Protocol):
    """One connection. took_s: of each answered request after the warm-up."""

    def __init__(self, events: int, begin: float, pace_s: float) -> None:
        self._begin = begin
        self._pace_s = pace_s
        self._parts = self._request(events)
        self._buffer = b""
        self._sent = 0.0
        self.took_s: list[float] = []
        self.is_stopped = False
        self.failure = ""

    @staticmethod
    def _request(events: int) -> tuple[bytes, list[bytes]]:
        """What stands before the first id, and after each."""
        before, after = EVENT.split(b"@@@@@@@@")
        body = (
            (before + b"@@@@@@@@" + after)
            if events == 1
            else b'{"batch":[' + b",".join([EVENT] * events) + b'],"sentAt":"2026-11-26T18:10:11.000Z"}'
        )
        path = b"/v1/track" if events == 1 else b"/v1/batch"
        head = (
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: analytics-python/2.4.0\r\nAccept-Encoding: gzip, deflate\r\n"
            b"Accept: */*\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nAuthorization: Basic azo=\r\n"
            b"Content-Length: %d\r\n\r\n"
        ) % (path, len(body))
        first, *rest = (head + body).split(b"@@@@@@@@")
        return first, rest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        first, rest = self._parts
        random = os.urandom(4 * len(rest)).hex().encode()
        pieces = [first]
        for number, piece in enumerate(rest):
            pieces.append(random[8 * number : 8 * number + 8])
            pieces.append(piece)
        self._sent = time.perf_counter()
        self._transport.write(b"".join(pieces))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._buffer.endswith(b"ok"):
            if len(self._buffer) > 4096:
                self.failure = self._buffer[:200].decode()
            return
        now = time.perf_counter()
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            self.failure = self._buffer[:200].decode()
        self._buffer = b""
        if now > self._begin:
            self.took_s.append(now - self._sent)
        if self.is_stopped:
            self._transport.close()
        elif self._pace_s:
            asyncio.get_running_loop().call_later(self._pace_s, self._send)
        else:
            self._send()


async def main(host: str, port: str, connections: str, events: str, seconds: str, skip_s: str, pace_s: str) -> None:
    loop = asyncio.get_running_loop()
    begin = time.perf_counter() + float(skip_s)
    posters = [
        (await loop.create_connection(lambda: Poster(int(events), begin, float(pace_s)), host, int(port)))[1]
        for _ in range(int(connections))
    ]
    await asyncio.sleep(begin - time.perf_counter())
    sys.stdout.write("begin\n")
    sys.stdout.flush()
    await asyncio.sleep(float(seconds))
    for poster in posters:
        poster.is_stopped = True
    took_s = sorted(took for poster in posters for took in poster.took_s)
    wall_s = time.perf_counter() - begin
    cuts = statistics.quantiles(took_s, n=1000)
    print(
        json.dumps(
            {
                "requests": len(took_s),
                "seconds": wall_s,
                "p50_ms": round(cuts[499] * 1000, 3),
                "p99_ms": round(cuts[989] * 1000, 3),
                "max_ms": round(took_s[-1] * 1000, 3),
                "failure": next((poster.failure for poster in posters if poster.failure), ""),
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
