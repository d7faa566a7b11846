"""What a start holds before it streams: that the stored position is a place of this server's history, the publication, the slot.

A gap is refused here (P8, P10): a slot that is gone, was read by somebody else or belongs to another server; a restored backup; a table
that the publication didn't send for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import psycopg
from psycopg import sql

from headrace.cdc.errors import HistoryMismatch, SourceRefused, SourceUnavailable
from headrace.cdc.position import format_lsn, parse_lsn
from headrace.cdc.sources import pgslot, timeline
from headrace.cdc.sources.catalogue import Catalogue
from headrace.cdc.sources.pgpublication import table_items
from headrace.cdc.sources.pgserver import PostgresServer
from headrace.cdc.sources.pgstate import PostgresState
from headrace.cdc.sources.pgstream import ReplicationStream
from headrace.cdc.sources.postgres_config import conninfo
from headrace.cdc.sources.published import hold_memberships, memberships

_log = logging.getLogger("headrace.source")

_SLOT_WAIT_S = 5.0
"""How long a start waits for a slot that another connection holds: a killed reader's walsender needs a moment to notice."""
_SLOT_POLL_S = 0.1
DECODING_MEMORY = "4MB"
"""What the server gathers of open transactions before it streams the largest (logical_decoding_work_mem). It sends nothing else while
it streams: with its own default, 64 MB, others' commits waited for two seconds."""


async def hold_timeline(server: PostgresServer, stored: PostgresState | None) -> int:
    """The server's timeline, once the stored position is known to lie on its history. Raises HistoryMismatch."""
    async with await server.connect(replication=True) as connection:
        known = None if stored is None else stored.timeline
        timelines = await timeline.read_timelines(connection, known=known)
    if stored is not None and stored.system_identifier == timelines.system_identifier:
        timelines.hold(stored.timeline, stored.lsn, source=server.name)
    return timelines.current


def hold_history(server: PostgresServer, stored: PostgresState, catalogue: Catalogue) -> None:
    """Raise HistoryMismatch where the stored position isn't a place of this server's history (P10)."""
    source = server.name
    if (stored.system_identifier, stored.database) != (catalogue.system_identifier, catalogue.database):
        raise HistoryMismatch(
            f'source "{source}" points at another server or database now than the log was filled from '
            f"(database {stored.database}, system {stored.system_identifier})",
            source=source,
            advice="point the DSN at the former database, or start a new log (another log.path) for this one",
        )
    if not catalogue.is_standby and catalogue.wal_lsn and parse_lsn(catalogue.wal_lsn) < stored.lsn:
        raise HistoryMismatch(
            f'the server of source "{source}" is at {catalogue.wal_lsn}, before the log\'s position '
            f"{format_lsn(stored.lsn)}: it was restored from an older backup",
            source=source,
        )


def slot_gap(server: PostgresServer, stored: PostgresState, catalogue: Catalogue) -> HistoryMismatch | None:
    """Why the slot doesn't lead on from the stored position (P8); None: it does, or the preflight tells."""
    source, config = server.name, server.config
    slot = catalogue.slot
    if slot is None:
        return HistoryMismatch(
            f'slot "{server.slot}" of source "{source}" was dropped; the changes after '
            f"{format_lsn(stored.lsn)} can't be had any more",
            source=source,
        )
    if slot.confirmed_flush_lsn is not None and parse_lsn(slot.confirmed_flush_lsn) > stored.lsn:
        return HistoryMismatch(
            f'slot "{server.slot}" of source "{source}" is at {slot.confirmed_flush_lsn}, past the '
            f"log's position {format_lsn(stored.lsn)}: somebody else read from it, or the log is an older copy",
            source=source,
        )
    if config.on_gap != "snapshot":
        return None
    if slot.wal_status == "lost" or slot.restart_lsn is None:
        return HistoryMismatch(f'slot "{server.slot}" of source "{source}" is lost', source=source)
    drop = config.wal_budget.drop
    if drop is not None and catalogue.wal_lsn:
        kept = parse_lsn(catalogue.wal_lsn) - parse_lsn(slot.restart_lsn)
        if kept > drop.bytes:
            return HistoryMismatch(
                f'slot "{server.slot}" of source "{source}" keeps {kept >> 20} MiB of WAL, more than wal_budget.drop',
                source=source,
            )
    return None


async def start_over(
    server: PostgresServer, stored: PostgresState, catalogue: Catalogue, gap: HistoryMismatch
) -> Catalogue:
    """Drop the slot, behind a gap that on_gap allows to heal; the catalogue without it. Raises the gap where it doesn't."""
    if server.config.on_gap != "snapshot":
        raise gap
    _log.warning(
        "source %s: %s; starting over behind %s with an empty log of its tables and a new copy (on_gap: snapshot)",
        server.name,
        gap.message,
        format_lsn(stored.lsn),
    )
    if catalogue.slot is None:
        return catalogue
    try:
        await server.admin.execute("select pg_catalog.pg_drop_replication_slot(%s)", [server.slot])
    except psycopg.errors.ObjectInUse as error:
        raise SourceUnavailable(
            f'slot "{server.slot}" of source "{server.name}" is to be made anew and another reader holds it',
            source=server.name,
        ) from error
    return await server.catalogue()


async def hold_published(server: PostgresServer, state: PostgresState) -> None:
    """Raise HistoryMismatch behind a time in which the publication didn't send a table."""
    hold_memberships(
        state.published,
        await memberships(server.admin, server.publication, list(state.published)),
        {oid: table.full_name for oid, table in server.tables.items()},
        publication=server.publication,
        source=server.name,
    )


async def hold_publication(server: PostgresServer, catalogue: Catalogue) -> None:
    """Create the publication, or add tables that the configuration has and it hasn't."""
    name = sql.Identifier(server.publication)
    publication = catalogue.publication
    missing = [table for table in catalogue.tables if publication is None or table.oid not in publication.table_oids]
    if not missing or (publication is not None and publication.is_all_tables):
        return
    items = await table_items(
        server.admin, missing, server.events, has_lists=server.config.column_lists, source=server.name
    )
    if publication is None:
        query = sql.SQL("create publication {} for table {} with (publish_via_partition_root = true)")
    else:
        query = sql.SQL("alter publication {} add table {}")
    await server.admin.execute(query.format(name, items))


async def hold_slot(server: PostgresServer, catalogue: Catalogue, say: Callable[[str], None]) -> int:
    """The LSN a first start streams from: the slot's own, creating it when it is missing. say: shows why that waits."""
    config = server.config
    failover = config.failover and not catalogue.is_standby and catalogue.version >= pgslot.FAILOVER_FROM
    slot = catalogue.slot
    if slot is not None:
        if failover and not slot.is_failover and slot.active_pid is None:
            async with await server.connect(replication=True) as connection:
                await pgslot.mark_failover(connection, server.slot, source=server.name)
        return parse_lsn(slot.confirmed_flush_lsn or "0/0")
    primary = None
    if config.primary_dsn is not None:
        primary = conninfo(config, source=server.name, field="primary_dsn")
    wait = pgslot.SlotWait(server.name, catalogue.is_standby, primary, say)
    async with await server.connect(replication=True) as connection:
        return await pgslot.create_slot(connection, server.slot, failover=failover, wait=wait)


async def open_stream(server: PostgresServer, lsn: int, *, former_pid: int, is_first: bool) -> ReplicationStream:
    """Stream the slot from lsn. former_pid: our last walsender, which may still hold the slot; 0 for none.

    Raises SourceRefused when another reader has the slot, SourceUnavailable when it isn't the first time (is_first).
    """
    admin = server.admin
    # A SQL_ASCII database may hold bytes that are no UTF-8: asked to convert them, the server would end the stream.
    is_ascii = admin.info.parameter_status("server_encoding") == "SQL_ASCII"
    # A server that can't stream open transactions would write what is above it to its own disk.
    can_stream = admin.info.server_version >= 140000
    memory = DECODING_MEMORY if can_stream else None
    end = time.monotonic() + _SLOT_WAIT_S
    while True:
        connection = await server.connect(
            replication=True, encoding="SQL_ASCII" if is_ascii else "UTF8", decoding_memory=memory
        )
        stream = ReplicationStream(connection, source=server.name)
        try:
            await stream.start(
                server.slot,
                lsn,
                server.publication,
                has_messages=can_stream and bool(server.config.messages),  # they came with 14, too
                has_open=can_stream,
            )
        except psycopg.errors.ObjectInUse as error:
            await stream.close()
            if time.monotonic() < end:
                # A walsender of ours behind a dead link would hold the slot until wal_sender_timeout.
                await admin.execute(
                    "select pg_catalog.pg_terminate_backend(active_pid) from pg_catalog.pg_replication_slots"
                    " where slot_name = %s and active_pid = %s",
                    [server.slot, former_pid],
                )
                await asyncio.sleep(_SLOT_POLL_S)
                continue
            kind = SourceRefused if is_first else SourceUnavailable
            raise kind(
                f'slot "{server.slot}" of source "{server.name}" is in use by another reader '
                f"({str(error).strip().splitlines()[0]})",
                source=server.name,
                advice="stop that reader, or name another slot under sources."
                f'{server.name}.slot; "select * from pg_stat_replication" shows who it is',
            ) from error
        except BaseException:
            await stream.close()
            raise
        return stream


__all__ = [
    "hold_history",
    "hold_publication",
    "hold_published",
    "hold_slot",
    "hold_timeline",
    "open_stream",
    "slot_gap",
    "start_over",
]
