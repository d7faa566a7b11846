"""The first copy of a server's tables, in chunks beside the stream. Nothing is locked.

Each chunk is read in a transaction of its own, ``START TRANSACTION WITH CONSISTENT SNAPSHOT``, and goes into the log once the stream has passed the
place of that moment, without the keys that the stream has changed behind it (design P6).

MariaDB says the place exactly (status ``Binlog_snapshot_file`` and ``_position``): what stands before it is visible, what stands behind it isn't.

MySQL writes a transaction to its binlog, then makes it visible, then adds its id to ``gtid_executed``. What is in that set before the snapshot is
visible, and what is behind the binlog's end after it isn't. The transactions between these two, of about a millisecond, may be either. Their keys
come from the stream too, which is right in both cases; only if it sends a part of their row, the chunk is read again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pymysql

from headrace.cdc.decode.binlog import BinlogPlace, BinlogTransaction, order_of
from headrace.cdc.decode.gtid import MySQLGtidSet
from headrace.cdc.decode.tableversion import TableVersion, schema_changes, shape, versioned
from headrace.cdc.event import UNCHANGED, Change, Row, key_text
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.mysqlserver import MySQLServer, shut_down
from headrace.cdc.sources.mysqltable import CopiedTable, read_collations, read_table
from headrace.cdc.sources.pgwindow import filled, old_key, row_key, rows_by_key

CHUNK_ROWS = 5000
_NOTED_CHANGES = 50_000
_RETRY_S = 0.05


class TableCopy(msgspec.Struct):
    """How far one table is; part of the stored state. Fields are only ever appended, with a default.

    after: text of the last key read. key: the columns that order the rows, with their types. again: keys of rows that moved while a large
    value of them wasn't in the binlog, to be read once more at the end.
    """

    schema: str
    table: str
    after: tuple[str, ...] = ()
    rows: int = 0
    is_done: bool = False
    estimate: int = -1
    key: tuple[str, ...] = ()
    is_read: bool = False
    again: list[tuple[str, ...]] = []


class _Noted(msgspec.Struct):
    """A transaction's changes of the table that is copied."""

    place: BinlogPlace
    gtid: str
    changes: list[Change]


class _Chunk(msgspec.Struct):
    """place: what stands behind it isn't in the rows. visible: what is in them for certain, None: everything before place."""

    table: CopiedTable
    rows: list[Row]
    after: tuple[str, ...]
    is_last: bool
    place: BinlogPlace
    time_us: int
    again_count: int
    visible: MySQLGtidSet | None

    def may_lack(self, noted: _Noted) -> bool:
        if self.visible is None:
            return order_of(noted.place) > order_of(self.place)
        source, _, number = noted.gtid.rpartition(":")
        return not source or not self.visible.has(source, int(number))

    def may_have(self, noted: _Noted) -> bool:
        return order_of(noted.place) <= order_of(self.place)


class MySQLCopier:
    """The copy of one source's tables; copies: in the stored state. wake: called when a chunk was read."""

    def __init__(
        self,
        server: MySQLServer,
        copies: list[TableCopy],
        versions: dict[int, TableVersion],
        *,
        id_prefix: str,
        is_mariadb: bool,
        wake: Callable[[], None],
    ) -> None:
        self._server = server
        self._is_mariadb = is_mariadb
        self._copies = copies
        self._versions = versions
        self._id_prefix = id_prefix
        self._wake = wake
        self._collations: dict[str, int] = {}
        self._noted: list[_Noted] = []
        self._count = 0
        self._task: asyncio.Task[_Chunk | None] | None = None
        self._connection: Any = None
        self._selecting: asyncio.Future[_Chunk] | None = None
        self._rests_until = 0.0

    @property
    def current(self) -> TableCopy | None:
        return next((copy for copy in self._copies if not copy.is_done), None)

    @property
    def has_chunk(self) -> bool:
        return self._task is not None and self._task.done()

    def go_on(self) -> None:
        """Open the window of the next chunk and begin to read it; everything delivered so far was shown to ``see``."""
        copy = self.current
        if copy is None or self._task is not None or time.monotonic() < self._rests_until:
            return
        self._noted, self._count = [], 0
        self._task = asyncio.create_task(self._read(copy))
        self._task.add_done_callback(self._was_read)

    def _was_read(self, task: asyncio.Task[_Chunk | None]) -> None:
        if not task.cancelled():
            task.exception()  # looked at: it is told when the result is asked for
        self._wake()

    def see(self, transactions: Sequence[BinlogTransaction]) -> None:
        """Take note of what the stream delivers, before ``finish``."""
        copy = self.current
        if copy is None:
            return
        for transaction in transactions:
            changes = [
                change
                for change in transaction.changes
                if change.table.table == copy.table and change.table.schema == copy.schema
            ]
            if not changes:
                continue
            self._count += len(changes)
            if self._count <= _NOTED_CHANGES:
                self._noted.append(_Noted(transaction.place, transaction.gtid, changes))
            self._note_moved(copy, changes)

    def _note_moved(self, copy: TableCopy, changes: list[Change]) -> None:
        names = [words.split(" ")[0] for words in copy.key]
        for change in changes:
            if change.before is None or change.after is None or UNCHANGED not in change.after:
                continue
            columns = [column.name for column in change.table.columns]
            order = tuple([columns.index(name) for name in names if name in columns])
            key = row_key(filled(change.after, change.before), order)
            if old_key(change, order) != key:
                copy.again.append(tuple([key_text(value) for value in key]))

    async def finish(self, passed: BinlogPlace) -> tuple[list[Change], int]:
        """The rows of a chunk that the stream has passed, and their time; nothing while there is none. Raises PyMySQL's errors."""
        task, copy = self._task, self.current
        if task is None or not task.done() or copy is None:
            return [], 0
        chunk = task.result()
        if chunk is None:  # the table is gone, or has another key now
            self._task = None
            return [], 0
        if order_of(passed) < order_of(chunk.place):
            return [], 0
        self._task = None
        lacking = [noted for noted in self._noted if chunk.may_lack(noted)]
        unseen = [change for noted in lacking for change in noted.changes]
        in_doubt = [change for noted in lacking if chunk.may_have(noted) for change in noted.changes]
        if (
            self._count > _NOTED_CHANGES
            or any(shape(change.table) != shape(chunk.table.schema) for change in unseen)
            or any(change.after is not None and UNCHANGED in change.after for change in in_doubt)
        ):
            self._rests_until = time.monotonic() + _RETRY_S
            asyncio.get_running_loop().call_later(_RETRY_S, self._wake)
            return [], 0
        rows = rows_by_key(chunk.rows, chunk.table.schema.key, unseen) if unseen else chunk.rows
        changes = self._changes(chunk, rows, copy)
        copy.rows += len(rows)
        if copy.is_read:
            copy.again = copy.again[chunk.again_count :]
        else:
            copy.after, copy.is_read = chunk.after, chunk.is_last
        copy.is_done = copy.is_read and not copy.again
        return changes, chunk.time_us

    def _changes(self, chunk: _Chunk, rows: list[Row], copy: TableCopy) -> list[Change]:
        table, news = versioned(self._versions, chunk.table.schema)
        position, identifier = f"{chunk.place}:", f"{self._id_prefix}s-{table.oid:x}-"
        changes: list[Change] = []
        if news is not None:
            changes += schema_changes(
                news, position=f"{position}0", identifier=f"{identifier}{copy.rows}", xid=0, time_us=chunk.time_us
            )
        last = len(rows) - 1
        changes += [
            Change(
                table,
                "read",
                None,
                row,
                f"{position}{index}",
                f"{identifier}{copy.rows + index}",
                0,
                index,
                index == last,
                chunk.time_us,
            )
            for index, row in enumerate(rows)
        ]
        return changes

    async def _read(self, copy: TableCopy) -> _Chunk | None:
        if not self._collations:
            self._collations = await read_collations(self._server.query)
        table = await read_table(self._server.query, copy.schema, copy.table, self._collations)
        if table is None or not table.key:
            copy.is_done = True
            return None
        names = {column.name: column.type_oid for column in table.schema.columns}
        key = tuple(f"{name} {names[name]}" for name in table.key)
        if copy.key != key:
            # Under another order of the keys "behind the last one" means other rows.
            copy.after, copy.is_read, copy.again, copy.key = (), False, [], key
        self._selecting = asyncio.get_running_loop().run_in_executor(None, self._select, table, copy)
        chunk = await asyncio.shield(self._selecting)
        after = await read_table(self._server.query, copy.schema, copy.table, self._collations)
        return chunk if after is not None and after.schema == table.schema else None

    def _select(self, table: CopiedTable, copy: TableCopy) -> _Chunk:
        if self._connection is None:
            self._connection = self._server.raw_connection()
        again = copy.again[:CHUNK_ROWS] if copy.is_read else []
        key = ", ".join("`" + name.replace("`", "``") + "`" for name in table.key)
        places = ", ".join(table.key_places)
        where, arguments = "", []
        if again:
            where = f" where ({key}) in ({', '.join([f'({places})'] * len(again))})"
            arguments = [text for keys in again for text in keys]
        elif copy.after:
            where, arguments = f" where ({key}) > ({places})", list(copy.after)
        name = "`" + copy.schema.replace("`", "``") + "`.`" + copy.table.replace("`", "``") + "`"
        asked = ", ".join([*table.expressions, *table.key_expressions])
        # PyMySQL formats only where there are arguments; a name may hold a percent sign.
        select = f"select {asked} from {name}".replace("%", "%%") + f"{where} order by " + key.replace("%", "%%")
        width = len(table.expressions)
        with self._connection.cursor() as cursor:
            visible: MySQLGtidSet | None = None
            if not self._is_mariadb:
                cursor.execute("select @@global.gtid_executed")
                visible = MySQLGtidSet.parse(cursor.fetchone()[0].decode())
            cursor.execute("set transaction isolation level repeatable read")
            cursor.execute("start transaction with consistent snapshot, read only")
            try:
                place = _exact_place(cursor) if visible is None else _end_of_binlog(cursor)
                cursor.execute(f"{select} limit %s", (*arguments, CHUNK_ROWS))
                found = cursor.fetchall()
            finally:
                cursor.execute("rollback")
        rows = [table.row(texts[:width]) for texts in found]
        after = tuple(text.decode() for text in found[-1][width:]) if found and not again else copy.after
        return _Chunk(
            table,
            rows,
            after,
            len(found) < CHUNK_ROWS,
            place,
            int(time.time() * 1_000_000),
            len(again),
            visible,
        )

    def progress(self) -> dict[str, Any] | None:
        copy = self.current
        if copy is None:
            return None
        return {
            "table": f"{copy.schema}.{copy.table}",
            "tables_done": sum(each.is_done for each in self._copies),
            "tables": len(self._copies),
            "rows": sum(each.rows for each in self._copies),
            "estimated_rows": sum(
                each.rows if each.is_done else max(each.estimate, each.rows) for each in self._copies
            ),
        }

    async def close(self) -> None:
        """End the reading; closing twice is fine."""
        task, self._task = self._task, None
        await end(task)
        connection, self._connection = self._connection, None
        if connection is not None:
            shut_down(connection)
        if self._selecting is not None:
            await asyncio.wait([self._selecting])  # the thread, which fails now at the latest
            if not self._selecting.cancelled():
                self._selecting.exception()
        if connection is not None:
            connection._force_close()


def _exact_place(cursor: Any) -> BinlogPlace:
    """Of the snapshot that MariaDB has just made."""
    cursor.execute("show status like 'binlog_snapshot_%'")
    status = {row[0].decode().lower(): row[1].decode() for row in cursor.fetchall()}
    return BinlogPlace(status["binlog_snapshot_file"], int(status["binlog_snapshot_position"]))


def _end_of_binlog(cursor: Any) -> BinlogPlace:
    """Now, at MySQL; the statement has two names."""
    try:
        cursor.execute("show binary log status")
    except pymysql.err.ProgrammingError:
        cursor.execute("show master status")
    file, offset, *_ = cursor.fetchone()
    return BinlogPlace(file.decode(), int(offset))


__all__ = ["MySQLCopier", "TableCopy"]
