"""Versions of tables: when one that the stream announces counts as another than before, and what a schema event says of it.

The stream has no DDL: a relation message is all there is (PostgreSQL 18 manual, "Logical Replication Message Formats"). A version
is given when the first row of it is known to be new for the log, never for what is only read again after a restart; so the versions
in a source's stored state, the rows and the schema events move on together, and a replay makes the same events with the same ids.

What can't be told from the stream: a column that is dropped and added again with the same name and type, and a label added to
an enum (its rows simply hold the new label).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from headrace.cdc.event import Change, TableSchema

if TYPE_CHECKING:
    from headrace.cdc.decode.transaction import Transaction


class TableVersion(msgspec.Struct, frozen=True, array_like=True):
    """What is remembered of a table over restarts; fields are only ever appended.

    fingerprint: of name, columns and key. name: ``schema.table``.
    """

    version: int
    fingerprint: str
    name: str = ""


class SchemaNews(msgspec.Struct, frozen=True, gc=False):
    """A version that wasn't there before.

    ordinal: of the change in its transaction that is the first of it. is_new_table: the OID was never seen. renamed_from: the
    former ``schema.table`` of the same OID, else "". replaced_oid: of another table that had this name before and is gone from it
    (dropped, or renamed away), and replaced_version its last version; 0 = none.
    """

    table: TableSchema
    ordinal: int
    is_new_table: bool
    renamed_from: str
    replaced_oid: int
    replaced_version: int

    @property
    def is_change(self) -> bool:
        """False for the first sight of a table: its rows speak for themselves."""
        return not self.is_new_table or self.replaced_oid != 0


def shape(table: TableSchema) -> tuple[tuple[str, int, int], ...]:
    """What makes columns the same. Not the types' names: of a domain the stream may tell the base type's."""
    return tuple([(column.name, column.type_oid, column.modifier) for column in table.columns])


def versioned(
    versions: dict[int, TableVersion], table: TableSchema, *, ordinal: int = 0
) -> tuple[TableSchema, SchemaNews | None]:
    """The table with its version, and what is new about it; None when name, columns and key are those last seen of its OID.

    A table under the name of another goes on with that one's count, so that a name has no version twice.
    """
    fingerprint = f"{crc32(repr((table.schema, table.table, shape(table), table.key)).encode()):08x}"
    known = versions.get(table.oid)
    if known is not None and known.fingerprint == fingerprint:
        return _with_version(table, known.version), None
    name = table.name
    # A state of before names were kept has none: such a table isn't renamed for all we know.
    renamed_from = known.name if known is not None and known.name not in ("", name) else ""
    replaced_oid = next((oid for oid, other in versions.items() if other.name == name and oid != table.oid), 0)
    replaced_version = versions.pop(replaced_oid).version if replaced_oid else 0
    new = _with_version(table, max(replaced_version, 0 if known is None else known.version) + 1)
    versions[table.oid] = TableVersion(new.version, fingerprint, name)
    return new, SchemaNews(new, ordinal, known is None, renamed_from, replaced_oid, replaced_version)


def _with_version(table: TableSchema, version: int) -> TableSchema:
    return TableSchema(table.schema, table.table, table.columns, table.key, table.identity, table.oid, version)


def schema_changes(news: SchemaNews, *, position: str, identifier: str, xid: int, time_us: int) -> list[Change]:
    """The events before the first row of a new version, none for the first sight of a table.

    A table that took another's name is announced by a truncate of that one: DROP TABLE itself says nothing, and the old rows are gone.
    identifier, position: of that first row; the events take neither its id nor a place of their own.
    """
    if not news.is_change:
        return []
    changes: list[Change] = []
    detail: dict[str, str | int] = {}
    table, ordinal = news.table, news.ordinal
    if news.replaced_oid:
        detail["replaced_oid"] = news.replaced_oid
        gone = TableSchema(table.schema, table.table, (), (), "d", news.replaced_oid, news.replaced_version)
        changes.append(Change(gone, "truncate", None, None, position, f"{identifier}t", xid, ordinal, False, time_us))
    if news.renamed_from:
        detail["renamed_from"] = news.renamed_from
    changes.append(
        Change(table, "schema", None, None, position, f"{identifier}s", xid, ordinal, False, time_us, detail or None)
    )
    return changes


def changes_of(transactions: Sequence[Transaction]) -> list[Change]:
    """All changes in order, each new version's schema event before its first row."""
    changes: list[Change] = []
    for transaction in transactions:
        if not transaction.news:
            changes += transaction.changes
            continue
        at = 0
        for news in transaction.news:
            index = news.ordinal - transaction.first_ordinal
            first = transaction.changes[index]
            changes += transaction.changes[at:index]
            at = index
            changes += schema_changes(
                news, position=first.position, identifier=first.id, xid=first.xid, time_us=first.committed_us
            )
        changes += transaction.changes[at:]
    return changes
