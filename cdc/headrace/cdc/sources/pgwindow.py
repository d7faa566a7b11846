"""What the stream does to a table while a chunk of it is read, and the chunk's rows laid over by it. Pure.

The rules are in pgsnapshot.py (2 to 4). What is noted is bounded: when more than NOTED_CHANGES that the chunk may not see have gone by,
they are forgotten and the chunk is read again, unless it turns out that it saw all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.cdc.decode.tableversion import shape
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.event import UNCHANGED, Change, Row, TableSchema, Value
from headrace.cdc.sources.pgvisibility import Visibility

NOTED_CHANGES = 50_000

KeyTuple = tuple[Value, ...]


class ChunkWindow:
    """What the stream did to one table from before a chunk's SELECT until its high mark.

    delivered_before: transactions delivered before the window opened that may not be visible yet (rule 4).
    """

    def __init__(self, oid: int, delivered_before: frozenset[int]) -> None:
        self.oid = oid
        self.delivered_before = delivered_before
        self._visibility: Visibility | None = None
        self._noted: list[tuple[int, int, list[Change]]] = []  # transaction id, end, changes
        self._forgotten: set[tuple[int, int]] = set()
        self._count = 0

    def note(self, transaction: Transaction, changes: list[Change]) -> None:
        """Remember a delivered transaction's changes of the table, as far as the chunk may not see them."""
        self._take(transaction.xid, transaction.end_lsn, changes)

    def know(self, visibility: Visibility) -> None:
        """What the SELECT sees, as soon as that is known."""
        self._visibility = visibility
        noted, self._noted, self._count = self._noted, [], 0
        for xid, end_lsn, changes in noted:
            self._take(xid, end_lsn, changes)
        self._forgotten = {
            (xid, end_lsn) for xid, end_lsn in self._forgotten if visibility.sees(xid, end_lsn) is not True
        }

    def _take(self, xid: int, end_lsn: int, changes: list[Change]) -> None:
        if self._visibility is not None and self._visibility.sees(xid, end_lsn) is True:
            return
        self._count += len(changes)
        if self._count > NOTED_CHANGES:
            self._forgotten |= {(noted[0], noted[1]) for noted in self._noted}
            self._forgotten.add((xid, end_lsn))
            self._noted = []
        else:
            self._noted.append((xid, end_lsn, changes))

    def unseen(self, table: TableSchema) -> list[Change] | None:
        """The noted changes that the SELECT didn't see; all have the table's columns.

        None when the chunk must be read again: too much went by, the columns changed, or what it saw can't be told. ``know`` comes
        before.
        """
        visibility = self._visibility
        if visibility is None or self._forgotten:
            return None
        unseen: list[Change] = []
        for xid, end_lsn, changes in self._noted:
            if visibility.sees(xid, end_lsn) is None:
                return None
            unseen.extend(changes)
        if any(shape(change.table) != shape(table) for change in unseen):
            return None
        return unseen


def rows_by_key(chunk_rows: list[Row], key: tuple[int, ...], unseen: Iterable[Change]) -> list[Row]:
    """The chunk's rows as of its high mark: what the stream has newer of is dropped, or laid over it where only a part was sent."""
    rows = {row_key(row, key): row for row in chunk_rows}
    # Keys whose row of the chunk went elsewhere: present here only while the stream has sent part of them.
    partial: dict[KeyTuple, Row] = {}
    for change in unseen:
        if change.op == "truncate":
            rows = {}
            partial = {}
            continue
        image = change.after if change.after is not None else change.before
        assert image is not None  # only a truncate has neither
        old = old_key(change, key)
        source = partial.pop(old, None) or rows.pop(old, None)
        rows.pop(old, None)
        if change.after is None:
            continue
        new = row_key(filled(change.after, change.before), key)
        rows.pop(new, None)
        partial.pop(new, None)
        if UNCHANGED in change.after and source is not None:
            partial[new] = filled(change.after, source)
    return [*rows.values(), *partial.values()]


def row_key(row: Row, key: Sequence[int]) -> KeyTuple:
    """A whole row's key. key: indexes of its columns."""
    return tuple([row[index] for index in key])  # type: ignore[misc]  # a key is never absent once filled


def old_key(change: Change, key: Sequence[int]) -> KeyTuple:
    """The key that the row had before the change."""
    before = change.before
    if before is None:
        assert change.after is not None
        return row_key(change.after, key)
    return row_key(filled(before, change.after) if change.after is not None else before, key)


def filled(row: Row, other: Row | None) -> Row:
    """row, with what it lacks taken from other."""
    if other is None or UNCHANGED not in row:
        return row
    return tuple([old if new is UNCHANGED else new for new, old in zip(row, other, strict=True)])
