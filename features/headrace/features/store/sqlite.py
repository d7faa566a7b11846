"""The embedded online store: one SQLite file that a stock Feast SDK reads (feast 0.67, ``online_stores/sqlite.py``).

Owns the file: Feast's table of each view, cell by cell as Feast writes it, and beside it headrace's private tables, whose
names start with ``_hr_`` while a Feast table starts with a project's letter. Knows nothing of windows or of the log.

::

    "<project>_<view>"   entity_key, feature_name, value, value_text, vector_value, event_ts, created_ts   Feast's own
    _hr_view             id, project, name, checkpoint (JSON array)
    _hr_state            view_id, entity_key, event_time_us, due_us, state
    _hr_contribution     view_id, row_key, entity_key, blob

Durability. One write is one transaction, BEGIN IMMEDIATE to COMMIT, in WAL mode with synchronous=NORMAL: a killed process
loses nothing, and a power cut may lose the newest transactions, always whole and always a suffix, since the WAL is read back
only up to its first bad frame. The checkpoint is in the same transaction as the rows, so what is left is a state that was
once true, and the engine reads the log again from there. The log keeps events by age and size, days as a rule, while the
system writes unsynced pages within about half a minute; and were they gone, the log says Trimmed and the view is
built anew, never a silent gap. FULL would cost 4 ms a flush and save one replay of seconds.

event_ts is whole seconds of true UTC. Feast's reader adds its own time zone: run it with TZ=UTC (docs/decisions/0005-online-stores.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self, TypeVar

from msgspec import Meta

from headrace.cdc.config import Section
from headrace.cdc.errors import StoreError, StoreRefused
from headrace.features.encoding import ViewCodec, codec_of
from headrace.features.spec import EntityKey, FeatureValue, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, FeatureRow, ViewWrite
from headrace.features.store.fence import Fence, decode_checkpoint, encode_checkpoint

_T = TypeVar("_T")

_BUSY_TIMEOUT_S: Final = 5.0
"""As long as Python's, and so Feast's, own default: a writer of another process gets its turn."""

_CACHE_KIB: Final = 32 * 1024
"""At most; taken as the file grows."""

_WAL_PAGES: Final = 4000
"""16 MiB of write-ahead log before its pages go into the file."""

_US_PER_S: Final = 1_000_000

_FORMER: Final = "__former"
"""Ends the name of a view whose place a draft has taken, until the last of its rows is gone. No definition can have such a name."""

_SLICE: Final = 5_000
"""Rows of each table that one transaction removes: a fresh event waits for it some ten milliseconds."""

_PRIVATE_TABLES: Final = """
create table if not exists _hr_view (
  id integer primary key, project text not null, name text not null, checkpoint text not null,
  unique (project, name));
create table if not exists _hr_state (
  view_id integer not null, entity_key blob not null, event_time_us integer not null, due_us integer, state blob not null,
  primary key (view_id, entity_key)) without rowid;
create index if not exists _hr_state_due on _hr_state (view_id, due_us, entity_key) where due_us is not null;
create table if not exists _hr_contribution (
  view_id integer not null, row_key blob not null, entity_key blob not null, blob blob not null,
  primary key (view_id, row_key)) without rowid;
create index if not exists _hr_contribution_entity on _hr_contribution (view_id, entity_key);
"""

# Feast's own statement (SqliteOnlineStore.update), so that ours and Feast's `apply` make the same table.
_FEAST_TABLE: Final = (
    "create table if not exists {table} (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT, "
    "vector_value BLOB, event_ts timestamp, created_ts timestamp,  PRIMARY KEY(entity_key, feature_name))"
)

_REFUSALS: Final = (
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
    "SQLITE_PERM",
    "SQLITE_AUTH",
    "SQLITE_CORRUPT",
    "SQLITE_NOTADB",
)


class SQLiteStoreConfig(Section, frozen=True):
    """Rows in one SQLite file, for one machine. The Feast SDK reads it directly."""

    path: Annotated[
        str, Meta(description="The file; a relative path starts at the configuration's folder.", examples=["online.db"])
    ] = "online.db"


class _Lane:
    """A connection and the one thread that uses it."""

    def __init__(self, name: str) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"headrace-{name}")
        self.connection: sqlite3.Connection | None = None

    async def call(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        def run() -> _T:
            assert self.connection is not None
            return work(self.connection)

        return await asyncio.get_running_loop().run_in_executor(self.pool, run)

    def close(self) -> None:
        if self.connection is not None:
            # Closed in its own thread, where a work that was cancelled on the loop may still be finishing.
            self.pool.submit(self.connection.close).result()
            self.connection = None
        self.pool.shutdown()


class SQLiteStore:
    """See OnlineStore for every method. The engine's calls and the readers' have a connection each.

    Raises StoreError when the file is locked for 5 s or the disk is full; StoreRefused when the folder is missing or not
    writable, or the file is damaged or no database.
    """

    config_type: ClassVar[type[SQLiteStoreConfig]] = SQLiteStoreConfig

    def __init__(self, path: Path, *, project: str) -> None:
        self.path = path
        self.project = project
        self._fence = Fence()
        self._upserts: dict[str, str] = {}
        """View name -> upsert into Feast's table, of the views whose tables are known to be there."""
        self._writer: _Lane | None = None
        self._reader: _Lane | None = None

    @classmethod
    def from_config(cls, section: SQLiteStoreConfig, *, project: str, folder: Path) -> Self:
        return cls((folder / section.path).resolve(), project=project)

    async def open(self) -> None:
        if self._writer is not None:
            raise RuntimeError("the store is open already")
        writer, reader = _Lane("store-write"), _Lane("store-read")
        try:
            await _off_loop(writer, lambda: self._connect(writer, is_writer=True))
            await _off_loop(reader, lambda: self._connect(reader, is_writer=False))
            await self._clear_former(writer)  # a crash in the middle of it has left the rest
        except BaseException:
            writer.close()
            reader.close()
            raise
        self._writer, self._reader = writer, reader
        self._fence = Fence()
        self._upserts.clear()

    async def checkpoint(self, view: ViewSpec) -> Checkpoint | None:
        def work(connection: sqlite3.Connection) -> bytes | None:
            with self._told():
                return self._stored(connection, view)[1]

        stored = await self._lane(self._writer).call(work)
        self._fence.note(view, stored)
        return None if stored is None else decode_checkpoint(view, stored)

    async def states(self, view: ViewSpec, keys: Sequence[EntityKey]) -> list[bytes | None]:
        query = "select state from _hr_state where view_id = ? and entity_key = ?"
        codec = codec_of(view)
        found = await self._select_each(view, query, [codec.encode_key(key) for key in keys])
        return [None if row is None else row[0] for row in found]

    async def contributions(self, view: ViewSpec, row_keys: Sequence[bytes]) -> list[Contribution | None]:
        query = "select entity_key, blob from _hr_contribution where view_id = ? and row_key = ?"
        codec = codec_of(view)
        found = await self._select_each(view, query, row_keys)
        return [None if row is None else Contribution(codec.decode_key(row[0]), row[1]) for row in found]

    async def contributions_of(self, view: ViewSpec, key: EntityKey) -> list[tuple[bytes, bytes]]:
        query = "select row_key, blob from _hr_contribution where view_id = ? and entity_key = ?"
        return await self._select(view, query, codec_of(view).encode_key(key))

    async def due(self, view: ViewSpec, until_us: int, limit: int) -> list[tuple[int, EntityKey]]:
        query = (
            "select due_us, entity_key from _hr_state where view_id = ? and due_us <= ?"
            " order by due_us, entity_key limit ?"
        )
        codec = codec_of(view)
        return [(due_us, codec.decode_key(key)) for due_us, key in await self._select(view, query, until_us, limit)]

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        prepared = [_Prepared(write) for write in writes]

        def work(connection: sqlite3.Connection) -> None:
            with self._told(), _transaction(connection):
                for one in prepared:
                    upsert = self._upserts.get(one.view.name) or self._create_table(connection, one.view)
                    view_id, stored = self._stored(connection, one.view)
                    self._fence.check(one.view, stored, one.checkpoint)
                    one.run(connection, self.project, view_id or self._add_view(connection, one.view), upsert)
            for one in prepared:
                self._fence.note(one.view, encode_checkpoint(one.checkpoint))

        await self._lane(self._writer).call(work)

    async def read(self, view: ViewSpec, features: Sequence[str], keys: Sequence[EntityKey]) -> list[FeatureRow | None]:
        codec = codec_of(view)
        decoder = codec.decoder(features)
        encoded = [codec.encode_key(key) for key in keys]

        def work(connection: sqlite3.Connection) -> list[FeatureRow | None]:
            with self._told(), _transaction(connection, "begin"):  # one snapshot for all keys and both tables
                if not self._has_table(connection, view.name):
                    return [None] * len(encoded)
                cells = (
                    f"select feature_name, value, event_ts from {_table(self.project, view.name)} where entity_key = ?"
                )
                exact = (
                    "select event_time_us from _hr_state join _hr_view on id = view_id"
                    " where project = ? and name = ? and entity_key = ?"
                )
                found: list[FeatureRow | None] = []
                for key in encoded:
                    rows = connection.execute(cells, (key,)).fetchall()
                    if not rows:
                        found.append(None)
                        continue
                    values = {name: value for name, value, _ in rows}
                    time = connection.execute(exact, (self.project, view.name, key)).fetchone()
                    found.append(
                        FeatureRow(
                            decoder.decode([values.get(field.name) for field in decoder.fields]),
                            _event_time_us(rows[0][2], time),
                        )
                    )
                return found

        return await self._lane(self._reader).call(work)

    async def keys(self, view: ViewSpec) -> list[EntityKey]:
        codec = codec_of(view)

        def work(connection: sqlite3.Connection) -> list[EntityKey]:
            with self._told(), _transaction(connection, "begin"):
                if not self._has_table(connection, view.name):
                    return []
                query = f"select distinct entity_key from {_table(self.project, view.name)}"
                return [codec.decode_key(key) for (key,) in connection.execute(query)]

        return await self._lane(self._reader).call(work)

    async def scrub(self, view: ViewSpec, parts: Mapping[str, FeatureValue]) -> tuple[int, int]:
        """See OnlineStore. Takes as much free disk as the file has, and holds up writes meanwhile, readers not."""

        def work(connection: sqlite3.Connection) -> None:
            with self._told():
                # Whatever pages were freed since the file was made still hold what they held.
                connection.execute("vacuum")
                is_busy = connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
            if is_busy:
                raise StoreError(
                    f"online store {self.path}: a reader keeps the write-ahead log, which holds erased bytes",
                    advice="end the transaction of that reader, and ask again",
                )

        await self._lane(self._writer).call(work)
        return 0, 0

    async def drop(self, view: ViewSpec) -> None:
        def work(connection: sqlite3.Connection) -> None:
            with self._told(), _transaction(connection):
                view_id, _ = self._stored(connection, view)
                for table in ("_hr_state", "_hr_contribution"):
                    connection.execute(f"delete from {table} where view_id = ?", (view_id,))
                connection.execute("delete from _hr_view where id = ?", (view_id,))
                if view.is_draft:
                    connection.execute(f"drop table if exists {_table(self.project, view.name)}")
                    self._upserts.clear()
                    return
                # Emptied, not dropped: a Feast SDK that asks meanwhile finds a table without rows.
                self._create_table(connection, view)
                connection.execute(f"delete from {_table(self.project, view.name)}")

        await self._lane(self._writer).call(work)
        self._fence.note(view, None)

    async def promote(self, view: ViewSpec) -> None:
        """See OnlineStore. One transaction that renames; the former rows are then removed slice by slice."""
        draft = view.draft

        def swap(connection: sqlite3.Connection) -> bytes | None:
            with self._told(), _transaction(connection):
                draft_id, checkpoint = self._stored(connection, draft)
                if draft_id is None:
                    return self._stored(connection, view)[1]
                former = view.name + _FORMER
                for each in (view, draft):
                    self._create_table(connection, each)
                if self._stored(connection, view)[0] is None:
                    self._add_view(connection, view)
                connection.execute(
                    f"alter table {_table(self.project, view.name)} rename to {_table(self.project, former)}"
                )
                connection.execute(
                    f"alter table {_table(self.project, draft.name)} rename to {_table(self.project, view.name)}"
                )
                rename = "update _hr_view set name = ? where project = ? and name = ?"
                connection.execute(rename, (former, self.project, view.name))
                connection.execute(rename, (view.name, self.project, draft.name))
                self._upserts.clear()
                return checkpoint

        lane = self._lane(self._writer)
        await self._clear_former(lane)  # of another time, which a crash has left: its name is needed
        checkpoint = await lane.call(swap)
        self._fence.note(view, checkpoint)
        self._fence.note(draft, None)
        await self._clear_former(lane)

    async def _clear_former(self, lane: _Lane) -> None:
        """Remove what promotes have replaced, in slices between which others write."""

        def find(connection: sqlite3.Connection) -> list[tuple[int, str]]:
            query = "select id, name from _hr_view where project = ? and substr(name, ?) = ?"
            with self._told():
                return connection.execute(query, (self.project, -len(_FORMER), _FORMER)).fetchall()

        def clear(connection: sqlite3.Connection, view_id: int, name: str) -> bool:
            table = _table(self.project, name)
            with self._told(), _transaction(connection):
                gone = 0
                if self._has_table(connection, name):
                    part = f"select rowid from {table} limit {_SLICE}"
                    gone += connection.execute(f"delete from {table} where rowid in ({part})").rowcount
                for private, key in (("_hr_state", "entity_key"), ("_hr_contribution", "row_key")):
                    part = f"select {key} from {private} where view_id = {view_id} limit {_SLICE}"
                    gone += connection.execute(
                        f"delete from {private} where view_id = {view_id} and {key} in ({part})"
                    ).rowcount
                if not gone:
                    connection.execute(f"drop table if exists {table}")
                    connection.execute("delete from _hr_view where id = ?", (view_id,))
                return gone > 0

        for view_id, name in await lane.call(find):
            part = functools.partial(clear, view_id=view_id, name=name)
            while await lane.call(part):
                pass

    async def close(self) -> None:
        for lane in (self._reader, self._writer):  # the writer last: its close folds the WAL into the file
            if lane is not None:
                await asyncio.to_thread(lane.close)
        self._reader = self._writer = None

    # What follows runs in a lane's thread.

    def _connect(self, lane: _Lane, *, is_writer: bool) -> None:
        with self._told():
            if is_writer:
                self._make_file()
            connection = sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, cached_statements=64)
            lane.connection = connection
            if not is_writer:
                connection.execute("pragma query_only = on")
                return
            mode = connection.execute("pragma journal_mode = wal").fetchone()[0]
            if mode != "wal":
                raise StoreRefused(
                    f"online store {self.path}: SQLite can't use its write-ahead log there",
                    advice="put the file on a local disk (features.store.path)",
                )
            connection.execute("pragma synchronous = normal")
            # Rows of random entities touch pages all over the file: with SQLite's own 2 MB and 1,000 pages large batches
            # took about twice as long (docs/decisions/0005-online-stores.md).
            connection.execute(f"pragma cache_size = -{_CACHE_KIB}")
            connection.execute(f"pragma wal_autocheckpoint = {_WAL_PAGES}")
            with _transaction(connection):
                for statement in _PRIVATE_TABLES.split(";"):
                    connection.execute(statement)

    def _make_file(self) -> None:
        """Create the file readable by its owner only; the rights of a file that is there stay as they are."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StoreRefused(
                f"online store {self.path} can't be opened: {error.strerror}",
                advice="create the folder, or let this user write in it, or name another file (features.store.path)",
            ) from error

    def _create_table(self, connection: sqlite3.Connection, view: ViewSpec) -> str:
        """Make Feast's table where it is missing, inside the caller's transaction; result: the upsert into it."""
        table = _table(self.project, view.name)
        if not self._has_table(connection, view.name):
            connection.execute(_FEAST_TABLE.format(table=table))
            if not view.is_draft:
                # Feast makes it too. The primary key begins with the same column: a table that was a draft does without, since to make it
                # of millions of rows would hold up every write.
                index = _quote(f"{self.project}_{view.name}_ek")
                connection.execute(f"create index if not exists {index} on {table} (entity_key)")
        columns = {row[1] for row in connection.execute(f"pragma table_info({table})")}
        if "value_text" not in columns:  # made by an older Feast; a newer one adds it just so
            connection.execute(f"alter table {table} add column value_text TEXT")
        self._upserts[view.name] = _upsert(table, has_number="value_num" in columns)
        return self._upserts[view.name]

    def _stored(self, connection: sqlite3.Connection, view: ViewSpec) -> tuple[int | None, bytes | None]:
        """(id in _hr_view, checkpoint as stored); None for what isn't there."""
        row = connection.execute(
            "select id, checkpoint from _hr_view where project = ? and name = ?", (self.project, view.name)
        ).fetchone()
        return (None, None) if row is None else (row[0], str(row[1]).encode())

    def _add_view(self, connection: sqlite3.Connection, view: ViewSpec) -> int:
        query = "insert into _hr_view (project, name, checkpoint) values (?, ?, '') returning id"
        return int(connection.execute(query, (self.project, view.name)).fetchone()[0])

    def _has_table(self, connection: sqlite3.Connection, view: str) -> bool:
        query = "select 1 from sqlite_master where type = 'table' and name = ?"
        return connection.execute(query, (f"{self.project}_{view}",)).fetchone() is not None

    async def _select(self, view: ViewSpec, query: str, *args: object) -> list[Any]:
        def work(connection: sqlite3.Connection) -> list[Any]:
            with self._told():
                return connection.execute(query, (self._stored(connection, view)[0], *args)).fetchall()

        return await self._lane(self._writer).call(work)

    async def _select_each(self, view: ViewSpec, query: str, keys: Sequence[bytes]) -> list[Any]:
        def work(connection: sqlite3.Connection) -> list[Any]:
            with self._told():
                view_id, _ = self._stored(connection, view)
                return [connection.execute(query, (view_id, key)).fetchone() for key in keys]

        return await self._lane(self._writer).call(work)

    def _lane(self, lane: _Lane | None) -> _Lane:
        if lane is None:
            raise RuntimeError("the store isn't open")
        return lane

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        """Turn SQLite's errors into ours: what passes by itself is tried again, the rest is for a person."""
        try:
            yield
        except StoreError:
            self._upserts.clear()  # tables made in the transaction are rolled back with it
            raise
        except sqlite3.Error as error:
            self._upserts.clear()  # and somebody may have dropped or replaced one behind our back
            name = getattr(error, "sqlite_errorname", "") or type(error).__name__
            said = f"online store {self.path}: {error} ({name})"
            if name.startswith(_REFUSALS):
                raise StoreRefused(
                    said,
                    advice="check the file's rights and whether it is whole (sqlite3 FILE 'pragma integrity_check')",
                ) from error
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise StoreError(said, advice="find the process that keeps a transaction open on that file") from error
            raise StoreError(
                said, advice="check the disk that features.store.path is on: space, rights, health"
            ) from error


class _Prepared:
    """One ViewWrite as SQLite parameters: made on the loop, run in the thread, so that a misfit fails before any change."""

    def __init__(self, write: ViewWrite) -> None:
        self.view = write.view
        self.checkpoint = write.checkpoint
        codec = codec_of(write.view)
        self._removed: list[bytes] = []
        self._cells: list[tuple[bytes, str, bytes, str | None, float | None, int]] = []
        self._states: list[tuple[bytes, int, int | None, bytes]] = []
        for entity in write.entities:
            key = codec.encode_key(entity.key)
            if entity.values is None:
                self._removed.append(key)
                continue
            self._cells += _cells(codec, key, entity.values, entity.event_time_us // _US_PER_S)
            self._states.append((key, entity.event_time_us, entity.due_us, entity.state))
        self._gone = [row_key for row_key, given in write.contributions.items() if given is None]
        self._kept = [
            (row_key, codec.encode_key(given.entity), given.blob)
            for row_key, given in write.contributions.items()
            if given is not None
        ]

    def run(self, connection: sqlite3.Connection, project: str, view_id: int, upsert: str) -> None:
        connection.executemany(upsert, self._cells)
        connection.executemany(
            "insert into _hr_state (view_id, entity_key, event_time_us, due_us, state)"
            f" values ({view_id}, ?, ?, ?, ?) on conflict do update set"
            " event_time_us = excluded.event_time_us, due_us = excluded.due_us, state = excluded.state",
            self._states,
        )
        if self._removed:
            keys = [(key,) for key in self._removed]
            connection.executemany(f"delete from {_table(project, self.view.name)} where entity_key = ?", keys)
            connection.executemany(f"delete from _hr_state where view_id = {view_id} and entity_key = ?", keys)
        connection.executemany(
            "insert into _hr_contribution (view_id, row_key, entity_key, blob)"
            f" values ({view_id}, ?, ?, ?) on conflict do update set"
            " entity_key = excluded.entity_key, blob = excluded.blob",
            self._kept,
        )
        if self._gone:
            connection.executemany(
                f"delete from _hr_contribution where view_id = {view_id} and row_key = ?",
                [(row_key,) for row_key in self._gone],
            )
        connection.execute(
            "update _hr_view set checkpoint = ? where id = ?", (encode_checkpoint(self.checkpoint).decode(), view_id)
        )


def _cells(
    codec: ViewCodec, key: bytes, values: tuple[FeatureValue, ...], event_s: int
) -> Iterator[tuple[bytes, str, bytes, str | None, float | None, int]]:
    for field, value, data in zip(codec.view.fields, values, codec.encode_values(values), strict=True):
        text = number = None
        if isinstance(value, (int, float, str)) and field.dtype is not ValueType.UNIX_TIMESTAMP:
            if field.dtype is ValueType.FLOAT32 or field.dtype is ValueType.FLOAT64:
                value = codec.decode_feature(field, data)  # what Feast sees: a Float32 rounded, an int as float
            text = value if isinstance(value, str) else str(value)
            if isinstance(value, (int, float)):
                number = float(value)
        yield key, field.name, data, text, number, event_s


def _upsert(table: str, *, has_number: bool) -> str:
    """Feast's upsert. Parameters: key, feature, value, text, number, seconds; the number is for Feast's optional column."""
    number = "value_num, " if has_number else ""
    marks = "?1, ?2, ?3, ?4, ?5, ?6" if has_number else "?1, ?2, ?3, ?4, ?6"
    updates = (
        "value = excluded.value, value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = null"
    )
    if has_number:
        updates += ", value_num = excluded.value_num"
    return (
        f"insert into {table} (entity_key, feature_name, value, value_text, {number}event_ts) values ({marks})"
        f" on conflict (entity_key, feature_name) do update set {updates}"
    )


def _event_time_us(event_s: object, exact: tuple[int] | None) -> int:
    """Microseconds from our own table, unless another writer has put a newer row into Feast's."""
    seconds = event_s if isinstance(event_s, int) else 0
    if exact is not None and exact[0] // _US_PER_S == seconds:
        return exact[0]
    return seconds * _US_PER_S


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _table(project: str, view: str) -> str:
    return _quote(f"{project}_{view}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str = "begin immediate") -> Generator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("commit")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself after a full disk
            connection.execute("rollback")
        raise


async def _off_loop(lane: _Lane, work: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(lane.pool, work)
