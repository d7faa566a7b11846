"""The page at /features, and what it asks: which views there are, and what an entity's values were.

::

    GET /features                         the page
    GET /v1/features                      every view: its definition, and how far it is
    GET /v1/features/VIEW/history?KEY=VALUE&since_s=3600   rows of the feature log (``features.offline``)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from headrace.cdc.errors import DefinitionError
from headrace.cdc.page import Page
from headrace.cdc.web import error_response, json_response
from headrace.features.answer import key_of
from headrace.features.compiled import CompiledView
from headrace.features.offline.history import history

_SINCE: Final = "since_s"
_DAY_S: Final = 86_400.0
_LONGEST_S: Final = 100 * 366 * _DAY_S


class PageRoutes:
    """The handlers. status: of the engine, by view. log: folder of the feature log, None without one. clock: seconds since 1970."""

    def __init__(
        self,
        views: Iterable[CompiledView],
        status: Callable[[], dict[str, Any]],
        log: Path | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._views = {view.spec.name: view for view in views}
        self._status = status
        self._log = log
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        page = Page(Path(__file__).with_name("page.html"))
        return [
            web.get("/features", page.answer),
            web.get("/v1/features", self._list),
            web.get("/v1/features/{view}/history", self._history),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        status = self._status()
        states = status.pop("views")
        views = [_described(view) | {"state": states.get(name)} for name, view in self._views.items()]
        document = {"views": views, "has_history": self._log is not None, "time_us": int(self._clock() * 1_000_000)}
        return json_response(document | status)

    async def _history(self, request: web.Request) -> web.Response:
        view = self._views.get(request.match_info["view"])
        if view is None:
            return error_response(404, "there is no such view", f"take one of: {', '.join(self._views)}")
        if self._log is None:
            return error_response(
                404, "there is no feature log to read from", 'add "offline: {path: feature_log}" under features'
            )
        texts = {name: value for name, value in request.query.items() if name != _SINCE}
        try:
            key = key_of(view.spec, texts)
            since_s = float(request.query.get(_SINCE, _DAY_S))
            if not 0 <= since_s <= _LONGEST_S:
                raise ValueError(f"{_SINCE} is negative, or more than a century")
        except ValueError as error:
            return error_response(400, f"the parameters can't be used: {error}", f"{_SINCE} is a number of seconds")
        since_us = int((self._clock() - since_s) * 1_000_000)
        folder = self._log / view.spec.name
        async with self._one_at_a_time:  # people look; the engine's thread pool and the disk are for others
            try:
                rows = await asyncio.to_thread(history, view.spec, folder, key, since_us=since_us)
            except DefinitionError as error:
                return error_response(409, error.message, error.advice)
        return json_response({"view": view.spec.name, "since_us": since_us, "rows": rows})


def _described(view: CompiledView) -> dict[str, Any]:
    spec = view.spec
    return {
        "name": spec.name,
        "description": spec.description,
        "source": view.table,
        "join_keys": [{"name": field.name, "type": field.dtype.value} for field in spec.join_keys],
        "features": [
            *[{"name": field.name, "type": field.dtype.value, "is_stored": True} for field in spec.fields],
            *[{"name": each.name, "type": each.dtype.value, "is_stored": False} for each in spec.on_demand],
        ],
        "ttl_s": spec.ttl_us / 1_000_000 if spec.ttl_us else None,
        "defined_at": Path(view.defined_at).name,
    }


__all__ = ["PageRoutes"]
