"""Random tables, transactions and schema changes on a real Postgres, with the truth taken by SELECT after each commit.

One thread drives several connections, so transactions interleave and still the state after each commit is known: ``truths``
maps a transaction id to the rows of the tables it touched. Whatever the server refuses (a lock held by another open transaction,
a key that is there) rolls back a savepoint or the whole transaction, as programs do.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from fold import PINNED, Values, selected

sys.path.insert(0, str(Path(__file__).parent / "cdc" / "sources"))

from test_postgres_types import LITERALS, NEWER

_Connection = psycopg.Connection[tuple[Any, ...]]

HOSTILE = {
    "DateStyle": "'German, DMY'",
    "IntervalStyle": "sql_standard",
    "TimeZone": "'Asia/Kathmandu'",
    "bytea_output": "escape",
    "extra_float_digits": "'-15'",
    "client_encoding": "LATIN1",
    "search_path": "''",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "xmlbinary": "hex",
    "enable_seqscan": "off",
    "synchronous_commit": "off",
    "statement_timeout": "'1s'",
    "lock_timeout": "'1ms'",
    "idle_in_transaction_session_timeout": "'1s'",
}
NEWER_SETTINGS = {
    "idle_session_timeout": (14, "'300ms'"),
    "transaction_timeout": (17, "'2s'"),
    "logical_decoding_work_mem": (13, "'64kB'"),
    # Every change of an open transaction is streamed at once.
    "debug_logical_replication_streaming": (16, "immediate"),
}
_OWN_SETTINGS = (
    " -c search_path=public -c client_encoding=UTF8 -c statement_timeout=0 -c lock_timeout=40ms"
    " -c idle_in_transaction_session_timeout=0 -c default_transaction_isolation=read\\ committed"
    " -c default_transaction_deferrable=off"
)
_FIXED = ("int4", "int8", "bool", "float8", "date", "timestamptz", "uuid", "macaddr")
"""Types that are never stored out of line: their columns may be renamed and changed in type."""
_KEYS = ("int4", "int8", "text", "date", "uuid", "timestamptz")
_KEYLESS = "bag"


class RandomTable:
    """What the driver knows of one table: columns by name, which of them are the key."""

    def __init__(self, name: str, key: dict[str, str], columns: dict[str, str], *, is_partitioned: bool) -> None:
        self.name = name
        self.key = key
        self.columns = columns
        self.is_partitioned = is_partitioned
        self.is_original = True


class RandomPostgres:
    """seed decides everything but the moments at which the capture runs beside it."""

    def __init__(self, dsn: str, seed: int, *, major: int, connections: int = 3) -> None:
        self.rng = random.Random(seed)
        self.major = major
        self.dsn = dsn
        self.tables: dict[str, RandomTable] = {}
        self.truths: dict[int, dict[str, tuple[list[str], list[Values]]]] = {}
        self.wants_restart = False
        """A table was created that headrace takes up at its next start."""
        self.counts: dict[str, int] = {}
        self._columns = 0
        self._named = 0
        self._hold_hostile()
        self._connections = [self._connect() for _ in range(connections)]
        self._truth = self._connect()
        self._truth.autocommit = True
        self._open: dict[int, tuple[int, set[str]]] = {}
        self._prepared: dict[str, tuple[int, set[str]]] = {}

    def _connect(self) -> _Connection:
        connection = psycopg.connect(self.dsn, options=PINNED + _OWN_SETTINGS, prepare_threshold=None)
        newer = [name for name, (major, _) in NEWER_SETTINGS.items() if major <= self.major and "timeout" in name]
        for name in newer:
            connection.execute(f"set {name} = 0")
        connection.commit()
        return connection

    def _hold_hostile(self) -> None:
        """Set a random half of the settings that must change nothing."""
        with psycopg.connect(self.dsn, autocommit=True) as admin:
            name = admin.info.dbname
            settings = dict(HOSTILE)
            settings |= {key: value for key, (major, value) in NEWER_SETTINGS.items() if major <= self.major}
            for key, value in settings.items():
                if self.rng.random() < 0.5:
                    admin.execute(f"alter database {name} set {key} = {value}")

    def close(self) -> None:
        for name in self._prepared:
            self._truth.execute(f"rollback prepared '{name}'")
        for connection in (*self._connections, self._truth):
            connection.close()

    # tables

    def create_types(self) -> None:
        for statement in (
            "create type mood as enum ('sad', 'it''s')",
            "create domain positive as int check (value > 0)",
            "create type pair as (a int, b text)",
        ):
            self._truth.execute(statement)

    def create_table(self, connection: _Connection | None = None) -> RandomTable:
        rng = self.rng
        # Names that need quotes, with letters of several scripts.
        name = rng.choice(["t", "Tab le", "tä", "表", 'q"q']) + str(len(self.tables))
        shape = rng.choice(["plain", "plain", "full", "index", "partitioned", _KEYLESS])
        types = rng.sample(_KEYS, rng.choice([1, 1, 2]))
        key = {f"k{index}": kind for index, kind in enumerate(types)}
        columns = {"n": "int4", "big": "text"}
        for _ in range(rng.randrange(0, 6)):
            columns[self._new_column()] = self._random_type()
        if shape == _KEYLESS:
            columns, key = {**{f"c{k}": kind for k, kind in key.items()}, **columns}, {}
        parts = [f"{_q(column)} {kind} not null" for column, kind in key.items()]
        parts += [f"{_q(column)} {kind}" for column, kind in columns.items()]
        order = list(key)
        rng.shuffle(order)
        listed = ", ".join(_q(column) for column in order)
        rng.shuffle(parts)
        if key and shape != "index":
            parts.append(f"primary key ({listed})")
        execute = (connection or self._truth).execute
        by = f" partition by hash ({_q(order[0])})" if shape == "partitioned" else ""
        execute(f"create table {_q(name)} ({', '.join(parts)}){by}")
        if shape == "partitioned":
            for leaf in range(3):
                execute(
                    f"create table {_q(f'{name}_{leaf}')} partition of {_q(name)}"
                    f" for values with (modulus 3, remainder {leaf})"
                )
        if shape == "index":
            execute(f"create unique index {_q(name + '_u')} on {_q(name)} ({listed})")
            execute(f"alter table {_q(name)} replica identity using index {_q(name + '_u')}")
        if shape in ("full", _KEYLESS):
            execute(f"alter table {_q(name)} replica identity full")
        execute(f"alter table {_q(name)} alter big set storage external")
        table = RandomTable(name, key, columns, is_partitioned=shape == "partitioned")
        self.tables[name] = table
        return table

    def _new_column(self) -> str:
        self._columns += 1
        return self.rng.choice(["c", "Col ", "ß"]) + str(self._columns)

    def _random_type(self) -> str:
        while True:
            kind = self.rng.choice(list(LITERALS))
            if NEWER.get(kind, 0) <= self.major:
                return kind

    # values

    def _value(self, kind: str) -> str:
        """A literal as SQL text."""
        rng = self.rng
        if rng.random() < 0.15:
            return "null"
        value = rng.choice(LITERALS[kind])
        quoted = value if "'" in value or value == "row(null, null)" else f"'{value}'"
        return f"({quoted})::{kind}"

    def _key_value(self, kind: str) -> str:
        number = self.rng.randrange(40)
        match kind:
            case "text":
                return f"'k''{number}\\'"
            case "date":
                return f"(date '2020-01-01' + {number})"
            case "uuid":
                return f"md5('{number}')::uuid"
            case "timestamptz":
                return f"(timestamptz '2024-03-31 00:00+01' + {number} * interval '1 hour')"
            case _:
                return f"{number - 20}::{kind}"

    def _big(self) -> str:
        return f"repeat('{self.rng.choice('abcdef')}', {self.rng.choice([3, 2500, 9000])})"

    def _row(self, table: RandomTable) -> str:
        values = [self._key_value(kind) for kind in table.key.values()]
        values += [self._big() if column == "big" else self._value(kind) for column, kind in table.columns.items()]
        return "(" + ", ".join(values) + ")"

    # one statement

    def _write(self, connection: _Connection, table: RandomTable) -> None:
        rng = self.rng
        name = _q(table.name)
        columns = ", ".join(_q(column) for column in [*table.key, *table.columns])
        where = self._where(table)
        kind = rng.choice(
            ["insert", "insert", "rows", "update", "update", "update", "key", "delete", "copy", "savepoint"]
        )
        self.counts[kind] = self.counts.get(kind, 0) + 1
        on_conflict = " on conflict do nothing" if table.key else ""
        match kind:
            case "insert":
                connection.execute(f"insert into {name} ({columns}) values {self._row(table)}{on_conflict}".encode())
            case "rows":
                rows = ", ".join(self._row(table) for _ in range(rng.randrange(2, 8)))
                connection.execute(f"insert into {name} ({columns}) values {rows}{on_conflict}".encode())
            case "update":
                some = rng.sample(list(table.columns), rng.randrange(1, len(table.columns) + 1))
                settings = [
                    f"{_q(column)} = {self._big() if column == 'big' else self._value(table.columns[column])}"
                    for column in some
                    if column != "big" or rng.random() < 0.3
                ] or ["n = coalesce(n, 0) / 2"]
                connection.execute(f"update {name} set {', '.join(settings)} where {where}".encode())
            case "key":
                if table.key:
                    column = rng.choice(list(table.key))
                    new = self._key_value(table.key[column])
                    connection.execute(f"update {name} set {_q(column)} = {new} where {where}".encode())
            case "delete":
                connection.execute(f"delete from {name} where {where}".encode())
            case "copy":
                number = rng.randrange(40, 1_000_000)
                if all(each in ("int4", "int8", "text") for each in table.key.values()):
                    names = ", ".join(_q(column) for column in [*table.key, "n", "big"])
                    with connection.cursor().copy(f"copy {name} ({names}) from stdin".encode()) as copy:
                        for row in range(rng.randrange(1, 30)):
                            copy.write_row([*[number + row] * len(table.key), row, "é" * row])
            case _:
                keeps = rng.random() < 0.4
                with connection.transaction(force_rollback=not keeps):
                    for _ in range(rng.randrange(1, 3)):
                        self._write(connection, table)

    def _where(self, table: RandomTable) -> str:
        if not table.key:
            return f"ctid in (select ctid from {_q(table.name)} limit {self.rng.randrange(1, 4)})"
        column = self.rng.choice(list(table.key))
        return f"{_q(column)} {self.rng.choice(['=', '=', '<'])} {self._key_value(table.key[column])}"

    def _try_write(self, connection: _Connection, table: RandomTable) -> None:
        """A statement that fails takes back itself only, as a program with savepoints would do."""
        try:
            with connection.transaction():
                self._write(connection, table)
        except psycopg.Error as error:
            kind = type(error).__name__
            self.counts[kind] = self.counts.get(kind, 0) + 1

    # transactions

    def step(self) -> None:
        """Take one of the connections a little further; commits take the truth."""
        rng = self.rng
        if rng.random() < 0.12:
            self._alone()
            return
        index = rng.randrange(len(self._connections))
        connection = self._connections[index]
        if index not in self._open:
            self._open[index] = (self._xid(connection), set())
        xid, touched = self._open[index]
        for _ in range(rng.randrange(1, 4)):
            table = rng.choice(list(self.tables.values()))
            touched.add(table.name)
            self._try_write(connection, table)
        end = rng.random()
        if end < 0.5:
            connection.commit()
            self._take_truth(xid, touched)
        elif end < 0.6:
            connection.rollback()
        elif end < 0.68:
            self._named += 1
            name = f"p{self._named}-{id(self)}"
            connection.execute(f"prepare transaction '{name}'")
            connection.rollback()
            self._prepared[name] = (xid, touched)
        else:
            return
        del self._open[index]
        if self._prepared and rng.random() < 0.3:
            self._end_prepared(rng.choice(list(self._prepared)), is_kept=rng.random() < 0.7)

    def finish(self) -> None:
        """Commit what is open, and one more row in every table, so that each has an end to wait for."""
        for name in list(self._prepared):
            self._end_prepared(name, is_kept=True)
        for index, (xid, touched) in self._open.items():
            self._connections[index].commit()
            self._take_truth(xid, touched)
        self._open = {}

    def _end_prepared(self, name: str, *, is_kept: bool) -> None:
        xid, touched = self._prepared.pop(name)
        self._truth.execute(f"{'commit' if is_kept else 'rollback'} prepared '{name}'")
        if is_kept:
            self._take_truth(xid, touched)

    def _alone(self) -> None:
        """A transaction that locks a table wholly: nothing else may stand between it and the truth."""
        rng = self.rng
        connection = self._connect()
        try:
            xid = self._xid(connection)
            table = rng.choice(list(self.tables.values()))
            touched = {table.name}
            kind = rng.choice(["truncate", "add", "drop", "rename", "type", "create"])
            before = (dict(table.columns), set(self.tables))
            try:
                for _ in range(rng.randrange(0, 3)):
                    self._write(connection, table)
                if kind == "create":
                    if len(self.tables) > 5:
                        return
                    table = self.create_table(connection)
                    table.is_original = False
                    touched.add(table.name)
                else:
                    self._alter(connection, table, kind)
                for _ in range(rng.randrange(0, 3)):
                    self._write(connection, table)
                connection.commit()
            except psycopg.Error as error:
                connection.rollback()
                table.columns = before[0] if table.name in before[1] else table.columns
                for name in set(self.tables) - before[1]:
                    del self.tables[name]
                kind = type(error).__name__
            else:
                self._take_truth(xid, touched)
                self.wants_restart = self.wants_restart or kind == "create"
            self.counts[kind] = self.counts.get(kind, 0) + 1
        finally:
            connection.close()

    def _alter(self, connection: _Connection, table: RandomTable, kind: str) -> None:
        """One schema change; then every row is written anew, for the stream doesn't carry what a rewrite does to rows."""
        rng = self.rng
        name = _q(table.name)
        if kind == "truncate" or not table.key:
            connection.execute(f"truncate {name}")
        free = [column for column, type_ in table.columns.items() if column not in ("n", "big") and type_ in _FIXED]
        match kind:
            case "add":
                column, type_ = self._new_column(), self._random_type()
                default = self._value(type_)
                connection.execute(f"alter table {name} add {_q(column)} {type_} default {default}".encode())
                table.columns[column] = type_
            case "drop":
                droppable = [column for column in table.columns if column not in ("n", "big")]
                if not droppable:
                    return
                column = rng.choice(droppable)
                connection.execute(f"alter table {name} drop {_q(column)}")
                del table.columns[column]
            case "rename":
                if not free:
                    return
                old, column = rng.choice(free), self._new_column()
                connection.execute(f"alter table {name} rename {_q(old)} to {_q(column)}")
                table.columns = {column if each == old else each: type_ for each, type_ in table.columns.items()}
            case "type":
                if not free:
                    return
                column = rng.choice(free)
                connection.execute(
                    f"alter table {name} alter {_q(column)} drop default,"
                    f" alter {_q(column)} type text using {_q(column)}::text"
                )
                table.columns[column] = "text"
            case _:
                return
        connection.execute(f"update {name} set n = n")

    def _xid(self, connection: _Connection) -> int:
        row = connection.execute("select pg_current_xact_id()::text").fetchone()
        assert row is not None
        return int(row[0]) & 0xFFFFFFFF

    def _take_truth(self, xid: int, touched: set[str]) -> None:
        self.truths[xid] = {f"public.{name}": self.truth(name) for name in touched if name in self.tables}

    def truth(self, name: str) -> tuple[list[str], list[Values]]:
        """Columns and rows of a table now."""
        return selected(self._truth, _q(name))


def _q(name: str) -> str:
    return sql.Identifier(name).as_string(None)


__all__ = ["RandomPostgres"]
