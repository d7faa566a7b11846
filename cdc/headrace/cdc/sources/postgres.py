"""The Postgres source: the stream, the initial copy beside it, and what is confirmed when.

The rules that keep it lossless:

- The stored state, written in the log's own transaction with the events, decides where to go on, never the slot. A slot that was
  confirmed further than the state means a gap, and is refused (P10).
- Only an LSN that the log has made durable is confirmed (P2). An idle server's WAL end is first stored by a heartbeat and then confirmed
  like any other place, so that a quiet database doesn't keep WAL of busy neighbours.
- A keepalive's WAL end counts only outside a transaction: everything before it has then been sent and decoded.
- A transaction too large for memory goes into the log in parts, which nobody sees before the last one (spill.py). Nothing else of this
  source is read meanwhile: it comes later in the commit order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import msgspec
import psycopg

from headrace.cdc.config import EventConfig
from headrace.cdc.decode.pgoutput import PgOutputDecoder
from headrace.cdc.decode.tableversion import changes_of
from headrace.cdc.errors import HeadraceError, HistoryMismatch, RequestRefused, SourceUnavailable
from headrace.cdc.event import Change
from headrace.cdc.position import format_lsn
from headrace.cdc.sources import pgserver, pgstart, timeline
from headrace.cdc.sources.base import Asked, ChangeBatch, SourceStatus
from headrace.cdc.sources.catalogue import primary_keys, type_names
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.failover import StandbyCopy
from headrace.cdc.sources.pgcopy import Copier
from headrace.cdc.sources.pgmonitor import Monitor
from headrace.cdc.sources.pgserver import PostgresServer
from headrace.cdc.sources.pgstate import PostgresState
from headrace.cdc.sources.pgstream import ReplicationStream
from headrace.cdc.sources.postgres_config import PostgresConfig
from headrace.cdc.sources.preflight import Finding
from headrace.cdc.sources.published import memberships
from headrace.cdc.sources.spill import Replay, Spills

_log = logging.getLogger("headrace.source")

_CONFIRM_EVERY_S = 0.1
_SIGN_OF_LIFE_S = 1.0
"""While a large transaction is replayed nothing is read, and the server would take our silence for death (wal_sender_timeout)."""
_SPILL_BYTES = 2 << 20
"""A transaction of which so many bytes came without its end goes to disk; decoded rows take about eight times as much memory."""


class PostgresSource:
    """Reads one database. See sources/base.py for the contract."""

    config_type: ClassVar[type[PostgresConfig]] = PostgresConfig

    def __init__(self, name: str, config: PostgresConfig, events: Mapping[str, EventConfig]) -> None:
        self._name = name
        self._config = config
        self._server = PostgresServer(name, config, events)
        self._standby_copy = StandbyCopy(config, source=name, slot=self._server.slot)
        self._spills = Spills(config.spill_path, source=name)
        self._is_running = False
        self._reason = "not started"
        self._has_streamed = False
        self._walsender_pid = 0
        self._reset()

    def _reset(self) -> None:
        self._fault: BaseException | None = None
        self._stream: ReplicationStream | None = None
        self._decoder: PgOutputDecoder | None = None
        self._state: PostgresState | None = None
        self._copier: Copier | None = None
        self._monitor: Monitor | None = None
        self._monitor_task: asyncio.Task[None] | None = None
        self._ready: deque[ChangeBatch] = deque()
        self._frames: list[bytes] = []  # read, and not decoded yet
        self._since_begin: list[bytes] = []  # of the transaction under way
        self._replay: Replay | None = None
        self._has_copied = False
        self._durable = 0
        self._durable_us = 0
        self._confirmed = 0
        self._confirmed_at = 0.0
        self._server_lsn = 0
        self._last_emit = 0.0
        self._asked_at: float | None = None
        self._seen_keepalive_us = 0

    @property
    def name(self) -> str:
        return self._name

    # start and stop

    async def start(self, state: bytes | None) -> None:
        await self.stop()
        self._reset()
        self._reason = "connecting"
        try:
            await self._start(None if state is None else msgspec.msgpack.decode(state, type=PostgresState))
        except psycopg.Error as error:
            await self.stop()
            raise self._server.error(error) from error
        except BaseException:
            await self.stop()
            raise

    async def _start(self, stored: PostgresState | None) -> None:
        server = self._server
        is_first = stored is None
        await server.open()
        catalogue = await server.catalogue()
        if self._has_streamed and catalogue.free_senders <= 0:
            raise SourceUnavailable(f'the server of source "{self._name}" has no free WAL sender', source=self._name)
        if is_first or not catalogue.can_replicate:
            # Before the first replication connection: the server refuses it in fewer words, and without the cure.
            server.hold(catalogue, is_first=is_first)
        current_timeline = await pgstart.hold_timeline(server, stored)
        gap: HistoryMismatch | None = None
        if stored is not None:
            pgstart.hold_history(server, stored, catalogue)
            gap = pgstart.slot_gap(server, stored, catalogue)
            if gap is None:
                if catalogue.is_standby:
                    await timeline.await_replay(server.admin, stored.lsn, say=self._say, source=self._name)
                stored.timeline = current_timeline
                try:
                    await pgstart.hold_published(server, stored)
                except HistoryMismatch as error:
                    gap = error
            if gap is not None:
                catalogue = await pgstart.start_over(server, stored, catalogue, gap)
        server.hold(catalogue, is_first=is_first or gap is not None)
        await pgstart.hold_publication(server, catalogue)
        slot_lsn = await pgstart.hold_slot(server, catalogue, self._say)
        if stored is None or gap is not None:
            state = PostgresState(
                catalogue.system_identifier, current_timeline, catalogue.database, server.slot, 0, slot_lsn, {}, None
            )
            if stored is not None:
                state.incarnation, state.versions = stored.incarnation + 1, stored.versions
        else:
            state = stored
        self._state = state
        now = await memberships(server.admin, server.publication, list(server.tables))
        state.published = {oid: membership for oid, membership in now.items() if membership is not None}
        self._copier = Copier(server, state, wake=self._wake, say=self._say, folder=self._spills.folder)
        await self._copier.plan()
        decoder = self._decoder = PgOutputDecoder(
            f"{self._name}-{state.incarnation}-",
            await type_names(server.admin),
            await primary_keys(server.admin),
            state.versions,
        )
        decoder.skip_until = state.lsn
        decoder.message_patterns = tuple(self._config.messages)
        self._durable = self._confirmed = 0 if is_first or gap is not None else state.lsn
        self._stream = await pgstart.open_stream(
            server, state.lsn, former_pid=self._walsender_pid, is_first=not self._has_streamed
        )
        self._walsender_pid = self._stream.backend_pid
        self._has_streamed = True
        # The first thing the log gets is the state itself: from then on a restart knows where this history began.
        emptied = self._copier.emptied(slot_lsn, catalogue.clock_us) if gap is not None else []
        self._ready.append(self._batch(emptied, catalogue.clock_us))
        self._is_running = True
        self._reason = ""
        await self._copy_on(self._copier)
        self._monitor = Monitor(server, state, self._standby_copy, is_standby=catalogue.is_standby, fail=self._fail)
        self._monitor_task = asyncio.create_task(self._monitor.run())
        self._monitor_task.add_done_callback(self._monitor_ended)
        _log.info(
            "source %s: %s from %s on slot %s of %s",
            self._name,
            "streaming" if self._copier.is_done else "copying tables and streaming",
            format_lsn(state.lsn),
            server.slot,
            server,
        )

    async def stop(self) -> None:
        task, self._monitor_task = self._monitor_task, None
        # Each in its turn whatever becomes of the others: a connection left open would hold the slot, or locks.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._server.close)
            stack.callback(self._spills.close)
            if self._replay is not None:
                stack.callback(self._replay.close)
            stack.push_async_callback(self._end_stream)
            if self._copier is not None:
                stack.push_async_callback(self._copier.close)
            stack.push_async_callback(end, task)
        self._is_running = False
        self._reason = "stopped"

    async def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            if self._durable > self._confirmed:
                await stream.confirm(self._durable)
        except SourceUnavailable:
            _log.debug("source %s: the last confirmation wasn't sent; the stored state decides anyway", self._name)
        finally:
            await stream.close()

    async def check(self) -> list[Finding]:
        """All that would go wrong with this source; changes nothing. Raises as ``start`` when the server can't be asked."""
        try:
            await self._server.open()
            catalogue = await self._server.catalogue()
            found = self._server.findings(catalogue, is_first=True)
            return found + await self._standby_copy.findings() if catalogue.slot is not None else found
        except psycopg.Error as error:
            raise self._server.error(error) from error
        finally:
            await self.stop()

    def _say(self, reason: str) -> None:
        self._reason = reason

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.wake()

    def _fail(self, error: HeadraceError) -> None:
        """Let the next turn of ``read`` raise the error."""
        self._fault = error
        self._wake()

    def _monitor_ended(self, task: asyncio.Task[None]) -> None:
        """It runs as long as the source does; a defect of it must not go unseen."""
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()
            self._wake()

    # the stream

    async def read(self) -> ChangeBatch:
        try:
            while not self._ready:
                await self._advance()
        except psycopg.Error as error:
            raise self._server.error(error) from error
        return self._ready.popleft()

    async def _advance(self) -> None:
        """One turn: confirm, read what has arrived, decode it, and queue a batch when there is one."""
        stream, decoder, state, copier = self._stream, self._decoder, self._state, self._copier
        if stream is None or decoder is None or state is None or copier is None:
            raise SourceUnavailable(f'source "{self._name}" is not started', source=self._name)
        if self._fault is not None:
            raise self._fault
        if self._replay is not None or copier.is_giving_out:
            if time.monotonic() - self._confirmed_at >= _SIGN_OF_LIFE_S:
                await self._confirm()
            await asyncio.sleep(0)  # what others wait for goes first
            if self._replay is not None:
                await self._next_part(self._replay, copier)
            else:
                self._next_rows(copier)
            return
        if not self._frames:
            self._frames = await stream.frames(await self._before_wait(stream, copier))
        await self._decode(decoder)
        if decoder.reply_requested:
            decoder.reply_requested = False
            await self._confirm()
        transactions = decoder.transactions
        decoder.transactions = []
        changes: list[Change] = []
        time_us = decoder.server_time_us
        if transactions:
            state.lsn = transactions[-1].end_lsn
            changes = changes_of(transactions)
            await copier.see(transactions)
            time_us = transactions[-1].commit_us
        has_keepalive = decoder.server_time_us > self._seen_keepalive_us
        self._seen_keepalive_us = decoder.server_time_us
        has_passed_all = not decoder.in_transaction and decoder.spilled_commit is None
        if has_keepalive:
            self._asked_at = None
            self._server_lsn = max(self._server_lsn, decoder.wal_end)
            if has_passed_all:
                state.lsn = max(state.lsn, decoder.wal_end)
        self._has_copied = False
        if copier.has_chunk:
            passed_lsn = max(state.lsn, decoder.wal_end if has_passed_all else 0)
            try:
                reads, read_us = await copier.finish(passed_lsn, self._ask_server)
            except OSError as error:
                raise self._spills.refused(error) from error
            if reads:
                changes = [*changes, *reads]
                time_us = max(time_us, read_us)
                self._has_copied = True
        await self._copy_on(copier)
        if changes:
            self._ready.append(self._batch(changes, time_us))
        elif (transactions or has_keepalive) and time.monotonic() - self._last_emit >= self._config.heartbeat.s:
            self._ready.append(self._batch([], time_us, is_heartbeat=True))
        if decoder.spilled_commit is not None:
            commit, decoder.spilled_commit = decoder.spilled_commit, None
            self._replay = self._spills.replay(decoder, commit)

    async def _next_part(self, replay: Replay, copier: Copier) -> None:
        """One part of a large transaction, as a batch."""
        state = self._state
        assert state is not None
        part = await replay.next_part(self._look_up_key)
        if part is not None:
            changes = changes_of([part])
            await copier.see([part])
            if part.is_part:
                self._ready.append(ChangeBatch(changes, b"", 0, part.commit_us, "", is_part=True))
                return
            state.lsn = part.end_lsn
            if changes:
                self._ready.append(self._batch(changes, part.commit_us))
        self._replay = None
        self._asked_at = None  # nothing was read meanwhile: what it was asked may have been answered long ago

    def _next_rows(self, copier: Copier) -> None:
        """Some rows of a table without a key, as a batch: they go into the log all at once."""
        try:
            changes, time_us, is_last = copier.next_part()
        except OSError as error:
            raise self._spills.refused(error) from error
        if is_last:
            self._ready.append(self._batch(changes, time_us))
            self._asked_at = None
        else:
            self._ready.append(ChangeBatch(changes, b"", 0, time_us, "", is_part=True))

    async def _copy_on(self, copier: Copier) -> None:
        try:
            await copier.go_on()
        except OSError as error:
            raise self._spills.refused(error) from error

    async def _before_wait(self, stream: ReplicationStream, copier: Copier) -> float:
        """Confirm what is due, ask a silent server for a sign of life, and say how long to wait for input, in seconds."""
        now = time.monotonic()
        unconfirmed = self._durable > self._confirmed
        if unconfirmed and now - self._confirmed_at >= _CONFIRM_EVERY_S:
            await self._confirm()
        if self._asked_at is not None and now - max(self._asked_at, stream.heard_at) > pgserver.SILENCE_S:
            raise SourceUnavailable(
                f'the server of source "{self._name}" has not answered for {pgserver.SILENCE_S:.0f} s',
                source=self._name,
            )
        wait_s = max(0.0, self._last_emit + self._config.heartbeat.s - now)
        if wait_s == 0.0 and self._asked_at is None:
            await self._ask_server()
            self._asked_at = now
        if self._asked_at is not None:
            wait_s = 1.0
        if unconfirmed:
            wait_s = min(wait_s, _CONFIRM_EVERY_S)
        if copier.has_chunk:
            return 0.0 if self._has_copied else min(wait_s, 0.01)
        return wait_s

    async def _decode(self, decoder: PgOutputDecoder) -> None:
        """Decode what was read, up to a commit whose transaction must be replayed first."""
        if self._frames and self._asked_at is not None:
            # Any frame proves that the link lives; a keepalive is still awaited for its time.
            self._asked_at = time.monotonic()
        while True:
            frames = self._frames
            done = decoder.feed(frames)
            self._frames = frames[done:]
            if not decoder.is_holding:
                self._since_begin = []
            else:
                if decoder.begin_index >= 0:
                    self._since_begin = []
                self._since_begin += frames[max(0, decoder.begin_index) : done]
            if decoder.held_bytes >= _SPILL_BYTES:
                decoder.spill_open(self._since_begin)
                self._since_begin = []
            if decoder.pieces:
                pieces, decoder.pieces = decoder.pieces, []
                self._spills.take(pieces)
            if not decoder.wants_key_of:
                return
            await self._look_up_key()

    async def _look_up_key(self) -> None:
        decoder = self._decoder
        assert decoder is not None
        oid, decoder.wants_key_of = decoder.wants_key_of, 0
        known = await primary_keys(self._server.admin, oid=oid)
        decoder.primary_keys[oid] = known.get(oid, ())

    def _batch(self, changes: list[Change], time_us: int, *, is_heartbeat: bool = False) -> ChangeBatch:
        state = self._state
        assert state is not None
        self._last_emit = time.monotonic()
        return ChangeBatch(
            changes, msgspec.msgpack.encode(state), (state.lsn, time_us), time_us, format_lsn(state.lsn), is_heartbeat
        )

    async def _ask_server(self) -> None:
        """Make it say where it is."""
        await self._confirm(reply=True)

    async def _confirm(self, *, reply: bool = False) -> None:
        assert self._stream is not None
        await self._stream.confirm(self._durable, reply=reply)
        self._confirmed = self._durable
        self._confirmed_at = time.monotonic()

    def durable(self, mark: Any) -> None:
        lsn, time_us = mark
        self._durable = max(self._durable, lsn)
        self._durable_us = max(self._durable_us, time_us)
        if self._stream is not None and time.monotonic() - self._confirmed_at >= _CONFIRM_EVERY_S:
            self._stream.wake()

    def _lag_s(self, server_lsn: int) -> float | None:
        """Age of the newest durable thing by the server's clock, while the server has more; up to a heartbeat when it is idle."""
        if not self._durable_us:
            return None
        return 0.0 if server_lsn <= self._durable else max(0.0, time.time() - self._durable_us / 1e6)

    async def snapshot(self, tables: Sequence[str], where: str) -> Asked:
        copier = self._copier
        if copier is None or not self._is_running:
            raise RequestRefused(
                f'source "{self._name}" is {self._reason or "stopped"}', advice="ask again once it streams"
            )
        try:
            asked = await copier.ask(tables, where)
        except psycopg.Error as error:
            raise self._server.error(error) from error
        _log.info(
            "source %s: copying again, as asked (number %d): %s", self._name, asked.number, ", ".join(asked.tables)
        )
        return asked

    # numbers

    def status(self) -> SourceStatus:
        state, copier, monitor = self._state, self._copier, self._monitor
        if not self._is_running:
            phase = "stopped" if self._reason == "stopped" else "connecting"
        else:
            phase = "streaming" if copier is None or copier.is_initial_done else "snapshot"
        server_lsn = max(self._server_lsn, 0 if monitor is None else monitor.server_lsn)
        return SourceStatus(
            phase=phase,
            reason=self._reason,
            position=format_lsn(self._durable) if self._durable else "",
            lag_bytes=None if state is None else max(0, server_lsn - self._durable),
            lag_s=self._lag_s(server_lsn),
            retained_bytes=None if monitor is None else monitor.wal.retained_bytes,
            wal=None if monitor is None else msgspec.to_builtins(monitor.wal),
            warnings=[] if monitor is None else monitor.warnings(),
            snapshot=None if copier is None else copier.progress(),
            is_failover_safe=self._standby_copy.is_safe,
            asked=[] if copier is None else copier.asked(),
        )
