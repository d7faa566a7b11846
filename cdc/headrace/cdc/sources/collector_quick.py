"""The collector's quick way: event requests of the ordinary shape, answered on the bare connection; all else goes to aiohttp.

aiohttp costs about five times what an event's own work does (benchmarks/collector.py), so each connection begins here. A request stays
here when its head is whole, says POST to a route of events, and has one Content-Length and no header that would change how it is read
(_OTHERWISE). At the first that doesn't, or isn't even HTTP, the connection is handed over with every byte that wasn't answered, for good:
there is one place that knows all of HTTP, and this is not it. What becomes of a body is the same in both (collector.py).

::

    HEAD  --head whole, ours-->  BODY  --body whole-->  TAKEN  --durable, answered-->  HEAD
      \\--anything else--> handed over                       (what comes meanwhile waits in the buffer)
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from functools import lru_cache
from typing import Final, cast

import msgspec

from headrace.cdc.sources import collector as collector_module
from headrace.cdc.sources.collector import (
    BUSY_RETRY_S,
    CLOSING_RETRY_S,
    Asked,
    Collector,
    Reading,
    Refused,
    UnreadableRefused,
)
from headrace.cdc.sources.collector_answers import anonymous_id, basic_key
from headrace.cdc.sources.inflate import BrokenError, TooLargeError
from headrace.cdc.sources.intake import BusyError, ClosingError

IDLE_S: Final = 75.0
"""A connection that sends no whole head for so long is closed."""
_LONGEST_HEAD: Final = 16 << 10
_BUFFER_BYTES: Final = 256 << 10
"""While a request is under way, reading stops when so much of the next ones has come."""

_OTHERWISE: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"connection", b"te", b"trailer", b"content-range"}
)
"""Headers after which a request is aiohttp's; Connection is let pass with the value keep-alive."""
_ENCODINGS: Final = frozenset({b"", b"identity", b"gzip", b"x-gzip"})

_REASONS: Final = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 408: "Request Timeout", 413: "Payload Too Large",
    429: "Too Many Requests", 503: "Service Unavailable",
}  # fmt: skip


class _Head(msgspec.Struct, frozen=True, gc=False):
    """A request's head, as far as it matters. length: of the body."""

    kind: str
    is_history: bool
    length: int
    key: str | None
    anonymous_id: str | None
    origin: str | None


class QuickWay:
    """Makes the protocol of each connection. otherwise: makes the one that knows all of HTTP."""

    def __init__(self, collector: Collector, otherwise: Callable[[], asyncio.Protocol]) -> None:
        self.collector = collector
        self.otherwise = otherwise
        self.connections: set[QuickConnection] = set()
        self.head_of: Callable[[bytes], _Head | None] = lru_cache(maxsize=2048)(self._head_of)
        self._date_s = 0
        self._date = b""
        self._ended: asyncio.Event | None = None

    def __call__(self) -> QuickConnection:
        return QuickConnection(self)

    async def stop(self, wait_s: float) -> None:
        """Close what is idle now, and what is under way once it is answered or wait_s is over."""
        for connection in list(self.connections):
            connection.end()
        if self.connections:
            self._ended = asyncio.Event()
            try:
                await asyncio.wait_for(self._ended.wait(), wait_s)
            except TimeoutError:
                pass
        for connection in list(self.connections):
            connection.abort()

    def gone(self, connection: QuickConnection) -> None:
        """It ended, or was handed over."""
        self.connections.discard(connection)
        if self._ended is not None and not self.connections:
            self._ended.set()

    def answer(self, status: int, words: str, *, origin: str | None = None, retry_after_s: int | None = None) -> bytes:
        """The bytes of a whole answer, as collector_http.py and web.py would make it."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date = formatdate(now_s, usegmt=True).encode()
        before, after = _frame(status, words, retry_after_s, origin, origin in self.collector.config.origins)
        return before + self._date + after

    def _head_of(self, head: bytes) -> _Head | None:
        """None for whatever isn't ours. head: without the empty line."""
        lines = head.split(b"\r\n")
        words = lines[0].split(b" ")
        if len(words) != 3 or words[0] != b"POST" or words[2] != b"HTTP/1.1" or any(map(_CONTROL.search, lines)):
            return None
        found = self.collector.event_path(words[1])
        if found is None:
            return None
        values: dict[bytes, bytes] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            name = name.lower()
            # A space before the colon, a folded line, a name twice: how such are read differs, so they aren't ours.
            if not colon or not name or not _is_token(name) or name in values:
                return None
            values[name] = value.strip(b" \t")
        if values.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        if any(name in values for name in _OTHERWISE if name != b"connection") or b"host" not in values:
            return None
        length = values.get(b"content-length", b"")
        if not length.isdigit() or len(length) > 9 or values.get(b"content-encoding", b"").lower() not in _ENCODINGS:
            return None
        origin = _text(values.get(b"origin"))
        if not self.collector.may_send(_text(values[b"host"]) or "", origin):
            return None
        kind, is_history = found
        return _Head(
            kind,
            is_history,
            int(length),
            basic_key(_text(values.get(b"authorization"))),
            anonymous_id(_text(values.get(b"anonymousid"))),
            origin,
        )


class QuickConnection(asyncio.Protocol):
    """One connection, until it ends or is handed over."""

    def __init__(self, way: QuickWay) -> None:
        self._way = way
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._head: _Head | None = None
        self._reading: Reading | None = None
        self._is_taken = False
        self._is_ending = False
        self._is_paused = False
        self._is_choked = False
        self._is_looking = False
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._working: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one by its methods only.
        self._transport = cast("asyncio.Transport", transport)
        self._way.connections.add(self)
        self._await(IDLE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()

    def _forget(self) -> None:
        self._way.gone(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reading is not None:
            self._reading.end()
            self._reading = None

    def end(self) -> None:
        """Close once nothing is under way."""
        self._is_ending = True
        if not self._is_taken:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._reading is not None:
            self._body(data)
            return
        self._buffer = self._buffer + data if self._buffer else data
        if not (self._is_taken or self._is_choked):
            self._go_on()
        elif len(self._buffer) > _BUFFER_BYTES:
            self._pause()

    def pause_writing(self) -> None:
        """The client doesn't read its answers: it gets none to further requests until it does."""
        self._is_choked = True
        self._pause()

    def resume_writing(self) -> None:
        self._is_choked = False
        self._go_on()

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Look at what has come, request by request. A loop: answers that are known at once would else nest as deep as requests come."""
        if self._is_looking:
            return
        self._is_looking = True
        try:
            while not (self._is_taken or self._is_choked or self._reading is not None):
                if self._is_paused:
                    self._is_paused = False
                    self._transport.resume_reading()
                if not self._buffer or self._transport.is_closing() or not self._has_next():
                    return
        finally:
            self._is_looking = False

    def _has_next(self) -> bool:
        """Look at one head; False when it isn't whole yet, or the connection was handed over."""
        data = self._buffer
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _LONGEST_HEAD or not data.startswith(b"POST "[: len(data)]):
                self._hand_over(data)
            return False
        head = self._way.head_of(data[:end]) if end < _LONGEST_HEAD else None
        if head is None or head.length > self._way.collector.config.max_body.bytes:
            self._hand_over(data)
            return False
        self._head = head
        body_end = end + 4 + head.length
        if len(data) >= body_end:
            self._buffer = data[body_end:]
            self._take(head, data[end + 4 : body_end])
            return True
        self._reading = Reading(self._way.collector)
        self._buffer = b""
        self._await(collector_module.BODY_S)
        self._body(data[end + 4 :])
        return True

    def _body(self, data: bytes) -> None:
        assert self._reading is not None and self._head is not None
        missing = self._head.length - self._reading.held
        try:
            self._reading.add(data[:missing])
        except BusyError:
            self._refuse(429, "max requests limit reached", BUSY_RETRY_S)
            self._transport.close()
            return
        if len(data) >= missing:
            body = self._reading.end()
            self._reading = None
            self._buffer = data[missing:]
            self._take(self._head, body)

    def _take(self, head: _Head, body: bytes) -> None:
        self._is_taken = True
        collector = self._way.collector
        asked = Asked(head.kind, head.key, body, collector.now_us(), head.anonymous_id, head.is_history)
        if collector.is_small(body):
            try:
                post = collector.post(asked)
            except UnreadableRefused as refused:
                self._work(self._kept(refused))
                return
            except Refused as error:
                self._failed(error)
                return
            try:
                collector.intake.submit(post).add_done_callback(self._durable)
            except BusyError:
                self._work(collector.stored(post))
            except ClosingError as error:
                self._failed(error)
        else:
            self._work(collector.take(asked))

    def _work(self, waiting: Coroutine[None, None, None]) -> None:
        self._working = self._loop.create_task(waiting)
        self._working.add_done_callback(self._durable)

    async def _kept(self, refused: UnreadableRefused) -> None:
        await self._way.collector.stored(refused.post)
        raise refused

    def _durable(self, done: asyncio.Future[None]) -> None:
        self._working = None
        if done.cancelled():
            self._transport.abort()
            return
        error = done.exception()
        if error is None:
            assert self._head is not None
            self._answered(self._way.answer(200, "ok", origin=self._head.origin))
        else:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        match error:
            case Refused():
                self._refuse(error.status, error.words)
            case TooLargeError():
                self._refuse(413, "request size exceeds max limit")
            case BrokenError():
                self._refuse(400, str(error))
            case BusyError():
                self._refuse(429, "max requests limit reached", BUSY_RETRY_S)
            case ClosingError():
                self._refuse(503, "service unavailable", CLOSING_RETRY_S)
            case _:
                self._transport.abort()
                raise error

    def _refuse(self, status: int, words: str, retry_after_s: int | None = None) -> None:
        assert self._head is not None
        self._answered(self._way.answer(status, words, origin=self._head.origin, retry_after_s=retry_after_s))

    def _answered(self, answer: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(answer)
        self._is_taken = False
        self._head = None
        if self._is_ending:
            self._transport.close()
            return
        self._await(IDLE_S)
        self._go_on()

    def _hand_over(self, data: bytes) -> None:
        self._forget()
        self._buffer = b""
        if self._is_paused:
            self._transport.resume_reading()
        protocol = self._way.otherwise()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if data:
            protocol.data_received(data)

    # one timer a connection, moved only when it fires

    def _await(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._is_taken or self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(max(self._deadline, self._loop.time() + 1.0), self._look)
        elif self._reading is not None:
            self._refuse(408, "the body came too slowly")
            self._transport.close()
        else:
            self._transport.close()


@lru_cache(maxsize=256)
def _frame(
    status: int, words: str, retry_after_s: int | None, origin: str | None, has_credentials: bool
) -> tuple[bytes, bytes]:
    """What stands before and after the date."""
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(words.encode())}",
        "Server: headrace",
        "X-Content-Type-Options: nosniff",
        "Cross-Origin-Resource-Policy: cross-origin",
        "Cache-Control: no-store",
    ]
    if retry_after_s is not None:
        lines.append(f"Retry-After: {retry_after_s}")
    if origin is not None:
        lines += [
            f"Access-Control-Allow-Origin: {origin}",
            "Access-Control-Expose-Headers: Retry-After, X-RateLimit-Reset",
            "Vary: Origin",
        ]
        if has_credentials:
            lines.append("Access-Control-Allow-Credentials: true")
    return ("\r\n".join(lines) + "\r\nDate: ").encode("latin-1"), f"\r\n\r\n{words}".encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


def _is_token(name: bytes) -> bool:
    return _TOKEN.issuperset(name)
