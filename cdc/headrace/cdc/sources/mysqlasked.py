"""Which tables of a MySQL or MariaDB server a person asked to be copied again, and whether that can be done."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import pymysql

from headrace.cdc.errors import RequestRefused
from headrace.cdc.sources.mysqlserver import MySQLServer
from headrace.cdc.sources.mysqltable import CopiedTable, quoted_name


def asked_names(known: Sequence[str], patterns: Sequence[str], *, source: str) -> list[str]:
    """The captured tables, as ``schema.table``, of these names and patterns. known: all of them. Raises RequestRefused."""
    found: dict[str, None] = {}
    for pattern in patterns:
        names = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not names:
            raise RequestRefused(
                f'source "{source}" captures no table {pattern}',
                advice=f"name one as schema.table ({', '.join(sorted(known)[:5])}, ...), or add it to sources.{source}.tables",
            )
        found |= dict.fromkeys(names)
    return list(found)


async def hold_condition(server: MySQLServer, table: CopiedTable, where: str) -> None:
    """Raise RequestRefused for a condition that the server doesn't take for this table, or that can't be had."""
    name = table.schema.name
    if not table.key:
        raise RequestRefused(
            f"{name} isn't read in the order of a key, and is copied whole only: without one, which rows a consumer has can't be told",
            advice="leave --where out, or give the table a primary key",
        )
    try:
        # The connection takes one statement at a time.
        await server.query(
            f"select 1 from {quoted_name(table.schema.schema, table.schema.table)} where ({where}) limit 0"
        )
    except pymysql.err.MySQLError as error:
        if isinstance(error, (pymysql.err.InterfaceError,)) or error.args[0] in (2006, 2013):
            raise
        said = str(error.args[-1]).splitlines()[0]
        raise RequestRefused(
            f"the server doesn't take the condition for {name}: {said}",
            advice="write it as an SQL condition on the table's columns",
        ) from error


__all__ = ["asked_names", "hold_condition"]
