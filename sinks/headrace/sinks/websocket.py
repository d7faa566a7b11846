"""GET /v1/ws: a subscription over one WebSocket, whose client says how much it can take and what it has done.

The client sends JSON, one object a message::

    {"type": "subscribe", "from": "latest", "subscription": "mailer", "name": ["Order Completed"], "credit": 100}
                                                first; the fields of /v1/stream's query, lists where that repeats, where as an object
    {"type": "credit", "events": 100}           so many more events may be sent
    {"type": "filter", "kind": ["track"]}       from here on only these; replaces the former filter
    {"type": "ack", "cursor": "..."}            of a named subscription: everything before it is done

and gets::

    {"type": "event", "cursor": "...", "data": {...}}     cursor: the place behind the event
    {"type": "place", "cursor": "..."}                    nothing passed the filter up to here
    {"type": "gap", "cursor": "...", "from": "...", "to": "...", "events": 12000}    of slow=skip: so many were left out
    {"type": "acked", "cursor": "..."}
    {"type": "error", "error": "...", "advice": "..."}    then the connection closes

Without credit nothing is sent and nothing is read: the subscriber stands still in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec
from aiohttp import WSMsgType, web
from multidict import MultiDict

from headrace.cdc.errors import HeadraceError
from headrace.sinks.query import Query, RequestError, parse_cursor

_FILTERS: Final = ("name", "kind", "table", "key", "heartbeats", "where", "share")
_WORDS: Final = (*_FILTERS, "from", "partition", "envelope", "format", "subscription", "slow", "behind")
_LARGEST_BYTES: Final = 256 << 10
_MOST_CREDIT: Final = 1_000_000
_HEARTBEAT_S: Final = 20.0


class SocketSession:
    """One connection: what its client has said so far. changed: set whenever that is news for the sender."""

    def __init__(self, socket: web.WebSocketResponse, *, generation: str, partitions: int) -> None:
        self.socket = socket
        self.query: Query | None = None
        self.words: MultiDict[str] = MultiDict()
        self.credit = 0
        self.acks: asyncio.Queue[str] = asyncio.Queue()
        self.changed = asyncio.Event()
        self.is_over = False
        self.failure: RequestError | None = None
        self._generation = generation
        self._partitions = partitions

    async def listen(self) -> None:
        """Take what the client says until it goes, or says something that can't be understood."""
        try:
            async for message in self.socket:
                if message.type is not WSMsgType.TEXT:
                    raise RequestError("a message is no text", advice="send JSON objects as text")
                self._take(message.data)
                self.changed.set()
        except RequestError as error:
            self.failure = error
        finally:
            self.is_over = True
            self.changed.set()

    def _take(self, text: str) -> None:
        try:
            said: Any = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise RequestError(
                "a message is no JSON", advice='send objects such as {"type": "credit", "events": 100}'
            ) from error
        if not isinstance(said, dict):
            raise RequestError("a message is no JSON object")
        words = cast("dict[str, Any]", said)
        match words.pop("type", None):
            case "subscribe" if self.query is None:
                self._add_credit(words.pop("credit", 0))
                self._ask(words)
            case "subscribe":
                raise RequestError("a connection subscribes once", advice="open another, or send a filter")
            case "credit":
                self._add_credit(words.get("events"))
            case "filter" if self.query is not None:
                kept = {name: self.words.getall(name) for name in self.words if name not in _FILTERS}
                self._ask({**{name: values[0] for name, values in kept.items()}, **words}, only=_FILTERS)
            case "ack" if self.query is not None and self.query.subscription and isinstance(words.get("cursor"), str):
                self._check_ack(words["cursor"])
                self.acks.put_nowait(words["cursor"])
            case "ack":
                raise RequestError("an ack needs a cursor, and a subscription with a name")
            case other:
                raise RequestError(
                    f"a message of type {str(other)[:40]!r} can't be used here",
                    advice="first subscribe; then credit, filter or ack",
                )

    def _ask(self, words: Mapping[str, Any], *, only: Sequence[str] = _WORDS) -> None:
        found: MultiDict[str] = MultiDict()
        for name, value in words.items():
            if name not in _WORDS or (name not in only and name not in self.words):
                raise RequestError(f"field {name[:40]!r} is unknown here; known: {', '.join(only)}")
            values = cast("list[Any]", value) if isinstance(value, list) else [value]
            for each in values:
                is_text = isinstance(each, str)
                found.add(name, each if is_text else msgspec.json.encode(each).decode())
        self.query = Query.parse(found, partitions=self._partitions, is_pull=False)
        self.words = found

    def _add_credit(self, count: Any) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_CREDIT:
            raise RequestError(f"credit must be a whole number of events, at most {_MOST_CREDIT}")
        self.credit = min(_MOST_CREDIT, self.credit + count)

    def _check_ack(self, cursor: str) -> None:
        assert self.query is not None
        parse_cursor(
            cursor,
            generation=self._generation,
            partitions=self._partitions,
            partition=self.query.partition,
            parameter="cursor",
        )

    async def say(self, **words: Any) -> None:
        await self.socket.send_str(msgspec.json.encode(words).decode())

    async def say_event(self, cursor: str, line: bytes) -> None:
        self.credit -= 1
        await self.socket.send_str(
            f'{{"type":"event","cursor":{msgspec.json.encode(cursor).decode()},"data":{line.decode()}}}'
        )

    async def say_error(self, error: HeadraceError, **more: Any) -> None:
        await self.say(type="error", error=error.message, advice=error.advice, **more)


def new_socket() -> web.WebSocketResponse:
    return web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=_LARGEST_BYTES, compress=False)


def is_own_page(request: web.Request) -> bool:
    """A browser lets any page open a WebSocket anywhere; only this server's own pages may."""
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host


__all__ = ["SocketSession", "is_own_page", "new_socket"]
