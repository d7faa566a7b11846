"""The contract of the log over both engines; over SQLite once more with every read going to the file, and as another process sees it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from contract.log_contract import Engine, LogContract
from headrace.cdc.log import sqlite
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.split.sharedlog import SharedLog
from sharing import shared_with


class MemoryEngine:
    async def open(self, **options: Any) -> MemoryLog:
        return MemoryLog(**options)

    async def take_over(self, log: Any) -> None:
        log.successor()

    async def close(self) -> None:
        pass


class SQLiteEngine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: list[SQLiteLog] = []

    async def open(self, **options: Any) -> SQLiteLog:
        log = await SQLiteLog.open(self.folder / f"{len(self.opened)}.db", **options)
        self.opened.append(log)
        return log

    async def take_over(self, log: Any) -> None:
        # What a writer does that got past the lock file: on another machine, or after somebody removed it.
        with sqlite3.connect(log.path) as connection:
            connection.execute("update meta set value = value + 1 where key = 'epoch'")
        connection.close()

    async def close(self) -> None:
        for log in self.opened:
            await log.close()


class SharedEngine(SQLiteEngine):
    """What consumers use goes the way that it goes from another process, every message through its bytes; the rest to the keeper."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.shared: list[SharedLog] = []

    async def open(self, **options: Any) -> Any:
        log = await super().open(**options)
        self.shared.append(shared_with(log))
        return SplitLog(log, self.shared[-1])

    async def close(self) -> None:
        for shared in self.shared:
            await shared.close()
        await super().close()


class SplitLog:
    def __init__(self, log: SQLiteLog, shared: SharedLog) -> None:
        self._log = log
        self._shared = shared

    async def append(self, events: Any, *, source: str, state: bytes, **more: Any) -> tuple[int, ...]:
        return await (self._log if more else self._shared).append(events, source=source, state=state, **more)

    async def close(self) -> None:
        await self._shared.close()
        await self._log.close()

    def __getattr__(self, name: str) -> Any:
        words = (
            "read",
            "commit",
            "committed",
            "groups",
            "forget",
            "source_state",
            "bounds",
            "generation",
            "partitions",
        )
        return getattr(self._shared if name in words else self._log, name)


@pytest.fixture(params=["memory", "sqlite", "sqlite from the file", "sqlite from another process"])
async def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    if request.param == "sqlite from the file":
        monkeypatch.setattr(sqlite, "_TAIL_BYTES", 0)
    made: Engine
    if request.param == "memory":
        made = MemoryEngine()
    else:
        made = (SharedEngine if request.param == "sqlite from another process" else SQLiteEngine)(tmp_path)
    yield made
    await made.close()


class TestEveryEngine(LogContract):
    """Runs the suite."""
