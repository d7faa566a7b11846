"""The copy of existing rows, lock-free and while the stream runs: the state that is stored, and the reading of one chunk.

A table is read in chunks by its key, each in a short read-only transaction of its own; a chunk is done when the log has it, together
with the place where the next one begins, so a restart goes on at that place. A large table is split into key ranges that several
workers read at once. What makes chunk and stream fit together (design P6):

1. A chunk's SELECT sees the transactions that ``pg_current_snapshot()`` of *its own* transaction says it sees: ``visible``. (An LSN
   taken before the SELECT would not do: a commit can be in the WAL, even streamed, before a SELECT sees it.)
2. The chunk is put into the log at its high mark: the stream has passed the WAL position read *after* the SELECT, so every visible
   transaction stands before it in the log.
3. Of the transactions before it that the SELECT didn't see, those that touched the table were noted (pgwindow.py): their keys
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
without any key can't be read so: it is read whole, and goes into the log as a truncate followed by its rows (pgwhole.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import LiteralString, cast

import msgspec
import psycopg
from psycopg import sql

from headrace.cdc.decode.copytext import copy_row, copy_rows
from headrace.cdc.decode.pgvalue import row_kinds
from headrace.cdc.decode.tableversion import shape
from headrace.cdc.event import UNCHANGED, Absent, Change, Row, TableSchema, key_text
from headrace.cdc.sources.copyout import copy_out
from headrace.cdc.sources.pgvisibility import Visibility, current_visibility, high_mark, replay_position
from headrace.cdc.sources.pgwindow import filled, old_key, row_key

CHUNK_ROWS = 10_000
CHUNK_BYTES = 2 << 20
"""A chunk ends behind the row that reaches it: rows of any width are read in about so much memory."""
SPLIT_ROWS = 200_000
"""A table of more rows, by the planner's estimate, is split into ranges for several workers."""
_RANGES_A_WORKER = 4
"""More than one, since the ranges are only about equal."""
_SAMPLE_ROWS = 2000

_Connection = psycopg.AsyncConnection[tuple[object, ...]]
_Cursor = psycopg.AsyncCursor[tuple[object, ...]]


class KeyRange(msgspec.Struct):
    """A part of a table, by its key, and how far it has been read.

    after: text of the last key read, one a column of the index; empty at the table's beginning. until: of the last key that belongs
    to the range; empty at the table's end.
    """

    after: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    is_read: bool = False


class TableCopy(msgspec.Struct):
    """How far the copy of one table has come; part of the source's stored state. Fields are only ever appended, with a default.

    ranges: empty before the first chunk. again: keys to read once more (rule 5), when all have been read once (is_read). rows: how many
    are in the log. estimate: the planner's row count at the start, for the progress shown to people; -1 unknown. number: of the
    snapshot asked for by a person, 0 for the initial one; where: of its rows, as an SQL condition. key: the columns that order the
    ranges, with their types: under another order of the same keys "behind the last one" means other rows.
    """

    oid: int
    name: str
    after: tuple[str, ...] = ()  # of a state that was stored before there were ranges
    rows: int = 0
    is_done: bool = False
    estimate: int = -1
    is_read: bool = False
    again: list[tuple[str, ...]] = []
    ranges: list[KeyRange] = []
    number: int = 0
    where: str = ""
    key: tuple[str, ...] = ()

    def begin_again(self) -> None:
        """From the first row; rows that came already come once more."""
        self.ranges = []
        self.again = []
        self.is_read = False
        self.key = ()

    @property
    def is_untouched(self) -> bool:
        """Nothing of it has been read."""
        return not (self.is_done or self.is_read or self.after or self.rows)

    def note_moved(self, changes: Sequence[Change], key_columns: Sequence[str]) -> None:
        """Remember the rows that must be read once more. changes: of this table; key_columns: names in the order of the key's index."""
        for change in changes:
            if change.before is None or change.after is None or UNCHANGED not in change.after:
                continue
            names = [column.name for column in change.table.columns]
            order = tuple([names.index(name) for name in key_columns if name in names])
            key = row_key(filled(change.after, change.before), order)
            if old_key(change, order) != key:
                self.again.append(tuple([key_text(value) for value in key]))

    def took(self, chunk: Chunk, part: KeyRange | None) -> None:
        """The log has the chunk. part: its range; None for keys that were read again."""
        if part is None:
            self.again = self.again[chunk.again_count :]
        else:
            part.after = chunk.after
            part.is_read = chunk.is_last
            self.is_read = all(each.is_read for each in self.ranges)
        self.is_done = self.is_read and not self.again


class SnapshotState(msgspec.Struct):
    """All tables of one source's copies. Fields are only ever appended, with a default.

    number: of the initial one; last_number: the highest that was given out. delivered: transactions that reached us and may not be
    visible yet (rule 4).
    """

    number: int
    tables: list[TableCopy]
    delivered: list[int] = []
    last_number: int = 0

    @property
    def is_done(self) -> bool:
        return all(table.is_done for table in self.tables)


class Chunk(msgspec.Struct):
    """Rows as one SELECT saw them, as the lines that the server sent.

    after: key text of the last row. is_last: the range has no more rows. again_count: so many noted keys were asked for.
    """

    table: TableSchema
    lines: list[bytes]
    after: tuple[str, ...]
    is_last: bool
    visibility: Visibility
    high_lsn: int
    time_us: int
    again_count: int = 0

    def rows(self) -> list[Row]:
        """Decoded; of all columns, in the table's order."""
        return copy_rows(self.lines, table_kinds(self.table))


def table_kinds(table: TableSchema) -> bytes:
    """How the columns' text is read; see pgvalue.row_kinds."""
    return row_kinds([column.type_oid for column in table.columns])


async def read_chunk(
    connection: _Connection,
    table: TableSchema,
    copy: TableCopy,
    part: KeyRange | None,
    *,
    order: tuple[int, ...],
    is_partitioned: bool,
    row_filter: str,
    know: Callable[[Visibility], None],
) -> Chunk:
    """Read the rows behind key ``part.after``; without a part, those to be read again.

    order: the key's columns in the order of its index. row_filter: the publication's, "" for none. know: is told what the SELECT sees, as soon as that is known. connection:
    autocommit, with the same pinned settings as the stream. Raises psycopg's errors; UndefinedTable, UndefinedColumn or
    InvalidSchemaName when the table isn't as ``table`` says any more.
    """
    again = copy.again[:CHUNK_ROWS] if part is None else []
    query = _chunk_query(
        table,
        part or KeyRange(),
        again,
        order=order,
        is_partitioned=is_partitioned,
        conditions=[words for words in (row_filter, copy.where) if words],
        limit=CHUNK_ROWS,
    )
    lines: list[bytes] = []
    size = 0

    def take(more: list[bytes]) -> bool:
        nonlocal size
        for line in more:
            lines.append(line)
            size += len(line)
            # The keys to be read again come in no order: a part of them can't be told from the rest.
            if size >= CHUNK_BYTES and not again:
                return False
        return True

    visibility, time_us, is_whole, high_lsn = await read_rows(
        connection, table, query, is_partitioned=is_partitioned, know=know, take=take
    )
    is_last = is_whole and len(lines) < CHUNK_ROWS
    return Chunk(
        table=table,
        lines=lines,
        after=_key_text(lines[-1], table, order) if lines else (part or KeyRange()).after,
        is_last=is_last,
        visibility=visibility,
        high_lsn=high_lsn,
        time_us=time_us,
        again_count=len(again),
    )


async def read_rows(
    connection: _Connection,
    table: TableSchema,
    query: sql.Composed,
    *,
    is_partitioned: bool,
    know: Callable[[Visibility], None],
    take: Callable[[list[bytes]], bool],
) -> tuple[Visibility, int, bool, int]:
    """Hand the lines of one COPY to ``take`` until it says False: what it saw, when (microseconds), whether all came, its high mark."""
    async with connection.cursor() as cursor:
        replayed = await replay_position(cursor)
        await cursor.execute("begin isolation level repeatable read read only")
        try:
            await _hold_columns(cursor, table, is_partitioned=is_partitioned)
            visibility, time_us = await current_visibility(cursor, replayed)
            know(visibility)
            if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
                # No conversion: such a database may hold bytes that are no UTF-8, and the server would refuse to send them.
                await cursor.execute("set local client_encoding = 'SQL_ASCII'")
            is_whole = await copy_out(connection, query.as_bytes(connection), take)
        finally:
            await cursor.execute("rollback")
        return visibility, time_us, is_whole, await high_mark(cursor)


async def split(
    connection: _Connection,
    table: TableSchema,
    copy: TableCopy,
    *,
    order: tuple[int, ...],
    is_partitioned: bool,
    workers: int,
) -> list[KeyRange]:
    """About equal ranges of a large table's key, by a sample of its rows; one range for a small table.

    Wherever the ranges end, all of them together are the table. Raises psycopg's errors.
    """
    count = workers * _RANGES_A_WORKER
    if workers < 2 or copy.where or copy.estimate < SPLIT_ROWS:
        return [KeyRange()]
    key = sql.SQL(", ").join(sql.Identifier(table.columns[index].name) for index in order)
    percent = min(100.0, 100.0 * _SAMPLE_ROWS / max(1, copy.estimate))
    query = sql.SQL(
        "copy (select {} from (select {}, row_number() over (order by {}) as headrace_place, count(*) over () as headrace_count"
        " from {}{} tablesample system ({})) sampled where headrace_place in"
        " (select headrace_count * part / {} from generate_series(1, {}) part) order by {}) to stdout"
    ).format(
        key,
        key,
        key,
        sql.SQL("" if is_partitioned else "only "),
        sql.Identifier(table.schema, table.table),
        sql.Literal(percent),
        sql.Literal(count),
        sql.Literal(count - 1),
        key,
    )
    lines: list[bytes] = []

    def take(more: list[bytes]) -> bool:
        lines.extend(more)
        return True

    await copy_out(connection, query.as_bytes(connection), take)
    of_key = TableSchema(table.schema, table.table, tuple([table.columns[index] for index in order]), ())
    bounds = list(dict.fromkeys(_key_text(line, of_key, tuple(range(len(order)))) for line in lines))
    return [KeyRange(after, until) for after, until in zip([(), *bounds], [*bounds, ()], strict=True)]


async def _hold_columns(cursor: _Cursor, table: TableSchema, *, is_partitioned: bool) -> None:
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


def select_rows(table: TableSchema, *, is_partitioned: bool) -> sql.Composed:
    """The SELECT of all of a table's rows."""
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    # ONLY: children of an inheritance parent are tables of their own; a partitioned root has no rows of its own.
    return sql.SQL("select {} from {}{}").format(
        columns,
        sql.SQL("" if is_partitioned else "only "),
        sql.Identifier(table.schema, table.table),
    )


def condition(words: str) -> sql.Composed:
    """A person's or the server's own SQL, in parentheses."""
    return sql.SQL("({})").format(sql.SQL(cast(LiteralString, words)))


def _chunk_query(
    table: TableSchema,
    part: KeyRange,
    again: Sequence[tuple[str, ...]],
    *,
    order: tuple[int, ...],
    is_partitioned: bool,
    conditions: Sequence[str],
    limit: int,
) -> sql.Composed:
    key = sql.SQL(", ").join(sql.Identifier(table.columns[index].name) for index in order)
    wanted: list[sql.Composable] = [condition(words) for words in conditions]
    if again:
        wanted.append(sql.SQL("({}) in ({})").format(key, sql.SQL(", ").join(_row_literal(keys) for keys in again)))
    if part.after:
        wanted.append(sql.SQL("({}) > {}").format(key, _row_literal(part.after)))
    if part.until:
        wanted.append(sql.SQL("({}) <= {}").format(key, _row_literal(part.until)))
    select = select_rows(table, is_partitioned=is_partitioned)
    if wanted:
        select += sql.SQL(" where ") + sql.SQL(" and ").join(wanted)
    return sql.SQL("copy ({} order by {} limit {}) to stdout").format(select, key, sql.Literal(limit))


def _row_literal(texts: tuple[str, ...]) -> sql.Composed:
    return sql.SQL("({})").format(sql.SQL(", ").join(sql.Literal(text) for text in texts))


def _key_text(line: bytes, table: TableSchema, order: tuple[int, ...]) -> tuple[str, ...]:
    """The server's own text of the key in a COPY line, to be given back as literals."""
    row = copy_row(line, bytes(len(table.columns)))
    texts = [row[index] for index in order]
    if any(isinstance(text, Absent) or text is None for text in texts):
        raise psycopg.DataError(f"a key of {table.name} is not valid text in the database's encoding")
    return tuple([str(text) for text in texts])
