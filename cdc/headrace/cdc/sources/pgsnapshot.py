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
from headrace.cdc.decode.pgoutput import Transaction, row_kinds
from headrace.cdc.event import UNCHANGED, Absent, Change, Row, TableSchema, Value
from headrace.cdc.position import parse_lsn

CHUNK_ROWS = 10_000
_WAL_PAGE = 8192
_LONGEST_PAGE_HEADER = 40

KeyTuple = tuple[Value, ...]


class Visibility(msgspec.Struct, frozen=True):
    """``pg_current_snapshot()``: which transactions a SELECT sees. All ids are 64-bit."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Visibility:
        """From the text ``xmin:xmax:xip,xip``."""
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in running.split(",") if xid))

    def sees(self, xid: int) -> bool:
        """Whether a committed transaction is visible. xid: 32 bits, as the stream has it.

        The stream's ids lie within 2^31 of the snapshot's, which decides the missing upper half.
        """
        full = (self.xmax & ~0xFFFFFFFF) | xid
        if full - self.xmax > 1 << 31:
            full -= 1 << 32
        elif self.xmax - full > 1 << 31:
            full += 1 << 32
        if full < self.xmin:
            return True
        return full < self.xmax and full not in self.running


class TableCopy(msgspec.Struct):
    """How far the copy of one table has come; part of the source's stored state.

    after: text of the last key read, one a key column; empty before the first chunk. rows: how many are in the log.
    estimate: the planner's row count at the start, for the progress shown to people; -1 unknown.
    """

    oid: int
    name: str
    after: tuple[str, ...] = ()
    rows: int = 0
    is_done: bool = False
    estimate: int = -1


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
    """Rows as one SELECT saw them. after: key text of the last row. is_last: the table has no more rows."""

    table: TableSchema
    rows: list[Row]
    after: tuple[str, ...]
    is_last: bool
    visibility: Visibility
    high_lsn: int
    time_us: int


class _Moved(msgspec.Struct):
    """A row of the chunk that an unseen update changed without sending all of it."""

    after: Row
    schema: TableSchema


class ChunkWindow:
    """What the stream did to one table from before a chunk's SELECT until its high mark.

    delivered_before: transactions delivered before the window opened that may not be visible yet (rule 4).
    """

    def __init__(self, oid: int, delivered_before: frozenset[int]) -> None:
        self.oid = oid
        self.delivered_before = delivered_before
        self._transactions: list[tuple[int, list[Change]]] = []

    def note(self, transaction: Transaction) -> None:
        """Remember a delivered transaction's changes of the table."""
        changes = [change for change in transaction.changes if change.table.oid == self.oid]
        if changes:
            self._transactions.append((transaction.xid, changes))

    def apply(self, chunk: Chunk) -> list[Row] | None:
        """The chunk's rows as of its high mark; None when the table's columns changed meanwhile (read it again)."""
        unseen = [
            change
            for xid, changes in self._transactions
            if not chunk.visibility.sees(xid)
            for change in changes
        ]
        if any(change.table.columns != chunk.table.columns for change in unseen):
            return None
        if not chunk.table.key:
            return _as_multiset(chunk.rows, unseen)
        return _by_key(chunk, unseen)


def _by_key(chunk: Chunk, unseen: Iterable[Change]) -> list[Row]:
    key = chunk.table.key
    rows: dict[KeyTuple, Row | None] = {_key(row, key): row for row in chunk.rows}
    moved: list[Row] = []
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
        source = partial.pop(old, None) or rows.get(old)
        rows.pop(old, None)
        if change.after is None:
            continue
        new = _key(_filled(change.after, change.before), key)
        rows.pop(new, None)
        partial.pop(new, None)
        if UNCHANGED in change.after and source is not None:
            partial[new] = _filled(change.after, source)
    moved.extend(partial.values())
    return [row for row in rows.values() if row is not None] + moved


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
    after: tuple[str, ...],
    *,
    is_partitioned: bool,
    limit: int = CHUNK_ROWS,
) -> Chunk:
    """Read the rows behind key ``after``; all rows of a table without a key.

    connection: autocommit, with the same pinned settings as the stream. Raises psycopg's errors.
    """
    query = _chunk_query(table, after, is_partitioned=is_partitioned, limit=limit)
    kinds = row_kinds([column.type_oid for column in table.columns])
    rows: list[Row] = []
    last_line = b""
    async with connection.cursor() as cursor:
        await cursor.execute("begin isolation level repeatable read read only")
        try:
            await cursor.execute("select pg_catalog.pg_current_snapshot()::text, extract(epoch from clock_timestamp())")
            found = await cursor.fetchone()
            assert found is not None
            visibility = Visibility.parse(str(found[0]))
            time_us = int(float(str(found[1])) * 1_000_000)
            async with cursor.copy(query) as copy:
                pending = 0
                async for block in copy:
                    last_line = bytes(block)
                    rows.append(copy_row(last_line, kinds))
                    pending += 1
                    if pending == 500:
                        pending = 0
                        await asyncio.sleep(0)  # the stream must be answered while a chunk is read
        finally:
            await cursor.execute("rollback")
        await cursor.execute("select pg_catalog.pg_current_wal_insert_lsn()::text")
        mark = await cursor.fetchone()
        assert mark is not None
    after_text = _key_text(last_line, table) if rows and table.key else after
    return Chunk(
        table=table,
        rows=rows,
        after=after_text,
        is_last=not table.key or len(rows) < limit,
        visibility=visibility,
        high_lsn=_end_of_last_record(parse_lsn(str(mark[0]))),
        time_us=time_us,
    )


def _end_of_last_record(insert_lsn: int) -> int:
    """The insert position without the header of a page nobody has written to yet.

    The stream's keepalives name ends of records; on an idle server they would never reach a position behind such a header.
    """
    into_page = insert_lsn % _WAL_PAGE
    return insert_lsn - into_page if into_page <= _LONGEST_PAGE_HEADER else insert_lsn


def _chunk_query(table: TableSchema, after: tuple[str, ...], *, is_partitioned: bool, limit: int) -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    # ONLY: children of an inheritance parent are tables of their own; a partitioned root has no rows of its own.
    select = sql.SQL("select {} from {}{}").format(
        columns,
        sql.SQL("" if is_partitioned else "only "),
        sql.Identifier(table.schema, table.table),
    )
    if table.key:
        key = sql.SQL(", ").join(sql.Identifier(table.columns[index].name) for index in table.key)
        if after:
            values = sql.SQL(", ").join(sql.Literal(text) for text in after)
            select += sql.SQL(" where ({}) > ({})").format(key, values)
        select += sql.SQL(" order by {} limit {}").format(key, sql.Literal(limit))
    return sql.SQL("copy ({}) to stdout").format(select)


def _key_text(line: bytes, table: TableSchema) -> tuple[str, ...]:
    """The server's own text of the key in a COPY line, to be given back as literals."""
    row = copy_row(line, bytes(len(table.columns)))
    texts = [row[index] for index in table.key]
    if any(isinstance(text, Absent) or text is None for text in texts):
        raise psycopg.DataError(f"a key of {table.name} is not valid text in the database's encoding")
    return tuple([str(text) for text in texts])


def unseen_deliveries(delivered: Iterable[int], visibility: Visibility) -> list[int]:
    """Of delivered transactions, those that a SELECT with this visibility doesn't see."""
    return [xid for xid in delivered if not visibility.sees(xid)]
