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
from headrace.cdc.sources.preflight import Finding

_VARIABLES = (
    "version", "log_bin", "binlog_format", "binlog_row_image", "binlog_row_metadata", "gtid_mode", "server_id", "server_uuid",
    "gtid_domain_id", "gtid_binlog_pos", "gtid_executed", "gtid_purged", "log_slave_updates", "log_replica_updates",
    "expire_logs_days", "binlog_expire_logs_seconds", "binlog_row_value_options",
)  # fmt: skip
_SHORTEST_RETENTION_S = 86_400


class ServerFacts(msgspec.Struct):
    """One reading. variables: those that there are. end: where the binlog ends. tables: ``schema.table`` of what the user can see;
    rows: the server's own guess of how many each has.

    is_replica: it applies another server's changes. cascades: tables that a foreign key changes below the binlog.
    """

    variables: dict[str, str]
    end: BinlogPlace
    tables: list[str]
    is_replica: bool
    cascades: list[str]
    rows: dict[str, int] = {}

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

    def findings(self) -> list[Finding]:
        """What would go wrong, with the statements that mend it."""
        found: list[Finding] = []
        says = self.variables.get

        def add(code: str, severity: Any, about: str, message: str, cure: str) -> None:
            found.append(Finding(code, severity, about, message, cure))

        if says("log_bin") not in ("ON", "1"):
            add("log-bin", "error", "log_bin", "is off: there is no binlog to read", "start the server with --log-bin")
        if says("binlog_format") != "ROW":
            add(
                "binlog-format",
                "error",
                "binlog_format",
                f"is {says('binlog_format')}: rows come as statements, or some of them do",
                "set global binlog_format = 'ROW'; (sessions that are open keep theirs)",
            )
        if says("binlog_row_metadata") != "FULL":
            add(
                "row-metadata",
                "error",
                "binlog_row_metadata",
                f"is {says('binlog_row_metadata') or 'missing'}: the binlog doesn't say what columns are called",
                "set global binlog_row_metadata = 'FULL'; and in the server's file",
            )
        if says("binlog_row_image") not in (None, "FULL"):
            add(
                "row-image",
                "info",
                "binlog_row_image",
                f"is {says('binlog_row_image')}: what a statement leaves alone isn't in the binlog, and is listed as unchanged",
                "set global binlog_row_image = 'FULL'; where consumers must see whole rows",
            )
        if says("binlog_row_value_options"):
            add(
                "partial-json",
                "error",
                "binlog_row_value_options",
                "is PARTIAL_JSON: updates of JSON columns hold only differences",
                "set global binlog_row_value_options = '';",
            )
        if not self.has_gtids:
            add(
                "gtid",
                "warning",
                "gtid_mode" if not self.is_mariadb else "gtid_binlog_pos",
                "has no transaction ids: after a failover the source can't go on at another server",
                "set global gtid_mode = ON, step by step, as the server's manual says"
                if not self.is_mariadb
                else "nothing: the first transaction brings one",
            )
        updates = says("log_replica_updates") or says("log_slave_updates")
        if self.is_replica and updates not in ("ON", "1"):
            add(
                "replica-updates",
                "error",
                "log_replica_updates" if not self.is_mariadb else "log_slave_updates",
                "is off: this replica's binlog lacks what comes from its primary",
                "set it in the server's file and restart, or point the DSN at the primary",
            )
        kept_s = int(says("binlog_expire_logs_seconds") or 0) or int(float(says("expire_logs_days") or 0) * 86_400)
        if 0 < kept_s < _SHORTEST_RETENTION_S:
            add(
                "retention",
                "warning",
                "binlog_expire_logs_seconds",
                f"keeps {kept_s} s: an outage that is longer is a gap",
                "set global binlog_expire_logs_seconds = 604800;",
            )
        if self.cascades:
            add(
                "cascade",
                "warning",
                ", ".join(self.cascades[:5]),
                "rows that a foreign key deletes or sets (ON DELETE, ON UPDATE) are in no binlog",
                "let the application, or a trigger, change them",
            )
        return found


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
        """Where the binlog ends; the statement has two names."""
        try:
            rows = await self.query("show binary log status")
        except pymysql.err.ProgrammingError:
            rows = await self.query("show master status")
        return BinlogPlace(str(rows[0][0]), int(rows[0][1])) if rows else BinlogPlace("", 0)

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
        return ServerFacts(
            variables,
            await self.end() if variables.get("log_bin") in ("ON", "1") else BinlogPlace("", 0),
            [f"{schema}.{table}" for schema, table, _ in tables],
            await self._is_replica(),
            sorted(str(name) for (name,) in cascades),
            {f"{schema}.{table}": int(rows) for schema, table, rows in tables},
        )

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
