"""The initial copy of existing rows, lock-free and while the stream runs.

A table is read in chunks by its key, each in a short read-only transaction of its own; a chunk is done when the log has it, together
with the place where the next one begins, so a restart goes on at that place. What makes chunk and stream fit together (design P6):

1. A chunk's SELECT sees the transactions that ``pg_current_snapshot()`` of *its own* transaction says it sees: ``visible``. (An LSN
   taken before the SELECT would not do: a commit can be in the WAL, even streamed, before a SELECT sees it.)
2. The chunk is put into the log at its high mark: the stream has passed the WAL position read *after* the SELECT, so every visible
   transaction stands before it in the log.
3. Of the transactions before it that the SELECT didn't see, those that touched the table were noted (``ChunkWindow.note``): their keys
   are dropped from the chunk, for the log already holds something newer; where the stream sent only part of a row (an unchanged
   TOAST value), the chunk's row is emitted with the newer columns laid over it.
4. Every transaction delivered before the window opened must be visible. If one isn't, the chunk is read again.
   On a standby ``pg_current_snapshot()`` leaves out which transactions are running, so from xmin up its word isn't enough. There a
   transaction becomes visible while its commit is replayed, never later: one is seen if it ends before the replay position read ahead of
   the SELECT's snapshot, and not seen if it ends behind the position replayed once the snapshot stood (``Visibility.replayed``). What
   ends in between is unknown, and when it touched the table the chunk is read again. What was delivered was replayed, so rule 4 holds.
5. A row whose key moves while its table is being copied can go from where the copy hasn't been to where it won't come again. Its
   update says all of it, but for large values that weren't sent again: such keys are noted and read once more at the end.

So a consumer that lays the chunk's rows over what it has (a ``read`` is an upsert) holds the table's state at the high mark. A table
without any key can't be read so: it is read whole, and goes into the log as a truncate followed by its rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec
import psycopg
from psycopg import sql

from headrace.cdc.decode.copytext import copy_row
from headrace.cdc.decode.pgvalue import row_kinds
from headrace.cdc.decode.tableversion import shape
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.event import UNCHANGED, Absent, Change, Row, TableSchema, Value, key_text
from headrace.cdc.position import parse_lsn

CHUNK_ROWS = 10_000
_WAL_PAGE = 8192
_LONGEST_PAGE_HEADER = 40
_REPLAY_POLL_S = 0.002
_UNTOLD = 1 << 63

KeyTuple = tuple[Value, ...]


class Visibility(msgspec.Struct, frozen=True):
    """``pg_current_snapshot()``: which transactions a SELECT sees. All ids are 64-bit.

    replayed: on a standby, the positions (before, after) around the taking of the snapshot; running is then unknown.
    """

    xmin: int
    xmax: int
    running: frozenset[int]
    replayed: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str, replayed: tuple[int, int] | None = None) -> Visibility:
        """From the text ``xmin:xmax:xip,xip``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid), replayed)

    def sees(self, xid: int, end_lsn: int) -> bool | None:
        """Whether a committed transaction is visible; None: can't be told. xid: 32 bits, as the stream has it.

        The stream's ids lie within 2^31 of the snapshot's, which decides the missing upper half.
        """
        full = (self.xmax & ~0xFFFFFFFF) | xid
        if full - self.xmax > 1 << 31:
            full -= 1 << 32
        elif self.xmax - full > 1 << 31:
            full += 1 << 32
        if full < self.xmin:
            return True
        if full >= self.xmax:
            return False
        if self.replayed is None:
            return full not in self.running
        before, after = self.replayed
        return True if end_lsn <= before else False if end_lsn > after else None


class TableCopy(msgspec.Struct):
    """How far the copy of one table has come; part of the source's stored state.

    after: text of the last key read, one a column of the index; empty before the first chunk. again: keys to read once more
    (rule 5), when all have been read once (is_read). rows: how many are in the log. estimate: the planner's row count at the
    start, for the progress shown to people; -1 unknown.
    """

    oid: int
    name: str
    after: tuple[str, ...] = ()
    rows: int = 0
    is_done: bool = False
    estimate: int = -1
    is_read: bool = False
    again: list[tuple[str, ...]] = []

    @property
    def is_untouched(self) -> bool:
        """Nothing of it has been read."""
        return not (self.is_done or self.is_read or self.after or self.rows)

    def note_moved(self, transaction: Transaction, key_columns: Sequence[str]) -> None:
        """Remember the rows that must be read once more. key_columns: names in the order of the key's index."""
        for change in transaction.changes:
            if change.table.oid != self.oid or change.before is None or change.after is None:
                continue
            if UNCHANGED not in change.after:
                continue
            names = [column.name for column in change.table.columns]
            order = tuple([names.index(name) for name in key_columns if name in names])
            key = _key(_filled(change.after, change.before), order)
            if _old_key(change, order) != key:
                self.again.append(tuple([key_text(value) for value in key]))

    def took(self, chunk: Chunk) -> None:
        """The log has the chunk."""
        if self.is_read:
            self.again = self.again[chunk.again_count :]
        else:
            self.after = chunk.after
            self.is_read = chunk.is_last
        self.is_done = self.is_read and not self.again


class SnapshotState(msgspec.Struct):
    """All tables of one snapshot. delivered: transactions that reached us and may not be visible yet (rule 4)."""

    number: int
    tables: list[TableCopy]
    delivered: list[int] = []

    @property
    def is_done(self) -> bool:
        return all(table.is_done for table in self.tables)

    def current(self) -> TableCopy | None:
        """The table being copied; None when all are done."""
        return next((table for table in self.tables if not table.is_done), None)


class Chunk(msgspec.Struct):
    """Rows as one SELECT saw them.

    after: key text of the last row. is_last: the table has no more rows. again_count: so many noted keys were asked for.
    """

    table: TableSchema
    rows: list[Row]
    after: tuple[str, ...]
    is_last: bool
    visibility: Visibility
    high_lsn: int
    time_us: int
    again_count: int = 0


class ChunkWindow:
    """What the stream did to one table from before a chunk's SELECT until its high mark.

    delivered_before: transactions delivered before the window opened that may not be visible yet (rule 4).
    """

    def __init__(self, oid: int, delivered_before: frozenset[int]) -> None:
        self.oid = oid
        self.delivered_before = delivered_before
        self._transactions: list[tuple[Transaction, list[Change]]] = []

    def note(self, transaction: Transaction) -> None:
        """Remember a delivered transaction's changes of the table."""
        changes = [change for change in transaction.changes if change.table.oid == self.oid]
        if changes:
            self._transactions.append((transaction, changes))

    def apply(self, chunk: Chunk) -> list[Row] | None:
        """The chunk's rows as of its high mark.

        None when it must be read again: the table's columns changed meanwhile, or what the chunk saw can't be told.
        """
        unseen: list[Change] = []
        for transaction, changes in self._transactions:
            is_seen = chunk.visibility.sees(transaction.xid, transaction.end_lsn)
            if is_seen is None:
                return None
            if not is_seen:
                unseen.extend(changes)
        if any(shape(change.table) != shape(chunk.table) for change in unseen):
            return None
        if not chunk.table.key:
            return _as_multiset(chunk.rows, unseen)
        return _by_key(chunk, unseen)


def _by_key(chunk: Chunk, unseen: Iterable[Change]) -> list[Row]:
    key = chunk.table.key
    rows = {_key(row, key): row for row in chunk.rows}
    # Keys whose row of the chunk went elsewhere: present here only while the stream has sent part of them.
    partial: dict[KeyTuple, Row] = {}
    for change in unseen:
        if change.op == "truncate":
            rows = {}
            partial = {}
            continue
        image = change.after if change.after is not None else change.before
        assert image is not None  # only a truncate has neither
        old = _old_key(change, key)
        source = partial.pop(old, None) or rows.pop(old, None)
        rows.pop(old, None)
        if change.after is None:
            continue
        new = _key(_filled(change.after, change.before), key)
        rows.pop(new, None)
        partial.pop(new, None)
        if UNCHANGED in change.after and source is not None:
            partial[new] = _filled(change.after, source)
    return [*rows.values(), *partial.values()]


def _as_multiset(rows: Sequence[Row], unseen: Iterable[Change]) -> list[Row]:
    """State at the high mark of a table without a key: rows are told apart by all their values."""
    counts: dict[Row, int] = {}
    for row in rows:
        counts[row] = counts.get(row, 0) + 1
    for change in unseen:
        if change.op == "truncate":
            counts = {}
            continue
        if change.before is not None and counts.get(change.before, 0) > 0:
            counts[change.before] -= 1
        if change.after is not None:
            counts[change.after] = counts.get(change.after, 0) + 1
    return [row for row, count in counts.items() for _ in range(count)]


def _key(row: Row, key: tuple[int, ...]) -> KeyTuple:
    return tuple([row[index] for index in key])  # type: ignore[misc]  # a key is never absent once filled


def _old_key(change: Change, key: tuple[int, ...]) -> KeyTuple:
    before = change.before
    if before is None:
        assert change.after is not None
        return _key(change.after, key)
    return _key(_filled(before, change.after) if change.after is not None else before, key)


def _filled(row: Row, other: Row | None) -> Row:
    """row, with what it lacks taken from other."""
    if other is None or UNCHANGED not in row:
        return row
    return tuple([old if new is UNCHANGED else new for new, old in zip(row, other, strict=True)])


async def read_chunk(
    connection: psycopg.AsyncConnection[tuple[object, ...]],
    table: TableSchema,
    copy: TableCopy,
    *,
    order: tuple[int, ...],
    is_partitioned: bool,
    limit: int = CHUNK_ROWS,
) -> Chunk:
    """Read the rows behind key ``copy.after``, or those to be read again; all rows of a table without a key.

    order: the key's columns in the order of its index. connection: autocommit, with the same pinned settings as the stream.
    Raises psycopg's errors; UndefinedTable, UndefinedColumn or InvalidSchemaName when the table isn't as ``table`` says any more.
    """
    again = copy.again[:limit] if copy.is_read else []
    query = _chunk_query(table, copy.after, again, order=order, is_partitioned=is_partitioned, limit=limit)
    kinds = row_kinds([column.type_oid for column in table.columns])
    rows: list[Row] = []
    last_line = b""
    async with connection.cursor() as cursor:
        replayed = await _replay_position(cursor)
        await cursor.execute("begin isolation level repeatable read read only")
        try:
            await _hold_columns(cursor, table, is_partitioned=is_partitioned)
            visibility, time_us = await _visibility(cursor, replayed)
            statement = query.as_bytes(connection)
            if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
                # No conversion: such a database may hold bytes that are no UTF-8, and the server would refuse to send them.
                await cursor.execute("set local client_encoding = 'SQL_ASCII'")
            async with cursor.copy(statement) as lines:
                pending = 0
                async for block in lines:
                    last_line = bytes(block)
                    rows.append(copy_row(last_line, kinds))
                    pending += 1
                    if pending == 500:
                        pending = 0
                        await asyncio.sleep(0)  # the stream must be answered while a chunk is read
        finally:
            await cursor.execute("rollback")
        high_lsn = await _high_mark(cursor)
    after_text = _key_text(last_line, table, order) if rows and order else copy.after
    return Chunk(
        table=table,
        rows=rows,
        after=after_text,
        is_last=not order or len(rows) < limit,
        visibility=visibility,
        high_lsn=high_lsn,
        time_us=time_us,
        again_count=len(again),
    )


async def _replay_position(cursor: psycopg.AsyncCursor[tuple[object, ...]]) -> int | None:
    """How far a standby has replayed; None on a primary."""
    await cursor.execute(
        "select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()::text end"
    )
    found = await cursor.fetchone()
    return None if found is None or found[0] is None else parse_lsn(str(found[0]))


async def _visibility(cursor: psycopg.AsyncCursor[tuple[object, ...]], replayed: int | None) -> tuple[Visibility, int]:
    """What the transaction just begun sees, and the time. replayed: ``_replay_position`` before it began."""
    await cursor.execute(
        "select pg_catalog.pg_current_snapshot()::text, extract(epoch from clock_timestamp()), pg_catalog.pg_is_in_recovery()"
    )
    found = await cursor.fetchone()
    assert found is not None
    text, time_us = str(found[0]), int(float(str(found[1])) * 1_000_000)
    if replayed is None:
        return Visibility.parse(text), time_us
    if not found[2]:  # promoted just now, before or after the snapshot: whose rules hold can't be told
        return Visibility.parse(text, (replayed, _UNTOLD)), time_us
    # A commit becomes visible a moment before the replay position passes it. That is over once another record is replayed, or
    # when all that was received is. After a promotion the positions stand still.
    first: str | None = None
    while True:
        await cursor.execute(
            "select pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn()::text,"
            " not pg_catalog.pg_is_in_recovery() or coalesce(pg_catalog.pg_last_wal_receive_lsn() <="
            " pg_catalog.pg_last_wal_replay_lsn(), true)"
        )
        found = await cursor.fetchone()
        assert found is not None
        first = first or str(found[1])
        if found[2] or str(found[1]) != first:
            return Visibility.parse(text, (replayed, parse_lsn(str(found[1])))), time_us
        await asyncio.sleep(_REPLAY_POLL_S)


async def _hold_columns(
    cursor: psycopg.AsyncCursor[tuple[object, ...]], table: TableSchema, *, is_partitioned: bool
) -> None:
    """Lock the table against schema changes for this transaction, as a SELECT does, and see that its columns are those known.

    The lock comes before the snapshot: to an older one a table that ALTER rewrote looks empty. Columns that aren't published
    may stand beside the known ones; whether one was added since the catalogue was read is seen after the chunk (pgtables.py).
    """
    name = sql.Identifier(table.schema, table.table)
    only = sql.SQL("" if is_partitioned else "only ")
    await cursor.execute(sql.SQL("lock table {}{} in access share mode").format(only, name))
    await cursor.execute(
        "select a.attname::text, a.atttypid::int8, a.atttypmod::int from pg_catalog.pg_attribute a"
        " where a.attrelid = %s::text::pg_catalog.regclass and a.attrelid = %s::oid and a.attnum > 0 and not a.attisdropped"
        " order by a.attnum",
        [name.as_string(cursor), table.oid],
    )
    if not set(shape(table)) <= set(await cursor.fetchall()):
        raise psycopg.errors.UndefinedColumn(f"the columns of {table.name} changed")


async def _high_mark(cursor: psycopg.AsyncCursor[tuple[object, ...]]) -> int:
    """A WAL position behind every transaction that the SELECT saw, which the stream is sure to reach.

    The stream reads what is flushed, and what was inserted last may stay unflushed for long on a quiet server: a SELECT itself
    leaves such records (pruning, hint bits). A small message in the WAL, committed, flushes everything before it.
    """
    await cursor.execute(
        "select r, (case when r then pg_catalog.pg_last_wal_replay_lsn() else pg_catalog.pg_current_wal_insert_lsn() end)::text,"
        " (case when r then null else pg_catalog.pg_current_wal_flush_lsn() end)::text from pg_catalog.pg_is_in_recovery() r"
    )
    found = await cursor.fetchone()
    assert found is not None
    is_standby, inserted, flushed = found
    mark = _end_of_last_record(parse_lsn(str(inserted)))
    if not is_standby and parse_lsn(str(flushed)) < mark:
        # local: this commit waits for our own server's disk, not for its replicas.
        await cursor.execute("begin; set local synchronous_commit = local")
        await cursor.execute("select pg_catalog.pg_logical_emit_message(true, 'headrace', '')")
        await cursor.execute("commit")
    return mark


def _end_of_last_record(insert_lsn: int) -> int:
    """The insert position without the header of a page nobody has written to yet.

    The stream's keepalives name ends of records; on an idle server they would never reach a position behind such a header.
    """
    into_page = insert_lsn % _WAL_PAGE
    return insert_lsn - into_page if into_page <= _LONGEST_PAGE_HEADER else insert_lsn


def _chunk_query(
    table: TableSchema,
    after: tuple[str, ...],
    again: Sequence[tuple[str, ...]],
    *,
    order: tuple[int, ...],
    is_partitioned: bool,
    limit: int,
) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    # ONLY: children of an inheritance parent are tables of their own; a partitioned root has no rows of its own.
    select = sql.SQL("select {} from {}{}").format(
        columns,
        sql.SQL("" if is_partitioned else "only "),
        sql.Identifier(table.schema, table.table),
    )
    if order:
        key = sql.SQL(", ").join(sql.Identifier(table.columns[index].name) for index in order)
        if again:
            select += sql.SQL(" where ({}) in ({})").format(
                key, sql.SQL(", ").join(_row_literal(keys) for keys in again)
            )
        elif after:
            select += sql.SQL(" where ({}) > {}").format(key, _row_literal(after))
        select += sql.SQL(" order by {} limit {}").format(key, sql.Literal(limit))
    return sql.SQL("copy ({}) to stdout").format(select)


def _row_literal(texts: tuple[str, ...]) -> sql.Composed:
    return sql.SQL("({})").format(sql.SQL(", ").join(sql.Literal(text) for text in texts))


def _key_text(line: bytes, table: TableSchema, order: tuple[int, ...]) -> tuple[str, ...]:
    """The server's own text of the key in a COPY line, to be given back as literals."""
    row = copy_row(line, bytes(len(table.columns)))
    texts = [row[index] for index in order]
    if any(isinstance(text, Absent) or text is None for text in texts):
        raise psycopg.DataError(f"a key of {table.name} is not valid text in the database's encoding")
    return tuple([str(text) for text in texts])


def unseen_deliveries(delivered: Iterable[int], visibility: Visibility) -> list[int]:
    """Of delivered transactions, those that a SELECT with this visibility doesn't see; on a standby it sees all."""
    if visibility.replayed is not None:
        return [] if visibility.replayed[1] < _UNTOLD else list(delivered)
    return [xid for xid in delivered if not visibility.sees(xid, 0)]
