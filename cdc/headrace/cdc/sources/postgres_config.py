"""A Postgres source's section, its connection settings, and its errors in a user's words.

Every connection, of the stream and of the snapshot alike, pins the settings that decide how values are printed: a database or role
default must change nothing (PostgreSQL 18 manual, "Client Connection Defaults"). Nothing here ever shows a password: a server is named
by host, port, user and database.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import psycopg
from msgspec import Meta
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.cdc.config import Duration, Section, Size
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


class WalBudget(Section, frozen=True):
    """How much WAL the server may keep for this source's slot: it lies on the server's disk."""

    warn: Annotated[Size, Meta(description="Above it the source is shown with a warning.")] = msgspec.field(
        default_factory=lambda: Size.parse("4GiB")
    )
    drop: Annotated[
        Size | None,
        Meta(
            description="Above it the slot is dropped, so that the server's disk is safe, and the tables are copied anew (on_gap:"
            " snapshot); never by default."
        ),
    ] = None


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
    snapshot_workers: Annotated[
        int,
        Meta(
            description="Connections that read existing rows at once; large tables are split between them.", ge=1, le=32
        ),
    ] = 2
    slot: Annotated[
        Annotated[str, Meta(pattern="^[a-z0-9_]{1,63}$")] | None,
        Meta(description="Replication slot; default headrace_<name>, created when missing."),
    ] = None
    publication: Annotated[
        Annotated[str, Meta(min_length=1, max_length=63)] | None,
        Meta(description="Publication; default headrace_<name>, created when missing."),
    ] = None
    column_lists: Annotated[
        bool,
        Meta(
            description="From PostgreSQL 15 on, make the publication without the columns that events.TABLE.columns leaves out, so that they"
            " don't travel. Columns that are added later must then be added to it too, and the table can't get REPLICA IDENTITY FULL."
        ),
    ] = False
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
    wal_budget: Annotated[
        WalBudget,
        Meta(
            description="How much WAL the server may keep for this source: warn above one size, drop the slot above another."
        ),
    ] = msgspec.field(default_factory=WalBudget)
    on_gap: Annotated[
        Literal["stop", "snapshot"],
        Meta(
            description="When changes can't be had any more (slot lost or dropped, table out of the publication for a while). stop: and say"
            " what to do; snapshot: empty the tables in the log and copy them anew. Another server or an older backup always stops."
        ),
    ] = "stop"
    failover: Annotated[
        bool,
        Meta(
            description="From PostgreSQL 17 on, on a primary: make the slot one that is copied to standbys "
            "(sync_replication_slots) and survives their promotion. Older servers and standbys can't, and do without."
        ),
    ] = True
    standby_dsn: Annotated[
        str | None,
        Meta(
            description="A standby of this primary: asked now and then whether its copy of the slot would survive a "
            "promotion, for check, status and metrics. Nothing is captured from it."
        ),
    ] = None
    primary_dsn: Annotated[
        str | None,
        Meta(
            description="The primary, when dsn is a standby: there pg_log_standby_snapshot() is called while the slot is "
            "made, which else may wait for long. Nothing is captured from it."
        ),
    ] = None

    spill_folder: Annotated[
        str | None,
        Meta(
            description="Folder for open transactions too large for memory, an absolute path; default: $TMPDIR, else /var/tmp. "
            "The files have no names there and hold rows as the server sent them."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.spill_folder is not None and not Path(self.spill_folder).is_dir():
            raise ValueError(f"spill_folder {self.spill_folder} is no folder: create it, or leave the setting out")
        if self.on_gap == "snapshot" and self.snapshot == "never":
            raise ValueError("on_gap: snapshot copies the tables anew, and snapshot: never forbids it; set one of them")
        if self.wal_budget.drop is not None:
            if self.on_gap != "snapshot":
                raise ValueError("wal_budget.drop leaves a gap behind; say on_gap: snapshot too, or take it out")
            if self.wal_budget.drop.bytes < self.wal_budget.warn.bytes:
                raise ValueError("wal_budget.drop is less than wal_budget.warn; make it more")
        if self.heartbeat.us < _SHORTEST_HEARTBEAT_US:
            raise ValueError("heartbeat must be at least 50ms: each one is a log transaction")

    @property
    def spill_path(self) -> Path | None:
        return None if self.spill_folder is None else Path(self.spill_folder)

    def __repr__(self) -> str:
        return f"PostgresConfig({safe_name(self.dsn)}, tables={self.tables!r})"


def conninfo(
    config: PostgresConfig,
    *,
    replication: bool = False,
    encoding: str = "UTF8",
    decoding_memory: str | None = None,
    source: str,
    field: Literal["dsn", "standby_dsn", "primary_dsn"] = "dsn",
) -> str:
    """The connection string with everything pinned. Raises ConfigError for a DSN that libpq can't read.

    decoding_memory: logical_decoding_work_mem of a stream; what the DSN's own options say goes before it.
    """
    dsn = getattr(config, field)
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        # libpq quotes the offending part, which may be the password: only the kind of fault is told.
        raise ConfigError(
            "the configuration has 1 problem",
            problems=(
                (
                    f"sources.{source}.{field}: is no connection string that libpq can read; write "
                    "postgresql://user@host:port/database or host=... port=... user=... dbname=..."
                ),
            ),
        ) from error
    if _is_torn(dsn, given):
        raise ConfigError(
            "the configuration has 1 problem",
            problems=(
                f"sources.{source}.{field}: the URL falls apart, most likely at a character of the password: write @ as %40, "
                "/ as %2F, : as %3A, ? as %3F, # as %23, % as %25; or give the password by a passfile",
            ),
        )
    pinned = " ".join(f"-c {name}={value}" for name, value in _PINNED.items())
    offered = "" if decoding_memory is None else f"-c logical_decoding_work_mem={decoding_memory} "
    options = f"{offered}{given.get('options') or ''} {pinned}".strip()
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
    return make_conninfo(dsn, **extra)


def _is_torn(dsn: str, given: Mapping[str, object]) -> bool:
    """Whether an unescaped character of the password made a part of it host, port or database: none may be shown then."""
    is_url = dsn.lstrip().startswith(("postgresql://", "postgres://"))
    ports = str(given.get("port") or "").replace(",", "")
    shown = f"{given.get('host') or ''}{given.get('dbname') or ''}"
    return (bool(ports) and not ports.isdigit()) or (is_url and "@" in shown)


def safe_name(dsn: str) -> str:
    """``user@host:port/database`` of a DSN (each of several hosts), for messages; never the password."""
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "an unreadable DSN"
    if _is_torn(dsn, given):
        return "an unreadable DSN"
    if given.get("service"):
        return f"service {given['service']}"
    user = f"{given['user']}@" if given.get("user") else ""
    hosts = str(given.get("host") or given.get("hostaddr") or "the local socket").split(",")
    ports = str(given.get("port") or 5432).split(",")
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    places = ",".join(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))
    return f"{user}{places}/{given.get('dbname') or given.get('user') or ''}"


# What libpq or the server says -> what to do. The first match counts: files come before roles and databases that don't exist.
_REFUSALS = {
    "password authentication failed": "correct the password that the DSN, its passfile or service gives; if it is right, the "
    "role may have expired (the server doesn't say so): alter role ... valid until 'infinity'",
    "no password supplied": "give the password in the DSN by ${VAR}, or by a passfile that only its owner may read (mode 0600)",
    "root certificate file": "give the certificate of the authority that signed the server's as sslrootcert, or take "
    "sslrootcert=system for a publicly known one",
    "certificate file": "give sslcert a file that exists and can be read",
    "private key file": "give sslkey a file that exists and that only its owner may read (mode 0600)",
    "certificate verify failed": "the server's certificate isn't signed by the authority in sslrootcert, or is out of date: give "
    "the right sslrootcert",
    "does not match host name": "connect by a name that the server's certificate holds, or have one made for this name",
    "does not support SSL": "turn ssl on at the server; only on a trusted network lower sslmode",
    "certificate authentication failed": "give sslcert and sslkey of a certificate whose name is the user",
    "no pg_hba.conf entry": "let this host and user in: add a line to pg_hba.conf and reload the server; where it says "
    '"no encryption", sslmode=require may do',
    "pg_hba.conf rejects": "let this host and user in: change the line of pg_hba.conf and reload the server; where it says "
    '"no encryption", sslmode=require may do',
    "definition of service": "write that service into the file that PGSERVICEFILE names (or ~/.pg_service.conf)",
    "service file": "correct the file that PGSERVICEFILE names (or ~/.pg_service.conf)",
    "is not permitted to log in": "alter role ... login",
    "to start WAL sender": "alter role ... replication",
    "to start walsender": "alter role ... replication",  # the words before PostgreSQL 16
    "permission denied for database": "grant connect on database ... to the role",
    "does not exist": "correct user and database in the DSN",
}
_WRONG_ROLES = (
    "session is read-only",
    "session is not read-only",
    "server is in hot standby mode",
    "server is not in hot standby mode",
)


def connect_error(
    error: psycopg.Error, *, config: PostgresConfig, source: str, field: Literal["dsn", "standby_dsn"] = "dsn"
) -> SourceError:
    """psycopg's error as one of ours: named by source and server, with what to do."""
    said = _first_line(error)
    server = safe_name(getattr(config, field))
    state = error.sqlstate or ""
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return SourceRefused(
            f'source "{source}" may not do what it must on {server}: {said}',
            source=source,
            advice='run "headrace check": it prints the grants that are missing',
        )
    if isinstance(error, psycopg.OperationalError) and not state:
        if any(words in str(error) for words in _WRONG_ROLES):
            return SourceUnavailable(
                f'source "{source}" finds no server of the asked role (target_session_attrs) at {server}: {said}',
                source=source,
                advice="promote a standby, or correct target_session_attrs and the hosts in the DSN",
            )
        for words, advice in _REFUSALS.items():
            if words in str(error):
                return SourceRefused(
                    f'source "{source}" can\'t log in to {server}: {said}',
                    source=source,
                    advice=f"{advice} (sources.{source}.{field})",
                )
        return SourceUnavailable(f'source "{source}" can\'t reach {server}: {said}', source=source)
    if state.startswith(("08", "53", "57")) or isinstance(error, psycopg.OperationalError):
        return SourceUnavailable(f'the server of source "{source}" ({server}) broke off: {said}', source=source)
    return SourceRefused(f'the server of source "{source}" ({server}) refused: {said}', source=source)


def _first_line(error: psycopg.Error) -> str:
    """What went wrong, without the preambles of psycopg and libpq; of several hosts, what each said.

    Where a password came from a file, libpq names it: that is told too.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = [line for line in lines if "FATAL:" in line or "connection to server" in line] or lines[:1]
    texts = [line.partition("FATAL:")[2].strip() or line.rpartition("connection failed: ")[2].strip() for line in said]
    files = [line.strip() for line in lines if line.startswith("password retrieved from file")]
    return "; ".join(dict.fromkeys([*texts, *files]))
