"""Drives a PostgresSource as capture does, without a log: what it emitted is folded, what it stored is kept for a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from fold import Fold
from headrace.cdc.config import EventConfig
from headrace.cdc.event import Change
from headrace.cdc.sources.base import ChangeBatch
from headrace.cdc.sources.postgres import PostgresSource
from headrace.cdc.sources.postgres_config import PostgresConfig

DEADLINE_S = 30.0


class Reader:
    """One source, restartable: ``state`` is what a log would hold."""

    def __init__(self, dsn: str, *, events: Mapping[str, EventConfig] | None = None, **fields: Any) -> None:
        self.config = PostgresConfig(dsn=dsn, **fields)
        self.events = events or {}
        self.source = self._make()
        self.state: bytes | None = None
        self.fold = Fold()
        self.changes: list[Change] = []
        self.heartbeats = 0
        self.parts: list[ChangeBatch] = []
        """Of a transaction whose end hasn't come: what a log has staged."""
        self.largest = 0
        """The most batches that one transaction came in."""

    def _make(self) -> PostgresSource:
        name = "t" + self.config.dsn.rpartition("dbname=")[2]
        return PostgresSource(name, self.config, self.events)

    async def start(self) -> None:
        await self.source.start(self.state)

    async def restart(self, *, forget_confirmations: bool = False) -> None:
        """Stop, then start a new source from the stored state."""
        if forget_confirmations:
            self.source._durable = 0  # pyright: ignore[reportPrivateUsage]  # a crash sends no last confirmation
        await self.source.stop()
        self.source = self._make()
        self.parts = []
        await self.start()

    async def until(self, done: Callable[[], bool]) -> None:
        """Read until ``done`` says so; fails after the deadline."""
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                batch = await self.source.read()
                if batch.is_part:
                    self.parts.append(batch)
                    continue
                self.state = batch.state
                self.heartbeats += batch.is_heartbeat
                whole = [change for part in (*self.parts, batch) for change in part.changes]
                self.largest = max(self.largest, len(self.parts) + 1)
                self.parts = []
                for change in whole:
                    self.changes.append(change)
                    self.fold.change(change)
                self.source.durable(batch.mark)

    async def until_streaming(self) -> None:
        await self.until(lambda: self.source.status().phase == "streaming")
        self.fold.is_snapshotting = False

    async def until_op(self, op: str, count: int = 1) -> list[Change]:
        await self.until(lambda: sum(change.op == op for change in self.changes) >= count)
        return [change for change in self.changes if change.op == op]

    async def stop(self) -> None:
        await self.source.stop()
