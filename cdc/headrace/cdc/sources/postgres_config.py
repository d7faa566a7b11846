"""A Postgres source's section, its connection settings, and its errors in a user's words.

Every connection, of the stream and of the snapshot alike, pins the settings that decide how values are printed: a database or role
default must change nothing (PostgreSQL 18 manual, "Client Connection Defaults"). Nothing here ever shows a password: a server is named
by host, port, user and database.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import psycopg
from msgspec import Meta
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.cdc.config import Duration, Section
from headrace.cdc.errors import ConfigError, SourceError, SourceRefused, SourceUnavailable

_PINNED = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "xmlbinary": "base64",
    "lc_monetary": "C",
    "search_path": "",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_read_only": "off",
    # A policy would silently hide rows from a snapshot; off makes the server refuse such a read instead.
    "row_security": "off",
}
_CONNECT_TIMEOUT_S = 10
_SHORTEST_HEARTBEAT_US = 50_000


class PostgresConfig(Section, frozen=True):
    """Logical replication of one Postgres database, 13 to 18."""

    dsn: Annotated[
        str,
        Meta(
            description="libpq connection string or URL; give the password by ${VAR}, passfile or service.",
            examples=["postgresql://headrace:${PASSWORD}@db.example:5432/shop"],
        ),
    ]
    tables: Annotated[
        list[Annotated[str, Meta(min_length=1)]],
        Meta(description="Tables to capture, as schema.table; * and ? are wildcards.", min_length=1),
    ] = msgspec.field(default_factory=lambda: ["public.*"])
    exclude: Annotated[
        list[str], Meta(description="Tables not to capture, though tables names them; the same wildcards.")
    ] = msgspec.field(default_factory=list[str])
    snapshot: Annotated[
        Literal["initial", "never"],
        Meta(description="initial: copy existing rows first, while the stream runs; never: changes from now on only."),
    ] = "initial"
    slot: Annotated[
        Annotated[str, Meta(pattern="^[a-z0-9_]{1,63}$")] | None,
        Meta(description="Replication slot; default headrace_<name>, created when missing."),
    ] = None
    publication: Annotated[
        Annotated[str, Meta(min_length=1, max_length=63)] | None,
        Meta(description="Publication; default headrace_<name>, created when missing."),
    ] = None
    messages: Annotated[
        list[Annotated[str, Meta(min_length=1)]],
        Meta(
            description="Prefixes of logical messages (pg_logical_emit_message, Postgres 14 and later) to capture; * and ? are"
            " wildcards, an empty list asks the server for none.",
        ),
    ] = msgspec.field(default_factory=lambda: ["*"])
    heartbeat: Annotated[
        Duration,
        Meta(description="While nothing changes, log time and the confirmed position move on this often."),
    ] = msgspec.field(default_factory=lambda: Duration.parse("1s"))

    def __post_init__(self) -> None:
        if self.heartbeat.us < _SHORTEST_HEARTBEAT_US:
            raise ValueError("heartbeat must be at least 50ms: each one is a log transaction")

    def __repr__(self) -> str:
        return f"PostgresConfig({safe_name(self.dsn)}, tables={self.tables!r})"


def conninfo(config: PostgresConfig, *, replication: bool = False, encoding: str = "UTF8", source: str) -> str:
    """The connection string with everything pinned. Raises ConfigError for a DSN that libpq can't read."""
    try:
        given = conninfo_to_dict(config.dsn)
    except psycopg.ProgrammingError as error:
        # libpq quotes the offending part, which may be the password: only the kind of fault is told.
        raise ConfigError(
            "the configuration has 1 problem",
            problems=(
                (
                    f"sources.{source}.dsn: is no connection string that libpq can read; write "
                    "postgresql://user@host:port/database or host=... port=... user=... dbname=..."
                ),
            ),
        ) from error
    pinned = " ".join(f"-c {name}={value}" for name, value in _PINNED.items())
    options = f"{given.get('options') or ''} {pinned}".strip()
    extra: dict[str, str | int] = {
        "options": options,
        "client_encoding": encoding,
        "application_name": given.get("application_name") or "headrace",
        "connect_timeout": given.get("connect_timeout") or _CONNECT_TIMEOUT_S,
        "keepalives_idle": given.get("keepalives_idle") or 30,
        "tcp_user_timeout": given.get("tcp_user_timeout") or 60_000,
    }
    if replication:
        extra["replication"] = "database"
    return make_conninfo(config.dsn, **extra)


def safe_name(dsn: str) -> str:
    """``user@host:port/database`` of a DSN, for messages; never the password."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "an unreadable DSN"
    if given.get("service"):
        return f"service {given['service']}"
    user = f"{given['user']}@" if given.get("user") else ""
    host = given.get("host") or given.get("hostaddr") or "the local socket"
    return f"{user}{host}:{given.get('port') or 5432}/{given.get('dbname') or given.get('user') or ''}"


_REFUSALS = {
    "password authentication failed": "correct the password that the DSN gives (or the passfile it names)",
    "no password supplied": "give the password in the DSN by ${VAR}, or by a passfile",
    "no pg_hba.conf entry": "let this host and user in: add a line to pg_hba.conf and reload the server",
    "does not exist": "correct user and database in the DSN",
    "is not permitted to log in": "alter role ... login",
    "certificate verify failed": "give the right sslrootcert in the DSN",
}


def connect_error(error: psycopg.Error, *, config: PostgresConfig, source: str) -> SourceError:
    """psycopg's error as one of ours: named by source and server, with what to do."""
    said = _first_line(error)
    server = safe_name(config.dsn)
    state = error.sqlstate or ""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SourceRefused(
            f'source "{source}" may not do what it must on {server}: {said}',
            source=source,
            advice='run "headrace check": it prints the grants that are missing',
        )
    if isinstance(error, psycopg.OperationalError) and not state:
        for words, advice in _REFUSALS.items():
            if words in str(error):
                return SourceRefused(
                    f'source "{source}" can\'t log in to {server}: {said}',
                    source=source,
                    advice=f"{advice} (sources.{source}.dsn)",
                )
        return SourceUnavailable(f'source "{source}" can\'t reach {server}: {said}', source=source)
    if state.startswith(("08", "53", "57")) or isinstance(error, psycopg.OperationalError):
        return SourceUnavailable(f'the server of source "{source}" ({server}) broke off: {said}', source=source)
    return SourceRefused(f'the server of source "{source}" ({server}) refused: {said}', source=source)


def _first_line(error: psycopg.Error) -> str:
    """What went wrong, without psycopg's preamble."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    fatal = next((line for line in lines if "FATAL:" in line), lines[0])
    return fatal.partition("FATAL:")[2].strip() or fatal.strip()
