"""A served log for tests: the real HTTP server and subscriptions on a free port, and a small reader of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry

from headrace.cdc.config import ServerConfig
from headrace.cdc.consumer import Consumer
from headrace.cdc.errors import RequestRefused
from headrace.cdc.sources.base import Asked, SourceStatus
from headrace.cdc.sources.ending import end
from headrace.cdc.web import WebServer
from headrace.sinks.subscribe import SubscribeConfig, Subscriptions
from shop_log import ShopLog

DEADLINE_S = 10.0
STREAMING = SourceStatus("streaming", "", "0/1", lag_bytes=0, retained_bytes=4096)


class Served(msgspec.Struct):
    url: str
    log: ShopLog
    subscriptions: Subscriptions
    server: WebServer
    registry: CollectorRegistry
    http: aiohttp.ClientSession
    following: asyncio.Task[None]


async def no_snapshot(source: str, tables: Sequence[str], where: str) -> Asked:
    raise RequestRefused(f'there is no source "{source}"')


@contextlib.asynccontextmanager
async def serving(
    log: ShopLog,
    *,
    config: ServerConfig | None = None,
    subscribe: SubscribeConfig | None = None,
    sources: Callable[[], dict[str, SourceStatus]] = lambda: {"shop": STREAMING},
    troubles: Callable[[], dict[str, str]] = dict,
    snapshot: Callable[[str, Sequence[str], str], Awaitable[Asked]] = no_snapshot,
    others: Iterable[Consumer] = (),
    keepalive_s: float = 15.0,
) -> AsyncIterator[Served]:
    registry = CollectorRegistry()
    subscriptions = Subscriptions(log, registry, subscribe, keepalive_s=keepalive_s)
    server = WebServer(
        config or ServerConfig(listen="127.0.0.1:0"),
        consumers=[subscriptions, *others],
        sources=sources,
        log=log,
        registry=registry,
        troubles=troubles,
        snapshot=snapshot,
    )
    await server.start()
    following = asyncio.create_task(subscriptions.run())
    try:
        async with aiohttp.ClientSession(read_bufsize=1 << 16) as http:
            yield Served(server.url, log, subscriptions, server, registry, http, following)
    finally:
        await end(following)
        await server.stop()


class Sent(msgspec.Struct):
    """One server-sent event. data: decoded JSON."""

    id: str
    event: str
    data: Any


async def sent_events(response: aiohttp.ClientResponse) -> AsyncGenerator[Sent, None]:
    """Events with data, as a browser would dispatch them; ``response.last_id`` isn't kept for events without data."""
    event = data = ""
    last_id = ""
    buffer = b""
    async for chunk in response.content.iter_any():
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            field, _, value = line.decode().partition(": ")
            if field == "id":
                last_id = value
            elif field == "event":
                event = value
            elif field == "data":
                data = value
            elif not line:
                if data:
                    yield Sent(last_id, event, msgspec.json.decode(data))
                event = data = ""


async def take(events: AsyncGenerator[Sent, None], count: int) -> list[Sent]:
    """The next ``count`` events, within the deadline."""
    taken: list[Sent] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(taken) < count:
            taken.append(await anext(events))
    return taken


async def until(claim: Callable[[], bool]) -> None:
    """Wait until a claim about this process holds, within the deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not claim():
            await asyncio.sleep(0.001)
