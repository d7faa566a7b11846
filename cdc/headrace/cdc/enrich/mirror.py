"""The newest rows of some captured tables, for steps that look something up: the source's server is never asked.

Fed from the log like any consumer, with its own place in it: rows and place are one transaction of one SQLite file, so a killed process goes on where
it was. A lookup finds a row by the values of some columns; of several rows with the same values it finds any one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from headrace.cdc.consumer import Health
from headrace.cdc.enrich.derived import DerivedFile
from headrace.cdc.errors import ConfigError, LogUnavailable, Trimmed
from headrace.cdc.event import CustomerEvent, RowPart, key_text
from headrace.cdc.log.base import EventLog

_GROUP = "lookup"
_CACHED = 20_000
_COMMIT_EVERY_S = 5.0
_WAIT_S = 5.0

_SCHEMA = """
create table if not exists meta (key text primary key, value) without rowid;
create table if not exists entry (lookup text not null, row text not null, wanted text not null, body blob not null, primary key (lookup, row)) without rowid;
create index if not exists entry_wanted on entry (lookup, wanted);
"""

_object = msgspec.json.Decoder(dict[str, Any]).decode
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.encode


class Lookup(msgspec.Struct, frozen=True):
    """table: ``SCHEMA.TABLE``. by: columns whose values are asked for. columns: what is answered, all when empty."""

    table: str
    by: tuple[str, ...]
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return _encode([self.table, self.by, self.columns]).decode()


class TableMirror(DerivedFile):
    """Rows by lookup, in one file. Any thread may ask; one feeds."""

    schema = _SCHEMA

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lookups: dict[str, list[Lookup]] = {}
        self._known: dict[tuple[str, str], dict[str, Any] | None] = {}
        self.found = 0
        self.missed = 0

    def add(self, lookup: Lookup) -> None:
        """To be called before anything is asked or fed."""
        of_table = self.lookups.setdefault(lookup.table, [])
        if lookup not in of_table:
            of_table.append(lookup)

    def get(self, lookup: Lookup, values: Sequence[Any]) -> dict[str, Any] | None:
        """The answered columns of the row with these values; None when there is none."""
        wanted = wanted_text(values)
        key = (lookup.name, wanted)
        with self._lock:
            if key not in self._known:
                if len(self._known) >= _CACHED:
                    self._known.clear()
                row = (
                    self._open()
                    .execute("select body from entry where lookup = ? and wanted = ? limit 1", key)
                    .fetchone()
                )
                self._known[key] = None if row is None else _object(row[0])
            found = self._known[key]
            if found is None:
                self.missed += 1
            else:
                self.found += 1
            return found

    def place(self, generation: str) -> int:
        """The offset that comes next. A file that was fed from another log, or for other lookups, begins anew."""
        names = sorted(lookup.name for of_table in self.lookups.values() for lookup in of_table)
        with self._lock:
            database = self._open()
            stored = dict(database.execute("select key, value from meta").fetchall())
            if stored.get("generation") == generation and stored.get("lookups") == _encode(names).decode():
                return int(stored["offset"])
            with database:
                database.execute("delete from entry")
                database.execute("delete from meta")
                pairs = [("generation", generation), ("lookups", _encode(names).decode()), ("offset", 0)]
                database.executemany("insert into meta values (?, ?)", pairs)
            self._known.clear()
            return 0

    def feed(self, events: Iterable[CustomerEvent], next_offset: int) -> None:
        """Events of the log up to next_offset, in one transaction."""
        with self._lock, self._open() as database:
            for event in events:
                row = event.row
                if row is not None and (of_table := self.lookups.get(f"{row.schema}.{row.table}")):
                    for lookup in of_table:
                        self._apply(database, lookup, event, row)
            database.execute("update meta set value = ? where key = 'offset'", (next_offset,))

    def _apply(self, database: sqlite3.Connection, lookup: Lookup, event: CustomerEvent, row: RowPart) -> None:
        name = lookup.name
        if row.op == "truncate":
            database.execute("delete from entry where lookup = ?", (name,))
            self._known.clear()
            return
        if row.key is None or row.op in ("schema", "message"):
            return
        key = _row_text(_object(row.key))
        before = {} if row.before is None else _object(row.before)
        former_key = _row_text(
            {**_object(row.key), **{column: before[column] for column in _object(row.key) if column in before}}
        )
        former = database.execute(
            "select wanted, body from entry where lookup = ? and row = ?", (name, former_key)
        ).fetchone()
        if former is not None:
            self._known.pop((name, former[0]), None)
            database.execute("delete from entry where lookup = ? and row = ?", (name, former_key))
        if row.op == "delete":
            return
        # What wasn't sent (an unchanged large value) is as it was.
        held: dict[str, msgspec.Raw] = {} if former is None else _raw_object(former[1])
        held |= _raw_object(event.properties)
        if any(column not in held for column in lookup.by):
            return
        kept = held if not lookup.columns else {one: held[one] for one in {*lookup.columns, *lookup.by} if one in held}
        wanted = wanted_text([msgspec.json.decode(held[column]) for column in lookup.by])
        self._known.pop((name, wanted), None)
        database.execute("insert or replace into entry values (?, ?, ?, ?)", (name, key, wanted, _encode(kept)))


class Fed(Protocol):
    """A file that is fed from the log, and knows how far it is."""

    def place(self, generation: str) -> int: ...

    def feed(self, events: Iterable[CustomerEvent], next_offset: int) -> None: ...


class MirrorFeeder:
    """The consumer that keeps such a file at the log's end. See consumer.py. name: of its place in the log."""

    def __init__(self, mirror: Fed, log: EventLog, name: str = _GROUP) -> None:
        if log.partitions != 1:
            raise ConfigError(
                f"a lookup needs a log of one partition, this one has {log.partitions}",
                problems=(
                    "pipeline.transforms: several partitions can't keep the changes of one row in order for a lookup",
                ),
                advice="start a new log with partitions: 1",
            )
        self._mirror = mirror
        self._log = log
        self._name = name
        self._offset = -1

    @property
    def name(self) -> str:
        return self._name

    def routes(self) -> Iterable[Any]:
        return ()

    def health(self) -> Iterable[Health]:
        return ()

    def status(self) -> dict[str, Any]:
        numbers = (
            {"found": self._mirror.found, "missed": self._mirror.missed}
            if isinstance(self._mirror, TableMirror)
            else {}
        )
        return {"offset": [max(0, self._offset)], **numbers}

    async def catch_up(self) -> None:
        """Everything that the log has now; before the sources begin, so that the first event finds what is there."""
        end = (await self._log.bounds(0)).end
        try:
            await self._begin()
            while self._offset < end:
                await self._step(0.0)
        except sqlite3.Error as error:
            raise LogUnavailable(f"the file of lookups can't be used: {error}") from error

    async def run(self) -> None:
        try:
            await self._begin()
            loop = asyncio.get_running_loop()
            committed_at, committed = 0.0, -1
            while True:
                await self._step(_WAIT_S)
                if committed != self._offset and loop.time() - committed_at > _COMMIT_EVERY_S:
                    # The mirror's own place counts; the log's only holds its retention back.
                    committed_at, committed = loop.time(), self._offset
                    await self._log.commit(self._name, 0, self._offset)
        except sqlite3.Error as error:
            raise LogUnavailable(f"the file of lookups can't be used: {error}") from error

    async def _begin(self) -> None:
        if self._offset < 0:
            self._offset = await asyncio.to_thread(self._mirror.place, self._log.generation)

    async def _step(self, wait_s: float) -> None:
        try:
            batch = await self._log.read(0, self._offset, wait_s=wait_s)
        except Trimmed:
            # Rows that stood there may be missing until they change or are copied again.
            self._offset = (await self._log.bounds(0)).first
            return
        if batch.next_offset > self._offset:
            await asyncio.to_thread(self._mirror.feed, batch.events, batch.next_offset)
            self._offset = batch.next_offset


def wanted_text(values: Sequence[Any]) -> str:
    """One text for the values that a row is asked by: the number 7 and the text "7" are the same, as for customers."""
    return _encode(
        [
            value if value is None or not isinstance(value, str | int | float | bool) else key_text(value)
            for value in values
        ]
    ).decode()


def _row_text(key: dict[str, Any]) -> str:
    return _encode(key, order="sorted").decode()


__all__ = ["Lookup", "MirrorFeeder", "TableMirror"]
