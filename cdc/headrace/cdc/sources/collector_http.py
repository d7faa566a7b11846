"""The collector's routes: what an SDK of Segment or RudderStack may ask, at any path prefix.

::

    POST /v1/{identify,track,page,screen,group,alias}, /v1/{i,t,p,s,g,a}     one event
    POST /v1/batch, /v1/b, /v1/import, /beacon/v1/batch                      many
    POST /v1/m                                                               the browser SDK's numbers of itself: thrown away
    GET  /pixel/v1/{track,page}, /v1/pixel/{track,page}                      one event, answered by a picture
    GET  /v1/projects/KEY/settings, /projects/KEY/settings, /sourceConfig    what SDKs ask before they send
    GET  /health, /version, /robots.txt
    OPTIONS of each                                                          a browser's preflight

Answers are what their own servers' would be, since the SDKs' retries hang on status and body: 200 ``ok`` once everything is durable; plain
text for errors; 429 with Retry-After when there is no room, after having waited for some; 503 only while the process stops. 4xx means
"drop it" to every SDK, so a bad event never gets one. See docs/collector.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import web

from headrace.cdc import __version__
from headrace.cdc.sources import collector as collector_module
from headrace.cdc.sources.collector import BUSY_RETRY_S, CLOSING_RETRY_S, KINDS, Asked, Collector, Reading, Refused
from headrace.cdc.sources.collector_answers import (
    GIF,
    anonymous_id,
    basic_key,
    etag,
    pixel_call,
    settings,
    source_config,
)
from headrace.cdc.sources.inflate import BrokenError, TooLargeError, inflate, is_gzip
from headrace.cdc.sources.intake import BusyError, ClosingError

_PREFLIGHT_S: Final = "900"
_EXPOSED: Final = "Retry-After, X-RateLimit-Reset"
_PREFIX: Final = "/{prefix:(?:.*/)?}"
_END: Final = "{end:/*}"

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(collector: Collector) -> Sequence[web.RouteDef]:
    """See the module's head."""
    return _Routes(collector).all()


class _Routes:
    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._config = collector.config
        self._limit = collector.config.max_body.bytes

    def all(self) -> list[web.RouteDef]:
        calls = "|".join(KINDS)
        given: list[tuple[str, str, _Handler]] = [
            ("POST", f"{_PREFIX}v1/{{sep:/*}}{{call:{calls}}}{_END}", self._events),
            ("POST", f"{_PREFIX}v1/{{sep:/*}}m{_END}", self._own_metrics),
            ("GET", f"{_PREFIX}pixel/v1/{{call:track|page}}{_END}", self._pixel),
            ("GET", f"{_PREFIX}v1/pixel/{{call:track|page}}{_END}", self._pixel),
            ("GET", f"{_PREFIX}projects/{{key}}/settings{_END}", self._settings),
            ("GET", f"{_PREFIX}sourceConfig{_END}", self._source_config),
            ("GET", "/health", self._alive),
            ("GET", "/version", self._version),
            ("GET", "/robots.txt", self._robots),
        ]
        made = [web.route(method, path, self._answered(handler)) for method, path, handler in given]
        paths = dict.fromkeys(path for _, path, _ in given)
        return made + [web.route("OPTIONS", path, self._preflight) for path in paths]

    def _answered(self, handler: _Handler) -> _Handler:
        """Every answer, errors too, with what a browser needs to let its page see it."""

        async def answer(request: web.Request) -> web.StreamResponse:
            if not self._may_ask(request):
                return _said(403, "this origin or host may not send events here; see sources.NAME.origins, write_keys")
            try:
                response = await handler(request)
            except Refused as refused:
                response = _said(refused.status, refused.words)
            except TooLargeError:
                response = _said(413, "request size exceeds max limit")
            except BrokenError as error:
                response = _said(400, str(error))
            except BusyError:
                response = _said(429, "max requests limit reached", BUSY_RETRY_S)
            except ClosingError:
                response = _said(503, "service unavailable", CLOSING_RETRY_S)
            except TimeoutError:
                response = _said(408, "the body came too slowly")
                response.force_close()
            return self._for_browser(request, response)

        return answer

    # who may ask

    def _may_ask(self, request: web.Request) -> bool:
        return self._collector.may_send(request.host, request.headers.get("Origin"))

    def _for_browser(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        headers = response.headers
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        if origin is not None:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Expose-Headers"] = _EXPOSED
            headers["Vary"] = "Origin"
            # No cookie means anything here; but a beacon is sent with them, and only a named page shall be told that this is fine.
            if origin in self._config.origins:
                headers["Access-Control-Allow-Credentials"] = "true"
        return response

    async def _preflight(self, request: web.Request) -> web.StreamResponse:
        if not self._may_ask(request):
            return _said(403, "this origin may not send events here")
        response = web.Response(status=204)
        headers = response.headers
        headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
        headers["Access-Control-Max-Age"] = _PREFLIGHT_S
        # Echoed, since the list is another with each version of the SDKs, and "*" doesn't cover Authorization.
        asked = request.headers.get("Access-Control-Request-Headers")
        if asked is not None:
            headers["Access-Control-Allow-Headers"] = asked
        return self._for_browser(request, response)

    # events

    async def _events(self, request: web.Request) -> web.StreamResponse:
        call = request.match_info["call"]
        body = await self._body(request)
        key = basic_key(request.headers.get("Authorization")) or request.query.get("writeKey") or None
        asked = Asked(
            KINDS[call],
            key,
            body,
            self._collector.now_us(),
            anonymous_id(request.headers.get("AnonymousId")),
            call == "import",
        )
        await self._collector.take(asked)
        return _said(200, "ok")

    async def _body(self, request: web.Request) -> bytes:
        """As it came, gzip still packed. Raises TooLargeError, BrokenError, BusyError, TimeoutError, Refused for an unknown encoding."""
        limit = self._limit
        if (request.content_length or 0) > limit:
            raise TooLargeError
        encoding = request.headers.get("Content-Encoding", "").lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Refused(415, "the body's Content-Encoding is unknown here; use gzip or none")
        reading = Reading(self._collector)
        try:
            async with asyncio.timeout(collector_module.BODY_S):
                async for piece in request.content.iter_any():
                    reading.add(piece)
                    if reading.held > limit:
                        raise TooLargeError
        finally:
            body = reading.end()
        if encoding == "deflate" and not is_gzip(body) and not body.lstrip().startswith((b"{", b"\xef")):
            return inflate(body, limit)
        return body

    async def _own_metrics(self, request: web.Request) -> web.StreamResponse:
        await self._body(request)
        return _said(200, "ok")

    async def _pixel(self, request: web.Request) -> web.StreamResponse:
        """Always the picture: nobody reads an error in a mail or a page."""
        kind = request.match_info["call"]
        now_us = self._collector.now_us()
        call = pixel_call(kind, request.query, now_us)
        if call is not None and len(call) <= self._limit:
            key = basic_key(request.headers.get("Authorization")) or request.query.get("writeKey") or None
            try:
                await self._collector.take(Asked(kind, key, call, now_us))
            except (Refused, TooLargeError, BrokenError, BusyError, ClosingError):
                pass
        return web.Response(body=GIF, content_type="image/gif", headers={"Cache-Control": "no-store, private"})

    # what SDKs ask before they send

    async def _settings(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        if self._collector.writer(key) is None:
            return _said(404, "unknown write key")
        prefix = request.match_info["prefix"].strip("/").removesuffix("v1").strip("/")
        host = "/".join(part for part in (request.host, prefix, "v1") if part)
        return _document(request, settings(key, host))

    async def _source_config(self, request: web.Request) -> web.StreamResponse:
        key = basic_key(request.headers.get("Authorization")) or request.query.get("writeKey") or None
        writer = self._collector.writer(key)
        if writer is None or key is None:
            return _said(401, "failed to read writekey from header" if key is None else "invalid write key")
        return _document(request, source_config(key, self._collector.name, writer))

    async def _alive(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"server": "UP"})

    async def _version(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": __version__})

    async def _robots(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="User-agent: *\nDisallow: /\n")


def _said(status: int, words: str, retry_after_s: int | None = None) -> web.Response:
    """Plain text: a JSON body without the fields that it expects makes rudder-sdk-python retry a 4xx ten times."""
    response = web.Response(status=status, text=words, content_type="text/plain")
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    return response


def _document(request: web.Request, body: bytes) -> web.Response:
    """On a page's way to its first event: may be kept for a minute, and asked for again by its tag."""
    tag = etag(body)
    headers = {"ETag": tag, "Cache-Control": "private, max-age=60"}
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type="application/json", headers=headers)
