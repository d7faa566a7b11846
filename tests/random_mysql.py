"""Random tables, transactions and schema changes on a real MariaDB or MySQL, with the truth taken by SELECT after each commit.

One thread drives several connections, so transactions interleave and still the state after each commit is known: ``truths`` maps a
transaction's GTID to the rows of the tables it touched. What the server refuses (a lock held by another open transaction, a key that
is there) takes back one statement, as programs do. A server that was killed takes the open transactions with it, but not those that are
prepared (XA): they are committed or rolled back later, perhaps by the next server.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pymysql

from fix_mariadb import MariaDBServer
from fix_mysql import MySQLServer
from fold import Values

sys.path.insert(0, str(Path(__file__).parent / "cdc" / "decode"))

from test_binlog import TYPES

_KEYS = {
    "int": "int",
    "bigint unsigned": "bigint unsigned",
    "varchar": "varchar(30) collate utf8mb4_bin",
    "varbinary": "varbinary(20)",
    "date": "date",
    "datetime": "datetime(3)",
    "decimal": "decimal(20,3)",
}
_OWN_SESSION = "set session sql_mode = '', time_zone = '+00:00', innodb_lock_wait_timeout = {}, lock_wait_timeout = 1, autocommit = 0"
_INTEGERS = ("tinyint", "smallint", "mediumint", "int", "bigint")
_HOSTILE = (
    "set global time_zone = '+05:45'",
    "set global sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,PAD_CHAR_TO_FULL_LENGTH'",
    "set global lock_wait_timeout = 3",
    "set global tx_isolation = 'SERIALIZABLE'",
    "set global transaction_isolation = 'SERIALIZABLE'",
    "set global character_set_client = latin1",
    "set global collation_connection = latin1_german2_ci",
    "set global sql_auto_is_null = 1",
    "set global max_sort_length = 64",
    "set global log_bin_compress = 1",
    "set global binlog_transaction_compression = 1",
    "set global binlog_checksum = none",
    "set global binlog_row_event_max_size = 256",
    "set global max_binlog_size = 65536",
    "set global sql_select_limit = 3",
    "set global group_concat_max_len = 8",
    "set global div_precision_increment = 0",
)
"""Settings that must change nothing; one that a server doesn't know is left out."""


class RandomTable:
    """What the driver knows of one table: columns by name with their types, the key's apart."""

    def __init__(self, name: str, key: dict[str, str], columns: dict[str, str]) -> None:
        self.name = name
        self.key = key
        self.columns = columns
        self.version = 0


class RandomMySQL:
    """seed decides everything but the moments at which the capture runs beside it. has_keyless: tables without a key too."""

    def __init__(
        self, server: MariaDBServer, database: str, seed: int, *, has_keyless: bool, connections: int = 3
    ) -> None:
        self.rng = random.Random(seed)
        self.server = server
        self.database = database
        self.is_mysql = isinstance(server, MySQLServer)
        self.has_keyless = has_keyless
        self.image = self.rng.choice(["FULL", "MINIMAL", "NOBLOB", "mixed"])
        self.tables: dict[str, RandomTable] = {}
        self.truths: dict[str, dict[str, tuple[list[str], list[Values]]]] = {}
        self.counts: dict[str, int] = {}
        self.restarts = 0
        self._columns = 0
        self._savepoints = 0
        self._prepared: dict[str, set[str]] = {}
        self.may_prepare = True
        """A source refuses an XA transaction that was prepared before its own first place."""
        self._count = connections
        self._truth: Any = self._connect()
        self._run(
            self._truth, f"drop database if exists {database}", f"create database {database} character set utf8mb4"
        )
        for statement in _HOSTILE:
            if self.rng.random() < 0.4:
                with suppress(pymysql.err.MySQLError):
                    self._run(self._truth, statement)
        self._open_connections()

    def _open_connections(self) -> None:
        self._truth = self._connect()
        self._run(self._truth, "set session transaction isolation level read committed", "set autocommit = 1")
        self._connections = [self._connect() for _ in range(self._count)]
        self._open: dict[int, set[str]] = {}

    def _connect(self) -> Any:
        connection: Any = self.server.connect()
        self._run(
            connection,
            "set names utf8mb4",
            _OWN_SESSION.format(int(self.is_mysql)),
            "set session sql_select_limit = 18446744073709551615",  # the default is what the server is set to
        )
        self._run(connection, "set session transaction isolation level repeatable read")
        image = self.rng.choice(["FULL", "MINIMAL", "NOBLOB"]) if self.image == "mixed" else self.image
        self._run(connection, f"set session binlog_row_image = '{image}'")
        if not self.is_mysql:
            self._run(connection, "set session skip_parallel_replication = 0")
        with suppress(pymysql.err.MySQLError):
            self._run(connection, f"use {self.database}")
        return connection

    def _run(self, connection: Any, *statements: str) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    def close(self) -> None:
        for connection in (*self._connections, self._truth):
            with suppress(pymysql.err.MySQLError):
                connection.close()

    def drop(self) -> None:
        """The database and every setting that isn't the server's own any more."""
        self.close()
        with self.server.connect() as connection:
            self._run(connection, "set session lock_wait_timeout = 3, innodb_lock_wait_timeout = 1")
            for *_, data in self._run(connection, "xa recover"):
                with suppress(pymysql.err.MySQLError):
                    self._run(connection, f"xa rollback '{data}'")
            # What MariaDB calls prepared and can't roll back keeps its tables; the next seed has its own.
            with suppress(pymysql.err.OperationalError):
                self._run(connection, f"drop database if exists {self.database}")

    # the server's own ends

    def restart_server(self, *, is_killed: bool) -> None:
        """End it, by kill -9 or in an orderly way, and start it again: what was open is rolled back."""
        self.restarts += 1
        for connection in (*self._connections, self._truth):
            with suppress(pymysql.err.MySQLError, OSError):
                connection._force_close()
        if is_killed:
            self.server.kill()
        else:
            self.server.stop()
        self.server.start()
        self._open_connections()

    # tables

    def create_table(self, connection: Any = None) -> RandomTable:
        rng = self.rng
        name = rng.choice(["t", "Tab le", "tä", "表", "q`q", "p%s"]) + str(len(self.tables))
        is_keyless = self.has_keyless and rng.random() < 0.3
        key = {f"k{index}": kind for index, kind in enumerate(rng.sample(list(_KEYS), rng.choice([1, 1, 2])))}
        columns = {"n": "int", "big": "text"}
        for _ in range(rng.randrange(0, 6)):
            columns[self._new_column()] = self._random_type()
        if is_keyless:
            columns, key = {"n": "int", "big": "text", "c": "varchar(30)"}, {}
        parts = [f"{_q(column)} {_KEYS[kind]} not null" for column, kind in key.items()]
        parts += [f"{_q(column)} {_nullable(kind)}" for column, kind in columns.items()]
        rng.shuffle(parts)
        if key:
            order = list(key)
            rng.shuffle(order)
            parts.append(f"primary key ({', '.join(_q(column) for column in order)})")
        self._run(connection or self._truth, f"create table {_q(name)} ({', '.join(parts)})")
        table = RandomTable(name, key, columns)
        self.tables[name] = table
        return table

    def _new_column(self) -> str:
        self._columns += 1
        return self.rng.choice(["c", "Col ", "ß"])[:3].strip() + str(self._columns)

    def _random_type(self) -> str:
        while True:
            kind = self.rng.choice(list(TYPES))
            if self.is_mysql and ("compressed" in kind or kind in ("uuid", "inet4", "inet6")):
                continue
            return kind

    # values

    def _value(self, kind: str) -> str:
        if self.rng.random() < 0.15:
            return "null"
        if kind not in TYPES:
            return {"int": str(self.rng.randrange(1000)), "text": self._big()}.get(kind, f"'v{self.rng.randrange(9)}'")
        return self.rng.choice(TYPES[kind][0])

    def _key_value(self, kind: str) -> str:
        number = self.rng.randrange(40)
        match kind:
            case "varchar":
                return f"'k''ä{number}'"
            case "varbinary":
                return f"x'{number * 7:04x}00'"
            case "date":
                return f"('2020-01-01' + interval {number} day)"
            case "datetime":
                return f"('2024-03-31 00:00:00.125' + interval {number} hour)"
            case "decimal":
                return f"{number - 20}.125"
            case "bigint unsigned":
                return str((1 << 64) - 1 - number)
            case _:
                return str(number - 20)

    def _big(self) -> str:
        return f"repeat('{self.rng.choice('abcdef')}', {self.rng.choice([3, 2500, 9000])})"

    def _row(self, table: RandomTable) -> str:
        values = [self._key_value(kind) for kind in table.key.values()]
        values += [self._big() if column == "big" else self._value(kind) for column, kind in table.columns.items()]
        return "(" + ", ".join(values) + ")"

    # one statement

    def _write(self, connection: Any, table: RandomTable, *, is_nested: bool = False) -> None:
        rng = self.rng
        name = _q(table.name)
        columns = ", ".join(_q(column) for column in [*table.key, *table.columns])
        kinds = [
            "insert",
            "insert",
            "rows",
            "replace",
            "upsert",
            "update",
            "update",
            "update",
            "key",
            "delete",
            "savepoint",
        ]
        kind = rng.choice(kinds[: -1 if is_nested else None])
        self.counts[kind] = self.counts.get(kind, 0) + 1
        match kind:
            case "insert":
                self._run(connection, f"insert ignore into {name} ({columns}) values {self._row(table)}")
            case "rows":
                rows = ", ".join(self._row(table) for _ in range(rng.randrange(2, 8)))
                self._run(connection, f"insert ignore into {name} ({columns}) values {rows}")
            case "replace":
                self._run(connection, f"replace into {name} ({columns}) values {self._row(table)}")
            case "upsert":
                self._run(
                    connection,
                    f"insert into {name} ({columns}) values {self._row(table)} on duplicate key update n = {rng.randrange(99)}",
                )
            case "update":
                some = rng.sample(list(table.columns), rng.randrange(1, len(table.columns) + 1))
                settings = [
                    f"{_q(column)} = {self._big() if column == 'big' else self._value(table.columns[column])}"
                    for column in some
                    if column != "big" or rng.random() < 0.3
                ] or ["n = coalesce(n, 0) div 2"]
                self._run(connection, f"update {name} set {', '.join(settings)} where {self._where(table)}")
            case "key":
                if table.key:
                    column = rng.choice(list(table.key))
                    new = self._key_value(table.key[column])
                    self._run(connection, f"update {name} set {_q(column)} = {new} where {self._where(table)}")
            case "delete":
                self._run(connection, f"delete from {name} where {self._where(table)}")
            case _:
                self._savepoints += 1
                savepoint = _q(rng.choice(["s", "S p"]) + str(self._savepoints % 3))
                self._run(connection, f"savepoint {savepoint}")
                for _ in range(rng.randrange(1, 3)):
                    self._try_write(connection, table, is_nested=True)
                end = f"rollback to savepoint {savepoint}" if rng.random() < 0.6 else f"release savepoint {savepoint}"
                self._run(connection, end)

    def _where(self, table: RandomTable) -> str:
        if not table.key:
            return f"n < {self.rng.randrange(1000)} order by n limit {self.rng.randrange(1, 4)}"
        column = self.rng.choice(list(table.key))
        return f"{_q(column)} {self.rng.choice(['=', '=', '<'])} {self._key_value(table.key[column])}"

    def _try_write(self, connection: Any, table: RandomTable, *, is_nested: bool = False) -> None:
        """A statement that fails takes back itself only; a lost connection is none of these."""
        try:
            self._write(connection, table, is_nested=is_nested)
        except (pymysql.err.IntegrityError, pymysql.err.DataError, pymysql.err.OperationalError) as error:
            if error.args[0] in (1213, 2006, 2013):
                raise
            self.counts[str(error.args[0])] = self.counts.get(str(error.args[0]), 0) + 1

    # transactions

    def step(self) -> None:
        """Take one of the connections a little further; commits take the truth."""
        rng = self.rng
        if rng.random() < 0.12 and not self._open and not self._prepared:
            self._alone()
            return
        if self.may_prepare and rng.random() < (0.3 if self._prepared else 0.06):
            self._decide() if self._prepared else self._prepare()
            return
        index = rng.randrange(self._count)
        connection = self._connections[index]
        touched = self._open.setdefault(index, set())
        try:
            for _ in range(rng.randrange(1, 4)):
                table = rng.choice(list(self.tables.values()))
                touched.add(table.name)
                self._try_write(connection, table)
        except pymysql.err.OperationalError as error:
            if error.args[0] != 1213:  # a deadlock: the server took back all of it
                raise
            del self._open[index]
            return
        end = rng.random()
        if end < 0.6:
            self._commit(index)
        elif end < 0.75:
            connection.rollback()
            del self._open[index]

    def finish(self) -> None:
        """Commit what is open, and decide on what is prepared."""
        while self._prepared:
            self._decide()
        for index in list(self._open):
            self._commit(index)

    def _commit(self, index: int) -> None:
        touched = self._open.pop(index)
        before = self.end()
        self._connections[index].commit()
        self._take_truth(before, touched)

    def _prepare(self) -> None:
        """An XA transaction up to where it outlives its connection and its server."""
        xa, touched, connection = f"'{self.database}-{self.counts.get('prepare', 0)}'", set[str](), self._connect()
        try:
            self._run(connection, f"xa start {xa}")
            for _ in range(self.rng.randrange(1, 4)):
                table = self.rng.choice(list(self.tables.values()))
                touched.add(table.name)
                self._try_write(connection, table, is_nested=True)
            self._run(connection, f"xa end {xa}", f"xa prepare {xa}")
        except pymysql.err.MySQLError as error:
            if error.args[0] not in (1213, 1402, 1613, 1614):  # a deadlock: the server has taken back all of it
                raise
            with suppress(pymysql.err.MySQLError):
                self._run(connection, f"xa end {xa}")
            with suppress(pymysql.err.MySQLError):
                self._run(connection, f"xa rollback {xa}")
        else:
            self._prepared[xa] = touched
            self.counts["prepare"] = self.counts.get("prepare", 0) + 1
        finally:
            connection.close()

    def _decide(self) -> None:
        xa = self.rng.choice(list(self._prepared))
        touched = self._prepared.pop(xa)
        outcome = self.rng.choice(["xa commit", "xa commit", "xa rollback"])
        before = self.end()
        deadline = time.monotonic() + 5
        while True:
            try:
                self._run(self._truth, f"{outcome} {xa}")
            except pymysql.err.MySQLError as error:
                if error.args[0] == 1402:
                    outcome = "rolled back"  # MariaDB says so of one that changed no row
                    break
                if error.args[0] != 1397:
                    raise
                is_known = any(f"'{data}'" == xa for *_, data in self._run(self._truth, "xa recover"))
                if not is_known:
                    outcome = "nothing prepared"  # it changed no row, so that there is nothing to decide
                    break
                assert time.monotonic() < deadline, f"{xa} can't be decided"
                time.sleep(0.01)  # the connection that prepared it isn't gone yet
            else:
                break
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if outcome == "xa commit":
            self._take_truth(before, touched)

    def end(self) -> str:
        """What the server has committed; one thread writes, so a difference is one transaction."""
        what = "@@global.gtid_executed" if self.is_mysql else "@@global.gtid_binlog_pos"
        return str(self._run(self._truth, f"select {what}")[0][0]).replace("\n", "")

    def _take_truth(self, before: str, touched: set[str]) -> None:
        """Nothing was logged where nothing changed."""
        after = self.end()
        if after == before:
            return
        if self.is_mysql:
            uuid, _, ranges = after.rpartition(":")
            name = f"{uuid}:{ranges.rpartition('-')[2]}"
        else:
            name = after
        self.truths[name] = {f"{self.database}.{table}": self.truth(table) for table in touched if table in self.tables}

    def _alone(self) -> None:
        """A schema change: nothing else may be open, for it waits for what holds its table."""
        rng = self.rng
        table = rng.choice(list(self.tables.values()))
        kind = rng.choice(["truncate", "add", "drop", "rename", "type", "first", "create", "flush"])
        columns = dict(table.columns)
        known = set(self.tables)
        connection = self._connect()
        try:
            before = self.end()
            self._alter(connection, table, kind)
            connection.commit()
            self._take_truth(before, {table.name} | (set(self.tables) - known))
        except (pymysql.err.OperationalError, pymysql.err.DataError, pymysql.err.IntegrityError) as error:
            table.columns = columns
            for name in set(self.tables) - known:
                del self.tables[name]
            kind = str(error.args[0])
            # A schema change is there or it isn't, whatever became of the rows behind it.
            table.columns = self._columns_of(table)
        finally:
            connection.close()
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def _columns_of(self, table: RandomTable) -> dict[str, str]:
        present = [column for column, *_ in self._run(self._truth, f"show columns from {_q(table.name)}")]
        return {column: table.columns.get(column, "text") for column in present if column not in table.key}

    def _alter(self, connection: Any, table: RandomTable, kind: str) -> None:
        """One schema change; then every row is written anew, for the binlog doesn't carry what ALTER does to rows."""
        rng = self.rng
        name = _q(table.name)
        free = [column for column in table.columns if column not in ("n", "big")]
        match kind:
            case "truncate":
                self._run(connection, f"truncate table {name}")
                return
            case "create":
                self.create_table(connection)
                return
            case "flush":
                self._run(connection, rng.choice(["flush tables", "flush binary logs"]))
                return
            case _ if not table.key:
                return
            case "add" | "first":
                column, type_ = self._new_column(), self._random_type()
                where = "first" if kind == "first" else "after n"
                self._run(connection, f"alter table {name} add {_q(column)} {_nullable(type_)} {where}")
                table.columns[column] = type_
            case "drop":
                if not free:
                    return
                column = rng.choice(free)
                self._run(connection, f"alter table {name} drop {_q(column)}")
                del table.columns[column]
            case "rename":
                if not free:
                    return
                old, column = rng.choice(free), self._new_column()
                self._run(connection, f"alter table {name} rename column {_q(old)} to {_q(column)}")
                table.columns = {column if each == old else each: type_ for each, type_ in table.columns.items()}
            case _:
                column = "n"
                self._run(connection, f"alter table {name} modify n bigint")
        # Every image whole: the rows are rewritten, and what ALTER made of them is in no image that leaves columns out.
        self._run(
            connection,
            "set session binlog_row_image = 'FULL'",
            f"delete from {name} where n is null",
            f"update {name} set n = if(n > 0, n - 1, n + 1)",
        )

    # the truth

    def truth(self, name: str) -> tuple[list[str], list[Values]]:
        """Columns and rows of a table now."""
        return selected(self._truth, self.database, name)


def selected(connection: Any, schema: str, name: str) -> tuple[list[str], list[Values]]:
    """Columns and rows by a plain SELECT, each value as the log has it."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select column_name, data_type, character_set_name from information_schema.columns"
            " where table_schema = %s and table_name = %s order by ordinal_position",
            (schema, name),
        )
        columns = [(str(column), str(kind), charset is not None) for column, kind, charset in cursor.fetchall()]
        asked = [_asked(kind, _q(column), is_text=is_text) for column, kind, is_text in columns]
        cursor.execute(f"select {', '.join(asked)} from {_q(schema)}.{_q(name)}")
        names = [column for column, *_ in columns]
        rows = [
            {column: _said(value, kind) for (column, kind, _), value in zip(columns, row, strict=True)}
            for row in cursor.fetchall()
        ]
    return names, sorted(rows, key=repr)


def _asked(kind: str, quoted: str, *, is_text: bool) -> str:
    """The expression whose text is the value; another than the product's copy asks for, where there is one."""
    if is_text or kind in ("enum", "set", "json"):
        return f"convert({quoted} using utf8mb4)"
    if kind == "bit":
        return f"conv(hex({quoted}), 16, 10)"
    if kind == "year":
        return f"{quoted} + 0"
    if kind == "float":
        return f"cast({quoted} as double)"
    if kind == "double" or kind in _INTEGERS:
        return quoted
    if kind in ("date", "time", "datetime", "timestamp", "decimal"):
        return f"cast({quoted} as char)"
    return f"lower(hex({quoted}))"


def _said(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "bit":
        return int(value)
    if kind == "year" or kind in _INTEGERS:
        return int(value)
    if kind == "double":
        return float(value)
    if kind == "float":
        packed = struct.pack("<f", value)
        # The shortest text that is this float again.
        return next(
            short for digits in range(1, 10) if struct.pack("<f", short := float(f"{value:.{digits}g}")) == packed
        )
    if kind in ("binary", "varbinary", "uuid", "inet4", "inet6", "geometry", "point") or kind.endswith("blob"):
        return "0x" + str(value)
    return str(value)


def _nullable(kind: str) -> str:
    """A column that takes NULL: TIMESTAMP doesn't by itself."""
    return kind if " null" in kind else f"{kind} null"


def _q(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


__all__ = ["RandomMySQL", "selected"]
