"""The one HTTP server: health, metrics, status and console of its own, and the routes that consumers bring.

::

    GET /            console: a page that shows the state live
    GET /healthz     200 while the event loop runs                      open
    GET /readyz      200 or 503, JSON: every part with its reason       open
    GET /metrics     Prometheus text format
    GET /v1/status   JSON, what "headrace status" prints
    POST /v1/sources/NAME/snapshot   {"tables": [...], "where": "..."}: copy rows again, as "headrace snapshot" does
    POST /v1/customers/{suppress,allow,erase}           what "headrace customer" asks of it
    POST /v1/deadletters/drop, /v1/deadletters/retry    what "headrace deadletter" asks of the running process

With any token set, every other route wants one. Without tokens the server binds to loopback only and answers requests only that
name loopback as their host. Errors of our own routes are ``{"error": ..., "advice": ...}``; a traceback stays in the log. There is no
CORS: other web pages can't read answers. A pushed source's routes (sources/base.py) see to both by themselves. Refuses to know what a consumer's route does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from headrace.cdc.auth import ADMIN, Tokens, is_local_host, scope_of
from headrace.cdc.config import ServerConfig
from headrace.cdc.consumer import Consumer, OtherProcesses
from headrace.cdc.customers import Customers, CustomersAsked
from headrace.cdc.deadletters import DeadLetters, Selection
from headrace.cdc.errors import HeadraceError, LogError, RequestRefused, ServerError
from headrace.cdc.firsthead import FirstHead
from headrace.cdc.listen import BACKLOG, ListenAddress, bind, is_loopback, reachable_url
from headrace.cdc.log.base import EventLog
from headrace.cdc.page import Page
from headrace.cdc.sources.base import Asked, ConnectionMaker, PushedSource, SourceStatus
from headrace.cdc.state import ProcessState

_log = logging.getLogger("headrace.web")

_OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
MAX_BODY_BYTES = 8 << 20
_SHUTDOWN_S = 0.4
"""aiohttp waits so long for handlers to end by themselves and once more after cancelling them: a stop takes less than a second."""

IDLE_S = 75.0
"""A connection that sends no whole request for so long is closed."""
_LINGER_S = 2.0
"""What is left of a refused body is read for so long, so that the client sees the answer and not a reset."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _SnapshotRequest(msgspec.Struct, forbid_unknown_fields=True):
    tables: Annotated[list[str], msgspec.Meta(min_length=1)]
    where: str = ""


class Guard:
    """Who is let in: with tokens whoever has one that may, without them this machine's own programs. Raises ConfigError for a token that can't be used."""

    def __init__(self, config: ServerConfig) -> None:
        self.tokens = Tokens(config.tokens, config.scopes)

    def refusal(self, request: web.Request) -> web.Response | None:
        """The answer to a request that isn't let in."""
        if self.tokens:
            scopes = self.tokens.admit(request.headers.get("Authorization"))
            if scopes is not None:
                wanted = scope_of(request.method, request.path)
                if wanted in scopes or ADMIN in scopes:
                    return None
                return error_response(
                    403,
                    f"this token may {', '.join(sorted(scopes)) or 'nothing'}, and the route wants {wanted}",
                    "use another token, or give this one more under server.scopes",
                )
            refused = error_response(
                401,
                "this route wants a bearer token, and the request has none that is known",
                'send the header "Authorization: Bearer TOKEN" with a token of server.tokens',
            )
            # A browser that opens a page gets its own dialogue (the token goes in as password); programs are told Bearer.
            is_page = request.path in ("/", "/features")
            scheme = 'Basic realm="headrace: token as password"' if is_page else 'Bearer realm="headrace"'
            refused.headers["WWW-Authenticate"] = scheme
            return refused
        if is_local_host(request.host):
            return None
        return error_response(
            403,
            "without tokens only requests to localhost are answered, and this one names another host",
            "use http://127.0.0.1 or http://localhost, or set a token under server.tokens",
        )


class WebServer:
    """Binds at ``start``, answers until ``stop``. Routes of consumers are mounted as they are."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        consumers: Sequence[Consumer],
        sources: Callable[[], dict[str, SourceStatus]],
        log: EventLog,
        registry: CollectorRegistry,
        troubles: Callable[[], dict[str, str]],
        snapshot: Callable[[str, Sequence[str], str], Awaitable[Asked]],
        clock: Callable[[], float] = time.time,
        pushed: Sequence[PushedSource] = (),
        letters: DeadLetters | None = None,
        customers: Customers | None = None,
        others: OtherProcesses | None = None,
    ) -> None:
        """others: further processes, whose consumers' routes are answered there. snapshot: asks a source, by name, to copy tables again. pushed: sources whose routes see to rights by themselves.

        Raises ConfigError when server.listen or a token can't be used, ServerError for a public address without tokens or write keys.
        """
        self._address = ListenAddress.parse(config.listen)
        self._guarding = Guard(config)
        if not self._guarding.tokens and not is_loopback(self._address.host):
            raise ServerError(
                f"server.listen is {self._address}, which other machines can reach, and server.tokens is empty: "
                "anybody could read every event",
                advice="set a token under server.tokens (name: ${VARIABLE}), or listen on 127.0.0.1",
            )
        for source in pushed:
            if source.needs_local_clients and not is_loopback(self._address.host):
                raise ServerError(
                    f"server.listen is {self._address}, which other machines can reach, and sources.{source.name} has no"
                    f" {source.needs.partition(':')[0]}: anybody could send events",
                    advice=f"set {source.needs} under sources.{source.name}, or listen on 127.0.0.1",
                )
        self._pushed = pushed
        self._letters = letters
        self._customers = customers
        self._others = others
        self._own_rights: set[object] = set()
        self._registry = registry
        self._ask_snapshot = snapshot
        self._state = ProcessState(
            consumers=consumers,
            sources=sources,
            log=log,
            registry=registry,
            troubles=troubles,
            clock=clock,
            others=others,
        )
        self._consumers = consumers
        self._runner: web.AppRunner | None = None
        self._listeners: list[asyncio.Server] = []
        self._quick: list[ConnectionMaker] = []
        self._url = ""

    @property
    def url(self) -> str:
        """Base URL by which this machine reaches the server, with the real port; "" before ``start``."""
        return self._url

    async def start(self) -> None:
        """Bind and answer. Raises ServerError: port taken, no right, unknown host."""
        sockets = bind(self._address)
        application = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        application.add_routes(
            [
                web.get("/", Page(Path(__file__).with_name("console.html")).answer),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/v1/status", self._status),
                web.post("/v1/sources/{source}/snapshot", self._snapshot),
            ]
        )
        for consumer in self._consumers:
            application.add_routes(consumer.routes())
        if self._letters is not None:
            application.add_routes(
                [
                    web.post("/v1/deadletters/drop", self._drop_letters),
                    web.post("/v1/deadletters/retry", self._retry_letters),
                ]
            )
        if self._customers is not None:
            application.add_routes([web.post("/v1/customers/{action:suppress|allow|erase}", self._of_customers)])
        for source in self._pushed:
            routes = source.routes()
            self._own_rights |= {route.handler for route in routes}
            application.add_routes(routes)
        if self._others is not None:
            application.add_routes(self._others.routes())
        application.on_response_prepare.append(harden)
        # Paths and queries may hold customer keys: no access log.
        runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_S,
            handle_signals=False,
            keepalive_timeout=IDLE_S,
            lingering_time=_LINGER_S,
            logger=http_log(),
            auto_decompress=False,  # it would unpack a bomb before anybody could say how much is enough
        )
        self._runner = runner
        try:
            await runner.setup()
            assert runner.server is not None
            maker: Callable[[], asyncio.Protocol] = FirstHead(runner.server, lambda: IDLE_S)
            for source in self._pushed:
                maker = quick = source.protocol(maker)
                self._quick.append(quick)
            if self._others is not None:
                maker = self._others.protocol(maker)
            loop = asyncio.get_running_loop()
            for sock in sockets:
                self._listeners.append(await loop.create_server(maker, sock=sock, backlog=BACKLOG))
        except BaseException:
            for sock in sockets:
                sock.close()
            await self.stop()
            raise
        self._url = reachable_url(ListenAddress(self._address.host, sockets[0].getsockname()[1]))

    async def stop(self) -> None:
        """Close the port, let handlers end, cut what is open after a second. Stopping twice or before start is fine."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        runner, self._runner = self._runner, None
        quick, self._quick = self._quick, []
        await asyncio.gather(*(each.stop(_SHUTDOWN_S) for each in quick))
        if runner is not None:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """One middleware for rights and errors: each costs every request."""
        if request.path not in _OPEN_PATHS and request.match_info.handler not in self._own_rights:
            refusal = self._guarding.refusal(request)
            if refusal is not None:
                return refusal
        return await answered(request, handler)

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        verdicts = await self._state.readiness()
        is_ready = all(verdict.is_ready for verdict in verdicts)
        return json_response({"is_ready": is_ready, "parts": verdicts}, status=200 if is_ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        try:
            await self._state.refresh()
        except LogError as error:
            _log.warning("/metrics shows the log's former places: %s", error.message)
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _snapshot(self, request: web.Request) -> web.Response:
        # A form of another web page could send any other type without asking first (CORS).
        if request.content_type != "application/json":
            return error_response(
                415, "the body isn't application/json", "send the header Content-Type: application/json"
            )
        try:
            wanted = msgspec.json.decode(await request.read(), type=_SnapshotRequest)
        except msgspec.DecodeError as error:
            return error_response(
                400, f"the body can't be used: {error}", 'send {"tables": ["schema.table"], "where": ""}'
            )
        asked = await self._ask_snapshot(request.match_info["source"], wanted.tables, wanted.where)
        return json_response(msgspec.to_builtins(asked), status=202)

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(await self._state.document())

    async def _of_customers(self, request: web.Request) -> web.Response:
        assert self._customers is not None
        _hold_json(request)
        try:
            asked = msgspec.json.decode(await request.read(), type=CustomersAsked)
        except msgspec.MsgspecError as error:
            raise web.HTTPBadRequest(text='the body can\'t be used: send {"ids": ["..."]}') from error
        match request.match_info["action"]:
            case "suppress":
                told = await self._customers.suppress(asked.ids)
            case "allow":
                told = await self._customers.allow(asked.ids)
            case _:
                told = await self._customers.erase(asked.ids)
        return json_response(told)

    async def _drop_letters(self, request: web.Request) -> web.Response:
        assert self._letters is not None
        return json_response({"dropped": await self._letters.drop(await _selection(request))})

    async def _retry_letters(self, request: web.Request) -> web.Response:
        assert self._letters is not None
        return json_response(await self._letters.retry(await _selection(request)))


async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What a handler answers, its errors in our form."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400 or error.content_type == "application/json":
            raise
        return _http_error(error, request)
    except RequestRefused as error:
        return error_response(400, error.message, error.advice)
    except HeadraceError as error:
        _log.warning("%s %s: %s", request.method, request.path, error.message)
        return error_response(503, error.message, error.advice)
    except Exception:  # noqa: BLE001 - no traceback goes to a client
        _log.exception("%s %s failed", request.method, request.path)
        return error_response(
            500,
            "headrace failed to answer this request",
            "look into the log of the headrace process for the reason",
        )


def _hold_json(request: web.Request) -> None:
    """A form of another web page could send any other type without asking first (CORS)."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="the body isn't application/json")


async def _selection(request: web.Request) -> Selection:
    _hold_json(request)
    try:
        return msgspec.json.decode(await request.read(), type=Selection)
    except msgspec.MsgspecError as error:
        raise web.HTTPBadRequest(text="the body is no selection of dead letters") from error


def json_response(value: object, *, status: int = 200) -> web.Response:
    """value: anything msgspec encodes."""
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type="application/json")


def error_response(status: int, error: str, advice: str, **more: object) -> web.Response:
    """The JSON form of every error of our own routes. more: further fields for programs."""
    return json_response({"error": error, "advice": advice, **more}, status=status)


def _http_error(error: web.HTTPException, request: web.Request) -> web.Response:
    """aiohttp's own refusals in our form."""
    match error.status:
        case 404:
            words = ("there is nothing at this path", "see / for a console, /v1/stream and /v1/events for events")
        case 405:
            words = (f"this path doesn't know the method {request.method}", f"use {error.headers.get('Allow', 'GET')}")
        case 413:
            words = ("the body of the request is too large", f"send at most {MAX_BODY_BYTES >> 20} MiB a request")
        case _:
            words = ((error.text or error.reason).strip(), "correct the request")
    answer = error_response(error.status, *words)
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer


def http_log() -> logging.Logger:
    """aiohttp's own log, without the requests that are no HTTP: it would quote their bytes, and a token or a write key may stand in them."""
    log = logging.getLogger("headrace.web.http")
    if not log.filters:
        log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))
    return log


async def harden(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer: it is private data, of the type it says, and nobody's frame."""
    headers = response.headers
    headers["Server"] = "headrace"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    headers.setdefault("Cache-Control", "no-store")


__all__ = [
    "IDLE_S",
    "MAX_BODY_BYTES",
    "Guard",
    "Handler",
    "WebServer",
    "answered",
    "error_response",
    "harden",
    "http_log",
    "json_response",
]
