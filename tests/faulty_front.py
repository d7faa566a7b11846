"""An HTTP front that does to requests what networks and proxies do, one fault a request, by a seed.

``pass`` hands over both ways. ``cut_before`` closes before the server has seen the request, ``cut_after`` once the server has answered,
so that the client can't know. ``error`` answers 500 or 503 by itself, ``slow`` hands over the answer late and in two pieces.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Self

FAULTS = ("cut_before", "cut_after", "error", "slow")


class FaultyFront:
    """Listens on ``port`` once started. share: of requests that meet a fault, never more than two in a row. met: how many of each."""

    def __init__(self, server_port: int, *, seed: int, share: float = 0.5) -> None:
        self._server_port = server_port
        self._rng = random.Random(seed)
        self._share = share
        self._in_a_row = 0
        self.met: Counter[str] = Counter()
        self.port = 0
        self._links: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def _fault(self) -> str:
        if self._in_a_row == 2 or self._rng.random() >= self._share:
            self._in_a_row = 0
            return "pass"
        self._in_a_row += 1
        return self._rng.choice(FAULTS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            while request := await _message(reader):
                fault = self._fault()
                self.met[fault] += 1
                if fault == "cut_before":
                    return
                if fault == "error":
                    status = self._rng.choice((b"500 Internal Server Error", b"503 Service Unavailable"))
                    writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)
                    await writer.drain()
                    continue
                answer = await self._asked(request)
                if fault == "cut_after":
                    return
                if fault == "slow":
                    writer.write(answer[:20])
                    await writer.drain()
                    await asyncio.sleep(0.1)
                    answer = answer[20:]
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._links.discard(link)
            writer.close()

    async def _asked(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            writer.write(request)
            return await _message(reader)
        finally:
            writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One request or answer with its body; b"" at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
        if line.startswith(b"transfer-encoding:") and b"chunked" in line:
            body = b""
            while not body.endswith(b"0\r\n\r\n"):
                body += await reader.readuntil(b"\r\n")
            return head + body
    return head
