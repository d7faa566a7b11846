"""Tables that change while they are being copied, and tables that come while the source runs.

A chunk is read with the columns that its table has before *and* after the SELECT, under the same name: a chunk of a table that was altered, renamed,
or dropped meanwhile is read again. Otherwise its rows could stand in the log behind a newer version of their table without
the columns of that version, or be another table's that took the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import psycopg

from headrace.cdc.decode.tableversion import TableVersion, schema_changes, versioned
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.event import Change, Row
from headrace.cdc.position import format_lsn
from headrace.cdc.sources import pgsnapshot
from headrace.cdc.sources.catalogue import Table, current_table
from headrace.cdc.sources.pgsnapshot import Chunk, SnapshotState, TableCopy

_ALTERED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName)
"""A chunk's SELECT names what was renamed or dropped since the catalogue was read."""


class TableChanged(Exception):  # never leaves the source: it is told to read again
    """The table was altered, renamed or dropped while a chunk of it was read."""


async def read_current(
    connection: psycopg.AsyncConnection[tuple[object, ...]], copy: TableCopy, *, publication: str
) -> tuple[Table, Chunk]:
    """The next chunk of a table, and the table as it is at the chunk's high mark. Raises TableChanged, and psycopg's errors."""
    table = await current_table(connection, copy.oid, publication=publication)
    if table is None:
        raise TableChanged
    schema = table.table_schema()
    try:
        chunk = await pgsnapshot.read_chunk(
            connection, schema, copy, order=table.key_order(), is_partitioned=table.is_partitioned
        )
    except _ALTERED as error:
        raise TableChanged from error
    after = await current_table(connection, copy.oid, publication=publication)
    if after is None or after.table_schema() != schema:
        raise TableChanged
    return table, chunk


def plan(snapshot: SnapshotState | None, tables: Mapping[int, Table]) -> tuple[SnapshotState, bool]:
    """The snapshot with every table that isn't in it yet, and whether there are such; what isn't captured any more is done."""
    known = set[int]() if snapshot is None else {copy.oid for copy in snapshot.tables}
    new = [
        TableCopy(table.oid, table.full_name, estimate=table.estimated_rows)
        for table in tables.values()
        if table.oid not in known
    ]
    if snapshot is None:
        return SnapshotState(1, new), bool(new)
    for copy in snapshot.tables:
        if copy.oid not in tables:
            copy.is_done = True
    snapshot.tables.extend(new)
    return snapshot, bool(new)


def chunk_changes(
    chunk: Chunk, rows: Sequence[Row], copy: TableCopy, versions: dict[int, TableVersion], id_prefix: str
) -> list[Change]:
    """The rows of a chunk as changes at its high mark; a table without a key is emptied first, for it comes whole."""
    table, news = versioned(versions, chunk.table)
    identifier = f"{id_prefix}{table.oid}-"
    position = f"{format_lsn(chunk.high_lsn)}:"
    first = copy.rows
    changes: list[Change] = []
    if news is not None:
        changes += schema_changes(
            news, position=f"{position}0", identifier=f"{identifier}{first}", xid=0, time_us=chunk.time_us
        )
    if not table.key:
        changes.append(
            Change(table, "truncate", None, None, f"{position}0", f"{identifier}t", 0, 0, False, chunk.time_us)
        )
    last = len(rows) - 1
    changes.extend(
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
            chunk.time_us,
        )
        for index, row in enumerate(rows)
    )
    return changes


def new_tables(transactions: Iterable[Transaction]) -> set[int]:
    """OIDs that the stream had never named before."""
    return {news.table.oid for transaction in transactions for news in transaction.news if news.is_new_table}
