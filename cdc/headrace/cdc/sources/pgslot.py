"""The replication slot: making it, and what there is to wait for meanwhile.

Making a slot waits for every transaction that was writing when it began; on a standby moreover for the primary's next record of its
running transactions, which an idle primary may not write for long. ``pg_log_standby_snapshot()`` on the primary writes one (PostgreSQL
18 manual, "Logical Decoding Concepts", section on standbys). A failover slot (from 17 on) is copied to standbys whose
``sync_replication_slots`` is on, and survives their promotion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec
import psycopg
from psycopg import sql

from headrace.cdc.position import parse_lsn

_log = logging.getLogger("headrace.source")

_EXPLAIN_AFTER_S = 1.0
_HELP_AFTER_S = 0.05
_ASK_EVERY_S = 1.0
_OLDER_POLL_S = 0.05
FAILOVER_FROM = 170_000

_Connection = psycopg.AsyncConnection[tuple[object, ...]]


class SlotWait(msgspec.Struct, frozen=True):
    """What the making of a slot is told of its surroundings.

    primary_conninfo: where pg_log_standby_snapshot() may be called; None when nobody said. say: shows the reason of the wait.
    """

    source: str
    is_standby: bool
    primary_conninfo: str | None
    say: Callable[[str], None]


async def create_slot(connection: _Connection, slot: str, *, failover: bool, wait: SlotWait) -> int:
    """Create a logical slot; the result is the LSN that a stream from it begins at.

    connection: made with ``replication=database``. Cancelled or failed, no slot is left. Raises psycopg's errors.
    """
    options = "(SNAPSHOT 'nothing', FAILOVER)" if failover else "NOEXPORT_SNAPSHOT"
    query = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput " + options).format(sql.Identifier(slot))
    made = asyncio.create_task(_row(connection, query))
    try:
        may_help = wait.is_standby and wait.primary_conninfo is not None
        await asyncio.wait([made], timeout=_HELP_AFTER_S if may_help else _EXPLAIN_AFTER_S)
        if not made.done():
            await _explain(made, slot, wait)
        row = await made
    finally:
        if not made.done():
            made.cancel()
            await asyncio.gather(made, return_exceptions=True)
        wait.say("connecting")
    return parse_lsn(str(row[1]))


async def _row(connection: _Connection, query: sql.Composed) -> tuple[object, ...]:
    cursor = await connection.execute(query)
    row = await cursor.fetchone()
    assert row is not None
    return row


async def _explain(made: asyncio.Task[tuple[object, ...]], slot: str, wait: SlotWait) -> None:
    """Say what the slot waits for; on a standby have the primary log it, where we may. Returns once it is made or has failed."""
    if not wait.is_standby:
        reason = (
            f'making slot "{slot}" waits for transactions that were writing when it began; see pg_stat_activity for who '
            "holds one open"
        )
    elif wait.primary_conninfo is None:
        reason = (
            f'making slot "{slot}" on a standby waits until the primary logs its running transactions; to have it at once, '
            "on the primary: select pg_log_standby_snapshot(); (or give primary_dsn, and headrace calls it)"
        )
    else:
        reason = f'making slot "{slot}" on a standby waits until its primary logs its running transactions'
    wait.say(reason)
    _log.log(
        logging.INFO if wait.primary_conninfo is not None else logging.WARNING, "source %s: %s", wait.source, reason
    )
    while not made.done():
        if wait.is_standby and wait.primary_conninfo is not None:
            await _log_running_transactions(wait.primary_conninfo, wait)
        await asyncio.wait([made], timeout=_ASK_EVERY_S)


async def _log_running_transactions(conninfo: str, wait: SlotWait) -> None:
    try:
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as primary:
            await primary.execute("select pg_catalog.pg_log_standby_snapshot()")
    except psycopg.Error as error:
        reason = (
            "the primary (primary_dsn) didn't log its running transactions "
            f"({type(error).__name__}{' ' + error.sqlstate if error.sqlstate else ''}); "
            "as a superuser there: select pg_log_standby_snapshot(); "
            "or: grant execute on function pg_log_standby_snapshot() to the role of primary_dsn"
        )
        wait.say(reason)
        _log.warning("source %s: %s", wait.source, reason)


async def mark_failover(connection: _Connection, slot: str, *, source: str) -> None:
    """Make an existing slot a failover slot; where the server refuses, go on without."""
    try:
        await connection.execute(sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER)").format(sql.Identifier(slot)))
    except psycopg.Error as error:
        _log.warning("source %s: slot %s can't be made a failover slot (%s)", source, slot, type(error).__name__)
    else:
        _log.info("source %s: slot %s is now a failover slot", source, slot)


async def wait_for_older_transactions(connection: _Connection, say: Callable[[str], None]) -> None:
    """Wait until every transaction that began before the slot, or before a table was published, has ended.

    Their changes needn't be in the stream, so the copy must begin only when a SELECT sees them. A transaction can stand
    in the WAL as committed, before the slot's start, and still be invisible: with synchronous replication for long.
    """
    cursor = await connection.execute("select pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text")
    row = await cursor.fetchone()
    assert row is not None
    border = int(str(row[0]))
    while True:
        cursor = await connection.execute("select pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text")
        row = await cursor.fetchone()
        assert row is not None
        if int(str(row[0])) >= border:
            return
        say("waiting for transactions that began before the copy; see pg_stat_activity for who holds one open")
        await asyncio.sleep(_OLDER_POLL_S)
