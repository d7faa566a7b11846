"""Drives the initial copy beside the stream: which table next, its chunks, and when a chunk's rows may go into the log.

The rules are in pgsnapshot.py, tables that change meanwhile in pgtables.py. This file joins them to the stream: it is shown every
transaction that goes by, and asked for the rows of chunks that the stream has passed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.event import Change
from headrace.cdc.sources import pgslot
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.link import WatchedConnection
from headrace.cdc.sources.pgserver import PostgresServer
from headrace.cdc.sources.pgsnapshot import Chunk, ChunkWindow, TableCopy, unseen_deliveries
from headrace.cdc.sources.pgstate import PostgresState
from headrace.cdc.sources.pgtables import TableChanged, chunk_changes, new_tables, plan, read_current

_log = logging.getLogger("headrace.source")

_RETRY_CHUNK_S = 0.05


class Copier:
    """The copy of one source's tables. Its progress stands in ``state.snapshot``.

    wake: called when a chunk has been read. say: shows why the copy waits, "" for nothing.
    """

    def __init__(
        self, server: PostgresServer, state: PostgresState, *, wake: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._server = server
        self._state = state
        self._wake = wake
        self._say = say
        self._connection: WatchedConnection | None = None
        self._window: ChunkWindow | None = None
        self._task: asyncio.Task[Chunk] | None = None
        self._must_wait = False

    async def plan(self) -> None:
        """Which tables are still to be copied: all at the first start, later those that are new in the configuration."""
        if self._plan():
            await pgslot.wait_for_older_transactions(self._server.admin, self._say)
        elif self._state.snapshot is not None:
            # It may have come while the source ran, and stopped before the wait was over.
            self._must_wait = any(copy.is_untouched for copy in self._state.snapshot.tables)

    @property
    def is_done(self) -> bool:
        """Nothing is left to copy."""
        return self._state.snapshot is None or self._state.snapshot.is_done

    @property
    def has_chunk(self) -> bool:
        """A chunk has been read and waits for the stream to pass it."""
        return self._task is not None and self._task.done()

    async def next_chunk(self) -> None:
        """Open the window of the next chunk, then read it beside the stream."""
        snapshot = self._state.snapshot
        assert snapshot is not None
        copy = snapshot.current()
        if copy is None:
            self._window = None
            snapshot.delivered = []
            await self._close_connection()
            _log.info("source %s: initial copy is done, streaming", self._server.name)
            return
        self._window = ChunkWindow(copy.oid, frozenset(snapshot.delivered))
        self._task = asyncio.create_task(self._read(copy))
        self._task.add_done_callback(lambda _: self._wake())

    async def see(self, transactions: Sequence[Transaction]) -> None:
        """Take note of what the stream delivers: before its changes are handed on, and before ``finish``.

        Tables that come into the stream while it runs are copied: their older rows needn't have been in it.
        """
        new = new_tables(transactions) - self._server.tables.keys()
        if new and self._server.config.snapshot != "never":
            await self._server.catalogue()
            if self._plan():
                self._must_wait = True
                if self._window is None:
                    await self.next_chunk()
        window, snapshot = self._window, self._state.snapshot
        if window is None or snapshot is None:
            return
        copy = snapshot.current()
        assert copy is not None
        for transaction in transactions:
            if transaction.xid == 0:  # a message: it changes no row
                continue
            window.note(transaction)
            if not transaction.is_part:
                snapshot.delivered.append(transaction.xid)
            if copy.oid in self._server.tables:
                copy.note_moved(transaction, self._server.tables[copy.oid].identity_columns)

    async def finish(self, passed_lsn: int, ask: Callable[[], Awaitable[None]]) -> list[Change]:
        """The rows of a chunk that the stream has passed, as changes; nothing while it hasn't.

        passed_lsn: everything before it has been delivered. ask: makes the server say how far it is.
        """
        window, task, state = self._window, self._task, self._state
        if window is None or task is None or not task.done() or state.snapshot is None:
            return []
        copy = state.snapshot.current()
        assert copy is not None
        try:
            chunk = task.result()
        except TableChanged:
            await self._read_again(window.oid)
            return []
        if passed_lsn < chunk.high_lsn:
            await ask()
            return []
        rows = None if unseen_deliveries(window.delivered_before, chunk.visibility) else window.apply(chunk)
        if rows is None:
            await self._read_again(window.oid)
            return []
        # What this SELECT sees, every later one sees too.
        state.snapshot.delivered = unseen_deliveries(state.snapshot.delivered, chunk.visibility)
        prefix = f"{self._server.name}-{state.incarnation}-s{state.snapshot.number}-"
        changes = chunk_changes(chunk, rows, copy, state.versions, prefix)
        copy.rows += len(rows)
        copy.took(chunk)
        self._task = None
        await self.next_chunk()
        return changes

    def progress(self) -> dict[str, Any] | None:
        """How far the copy is, for people; None when nothing is being copied."""
        snapshot = self._state.snapshot
        if snapshot is None or snapshot.is_done:
            return None
        current = snapshot.current()
        return {
            "table": current.name if current is not None else None,
            "tables_done": sum(table.is_done for table in snapshot.tables),
            "tables": len(snapshot.tables),
            "rows": sum(table.rows for table in snapshot.tables),
            "estimated_rows": sum(max(table.estimate, table.rows) for table in snapshot.tables),
        }

    async def close(self) -> None:
        """End the reading; closing twice is fine."""
        task, self._task = self._task, None
        await end(task)
        await self._close_connection()

    async def _close_connection(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def _plan(self) -> bool:
        """True when tables were added."""
        if self._server.config.snapshot == "never":
            return False
        self._state.snapshot, has_new = plan(self._state.snapshot, self._server.tables)
        return has_new

    async def _read(self, copy: TableCopy) -> Chunk:
        if self._connection is None:
            self._connection = await self._server.connect()
        if self._must_wait:
            await pgslot.wait_for_older_transactions(self._server.admin, self._say)
            self._must_wait = False
            self._say("")
        table, chunk = await read_current(self._connection, copy, publication=self._server.publication)
        self._server.tables[copy.oid] = table
        return chunk

    async def _read_again(self, oid: int) -> None:
        await asyncio.sleep(_RETRY_CHUNK_S)
        await self._server.catalogue()
        if oid not in self._server.tables and self._state.snapshot is not None:
            for copy in self._state.snapshot.tables:
                if copy.oid == oid:
                    copy.is_done = True
        await self.next_chunk()
