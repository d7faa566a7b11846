"""A request that another process answers: sent there as it came, and answered as it answers, piece by piece."""

from __future__ import annotations

from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from headrace.cdc.web import error_response

_HOP_BY_HOP: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""RFC 9110, 7.6.1."""
_OURS: Final = frozenset({"content-length", "date", "server"})


async def forward(request: web.Request, session: aiohttp.ClientSession, base: str) -> web.StreamResponse:
    """Ask the server at base the same. Raises aiohttp.ClientError when it can't be asked; a broken answer breaks ours.

    A change of protocol can't be asked for: 421 tells the client to come on a connection of its own.
    """
    if "upgrade" in request.headers.get("Connection", "").lower():
        refused = error_response(
            421, "this connection began with requests for another process", "open a new connection"
        )
        refused.force_close()
        return refused
    headers: CIMultiDict[str] = CIMultiDict(
        (name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP
    )
    headers.popall("Content-Length", None)
    body = await request.read()
    async with session.request(
        request.method, f"{base}{request.path_qs}", headers=headers, data=body or None, allow_redirects=False
    ) as answer:
        kept = CIMultiDict(
            (name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP | _OURS
        )
        if answer.content_length is not None:
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


__all__ = ["forward"]
