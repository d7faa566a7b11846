"""Subscriptions: the log read over HTTP, pushed as server-sent events or pulled as NDJSON.

::

    GET /v1/stream   text/event-stream, resumed by Last-Event-ID or from=; heartbeats of our own as comments
    GET /v1/events   application/x-ndjson, one page; the answer's header Headrace-Next is the from= of the next
    GET /v1/ws       one WebSocket: credit, acks, filters that change (websocket.py)
    GET /v1/subscriptions; POST /v1/subscriptions/NAME/commit; DELETE /v1/subscriptions/NAME     named ones (named.py)

Without a name a subscription has no state on the server: it is a reader of the log with a cursor that the client keeps. One follower a partition
waits at the log's end and wakes all readers; their bytes are shared (frames.py). A slow reader is one write behind its socket's buffer
and otherwise stands still in the log. Without readers nothing is read. Query and cursor are query.py's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Final, Self

import msgspec
from aiohttp import web
from msgspec import Meta
from prometheus_client import CollectorRegistry, Counter, Gauge

from headrace.cdc.config import Duration, Section
from headrace.cdc.consumer import Health, Services
from headrace.cdc.errors import HeadraceError, Trimmed
from headrace.cdc.log.base import Bounds, ConsumerLog
from headrace.cdc.sources.ending import end
from headrace.cdc.web import error_response, json_response
from headrace.sinks.frames import Block, BlockCache, keepalive
from headrace.sinks.named import NamedPlaces
from headrace.sinks.query import Place, Query, RequestError, parse_cursor
from headrace.sinks.slow import Slowness, TooSlow
from headrace.sinks.websocket import SocketSession, is_own_page, new_socket

_log = logging.getLogger("headrace.subscribe")

_READ_BYTES = 256 << 10
_FOLLOW_WAIT_S = 30.0
_TICK_S = 1.0
_STALLED_S = 300.0
"""A reader that takes nothing for so long is cut off; it can resume by its cursor."""
_START_WAIT_S = 5.0
_SKIPPED_EVENTS = 10_000
_PAGE_BYTES = 8 << 20
_PAGE_SCAN_S = 2.0
"""A pull whose filter lets little through answers after so long with what it has and a cursor further on."""
_RETRY_MS = 1_000
_RETRY_AFTER_ERROR_MS = 30_000
_RETRY_AFTER_S: Final = "5"
_TEND_EVERY_S = 60.0


class SubscribeConfig(Section, frozen=True):
    """Readers of the log over HTTP: GET /v1/stream and GET /v1/events."""

    max_subscribers: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Open streams and waiting pulls at most; more get 503 with Retry-After."),
    ] = 1_000
    forget_after: Annotated[
        Duration | None,
        Meta(
            description="A named subscription that nobody has used for so long is forgotten, and holds back no events any more; null: never. Default: 7d."
        ),
    ] = msgspec.field(default_factory=lambda: Duration.parse("7d"))


class _Reader:
    """One open request."""

    __slots__ = ("ends", "place", "request", "slowness", "subscription", "waker", "writing_since", "written_at")

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.place = Place("", {})
        self.slowness = Slowness()
        self.subscription: str | None = None
        self.ends: dict[int, int] = {}
        """The log's ends when the request came: the follower may not have got there yet."""
        self.waker: asyncio.Future[None] | None = None
        self.writing_since: float | None = None
        self.written_at = 0.0

    @property
    def is_gone(self) -> bool:
        transport = self.request.transport
        return transport is None or transport.is_closing()

    def wake(self) -> None:
        if self.waker is not None and not self.waker.done():
            self.waker.set_result(None)


class Subscriptions:
    """The consumer behind both routes. See consumer.py for the contract."""

    section: ClassVar[str | None] = "subscribe"
    config_type: ClassVar[type[msgspec.Struct] | None] = SubscribeConfig

    def __init__(
        self,
        log: ConsumerLog,
        registry: CollectorRegistry,
        config: SubscribeConfig | None = None,
        *,
        keepalive_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log_engine = log
        self._config = config or SubscribeConfig()
        self._keepalive_s = keepalive_s
        self._clock = clock
        self._ends: list[int] = []
        self._running = asyncio.Event()
        self._wanted = asyncio.Event()
        self._readers: set[_Reader] = set()
        self._blocks = BlockCache()
        self._loading = [asyncio.Lock() for _ in range(log.partitions)]
        forget_after = self._config.forget_after
        self._named = NamedPlaces(log, forget_after_s=None if forget_after is None else forget_after.s)
        self._tended_at = 0.0
        self._streams = Gauge("headrace_subscribe_open_readers", "Open streams and pulls.", registry=registry)
        self._delivered = Counter(
            "headrace_subscribe_delivered_events", "Events written to readers.", registry=registry
        )
        self._written = Counter(
            "headrace_subscribe_written_bytes", "Bytes of events written to readers.", registry=registry
        )
        self._refused = Counter(
            "headrace_subscribe_refused_requests", "Requests refused because too many are open.", registry=registry
        )
        self._behind = Gauge(
            "headrace_subscribe_lag_events", "How far the slowest open reader is behind the log.", registry=registry
        )
        self._skipped = Counter(
            "headrace_subscribe_skipped_events",
            "Events that readers with slow=skip fell behind by, and left out.",
            registry=registry,
        )
        self._streams.set_function(lambda: len(self._readers))
        self._behind.set_function(self._lag)

    @classmethod
    def build(cls, section: Any, services: Services) -> Self:
        return cls(services.log, services.registry, section)

    @property
    def name(self) -> str:
        return "subscribe"

    def routes(self) -> Iterable[web.RouteDef]:
        # HEAD would wait as long as GET, for nothing.
        return [
            web.get("/v1/stream", self._stream, allow_head=False),
            web.get("/v1/events", self._events, allow_head=False),
            web.get("/v1/ws", self._socket, allow_head=False),
            web.get("/v1/subscriptions", self._names),
            web.post("/v1/subscriptions/{name}/commit", self._commit),
            web.delete("/v1/subscriptions/{name}", self._forget),
        ]

    def health(self) -> Iterable[Health]:
        is_running = self._running.is_set()
        return [Health(self.name, is_running, "" if is_running else "the log's end isn't followed")]

    def status(self) -> dict[str, Any]:
        """readers: open requests; slowest_lag_events: of these; cached_bytes: of events kept encoded for them."""
        return {
            "readers": len(self._readers),
            "slowest_lag_events": self._lag(),
            "cached_bytes": self._blocks.size_bytes,
        }

    async def run(self) -> None:
        """Follow the log's end until cancelled; open streams end then. Raises LogError as the log does."""
        log = self._log_engine
        self._ends = [(await log.bounds(partition)).end for partition in range(log.partitions)]
        self._running.set()
        try:
            async with asyncio.TaskGroup() as group:
                for partition in range(log.partitions):
                    group.create_task(self._follow(partition))
                group.create_task(self._tick())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            self._running.clear()
            self._wake_all()
            self._blocks.clear()

    async def _follow(self, partition: int) -> None:
        log = self._log_engine
        while True:
            if not self._wanted.is_set():
                await self._wanted.wait()
                self._ends[partition] = (await log.bounds(partition)).end
                self._wake_all()
            try:
                batch = await log.read(partition, self._ends[partition], max_bytes=_READ_BYTES, wait_s=_FOLLOW_WAIT_S)
            except Trimmed:
                # Retention overtook the follower; each reader finds out for itself whether it lost its place.
                self._ends[partition] = (await log.bounds(partition)).end
                self._wake_all()
                continue
            if batch.events:
                self._blocks.add(batch)
                self._ends[partition] = batch.next_offset
                self._wake_all()

    async def _tick(self) -> None:
        """Wake readers whose client has gone, cut off those that have stalled."""
        while True:
            await asyncio.sleep(_TICK_S)
            now = self._clock()
            if now - self._tended_at > _TEND_EVERY_S:
                self._tended_at = now
                await self._tend()
            for reader in self._readers:
                if reader.is_gone:
                    reader.wake()
                elif reader.writing_since is not None and (
                    now - reader.writing_since > _STALLED_S or reader.slowness.is_to_be_cut(self._lag_of(reader))
                ):
                    transport = reader.request.transport
                    if transport is not None:
                        transport.abort()

    async def _tend(self) -> None:
        """Keep the names that are in use, forget those that aren't."""
        for reader in list(self._readers):
            if reader.subscription is not None:
                await self._named.touch(reader.subscription, reader.place.offsets)
        for name in await self._named.forget_unused():
            _log.warning("subscription %s: nobody has used it for long; it is forgotten", name)

    def _wake_all(self) -> None:
        for reader in self._readers:
            reader.wake()

    def _lag(self) -> int:
        return max((self._lag_of(reader) for reader in self._readers), default=0)

    def _lag_of(self, reader: _Reader) -> int:
        return sum(self._end(reader, partition) - offset for partition, offset in reader.place.offsets.items())

    def _leap(self, reader: _Reader) -> dict[str, Any] | None:
        """Leave out what a subscriber that is too slow would rather not have: what it is told then. Raises TooSlow."""
        if not reader.slowness.is_over(self._lag_of(reader)):
            return None
        told = reader.slowness.leap(reader.place, {each: self._end(reader, each) for each in reader.place.offsets})
        self._skipped.inc(told["events"])
        return told

    # one request

    @contextmanager
    def _admitted(self, request: web.Request) -> Generator[_Reader, None, None]:
        if len(self._readers) >= self._config.max_subscribers:
            self._refused.inc()
            raise RequestError(
                f"{self._config.max_subscribers} readers are open, and no more are admitted (subscribe.max_subscribers)",
                status=503,
                advice="try again later, or raise subscribe.max_subscribers",
            )
        reader = _Reader(request)
        self._readers.add(reader)
        self._wanted.set()
        try:
            yield reader
        finally:
            self._readers.discard(reader)
            if not self._readers:
                self._wanted.clear()

    async def _ready(self) -> None:
        """A client that comes with the start of the process waits a moment rather than get an error it may take as final."""
        if self._running.is_set():
            return
        try:
            async with asyncio.timeout(_START_WAIT_S):
                await self._running.wait()
        except TimeoutError:
            raise RequestError(
                "subscriptions are not running", status=503, advice="see /readyz for the reason, and try again later"
            ) from None

    async def _locate(self, reader: _Reader, query: Query, start: str, *, parameter: str) -> None:
        """Set the reader's place from ``earliest``, ``latest``, an offset or a cursor. Raises RequestError and Trimmed."""
        log = self._log_engine
        partitions = range(log.partitions) if query.partition is None else [query.partition]
        bounds: dict[int, Bounds] = {partition: await log.bounds(partition) for partition in partitions}
        if start in ("earliest", "latest"):
            offsets = {p: each.first if start == "earliest" else each.end for p, each in bounds.items()}
        elif start.isascii() and start.isdigit() and len(start) <= 18:
            if len(bounds) > 1:
                raise RequestError(
                    f"parameter {parameter}: an offset needs the parameter partition too, as this log has {log.partitions}",
                    parameter=parameter,
                )
            offsets = dict.fromkeys(bounds, int(start))
        else:
            offsets = parse_cursor(
                start,
                generation=log.generation,
                partitions=log.partitions,
                partition=query.partition,
                parameter=parameter,
            )
        for partition, offset in offsets.items():
            if offset > bounds[partition].end:
                is_offset = start.isdigit()
                raise RequestError(
                    f"parameter {parameter}: offset {offset} is beyond the end of partition {partition}, "
                    f"which is {bounds[partition].end}",
                    status=400 if is_offset else 409,
                    parameter=parameter,
                    advice="ask for an offset up to the end"
                    if is_offset
                    else "the log is an older copy than the cursor: start again with from=earliest or from=latest",
                )
        reader.place = Place(log.generation, offsets, is_partial=log.partitions > 1 and len(offsets) == 1)
        reader.ends = {partition: bounds[partition].end for partition in offsets}
        for partition, offset in offsets.items():
            if offset < bounds[partition].first:
                raise Trimmed(
                    f"offset {offset} of partition {partition} is no longer kept; the oldest is {bounds[partition].first}",
                    first_offset=bounds[partition].first,
                )

    async def _begin(self, reader: _Reader, query: Query, last: str, default: str) -> None:
        """Where a request begins: at what the client has seen, else where its name was committed, else where it asks. Raises as _locate."""
        name = reader.subscription = query.subscription
        reader.slowness = Slowness(query.slow, query.behind)
        stored = None
        if name is not None:
            lanes = list(range(self._log_engine.partitions)) if query.partition is None else [query.partition]
            stored = await self._named.place(name, lanes)
        if last or stored is None:
            start = last or query.start or default
            await self._locate(reader, query, start, parameter="Last-Event-ID" if last else "from")
        else:
            is_partial = self._log_engine.partitions > 1 and len(stored) == 1
            cursor = Place(self._log_engine.generation, stored, is_partial).cursor()
            await self._locate(reader, query, cursor, parameter="subscription")
        if name is not None and stored is None:
            # From here on the log keeps what it hasn't read.
            await self._named.commit(name, reader.place)

    def _end(self, reader: _Reader, partition: int) -> int:
        followed = self._ends[partition] if partition < len(self._ends) else 0
        return max(followed, reader.ends.get(partition, 0), reader.place.offsets[partition])

    async def _block(self, partition: int, offset: int) -> Block | None:
        found = self._blocks.get(partition, offset)
        if found is None:
            # All that catch up together miss together: one of them reads for all.
            async with self._loading[partition]:
                found = self._blocks.get(partition, offset)
                if found is None:
                    found = self._blocks.add(await self._log_engine.read(partition, offset, max_bytes=_READ_BYTES))
        return found

    async def _news(self, reader: _Reader, timeout_s: float) -> None:
        """Wait until the follower has read something, the client has gone, or the time is over."""
        loop = asyncio.get_running_loop()
        reader.waker = loop.create_future()
        alarm = loop.call_later(timeout_s, reader.wake)
        try:
            await reader.waker
        finally:
            alarm.cancel()
            reader.waker = None

    # GET /v1/stream

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        try:
            await self._ready()
            query = Query.parse(request.query, partitions=self._log_engine.partitions, is_pull=False)
            last = request.headers.get("Last-Event-ID", "")
            with self._admitted(request) as reader:
                trimmed: Trimmed | None = None
                try:
                    # A browser that reconnects asks the same URL again: what it has seen counts, not where it began.
                    await self._begin(reader, query, last, "latest")
                except Trimmed as error:
                    trimmed = error
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
                await response.prepare(request)
                try:
                    try:
                        if trimmed is not None:
                            raise trimmed
                        await self._push(reader, query, response)
                    except HeadraceError as error:
                        await response.write(await self._last_words(error, query))
                    await response.write_eof()
                except ConnectionResetError:
                    _log.debug("a stream's client went away")
                except Exception:  # noqa: BLE001 - a defect of ours must end this stream only
                    # The answer has begun: no status can say it any more, only a cut that no client takes for an end.
                    _log.exception("a stream failed")
                    if request.transport is not None:
                        request.transport.abort()
                return response
        except RequestError as error:
            return _refusal(error)

    async def _push(self, reader: _Reader, query: Query, response: web.StreamResponse) -> None:
        """Write what comes until the client goes or ``run`` ends. Raises ConnectionResetError; Trimmed and LogError as the log does."""
        place = reader.place
        is_shared = len(place.offsets) == self._log_engine.partitions == 1
        skipped = 0
        await self._write(reader, response, f"retry: {_RETRY_MS}\nid: {place.cursor()}\n\n".encode())
        while self._running.is_set() and not reader.is_gone:
            has_moved = False
            if (gap := self._leap(reader)) is not None:
                words = msgspec.json.encode(gap)
                await self._write(
                    reader, response, b"event: gap\nid: %b\ndata: %b\n\n" % (place.cursor().encode(), words)
                )
            for partition, offset in place.offsets.items():
                block = await self._block(partition, offset) if offset < self._end(reader, partition) else None
                if block is None:
                    continue
                before, after = place.split(partition)
                chunk, count = block.form(query.envelope).stream(query.filter, before, after, is_shared=is_shared)
                place.offsets[partition] = block.next_offset
                has_moved = True
                skipped = 0 if count else skipped + len(block.events)
                if count:
                    await self._write(reader, response, chunk)
                    self._delivered.inc(count)
                    self._written.inc(len(chunk))
            idle_s = self._clock() - reader.written_at
            if skipped >= _SKIPPED_EVENTS or idle_s >= self._keepalive_s:
                skipped = 0
                await self._write(reader, response, keepalive(place.cursor()))
            elif has_moved:
                # A fast client's writes never wait: let the others have a turn.
                await asyncio.sleep(0)
            else:
                await self._news(reader, self._keepalive_s - idle_s)

    async def _write(self, reader: _Reader, response: web.StreamResponse, chunk: bytes) -> None:
        reader.written_at = reader.writing_since = self._clock()
        await response.write(chunk)
        reader.writing_since = None

    async def _last_words(self, error: HeadraceError, query: Query) -> bytes:
        """The event that ends a stream; a client that reconnects by itself is told not to hurry."""
        if isinstance(error, Trimmed):
            body = await self._trimmed_body(error, query)
        else:
            body = {"error": error.message, "advice": error.advice}
            body["reason"] = "slow" if isinstance(error, TooSlow) else "log"
        return b"retry: %d\nevent: error\ndata: %b\n\n" % (_RETRY_AFTER_ERROR_MS, msgspec.json.encode(body))

    async def _trimmed_body(self, error: Trimmed, query: Query) -> dict[str, Any]:
        log = self._log_engine
        partitions = range(log.partitions) if query.partition is None else [query.partition]
        first = {partition: (await log.bounds(partition)).first for partition in partitions}
        earliest = Place(log.generation, first, is_partial=log.partitions > 1 and len(first) == 1)
        return {
            "error": error.message,
            "advice": error.advice,
            "reason": "trimmed",
            "first_offset": error.first_offset,
            "earliest": earliest.cursor(),
        }

    # GET /v1/events

    async def _events(self, request: web.Request) -> web.StreamResponse:
        try:
            await self._ready()
            query = Query.parse(request.query, partitions=self._log_engine.partitions, is_pull=True)
            with self._admitted(request) as reader:
                try:
                    await self._begin(reader, query, "", "earliest")
                    lines = await self._page(reader, query)
                except Trimmed as error:
                    body = await self._trimmed_body(error, query)
                    return error_response(410, body.pop("error"), body.pop("advice"), **body)
            page = b"".join(lines)
            self._delivered.inc(len(lines))
            self._written.inc(len(page))
            return web.Response(
                body=page, headers={"Content-Type": "application/x-ndjson", "Headrace-Next": reader.place.cursor()}
            )
        except RequestError as error:
            return _refusal(error)

    async def _page(self, reader: _Reader, query: Query) -> list[bytes]:
        """Lines that pass, at most limit and about 8 MiB; waits for the first while there is none and time is left.

        Raises Trimmed when retention overtakes the reader before the first line; after it the next page will tell.
        """
        offsets = reader.place.offsets
        began = self._clock()
        lines: list[bytes] = []
        size = 0
        # Not always the lowest partition first: small pages would never reach the others.
        order = list(offsets)
        turn = sum(offsets.values()) % len(order)
        order = order[turn:] + order[:turn]
        while self._running.is_set() and not reader.is_gone:
            has_moved = False
            for partition in order:
                if len(lines) >= query.limit or size >= _PAGE_BYTES:
                    return lines
                if offsets[partition] >= self._end(reader, partition):
                    continue
                try:
                    block = await self._block(partition, offsets[partition])
                except Trimmed:
                    if lines:
                        return lines
                    raise
                if block is None:
                    continue
                has_moved = True
                form = block.form(query.envelope)
                offsets[partition] = block.next_offset
                for index, event in enumerate(block.events):
                    if not query.filter.passes(event):
                        continue
                    line = form.json(index) + b"\n"
                    lines.append(line)
                    size += len(line)
                    if len(lines) >= query.limit or size >= _PAGE_BYTES:
                        offsets[partition] = block.first + index + 1
                        break
            elapsed_s = self._clock() - began
            if has_moved:
                if elapsed_s > max(_PAGE_SCAN_S, query.wait_s):
                    return lines
                await asyncio.sleep(0)
                continue
            if lines or elapsed_s >= query.wait_s:
                return lines
            await self._news(reader, query.wait_s - elapsed_s)
        return lines

    # GET /v1/ws

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if not is_own_page(request):
            return error_response(403, "a page of another origin can't open this", "open it from a page of this server")
        try:
            await self._ready()
            with self._admitted(request) as reader:
                socket = new_socket()
                await socket.prepare(request)
                log = self._log_engine
                session = SocketSession(socket, generation=log.generation, partitions=log.partitions)
                listening = asyncio.create_task(session.listen())
                try:
                    await self._serve(reader, session)
                except ConnectionResetError:
                    _log.debug("a socket's client went away")
                except Exception:  # noqa: BLE001 - a defect of ours must end this connection only
                    _log.exception("a socket failed")
                finally:
                    await end(listening)
                    await socket.close()
                return socket
        except RequestError as error:
            return _refusal(error)

    async def _serve(self, reader: _Reader, session: SocketSession) -> None:
        begun = False
        try:
            while self._running.is_set() and not session.is_over:
                session.changed.clear()
                if session.query is not None and not begun:
                    begun = True
                    await self._begin(reader, session.query, "", "latest")
                while not session.acks.empty():
                    cursor = session.acks.get_nowait()
                    await self._commit_cursor(session, cursor)
                    await session.say(type="acked", cursor=cursor)
                if not begun or not await self._send_some(reader, session):
                    await self._socket_news(reader, session)
            if session.failure is not None:
                raise session.failure
        except Trimmed as error:
            assert session.query is not None
            body = await self._trimmed_body(error, session.query)
            await session.say(type="error", **body)
        except HeadraceError as error:
            await session.say_error(error)

    async def _send_some(self, reader: _Reader, session: SocketSession) -> bool:
        """Events up to the credit, of the next block; False when there are none or there is no credit."""
        query, place = session.query, reader.place
        assert query is not None
        if session.credit <= 0:
            return False
        if (gap := self._leap(reader)) is not None:
            await session.say(type="gap", cursor=place.cursor(), **gap)
        for partition, offset in place.offsets.items():
            block = await self._block(partition, offset) if offset < self._end(reader, partition) else None
            if block is None:
                continue
            form = block.form(query.envelope)
            sent = 0
            for index, event in enumerate(block.events):
                place.offsets[partition] = block.first + index + 1
                if query.filter.passes(event):
                    line = form.json(index)
                    reader.written_at = reader.writing_since = self._clock()
                    await session.say_event(place.cursor(), line)
                    reader.writing_since = None
                    sent += 1
                    self._written.inc(len(line))
                    if session.credit <= 0:
                        break
            self._delivered.inc(sent)
            if not sent:
                await session.say(type="place", cursor=place.cursor())
            await asyncio.sleep(0)
            return True
        return False

    async def _socket_news(self, reader: _Reader, session: SocketSession) -> None:
        """Until the client has said something, or the log has more."""
        listening = asyncio.create_task(session.changed.wait())
        following = asyncio.create_task(self._news(reader, self._keepalive_s))
        try:
            await asyncio.wait([listening, following], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(listening)
            await end(following)

    # named subscriptions

    async def _commit_cursor(self, session: SocketSession, cursor: str) -> None:
        query = session.query
        assert query is not None and query.subscription is not None
        await self._named.commit(query.subscription, self._place_of(cursor, query.partition))

    def _place_of(self, cursor: str, partition: int | None) -> Place:
        log = self._log_engine
        offsets = parse_cursor(
            cursor, generation=log.generation, partitions=log.partitions, partition=partition, parameter="cursor"
        )
        return Place(log.generation, offsets)

    async def _names(self, request: web.Request) -> web.StreamResponse:
        return json_response({"subscriptions": await self._named.names()})

    async def _commit(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        try:
            if request.content_type != "application/json":
                raise RequestError("the body isn't application/json", status=415)
            try:
                asked = msgspec.json.decode(await request.read(), type=dict[str, str])
                cursor = asked["cursor"]
            except (msgspec.MsgspecError, KeyError):
                raise RequestError("the body can't be used", advice='send {"cursor": "..."}') from None
            if name not in await self._named.names():
                raise RequestError(
                    f"there is no subscription {name[:80]!r}",
                    status=404,
                    advice="open it first: /v1/stream?subscription=NAME",
                )
            place = self._place_of(cursor, None)
            for partition, offset in place.offsets.items():
                if offset > (await self._log_engine.bounds(partition)).end:
                    raise RequestError("the cursor is beyond the log's end", status=409)
            await self._named.commit(name, place)
        except RequestError as error:
            return _refusal(error)
        return json_response({"committed": cursor})

    async def _forget(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if await self._named.forget(name):
            return json_response({"forgotten": name})
        return error_response(404, f"there is no subscription {name[:80]!r}", "GET /v1/subscriptions names them")


def _refusal(error: RequestError) -> web.Response:
    more = {"parameter": error.parameter} if error.parameter else {}
    response = error_response(error.status, error.message, error.advice, **more)
    if error.status == 503:
        response.headers["Retry-After"] = _RETRY_AFTER_S
    return response


__all__ = ["SubscribeConfig", "Subscriptions"]
