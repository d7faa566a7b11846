"""A MySQL or MariaDB source's section, and its errors in a user's words. Nothing here ever shows a password."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import pymysql
from msgspec import Meta

from headrace.cdc.config import Duration, Section
from headrace.cdc.errors import ConfigError, SourceError, SourceRefused, SourceUnavailable

_CONNECT_TIMEOUT_S = 10
_SHORTEST_HEARTBEAT_US = 50_000
_TLS = ("ssl_ca", "ssl_cert", "ssl_key")


class MySQLConfig(Section, frozen=True):
    """The binlog of one MySQL 8, 9 or MariaDB 10.11, 11 server."""

    dsn: Annotated[
        str,
        Meta(
            description="mysql://user:password@host:port, the password by ${VAR}; ?ssl_ca=FILE (and ssl_cert, ssl_key) verifies the server.",
            examples=["mysql://headrace:${PASSWORD}@db.example:3306/?ssl_ca=/etc/headrace/ca.pem"],
        ),
    ]
    tables: Annotated[
        list[Annotated[str, Meta(min_length=1)]],
        Meta(description="Tables to capture, as schema.table; * and ? are wildcards.", min_length=1),
    ]
    exclude: Annotated[
        list[str], Meta(description="Tables not to capture, though tables names them; the same wildcards.")
    ] = msgspec.field(default_factory=list[str])
    snapshot: Annotated[
        Literal["initial", "never"],
        Meta(
            description="initial: copy existing rows first, while the stream runs (each table needs a primary key, MySQL needs GTIDs);"
            " never: changes from now on only."
        ),
    ] = "initial"
    server_id: Annotated[
        Annotated[int, Meta(ge=1, le=0xFFFFFFFF)] | None,
        Meta(description="Id of this reader among the server's replicas; default: a random high one."),
    ] = None
    heartbeat: Annotated[
        Duration,
        Meta(description="While nothing changes, log time and the stored position move on this often."),
    ] = msgspec.field(default_factory=lambda: Duration.parse("1s"))

    def __post_init__(self) -> None:
        if self.heartbeat.us < _SHORTEST_HEARTBEAT_US:
            raise ValueError("heartbeat must be at least 50ms: each one is a log transaction")

    def __repr__(self) -> str:
        return f"MySQLConfig({safe_name(self.dsn)}, tables={self.tables!r})"


def connection_arguments(config: MySQLConfig, *, source: str) -> dict[str, Any]:
    """What pymysql.connect takes. Raises ConfigError for a DSN that can't be read."""
    try:
        parts = urlsplit(config.dsn)
        port = parts.port or 3306
        if parts.scheme != "mysql" or not parts.hostname or not parts.username:
            raise ValueError
    except ValueError as error:
        # The parser quotes the offending part, which may be the password: only the form is told.
        raise ConfigError(
            "the configuration has 1 problem",
            problems=(
                f"sources.{source}.dsn: write mysql://user:password@host:port; in the password @ is %40, / is %2F, : is %3A, % is %25",
            ),
        ) from error
    query = dict(parse_qsl(parts.query))
    unknown = [name for name in query if name not in _TLS]
    if unknown:
        raise ConfigError(
            "the configuration has 1 problem",
            problems=(f"sources.{source}.dsn: {unknown[0]} is unknown; known: {', '.join(_TLS)}",),
        )
    arguments: dict[str, Any] = {
        "host": parts.hostname,
        "port": port,
        "user": unquote(parts.username),
        "password": unquote(parts.password or ""),
        "charset": "utf8mb4",
        "autocommit": True,
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "program_name": "headrace",
        **query,
    }
    if query:
        arguments["ssl_verify_identity"] = "ssl_ca" in query
    return arguments


def safe_name(dsn: str) -> str:
    """``user@host:port`` for messages; never the password."""
    try:
        parts = urlsplit(dsn)
        if parts.scheme != "mysql" or not parts.hostname or "@" in parts.hostname:
            return "an unreadable DSN"
        return f"{unquote(parts.username or '')}@{parts.hostname}:{parts.port or 3306}"
    except ValueError:
        return "an unreadable DSN"


# Error numbers of the server and of the client library (MySQL 9 manual, "Error Message Reference") -> what to do.
_REFUSALS = {
    1044: "grant it the rights that headrace check prints",
    1045: "correct user or password in the DSN, or let this host in (create user ...@'host')",
    1049: "correct the DSN",
    1129: "the server blocked this host after failed attempts: flush hosts",
    1130: "let this host in: create user ...@'host'",
    1227: "grant replication slave, replication client on *.* to the role; on MariaDB: grant replication slave, binlog monitor on *.*",
    1251: "let the user log in by caching_sha2_password or mysql_native_password",
    2026: "correct ssl_ca, ssl_cert and ssl_key in the DSN, or the host name to one that the certificate holds",
    2059: "let the user log in by caching_sha2_password, mysql_native_password or ed25519 (package PyNaCl)",
}


def server_error(error: pymysql.err.MySQLError, *, config: MySQLConfig, source: str) -> SourceError:
    """PyMySQL's error as one of ours: named by source and server, with what to do."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    said = (str(error.args[1] if len(error.args) > 1 else error).splitlines() or ["the connection is closed"])[0]
    server = safe_name(config.dsn)
    if number in _REFUSALS:
        return SourceRefused(
            f'source "{source}" can\'t work on {server}: {said}',
            source=source,
            advice=f"{_REFUSALS[number]} (sources.{source}.dsn)",
        )
    if isinstance(error, (pymysql.err.OperationalError, pymysql.err.InterfaceError)):
        return SourceUnavailable(f'source "{source}" can\'t reach {server}: {said}', source=source)
    return SourceRefused(f'the server of source "{source}" ({server}) refused: {said}', source=source)


__all__ = ["MySQLConfig", "connection_arguments", "safe_name", "server_error"]
