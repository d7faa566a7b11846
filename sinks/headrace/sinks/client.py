"""A subscriber in Python: events of a running headrace, one by one, resumed by itself after whatever happens to the connection.

::

    async with subscribe("http://127.0.0.1:8080", token="...", name=["Order Completed"], subscription="mailer") as events:
        async for event in events:
            await send_mail(event.data)
            await events.commit()

Each event comes once for as long as the object lives. Beyond that a named subscription goes on behind the last commit, and a program
without a name keeps ``cursor`` itself. Reads GET /v1/stream (server-sent events, HTML standard).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from headrace.cdc.errors import HeadraceError

_SILENCE_S = 45.0
"""The server says something each 15 seconds."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 15.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class SubscriptionRefused(HeadraceError):
    """The server doesn't give what was asked for: another token, query or cursor is needed."""

    exit_code = 6
    advice = "correct what is named"


class SubscriptionTrimmed(SubscriptionRefused):
    """The place is no longer kept. earliest: the cursor of the oldest event that is."""

    advice = "begin again at earliest, or at latest; what is between is lost to this subscriber"

    def __init__(self, message: str, *, earliest: str, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.earliest = earliest


class Received(msgspec.Struct, frozen=True):
    """cursor: the place behind it. kind: as in the event. data: the envelope that was asked for, decoded."""

    cursor: str
    kind: str
    data: dict[str, Any]


class SseParser:
    """Bytes of a stream in, (id, event, data) out; an event without data moves the id only."""

    def __init__(self) -> None:
        self._buffer = b""
        self._event = self._data = ""
        self.last_id = ""

    def feed(self, chunk: bytes) -> list[tuple[str, str, str]]:
        found: list[tuple[str, str, str]] = []
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r").decode()
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                if self._data or self._event == "error":
                    found.append((self.last_id, self._event, self._data))
                self._event = self._data = ""
            elif field == "id":
                self.last_id = value
            elif field == "event":
                self._event = value
            elif field == "data":
                self._data = value if not self._data else f"{self._data}\n{value}"
        return found


class EventStream:
    """See the module. Made by ``subscribe``; an async context manager and an async iterator of Received."""

    def __init__(self, url: str, token: str | None, query: list[tuple[str, str]], subscription: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._query = query
        self._subscription = subscription
        self._session: aiohttp.ClientSession | None = None
        self._events: AsyncIterator[Received] | None = None
        self.cursor = ""
        """The place behind the last event that was given; "" before the first word of the server."""
        self.connections = 0

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=_SILENCE_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        events, self._events = self._events, None
        if events is not None:
            # An async iterator in its type, an async generator in truth.
            await events.aclose()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        if self._session is not None:
            await self._session.close()

    def __aiter__(self) -> AsyncIterator[Received]:
        if self._events is None:
            self._events = self._run()
        return self._events

    async def commit(self, cursor: str | None = None) -> None:
        """Of a named subscription: everything up to cursor (default: up to the last event given) is done. Durable on return.

        Raises SubscriptionRefused; aiohttp's errors when the server can't be reached.
        """
        if self._subscription is None:
            raise SubscriptionRefused(
                "only a subscription with a name can be committed", advice="give subscription=NAME"
            )
        assert self._session is not None
        body = {"cursor": self.cursor if cursor is None else cursor}
        async with self._session.post(f"{self._url}/v1/subscriptions/{self._subscription}/commit", json=body) as answer:
            if answer.status != 200:
                raise await _refused(answer)

    async def _run(self) -> AsyncIterator[Received]:
        attempt = 0
        while True:
            try:
                async for received in self._connected():
                    attempt = 0
                    yield received
            except (aiohttp.ClientError, TimeoutError, _LaterError):
                pass
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
            attempt = min(attempt + 1, 10)
            await asyncio.sleep(pause_s)

    async def _connected(self) -> AsyncIterator[Received]:
        assert self._session is not None
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        self.connections += 1
        async with self._session.get(f"{self._url}/v1/stream", params=self._query, headers=headers) as answer:
            if answer.status in _RETRIED:
                raise _LaterError
            if answer.status != 200:
                raise await _refused(answer)
            parser = SseParser()
            async for chunk in answer.content.iter_any():
                for cursor, kind, text in parser.feed(chunk):
                    data: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
                    if kind == "error":
                        raise _told(data)
                    self.cursor = cursor
                    yield Received(cursor, kind, data)
                self.cursor = parser.last_id or self.cursor


class _LaterError(Exception):
    """The server can't now."""


def _told(data: dict[str, Any]) -> Exception:
    if data.get("reason") == "trimmed":
        return SubscriptionTrimmed(str(data["error"]), earliest=str(data["earliest"]))
    return _LaterError()


async def _refused(answer: aiohttp.ClientResponse) -> SubscriptionRefused:
    try:
        said = msgspec.json.decode(await answer.read(), type=dict[str, Any])
    except (msgspec.DecodeError, aiohttp.ClientError):
        return SubscriptionRefused(f"the server answered {answer.status}")
    if "earliest" in said:
        return SubscriptionTrimmed(str(said.get("error")), earliest=str(said["earliest"]))
    return SubscriptionRefused(
        str(said.get("error", f"the server answered {answer.status}")), advice=str(said.get("advice", ""))
    )


def subscribe(
    url: str,
    *,
    token: str | None = None,
    start: str | None = None,
    subscription: str | None = None,
    share: str | None = None,
    name: Sequence[str] = (),
    kind: Sequence[str] = (),
    table: Sequence[str] = (),
    key: Sequence[str] = (),
    where: dict[str, Any] | None = None,
    envelope: str | None = None,
    slow: str | None = None,
    behind: int | None = None,
) -> EventStream:
    """url: of the server. start: earliest, latest (default), an offset or a cursor; of a named subscription only where it begins.

    share: "0/4", "1/4", ...: each of four subscribers gets the customers of a quarter. where: as in a pipeline's step,
    {"properties.total": {"above": 100}}. envelope: headrace, cloudevents, debezium or segment. slow, behind: what happens when this
    subscriber falls so many events behind: block (default), skip (a Received of kind "gap" comes) or disconnect (it connects again, and misses nothing).
    """
    query: list[tuple[str, str]] = []
    for word, value in (
        ("from", start),
        ("subscription", subscription),
        ("share", share),
        ("envelope", envelope),
        ("slow", slow),
    ):
        if value is not None:
            query.append((word, value))
    for word, values in (("name", name), ("kind", kind), ("table", table), ("key", key)):
        query += [(word, value) for value in values]
    if behind is not None:
        query.append(("behind", str(behind)))
    if where is not None:
        query.append(("where", msgspec.json.encode(where).decode()))
    named = (
        None if subscription is None else subscription if share is None else f"{subscription}.{share.replace('/', '-')}"
    )
    return EventStream(url, token, query, named)


__all__ = ["EventStream", "Received", "SseParser", "SubscriptionRefused", "SubscriptionTrimmed", "subscribe"]
