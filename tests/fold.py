"""Folds what headrace emitted back into tables, and reads the same tables from the server: the two must be equal.

A fold knows no shortcut: an event that doesn't fit what came before it (an update or delete of a row that isn't there) is an
AssertionError, so lost and reordered changes show up even where the end state happens to be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import psycopg

from headrace.cdc.decode.pgvalue import row_kinds, text_value
from headrace.cdc.event import UNCHANGED, Change, CustomerEvent, SchemaEvent

PINNED = (
    "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=postgres -c bytea_output=hex -c extra_float_digits=3 "
    "-c lc_monetary=C -c xmlbinary=base64"
)

Values = dict[str, Any]


class Fold:
    """Tables by ``schema.table``.

    is_snapshotting: before the initial copy is whole, a change may meet no row. copied: tables whose copy is whole already.
    """

    def __init__(self) -> None:
        self.tables: dict[str, dict[tuple[Any, ...], Values]] = {}
        self.bags: dict[str, Counter[tuple[Any, ...]]] = {}
        self.ids: set[str] = set()
        self.is_snapshotting = True
        self.copied: set[str] = set()

    def change(self, change: Change) -> None:
        """Lay one decoded change over the tables."""
        names = [column.name for column in change.table.columns]
        if change.op == "schema":
            self._schema(change.table.name, names, str((change.detail or {}).get("renamed_from", "")))
            return
        if change.op == "message":
            return
        key = [names[index] for index in change.table.key]

        def known(row: tuple[Any, ...] | None) -> Values | None:
            if row is None:
                return None
            return {name: value for name, value in zip(names, row, strict=True) if value is not UNCHANGED}

        self._apply(change.id, change.table.name, change.op, key, known(change.before), known(change.after))

    def event(self, event: CustomerEvent) -> None:
        """Lay one logged event over the tables; heartbeats are nothing."""
        row = event.row
        if row is None or row.op == "message":
            return
        if row.op == "schema":
            told = msgspec.json.decode(event.properties, type=SchemaEvent)
            self._schema(f"{row.schema}.{row.table}", [column.name for column in told.columns], told.renamed_from)
            return
        key = None if row.key is None else msgspec.json.decode(row.key)
        before = None if row.before is None else msgspec.json.decode(row.before)
        after = None if row.op in ("delete", "truncate") else msgspec.json.decode(event.properties)
        if key is not None and after is not None:
            after = {**after, **key}
        self._apply(event.id, f"{row.schema}.{row.table}", row.op, list(key or ()), before, after)

    def _schema(self, table: str, columns: list[str], renamed_from: str) -> None:
        """A new version: rows move with their table's name; a column that came is NULL, one that went is gone."""
        if renamed_from in self.tables:
            self.tables[table] = self.tables.pop(renamed_from)
        if renamed_from in self.bags:
            self.bags[table] = self.bags.pop(renamed_from)
        for row in self.tables.get(table, {}).values():
            kept = {name: row.get(name) for name in columns}
            row.clear()
            row.update(kept)

    def _apply(
        self, identifier: str, table: str, op: str, key: list[str], before: Values | None, after: Values | None
    ) -> None:
        assert identifier not in self.ids, f"{identifier} came twice"
        self.ids.add(identifier)
        if op == "truncate":
            self.tables.pop(table, None)
            self.bags.pop(table, None)
            return
        if not key:
            self._bag(identifier, table, before, after)
            return
        is_strict = not self.is_snapshotting or table in self.copied
        rows = self.tables.setdefault(table, {})
        new = None if after is None else tuple(after[name] for name in key)
        old = new if before is None else tuple(before.get(name, None if after is None else after[name]) for name in key)
        if op == "insert":
            assert new not in rows or not is_strict, f"{identifier}: {table} {new} is there already"
        if op in ("update", "delete"):
            assert old in rows or not is_strict, f"{identifier}: {table} {old} isn't there to {op}"
        former = rows.pop(old, {}) if op in ("update", "delete") else {}
        if new is not None and after is not None:
            rows[new] = {**former, **after}

    def _bag(self, identifier: str, table: str, before: Values | None, after: Values | None) -> None:
        bag = self.bags.setdefault(table, Counter())
        if before is not None:
            row = tuple(sorted(before.items()))
            is_strict = not self.is_snapshotting or table in self.copied
            assert bag[row] > 0 or not is_strict, f"{identifier}: a row of {table} isn't there"
            bag[row] -= 1
        if after is not None:
            bag[tuple(sorted(after.items()))] += 1

    def rows(self, table: str, columns: Sequence[str] | None = None) -> list[Values]:
        """All rows of a table, in the order of their text. columns: only these, in this order; a row must have all of them."""
        if table in self.bags:
            found = [dict(row) for row, count in self.bags[table].items() for _ in range(count)]
        else:
            found = list(self.tables.get(table, {}).values())
        if columns is not None:
            found = [{name: row[name] for name in columns} for row in found]
        return sorted(found, key=repr)


def difference(found: Sequence[Values], wanted: Sequence[Values]) -> str:
    """What tells two sets of rows apart, in few words: the columns that differ, or the first row too many or missing."""
    too_many = [row for row in found if row not in wanted]
    missing = [row for row in wanted if row not in found]
    pairs = zip(too_many, missing, strict=False)
    values = {
        name: (repr(a[name])[-40:], repr(b.get(name))[-40:]) for a, b in pairs for name in a if a[name] != b.get(name)
    }
    return (
        f"{len(found)} rows, not {len(wanted)}; {len(too_many)} too many, {len(missing)} missing: "
        f"{values or [too_many[:1], missing[:1]]}"
    )


def server_rows(dsn: str, table: str) -> list[Values]:
    """The same of the server, by a plain SELECT of each column's text in a session with pinned settings."""
    with psycopg.connect(dsn, options=PINNED) as connection:
        return selected(connection, table)[1]


def selected(connection: psycopg.Connection[Any], table: str) -> tuple[list[str], list[Values]]:
    """Column names and rows of a table. connection: made with PINNED settings."""
    # From the catalogue: a result's own description names a domain's base type.
    columns = connection.execute(
        "select attname, atttypid::int8 from pg_catalog.pg_attribute"
        " where attrelid = %s::text::regclass and attnum > 0 and not attisdropped order by attnum",
        [table],
    ).fetchall()
    quoted = ['"' + name.replace('"', '""') + '"' for name, _ in columns]
    # format() prints by the type's output function; a cast to text would drop the blanks of char(n) and spell out booleans.
    texts = ", ".join(f"case when num_nulls({name}) = 0 then format('%s', {name}) end" for name in quoted)
    kinds = row_kinds([oid for _, oid in columns])
    result: list[Values] = []
    for row in connection.execute(f"select {texts} from {table}").fetchall():
        values: Values = {}
        for (name, _), text, kind in zip(columns, row, kinds, strict=True):
            values[name] = None if text is None else text_value(text.encode(), kind)
        result.append(values)
    return [name for name, _ in columns], sorted(result, key=repr)
