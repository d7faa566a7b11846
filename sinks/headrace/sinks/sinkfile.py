"""Dead letters and pauses in an SQLite file of their own beside the log: ``<log.path>.sinks``.

Several processes share it (``headrace run``, ``sink pause``, ``replay``), each with its own connection: SQLite's write-ahead log makes
that safe. Every write is synced to disk before it returns. One thread a process does all of it, in the order asked. The file is made when it is first needed,
readable by its owner only: it holds whole events.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from headrace.cdc.config import Config
from headrace.cdc.errors import SinkStoreError
from headrace.cdc.event import CustomerEvent
from headrace.sinks.deadletter import DeadLetter, MemorySinkStore

_T = TypeVar("_T")

_BUSY_S: Final = 10.0
_VERSION: Final = 1
_SCHEMA: Final = """
create table letters (
  sink text not null, generation text not null, partition integer not null, offset integer not null, key text not null,
  reason text not null, attempts integer not null, is_held integer not null, at_us integer not null, event blob not null,
  primary key (sink, generation, partition, offset)
) without rowid;
create table paused (sink text primary key, at_us integer not null) without rowid;
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CustomerEvent).decode


class SinkFile:
    """DeadLetters and Switches; see the module. Opens by itself, and again after a failure."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headrace-sinks")

    @property
    def path(self) -> Path:
        return self._path

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See DeadLetters."""
        rows = [
            (each.sink, each.generation, each.partition, each.offset, each.key, each.reason, each.attempts, int(each.is_held),
             each.at_us, _encode(each.event))
            for each in letters
        ]  # fmt: skip

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("begin immediate")
            connection.executemany("insert or ignore into letters values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.execute("commit")

        await self._run(write)

    async def stopped_keys(self, sink: str) -> set[str]:
        """See DeadLetters."""
        rows = await self._rows("select distinct key from letters where sink = ?", sink)
        return {key for (key,) in rows}

    async def buried(self, sink: str, generation: str, partition: int, first: int) -> list[int]:
        """See DeadLetters."""
        rows = await self._rows(
            "select offset from letters where sink = ? and generation = ? and partition = ? and offset >= ?",
            sink, generation, partition, first,
        )  # fmt: skip
        return [offset for (offset,) in rows]

    async def counts(self) -> dict[str, int]:
        """See DeadLetters."""
        return dict(await self._rows("select sink, count(*) from letters group by sink order by sink"))

    async def letters(self, sink: str, *, after: tuple[int, int] | None = None, limit: int = 1_000) -> list[DeadLetter]:
        """See DeadLetters."""
        place = (-1, -1) if after is None else after
        rows = await self._rows(
            "select sink, generation, partition, offset, key, reason, attempts, is_held, at_us, event from letters"
            " where sink = ? and (partition, offset) > (?, ?) order by partition, offset limit ?",
            sink, *place, limit,
        )  # fmt: skip
        return [
            DeadLetter(name, generation, partition, offset, key, reason, attempts, bool(is_held), at_us, _decode(event))
            for name, generation, partition, offset, key, reason, attempts, is_held, at_us, event in rows
        ]

    async def remove(self, letters: Sequence[DeadLetter]) -> None:
        """See DeadLetters."""
        places = [(each.sink, each.generation, each.partition, each.offset) for each in letters]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("begin immediate")
            connection.executemany(
                "delete from letters where sink = ? and generation = ? and partition = ? and offset = ?", places
            )
            connection.execute("commit")

        await self._run(write)

    async def paused(self) -> dict[str, int]:
        """See Switches."""
        return dict(await self._rows("select sink, at_us from paused order by sink"))

    async def pause(self, sink: str, at_us: int) -> None:
        """See Switches."""
        await self._run(lambda db: db.execute("insert or ignore into paused values (?, ?)", (sink, at_us)))

    async def resume(self, sink: str) -> None:
        """See Switches."""
        await self._run(lambda db: db.execute("delete from paused where sink = ?", (sink,)))

    async def close(self) -> None:
        """Idempotent."""
        await asyncio.get_running_loop().run_in_executor(self._pool, self._drop)

    async def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        return await self._run(lambda connection: connection.execute(sql, values).fetchall())

    async def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: self._guarded(work))

    def _guarded(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            if self._connection is None:
                self._connection = self._open()
            return work(self._connection)
        except sqlite3.Error as error:
            self._drop()
            raise SinkStoreError(f"the sinks' file {self._path} failed: {error}") from error
        except OSError as error:
            raise SinkStoreError(f"the sinks' file {self._path} can't be made: {error.strerror}") from error

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            (version,) = connection.execute("pragma user_version").fetchone()
            if version == 0:
                connection.execute("begin immediate")
                (version,) = connection.execute("pragma user_version").fetchone()
                if version == 0:
                    for statement in _SCHEMA.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"pragma user_version = {_VERSION}")
                connection.execute("commit")
            elif version != _VERSION:
                raise SinkStoreError(
                    f"the sinks' file {self._path} was written by a newer headrace",
                    advice="run the version that wrote it, or a later one",
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def sink_store(config: Config) -> SinkFile | MemorySinkStore:
    """Where this configuration's sinks keep what must outlive the process; in memory when the log itself is."""
    path = getattr(config.log.section, "path", None)
    if path is None:
        return MemorySinkStore()
    found = config.path(path)
    return SinkFile(found.with_name(found.name + ".sinks"))


__all__ = ["SinkFile", "sink_store"]
