"""What a MySQL or MariaDB server says of itself, over one connection for short questions (PyMySQL, in a thread: it knows no asyncio)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import msgspec
import pymysql
from pymysql.converters import conversions

from headrace.cdc.decode.binlog import BinlogPlace
from headrace.cdc.decode.gtid import MySQLGtidSet
from headrace.cdc.sources.mysqlmonitor import BinlogFiles

_VARIABLES = (
    "version", "log_bin", "binlog_format", "binlog_row_image", "binlog_row_metadata", "gtid_mode", "server_id", "server_uuid",
    "gtid_domain_id", "gtid_binlog_pos", "gtid_executed", "gtid_purged", "log_slave_updates", "log_replica_updates",
    "expire_logs_days", "binlog_expire_logs_seconds", "binlog_row_value_options", "innodb_native_foreign_keys",
)  # fmt: skip

_NOT_ALLOWED = (1044, 1142, 1143, 1227)
_LOST = (2006, 2013)


class ServerFacts(msgspec.Struct):
    """One reading. variables: those that there are. end: where the binlog ends. tables: ``schema.table`` of what the user can see;
    rows: the server's own guess of how many each has.

    is_replica: it applies another server's changes. cascades: tables that a foreign key changes. user: quoted, as grants name it; grants: of it,
    as the server writes them. replicas: server ids and hosts that are registered. filters: the only schemas in the binlog, and those left out.
    prepared: names of XA transactions that wait for their outcome, as far as the user may ask.
    """

    variables: dict[str, str]
    end: BinlogPlace
    tables: list[str]
    is_replica: bool
    cascades: list[str]
    rows: dict[str, int] = {}
    user: str = ""
    grants: list[str] = []
    replicas: list[tuple[int, str]] = []
    filters: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    prepared: list[str] = []

    @property
    def is_mariadb(self) -> bool:
        return "mariadb" in self.variables["version"].lower()

    @property
    def has_gtids(self) -> bool:
        return (
            bool(self.variables.get("gtid_binlog_pos")) if self.is_mariadb else self.variables.get("gtid_mode") == "ON"
        )

    @property
    def gtids(self) -> str:
        return self.variables.get("gtid_binlog_pos" if self.is_mariadb else "gtid_executed", "").replace("\n", "")

    @property
    def purged(self) -> MySQLGtidSet:
        return MySQLGtidSet.parse(self.variables.get("gtid_purged", ""))

    @property
    def server(self) -> str:
        return self.variables.get("server_uuid") or (
            f"{self.variables.get('gtid_domain_id', '')}-{self.variables.get('server_id', '')}"
        )


def _words(listed: object) -> tuple[str, ...]:
    return tuple([word for word in str(listed or "").split(",") if word])


_SESSION = "set time_zone = '+00:00', wait_timeout = 2147483, sql_mode = '', sql_select_limit = 18446744073709551615"
"""The server's global settings must change nothing: under a sql_select_limit even SHOW and the catalogue are cut short."""


def shut_down(connection: Any) -> None:
    """Make whoever waits on it in a thread fail now."""
    with contextlib.suppress(OSError, AttributeError):
        connection._sock.shutdown(socket.SHUT_RDWR)


class MySQLServer:
    """One connection; questions go one at a time. Raises PyMySQL's errors."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._connection: Any = None
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        self._connection = await asyncio.to_thread(self._connect)

    def _connect(self) -> Any:
        connection = pymysql.connect(**self._arguments, read_timeout=30, write_timeout=30)
        with connection.cursor() as cursor:
            cursor.execute(_SESSION)
        return connection

    async def query(self, text: str, *args: object) -> list[tuple[Any, ...]]:
        def ask() -> list[tuple[Any, ...]]:
            with self._connection.cursor() as cursor:
                cursor.execute(text, args or None)
                return list(cursor.fetchall())

        async with self._lock:
            return await asyncio.to_thread(ask)

    def raw_connection(self) -> Any:
        """One more connection, blocking, whose rows are the server's own bytes."""
        # What goes out is quoted, what comes in is left alone.
        outward = {kind: convert for kind, convert in conversions.items() if not isinstance(kind, int)}
        arguments: dict[str, Any] = {**self._arguments, "use_unicode": False, "conv": outward, "read_timeout": 3600}
        connection: Any = pymysql.connect(**arguments)
        with connection.cursor() as cursor:
            cursor.execute(_SESSION)
        return connection

    async def lock(self, name: str) -> bool:
        """Hold a named lock for as long as the connection lives; False when somebody else does."""
        return (await self.query("select get_lock(%s, 5)", name[:64])) == [(1,)]

    async def end(self) -> BinlogPlace:
        """Where the binlog ends."""
        rows = await self._status()
        return BinlogPlace(str(rows[0][0]), int(rows[0][1])) if rows else BinlogPlace("", 0)

    async def _status(self) -> list[tuple[Any, ...]]:
        """File, offset, and the filters by schema; the statement has two names."""
        try:
            return await self.query("show binary log status")
        except pymysql.err.ProgrammingError:
            return await self.query("show master status")

    async def files(self) -> BinlogFiles:
        """Empty when the user may not ask."""
        try:
            rows = await self.query("show binary logs")
        except (pymysql.err.ProgrammingError, pymysql.err.InternalError):
            return BinlogFiles()
        except pymysql.err.OperationalError as error:
            if error.args[0] not in _NOT_ALLOWED:
                raise
            return BinlogFiles()
        return BinlogFiles(tuple([(str(name), int(size)) for name, size, *_ in rows]))

    async def facts(self) -> ServerFacts:
        listed = ", ".join(f"'{name}'" for name in _VARIABLES)
        variables = {
            str(name): str(value)
            for name, value in await self.query(
                f"show global variables where variable_name in ({listed})"
            )  # our own names
        }
        tables = await self.query(
            "select table_schema, table_name, coalesce(table_rows, -1) from information_schema.tables"
            " where table_type in ('BASE TABLE', 'SYSTEM VERSIONED')"
        )
        cascades = await self.query(
            "select distinct concat(constraint_schema, '.', table_name) from information_schema.referential_constraints"
            " where delete_rule in ('CASCADE', 'SET NULL') or update_rule in ('CASCADE', 'SET NULL')"
        )
        status = await self._status() if variables.get("log_bin") in ("ON", "1") else []
        (user,) = (await self.query("select current_user()"))[0]
        name, _, host = str(user).rpartition("@")
        return ServerFacts(
            variables,
            BinlogPlace(str(status[0][0]), int(status[0][1])) if status else BinlogPlace("", 0),
            [f"{schema}.{table}" for schema, table, _ in tables],
            await self._is_replica(),
            sorted(str(name) for (name,) in cascades),
            {f"{schema}.{table}": int(rows) for schema, table, rows in tables},
            f"'{name}'@'{host}'",
            [str(grant) for (grant,) in await self.query("show grants")],
            await self._replicas(),
            (_words(status[0][2]), _words(status[0][3])) if status else ((), ()),
            await self._prepared(),
        )

    async def _prepared(self) -> list[str]:
        try:
            rows = await self.query("xa recover")
        except pymysql.err.MySQLError as error:
            if error.args[0] in _LOST:
                raise
            return []  # MySQL wants a right for it
        return [str(row[3]) for row in rows]

    async def _replicas(self) -> list[tuple[int, str]]:
        for statement in ("show replicas", "show slave hosts"):
            try:
                return [(int(row[0]), str(row[1])) for row in await self.query(statement)]
            except (pymysql.err.ProgrammingError, pymysql.err.OperationalError, pymysql.err.InternalError) as error:
                if error.args[0] in _LOST:
                    raise
        return []

    async def may_read(self, schema: str, table: str) -> bool:
        """Whether the user may select from the table."""
        try:
            await self.query(f"select 1 from `{schema.replace('`', '``')}`.`{table.replace('`', '``')}` limit 0")
        except (pymysql.err.ProgrammingError, pymysql.err.OperationalError) as error:
            if error.args[0] not in _NOT_ALLOWED:
                raise
            return False
        return True

    async def _is_replica(self) -> bool:
        for statement in ("show all slaves status", "show replica status"):
            try:
                return bool(await self.query(statement))
            except pymysql.err.MySQLError:
                continue  # the other server's statement, or no right to ask
        return False

    async def close(self) -> None:
        """Closing twice is fine; the lock goes with the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection._force_close()


__all__ = ["MySQLServer", "ServerFacts", "shut_down"]
