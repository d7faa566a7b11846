"""A table without a key, copied whole: a truncate followed by all rows, in one log transaction.

Without a key there are no chunks to go on from, and rows can only be told apart by all their values. So the table is read in one
SELECT into a file, however large it is; what the stream does meanwhile that the SELECT doesn't see (rules 1 to 4 of pgsnapshot.py) is
kept beside it (wholerows.py). When the stream has passed the high mark the rows are given out a part at a time, and become part of the
log all at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql

from headrace.cdc.decode.copytext import copy_rows
from headrace.cdc.decode.tableversion import shape
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.event import Change, Row, TableSchema
from headrace.cdc.sources import wholerows
from headrace.cdc.sources.pgsnapshot import condition, read_rows, select_rows, table_kinds
from headrace.cdc.sources.pgvisibility import Visibility
from headrace.cdc.sources.pgwindow import NOTED_CHANGES
from headrace.cdc.sources.wholerows import LineFile, RowsSince


class WholeTable:
    """The window and the rows of one reading; the file has no name in folder, and is gone with ``close``.

    oid, delivered_before: as of pgwindow.ChunkWindow. After ``read``: table, high_lsn, visibility, time_us.
    """

    def __init__(self, oid: int, delivered_before: frozenset[int], folder: Path) -> None:
        self.oid = oid
        self.delivered_before = delivered_before
        self.table: TableSchema | None = None
        self.high_lsn = 0
        self.time_us = 0
        self.visibility: Visibility | None = None
        self._rows = LineFile(folder)
        self._since = RowsSince(folder)
        self._early: list[tuple[Transaction, list[Change]]] = []
        self._is_spoiled = False

    def note(self, transaction: Transaction, changes: list[Change]) -> None:
        """Keep what the SELECT doesn't see."""
        visibility = self.visibility
        if visibility is None:
            self._early.append((transaction, changes))
            self._is_spoiled |= sum(len(each) for _, each in self._early) > NOTED_CHANGES
            if self._is_spoiled:
                self._early = []
            return
        is_seen = visibility.sees(transaction.xid, transaction.end_lsn)
        if is_seen or self._is_spoiled:
            return
        if is_seen is None or (self.table is not None and any(shape(c.table) != shape(self.table) for c in changes)):
            self._is_spoiled = True
            return
        for change in changes:
            self._since.note(change)
        self._is_spoiled = self._since.gone_count > NOTED_CHANGES

    def _know(self, visibility: Visibility) -> None:
        self.visibility = visibility
        early, self._early = self._early, []
        for transaction, changes in early:
            self.note(transaction, changes)

    async def read(
        self,
        connection: psycopg.AsyncConnection[tuple[object, ...]],
        table: TableSchema,
        *,
        is_partitioned: bool,
        row_filter: str = "",
    ) -> None:
        """Read the table into the file. row_filter: the publication's. Raises psycopg's errors and OSError; as pgsnapshot.read_chunk for a table that changed."""
        self.table = table
        write = self._rows.write

        def take(lines: list[bytes]) -> bool:
            for line in lines:
                write(line)
            return True

        select = select_rows(table, is_partitioned=is_partitioned)
        if row_filter:
            select += sql.SQL(" where ") + condition(row_filter)
        query = sql.SQL("copy ({}) to stdout").format(select)
        _, self.time_us, _, self.high_lsn = await read_rows(
            connection, table, query, is_partitioned=is_partitioned, know=self._know, take=take
        )

    @property
    def is_spoiled(self) -> bool:
        """It must be read again: the table changed, or what the SELECT saw can't be told."""
        return self._is_spoiled

    def parts(self) -> Iterator[tuple[list[Row], bool]]:
        """The rows at the high mark, and with the last of them True; an empty table gives one empty part."""
        return self._since.parts(self._blocks())

    def _blocks(self) -> Iterator[list[Row]]:
        assert self.table is not None
        kinds = table_kinds(self.table)
        lines: list[bytes] = []
        size = 0
        for line in self._rows.lines():
            lines.append(line)
            size += len(line)
            if len(lines) >= wholerows.BLOCK_ROWS or size > 1 << 20:
                yield copy_rows(lines, kinds)
                lines, size = [], 0
        yield copy_rows(lines, kinds)

    def close(self) -> None:
        """Let go of the files; closing twice is fine."""
        self._rows.close()
        self._since.close()


__all__ = ["WholeTable"]
