"""POST /v1/features/erase: what ``headrace features erase`` asks the running process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from headrace.cdc.errors import DefinitionError, HeadraceError, RequestRefused
from headrace.cdc.web import error_response, json_response
from headrace.features.erasing import EraseAsked, Erased, answer


class EraseRoute:
    """The handler. work: the engine's, between two of its rounds."""

    def __init__(self, work: Callable[[Mapping[str, str]], Awaitable[list[Erased]]]) -> None:
        self._work = work

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/features/erase", self._erase)]

    async def _erase(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return error_response(415, "the body isn't application/json", "send the entity as JSON")
        try:
            asked = msgspec.json.decode(await request.read(), type=EraseAsked)
        except msgspec.DecodeError:
            return error_response(400, "the body can't be used", 'send {"entity": {"JOIN_KEY": "VALUE"}}')
        try:
            views = await self._work(asked.entity)
        except (DefinitionError, RequestRefused) as error:
            return error_response(409, error.message, error.advice)
        except HeadraceError as error:
            return error_response(503, error.message, error.advice)
        return json_response(answer(views))


__all__ = ["EraseRoute"]
