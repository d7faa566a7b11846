"""``COPY ... TO STDOUT`` in gulps: all lines that have arrived at once, in place of psycopg's one await a line.

Follows the PostgreSQL 18 manual, libpq, "Functions Associated with the COPY Command". psycopg does connection, TLS and waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.waiting import Wait

_GULP_LINES = 1000
"""At most so many lines before the event loop gets its turn: the stream must be answered while a table is read."""
_CANCEL_S = 10.0

_Steps: TypeAlias = PQGen[tuple[list[bytes], bool]]


async def copy_out(
    connection: psycopg.AsyncConnection[tuple[object, ...]], statement: bytes, take: Callable[[list[bytes]], bool]
) -> bool:
    """Hand the lines on as they come; False when ``take`` wanted no more, and the statement was cancelled.

    Then, and after an error, an open transaction can only be rolled back. Raises psycopg's errors; behind any other
    exception the connection must be closed.
    """
    pg = connection.pgconn
    async with connection.lock:
        await connection.wait(_start(pg, statement))
        wants_more = True
        while True:
            try:
                lines, is_end = await connection.wait(_gulp(pg))
            except psycopg.errors.QueryCanceled:
                if wants_more:
                    raise
                return False
            if lines and wants_more and not take(lines):
                wants_more = False
                await connection.cancel_safe(timeout=_CANCEL_S)
            if is_end:
                return wants_more
            await asyncio.sleep(0)


def _start(pg: pq.abc.PGconn, statement: bytes) -> _Steps:
    pg.send_query(statement)
    while pg.flush():
        yield Wait.W
    result = yield from _result(pg)
    if result is None or result.status != pq.ExecStatus.COPY_OUT:
        yield from _refused(pg, result)
    return [], False


def _gulp(pg: pq.abc.PGconn) -> _Steps:
    """The lines that are there, one at least, and whether the last has come."""
    lines: list[bytes] = []
    while True:
        while len(lines) < _GULP_LINES:
            length, data = pg.get_copy_data(1)
            if length > 0:
                lines.append(bytes(data))
            elif length == 0:
                break
            else:
                result = yield from _result(pg)
                if result is None or result.status != pq.ExecStatus.COMMAND_OK:
                    yield from _refused(pg, result)
                while (yield from _result(pg)) is not None:
                    pass
                return lines, True
        if lines:
            return lines, False
        yield Wait.R
        pg.consume_input()


def _result(pg: pq.abc.PGconn) -> PQGen[pq.abc.PGresult | None]:
    """The next result. libpq would wait for one that is on its way, and everything else in the process with it."""
    while pg.is_busy():
        yield Wait.R
        pg.consume_input()
    return pg.get_result()


def _refused(pg: pq.abc.PGconn, result: pq.abc.PGresult | None) -> PQGen[None]:
    """Raise the server's error, once everything that follows it is read: the connection can then be used again."""
    while (yield from _result(pg)) is not None:
        pass
    if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
        raise psycopg.OperationalError("the server didn't answer COPY with rows")
    raise psycopg.errors.error_from_result(result, encoding="utf-8")


__all__ = ["copy_out"]
