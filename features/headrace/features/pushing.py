"""Feast's writing routes: rows that a stock SDK pushes become events of kind ``record``, from which views compute.

    POST /push                    {"push_source_name": NAME, "df": {column: [values]}}
    POST /write-to-online-store   {"feature_view_name": NAME, "df": ...}, what the SDK's ``remote`` online store sends

A row is an event of that name, from the source ``push``; a view takes them by ``Events(NAME, kind="record")``. So they stand in the log like everything else, are in the
feature log, and survive a rebuild. Answered once durable, and as a rule applied. What no view takes is refused: it would be written nowhere.
Follows the requests of Feast 0.67's feature server.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiohttp import web

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import ConsumerLog
from headrace.features.compiled import CompiledView
from headrace.features.eventrows import is_one_of

SOURCE: Final = "push"
MOST_ROWS: Final = 10_000
_TIMES: Final = ("event_timestamp", "created")

_encode = msgspec.json.Encoder().encode


class _Pushed(msgspec.Struct):
    """Body of both; further fields of Feast's are accepted and have no effect."""

    df: dict[str, list[Any]]
    push_source_name: str = ""
    feature_view_name: str = ""


_decode: Final = msgspec.json.Decoder(_Pushed).decode


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class PushRoutes:
    """The handlers. applied: waits a moment until an offset is applied."""

    def __init__(
        self,
        views: Sequence[CompiledView],
        log: ConsumerLog,
        applied: Callable[[int], Awaitable[None]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._views = views
        self._log = log
        self._applied = applied
        self._clock = clock

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/push", self._push), web.post("/write-to-online-store", self._push)]

    async def _push(self, request: web.Request) -> web.Response:
        try:
            if request.content_type != "application/json":
                raise _RefusedError(415, "the body isn't application/json")
            try:
                asked = _decode(await request.read())
            except msgspec.DecodeError as error:
                raise _RefusedError(422, f"the body can't be read: {error}") from error
            name = asked.push_source_name if request.path == "/push" else asked.feature_view_name
            if not name:
                field = "push_source_name" if request.path == "/push" else "feature_view_name"
                raise _RefusedError(422, f"the body has no {field}")
            events = list(self._events(name, asked.df))
            if events and not any(
                view.events is not None and is_one_of(events[0], view.events) for view in self._views
            ):
                raise _RefusedError(422, self._untaken(name))
            if events:
                ends = await self._log.append(events, source=SOURCE, state=b"")
                await self._applied(ends[0])
        except _RefusedError as refused:
            detail = {"module": "feast.errors", "class": "FeastError", "message": refused.message}
            return web.Response(
                body=_encode(_encode(detail).decode()), status=refused.status, content_type="application/json"
            )
        return web.Response(body=b"null", content_type="application/json")

    def _events(self, name: str, columns: Mapping[str, Sequence[Any]]) -> Iterator[CustomerEvent]:
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise _RefusedError(422, "the columns of df have different lengths")
        rows = lengths.pop() if lengths else 0
        if rows > MOST_ROWS:
            raise _RefusedError(422, f"{rows} rows in one request, {MOST_ROWS} at most")
        now_us = int(self._clock() * 1_000_000)
        batch = secrets.token_hex(12)
        names = [column for column in columns if column not in _TIMES]
        for row in range(rows):
            times = columns.get("event_timestamp")
            moment_us = now_us if times is None else _moment_us(times[row])
            properties = {column: columns[column][row] for column in names}
            yield CustomerEvent(
                f"{SOURCE}-{batch}-{row}",
                "record",
                name,
                None,
                moment_us,
                now_us,
                now_us,
                SOURCE,
                "",
                _encode(properties),
            )

    def _untaken(self, name: str) -> str:
        for view in self._views:
            if view.spec.name == name:
                return (
                    f"view {name} is computed by headrace from {view.table}, and isn't written by others; to push rows to it, define it over "
                    f'Events("{name}", kind="record")'
                )
        return f'no view takes what is pushed as {name}: define one over Events("{name}", kind="record")'


def _moment_us(value: Any) -> int:
    """A time as the SDK sends it, without a zone in UTC. Raises _RefusedError."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _RefusedError(422, "event_timestamp must be ISO 8601 text") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round(moment.timestamp() * 1_000_000)


__all__ = ["MOST_ROWS", "SOURCE", "PushRoutes"]
