"""The Postgres source: publication and slot, the stream, the initial copy beside it, and what is confirmed when.

The rules that keep it lossless:

- The stored state, written in the log's own transaction with the events, decides where to go on, never the slot. A slot that was
  confirmed further than the state means a gap, and is refused (P10).
- Only an LSN that the log has made durable is confirmed (P2). An idle server's WAL end is first stored by a heartbeat and then confirmed
  like any other place, so that a quiet database doesn't keep WAL of busy neighbours.
- A keepalive's WAL end counts only outside a transaction: everything before it has then been sent and decoded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import psycopg
from psycopg import sql

from headrace.cdc.config import EventConfig
from headrace.cdc.decode.pgoutput import PgOutputDecoder, Transaction
from headrace.cdc.decode.tableversion import TableVersion, changes_of
from headrace.cdc.errors import HeadraceError, HistoryMismatch, SourceRefused, SourceUnavailable
from headrace.cdc.event import Change
from headrace.cdc.position import format_lsn, parse_lsn
from headrace.cdc.sources import pgslot, preflight, timeline
from headrace.cdc.sources.base import ChangeBatch, SourceStatus
from headrace.cdc.sources.catalogue import Catalogue, Table, primary_keys, read_catalogue, type_names
from headrace.cdc.sources.failover import StandbyCopy
from headrace.cdc.sources.link import WatchedConnection, is_backend_at_work
from headrace.cdc.sources.pgsnapshot import (
    Chunk,
    ChunkWindow,
    SnapshotState,
    TableCopy,
    unseen_deliveries,
)
from headrace.cdc.sources.pgstream import ReplicationStream
from headrace.cdc.sources.pgtables import TableChanged, chunk_changes, new_tables, plan, read_current
from headrace.cdc.sources.postgres_config import PostgresConfig, connect_error, conninfo, safe_name
from headrace.cdc.sources.published import Membership, hold_memberships, memberships

_log = logging.getLogger("headrace.source")

_SLOT_WAIT_S = 5.0
"""How long a start waits for a slot that another connection holds: a killed reader's walsender needs a moment to notice."""
_SILENCE_S = 30.0
"""No answer to a requested keepalive for so long: the link is dead though open."""
_CONFIRM_EVERY_S = 0.1
_MONITOR_EVERY_S = 5.0
_RETRY_CHUNK_S = 0.05
_ASK_AGAIN_S = 1.0


class PostgresState(msgspec.Struct):
    """What the log keeps of this source; a restart goes on from exactly here.

    lsn: everything that committed before it is in the log. versions: of each table, by OID.
    incarnation: part of every change's id; counts histories that one log has taken from this source.
    published: table OID -> its membership in the publication, which must never have changed.
    """

    system_identifier: str
    timeline: int
    database: str
    slot: str
    incarnation: int
    lsn: int
    versions: dict[int, TableVersion]
    snapshot: SnapshotState | None
    published: dict[int, Membership] = {}


class PostgresSource:
    """Reads one database. See sources/base.py for the contract."""

    config_type: ClassVar[type[PostgresConfig]] = PostgresConfig

    def __init__(self, name: str, config: PostgresConfig, events: Mapping[str, EventConfig]) -> None:
        self._name = name
        self._config = config
        self._events = events
        self._slot = config.slot or f"headrace_{name}"
        self._publication = config.publication or f"headrace_{name}"
        self._phase = "connecting"
        self._reason = "not started"
        self._has_streamed = False
        self._retained_bytes: int | None = None
        self._server_lsn = 0
        self._walsender_pid = 0
        self._copy = StandbyCopy(config, source=name, slot=self._slot)
        self._reset()

    def _reset(self) -> None:
        self._admin: WatchedConnection | None = None
        self._copier: WatchedConnection | None = None
        self._fault: HeadraceError | None = None
        self._stream: ReplicationStream | None = None
        self._decoder: PgOutputDecoder | None = None
        self._state: PostgresState | None = None
        self._tables: dict[int, Table] = {}
        self._ready: deque[ChangeBatch] = deque()
        self._durable = 0
        self._confirmed = 0
        self._confirmed_at = 0.0
        self._window: ChunkWindow | None = None
        self._chunk_task: asyncio.Task[Chunk] | None = None
        self._monitor_task: asyncio.Task[None] | None = None
        self._last_emit = 0.0
        self._asked_at: float | None = None
        self._seen_keepalive_us = 0
        self._must_wait = False
        self._is_standby = False

    @property
    def name(self) -> str:
        return self._name

    # start and stop

    async def start(self, state: bytes | None) -> None:
        await self.stop()
        self._reset()
        self._phase = "connecting"
        self._reason = "connecting"
        try:
            await self._start(None if state is None else msgspec.msgpack.decode(state, type=PostgresState))
        except psycopg.Error as error:
            await self.stop()
            raise connect_error(error, config=self._config, source=self._name) from error
        except BaseException:
            await self.stop()
            raise

    async def _start(self, stored: PostgresState | None) -> None:
        self._admin = await self._connect()
        catalogue = await self._catalogue()
        self._is_standby = catalogue.is_standby
        if self._has_streamed and catalogue.free_senders <= 0:
            raise SourceUnavailable(f'the server of source "{self._name}" has no free WAL sender', source=self._name)
        if stored is None or not catalogue.can_replicate:
            # Before the first replication connection: the server refuses it in fewer words, and without the cure.
            preflight.raise_for(self._findings(catalogue, is_first=stored is None), source=self._name)
        current_timeline = await self._hold_timeline(stored)
        if stored is not None:
            self._hold_history(stored, catalogue)
            if catalogue.is_standby:
                await timeline.await_replay(self._admin, stored.lsn, say=self._say, source=self._name)
            stored.timeline = current_timeline
        self._tables = {table.oid: table for table in catalogue.tables}
        if stored is not None:
            await self._hold_published(stored)
        preflight.raise_for(self._findings(catalogue, is_first=stored is None), source=self._name)
        await self._hold_publication(catalogue)
        slot_lsn = await self._hold_slot(catalogue)
        self._state = stored or PostgresState(
            catalogue.system_identifier, current_timeline, catalogue.database, self._slot, 0, slot_lsn, {}, None
        )
        now = await memberships(self._admin, self._publication, list(self._tables))
        self._state.published = {oid: membership for oid, membership in now.items() if membership is not None}
        if self._plan_snapshot():
            await pgslot.wait_for_older_transactions(self._admin, self._say)
        elif self._state.snapshot is not None:
            # It may have come while the source ran, and stopped before the wait was over.
            self._must_wait = any(copy.is_untouched for copy in self._state.snapshot.tables)
        self._decoder = PgOutputDecoder(
            f"{self._name}-{self._state.incarnation}-",
            await type_names(self._admin),
            await primary_keys(self._admin),
            self._state.versions,
        )
        self._decoder.skip_until = self._state.lsn
        self._decoder.message_patterns = tuple(self._config.messages)
        self._durable = self._confirmed = self._state.lsn if stored is not None else 0
        await self._stream_from(self._state.lsn)
        self._has_streamed = True
        self._last_emit = time.monotonic()
        # The first thing the log gets is the state itself: from then on a restart knows where this history began.
        self._ready.append(self._batch([], catalogue.clock_us))
        self._phase = "streaming" if self._state.snapshot is None or self._state.snapshot.is_done else "snapshot"
        self._reason = ""
        if self._phase == "snapshot":
            await self._next_chunk()
        self._monitor_task = asyncio.create_task(self._monitor())
        _log.info(
            "source %s: %s from %s on slot %s of %s",
            self._name,
            "copying tables and streaming" if self._phase == "snapshot" else "streaming",
            format_lsn(self._state.lsn),
            self._slot,
            safe_name(self._config.dsn),
        )

    async def stop(self) -> None:
        for task in (self._chunk_task, self._monitor_task):
            while task is not None and not task.done():
                # Asked again: wait_for of Python 3.11, which psycopg uses, can swallow a cancellation.
                task.cancel()
                await asyncio.wait([task], timeout=_ASK_AGAIN_S)
            if task is not None and not task.cancelled():
                task.exception()  # looked at: what it failed of was told when it mattered
        self._chunk_task = self._monitor_task = None
        if self._stream is not None:
            if self._durable > self._confirmed:
                try:
                    await self._stream.confirm(self._durable)
                except SourceUnavailable:
                    _log.debug(
                        "source %s: the last confirmation wasn't sent; the stored state decides anyway", self._name
                    )
            await self._stream.close()
            self._stream = None
        for connection in (self._copier, self._admin):
            if connection is not None:
                await connection.close()
        self._copier = self._admin = None
        if self._phase != "stopped":
            self._phase = "stopped"
            self._reason = "stopped"

    async def _hold_timeline(self, stored: PostgresState | None) -> int:
        """The server's timeline, once the stored position is known to lie on its history."""
        async with await self._connect(replication=True) as connection:
            known = None if stored is None else stored.timeline
            timelines = await timeline.read_timelines(connection, known=known)
        if stored is not None and stored.system_identifier == timelines.system_identifier:
            timelines.hold(stored.timeline, stored.lsn, source=self._name)
        return timelines.current

    async def _connect(self, *, replication: bool = False, encoding: str = "UTF8") -> WatchedConnection:
        connection = await WatchedConnection.connect(
            conninfo(self._config, replication=replication, encoding=encoding, source=self._name), autocommit=True
        )
        admin = self._admin
        try:
            if admin is None:
                await connection.watch(_SILENCE_S)
            else:
                pid = connection.info.backend_pid
                await connection.watch(_SILENCE_S, is_working=lambda: is_backend_at_work(admin, pid))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _catalogue(self) -> Catalogue:
        assert self._admin is not None
        return await read_catalogue(self._admin, self._config, slot=self._slot, publication=self._publication)

    def _findings(self, catalogue: Catalogue, *, is_first: bool) -> list[preflight.Finding]:
        return preflight.findings(
            catalogue,
            self._config,
            source=self._name,
            slot=self._slot,
            publication=self._publication,
            events=self._events,
            is_first=is_first,
        )

    async def check(self) -> list[preflight.Finding]:
        """All that would go wrong with this source; changes nothing. Raises as ``start`` when the server can't be asked."""
        try:
            self._admin = await self._connect()
            catalogue = await self._catalogue()
            found = self._findings(catalogue, is_first=True)
            return found + await self._copy.findings() if catalogue.slot is not None else found
        except psycopg.Error as error:
            raise connect_error(error, config=self._config, source=self._name) from error
        finally:
            await self.stop()

    def _hold_history(self, stored: PostgresState, catalogue: Catalogue) -> None:
        """Refuse to go on where the stored position isn't a place of this server's history (P10)."""
        if (stored.system_identifier, stored.database) != (catalogue.system_identifier, catalogue.database):
            raise HistoryMismatch(
                f'source "{self._name}" points at another server or database now than the log was filled from '
                f"(database {stored.database}, system {stored.system_identifier})",
                source=self._name,
                advice="point the DSN at the former database, or start a new log (another log.path) for this one",
            )
        slot = catalogue.slot
        if slot is None:
            raise HistoryMismatch(
                f'slot "{self._slot}" of source "{self._name}" was dropped; the changes after '
                f"{format_lsn(stored.lsn)} can't be had any more",
                source=self._name,
            )
        if slot.confirmed_flush_lsn is not None and parse_lsn(slot.confirmed_flush_lsn) > stored.lsn:
            raise HistoryMismatch(
                f'slot "{self._slot}" of source "{self._name}" is at {slot.confirmed_flush_lsn}, past the '
                f"log's position {format_lsn(stored.lsn)}: somebody else read from it, or the log is an older copy",
                source=self._name,
            )
        if not catalogue.is_standby and catalogue.wal_lsn and parse_lsn(catalogue.wal_lsn) < stored.lsn:
            raise HistoryMismatch(
                f'the server of source "{self._name}" is at {catalogue.wal_lsn}, before the log\'s position '
                f"{format_lsn(stored.lsn)}: it was restored from an older backup",
                source=self._name,
            )

    async def _hold_published(self, state: PostgresState) -> None:
        """Refuse to go on behind a time in which the publication didn't send a table."""
        assert self._admin is not None
        hold_memberships(
            state.published,
            await memberships(self._admin, self._publication, list(state.published)),
            {oid: table.full_name for oid, table in self._tables.items()},
            publication=self._publication,
            source=self._name,
        )

    async def _hold_publication(self, catalogue: Catalogue) -> None:
        """Create the publication, or add tables that the configuration has and it hasn't."""
        assert self._admin is not None
        name = sql.Identifier(self._publication)
        publication = catalogue.publication
        if publication is None:
            tables = sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in catalogue.tables)
            await self._admin.execute(
                sql.SQL("create publication {} for table {} with (publish_via_partition_root = true)").format(
                    name, tables
                )
            )
            return
        missing = [table for table in catalogue.tables if table.oid not in publication.table_oids]
        if publication.is_all_tables or not missing:
            return
        await self._admin.execute(
            sql.SQL("alter publication {} add table {}").format(
                name, sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in missing)
            )
        )

    async def _hold_slot(self, catalogue: Catalogue) -> int:
        """The LSN a first start streams from: the slot's own, creating it when it is missing."""
        failover = self._config.failover and not catalogue.is_standby and catalogue.version >= pgslot.FAILOVER_FROM
        slot = catalogue.slot
        if slot is not None:
            if failover and not slot.is_failover and slot.active_pid is None:
                async with await self._connect(replication=True) as connection:
                    await pgslot.mark_failover(connection, self._slot, source=self._name)
            return parse_lsn(slot.confirmed_flush_lsn or "0/0")
        primary = None
        if self._config.primary_dsn is not None:
            primary = conninfo(self._config, source=self._name, field="primary_dsn")
        wait = pgslot.SlotWait(self._name, catalogue.is_standby, primary, self._say)
        async with await self._connect(replication=True) as connection:
            return await pgslot.create_slot(connection, self._slot, failover=failover, wait=wait)

    def _say(self, reason: str) -> None:
        self._reason = reason

    async def _stream_from(self, lsn: int) -> None:
        assert self._admin is not None
        # A SQL_ASCII database may hold bytes that are no UTF-8: asked to convert them, the server would end the stream.
        is_ascii = self._admin.info.parameter_status("server_encoding") == "SQL_ASCII"
        end = time.monotonic() + _SLOT_WAIT_S
        while True:
            connection = await self._connect(replication=True, encoding="SQL_ASCII" if is_ascii else "UTF8")
            stream = ReplicationStream(connection, source=self._name)
            try:
                await stream.start(
                    self._slot,
                    lsn,
                    self._publication,
                    has_messages=bool(self._config.messages) and self._admin.info.server_version >= 140000,
                )
            except psycopg.errors.ObjectInUse as error:
                await stream.close()
                if time.monotonic() < end:
                    # A walsender of ours behind a dead link would hold the slot until wal_sender_timeout.
                    await self._admin.execute(
                        "select pg_catalog.pg_terminate_backend(active_pid) from pg_catalog.pg_replication_slots"
                        " where slot_name = %s and active_pid = %s",
                        [self._slot, self._walsender_pid],
                    )
                    await asyncio.sleep(0.1)
                    continue
                kind = SourceUnavailable if self._has_streamed else SourceRefused
                raise kind(
                    f'slot "{self._slot}" of source "{self._name}" is in use by another reader '
                    f"({str(error).strip().splitlines()[0]})",
                    source=self._name,
                    advice="stop that reader, or name another slot under sources."
                    f'{self._name}.slot; "select * from pg_stat_replication" shows who it is',
                ) from error
            except BaseException:
                await stream.close()
                raise
            self._stream = stream
            self._walsender_pid = connection.info.backend_pid
            return

    # the snapshot

    def _plan_snapshot(self) -> bool:
        """Which tables are still to be copied: all at the first start, later those that are new in the configuration.

        True when there are new ones.
        """
        state = self._state
        assert state is not None
        if self._config.snapshot == "never":
            return False
        state.snapshot, has_new = plan(state.snapshot, self._tables)
        return has_new

    async def _next_chunk(self) -> None:
        """Open the window of the next chunk, then read it beside the stream."""
        state = self._state
        assert state is not None and state.snapshot is not None
        copy = state.snapshot.current()
        if copy is None:
            self._window = None
            self._phase = "streaming"
            state.snapshot.delivered = []
            if self._copier is not None:
                await self._copier.close()
                self._copier = None
            _log.info("source %s: initial copy is done, streaming", self._name)
            return
        self._window = ChunkWindow(copy.oid, frozenset(state.snapshot.delivered))
        self._chunk_task = asyncio.create_task(self._read_chunk(copy))
        self._chunk_task.add_done_callback(lambda _: self._stream.wake() if self._stream is not None else None)

    async def _read_chunk(self, copy: TableCopy) -> Chunk:
        if self._copier is None:
            self._copier = await self._connect()
        if self._must_wait:
            assert self._admin is not None
            await pgslot.wait_for_older_transactions(self._admin, self._say)
            self._must_wait = False
            self._reason = ""
        table, chunk = await read_current(self._copier, copy, publication=self._publication)
        self._tables[copy.oid] = table
        return chunk

    async def _finish_chunk(self, transactions: list[Transaction]) -> list[Change]:
        """The rows of a chunk that the stream has passed, as changes; nothing while it hasn't."""
        state, window, task, decoder = self._state, self._window, self._chunk_task, self._decoder
        assert state is not None and state.snapshot is not None and decoder is not None
        if window is None:
            return []
        copy = state.snapshot.current()
        assert copy is not None
        for transaction in transactions:
            if transaction.xid == 0:  # a message: it changes no row
                continue
            window.note(transaction)
            state.snapshot.delivered.append(transaction.xid)
            if copy.oid in self._tables:
                copy.note_moved(transaction, self._tables[copy.oid].identity_columns)
        if task is None or not task.done():
            return []
        try:
            chunk = task.result()
        except TableChanged:
            await asyncio.sleep(_RETRY_CHUNK_S)
            await self._refresh_table(window.oid)
            await self._next_chunk()
            return []
        if not self._has_passed(chunk.high_lsn):
            assert self._stream is not None
            await self._stream.confirm(self._durable, reply=True)
            return []
        if unseen_deliveries(window.delivered_before, chunk.visibility):
            rows = None
            await asyncio.sleep(_RETRY_CHUNK_S)
        else:
            rows = window.apply(chunk)
        if rows is None:
            await self._refresh_table(window.oid)
            await self._next_chunk()
            return []
        # What this SELECT sees, every later one sees too.
        state.snapshot.delivered = unseen_deliveries(state.snapshot.delivered, chunk.visibility)
        changes = chunk_changes(
            chunk, rows, copy, state.versions, f"{self._name}-{state.incarnation}-s{state.snapshot.number}-"
        )
        copy.rows += len(rows)
        copy.took(chunk)
        self._chunk_task = None
        await self._next_chunk()
        return changes

    def _has_passed(self, lsn: int) -> bool:
        state, decoder = self._state, self._decoder
        assert state is not None and decoder is not None
        return max(state.lsn, 0 if decoder.in_transaction else decoder.wal_end) >= lsn

    async def _refresh_table(self, oid: int) -> None:
        catalogue = await self._catalogue()
        self._tables = {table.oid: table for table in catalogue.tables}
        if oid not in self._tables and self._state is not None and self._state.snapshot is not None:
            for copy in self._state.snapshot.tables:
                if copy.oid == oid:
                    copy.is_done = True

    async def _adopt(self, transactions: list[Transaction]) -> None:
        """Copy tables that come into the stream while it runs: their older rows needn't have been in it."""
        state = self._state
        assert state is not None
        new = new_tables(transactions) - self._tables.keys()
        if not new or self._config.snapshot == "never":
            return
        self._tables = {table.oid: table for table in (await self._catalogue()).tables}
        if self._plan_snapshot():
            self._must_wait = True
            self._phase = "snapshot"
            if self._window is None:
                await self._next_chunk()

    # the stream

    async def read(self) -> ChangeBatch:
        try:
            while not self._ready:
                await self._advance()
        except psycopg.Error as error:
            raise connect_error(error, config=self._config, source=self._name) from error
        return self._ready.popleft()

    async def _advance(self) -> None:
        """One turn: confirm, read what has arrived, decode it, and queue a batch when there is one."""
        stream, decoder, state = self._stream, self._decoder, self._state
        if stream is None or decoder is None or state is None:
            raise SourceUnavailable(f'source "{self._name}" is not started', source=self._name)
        if self._fault is not None:
            raise self._fault
        now = time.monotonic()
        heartbeat_s = self._config.heartbeat.s
        unconfirmed = self._durable > self._confirmed
        if unconfirmed and now - self._confirmed_at >= _CONFIRM_EVERY_S:
            await self._confirm()
        if self._asked_at is not None and now - max(self._asked_at, stream.heard_at) > _SILENCE_S:
            raise SourceUnavailable(
                f'the server of source "{self._name}" has not answered for {_SILENCE_S:.0f} s', source=self._name
            )
        wait_s = max(0.0, self._last_emit + heartbeat_s - now)
        if wait_s == 0.0 and self._asked_at is None:
            await self._confirm(reply=True)
            self._asked_at = now
        if self._asked_at is not None:
            wait_s = 1.0
        if unconfirmed:
            wait_s = min(wait_s, _CONFIRM_EVERY_S)
        if self._chunk_task is not None and self._chunk_task.done():
            wait_s = min(wait_s, 0.01)
        frames = await stream.frames(wait_s)
        await self._decode(frames)
        if decoder.reply_requested:
            decoder.reply_requested = False
            await self._confirm()
        if frames:
            # Any frame proves that the link lives; a keepalive is still awaited for its time.
            self._asked_at = None if self._asked_at is None else time.monotonic()
        transactions = decoder.transactions
        decoder.transactions = []
        if transactions:
            state.lsn = transactions[-1].end_lsn
            changes = changes_of(transactions)
            await self._adopt(transactions)
            time_us = transactions[-1].commit_us
        else:
            changes = []
            time_us = decoder.server_time_us
        has_keepalive = decoder.server_time_us > self._seen_keepalive_us
        self._seen_keepalive_us = decoder.server_time_us
        if has_keepalive:
            self._asked_at = None
            self._server_lsn = max(self._server_lsn, decoder.wal_end)
            if not decoder.in_transaction:
                state.lsn = max(state.lsn, decoder.wal_end)
        reads = await self._finish_chunk(transactions) if self._window is not None else []
        if reads:
            changes = [*changes, *reads]
            time_us = max(time_us, reads[-1].committed_us)
        if changes:
            self._ready.append(self._batch(changes, time_us))
        elif (transactions or has_keepalive) and time.monotonic() - self._last_emit >= heartbeat_s:
            self._ready.append(self._batch([], time_us, is_heartbeat=True))

    async def _decode(self, frames: list[bytes]) -> None:
        decoder = self._decoder
        assert decoder is not None and self._admin is not None
        done = decoder.feed(frames)
        while done < len(frames):
            oid = decoder.wants_key_of
            decoder.wants_key_of = 0
            known = await primary_keys(self._admin, oid=oid)
            decoder.primary_keys[oid] = known.get(oid, ())
            done = decoder.feed(frames, done)

    def _batch(self, changes: list[Change], time_us: int, *, is_heartbeat: bool = False) -> ChangeBatch:
        state = self._state
        assert state is not None
        self._last_emit = time.monotonic()
        return ChangeBatch(
            changes, msgspec.msgpack.encode(state), state.lsn, time_us, format_lsn(state.lsn), is_heartbeat
        )

    async def _confirm(self, *, reply: bool = False) -> None:
        assert self._stream is not None
        await self._stream.confirm(self._durable, reply=reply)
        self._confirmed = self._durable
        self._confirmed_at = time.monotonic()

    def durable(self, mark: Any) -> None:
        self._durable = max(self._durable, mark)
        if self._stream is not None and time.monotonic() - self._confirmed_at >= _CONFIRM_EVERY_S:
            self._stream.wake()

    # numbers

    async def _monitor(self) -> None:
        """Ask the server now and then what it keeps for us, and whether its publication still sends everything.

        A failed question is only a number less, unless the connection is gone with it.
        """
        connection = self._admin
        assert connection is not None
        while True:
            try:
                cursor = await connection.execute(
                    "select s.lsn::text, (s.lsn - r.restart_lsn)::bigint from (select case when pg_catalog.pg_is_in_recovery()"
                    " then pg_catalog.pg_last_wal_replay_lsn() else pg_catalog.pg_current_wal_lsn() end as lsn) s,"
                    " pg_catalog.pg_replication_slots r where r.slot_name = %s",
                    [self._slot],
                )
                row = await cursor.fetchone()
                if row is not None and row[0] is not None:
                    self._server_lsn = max(self._server_lsn, parse_lsn(str(row[0])))
                    self._retained_bytes = None if row[1] is None else int(str(row[1]))
                if self._is_standby:
                    await self._follow_promotion(connection)
                assert self._state is not None
                await self._hold_published(self._state)
            except HistoryMismatch as error:
                self._fail(error)
            except psycopg.Error as error:
                _log.debug("source %s: no slot figures (%s)", self._name, type(error).__name__)
                if connection.closed:
                    self._fail(connect_error(error, config=self._config, source=self._name))
            await self._copy.ask()
            await asyncio.sleep(_MONITOR_EVERY_S)

    async def _follow_promotion(self, connection: WatchedConnection) -> None:
        """A stream goes on over its standby's promotion; the state must then name the new timeline."""
        cursor = await connection.execute(timeline.TIMELINE_NOW)
        row = await cursor.fetchone()
        if row is not None and row[0] is not None and self._state is not None:
            self._state.timeline = max(self._state.timeline, int(str(row[0])))

    def _fail(self, error: HeadraceError) -> None:
        """Let the next turn of ``read`` raise the error."""
        self._fault = error
        if self._stream is not None:
            self._stream.wake()

    def status(self) -> SourceStatus:
        state = self._state
        snapshot = None
        if state is not None and state.snapshot is not None and not state.snapshot.is_done:
            tables = state.snapshot.tables
            current = state.snapshot.current()
            snapshot = {
                "table": current.name if current is not None else None,
                "tables_done": sum(table.is_done for table in tables),
                "tables": len(tables),
                "rows": sum(table.rows for table in tables),
                "estimated_rows": sum(max(table.estimate, table.rows) for table in tables),
            }
        return SourceStatus(
            phase=self._phase,
            reason=self._reason,
            position=format_lsn(self._durable) if self._durable else "",
            lag_bytes=None if state is None else max(0, self._server_lsn - self._durable),
            retained_bytes=self._retained_bytes,
            snapshot=snapshot,
            is_failover_safe=self._copy.is_safe,
        )
