"""The one thread that writes the embedded log: takes what has gathered, writes it in one transaction, tells the loop.

Group commit: everything queued while the last transaction was syncing goes into the next, so the disk's sync time sets the size of a
group and not the rate of appends. Appends of a group share blobs. The thread owns the connection; the loop owns offsets and cursors as
callers see them, and hears of a group only after its commit.

After a failure nothing is written any more (a later append must not land behind a gap); the thread lives on to refuse what is queued.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeAlias
from zlib import crc32

import msgspec

from headrace.cdc.errors import Fenced, LogError
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Cursor, DeadLetter
from headrace.cdc.log.codec import BLOB_BYTES, Packed, frame
from headrace.cdc.log.sqlite_checkpoint import Checkpointer
from headrace.cdc.log.sqlite_erase import Erase, erase_step
from headrace.cdc.log.sqlite_file import PAGE_BYTES, batch_id, explained
from headrace.cdc.log.sqlite_ids import ForgetIds, ForgetLetters, MergeIds, PackedIds, forget_ids_step, merge_step
from headrace.cdc.log.sqlite_letters import forget_letters_step, is_whole_step, remove_letters, write_letters
from headrace.cdc.log.sqlite_trim import Retain, Sweep, Trim, Trimmings, retain_step, sweep_step, trim_step

_GROUP_BYTES: Final = 4 << 20
"""A transaction takes no further jobs once it holds this much: it bounds the page cache and the wait of the last one in."""


class LanePart(msgspec.Struct, gc=False, frozen=True):
    """What one append adds to one partition."""

    partition: int
    first_offset: int
    events: tuple[CustomerEvent, ...]
    pieces: list[Packed]


class Append(msgspec.Struct, gc=False, frozen=True):
    """ends: of every partition after this append. bytes: encoded size of its events and letters.

    staged: for each partition that gets staged events, the offset of the first of them and how many they are.
    retried: dead letters that go with this append.
    """

    source: str
    state: bytes
    parts: list[LanePart]
    ends: tuple[int, ...]
    bytes: int
    staged: dict[int, tuple[int, int]]
    letters: tuple[DeadLetter, ...]
    retried: tuple[int, ...]
    ids: PackedIds | None


class Stage(msgspec.Struct, gc=False, frozen=True):
    """Set events aside for the source's next append. pieces: with their partition. bytes: encoded size."""

    source: str
    pieces: list[tuple[int, Packed]]
    bytes: int


class Unstage(msgspec.Struct, gc=False, frozen=True):
    """Forget what the source has staged; a Sweep removes it."""

    source: str


class SetCursor(msgspec.Struct, gc=False, frozen=True):
    group: str
    partition: int
    cursor: Cursor


class DropCursors(msgspec.Struct, gc=False, frozen=True):
    group: str


class DropLetters(msgspec.Struct, gc=False, frozen=True):
    ids: tuple[int, ...]


class Emptied(msgspec.Struct, gc=False, frozen=True):
    """Empty the WAL after this: what was erased stands in it too."""


class Step(msgspec.Struct, frozen=True):
    """What a step on ids or letters did. letters: how many are gone."""

    has_more: bool = False
    letters: int = 0


Upkeep: TypeAlias = DropLetters | MergeIds | ForgetIds | ForgetLetters | Erase
Work: TypeAlias = Append | Stage | Unstage | SetCursor | DropCursors | Trim | Retain | Sweep | Emptied | Upkeep


class Job(msgspec.Struct, gc=False):
    """One piece of work and who waits for it. result: of a Trim, Retain or Sweep, set in the transaction.

    step: the same of an Upkeep, and of an Append that replaces dead letters.
    """

    work: Work
    future: asyncio.Future[Any]
    result: Trimmings | None = None
    step: Step | None = None


class Outcome(msgspec.Struct, frozen=True):
    """A group's end. make_error: None when it was committed; else builds an error for each of its jobs. took_s: begin to durable."""

    jobs: list[Job]
    make_error: Callable[[], LogError] | None
    took_s: float
    batches: int


class _Staged(msgspec.Struct, gc=False, frozen=True):
    """A blob that waits to be published. id: in the table staged."""

    id: int
    partition: int
    count: int
    newest_us: int
    crc: int


class SQLiteWriter:
    """start, submit, stop; each once, all from the loop's thread.

    report: called in the writer's thread with each group's outcome, in order; must only hand it on.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        epoch: int,
        checkpointer: Checkpointer,
        report: Callable[[Outcome], None],
    ) -> None:
        self._path = path
        self._connection = connection
        self._epoch = epoch
        self._checkpointer = checkpointer
        self._report = report
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._make_error: Callable[[], LogError] | None = None
        self._staged: dict[str, list[_Staged]] = {}
        self._garbage = [row[0] for row in connection.execute("select id from staging order by id")]
        self._next_staged = 1 + (connection.execute("select max(id) from staged").fetchone()[0] or 0)
        self._thread = Thread(target=self._run, name="headrace-log-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def has_garbage(self) -> bool:
        """Staged blobs of a former open are left; asked before ``start``."""
        return bool(self._garbage)

    def submit(self, job: Job) -> None:
        """Queue it. What is submitted first is written first, in the same transaction or an earlier one."""
        self._queue.put(job)

    def stop(self) -> None:
        """Write what is queued, empty the WAL, close the connection. Blocks until that is done."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            jobs, is_last = self._gather()
            if jobs:
                written_bytes = self._write(jobs)
                del jobs  # else the last group's events live until the next one comes
                if written_bytes:
                    self._tidy(written_bytes)
        self._checkpointer.stop()
        try:
            if self._make_error is None:
                self._checkpointer.truncate()
        finally:
            self._connection.close()

    def _gather(self) -> tuple[list[Job], bool]:
        queue = self._queue
        job = queue.get()
        jobs: list[Job] = []
        held = 0
        while job is not None:
            jobs.append(job)
            if isinstance(job.work, Append | Stage):
                held += job.work.bytes
            # Nobody else takes from the queue, so what it has now it still has at the get.
            if held >= _GROUP_BYTES or not queue.qsize():
                return jobs, False
            job = queue.get()
        return jobs, True

    def _write(self, jobs: list[Job]) -> int:
        """Write the group and report it; about how many bytes went into the WAL."""
        began = time.perf_counter()
        if self._make_error is None:
            try:
                batches, written_bytes = self._transact(jobs)
            except Exception as error:  # noqa: BLE001  # a defect too: whoever waits must hear of it
                self._fail(error)
            else:
                if any(isinstance(job.work, Emptied) for job in jobs):
                    self._connection.execute("pragma secure_delete = off")
                    self._checkpointer.empty()
                self._report(Outcome(jobs, None, time.perf_counter() - began, batches))
                return written_bytes
        self._report(Outcome(jobs, self._make_error, 0.0, 0))
        return 0

    def _tidy(self, written_bytes: int) -> None:
        """After the report, so that no caller waits for a checkpoint of its own group."""
        try:
            self._checkpointer.wrote(written_bytes)
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        path = self._path

        def make() -> LogError:
            # One error object for each waiter: a shared one would collect all their tracebacks.
            if isinstance(error, sqlite3.Error):
                return explained(path, error)
            if isinstance(error, LogError):
                return type(error)(error.message, advice=error.advice)
            return LogError(
                f"log {path} failed: {type(error).__name__}",
                advice="this is a defect of headrace: please report it; what was confirmed is kept",
            )

        self._make_error = make
        try:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
        except sqlite3.Error:
            pass  # SQLite has rolled back by itself, or will when the connection closes

    def _transact(self, jobs: list[Job]) -> tuple[int, int]:
        """Number of batches stored, and about how many bytes went into the WAL."""
        execute = self._connection.execute
        blobs: list[tuple[int, int, int, int, bytes | int]] = []
        staged: list[tuple[int, bytes]] = []
        published: list[int] = []
        sources: dict[str, bytes] = {}
        cursors: dict[tuple[str, int], Cursor] = {}
        gone: set[str] = set()
        runs: dict[int, _Run] = {}
        ids: list[bytes] = []
        ids_us = 0
        for job in jobs:
            work = job.work
            if isinstance(work, Append):
                sources[work.source] = work.state
                if work.ids is not None:
                    ids.append(work.ids.entries)
                    ids_us = max(ids_us, work.ids.at_us)
                if work.staged:
                    for partition in work.staged:
                        if partition in runs:
                            blobs.extend(runs.pop(partition).cut())
                    for named in self._publish(work):
                        blobs.append(named)
                        published.append(named[4])
                for part in work.parts:
                    run = runs.get(part.partition)
                    if run is None:
                        run = runs[part.partition] = _Run(part.partition, part.first_offset)
                    for piece in part.pieces:
                        blobs.extend(run.add(piece))
            elif isinstance(work, Stage):
                staged.extend(self._stage(work))
            elif isinstance(work, Unstage):
                self._garbage += [one.id for one in self._staged.pop(work.source, ())]
            elif isinstance(work, SetCursor):
                cursors[work.group, work.partition] = work.cursor
            elif isinstance(work, DropCursors):
                gone.add(work.group)
                for place in [place for place in cursors if place[0] == work.group]:
                    del cursors[place]
        for run in runs.values():
            blobs.extend(run.cut())
        execute("begin immediate")
        self._check_lease()
        for number, blob in staged:
            execute("insert into staged values (?, ?)", (number, blob))
            execute("insert into staging values (?)", (number,))
        for number in published:
            execute("delete from staging where id = ?", (number,))
        for row in blobs:
            execute("insert into batch values (?, ?, ?, ?, ?)", row)
        for name, state in sources.items():
            execute(
                "insert into source values (?, ?) on conflict (name) do update set state = excluded.state",
                (name, state),
            )
        for group in gone:
            execute('delete from cursor where "group" = ?', (group,))
        for (group, partition), cursor in cursors.items():
            execute(
                "insert or replace into cursor values (?, ?, ?, ?)", (group, partition, cursor.offset, cursor.state)
            )
        pages = len(blobs) + len(sources) + len(cursors) + 2 * len(staged)
        written = sum(len(row[4]) for row in blobs if isinstance(row[4], bytes)) + sum(len(blob) for _, blob in staged)
        if ids:
            entries = ids[0] if len(ids) == 1 else b"".join(ids)
            execute("insert into seen_run (at_us, entries) values (?, ?)", (ids_us, entries))
            written += len(entries)
            pages += 1
        for job in jobs:
            work = job.work
            if isinstance(work, Append):
                if work.letters:
                    written += write_letters(self._connection, work.letters)
                    pages += 1
                if work.retried:
                    job.step = Step(letters=remove_letters(self._connection, work.retried))
                continue
            if isinstance(work, DropLetters | MergeIds | ForgetIds | ForgetLetters | Erase):
                job.step, touched = self._upkeep(work)
                pages += touched
                continue
            if isinstance(work, Trim):
                job.result = trim_step(self._connection, work)
            elif isinstance(work, Retain):
                job.result = retain_step(self._connection, work)
            elif isinstance(work, Sweep):
                job.result = sweep_step(self._connection, self._garbage)
            else:
                continue
            pages += job.result.pages
        execute("commit")
        return len(blobs), pages * PAGE_BYTES + written

    def _upkeep(self, work: Upkeep) -> tuple[Step, int]:
        """A step, and about how many pages it wrote."""
        connection = self._connection
        if isinstance(work, DropLetters):
            gone = remove_letters(connection, work.ids)
            return Step(letters=gone), 1 + gone
        if isinstance(work, Erase):
            before = work.letters
            pages = erase_step(connection, work)
            return Step(not work.is_done, work.letters - before), pages
        if isinstance(work, ForgetLetters):
            gone = forget_letters_step(connection, work.before_us)
            return Step(is_whole_step(gone), gone), 1 + gone
        has_more, touched = (
            merge_step(connection, work) if isinstance(work, MergeIds) else forget_ids_step(connection, work)
        )
        return Step(has_more), 1 + touched

    def _stage(self, work: Stage) -> Iterator[tuple[int, bytes]]:
        held = self._staged.setdefault(work.source, [])
        for partition, piece in work.pieces:
            blob = piece.array
            held.append(_Staged(self._next_staged, partition, piece.count, piece.newest_us, crc32(blob)))
            yield self._next_staged, blob
            self._next_staged += 1

    def _publish(self, work: Append) -> Iterator[tuple[int, int, int, int, int]]:
        """The rows of table batch that name the source's staged blobs."""
        at = {partition: first for partition, (first, _) in work.staged.items()}
        for one in self._staged.pop(work.source):
            first = at[one.partition]
            at[one.partition] = end = first + one.count
            yield batch_id(one.partition, end), first, one.newest_us, one.crc, one.id

    def _check_lease(self) -> None:
        (epoch,) = self._connection.execute("select value from meta where key = 'epoch'").fetchone()
        if epoch != self._epoch:
            raise Fenced(f"log {self._path} was taken over by a newer writer: its epoch is {epoch}, ours {self._epoch}")


class _Run:
    """Consecutive pieces of one partition that become one blob."""

    def __init__(self, partition: int, first_offset: int) -> None:
        self._partition = partition
        self._first_offset = first_offset
        self._pieces: list[Packed] = []
        self._bytes = 0

    def add(self, piece: Packed) -> Iterator[tuple[int, int, int, int, bytes]]:
        """The row that is full before this piece, if one is."""
        if self._pieces and self._bytes + len(piece.array) > BLOB_BYTES:
            yield from self.cut()
        self._pieces.append(piece)
        self._bytes += len(piece.array)

    def cut(self) -> Iterator[tuple[int, int, int, int, bytes]]:
        """The row of what is held, if anything is: id, first_offset, newest_us, crc, events."""
        if not self._pieces:
            return
        blob = frame(self._pieces)
        end_offset = self._first_offset + sum(piece.count for piece in self._pieces)
        newest_us = max(piece.newest_us for piece in self._pieces)
        yield batch_id(self._partition, end_offset), self._first_offset, newest_us, crc32(blob), blob
        self._first_offset = end_offset
        self._pieces = []
        self._bytes = 0
