"""A table that isn't read in the order of a key, copied whole: a truncate followed by all rows, in one log transaction (as pgwhole.py for Postgres).

What makes SELECT and stream fit together is one place in the binlog: what stands before it is in the rows, what stands behind it isn't.

- MariaDB says the place of a snapshot, exactly or not (mariadbplaces.py). If not, and a transaction in doubt has touched the table, it is read
  again, in the end as at MySQL.
- MySQL doesn't. ``LOCK TABLES t READ`` is granted once every transaction that wrote to the table is over, visible and in the binlog. While it is
  held, for two statements, the snapshot is made and the binlog's end read. Who waits for that lock makes later writers wait behind him, so
  he gives up after LOCK_WAIT_S and tries again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql

from headrace.cdc.decode.binlog import BinlogPlace, order_of
from headrace.cdc.decode.tableversion import shape
from headrace.cdc.errors import SourceRefused
from headrace.cdc.event import UNCHANGED, Change, Row
from headrace.cdc.sources.mariadbplaces import NOTHING, Waits
from headrace.cdc.sources.mysqltable import CopiedTable, quoted_name
from headrace.cdc.sources.pgwindow import NOTED_CHANGES
from headrace.cdc.sources.wholerows import BLOCK_ROWS, RowFile, RowsSince

LOCK_WAIT_S = 2
_LOCK_WAIT_TIMEOUT = 1205
_DENIED = (1044, 1142)


class TableBusy(Exception):
    """The table's lock wasn't to be had in LOCK_WAIT_S: a transaction that wrote to it is still open."""


class WholeTable:
    """The rows of one reading, in a file without a name in folder, and what the stream does meanwhile; gone with ``close``.

    ``read`` runs in a thread; place and time_us are known once it is over, place as soon as the snapshot is made.
    """

    def __init__(self, table: CopiedTable, folder: Path) -> None:
        self.table = table
        self.place: BinlogPlace | None = None
        self.time_us = 0
        self.told_s = 0.0
        self.waits: Waits = ()
        self.is_locked = False
        self.probe: tuple[BinlogPlace, float, Waits] | None = None
        """What another snapshot was told, before."""
        self.newest_before = NOTHING
        """Of the transactions that were noted and stand before ``place``."""
        self._rows = RowFile(folder)
        self._since = RowsSince(folder)
        self._early: list[tuple[BinlogPlace, list[Change]]] = []
        self._early_count = 0
        self._is_spoiled = False

    def note(self, place: BinlogPlace, changes: list[Change]) -> None:
        """Keep what the SELECT doesn't see. place: behind the transaction."""
        self._early.append((place, changes))
        self._early_count += len(changes)
        if self.place is not None:
            self._sort_early(self.place)
        elif self._early_count > NOTED_CHANGES:
            self._is_spoiled = True
            self._early = []

    def _sort_early(self, snapshot: BinlogPlace) -> None:
        early, self._early, self._early_count = self._early, [], 0
        for place, changes in early:
            if order_of(place) <= order_of(snapshot):
                self.newest_before = max(self.newest_before, order_of(place))
                continue
            if self._is_spoiled:
                continue
            for change in changes:
                # A part of a row can't be told from the other rows that have the same.
                if change.op != "truncate" and (
                    shape(change.table) != shape(self.table.schema)
                    or UNCHANGED in (change.before or ())
                    or UNCHANGED in (change.after or ())
                ):
                    self._is_spoiled = True
                    return
                self._since.note(change)
            self._is_spoiled = self._since.gone_count > NOTED_CHANGES

    @property
    def is_spoiled(self) -> bool:
        """It must be read again."""
        if self.place is not None:
            self._sort_early(self.place)
        return self._is_spoiled

    def read(
        self,
        connection: Any,
        locker: Callable[[], Any] | None,
        snapshot: Callable[[Any], tuple[BinlogPlace, float, Waits]],
        *,
        source: str,
    ) -> None:
        """Read the table into the file, over a connection of its own.

        locker: makes the connection that locks, where the snapshot's place isn't to be had otherwise. snapshot: makes it. Raises PyMySQL's
        errors, OSError of the folder, TableBusy, and SourceRefused where the user may not lock the table.
        """
        schema = self.table.schema
        name = quoted_name(schema.schema, schema.table)
        with connection.cursor() as cursor:
            lock = None if locker is None else _locked(locker, name, schema.name, source)
            try:
                self.place, self.told_s, self.waits = snapshot(cursor)
            finally:
                if lock is not None:
                    lock._force_close()
            self.time_us = int(time.time() * 1_000_000)
            self._take(connection, f"select {', '.join(self.table.expressions)} from {name}")
            cursor.execute("rollback")

    def _take(self, connection: Any, select: str) -> None:
        """Row after row into the file: the table may be larger than memory."""
        row, add = self.table.row, self._rows.add
        cursor: Any = connection.cursor(pymysql.cursors.SSCursor)
        try:
            cursor.execute(select)
            while found := cursor.fetchmany(BLOCK_ROWS):
                for texts in found:
                    add(row(texts))
        except BaseException:
            # Closing it in peace, PyMySQL would read the rest, of a connection that may be gone.
            if cursor._result is not None:
                cursor._result.unbuffered_active = False
            connection._force_close()
            raise
        cursor.close()

    def parts(self) -> Iterator[tuple[list[Row], bool]]:
        """The rows at the place that the stream has reached, and with the last of them True; an empty table gives one empty part."""
        return self._since.parts(self._rows.blocks())

    def close(self) -> None:
        """Let go of the files; closing twice is fine."""
        self._rows.close()
        self._since.close()


def _locked(locker: Callable[[], Any], quoted: str, name: str, source: str) -> Any:
    """A connection that holds the table's lock for as long as it lives."""
    connection = locker()
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"set lock_wait_timeout = {LOCK_WAIT_S}")
            cursor.execute(f"lock tables {quoted} read")
    except pymysql.err.MySQLError as error:
        connection._force_close()
        if error.args[0] == _LOCK_WAIT_TIMEOUT:
            raise TableBusy(name) from error
        if error.args[0] in _DENIED:
            raise SourceRefused(
                f"{name} has no key that its rows can be read by, and the user may not lock it for the moment that a copy of it needs",
                source=source,
                advice=f"grant lock tables on {quoted.split('.', maxsplit=1)[0]}.* to the user; or give the table a primary key, or put it under "
                f"sources.{source}.exclude",
            ) from error
        raise
    return connection


__all__ = ["LOCK_WAIT_S", "TableBusy", "WholeTable"]
