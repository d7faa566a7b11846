"""Threads that ask a stored log, each with a connection of its own: beside the writer in its process, or in another one."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from headrace.cdc.log.base import LogBatch
from headrace.cdc.log.sqlite_file import explained, open_reader
from headrace.cdc.log.sqlite_query import read_batch

_T = TypeVar("_T")

_READERS: Final = 2


class ReaderThreads:
    """Threads that read, each with a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="headrace-log-reader")
        self._own = threading.local()
        self._opened: list[sqlite3.Connection] = []

    async def run(self, ask: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, ask)

    def _ask(self, ask: Callable[[sqlite3.Connection], _T]) -> _T:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            try:
                connection = self._own.connection = open_reader(self._path)
            except sqlite3.Error as error:
                raise explained(self._path, error) from error
            self._opened.append(connection)
        return ask(connection)

    def close(self) -> None:
        """Blocks until the reads under way are done."""
        self._pool.shutdown()
        for connection in self._opened:
            connection.close()


class SQLiteBatches:
    """What a process reads that doesn't keep the log, while another one does. Made in the loop that uses it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = ReaderThreads(path)

    async def read(self, partition: int, offset: int, max_bytes: int, end: int) -> LogBatch:
        """Events from offset on and below end. Raises as EventLog.read."""
        return await self._threads.run(
            lambda connection: read_batch(connection, self._path, partition, offset, max_bytes, end)
        )

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.close)
