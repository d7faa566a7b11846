"""Reading the embedded log from another process while ``headrace run`` writes it, or when nobody does. Writes nothing, creates no file.

With a writer, or after its crash, there is a write-ahead log beside the file and SQLite reads both. After a clean end there is only the
file: an ordinary read-only connection would create a -wal and a -shm beside it, so then it is opened as immutable, and each answer is
thrown away and asked again if a writer has appeared meanwhile.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from headrace.cdc.errors import LogError, LogUnavailable
from headrace.cdc.log.base import Bounds, Cursor, LogBatch, StoredLetter
from headrace.cdc.log.rules import check_partition
from headrace.cdc.log.sqlite_file import Identity, check_readable, identity, open_reader
from headrace.cdc.log.sqlite_letters import read_letters
from headrace.cdc.log.sqlite_query import bounds, by_group, cursors, data_version, read_batch, source_state

_T = TypeVar("_T")

_POLL_S: Final = 0.02
"""How often a waiting read looks for a commit of the writer: the price of needing no word from it."""


class SQLiteLogReader:
    """The reading half of EventLog, with the same meanings; made by ``open``. Calls may overlap: they are answered one by one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._connection: sqlite3.Connection | None = None
        self._is_immutable = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headrace-log-reader")
        self._identity = Identity("", 0, 0)
        self._is_closed = False

    @classmethod
    async def open(cls, path: Path) -> SQLiteLogReader:
        """Raises LogUnavailable when there is no log at path or it can't be read; LogError when it is something else or newer."""
        reader = cls(path.absolute())
        try:
            reader._identity = await reader._run(lambda connection: identity(connection, reader.path))
        except BaseException:
            await reader.close()
            raise
        return reader

    @property
    def path(self) -> Path:
        return self._path

    @property
    def generation(self) -> str:
        return self._identity.generation

    @property
    def partitions(self) -> int:
        return self._identity.partitions

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        """See EventLog.read; a wait notices an append at most 20 ms after it is durable."""
        check_partition(partition, self.partitions)
        deadline = time.monotonic() + wait_s
        while True:
            # Asked before the read: a commit between the two only costs one read in vain.
            version = await self._run(self._version)
            batch = await self._run(lambda connection: read_batch(connection, self._path, partition, offset, max_bytes))
            if batch.events or time.monotonic() >= deadline:
                return batch
            while await self._run(self._version) == version:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return batch
                await asyncio.sleep(min(_POLL_S, left_s))

    async def bounds(self, partition: int) -> Bounds:
        check_partition(partition, self.partitions)
        return await self._run(lambda connection: bounds(connection, self._path, partition))

    async def committed(self, group: str, partition: int) -> Cursor | None:
        check_partition(partition, self.partitions)
        return (await self._run(lambda connection: cursors(connection, self._path))).get((group, partition))

    async def groups(self) -> dict[str, dict[int, Cursor]]:
        """Every stored cursor: group -> partition -> cursor."""
        return by_group(await self._run(lambda connection: cursors(connection, self._path)))

    async def letters(self, after: int = 0, *, limit: int = 100) -> list[StoredLetter]:
        """See EventLog.letters."""
        return await self._run(lambda connection: read_letters(connection, self._path, after, limit))

    async def source_state(self, source: str) -> bytes | None:
        return await self._run(lambda connection: source_state(connection, self._path, source))

    async def close(self) -> None:
        """Closing twice is fine."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._pool.shutdown)
            if self._connection is not None:
                self._connection.close()

    async def _run(self, ask: Callable[[sqlite3.Connection], _T]) -> _T:
        if self._is_closed:
            raise LogError(f"reader of log {self._path} is closed", advice="nothing: the process is stopping")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, ask)

    def _ask(self, ask: Callable[[sqlite3.Connection], _T]) -> _T:
        for _ in range(10):
            connection = self._current()
            try:
                answer = ask(connection)
            except (LogError, ValueError):
                # A writer may have come or gone under an immutable connection; only an answer in quiet counts.
                if self._is_immutable and self._wal.exists():
                    continue
                raise
            if not (self._is_immutable and self._wal.exists()):
                return answer
        raise LogUnavailable(f"log {self._path} is opened and closed over and over", advice="try again")

    def _current(self) -> sqlite3.Connection:
        is_immutable = not self._wal.exists()
        if self._connection is not None and self._is_immutable == is_immutable and not is_immutable:
            return self._connection
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        check_readable(self._path)
        self._connection = open_reader(self._path, is_immutable=is_immutable)
        self._is_immutable = is_immutable
        return self._connection

    def _version(self, connection: sqlite3.Connection) -> tuple[bool, int]:
        """Changes whenever something may have been committed."""
        if self._is_immutable:
            return True, self._path.stat().st_mtime_ns
        return False, data_version(connection, self._path)
