"""Tables that change while they are being copied, and tables that come while the source runs.

A chunk is read with the columns that its table has before *and* after the SELECT, under the same name: a chunk of a table that was altered, renamed,
or dropped meanwhile is read again. Otherwise its rows could stand in the log behind a newer version of their table without
the columns of that version, or be another table's that took the name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import psycopg

from headrace.cdc.decode.tableversion import TableVersion, schema_changes, versioned
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.event import Change, Row, TableSchema
from headrace.cdc.position import format_lsn
from headrace.cdc.sources.catalogue import Table, current_table
from headrace.cdc.sources.pgsnapshot import SnapshotState, TableCopy

_ALTERED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName)
"""A chunk's SELECT names what was renamed or dropped since the catalogue was read."""


class TableChanged(Exception):  # never leaves the source: it is told to read again
    """The table was altered, renamed or dropped while a chunk of it was read."""


_Read = TypeVar("_Read")


async def read_current(
    connection: psycopg.AsyncConnection[tuple[object, ...]],
    oid: int,
    read: Callable[[Table], Awaitable[_Read]],
    *,
    publication: str,
) -> tuple[Table, _Read]:
    """What ``read`` reads of a table, and the table as it is before and after. Raises TableChanged, and psycopg's errors."""
    table = await current_table(connection, oid, publication=publication)
    if table is None:
        raise TableChanged
    schema = table.table_schema()
    try:
        result = await read(table)
    except _ALTERED as error:
        raise TableChanged from error
    after = await current_table(connection, oid, publication=publication)
    if after is None or after.table_schema() != schema:
        raise TableChanged
    return table, result


def plan(snapshot: SnapshotState | None, tables: Mapping[int, Table]) -> tuple[SnapshotState, bool]:
    """The snapshot with every table that isn't in it yet, and whether there are such; what isn't captured any more is done."""
    known = set[int]() if snapshot is None else {copy.oid for copy in snapshot.tables if copy.number == 0}
    new = [
        TableCopy(table.oid, table.full_name, estimate=table.estimated_rows)
        for table in tables.values()
        if table.oid not in known
    ]
    if snapshot is None:
        return SnapshotState(1, new, last_number=1), bool(new)
    for copy in snapshot.tables:
        if copy.oid not in tables:
            copy.is_done = True
    snapshot.tables.extend(new)
    return snapshot, bool(new)


def read_changes(
    schema: TableSchema,
    rows: Sequence[Row],
    copy: TableCopy,
    versions: dict[int, TableVersion],
    *,
    high_lsn: int,
    time_us: int,
    id_prefix: str,
    is_reset: bool = False,
    is_last: bool = True,
) -> list[Change]:
    """Copied rows as changes at their high mark, counted in ``copy.rows``. is_reset: the table is emptied first."""
    table, news = versioned(versions, schema)
    identifier = f"{id_prefix}{table.oid}-"
    position = f"{format_lsn(high_lsn)}:"
    first = copy.rows
    changes: list[Change] = []
    if news is not None:
        changes += schema_changes(
            news, position=f"{position}0", identifier=f"{identifier}{first}", xid=0, time_us=time_us
        )
    last = len(rows) - 1 if is_last else -1
    if is_reset:
        is_empty = is_last and not rows
        changes.append(Change(table, "truncate", None, None, f"{position}0", f"{identifier}t", 0, 0, is_empty, time_us))
    changes.extend(
        [
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
    )
    copy.rows += len(rows)
    return changes


def new_tables(transactions: Iterable[Transaction]) -> set[int]:
    """OIDs that the stream had never named before."""
    return {news.table.oid for transaction in transactions for news in transaction.news if news.is_new_table}
