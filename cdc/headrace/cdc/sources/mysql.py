"""The MySQL and MariaDB source: the binlog from a stored place on, and what is refused at its start.

The stored state, written in the log's own transaction with the events, decides where to go on: by GTIDs where the server has them, else by file
and offset. The binlog fences nobody, so a named lock at the server (GET_LOCK) keeps a second reader with this source's name out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import msgspec
import pymysql

from headrace.cdc.config import EventConfig
from headrace.cdc.decode.binlog import BinlogDecoder, BinlogPlace, BinlogTransaction, Undone, order_of
from headrace.cdc.decode.binlogplace import Prepared
from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.decode.tablemap import KnownTable, Unnamed
from headrace.cdc.decode.tableversion import TableVersion, changes_of
from headrace.cdc.errors import HistoryMismatch, RequestRefused, SourceRefused, SourceUnavailable
from headrace.cdc.event import Change
from headrace.cdc.sources.base import Asked, ChangeBatch, SourceStatus
from headrace.cdc.sources.binlogstream import BinlogStream
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.mysql_config import MySQLConfig, connection_arguments, safe_name, server_error
from headrace.cdc.sources.mysqlasked import asked_names, hold_condition
from headrace.cdc.sources.mysqlcatalogue import Catalogue
from headrace.cdc.sources.mysqlcopy import MySQLCopier, TableCopy
from headrace.cdc.sources.mysqlmonitor import BinlogFiles
from headrace.cdc.sources.mysqlpreflight import findings, rights, unreadable, without_key
from headrace.cdc.sources.mysqlserver import MySQLServer, ServerFacts
from headrace.cdc.sources.mysqltable import CopiedTable, read_collations, read_table
from headrace.cdc.sources.preflight import Finding, raise_for
from headrace.cdc.sources.preparedrows import PreparedRows
from headrace.cdc.sources.spill import default_folder

_log = logging.getLogger("headrace.source")

SILENCE_S = 30.0
_ASK_EVERY_S = 5.0


class MySQLState(msgspec.Struct):
    """What the log keeps of this source. Fields are only ever appended, with a default.

    server: its UUID, or for MariaDB its domain and id: of another one only GTIDs mean anything. gtids: text of everything that is in the log.
    incarnation: part of every change's id. last_copy: the highest number of a copy that a person asked for. prepared: XA transactions
    without an outcome.
    """

    is_mariadb: bool
    server: str
    file: str
    pos: int
    gtids: str
    versions: dict[int, TableVersion]
    incarnation: int = 0
    copies: list[TableCopy] = []
    last_copy: int = 0
    prepared: dict[str, Prepared] = {}
    known: dict[str, KnownTable] = {}


class MySQLSource:
    """Reads one server. See sources/base.py for the contract."""

    config_type: ClassVar[type[MySQLConfig]] = MySQLConfig

    def __init__(self, name: str, config: MySQLConfig, events: Mapping[str, EventConfig]) -> None:
        self._name = name
        self._config = config
        self._events = events
        self._arguments = connection_arguments(config, source=name)
        self._reason = "not started"
        self._is_running = False
        self._undone: dict[str, list[range]] = {}
        """Rows to leave out of a transaction that is read again, by its id."""
        self._reset()

    def _reset(self) -> None:
        self._server: MySQLServer | None = None
        self._stream: BinlogStream | None = None
        self._decoder: BinlogDecoder | None = None
        self._state: MySQLState | None = None
        self._copier: MySQLCopier | None = None
        self._replay: PreparedRows | None = None
        self._catalogue: Catalogue | None = None
        self._unnamed: Unnamed | None = None
        self._frames: deque[bytes] = deque()  # read, and not decoded yet
        self._ready: deque[ChangeBatch] = deque()
        self._durable = ("", BinlogPlace("", 0), 0)
        self._files = BinlogFiles()
        self._server_end = BinlogPlace("", 0)
        self._last_emit = 0.0
        self._asked_at = 0.0
        self._has_copied = False
        self._asking: asyncio.Task[tuple[BinlogPlace, BinlogFiles]] | None = None

    @property
    def name(self) -> str:
        return self._name

    async def start(self, state: bytes | None) -> None:
        await self.stop()
        self._reset()
        self._reason = "connecting"
        try:
            await self._start(None if state is None else msgspec.msgpack.decode(state, type=MySQLState))
        except pymysql.err.MySQLError as error:
            await self.stop()
            raise server_error(error, config=self._config, source=self._name) from error
        except BaseException:
            await self.stop()
            raise

    async def _start(self, stored: MySQLState | None) -> None:
        server = self._server = MySQLServer(self._arguments)
        await server.open()
        facts = await server.facts()
        raise_for(await self._found(server, facts), source=self._name)
        if not await server.lock(f"headrace.{self._name}"):
            raise SourceRefused(
                f'another reader of source "{self._name}" holds its lock at {safe_name(self._config.dsn)}',
                source=self._name,
                advice=f"stop that process (select is_used_lock('headrace.{self._name}') names its connection), or name this source otherwise",
            )
        if stored is None:
            state = MySQLState(facts.is_mariadb, facts.server, facts.end.file, facts.end.pos, facts.gtids, {})
        else:
            state = stored
            self._hold_history(state, facts)
        self._state = state
        gtids = gtids_of(state)
        place = BinlogPlace(state.file, state.pos)
        self._has_gtids = facts.has_gtids
        catalogue = self._catalogue = Catalogue(
            state.known, self._arguments, has_gtids=facts.has_gtids, source=self._name
        )
        if stored is None and facts.variables.get("binlog_row_metadata") != "FULL":
            wanted = [split_name(name) for name in facts.tables if self._wants(*split_name(name))]
            await catalogue.read(server, wanted, place, gtids, state.prepared)
        self._decoder = BinlogDecoder(
            f"{self._name}-{state.incarnation}-",
            state.versions,
            place=place,
            gtids=gtids,
            wants=self._wants,
            prepared=state.prepared,
            undone=self._undone,
            known=catalogue.find,
            altered=catalogue.altered,
        )
        server_id = self._config.server_id or random.randrange(1 << 31, (1 << 32) - 1)
        stream = self._stream = BinlogStream(self._arguments, server_id=server_id, source=self._name)
        await stream.start(place, gtids if facts.has_gtids else type(gtids)())
        self._server_end = facts.end
        known = {(copy.schema, copy.table) for copy in state.copies if copy.number == 0}
        if self._config.snapshot == "initial":
            state.copies += [
                TableCopy(*split_name(name), estimate=facts.rows.get(name, -1))
                for name in facts.tables
                if self._wants(*split_name(name)) and split_name(name) not in known
            ]
        self._copier = MySQLCopier(
            server,
            state.copies,
            state.versions,
            id_prefix=f"{self._name}-{state.incarnation}-",
            is_mariadb=facts.is_mariadb,
            wake=stream.wake,
            say=self._say,
            folder=default_folder(),
            source=self._name,
        )
        if state.server == facts.server:
            self._copier.delivered(place)
        self._copier.go_on(gtids)
        self._ready.append(self._batch([], int(time.time() * 1_000_000)))
        self._is_running = True
        self._reason = ""
        _log.info("source %s: streaming from %s of %s", self._name, gtids or place, safe_name(self._config.dsn))

    def _say(self, reason: str) -> None:
        if self._is_running:
            self._reason = reason

    def _wants(self, schema: str, table: str) -> bool:
        name = f"{schema}.{table}"
        return any(fnmatchcase(name, pattern) for pattern in self._config.tables) and not any(
            fnmatchcase(name, pattern) for pattern in self._config.exclude
        )

    def _hold_history(self, state: MySQLState, facts: ServerFacts) -> None:
        """Raise HistoryMismatch where the stored place isn't one of this server's history (P10)."""
        source, server = self._name, safe_name(self._config.dsn)
        if state.is_mariadb != facts.is_mariadb:
            raise HistoryMismatch(f'source "{source}" points at another kind of server now ({server})', source=source)
        if (facts.has_gtids or facts.is_mariadb) and state.gtids:
            has_all = (
                MariaDBGtids.parse(state.gtids) <= MariaDBGtids.parse(facts.gtids)
                if facts.is_mariadb
                else MySQLGtidSet.parse(state.gtids) <= MySQLGtidSet.parse(facts.gtids)
            )
            if not has_all:
                raise HistoryMismatch(
                    f'{server} is at {facts.gtids or "no transaction"}, and the log of source "{source}" holds {state.gtids}: it was reset, '
                    "restored from an older backup, or is a replica that is behind",
                    source=source,
                    advice="let the replica catch up; else keep the log as it is and start a new one (another log.path)",
                )
            missing = facts.purged - MySQLGtidSet.parse(state.gtids) if not facts.is_mariadb else MySQLGtidSet()
            if missing:
                raise HistoryMismatch(
                    f'{server} has purged {missing}, which the log of source "{source}" lacks', source=source
                )
        elif state.server != facts.server:
            raise HistoryMismatch(
                f'source "{source}" points at another server now ({server}), and file and offset mean nothing there: it has no GTIDs',
                source=source,
            )
        elif (state.file, state.pos) > (facts.end.file, facts.end.pos):
            raise HistoryMismatch(
                f'{server} is at {facts.end}, before the place {state.file}:{state.pos} of the log of source "{source}"',
                source=source,
            )

    async def stop(self) -> None:
        async with AsyncExitStack() as stack:
            if self._server is not None:
                stack.push_async_callback(self._server.close)
            if self._stream is not None:
                stack.push_async_callback(self._stream.close)
            if self._copier is not None:
                stack.push_async_callback(self._copier.close)
            if self._replay is not None:
                stack.push_async_callback(self._replay.close)
            stack.push_async_callback(end, self._asking)
        self._stream = self._asking = self._replay = None
        self._is_running = False
        self._reason = "stopped"

    async def check(self) -> list[Finding]:
        """All that would go wrong with this source; changes nothing. Raises as ``start`` when the server can't be asked."""
        server = MySQLServer(self._arguments)
        try:
            await server.open()
            facts = await server.facts()
            return await self._found(server, facts)
        except pymysql.err.MySQLError as error:
            raise server_error(error, config=self._config, source=self._name) from error
        finally:
            await server.close()

    async def _found(self, server: MySQLServer, facts: ServerFacts) -> list[Finding]:
        """All that is to be said of the server and its tables."""
        collations = await read_collations(server.query)
        tables: list[CopiedTable] = []
        refused: list[Finding] = []
        for name in facts.tables:
            if not self._wants(*split_name(name)):
                continue
            try:
                table = await read_table(server.query, *split_name(name), collations)
            except SourceRefused as error:
                refused.append(Finding("no-copy", "error", name, error.message, error.advice))
                continue
            if table is None:
                continue
            tables.append(table)
            if self._config.snapshot == "initial" and not await server.may_read(*split_name(name)):
                refused.append(unreadable(table.schema, facts.user))
        return findings(facts, self._config, source=self._name, tables=tables, refused=refused, events=self._events)

    # the stream

    async def read(self) -> ChangeBatch:
        try:
            while not self._ready:
                await self._advance()
        except pymysql.err.MySQLError as error:
            raise server_error(error, config=self._config, source=self._name) from error
        except OSError as error:
            raise SourceUnavailable(
                f"source \"{self._name}\" can't keep a table's rows in {default_folder()}: {error}", source=self._name
            ) from error
        return self._ready.popleft()

    async def _advance(self) -> None:
        stream, decoder, copier = self._stream, self._decoder, self._copier
        if stream is None or decoder is None or copier is None:
            raise SourceUnavailable(f'source "{self._name}" is not started', source=self._name)
        if copier.is_giving_out:
            self._next_rows(copier)
            return
        now = time.monotonic()
        await self._ask_end(now)
        if self._replay is not None:
            await self._read_prepared(self._replay)
        else:
            if not self._frames and not decoder.is_unpacking:
                wait_s = max(0.0, self._last_emit + self._config.heartbeat.s - now)
                self._frames.extend(await stream.events(0.0 if self._has_copied else wait_s))
                self._hold_alive(stream, has_heard=bool(self._frames))
            self._decode(decoder)
            self._take(decoder)
            if self._unnamed is not None:
                await self._name_columns(*decoder.began)
        self._has_copied = False
        if self._replay is not None or decoder.has_given or decoder.is_unpacking:
            return  # what is appended now would be taken for the transaction's end
        if copier.has_chunk:
            reads, read_us = await copier.finish(decoder.passed)
            self._has_copied = bool(reads) or copier.is_giving_out
            if reads:
                self._ready.append(self._batch(reads, read_us))
        copier.go_on(decoder.gtids)
        if not self._ready and time.monotonic() - self._last_emit >= self._config.heartbeat.s:
            # The servers' heartbeats have no time of their own.
            self._ready.append(self._batch([], int(time.time() * 1_000_000), is_heartbeat=True))

    def _hold_alive(self, stream: BinlogStream, *, has_heard: bool) -> None:
        if not has_heard and time.monotonic() - stream.heard_at > SILENCE_S:
            raise SourceUnavailable(
                f'the server of source "{self._name}" has not answered for {SILENCE_S:.0f} s', source=self._name
            )

    def _decode(self, decoder: BinlogDecoder) -> None:
        """All that has come, up to a transaction whose rows stand elsewhere, or one that is unpacked in steps."""
        frames = self._frames
        with self._reading_again():
            if decoder.is_unpacking:
                decoder.go_on()
            while frames and not decoder.is_unpacking:
                frame = frames.popleft()
                try:
                    decoder.feed(frame)
                except Unnamed:
                    if not decoder.is_unpacking:
                        frames.appendleft(frame)
                    raise
                if decoder.transactions and decoder.transactions[-1].rows_at is not None:
                    break

    @contextlib.contextmanager
    def _reading_again(self) -> Generator[None]:
        try:
            yield
        except Unnamed as unnamed:
            self._unnamed = unnamed
        except Undone as undone:
            self._undone.setdefault(undone.transaction, []).append(undone.rows)
            raise SourceUnavailable(
                f"transaction {undone.transaction} has rolled back rows that were read before: it is read again without them",
                source=self._name,
            ) from None

    async def _name_columns(self, place: BinlogPlace, gtids: MySQLGtidSet | MariaDBGtids) -> None:
        """What was met in the binlog without names is looked up, for rows from place on; the same event is then decoded again."""
        assert self._unnamed is not None and self._catalogue is not None
        assert self._server is not None and self._state is not None
        unnamed, self._unnamed = self._unnamed, None
        await self._catalogue.read_one(self._server, unnamed.schema, unnamed.table, place, gtids, self._state.prepared)

    def _take(self, decoder: BinlogDecoder) -> None:
        """What the decoder has, as batches: whole transactions together, a part by itself."""
        transactions, decoder.transactions = decoder.transactions, []
        whole: list[BinlogTransaction] = []
        assert self._copier is not None
        for transaction in transactions:
            if transaction.rows_at is not None:
                self._replay = PreparedRows(
                    self._arguments,
                    transaction,
                    decoder=self._decoder_of,
                    source=self._name,
                    has_gtids=self._has_gtids,
                )
                break
            self._copier.see([transaction])
            if transaction.is_part:
                self._give_part(transaction)
            else:
                whole.append(transaction)
        self._give(whole)

    def _decoder_of(self, rows: Prepared, outcome: BinlogTransaction) -> BinlogDecoder:
        assert self._state is not None
        return BinlogDecoder(
            f"{self._name}-{self._state.incarnation}-",
            self._state.versions,
            # By ids it may be another server, where the file's name means nothing.
            place=BinlogPlace("", 0) if self._has_gtids and rows.gtids else rows.place,
            gtids=type(outcome.gtids).parse(rows.gtids),
            wants=self._wants,
            undone=self._undone,
            stands_for=outcome,
            known=None if self._catalogue is None else self._catalogue.find,
        )

    async def _read_prepared(self, replay: PreparedRows) -> None:
        """Some rows of an XA transaction that has committed."""
        parts: list[BinlogTransaction] = []
        with self._reading_again():
            parts = await replay.parts(self._config.heartbeat.s)
        if self._unnamed is not None:
            # No statement can alter a table of a prepared transaction: as it is at the outcome it was then.
            await self._name_columns(replay.outcome.place, replay.outcome.gtids)
        assert self._copier is not None and self._state is not None
        for part in parts:
            self._copier.see([part])
            if part.is_part:
                self._give_part(part)
                continue
            await replay.close()
            self._replay = None
            if self._state.prepared.get(replay.outcome.xa) == replay.outcome.rows_at:
                del self._state.prepared[replay.outcome.xa]
            self._give([part])

    def _give_part(self, part: BinlogTransaction) -> None:
        self._ready.append(ChangeBatch(changes_of([part]), b"", 0, part.commit_us, "", is_part=True))

    def _give(self, whole: list[BinlogTransaction]) -> None:
        if not whole:
            return
        last, state = whole[-1], self._state
        assert state is not None
        state.file, state.pos, state.gtids = last.place.file, last.place.pos, str(last.gtids)
        if self._undone:
            for transaction in whole:
                self._undone.pop(transaction.gtid, None)
        changes = changes_of(whole)
        if changes:
            self._ready.append(self._batch(changes, last.commit_us))

    def _next_rows(self, copier: MySQLCopier) -> None:
        """Some rows of a table that was read whole, as a batch: they go into the log all at once."""
        changes, time_us, is_last = copier.next_part()
        if is_last:
            self._ready.append(self._batch(changes, time_us))
        else:
            self._ready.append(ChangeBatch(changes, b"", 0, time_us, "", is_part=True))

    async def _ask_end(self, now: float) -> None:
        """Where the server's binlog ends, now and then: for the lag that people see."""
        if self._asking is not None and self._asking.done():
            asking, self._asking = self._asking, None
            self._server_end, self._files = asking.result()
        if self._asking is None and now - self._asked_at > _ASK_EVERY_S and self._server is not None:
            self._asked_at = now
            self._asking = asyncio.create_task(self._ask(self._server))
            # Looked at, should the source stop before the answer is.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())

    @staticmethod
    async def _ask(server: MySQLServer) -> tuple[BinlogPlace, BinlogFiles]:
        return await server.end(), await server.files()

    def _batch(self, changes: list[Change], time_us: int, *, is_heartbeat: bool = False) -> ChangeBatch:
        state = self._state
        assert state is not None
        self._last_emit = time.monotonic()
        position = state.gtids or f"{state.file}:{state.pos}"
        place = BinlogPlace(state.file, state.pos)
        if self._decoder is not None and order_of(self._decoder.passed) > order_of(place):
            place = self._decoder.passed  # what is behind the last transaction is none
        mark = (position, place, time_us)
        return ChangeBatch(changes, msgspec.msgpack.encode(state), mark, time_us, position, is_heartbeat)

    def durable(self, mark: Any) -> None:
        self._durable = mark

    async def snapshot(self, tables: Sequence[str], where: str) -> Asked:
        copier, server, state = self._copier, self._server, self._state
        if copier is None or server is None or state is None or not self._is_running:
            raise RequestRefused(
                f'source "{self._name}" is {self._reason or "stopped"}', advice="ask again once it streams"
            )
        try:
            facts = await server.facts()
            known = [name for name in facts.tables if self._wants(*split_name(name))]
            names = asked_names(known, tables, source=self._name)
            collations = await read_collations(server.query)
            for name in names:
                table = await read_table(server.query, *split_name(name), collations)
                await self._hold_asked(server, facts, table, where)
        except pymysql.err.MySQLError as error:
            raise server_error(error, config=self._config, source=self._name) from error
        except SourceRefused as error:
            raise RequestRefused(error.message, advice=error.advice) from error
        state.last_copy += 1
        copier.ask([split_name(name) for name in names], where, number=state.last_copy, rows=facts.rows)
        _log.info("source %s: copying again, as asked (number %d): %s", self._name, state.last_copy, ", ".join(names))
        return Asked(state.last_copy, names)

    async def _hold_asked(self, server: MySQLServer, facts: ServerFacts, table: CopiedTable | None, where: str) -> None:
        if table is None:
            return  # gone since
        found = [without_key(table, source=self._name)] if not table.key else []
        found += rights(facts, msgspec.structs.replace(self._config, snapshot="initial"), [table])
        if not await server.may_read(table.schema.schema, table.schema.table):
            found.append(unreadable(table.schema, facts.user))
        for finding in found:
            if finding.severity == "error":
                raise RequestRefused(f"{finding.object} {finding.message}", advice=finding.cure)
        if where:
            await hold_condition(server, table, where)

    def status(self) -> SourceStatus:
        copying = None if self._copier is None else self._copier.progress()
        running = "streaming" if self._copier is None or self._copier.is_initial_done else "snapshot"
        phase = running if self._is_running else "stopped" if self._reason == "stopped" else "connecting"
        position, place, time_us = self._durable
        lag_bytes = self._files.lag_bytes(place, self._server_end)
        return SourceStatus(
            phase,
            self._reason,
            position,
            lag_bytes=lag_bytes,
            lag_s=None if not time_us else 0.0 if not lag_bytes else max(0.0, time.time() - time_us / 1e6),
            retained_bytes=self._files.total_bytes,
            warnings=self._files.warnings(place, self._server_end),
            snapshot=copying,
            asked=[] if self._copier is None else self._copier.asked(),
        )


def split_name(name: str) -> tuple[str, str]:
    """Schema and table of ``schema.table``."""
    schema, _, table = name.partition(".")
    return schema, table


def gtids_of(state: MySQLState) -> MySQLGtidSet | MariaDBGtids:
    return MariaDBGtids.parse(state.gtids) if state.is_mariadb else MySQLGtidSet.parse(state.gtids)


__all__ = ["MySQLSource"]
