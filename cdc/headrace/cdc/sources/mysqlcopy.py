"""The first copy of a server's tables, in chunks beside the stream. Nothing is locked.

Each chunk is read in a transaction of its own, ``START TRANSACTION WITH CONSISTENT SNAPSHOT``, and goes into the log once the stream has passed the
place of that moment, without the keys that the stream has changed behind it (design P6).

MariaDB says the place (status ``Binlog_snapshot_file`` and ``_position``): what stands behind it isn't visible, and what stands before it is where
a transaction ends there. Elsewhere the newest ones before it may be either (mariadbplaces.py).

MySQL writes a transaction to its binlog, then makes it visible, then adds its id to ``gtid_executed``. What is in that set before the snapshot is
visible, and what is behind the binlog's end after it isn't. The transactions between these two, of about a millisecond, may be either.

Of transactions that may be either the keys come from the stream, which is right in both cases; only if it sends a part of their row, the chunk
is read again.

Both write to the binlog before a transaction is visible, and semi-synchronous replication may wait between the two. So a chunk also must see what
the stream had delivered before it was begun; if it doesn't, it is read again.

A table whose rows can't be read in the order of a key is read whole (mysqlwhole.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pymysql

from headrace.cdc.decode.binlog import BinlogPlace, BinlogTransaction, order_of
from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.decode.tableversion import TableVersion, schema_changes, shape, versioned
from headrace.cdc.errors import SourceRefused
from headrace.cdc.event import UNCHANGED, Change, Row, TableSchema, key_text
from headrace.cdc.sources import mariadbplaces
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.mariadbplaces import NOTHING, MariaDBPlaces, Order, Waits
from headrace.cdc.sources.mysqlserver import MySQLServer, shut_down
from headrace.cdc.sources.mysqltable import CopiedTable, quoted_name, read_collations, read_table
from headrace.cdc.sources.mysqlwhole import TableBusy, WholeTable
from headrace.cdc.sources.pgwindow import filled, old_key, row_key, rows_by_key

CHUNK_ROWS = 5000
CHUNK_BYTES = 2 << 20
"""A chunk holds about so much, by the size of the rows before it: rows of any width are read in about so much memory."""
_FIRST_ROWS = 100
"""Of a table whose rows' size isn't known yet."""
_NOTED_CHANGES = 50_000
_RETRY_S = 0.05
_BUSY_RETRY_S = 2.0
_ASKED_SHOWN = 20
_DOUBTS = 3
"""So often a table without a key is read in vain at MariaDB before it is locked for the moment of the snapshot, as at MySQL."""
_CHANGED = (1054, 1146, 1412)
"""Unknown column, no such table, table definition has changed: the table isn't what it was a moment ago."""

Gtids: TypeAlias = MySQLGtidSet | MariaDBGtids


class TableCopy(msgspec.Struct):
    """How far one table is; part of the stored state. Fields are only ever appended, with a default.

    after: text of the last key read. key: the columns that order the rows, with their types. again: keys of rows that moved while a large
    value of them wasn't in the binlog, to be read once more at the end. number: of the copy that a person asked for, 0 for the first one;
    where: of its rows, as an SQL condition.
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
    number: int = 0
    where: str = ""

    @property
    def name(self) -> str:
        return f"{self.schema}.{self.table}"


class _Noted(msgspec.Struct):
    """A transaction's changes of the table that is copied."""

    place: BinlogPlace
    gtid: str
    changes: list[Change]


class _Chunk(msgspec.Struct):
    """place: what stands behind it isn't in the rows. What is in them for certain: at MySQL visible, at MariaDB what stands before certain, to be
    told from when the place was told (monotonic seconds) and from what waited then.
    """

    table: CopiedTable
    rows: list[Row]
    after: tuple[str, ...]
    is_last: bool
    place: BinlogPlace
    time_us: int
    again_count: int
    visible: MySQLGtidSet | None
    told_s: float
    waits: Waits
    certain: Order = NOTHING

    def may_lack(self, noted: _Noted) -> bool:
        if self.visible is None:
            return order_of(noted.place) > self.certain
        source, _, number = noted.gtid.rpartition(":")
        return not source or not self.visible.has(source, int(number))

    def may_have(self, noted: _Noted) -> bool:
        return order_of(noted.place) <= order_of(self.place)


class MySQLCopier:
    """The copy of one source's tables; copies: in the stored state. wake: called when something was read. say: shows why the copy waits, ""
    for nothing. folder: for tables that are read whole.
    """

    def __init__(
        self,
        server: MySQLServer,
        copies: list[TableCopy],
        versions: dict[int, TableVersion],
        *,
        id_prefix: str,
        is_mariadb: bool,
        wake: Callable[[], None],
        say: Callable[[str], None],
        folder: Path,
        source: str,
    ) -> None:
        self._server = server
        self._is_mariadb = is_mariadb
        self._copies = copies
        self._versions = versions
        self._id_prefix = id_prefix
        self._wake = wake
        self._say = say
        self._folder = folder
        self._source = source
        self._collations: dict[str, int] = {}
        self._noted: list[_Noted] = []
        self._count = 0
        self._noted_of: TableCopy | None = None
        self._noted_since = NOTHING
        self._places = MariaDBPlaces()
        self._doubts = 0
        self._delivered: BinlogPlace | None = None
        self._before: tuple[BinlogPlace | None, Gtids | None] = (None, None)
        self._task: asyncio.Task[_Chunk | WholeTable | None] | None = None
        self._connection: Any = None
        self._selecting: asyncio.Future[Any] | None = None
        self._rests_until = 0.0
        self._row_bytes = CHUNK_BYTES / _FIRST_ROWS
        self._whole: WholeTable | None = None
        self._parts: Iterator[tuple[list[Row], bool]] | None = None
        self._is_first_part = False
        self._asked: dict[int, list[TableCopy]] = {}
        self._began = 0.0
        self._rows_at_begin = 0
        for copy in copies:
            if copy.number:
                self._asked.setdefault(copy.number, []).append(copy)

    @property
    def current(self) -> TableCopy | None:
        return next((copy for copy in self._copies if not copy.is_done), None)

    @property
    def is_initial_done(self) -> bool:
        """Every table has been copied once; what a person asked for again may be under way."""
        return all(copy.is_done or copy.number for copy in self._copies)

    @property
    def has_chunk(self) -> bool:
        return self._task is not None and self._task.done()

    @property
    def is_giving_out(self) -> bool:
        """A table is on its way into the log whole: ``next_part`` comes before anything else."""
        return self._parts is not None

    def ask(self, names: Sequence[tuple[str, str]], where: str, *, number: int, rows: dict[str, int]) -> None:
        """Copy these tables once more. rows: how many each has, by the server's guess."""
        copies = [TableCopy(*name, estimate=rows.get(".".join(name), -1), number=number, where=where) for name in names]
        self._copies.extend(copies)
        self._asked[number] = copies
        while len(self._asked) > _ASKED_SHOWN:
            del self._asked[min(self._asked)]
        self._wake()

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

    def delivered(self, place: BinlogPlace) -> None:
        """What stands before this place of this server is in the log."""
        self._delivered = place

    def go_on(self, gtids: Gtids) -> None:
        """Open the window of the next chunk and begin to read it; everything delivered so far was shown to ``see``.

        gtids: of everything delivered so far.
        """
        copy = self.current
        if copy is None:
            self._rest()
            return
        if self._task is not None or self._parts is not None or time.monotonic() < self._rests_until:
            return
        if not self._began:
            self._began = time.monotonic()
            self._rows_at_begin = sum(each.rows for each in self._copies)
        self._open_window(copy)
        self._before = (self._delivered, gtids)
        self._task = asyncio.create_task(self._read(copy))
        self._task.add_done_callback(self._was_read)

    def _open_window(self, copy: TableCopy) -> None:
        """Forget what was noted of before, but not what a snapshot of MariaDB may still lack."""
        self._places.open()
        if self._is_mariadb and self._noted_of is copy and self._count <= _NOTED_CHANGES:
            certain = self._places.certain(time.monotonic())
            self._noted = [noted for noted in self._noted if order_of(noted.place) > certain]
            self._count = sum(len(noted.changes) for noted in self._noted)
        else:
            self._noted, self._count, self._noted_of = [], 0, copy
            self._noted_since = (0, 0) if self._delivered is None else order_of(self._delivered)

    def _rest(self) -> None:
        """Nothing is left. What a person asked for is over; of the first copy the tables stay known."""
        self._began = 0.0
        if any(copy.number for copy in self._copies):
            self._copies[:] = [copy for copy in self._copies if copy.number == 0]
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection._force_close()

    def _was_read(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # looked at: it is told when the result is asked for
        self._wake()

    def see(self, transactions: Sequence[BinlogTransaction]) -> None:
        """Take note of what the stream delivers, before ``finish``."""
        if transactions:
            self._delivered = transactions[-1].place
        copy = self.current
        if copy is None:
            return
        for transaction in transactions:
            if self._is_mariadb and not transaction.is_part:
                self._places.delivered(transaction.place)
            changes = [
                change
                for change in transaction.changes
                if change.table.table == copy.table and change.table.schema == copy.schema
            ]
            if not changes:
                continue
            if self._whole is not None:
                self._whole.note(transaction.place, changes)
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
        """The rows of a chunk that the stream has passed, and their time; nothing while there is none.

        Of a table that is read whole the rows come by ``next_part``. Raises PyMySQL's errors, SourceRefused, and OSError (of the folder).
        """
        task, copy = self._task, self.current
        if task is None or not task.done() or copy is None:
            return [], 0
        try:
            chunk = task.result()
        except TableBusy:
            self._say(f"the copy of {copy.name} waits for an open transaction that wrote to it")
            self._again(_BUSY_RETRY_S)
            return [], 0
        if chunk is None:  # the table is gone, or has another key now
            self._again(0.0 if copy.is_done else _RETRY_S)
            return [], 0
        assert chunk.place is not None
        if order_of(passed) < order_of(chunk.place):
            return [], 0
        self._say("")
        if isinstance(chunk, WholeTable):
            if chunk.is_spoiled or (self._is_mariadb and not self._is_whole(chunk)):
                self._again(_RETRY_S)
            else:
                self._doubts = 0
                self._task = None
                self._parts, self._is_first_part = chunk.parts(), True
            return [], 0
        if self._is_mariadb:
            chunk.certain = self._places.visible(chunk.place, chunk.told_s, chunk.waits)
        if self._is_early(chunk.place, chunk.visible) or (self._is_mariadb and chunk.certain < self._noted_since):
            self._again(_RETRY_S)
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
            self._again(_RETRY_S)
            return [], 0
        rows = rows_by_key(chunk.rows, chunk.table.schema.key, unseen) if unseen else chunk.rows
        changes = self._changes(chunk.table.schema, chunk.place, chunk.time_us, rows, copy)
        if copy.is_read:
            copy.again = copy.again[chunk.again_count :]
        else:
            copy.after, copy.is_read = chunk.after, chunk.is_last
        copy.is_done = copy.is_read and not copy.again
        return changes, chunk.time_us

    def _is_early(self, place: BinlogPlace, visible: MySQLGtidSet | None) -> bool:
        """Something that was delivered before the window opened may not be in the rows."""
        delivered, gtids = self._before
        if visible is None:
            return delivered is not None and order_of(delivered) > order_of(place)
        return isinstance(gtids, MySQLGtidSet) and not gtids <= visible

    def _is_whole(self, whole: WholeTable) -> bool:
        """Whether what MariaDB's snapshot has of this table is known: no key tells which of its rows the stream has touched."""
        assert whole.place is not None
        if whole.probe is not None:
            self._places.told(*whole.probe)
        certain = self._places.visible(whole.place, whole.told_s, whole.waits)
        if certain >= max(self._noted_since, whole.newest_before) or whole.is_locked:
            return not self._is_early(whole.place, None)
        self._doubts += 1
        return False

    def _again(self, pause_s: float) -> None:
        """Forget what was read, and begin at where the log is after a pause."""
        self._task = None
        self._close_whole()
        if pause_s:
            self._rests_until = time.monotonic() + pause_s
            asyncio.get_running_loop().call_later(pause_s, self._wake)

    def next_part(self) -> tuple[list[Change], int, bool]:
        """Some rows of a table that was read whole, their time, and whether they are its last. Raises OSError."""
        whole, parts, copy = self._whole, self._parts, self.current
        assert whole is not None
        assert whole.place is not None
        assert parts is not None
        assert copy is not None
        rows, is_last = next(parts)
        changes = self._changes(
            whole.table.schema, whole.place, whole.time_us, rows, copy, is_reset=self._is_first_part, is_last=is_last
        )
        time_us, self._is_first_part = whole.time_us, False
        if is_last:
            copy.is_read = copy.is_done = True
            self._close_whole()
        return changes, time_us, is_last

    def _close_whole(self) -> None:
        whole, self._whole, self._parts = self._whole, None, None
        if whole is not None:
            whole.close()

    def _changes(
        self,
        schema: TableSchema,
        place: BinlogPlace,
        time_us: int,
        rows: list[Row],
        copy: TableCopy,
        *,
        is_reset: bool = False,
        is_last: bool = True,
    ) -> list[Change]:
        """Copied rows as changes, counted in ``copy.rows``. is_reset: the table is emptied first."""
        table, news = versioned(self._versions, schema)
        position, identifier = f"{place}:", f"{self._id_prefix}s{copy.number or ''}-{table.oid:x}-"
        first = copy.rows
        changes: list[Change] = []
        if news is not None:
            changes += schema_changes(
                news, position=f"{position}0", identifier=f"{identifier}{first}", xid=0, time_us=time_us
            )
        if is_reset:
            is_empty = is_last and not rows
            changes.append(
                Change(table, "truncate", None, None, f"{position}0", f"{identifier}{first}e", 0, 0, is_empty, time_us)
            )
        last = len(rows) - 1 if is_last else -1
        changes += [
            Change(
                table,
                "read",
                None,
                row,
                f"{position}{index}",
                f"{identifier}{first + index}",
                0,
                index,
                index == last,
                time_us,
            )
            for index, row in enumerate(rows)
        ]
        copy.rows += len(rows)
        return changes

    async def _read(self, copy: TableCopy) -> _Chunk | WholeTable | None:
        if not self._collations:
            self._collations = await read_collations(self._server.query)
        table = await read_table(self._server.query, copy.schema, copy.table, self._collations)
        if table is None:
            copy.is_done = True
            return None
        names = {column.name: column.type_oid for column in table.schema.columns}
        key = tuple(f"{name} {names[name]}" for name in table.key)
        if copy.key != key:
            # Under another order of the keys "behind the last one" means other rows.
            copy.after, copy.is_read, copy.again, copy.key = (), False, [], key
        if not copy.after:
            self._row_bytes = CHUNK_BYTES / _FIRST_ROWS
        try:
            if not table.key and not table.engine:
                return None  # dropped or altered since its columns were read: look again
            read = await self._read_chunk(table, copy) if table.key else await self._read_whole(table)
        except pymysql.err.MySQLError as error:
            if error.args and error.args[0] in _CHANGED:
                return None
            raise
        after = await read_table(self._server.query, copy.schema, copy.table, self._collations)
        return read if after is not None and after.schema == table.schema else None

    async def _read_chunk(self, table: CopiedTable, copy: TableCopy) -> _Chunk:
        chunk: _Chunk = await self._in_thread(self._select, table, copy)
        return chunk

    async def _read_whole(self, table: CopiedTable) -> WholeTable:
        if not table.is_transactional:
            raise SourceRefused(
                f"{table.schema.name} has no key that its rows can be read by, and its engine {table.engine} shows no moment of it",
                source=self._source,
                advice=f"alter table {table.schema.name} engine = InnoDB; or give it a primary key, or put it under "
                f"sources.{self._source}.exclude",
            )
        whole = self._whole = WholeTable(table, self._folder)
        self._noted_of = None  # from here on the whole table takes the notes
        for noted in self._noted:
            whole.note(noted.place, noted.changes)
        if self._count > _NOTED_CHANGES:
            raise TableBusy(table.schema.name)
        whole.is_locked = not self._is_mariadb or self._doubts >= _DOUBTS
        if not whole.is_locked and self._places.certain(time.monotonic()) < self._noted_since:
            # An idle server has no place that is exact, and a table of any size isn't read for nothing.
            whole.probe = await self._in_thread(self._probe)
            await asyncio.sleep(mariadbplaces.QUIET_S)
        await self._in_thread(self._select_whole, whole)
        return whole

    async def _in_thread(self, read: Callable[..., Any], *arguments: Any) -> Any:
        self._selecting = asyncio.get_running_loop().run_in_executor(None, read, *arguments)
        return await asyncio.shield(self._selecting)

    def _probe(self) -> tuple[BinlogPlace, float, Waits]:
        if self._connection is None or not self._connection.open:
            self._connection = self._server.raw_connection()
        with self._connection.cursor() as cursor:
            told = mariadb_snapshot(cursor)
            cursor.execute("rollback")
        return told

    def _select_whole(self, whole: WholeTable) -> None:
        if self._connection is None or not self._connection.open:
            self._connection = self._server.raw_connection()
        locker = self._server.raw_connection if whole.is_locked else None
        snapshot = mariadb_snapshot if self._is_mariadb else _mysql_snapshot
        whole.read(self._connection, locker, snapshot, source=self._source)

    def _select(self, table: CopiedTable, copy: TableCopy) -> _Chunk:
        if self._connection is None or not self._connection.open:
            self._connection = self._server.raw_connection()
        again = copy.again[:CHUNK_ROWS] if copy.is_read else []
        key = ", ".join("`" + name.replace("`", "``") + "`" for name in table.key)
        places = ", ".join(table.key_places)
        # PyMySQL's placeholders; a name or a person's condition may hold a percent sign of its own.
        conditions = [f"({copy.where})".replace("%", "%%")] if copy.where else []
        of_key, arguments = key.replace("%", "%%"), list[str]()
        if again:
            conditions.append(f"({of_key}) in ({', '.join([f'({places})'] * len(again))})")
            arguments = [text for keys in again for text in keys]
        elif copy.after:
            conditions.append(f"({of_key}) > ({places})")
            arguments = list(copy.after)
        where = f" where {' and '.join(conditions)}" if conditions else ""
        asked = ", ".join([*table.expressions, *table.key_expressions])
        name = quoted_name(copy.schema, copy.table)
        select = f"select {asked} from {name}".replace("%", "%%") + f"{where} order by {of_key}"
        limit = len(again) or min(CHUNK_ROWS, max(1, int(CHUNK_BYTES / self._row_bytes)))
        width = len(table.expressions)
        with self._connection.cursor() as cursor:
            visible: MySQLGtidSet | None = None
            if not self._is_mariadb:
                cursor.execute("select @@global.gtid_executed")
                visible = MySQLGtidSet.parse(cursor.fetchone()[0].decode())
            try:
                place, told_s, waits = (mariadb_snapshot if visible is None else _mysql_snapshot)(cursor)
                cursor.execute(f"{select} limit %s", (*arguments, limit))
                found = cursor.fetchall()
            finally:
                cursor.execute("rollback")
        if found:
            self._row_bytes = max(1.0, sum(len(text) for texts in found for text in texts if text) / len(found))
        rows = [table.row(texts[:width]) for texts in found]
        after = tuple(text.decode() for text in found[-1][width:]) if found and not again else copy.after
        return _Chunk(
            table,
            rows,
            after,
            len(found) < limit,
            place,
            int(time.time() * 1_000_000),
            len(again),
            visible,
            told_s,
            waits,
        )

    def progress(self) -> dict[str, Any] | None:
        copy = self.current
        if copy is None:
            return None
        rows = sum(each.rows for each in self._copies)
        estimated = sum(each.rows if each.is_done else max(each.estimate, each.rows) for each in self._copies)
        took_s = time.monotonic() - self._began if self._began else 0.0
        rate = (rows - self._rows_at_begin) / took_s if took_s > 1 else None
        return {
            "table": copy.name,
            "tables_done": sum(each.is_done for each in self._copies),
            "tables": len(self._copies),
            "rows": rows,
            "estimated_rows": estimated,
            "rows_per_s": None if rate is None else round(rate),
            "left_s": None if not rate else round(max(0, estimated - rows) / rate),
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
        self._close_whole()


def mariadb_snapshot(cursor: Any) -> tuple[BinlogPlace, float, Waits]:
    """Make a snapshot; its place, when that was told, and what waited just before."""
    while True:
        cursor.execute("show global status like 'rpl_semi_sync_master%'")
        counts = {row[0].decode().lower(): row[1].decode() for row in cursor.fetchall()}
        waits = tuple(
            [int(counts.get(f"rpl_semi_sync_master_{name}", 0)) for name in ("wait_sessions", "yes_tx", "no_tx")]
        )
        _begin(cursor)
        cursor.execute("show status like 'binlog_snapshot_%'")
        told_s = time.monotonic()
        status = {row[0].decode().lower(): row[1].decode() for row in cursor.fetchall()}
        place = BinlogPlace(status["binlog_snapshot_file"], int(status["binlog_snapshot_position"]))
        if order_of(place) <= order_of(_end_of_binlog(cursor)):
            return place, told_s, waits
        # For a moment, an offset of the file before under the name of a new one.
        cursor.execute("rollback")


def _mysql_snapshot(cursor: Any) -> tuple[BinlogPlace, float, Waits]:
    _begin(cursor)
    return _end_of_binlog(cursor), time.monotonic(), ()


def _begin(cursor: Any) -> None:
    cursor.execute("set transaction isolation level repeatable read")
    cursor.execute("start transaction with consistent snapshot, read only")


def _end_of_binlog(cursor: Any) -> BinlogPlace:
    """Now; the statement has two names."""
    try:
        cursor.execute("show binary log status")
    except pymysql.err.ProgrammingError:
        cursor.execute("show master status")
    file, offset, *_ = cursor.fetchone()
    return BinlogPlace(file.decode(), int(offset))


__all__ = ["MySQLCopier", "TableCopy", "mariadb_snapshot"]
