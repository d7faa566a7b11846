"""The route of a webhook: ``POST PATH``, answered once everything is durable.

::

    200 ok     events, dead letters or nothing of it are durable; also for a body that no rule fits: sending it again would mend nothing
    401        not signed, wrongly signed, or too long ago
    413, 415   too large; packed, so that its signature means nothing here
    408, 429   came too slowly; no room now, with Retry-After. 503: the process stops
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from headrace.cdc.sources import webhook as webhook_module
from headrace.cdc.sources.intake import BusyError, ClosingError
from headrace.cdc.sources.webhook import UnsignedError, WebhookSource


def routes(source: WebhookSource) -> Sequence[web.RouteDef]:
    """See the module's head."""

    async def take(request: web.Request) -> web.StreamResponse:
        if not source.may_send(request.host, request.headers.get("Origin")):
            return _said(
                403, "without secrets only programs of this machine may send webhooks; see sources.NAME.secrets"
            )
        if request.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            return _said(415, "send the body unpacked: its signature is made of the bytes")
        try:
            body = await _body(source, request)
            headers = {name.lower(): value for name, value in request.headers.items()}
            answer = await source.take(headers, body)
            if answer is not None:
                return _exactly(answer)
        except UnsignedError as error:
            # The clock's difference is worth telling; whether the signature or the secret is wrong is not.
            return _said(401, error.detail if error.reason == "stale" else "the request isn't signed as it should be")
        except web.HTTPRequestEntityTooLarge:
            return _said(413, f"the body has more than {source.config.max_body.bytes} bytes (max_body)")
        except BusyError:
            return _said(429, "too much is on its way already", 5)
        except ClosingError:
            return _said(503, "the service stops", 1)
        except TimeoutError:
            response = _said(408, "the body came too slowly")
            response.force_close()
            return response
        return _said(200, "ok")

    async def challenge(request: web.Request) -> web.StreamResponse:
        answer = source.challenged(request.query)
        return _said(403, "this isn't the challenge that was agreed on") if answer is None else _exactly(answer)

    asked = source.config.challenge
    gets = [web.get(source.path, challenge, allow_head=False)] if asked is not None and asked.query else []
    return [web.post(source.path, take), *gets]


def _exactly(text: str) -> web.Response:
    """Whoever asks compares every byte. As plain text that no browser takes for a page."""
    return web.Response(text=text, content_type="text/plain", headers={"X-Content-Type-Options": "nosniff"})


async def _body(source: WebhookSource, request: web.Request) -> bytes:
    limit = source.config.max_body.bytes
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
    pieces: list[bytes] = []
    held = 0
    try:
        async with asyncio.timeout(webhook_module.BODY_S):
            async for piece in request.content.iter_any():
                held += len(piece)
                source.reading_bytes += len(piece)
                pieces.append(piece)
                if held > limit:
                    raise web.HTTPRequestEntityTooLarge(limit, held)
                if source.reading_bytes > webhook_module.READING_BYTES:
                    raise BusyError
    finally:
        source.reading_bytes -= held
    return b"".join(pieces)


def _said(status: int, words: str, retry_after_s: int | None = None) -> web.Response:
    response = web.Response(status=status, text=words + "\n", content_type="text/plain")
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    return response
