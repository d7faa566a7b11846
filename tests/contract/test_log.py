"""The contract of the log over both engines; over SQLite once more with every read going to the file."""

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


@pytest.fixture(params=["memory", "sqlite", "sqlite from the file"])
async def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    if request.param == "sqlite from the file":
        monkeypatch.setattr(sqlite, "_TAIL_BYTES", 0)
    made: Engine = MemoryEngine() if request.param == "memory" else SQLiteEngine(tmp_path)
    yield made
    await made.close()


class TestEveryEngine(LogContract):
    """Runs the suite."""
