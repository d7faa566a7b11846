"""Drives the copy of tables beside the stream: which chunk which worker reads next, and when a chunk's rows may go into the log.

The rules are in pgsnapshot.py, tables that change meanwhile in pgtables.py. This file joins them to the stream: it is shown every
transaction that goes by, and asked for the rows of chunks that the stream has passed.

Each worker reads one key range of one table over a connection of its own, one chunk ahead of what the stream has passed. Chunks of a range
go into the log in order, those of different ranges as they come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.event import Change, Row
from headrace.cdc.sources import pgslot
from headrace.cdc.sources.base import Asked
from headrace.cdc.sources.catalogue import Table
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.link import WatchedConnection
from headrace.cdc.sources.pgasked import asked_tables
from headrace.cdc.sources.pgserver import PostgresServer
from headrace.cdc.sources.pgsnapshot import Chunk, KeyRange, SnapshotState, TableCopy, read_chunk, split
from headrace.cdc.sources.pgstate import PostgresState
from headrace.cdc.sources.pgtables import TableChanged, new_tables, plan, read_changes, read_current
from headrace.cdc.sources.pgvisibility import Visibility, current_visibility, replay_position, unseen_deliveries
from headrace.cdc.sources.pgwhole import WholeTable
from headrace.cdc.sources.pgwindow import ChunkWindow, rows_by_key

_log = logging.getLogger("headrace.source")

_RETRY_CHUNK_S = 0.05
_AHEAD = 2
"""Chunks of a range that are read, or being read, before the stream has passed them."""
_IDLE_LIMIT = b"set idle_in_transaction_session_timeout = '60s'"
_ASKED_SHOWN = 20
_UNSEEN_TRANSACTIONS = 1000
"""So many delivered transactions that may not be visible yet are one question to the server: nearly all of them are."""


class _Read:
    """A chunk being read, or one that waits for the stream. part: None for keys that are read again."""

    def __init__(self, part: KeyRange | None, window: ChunkWindow | WholeTable) -> None:
        self.part = part
        self.window = window
        self.task: asyncio.Task[Chunk | None] | None = None

    @property
    def is_done(self) -> bool:
        return self.task is not None and self.task.done()


class _Worker:
    """One connection. copy: the table it is at; reads: oldest first. rests_until: monotonic time before which it reads nothing."""

    def __init__(self) -> None:
        self.connection: WatchedConnection | None = None
        self.copy: TableCopy | None = None
        self.part: KeyRange | None = None
        self.reads: deque[_Read] = deque()
        self.splitting: asyncio.Task[list[KeyRange]] | None = None
        self.rests_until = 0.0


class Copier:
    """The copy of one source's tables. Its progress stands in ``state.snapshot``.

    wake: called when something has been read. say: shows why the copy waits, "" for nothing. folder: for tables without a key.
    """

    def __init__(
        self,
        server: PostgresServer,
        state: PostgresState,
        *,
        wake: Callable[[], None],
        say: Callable[[str], None],
        folder: Path,
    ) -> None:
        self._server = server
        self._state = state
        self._wake = wake
        self._say = say
        self._folder = folder
        self._workers = [_Worker() for _ in range(server.config.snapshot_workers)]
        self._older = asyncio.Lock()
        self._waits_wanted = 0
        self._waits_done = 0
        self._whole: tuple[_Worker, WholeTable, Iterator[tuple[list[Row], bool]]] | None = None
        self._is_idle = False
        self._asked: dict[int, list[TableCopy]] = {}
        self._began = 0.0
        self._rows_at_begin = 0

    # what is to be copied

    async def plan(self) -> None:
        """Which tables are still to be copied: all at the first start, later those that are new in the configuration."""
        if self._plan():
            await pgslot.wait_for_older_transactions(self._server.admin, self._say)
        elif self._state.snapshot is not None and any(copy.is_untouched for copy in self._state.snapshot.tables):
            # It may have come while the source ran, and stopped before the wait was over.
            self._waits_wanted += 1
        if self._state.snapshot is not None:
            asked: dict[int, list[TableCopy]] = {}
            for copy in self._state.snapshot.tables:
                if copy.after and not copy.ranges:
                    copy.ranges = [KeyRange(copy.after)]
                if copy.number:
                    asked.setdefault(copy.number, []).append(copy)
            for number, copies in asked.items():
                self._remember(number, copies)

    def _plan(self) -> bool:
        """True when tables were added."""
        if self._server.config.snapshot == "never":
            return False
        self._state.snapshot, has_new = plan(self._state.snapshot, self._server.tables)
        return has_new

    def emptied(self, lsn: int, time_us: int) -> list[Change]:
        """A truncate of every table that is to be copied: behind a gap, rows that went in it must go."""
        snapshot = self._state.snapshot
        changes: list[Change] = []
        for copy in () if snapshot is None else snapshot.tables:
            changes += read_changes(
                self._server.tables[copy.oid].table_schema(),
                [],
                copy,
                self._state.versions,
                high_lsn=lsn,
                time_us=time_us,
                id_prefix=f"{self._server.name}-{self._state.incarnation}-e-",
                is_reset=True,
            )
        return changes

    @property
    def is_done(self) -> bool:
        """Nothing is left to copy."""
        return self._state.snapshot is None or self._state.snapshot.is_done

    @property
    def is_initial_done(self) -> bool:
        """Every table has been copied once; what a person asked for again may be under way."""
        snapshot = self._state.snapshot
        return self._is_idle or snapshot is None or all(copy.is_done or copy.number for copy in snapshot.tables)

    @property
    def has_chunk(self) -> bool:
        """Something has been read, and waits for the stream to pass it."""
        return any(worker.reads and worker.reads[0].is_done for worker in self._workers)

    @property
    def is_giving_out(self) -> bool:
        """A table without a key is on its way into the log: ``next_part`` comes before anything else."""
        return self._whole is not None

    async def go_on(self) -> None:
        """Give every worker something to read. Whatever the stream has delivered so far was shown to ``see``."""
        snapshot = self._state.snapshot
        if self._is_idle or snapshot is None:
            return
        if snapshot.is_done:
            await self._rest()
            return
        if not self._began:
            self._began = time.monotonic()
            self._rows_at_begin = sum(copy.rows for copy in snapshot.tables)
        for worker in self._workers:
            if worker.splitting is not None and worker.splitting.done():
                self._take_split(worker)
            if worker.copy is None:
                self._assign(worker, snapshot)
            if worker.copy is not None and worker.splitting is None:
                self._read_next(worker, worker.copy, snapshot)

    async def _rest(self) -> None:
        assert self._state.snapshot is not None
        self._state.snapshot.delivered = []
        was_copying = self._began > 0
        # What a person asked for is over; of the initial copy the tables stay known.
        self._state.snapshot.tables = [copy for copy in self._state.snapshot.tables if copy.number == 0]
        self._began = 0.0
        self._is_idle = True
        for worker in self._workers:
            await self._leave(worker)
            await _close(worker)
        if was_copying:
            _log.info("source %s: the copy of tables is done, streaming", self._server.name)

    def _assign(self, worker: _Worker, snapshot: SnapshotState) -> None:
        """Give a free worker the first range that nobody reads."""
        taken = [other for other in self._workers if other.copy is not None]
        for copy in snapshot.tables:
            if copy.is_done:
                continue
            at_it = [other for other in taken if other.copy is copy]
            table = self._server.tables.get(copy.oid)
            if not copy.ranges:
                if at_it:
                    continue  # it is being split
                worker.copy = copy
                if table is not None and not table.key_order():
                    copy.ranges = [KeyRange()]
                    worker.part = copy.ranges[0]
                else:
                    worker.splitting = asyncio.create_task(self._split(worker, copy))
                    worker.splitting.add_done_callback(self._was_read)
                return
            for part in copy.ranges:
                if not part.is_read and not any(other.part is part for other in at_it):
                    worker.copy, worker.part = copy, part
                    return
            if copy.is_read and not at_it:
                worker.copy, worker.part = copy, None
                return

    async def _split(self, worker: _Worker, copy: TableCopy) -> list[KeyRange]:
        connection = await self._connection(worker)

        async def read(table: Table) -> list[KeyRange]:
            return await split(
                connection,
                table.table_schema(),
                copy,
                order=table.key_order(),
                is_partitioned=table.is_partitioned,
                workers=len(self._workers),
            )

        try:
            _, ranges = await read_current(connection, copy.oid, read, publication=self._server.publication)
        except TableChanged:
            return [KeyRange()]
        return ranges

    def _take_split(self, worker: _Worker) -> None:
        assert worker.splitting is not None
        assert worker.copy is not None
        worker.copy.ranges = worker.splitting.result()
        worker.part = worker.copy.ranges[0]
        worker.splitting = None

    # what people ask for

    async def ask(self, patterns: Sequence[str], where: str) -> Asked:
        """See Source.snapshot."""
        tables = await asked_tables(self._server, patterns, where)
        # From here on without an await: what the stream delivers next finds everything in its place.
        snapshot = self._state.snapshot
        if snapshot is None:
            snapshot = self._state.snapshot = SnapshotState(1, [])
        number = snapshot.last_number = max(1, snapshot.last_number) + 1
        copies = [
            TableCopy(table.oid, table.full_name, estimate=table.estimated_rows, number=number, where=where)
            for table in tables
        ]
        snapshot.tables.extend(copies)
        self._remember(number, copies)
        # What was delivered before isn't known any more to be visible.
        self._waits_wanted += 1
        self._is_idle = False
        self._wake()
        return Asked(number, [copy.name for copy in copies])

    def _remember(self, number: int, copies: list[TableCopy]) -> None:
        self._asked[number] = copies
        while len(self._asked) > _ASKED_SHOWN:
            del self._asked[min(self._asked)]

    def asked(self) -> list[dict[str, Any]]:
        """For people: what was asked for, oldest first."""
        return [
            {
                "number": number,
                "tables": [copy.name for copy in copies],
                "rows": sum(copy.rows for copy in copies),
                "estimated_rows": sum(copy.rows if copy.is_done else max(copy.estimate, copy.rows) for copy in copies),
                "is_done": all(copy.is_done for copy in copies),
            }
            for number, copies in sorted(self._asked.items())
        ]

    # reading

    def _read_next(self, worker: _Worker, copy: TableCopy, snapshot: SnapshotState) -> None:
        """Open the window of the worker's next chunk, then read it beside the stream."""
        part = worker.part
        if len(worker.reads) >= _AHEAD or (worker.reads and not worker.reads[-1].is_done):
            return
        pause_s = worker.rests_until - time.monotonic()
        if pause_s > 0:
            asyncio.get_running_loop().call_later(pause_s, self._wake)
            return
        after = part
        if worker.reads:
            last = worker.reads[-1].task
            assert last is not None
            if part is None or last.cancelled() or last.exception() is not None:
                return
            chunk = last.result()
            if chunk is None or chunk.is_last:
                return
            after = KeyRange(chunk.after, part.until)
        delivered = frozenset(snapshot.delivered)
        table = self._server.tables.get(copy.oid)
        is_whole = table is not None and not table.key_order()
        window = WholeTable(copy.oid, delivered, self._folder) if is_whole else ChunkWindow(copy.oid, delivered)
        read = _Read(part, window)
        read.task = asyncio.create_task(self._read(worker, copy, read, after))
        read.task.add_done_callback(self._was_read)
        worker.reads.append(read)

    def _was_read(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # looked at: it is told when the result is asked for
        self._wake()

    async def _read(self, worker: _Worker, copy: TableCopy, reading: _Read, after: KeyRange | None) -> Chunk | None:
        """The chunk; None when the window itself has the rows."""
        connection = await self._connection(worker)
        await self._wait_for_older()
        window = reading.window

        async def read(table: Table) -> Chunk | None:
            schema, order = table.table_schema(), table.key_order()
            if not copy.key:
                copy.key = table.typed_key()
            elif copy.key != table.typed_key():
                raise TableChanged
            if isinstance(window, WholeTable):
                if order:
                    raise TableChanged
                await window.read(connection, schema, is_partitioned=table.is_partitioned, row_filter=table.row_filter)
                return None
            if not order:
                raise TableChanged
            return await read_chunk(
                connection,
                schema,
                copy,
                after,
                order=order,
                is_partitioned=table.is_partitioned,
                row_filter=table.row_filter,
                know=know,
            )

        def know(visibility: Visibility) -> None:
            assert isinstance(window, ChunkWindow)
            window.know(visibility)

        table, chunk = await read_current(connection, copy.oid, read, publication=self._server.publication)
        self._server.tables[copy.oid] = table
        return chunk

    async def _connection(self, worker: _Worker) -> WatchedConnection:
        if worker.connection is None:
            worker.connection = await self._server.connect()
            # Were this process stopped in the middle of a chunk, its transaction would hold up schema changes and vacuum.
            await worker.connection.execute(_IDLE_LIMIT)
        return worker.connection

    async def _wait_for_older(self) -> None:
        """A table that was published while the source ran is read once every transaction older than that has ended."""
        while self._waits_done < self._waits_wanted:
            async with self._older:
                wanted = self._waits_wanted
                if self._waits_done < wanted:
                    await pgslot.wait_for_older_transactions(self._server.admin, self._say)
                    self._waits_done = wanted
                    self._say("")

    # beside the stream

    async def see(self, transactions: Sequence[Transaction]) -> None:
        """Take note of what the stream delivers: before its changes are handed on, and before ``finish``.

        Tables that come into the stream while it runs are copied: their older rows needn't have been in it.
        """
        new = new_tables(transactions) - self._server.tables.keys()
        if new and self._server.config.snapshot != "never":
            await self._server.catalogue()
            if self._plan():
                self._waits_wanted += 1
                self._is_idle = False
        snapshot = self._state.snapshot
        if self._is_idle or snapshot is None:
            return
        windows = [read.window for worker in self._workers for read in worker.reads]
        begun = [copy for copy in snapshot.tables if copy.ranges and not copy.is_done]
        oids = {window.oid for window in windows} | {copy.oid for copy in begun}
        for transaction in transactions:
            if transaction.xid == 0:  # a message: it changes no row
                continue
            if not transaction.is_part:
                snapshot.delivered.append(transaction.xid)
            by_table: dict[int, list[Change]] = {}
            for change in transaction.changes:
                if change.table.oid in oids:
                    by_table.setdefault(change.table.oid, []).append(change)
            if not by_table:
                continue
            for window in windows:
                if window.oid in by_table:
                    window.note(transaction, by_table[window.oid])
            for copy in begun:
                if copy.oid in by_table and copy.oid in self._server.tables:
                    copy.note_moved(by_table[copy.oid], self._server.tables[copy.oid].identity_columns)
        if len(snapshot.delivered) > _UNSEEN_TRANSACTIONS:
            await self._forget_seen(snapshot)

    async def _forget_seen(self, snapshot: SnapshotState) -> None:
        async with self._server.admin.cursor() as cursor:
            visibility, _ = await current_visibility(cursor, await replay_position(cursor))
        # What one SELECT sees, every later one sees too.
        snapshot.delivered = unseen_deliveries(snapshot.delivered, visibility)

    async def finish(self, passed_lsn: int, ask: Callable[[], Awaitable[None]]) -> tuple[list[Change], int]:
        """The rows of one chunk that the stream has passed, as changes, and their time; nothing while there is none.

        passed_lsn: everything before it has been delivered. ask: makes the server say how far it is. Of a table without a key the
        rows come by ``next_part``. Raises psycopg's errors and OSError (of the folder).
        """
        snapshot = self._state.snapshot
        assert snapshot is not None
        must_ask = False
        for worker in self._workers:
            copy = worker.copy
            if copy is None or not worker.reads or not worker.reads[0].is_done:
                continue
            read = worker.reads[0]
            assert read.task is not None
            window = read.window
            try:
                chunk = read.task.result()
            except TableChanged:
                await self._read_again(worker)
                continue
            found: Chunk | WholeTable = chunk if chunk is not None else window  # type: ignore[assignment]  # the one or the other
            visibility = found.visibility
            assert visibility is not None
            if passed_lsn < found.high_lsn:
                must_ask = True
                continue
            if unseen_deliveries(window.delivered_before, visibility):
                await self._read_again(worker)
                continue
            if isinstance(window, WholeTable):
                if window.is_spoiled:
                    await self._read_again(worker)
                    continue
                self._whole = (worker, window, window.parts())
                return [], 0
            assert chunk is not None
            unseen = window.unseen(chunk.table)
            if unseen is None:
                await self._read_again(worker)
                continue
            rows = chunk.rows()
            if unseen:
                rows = rows_by_key(rows, chunk.table.key, unseen)
            snapshot.delivered = unseen_deliveries(snapshot.delivered, visibility)
            changes = read_changes(
                chunk.table,
                rows,
                copy,
                self._state.versions,
                high_lsn=chunk.high_lsn,
                time_us=chunk.time_us,
                id_prefix=self._id_prefix(snapshot, copy),
            )
            copy.took(chunk, read.part)
            worker.reads.popleft()
            if read.part is None or read.part.is_read:
                worker.copy = worker.part = None
            return changes, chunk.time_us
        if must_ask:
            await ask()
        return [], 0

    def next_part(self) -> tuple[list[Change], int, bool]:
        """Some rows of a table without a key, their time, and whether they are its last. Raises OSError."""
        snapshot, whole = self._state.snapshot, self._whole
        assert snapshot is not None
        assert whole is not None
        worker, window, parts = whole
        copy, table = worker.copy, window.table
        assert copy is not None
        assert table is not None
        rows, is_last = next(parts)
        is_reset = copy.rows == 0
        changes = read_changes(
            table,
            rows,
            copy,
            self._state.versions,
            high_lsn=window.high_lsn,
            time_us=window.time_us,
            id_prefix=self._id_prefix(snapshot, copy),
            is_reset=is_reset,
            is_last=is_last,
        )
        if is_last:
            assert window.visibility is not None
            snapshot.delivered = unseen_deliveries(snapshot.delivered, window.visibility)
            copy.is_read = copy.is_done = copy.ranges[0].is_read = True
            worker.reads.popleft()
            worker.copy = worker.part = self._whole = None
            window.close()
        return changes, window.time_us, is_last

    def _id_prefix(self, snapshot: SnapshotState, copy: TableCopy) -> str:
        return f"{self._server.name}-{self._state.incarnation}-s{copy.number or snapshot.number}-"

    async def _read_again(self, worker: _Worker) -> None:
        """Forget what the worker has read and let it begin where the log is; a table that was dropped is done."""
        copy = worker.copy
        assert copy is not None
        await self._leave(worker)
        worker.rests_until = time.monotonic() + _RETRY_CHUNK_S
        await self._server.catalogue()
        table = self._server.tables.get(copy.oid)
        if table is not None and copy.key and table.typed_key() != copy.key:
            for reader in self._workers:
                if reader.copy is copy:
                    await self._leave(reader)
            copy.begin_again()
        if copy.oid not in self._server.tables and self._state.snapshot is not None:
            for other in self._state.snapshot.tables:
                if other.oid == copy.oid:
                    other.is_done = True

    async def _leave(self, worker: _Worker) -> None:
        """Whatever the worker reads is of no use any more."""
        splitting, worker.splitting = worker.splitting, None
        await end(splitting)
        # Of one that isn't done an answer is on its way that nobody waits for.
        must_close = any(not read.is_done for read in worker.reads)
        try:
            while worker.reads:
                read = worker.reads[-1]
                await end(read.task)
                worker.reads.pop()
                if isinstance(read.window, WholeTable):
                    read.window.close()
            worker.copy = worker.part = None
        finally:
            if must_close:
                await _close(worker)

    def progress(self) -> dict[str, Any] | None:
        """How far the copy is, for people; None when nothing is being copied."""
        snapshot = self._state.snapshot
        current = None if snapshot is None else next((copy for copy in snapshot.tables if not copy.is_done), None)
        if snapshot is None or current is None:
            return None
        rows = sum(table.rows for table in snapshot.tables)
        estimated = sum(table.rows if table.is_done else max(table.estimate, table.rows) for table in snapshot.tables)
        took_s = time.monotonic() - self._began if self._began else 0.0
        rate = (rows - self._rows_at_begin) / took_s if took_s > 1 else None
        return {
            "table": current.name,
            "tables_done": sum(table.is_done for table in snapshot.tables),
            "tables": len(snapshot.tables),
            "rows": rows,
            "estimated_rows": estimated,
            "rows_per_s": None if rate is None else round(rate),
            "left_s": None if not rate else round(max(0, estimated - rows) / rate),
        }

    async def close(self) -> None:
        """End the reading; closing twice is fine."""
        if self._whole is not None:
            self._whole[1].close()
            self._whole = None
        try:
            for worker in self._workers:
                await self._leave(worker)
        finally:
            # Left open, one would hold its transaction, and with it every schema change of the table.
            for worker in self._workers:
                await _close(worker)


async def _close(worker: _Worker) -> None:
    connection, worker.connection = worker.connection, None
    if connection is not None:
        await connection.close()


__all__ = ["Copier"]
