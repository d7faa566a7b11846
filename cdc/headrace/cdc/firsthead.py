"""A connection's first head must come in time: aiohttp waits for ever for a client that has begun one and doesn't end it.

From the first whole head on the connection is aiohttp's own, which ends idle ones by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class FirstHead:
    """Makes protocols around those of ``maker``. limit_s: read at each connection."""

    def __init__(self, maker: Callable[[], asyncio.Protocol], limit_s: Callable[[], float]) -> None:
        self._maker = maker
        self._limit_s = limit_s

    def __call__(self) -> asyncio.Protocol:
        return _Waiting(self._maker(), self._limit_s())


class _Waiting(asyncio.Protocol):
    def __init__(self, inner: asyncio.Protocol, limit_s: float) -> None:
        self._inner = inner
        self._limit_s = limit_s
        self._transport: Any = None
        self._end = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._transport.abort)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        seen = self._end + data
        self._end = seen[-3:]
        if b"\r\n\r\n" in seen:
            self._stop()
            self._transport.set_protocol(self._inner)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


__all__ = ["FirstHead"]
