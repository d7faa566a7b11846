"""The embedded log: one SQLite file, written by one process, read beside it by any number (``SQLiteLogReader``).

Follows log/base.py. This file joins the parts on the event loop: offsets are given out here in the order of the calls, one thread
writes (sqlite_writer.py), few others read (sqlite_query.py), and what was just appended is read from memory (lane.py). The file's
layout and rights are in sqlite_file.py.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from headrace.cdc.config import Config, Duration, Section, Size
from headrace.cdc.errors import LogError
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import (
    ID_WINDOW_US,
    Bounds,
    Cursor,
    DeadLetter,
    LogBatch,
    SeenIds,
    StoredLetter,
    partition_of,
)
from headrace.cdc.log.codec import pack
from headrace.cdc.log.lane import Chunk, Tails
from headrace.cdc.log.locking import WriterLock
from headrace.cdc.log.rules import check_commit, check_epoch, check_partition, check_read, check_state
from headrace.cdc.log.sqlite_checkpoint import Checkpointer
from headrace.cdc.log.sqlite_erase import Erase
from headrace.cdc.log.sqlite_file import Identity, check_folder, open_writer
from headrace.cdc.log.sqlite_ids import ForgetLetters, PackedIds, packed
from headrace.cdc.log.sqlite_known import KnownIds
from headrace.cdc.log.sqlite_letters import count_letters, read_letters
from headrace.cdc.log.sqlite_query import bounds, by_group, cursors, read_batch, source_state
from headrace.cdc.log.sqlite_reader import SQLiteLogReader
from headrace.cdc.log.sqlite_threads import ReaderThreads, SQLiteBatches
from headrace.cdc.log.sqlite_trim import Retain, Sweep, Trim, Trimmings
from headrace.cdc.log.sqlite_writer import (
    Append,
    DropCursors,
    DropLetters,
    Emptied,
    Job,
    LanePart,
    Outcome,
    SetCursor,
    SQLiteWriter,
    Stage,
    Step,
    Unstage,
    Work,
)
from headrace.cdc.log.waiters import Waiters

_TAIL_BYTES: Final = 4 << 20  # encoded; about four times that as objects


class SQLiteLogConfig(Section, frozen=True):
    """The embedded log: one SQLite file on a local disk."""

    path: Annotated[str, Meta(description="File of the log; relative paths start at the configuration's folder.")] = (
        "headrace.log.db"
    )
    retention: Annotated[
        Duration | None,
        Meta(
            description="Age above which events are dropped once every consumer has read them; null keeps them. Default: 7d."
        ),
    ] = msgspec.field(default_factory=lambda: Duration(7 * 86_400_000_000))  # a plain default has no JSON Schema
    max_size: Annotated[
        Size | None,
        Meta(
            description="Bytes of kept events above which the oldest are dropped once every consumer has read them."
            " The file doesn't shrink: its free pages are used again."
        ),
    ] = None
    partitions: Annotated[
        int,
        Meta(
            description="Ordered lanes, fixed when the log is created; an event's customer key decides.", ge=1, le=1024
        ),
    ] = 1


class SQLiteLogStats(msgspec.Struct, frozen=True):
    """Numbers for metrics and status. Totals count since the log was opened.

    disk_bytes: of the file and its WAL. ends: end offset of each partition. groups_total: transactions, each of at least one append,
    cursor or trim; commit_s_total: the time they took until durable, last_commit_s: the newest one's.
    """

    disk_bytes: int
    ends: tuple[int, ...]
    appends_total: int
    events_total: int
    batches_total: int
    batches_dropped_total: int
    groups_total: int
    commit_s_total: float
    last_commit_s: float
    checkpoints_total: int
    dead_letters: int = 0


class SQLiteLog:
    """EventLog over one file, open for writing. Made by ``open`` or ``from_config``."""

    config_type: ClassVar[type[SQLiteLogConfig]] = SQLiteLogConfig

    def __init__(
        self,
        path: Path,
        lock: WriterLock,
        connection: sqlite3.Connection,
        identity: Identity,
        retention_us: int | None,
        max_bytes: int | None,
    ) -> None:
        """Takes over lock and connection; blocks while it reads bounds and cursors. Use ``open``."""
        self._path = path
        self._lock = lock
        self._identity = identity
        self._retention_us = retention_us
        self._max_bytes = max_bytes
        known = [bounds(connection, path, partition) for partition in range(identity.partitions)]
        self._firsts = [one.first for one in known]
        self._ends = [one.end for one in known]
        self._next = list(self._ends)
        self._cursors = cursors(connection, path)
        self._cursors_asked = dict(self._cursors)
        self._letters = count_letters(connection, path)
        self._tails = Tails(identity.partitions, _TAIL_BYTES)
        self._waiters = Waiters(identity.partitions)
        self._watchers: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self._readers = ReaderThreads(path)
        self._known = KnownIds(connection, path, self._submit, self._readers.run)
        self._checkpointer = Checkpointer(path, connection)
        self._writer = SQLiteWriter(path, connection, identity.epoch, self._checkpointer, self._hand_over)
        self._staged: dict[str, dict[int, int]] = {}
        """How many events of each partition a source has staged."""
        self._closing: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._appends = self._events = self._batches = self._dropped = self._groups = 0
        self._commit_s = self._last_commit_s = 0.0
        self.on_commit: Callable[[float], None] | None = None
        """Called on the loop with the seconds each transaction took; a histogram's observe."""
        self._checkpointer.start()
        has_garbage = self._writer.has_garbage
        self._writer.start()
        if has_garbage:
            self._sweep()

    @classmethod
    async def from_config(cls, section: SQLiteLogConfig, config: Config) -> SQLiteLog:
        """Open for writing what ``log:`` describes. Raises as open does."""
        return await cls.open(
            config.path(section.path),
            partitions=section.partitions,
            retention_us=None if section.retention is None else section.retention.us,
            max_bytes=None if section.max_size is None else section.max_size.bytes,
        )

    @classmethod
    async def open(
        cls, path: Path, *, partitions: int = 1, retention_us: int | None = None, max_bytes: int | None = None
    ) -> SQLiteLog:
        """Open for writing, creating the log if there is none; its folder must exist.

        Raises LogLocked when another process writes it; LogUnavailable when it can't be created or written; ConfigError when it
        has another number of partitions; LogError when the file is something else, newer or damaged.
        """
        path = path.absolute()
        check_folder(path)
        lock = WriterLock(path)
        try:
            # After a crash the first look at the file replays the WAL: not on the loop.
            connection, identity = await asyncio.to_thread(open_writer, path, partitions)
            try:
                return cls(path, lock, connection, identity, retention_us, max_bytes)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            lock.release()
            raise

    @classmethod
    async def open_reader(cls, section: SQLiteLogConfig, config: Config) -> SQLiteLogReader:
        """Read what another process writes, or nobody; see SQLiteLogReader.open."""
        return await SQLiteLogReader.open(config.path(section.path))

    @classmethod
    def open_batches(cls, section: SQLiteLogConfig, config: Config) -> SQLiteBatches:
        """What another process reads while this log is kept; see split/sharedlog.py."""
        return SQLiteBatches(config.path(section.path))

    @property
    def path(self) -> Path:
        return self._path

    @property
    def places(self) -> tuple[list[int], list[int]]:
        """First and end offset of each partition, as they are now."""
        return self._firsts, self._ends

    def watch(self, moved: Callable[[], None]) -> Callable[[], None]:
        """Have moved called on the loop whenever ``places`` changed; the result ends that."""
        self._watchers.append(moved)
        return lambda: self._watchers.remove(moved)

    @property
    def generation(self) -> str:
        return self._identity.generation

    @property
    def partitions(self) -> int:
        return self._identity.partitions

    @property
    def epoch(self) -> int:
        """Counts the opens for writing; this one's number."""
        return self._identity.epoch

    async def append(
        self,
        events: Sequence[CustomerEvent],
        *,
        source: str,
        state: bytes,
        epoch: int | None = None,
        ids: SeenIds | None = None,
        letters: Sequence[DeadLetter] = (),
        retried: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """See EventLog.append. Cancelling the wait doesn't take the append back.

        Raises ValueError when state is above 1 MiB, or an id has another length. After a LogUnavailable whose cause is a failed sync the append may still turn up
        when the log is opened again: whole, with its state, and nothing after it.
        """
        # Up to submit without an await: the order of calls is the order of offsets.
        self._check_open()
        check_epoch(str(self._path), epoch, self._identity.epoch)
        check_state(source, state)
        named = PackedIds(ids.at_us, packed(ids.bodies)) if ids is not None and ids.bodies else None
        staged = {
            partition: (self._next[partition], count) for partition, count in self._staged.pop(source, {}).items()
        }
        for partition, (_, count) in staged.items():
            self._next[partition] += count
        if not events:
            parts = []
        elif self._identity.partitions == 1:
            held = tuple(events)
            parts = [LanePart(0, self._next[0], held, pack(held))]
        else:
            parts = self._split(events)
        size = 0
        for part in parts:
            self._next[part.partition] += len(part.events)
            for piece in part.pieces:
                size += len(piece.array)
        size += sum([len(letter.body) for letter in letters])
        append = Append(
            source,
            state,
            parts,
            tuple(self._next),
            size,
            staged,
            tuple(letters),
            tuple(retried),
            named,
        )
        waiting = self._submit(append)
        if ids is not None and named is not None:
            self._known.add(ids)
        ends: tuple[int, ...] = await waiting
        return ends

    async def seen(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See EventLog.seen."""
        self._check_open()
        return await self._known.seen(keys)

    async def letters(self, after: int = 0, *, limit: int = 100) -> list[StoredLetter]:
        """See EventLog.letters."""
        self._check_open()
        return await self._readers.run(lambda connection: read_letters(connection, self._path, after, limit))

    async def drop_letters(self, ids: Sequence[int]) -> int:
        """See EventLog.drop_letters."""
        self._check_open()
        step: Step = await self._submit(DropLetters(tuple(ids)))
        return step.letters

    async def stage(self, events: Sequence[CustomerEvent], *, source: str, epoch: int | None = None) -> None:
        """See EventLog.stage. Cancelling the wait doesn't take it back."""
        self._check_open()
        check_epoch(str(self._path), epoch, self._identity.epoch)
        if self._identity.partitions == 1:
            pieces = [(0, piece) for piece in pack(events)]
        else:
            pieces = [(part.partition, piece) for part in self._split(events) for piece in part.pieces]
        counts = self._staged.setdefault(source, {})
        for partition, piece in pieces:
            counts[partition] = counts.get(partition, 0) + piece.count
        await self._submit(Stage(source, pieces, sum(len(piece.array) for _, piece in pieces)))

    async def unstage(self, source: str) -> None:
        """See EventLog.unstage. The space is given back in steps beside appends."""
        self._check_open()
        if self._staged.pop(source, None) is not None:
            await self._submit(Unstage(source))
            self._sweep()

    def _sweep(self) -> None:
        """Remove staged events that nobody will publish, in steps between appends."""
        former = self._sweeping

        async def steps() -> None:
            if former is not None:
                await asyncio.wait([former])
            try:
                while self._closing is None:
                    step: Trimmings = await self._submit(Sweep())
                    if not step.has_more:
                        return
            except LogError:
                pass  # whoever appends next is told; what is left is removed after the next open

        self._sweeping = self._loop.create_task(steps())

    def _split(self, events: Sequence[CustomerEvent]) -> list[LanePart]:
        lanes: dict[int, list[CustomerEvent]] = {}
        partitions = self._identity.partitions
        for event in events:
            lanes.setdefault(partition_of(event.key, partitions), []).append(event)
        return [
            LanePart(partition, self._next[partition], tuple(found), pack(found)) for partition, found in lanes.items()
        ]

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        """See EventLog.read. max_bytes is exceeded at most by what is uneven inside one stored batch of 1 MiB.

        Raises LogError naming partition and offset when a stored batch is damaged.
        """
        check_partition(partition, self._identity.partitions)
        self._check_open()
        check_read(partition, offset, Bounds(self._firsts[partition], self._ends[partition]))
        if offset == self._ends[partition]:
            if wait_s <= 0 or not await self._waiters.wait(partition, wait_s):
                return LogBatch(partition, offset, ())
            self._check_open()
            check_read(partition, offset, Bounds(self._firsts[partition], self._ends[partition]))
        fresh = self._tails.read(partition, offset, max_bytes)
        if fresh:
            return LogBatch(partition, offset, fresh)
        end = self._ends[partition]
        return await self._readers.run(
            lambda connection: read_batch(connection, self._path, partition, offset, max_bytes, end)
        )

    async def commit(self, group: str, partition: int, offset: int, *, state: bytes = b"") -> None:
        """See EventLog.commit. Raises ValueError also for an offset beyond the end and a state above 64 KiB."""
        check_partition(partition, self._identity.partitions)
        self._check_open()
        place = (group, partition)
        cursor = Cursor(offset, state)
        check_commit(group, partition, cursor, self._cursors_asked.get(place), self._ends[partition])
        if cursor == self._cursors.get(place) == self._cursors_asked[place]:
            return
        self._cursors_asked[place] = cursor
        await self._submit(SetCursor(group, partition, cursor))

    async def committed(self, group: str, partition: int) -> Cursor | None:
        check_partition(partition, self._identity.partitions)
        return self._cursors.get((group, partition))

    async def groups(self) -> dict[str, dict[int, Cursor]]:
        """Every stored cursor: group -> partition -> cursor."""
        return by_group(self._cursors)

    async def forget(self, group: str) -> None:
        """See EventLog.forget."""
        self._check_open()
        for place in [place for place in self._cursors_asked if place[0] == group]:
            del self._cursors_asked[place]
        await self._submit(DropCursors(group))

    async def source_state(self, source: str) -> bytes | None:
        self._check_open()
        return await self._readers.run(lambda connection: source_state(connection, self._path, source))

    async def bounds(self, partition: int) -> Bounds:
        check_partition(partition, self._identity.partitions)
        return Bounds(self._firsts[partition], self._ends[partition])

    async def erase(self, ids: frozenset[str]) -> tuple[int, int]:
        """See EventLog.erase."""
        work = Erase(ids)
        while not work.is_done:
            self._check_open()
            await self._submit(work)
            # What is in memory is the file's again.
            for partition in range(self._identity.partitions):
                self._tails.forget(partition)
        await self._submit(Emptied())
        return work.events, work.letters

    async def trim(self, partition: int, before: int, *, force: bool = False) -> int:
        """See EventLog.trim. Works in steps between appends; what a cancelled trim dropped stays dropped."""
        check_partition(partition, self._identity.partitions)
        # No further than what is durable now: a step runs after the appends queued before it.
        trim = Trim(partition, min(before, self._ends[partition]), force)
        while True:
            self._check_open()
            step: Trimmings = await self._submit(trim)
            if not step.has_more:
                return self._firsts[partition]

    async def retain(self, now_us: int) -> None:
        """See EventLog.retain. By age of a batch's newest committed_us, and by size of the pages in use, oldest batch first."""
        await self._known.forget(now_us - ID_WINDOW_US)
        if self._retention_us is None and self._max_bytes is None:
            return
        if self._retention_us is not None and self._letters:
            forget = ForgetLetters(now_us - self._retention_us)
            while True:
                self._check_open()
                forgotten: Step = await self._submit(forget)
                if not forgotten.has_more:
                    break
        cutoff_us = None if self._retention_us is None else now_us - self._retention_us
        retain = Retain(self._identity.partitions, cutoff_us, self._max_bytes)
        while True:
            self._check_open()
            step: Trimmings = await self._submit(retain)
            if not step.has_more:
                return

    async def close(self) -> None:
        """See EventLog.close. A read that waits gets LogError."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._waiters.wake_all()
        try:
            if self._sweeping is not None:
                await asyncio.wait([self._sweeping])
            await self._known.close()
            await asyncio.to_thread(self._readers.close)
            await asyncio.to_thread(self._writer.stop)
            # The writer's last report was handed to the loop before its thread ended, so it runs before this task goes on.
        finally:
            self._lock.release()

    def stats(self) -> SQLiteLogStats:
        """Counters of this open, and sizes of now."""
        disk_bytes = 0
        for file in (self._path, self._path.with_name(self._path.name + "-wal")):
            try:
                disk_bytes += file.stat().st_size
            except FileNotFoundError:
                pass
        return SQLiteLogStats(
            disk_bytes,
            tuple(self._ends),
            self._appends,
            self._events,
            self._batches,
            self._dropped,
            self._groups,
            self._commit_s,
            self._last_commit_s,
            self._checkpointer.passes_total,
            self._letters,
        )

    def _check_open(self) -> None:
        if self._closing is not None:
            raise LogError(f"log {self._path} is closed", advice="nothing: the process is stopping")

    def _submit(self, work: Work) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._writer.submit(Job(work, future))
        return future

    def _hand_over(self, outcome: Outcome) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, outcome)
        except RuntimeError:
            pass  # the loop is gone without a close: what is written is durable, and nobody is left to hear of it

    def _settle(self, outcome: Outcome) -> None:
        if outcome.make_error is not None:
            for job in outcome.jobs:
                if not job.future.done():
                    job.future.set_exception(outcome.make_error())
            return
        self._groups += 1
        self._batches += outcome.batches
        self._commit_s += outcome.took_s
        self._last_commit_s = outcome.took_s
        if self.on_commit is not None:
            self.on_commit(outcome.took_s)
        for job in outcome.jobs:
            work = job.work
            result: Any = None
            if isinstance(work, Append):
                self._appended(work)
                result = work.ends
                self._letters += len(work.letters)
            elif isinstance(work, SetCursor):
                self._cursors[work.group, work.partition] = work.cursor
            elif isinstance(work, DropCursors):
                for place in [place for place in self._cursors if place[0] == work.group]:
                    del self._cursors[place]
            elif job.result is not None:
                self._trimmed(job.result)
                result = job.result
            if job.step is not None:
                self._letters -= job.step.letters
                result = result or job.step
            if not job.future.done():
                job.future.set_result(result)
        for moved in self._watchers:
            moved()

    def _appended(self, append: Append) -> None:
        self._appends += 1
        for partition, (_, count) in append.staged.items():
            self._ends[partition] += count
            self._events += count
            self._tails.forget(partition)
            self._waiters.wake(partition)
        for part in append.parts:
            self._ends[part.partition] += len(part.events)
            self._events += len(part.events)
            at = 0
            for piece in part.pieces:
                events = part.events if piece.count == len(part.events) else part.events[at : at + piece.count]
                self._tails.add(
                    part.partition, Chunk(part.first_offset + at, events, len(piece.array), piece.newest_us)
                )
                at += piece.count
            self._waiters.wake(part.partition)

    def _trimmed(self, step: Trimmings) -> None:
        self._dropped += step.batches
        for partition, first in step.firsts.items():
            self._firsts[partition] = first  # the tails may still hold what is below: a read looks here first
