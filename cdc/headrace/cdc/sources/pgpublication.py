"""The publication that headrace makes: which tables, and which rows and columns of them the server doesn't even send (from 15 on).

Both can hurt the application: a server refuses UPDATE and DELETE of a table whose column list or row filter leaves the replica identity
(PostgreSQL 18 manual, "Row Filters" and "Column Lists"). So a list always holds the identity, a table under REPLICA IDENTITY FULL gets none,
and a filter that names other columns is refused before the publication is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import LiteralString, cast

import psycopg
from psycopg import sql

from headrace.cdc.config import EventConfig
from headrace.cdc.errors import SourceRefused
from headrace.cdc.process.privacy import keeps
from headrace.cdc.sources.catalogue import Table

FILTERS_FROM = 150000

_TRIAL = sql.Identifier("headrace_trial")
_COLUMNS_OF_FILTER = """
select a.attname::text from pg_catalog.pg_depend d
  join pg_catalog.pg_publication_rel r on d.classid = 'pg_catalog.pg_publication_rel'::pg_catalog.regclass and d.objid = r.oid
  join pg_catalog.pg_publication p on p.oid = r.prpubid
  join pg_catalog.pg_attribute a on d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
   and a.attrelid = d.refobjid and a.attnum = d.refobjsubid
 where p.pubname = 'headrace_trial' order by a.attnum
"""

_Connection = psycopg.AsyncConnection[tuple[object, ...]]


def listed_columns(table: Table, event: EventConfig | None) -> tuple[str, ...] | None:
    """The columns of a list that leaves out what the configuration does; None where there is nothing to leave out, or it can't be."""
    if event is None or table.identity == "f":
        return None
    names = tuple([column.name for column in table.columns if keeps(event.columns, column.name)])
    if len(names) == len(table.columns) or not set(table.identity_columns) <= set(names):
        return None
    return names


async def table_items(
    connection: _Connection,
    tables: Sequence[Table],
    events: Mapping[str, EventConfig],
    *,
    has_lists: bool,
    source: str,
) -> sql.Composed:
    """The tables of ``create publication`` or ``alter publication ... add table``. Raises SourceRefused for a filter that would hurt."""
    items: list[sql.Composable] = []
    for table in tables:
        event = events.get(table.full_name)
        item: sql.Composable = sql.Identifier(table.schema, table.name)
        names = listed_columns(table, event) if has_lists else None
        if names is not None:
            item += sql.SQL(" ({})").format(sql.SQL(", ").join(sql.Identifier(name) for name in names))
        if event is not None and event.where is not None:
            where = sql.SQL(" where ({})").format(sql.SQL(cast(LiteralString, event.where)))
            await _hold_filter(connection, table, where, source=source)
            item += where
        items.append(item)
    return sql.SQL(", ").join(items)


async def _hold_filter(connection: _Connection, table: Table, where: sql.Composed, *, source: str) -> None:
    """Try the filter in a transaction that is rolled back, and look which columns the server found in it."""
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute(
                sql.SQL("create publication {} for table {}").format(_TRIAL, sql.Identifier(table.schema, table.name))
                + where,
                prepare=True,
            )
            cursor = await connection.execute(_COLUMNS_OF_FILTER.encode())
            used = [str(name) for (name,) in await cursor.fetchall()]
    except (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.errors.FeatureNotSupported) as error:
        said = "; ".join(words for words in (error.diag.message_primary, error.diag.message_detail) if words)
        raise SourceRefused(
            f"the server doesn't take events.{table.full_name}.where as a row filter: {said}",
            source=source,
            advice="write it as an SQL condition on the table's own columns, with built-in functions and operators only",
        ) from error
    outside = [name for name in used if table.identity != "f" and name not in table.identity_columns]
    if outside:
        raise SourceRefused(
            f"events.{table.full_name}.where names {', '.join(outside)}, which the replica identity of {table.full_name} lacks: "
            "the server would refuse every UPDATE and DELETE of it",
            source=source,
            advice=f"alter table {table.full_name} replica identity full; or name columns of its key only",
        )


__all__ = ["FILTERS_FROM", "listed_columns", "table_items"]
