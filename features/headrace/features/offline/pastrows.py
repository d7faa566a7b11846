"""Rows of the past for a backfill: a Parquet, CSV or JSON file, or what a query of DuckDB gives, as row changes of one view.

A value becomes what the same value is in the log (headrace.cdc.event): int, bool, float and text stay, numbers that a float can't hold and times become
PostgreSQL's text, bytes its ``\\x`` form. So the kernel reads both the same way. The query runs in DuckDB alone, which also sorts and may spill to disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cdc.errors import DefinitionError
from headrace.cdc.event import Op
from headrace.features.compiled import CompiledView
from headrace.features.offline.reading import connect, error_type, quoted, quoted_text
from headrace.features.rows import RowChange

_READERS: Final = {".parquet": "read_parquet", ".csv": "read_csv", ".json": "read_json", ".ndjson": "read_json"}
_FETCH: Final = 5_000
_OPS: Final[dict[str, Op]] = {
    **dict.fromkeys(("insert", "c", "r", "read", "i"), "insert"),
    **dict.fromkeys(("update", "u"), "update"),
    **dict.fromkeys(("delete", "d"), "delete"),
}
_PLAIN: Final = ("BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_TIMES: Final = ("TIMESTAMP", "TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S", "TIMESTAMP WITH TIME ZONE")
_encode = msgspec.json.Encoder().encode


def relation_of(source: str, option: str) -> str:
    """The query behind a file's name, or the query itself. Raises DefinitionError for a file that isn't there."""
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is not None and len(source.split()) < 3:
        if not path.is_file():
            raise DefinitionError(f"{option[2:]} file {source} doesn't exist", advice=f"correct {option}")
        return f"select * from {reader}({quoted_text(source)})"
    return source.rstrip().rstrip(";")


class PastRows:
    """The rows of a view, oldest first, in parts whose entities are their own.

    at: column of the time at which a row became known. key: columns that tell rows apart, needed with op. op: column that says insert, update
    or delete (also c, r, u, d); without it each row is an insert. until_us: rows from then on are left out. parts: how many, in place of
    rows_a_part. kept: where ``keep`` has put the rows, in place of a source.
    Raises DefinitionError: the query fails, or a column is missing or of a type that can't be a time.
    """

    def __init__(
        self,
        view: CompiledView,
        source: str,
        *,
        at: str = "",
        key: Sequence[str] = (),
        op: str = "",
        until_us: int | None = None,
        rows_a_part: int = 200_000,
        parts: int = 0,
        kept: Path | None = None,
    ) -> None:
        self._view = view
        self._connection = connect()
        table = "past"
        self._error: type[Exception] = error_type()
        self._op = op
        try:
            if kept is None:
                self._connection.execute(f"create temp table past as {relation_of(source, '--rows')}")
            else:
                self._connection.execute(f"attach {quoted_text(str(kept))} as kept (read_only)")
                table = "kept.past"
            self._types = {row[0]: str(row[1]) for row in self._connection.execute(f"describe {table}").fetchall()}
        except self._error as error:
            raise _misread(error) from error
        self._at = self._find_time(at)
        self._key = self._find_key(key)
        where = "true" if until_us is None else f"{self._time(self._at)} < {until_us}"
        try:
            counted = f"select count(*) filter ({where}), count(*), min({self._time(self._at)}), count({quoted(self._at)}) from {table}"
            self.rows, self.all_rows, self.first_us, timed = self._connection.execute(counted).fetchone()
        except self._error as error:
            raise _misread(error) from error
        self.without_time = self.all_rows - timed
        # With updates a row may go from one entity to another: then they can't be told apart beforehand.
        self.parts = 1 if op else parts or max(1, math.ceil(self.rows / rows_a_part))
        entity = ", ".join(quoted(self._column(view.columns[index])) for index, _ in view.entity)
        part = f" and hash({entity}) % {self.parts} = ?" if entity and self.parts > 1 else " and ? is not null"
        columns = [self._value(self._column(name)) for name in view.columns]
        keys = [self._value(name) for name in self._key]
        told = [quoted(op)] if op else ["'insert'"]
        # Of one moment in the order given: an insert and the update behind it may have the same time.
        order = f"{self._time(self._at)}, rowid"
        selected = ", ".join([self._time(self._at), *told, *keys, *columns])
        self._query = f"select {selected} from {table} where {where}{part} order by {order}"

    def part(self, number: int) -> Iterator[RowChange]:
        """The changes of one part; offset counts them. Raises DefinitionError."""
        keys = len(self._key)
        try:
            cursor = self._connection.execute(self._query, [number])
            place = 0
            while rows := cursor.fetchmany(_FETCH):
                for at_us, op, *values in rows:
                    yield self._change(place, at_us, op, values[:keys], values[keys:])
                    place += 1
        except self._error as error:
            raise _misread(error) from error

    def keep(self, path: Path) -> None:
        """Put the rows into a DuckDB file, for other processes. Raises DefinitionError."""
        try:
            self._connection.execute(f"attach {quoted_text(str(path))} as kept")
            self._connection.execute("create table kept.past as select * from past order by rowid")
            self._connection.execute("detach kept")
        except self._error as error:
            raise _misread(error) from error

    def close(self) -> None:
        self._connection.close()

    def _change(self, place: int, at_us: int, said: Any, key: list[Any], values: list[Any]) -> RowChange:
        op = _OPS.get(str(said).lower())
        if op is None:
            raise DefinitionError(
                f"column {self._op} of --rows says {said!r}", advice="insert, update, delete, or c, r, u, d are known"
            )
        image = tuple([_plain(value) for value in values])
        name = b"past:" + (_encode([_plain(value) for value in key]) if key else b"%d" % place)
        return RowChange(place, at_us, at_us, op, name, None, None if op == "delete" else image, None)

    def _find_time(self, at: str) -> str:
        view = self._view
        if at:
            return self._known(at, "--at")
        if view.events is None and view.event_time >= 0:
            return self._column(view.columns[view.event_time])
        for name in ("timestamp", "event_timestamp"):
            if name in self._types:
                return name
        raise DefinitionError(
            f"when the rows of view {view.spec.name!r} became known isn't said", advice="name the column with --at"
        )

    def _find_key(self, key: Sequence[str]) -> list[str]:
        names = list(key) or [self._view.columns[index] for index in self._view.row_key]
        if self._op:
            self._known(self._op, "--op")
            if not names:
                raise DefinitionError(
                    "with --op a row must be known again", advice="name the columns of its primary key with --key"
                )
        return [self._known(name, "--key") for name in names]

    def _known(self, name: str, option: str) -> str:
        if name not in self._types:
            raise DefinitionError(
                f"--rows has no column {name!r}; it has: {', '.join(self._types)}", advice=f"correct {option}"
            )
        return name

    def _column(self, name: str) -> str:
        """Where the view's column stands: under its name, or, of an event, as warehouses call it."""
        bare = name.removeprefix("event.")
        for candidate in (name, *([bare, bare.replace(".", "_")] if self._view.events is not None else [])):
            if candidate in self._types:
                return candidate
        raise DefinitionError(
            f"view {self._view.spec.name!r} reads {name!r}, which --rows doesn't have; it has: {', '.join(self._types)}",
            advice=f"write a query that names it: select ... as {quoted(name)}",
        )

    def _time(self, name: str) -> str:
        kind = self._types[name]
        if kind not in (*_TIMES, "DATE", "VARCHAR"):
            raise DefinitionError(
                f"column {name} of --rows is {kind}, no time",
                advice=f"write a query that makes one: make_timestamp({name} * 1000000) of seconds since 1970",
            )
        return f"epoch_us(cast({quoted(name)} as timestamptz))"

    def _value(self, name: str) -> str:
        column, kind = quoted(name), self._types[name]
        if kind in _PLAIN or kind in ("VARCHAR", "DOUBLE"):
            return column
        if kind == "FLOAT":  # its shortest text, as a server sends it
            return f"cast(cast({column} as varchar) as double)"
        if kind == "BLOB":
            return f"'\\x' || lower(hex({column}))"
        if kind in _TIMES:
            return f"cast(cast({column} as timestamptz) as varchar)"
        if kind.startswith(("STRUCT", "MAP")) or kind.endswith("]"):
            return f"cast(to_json({column}) as varchar)"
        return f"cast({column} as varchar)"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _misread(error: Exception) -> DefinitionError:
    return DefinitionError(
        f"--rows can't be read: {str(error).splitlines()[0]}",
        advice="give a .parquet, .csv or .json file, or an SQL query that DuckDB runs",
    )


__all__ = ["PastRows", "relation_of"]
