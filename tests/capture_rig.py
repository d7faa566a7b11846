"""A capture into a real log in this process, behind a proxy, and the judgement on that log: no gap, no double, no hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from fix_servers import Database
from fold import Fold, difference, server_rows
from headrace.cdc.capture import Capture
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.metrics import CaptureMetrics
from headrace.cdc.position import parse_lsn
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.sources.base import SourceStatus
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.postgres import PostgresSource
from headrace.cdc.sources.postgres_config import PostgresConfig
from proxy import Proxy

DEADLINE_S = 30.0


class CaptureRig:
    """One source, one log, one proxy. fields: of the source's section; user: in place of the superuser."""

    def __init__(self, database: Database, folder: Path, *, user: str = "postgres", **fields: Any) -> None:
        self.database = database
        self.proxy = Proxy(database.server.port)
        self._path = folder / "rig.log.db"
        self._user = user
        self._fields = fields
        self.log: SQLiteLog | None = None
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.proxy.start()
        dsn = f"host=127.0.0.1 port={self.proxy.port} user={self._user} dbname={self.database.name}"
        name = f"f{self.database.name}"
        config = PostgresConfig(dsn=self._fields.pop("dsn", dsn), **self._fields)
        self.log = await SQLiteLog.open(self._path)
        self.source = PostgresSource(name, config, {})
        self.capture = Capture(self.source, Normaliser(name, {}), self.log, CaptureMetrics(CollectorRegistry()))
        self.task = asyncio.create_task(self.capture.run())

    async def stop(self) -> None:
        if self.task is not None:
            await end(self.task)
        if self.log is not None:
            await self.log.close()
            self.log = None
        await self.proxy.stop()

    def status(self) -> SourceStatus:
        return self.source.status()

    async def until(self, done: Callable[[], bool], what: str, *, within_s: float = DEADLINE_S) -> None:
        """Wait while the capture runs; its error is raised here."""
        assert self.task is not None
        try:
            async with asyncio.timeout(within_s):
                while not done():
                    if self.task.done():
                        self.task.result()
                    await asyncio.sleep(0.005)  # the capture works in the same loop
        except TimeoutError:
            raise AssertionError(f"{what} took too long: {self.capture.trouble or self.status()}") from None

    async def until_streaming(self) -> None:
        await self.until(lambda: self.status().phase == "streaming" and not self.capture.trouble, "streaming")

    async def until_caught_up(self) -> None:
        """Everything that is committed now is durable in the log, and the copy is whole."""
        await self.until_streaming()
        # A place behind every batch of the copy: those of an idle server all stand at the same one.
        self.database.execute("select pg_logical_emit_message(true, 'headrace', '')")
        end = parse_lsn(str(self.database.execute("select pg_current_wal_flush_lsn()::text")[0][0]))
        await self.until(
            lambda: bool(self.status().position) and parse_lsn(self.status().position) >= end, "catching up"
        )

    async def until_it_stops(self, *, within_s: float = DEADLINE_S) -> BaseException:
        """The error that stopped the capture for good."""
        assert self.task is not None
        try:
            async with asyncio.timeout(within_s):
                await asyncio.wait([self.task])
        except TimeoutError:
            raise AssertionError(f"it goes on: {self.capture.trouble or self.status()}") from None
        error = self.task.exception()
        assert error is not None
        return error

    async def judge(self, *tables: str) -> Fold:
        """Fold the log; the tables equal the server's, and nothing came twice."""
        assert self.log is not None
        fold = await folded(self.log)
        for table in tables:
            found, wanted = fold.rows(table), server_rows(self.database.dsn, table)
            assert found == wanted, f"{table} has {difference(found, wanted)}"
        return fold


async def folded(log: Any) -> Fold:
    """Every event of partition 0."""
    fold = Fold()
    offset = 0
    while True:
        batch = await log.read(0, offset)
        if not batch.events:
            return fold
        for event in batch.events:
            fold.event(event)
        offset = batch.next_offset


__all__ = ["CaptureRig", "folded"]
