"""Which tables a person asked to be copied again, and whether that can be done."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import LiteralString, cast

import psycopg
from psycopg import sql

from headrace.cdc.errors import RequestRefused
from headrace.cdc.sources.catalogue import Table
from headrace.cdc.sources.pgserver import PostgresServer


async def asked_tables(server: PostgresServer, patterns: Sequence[str], where: str) -> list[Table]:
    """The captured tables of these names and patterns. where: see Source.snapshot. Raises RequestRefused."""
    source = server.name
    known = {table.full_name: table for table in server.tables.values()}
    found: dict[str, Table] = {}
    for pattern in patterns:
        names = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not names:
            raise RequestRefused(
                f'source "{source}" captures no table {pattern}',
                advice=f"name one as schema.table ({', '.join(sorted(known)[:5])}, ...), or add it to sources.{source}.tables",
            )
        found |= {name: known[name] for name in names}
    if where:
        for table in found.values():
            await _hold_condition(server, table, where)
    return list(found.values())


async def _hold_condition(server: PostgresServer, table: Table, where: str) -> None:
    """Raise RequestRefused for a condition that the server doesn't take for this table, or that can't be had."""
    if not table.key_order():
        raise RequestRefused(
            f"{table.full_name} has no key, and is copied whole only: without one, which rows a consumer has can't be told",
            advice="leave --where out, or give the table a primary key",
        )
    query = sql.SQL("select 1 from {} where ({}) limit 0").format(
        sql.Identifier(table.schema, table.name), sql.SQL(cast(LiteralString, where))
    )
    try:
        await server.admin.execute(query, prepare=True)  # prepared, it can only be one statement
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        said = str(error).strip().splitlines()[0]
        raise RequestRefused(
            f"the server doesn't take the condition for {table.full_name}: {said}",
            advice="write it as an SQL condition on the table's columns, with functions and operators by their schema's name "
            "where they aren't built in",
        ) from error
