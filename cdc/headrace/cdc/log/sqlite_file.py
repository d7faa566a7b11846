"""The file of the embedded log: its schema, how it is created and opened, what SQLite's errors mean to a person.

Knows no queue, no loop and no event. Follows the SQLite documentation (write-ahead logging, PRAGMA, result codes), read for
versions 3.40 to 3.53. Layout, format 3::

    meta     key -> value                         format, generation, partitions, epoch
    batch    id = partition << 48 | end offset    one blob of events, or as an integer the id of a staged one; the last column, so
                                                  that the others are read without it
    staged   id -> events                         blobs of parts of transactions: published, when a batch names them, or
    staging  id                                   not yet; what of it a crash left is removed after the next open
    trimmed  partition -> first_offset            where a partition starts when no batch of it is left
    source   name -> state
    cursor   (group, partition) -> offset, state
    letter   id -> a dead letter                  ids are never used twice
    seen_run id -> at_us, entries                 message ids as they came, one row a transaction (sqlite_ids.py)
    seen     entry                                the older ones, sorted

``id`` makes "the batch that holds offset o" one seek: the first id above ``partition << 48 | o``.

Data of people stands in this file: it is created with mode 0600 (SQLite gives its -wal and -shm files the same). Trimmed batches go to
SQLite's free pages and are overwritten by later appends; the file never shrinks, nothing is vacuumed, and until a page is used again
its former bytes can be recovered by whoever may read the file.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from headrace.cdc.errors import ConfigError, LogError, LogUnavailable

FORMAT: Final = 3
OFFSET_BITS: Final = 48
OFFSET_MASK: Final = (1 << OFFSET_BITS) - 1
PAGE_BYTES: Final = 8192
"""Measured by benchmarks/log_append.py: 4 KiB costs large blobs a quarter, 16 KiB costs lone commits as much."""

_APPLICATION_ID: Final = 0x68647263  # "hdrc", so that file(1) and we can tell the log from another SQLite file
_MAGIC: Final = b"SQLite format 3\0"
_BUSY_S: Final = 5.0

# Format 2 differs from 1 by these.
_STAGED: Final = (
    "create table staged (id integer primary key, events blob not null)",
    "create table staging (id integer primary key)",
    # For a person with the sqlite3 shell; the program itself reads the tables.
    f"""create view batches as select b.id >> {OFFSET_BITS} as partition, first_offset, (b.id & {OFFSET_MASK}) as end_offset,
    datetime(newest_us / 1000000, 'unixepoch') as newest_utc, length(coalesce(s.events, b.events)) as bytes
    from batch b left join staged s on typeof(b.events) = 'integer' and s.id = b.events""",
)

# Format 3 has these too.
_COLLECTED: Final = (
    """create table letter (id integer primary key autoincrement, source text not null, reason text not null,
    detail text not null, received_us integer not null, context blob not null, body blob not null)""",
    "create table seen_run (id integer primary key autoincrement, at_us integer not null, entries blob not null)",
    "create table seen (entry blob primary key) without rowid",
)

_SCHEMA: Final = (
    "create table meta (key text primary key, value) without rowid",
    """create table batch (id integer primary key, first_offset integer not null, newest_us integer not null,
    crc integer not null, events blob not null)""",
    "create table trimmed (partition integer primary key, first_offset integer not null)",
    "create table source (name text primary key, state blob not null) without rowid",
    """create table cursor ("group" text, partition integer, "offset" integer not null, state blob not null,
    primary key ("group", partition)) without rowid""",
    *_STAGED,
    *_COLLECTED,
)

_UPGRADES: Final = {
    1: ("drop view batches", *_STAGED, "update meta set value = 2 where key = 'format'"),
    2: (*_COLLECTED, "update meta set value = 3 where key = 'format'"),
}
"""By the format they start from."""


class Identity(msgspec.Struct, frozen=True):
    """What the log says of itself. epoch: of the newest open for writing."""

    generation: str
    partitions: int
    epoch: int


def batch_id(partition: int, end_offset: int) -> int:
    """Key of the batch of that partition which ends there."""
    return partition << OFFSET_BITS | end_offset


def open_writer(path: Path, partitions: int) -> tuple[sqlite3.Connection, Identity]:
    """Open for writing, creating the log if there is none, and take the next epoch. The caller holds the WriterLock.

    Raises ConfigError when the log has another number of partitions; LogError when the file is no headrace log, of a newer format or
    damaged; LogUnavailable when it can't be written.
    """
    is_new = _prepare(path)
    try:
        connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            if is_new or _is_blank(connection):
                _create(connection, partitions)
            identity = _identity(connection, path)
            if identity.partitions != partitions:
                raise ConfigError(
                    f"log {path} was created with {identity.partitions} partitions, and log.partitions is {partitions}",
                    advice=f"set log.partitions to {identity.partitions}, or log.path to a new file;"
                    " the number can't change, because it decides where each customer's events are",
                )
            # The caches outlive a checkpoint; a spill would write to the WAL before the commit asks for it.
            for pragma in (
                "journal_mode = wal",
                "synchronous = full",
                "wal_autocheckpoint = 0",
                "journal_size_limit = 134217728",
                "cache_size = -16384",
                "cache_spill = off",
                "temp_store = memory",
                "secure_delete = fast",
            ):
                connection.execute(f"pragma {pragma}").fetchall()
            _upgrade(connection)
            # What a crash left in the WAL; nothing after a clean end.
            connection.execute("pragma wal_checkpoint(passive)").fetchall()
            connection.execute("update meta set value = value + 1 where key = 'epoch'")
            return connection, _identity(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise explained(path, error) from error


def open_reader(path: Path, *, is_immutable: bool = False) -> sqlite3.Connection:
    """A connection that can't write; checks nothing. is_immutable: no locks, no -wal: only while nobody writes.

    Raises LogUnavailable when the file isn't there or can't be read.
    """
    query = "mode=ro&immutable=1" if is_immutable else "mode=ro"
    try:
        return sqlite3.connect(
            f"{path.as_uri()}?{query}", uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise explained(path, error) from error


def check_readable(path: Path) -> None:
    """Raises LogUnavailable when there is no such file or it can't be read, LogError when it is no SQLite file."""
    if path.is_dir():
        raise _is_folder(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise LogUnavailable(
            f"there is no log at {path}", advice='start "headrace run" first, or correct log.path'
        ) from error
    except OSError as error:
        raise LogUnavailable(
            f"log {path} can't be read: {error.strerror}", advice="run as the user that writes the log"
        ) from error
    if magic not in (b"", _MAGIC):
        raise _foreign(path)


def identity(connection: sqlite3.Connection, path: Path) -> Identity:
    """Raises LogError when this is no headrace log or a newer one."""
    try:
        return _identity(connection, path)
    except sqlite3.Error as error:
        raise explained(path, error) from error


def explained(path: Path, error: sqlite3.Error) -> LogError:
    """SQLite's error as one of ours. None of SQLite's own texts holds row data: they name files, tables and conditions."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return LogUnavailable(
            f"log {path} can't be written: the disk is full",
            advice=f"make room in {path.parent} and start again; what was confirmed is kept, and log.retention or log.max_size"
            " bound what the log takes",
        )
    if code == sqlite3.SQLITE_NOTADB:
        return _foreign(path)
    if code == sqlite3.SQLITE_CORRUPT:
        return LogError(f"log {path} is damaged: {error}", advice=_DAMAGED)
    if code == sqlite3.SQLITE_IOERR:
        name = getattr(error, "sqlite_errorname", "SQLITE_IOERR")
        return LogUnavailable(
            f"log {path}: the disk refused an operation: {error} ({name})",
            advice="check the disk, its quota and the file size limit of this process (ulimit -f), then start again",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogUnavailable(
            f"log {path}: another program holds a write lock on the file: {error}",
            advice="close that program (a database browser, a backup tool) and start again; reading tools should open it read-only",
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return LogUnavailable(
            f"log {path} can't be opened: {error}",
            advice=f"give this user the right to read and write {path} and the files beside it",
        )
    return LogError(f"log {path}: {error}")


_DAMAGED: Final = (
    "keep the file, and restore it from a backup or start a new log (another log.path) with a fresh snapshot"
)


def damaged(path: Path, partition: int, offset: int, reason: str) -> LogError:
    """A blob that can't be what was written. Names the place, never the content."""
    return LogError(f"log {path} is damaged at partition {partition}, offset {offset}: {reason}", advice=_DAMAGED)


def _prepare(path: Path) -> bool:
    """Make sure a file can be there, owner-only from its first byte on; True when it was made now."""
    if path.is_dir():
        raise _is_folder(path)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # SQLite syncs the folder for files that it makes itself
        finally:
            os.close(folder)
        return True
    except FileExistsError:
        pass
    except OSError as error:
        raise LogUnavailable(
            f"log {path} can't be created: {error.strerror}",
            advice=f"give this user the right to write files in {path.parent}, or correct log.path",
        ) from error
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise LogUnavailable(
            f"log {path} can't be written: this user has no right to",
            advice=f"give this user the right to read and write {path}, or correct log.path",
        )
    check_readable(path)
    return False


def check_folder(path: Path) -> None:
    """Raises LogUnavailable when the folder of the log isn't there: a mistyped path should not become a new, empty log."""
    if not path.parent.is_dir():
        raise LogUnavailable(
            f"log {path} can't be created: there is no folder {path.parent}",
            advice=f'make the folder ("mkdir -p {path.parent}"), or correct log.path',
        )
    if path.is_dir():
        raise _is_folder(path)


def _is_blank(connection: sqlite3.Connection) -> bool:
    """A file that a crash left before its schema was committed, or that somebody made with touch(1)."""
    return bool(connection.execute("select not exists (select 1 from sqlite_schema)").fetchone()[0])


def _create(connection: sqlite3.Connection, partitions: int) -> None:
    connection.execute(f"pragma page_size = {PAGE_BYTES}")
    connection.execute("pragma journal_mode = wal").fetchall()
    connection.execute("begin immediate")
    connection.execute(f"pragma application_id = {_APPLICATION_ID}")
    for statement in _SCHEMA:
        connection.execute(statement)
    connection.executemany(
        "insert into meta values (?, ?)",
        [("format", FORMAT), ("generation", secrets.token_hex(8)), ("partitions", partitions), ("epoch", 0)],
    )
    connection.execute("commit")


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring an older file to the present format; an older headrace then refuses it instead of misreading it."""
    (version,) = connection.execute("select value from meta where key = 'format'").fetchone()
    for former in range(version, FORMAT):
        connection.execute("begin immediate")
        for statement in _UPGRADES[former]:
            connection.execute(statement)
        connection.execute("commit")


def _identity(connection: sqlite3.Connection, path: Path) -> Identity:
    if connection.execute("pragma application_id").fetchone()[0] != _APPLICATION_ID:
        raise _foreign(path)
    meta = dict(connection.execute("select key, value from meta").fetchall())
    if meta["format"] > FORMAT:
        raise LogError(
            f"log {path} was written by a newer headrace: its format is {meta['format']}, and this one knows up to {FORMAT}",
            advice="use that newer headrace, or another log.path",
        )
    return Identity(meta["generation"], meta["partitions"], meta["epoch"])


def _foreign(path: Path) -> LogError:
    return LogError(f"{path} is no headrace log", advice="set log.path to another file; this one was left as it is")


def _is_folder(path: Path) -> LogUnavailable:
    return LogUnavailable(
        f"log {path} is a folder", advice=f"set log.path to a file, such as {path / 'headrace.log.db'}"
    )
