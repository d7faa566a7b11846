"""Which columns of a table reach the log, and as what: left out, hashed, masked or plain. Pure: no I/O, no clock.

Applied to row images before anything is made of them, so that properties, old images, keys, the customer key and the lists of
unchanged and undecodable columns all hold the same. A hash is HMAC-SHA-256 under ``privacy.salt`` of the value's text (an int
and the same digits as text are one value, as in a customer key), written as 64 hexadecimal digits: equal values stay
joinable, over tables and sources too. NULL stays NULL.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import TypeAlias

from headrace.cdc.config import ColumnsConfig
from headrace.cdc.errors import SourceRefused
from headrace.cdc.event import Absent, Row, TableSchema, Value, key_text

Protect: TypeAlias = Callable[[Value | Absent], Value | Absent]


class Hasher:
    """Keyed hashes of values. The salt is never part of a repr or a message."""

    __slots__ = ("_keyed", "_prefix")

    def __init__(self, salt: str, key_id: str = "") -> None:
        """key_id: what the hashes begin with, and a colon; "" for nothing."""
        self._prefix = f"{key_id}:" if key_id else ""
        self._keyed = hmac.new(salt.encode(), digestmod="sha256")

    def __call__(self, value: Value | Absent) -> Value | Absent:
        """64 lower-case hexadecimal digits behind the key_id; None and absent values as they are."""
        if value is None or isinstance(value, Absent):
            return value
        digest = self._keyed.copy()
        digest.update(key_text(value).encode())
        return self._prefix + digest.hexdigest()


def keeps(columns: ColumnsConfig, name: str) -> bool:
    """Whether the column reaches the log at all."""
    return name in columns.include if columns.include else name not in columns.exclude


def excluded(columns: ColumnsConfig, table: TableSchema) -> frozenset[int]:
    """Indexes of the table's columns that don't reach the log."""
    return frozenset(index for index, column in enumerate(table.columns) if not keeps(columns, column.name))


class TablePrivacy:
    """What one version of a table becomes.

    kept: indexes of the columns that stay, in their order. names: theirs. key: the row key as indexes into the kept.
    Raises SourceRefused for a row key that would not be whole: without it an event belongs to no row.
    """

    __slots__ = ("_protect", "kept", "key", "names")

    def __init__(self, table: TableSchema, columns: ColumnsConfig, hasher: Hasher | None, *, source: str) -> None:
        gone = excluded(columns, table)
        self.kept = tuple([index for index in range(len(table.columns)) if index not in gone])
        self.names = tuple([table.columns[index].name for index in self.kept])
        for index in table.key:
            name = table.columns[index].name
            if index in gone or name in columns.mask:
                raise SourceRefused(
                    f'column "{name}" belongs to the row key of {table.name}, and events.{table.name}.columns '
                    "excludes or masks it",
                    source=source,
                    advice=f"put it under events.{table.name}.columns.hash, which keeps rows apart, or leave it plain",
                )
        where = {index: place for place, index in enumerate(self.kept)}
        self.key = tuple([where[index] for index in table.key])
        protect: list[tuple[int, Protect]] = []
        for place, name in enumerate(self.names):
            if name in columns.hash:
                if hasher is None:  # the configuration has been refused without a salt: never go on in plain
                    raise SourceRefused(
                        f"events.{table.name}.columns.hash is set, and there is no privacy.salt",
                        source=source,
                        advice='set privacy: {salt: "${SALT}"}',
                    )
                protect.append((place, hasher))
            elif name in columns.mask:
                protect.append((place, _mask(columns.mask[name])))
        self._protect = tuple(protect)

    def row(self, row: Row) -> Row:
        """The image as it may be logged, in the order of ``names``."""
        values = [row[index] for index in self.kept]
        for place, protect in self._protect:
            values[place] = protect(values[place])
        return tuple(values)


def _mask(text: str) -> Protect:
    def mask(value: Value | Absent) -> Value | Absent:
        return value if value is None or isinstance(value, Absent) else text

    return mask


def vanished(columns: ColumnsConfig, former: TableSchema, table: TableSchema) -> str | None:
    """A protected column that a new version of the table lacks while it has columns that nobody has judged: perhaps a rename.

    Its values would be logged plain under the new name. None when there is nothing to fear; an include list lets no new name in.
    """
    if columns.include:
        return None
    protected = {*columns.exclude, *columns.hash, *columns.mask}
    before = {column.name for column in former.columns}
    now = {column.name for column in table.columns}
    lost = sorted((protected & before) - now)
    return lost[0] if lost and now - before - protected else None
