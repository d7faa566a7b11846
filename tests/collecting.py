"""A served collector for tests: the real HTTP server on a free port over a log in memory, or one that is given."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry

from headrace.cdc.config import ServerConfig, Size
from headrace.cdc.deadletters import DeadLetters
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import StoredLetter
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.process.pipeline import Pipeline
from headrace.cdc.process.validate import Plan
from headrace.cdc.sources.collector import Collector
from headrace.cdc.sources.collector_config import CollectorConfig
from headrace.cdc.sources.ending import end
from headrace.cdc.web import WebServer
from serving import no_snapshot

KEY = "web-key"
NOW_US = 1_800_000_000_000_000


def basic(key: str) -> dict[str, str]:
    """The header by which SDKs give their write key."""
    return {"Authorization": "Basic " + base64.b64encode(f"{key}:".encode()).decode()}


class Collecting(msgspec.Struct):
    """events, letters: what the log holds now. reported: (source, events) of each append."""

    url: str
    port: int
    log: Any
    collector: Collector
    server: WebServer
    registry: CollectorRegistry
    http: aiohttp.ClientSession
    running: asyncio.Task[None]
    reported: list[tuple[str, int]]

    async def post(self, path: str, body: Any, *, key: str | None = KEY, **headers: str) -> tuple[int, str]:
        """body: bytes, or what JSON is made of."""
        data = io.BytesIO(body if isinstance(body, bytes) else msgspec.json.encode(body))
        given = headers if key is None else basic(key) | headers
        if path.startswith("/v1/deadletters"):
            given = {"Content-Type": "application/json"} | given
        async with self.http.post(self.url + path, data=data, headers=given) as response:
            return response.status, await response.text()

    async def events(self) -> list[CustomerEvent]:
        bounds = await self.log.bounds(0)
        found: list[CustomerEvent] = []
        while bounds.first + len(found) < bounds.end:
            found += (await self.log.read(0, bounds.first + len(found))).events
        return found

    async def letters(self) -> list[StoredLetter]:
        found: list[StoredLetter] = await self.log.letters(limit=10_000)
        return found


@contextlib.asynccontextmanager
async def collecting(
    log: Any = None,
    *,
    write_keys: dict[str, str] | None = None,
    origins: list[str] | None = None,
    max_body: int = 10 << 20,
    max_event: int = 32 << 10,
    tokens: dict[str, str] | None = None,
    plan: Plan | None = None,
    pipeline: Pipeline | None = None,
) -> AsyncIterator[Collecting]:
    log = MemoryLog() if log is None else log
    registry = CollectorRegistry()
    keys = {KEY: "website", "app-key": "app"} if write_keys is None else write_keys
    config = CollectorConfig(write_keys=keys, origins=origins or [], max_body=Size(max_body), max_event=Size(max_event))
    collector = Collector("web", config, clock=lambda: NOW_US / 1_000_000)
    reported: list[tuple[str, int]] = []
    collector.attach(log, registry, lambda source, count, first_us: reported.append((source, count)), plan, pipeline)
    server = WebServer(
        ServerConfig(listen="127.0.0.1:0", tokens=tokens or {}),
        consumers=[],
        sources=lambda: {"web": collector.status()},
        log=log,
        registry=registry,
        troubles=dict,
        snapshot=no_snapshot,
        pushed=[collector],
        letters=DeadLetters(log, [collector], pipeline),
    )
    await server.start()
    started = asyncio.Event()
    running = asyncio.create_task(collector.run(started.set))
    await started.wait()
    try:
        async with aiohttp.ClientSession() as http:
            port = int(server.url.rpartition(":")[2])
            yield Collecting(server.url, port, log, collector, server, registry, http, running, reported)
    finally:
        await end(running)
        await server.stop()
