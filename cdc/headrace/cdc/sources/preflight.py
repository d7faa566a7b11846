"""What would go wrong with a Postgres source, said before anything is touched, with the SQL that mends it.

Pure: a catalogue and the configuration in, findings out. ``headrace check`` prints all of them; a start refuses on errors only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from headrace.cdc.config import EventConfig
from headrace.cdc.errors import SourceRefused
from headrace.cdc.event import MESSAGE_SCHEMA
from headrace.cdc.sources.catalogue import Catalogue, Table
from headrace.cdc.sources.pgpublication import FILTERS_FROM, listed_columns
from headrace.cdc.sources.pgslot import FAILOVER_FROM
from headrace.cdc.sources.postgres_config import PostgresConfig

Severity: TypeAlias = Literal["error", "warning", "info"]

_OLD_TRANSACTION_S = 60


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong or worth knowing.

    code: short and stable, for scripts. object: what it is about. cure: SQL, or words where SQL can't mend it.
    """

    code: str
    severity: Severity
    object: str
    message: str
    cure: str


def findings(
    catalogue: Catalogue,
    config: PostgresConfig,
    *,
    source: str,
    slot: str,
    publication: str,
    events: Mapping[str, EventConfig],
    is_first: bool = True,
) -> list[Finding]:
    """Everything found, errors first. is_first: no state is stored yet, so the slot may still be created."""
    found = [
        *_server(catalogue, source, is_first=is_first),
        *_standby(catalogue),
        *_failover(catalogue, config, slot),
        *_slot(catalogue, source, slot),
        *_tables(catalogue, config, source),
        *_publication(catalogue, publication, source),
        *_filters(catalogue, config, events, publication),
        *_events(catalogue, events),
        *_role(catalogue, config, publication),
    ]
    order: dict[str, int] = {"error": 0, "warning": 1, "info": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def raise_for(found: Iterable[Finding], *, source: str) -> None:
    """Raise SourceRefused naming every error; warnings pass."""
    errors = [finding for finding in found if finding.severity == "error"]
    if not errors:
        return
    raise SourceRefused(
        f'source "{source}" can\'t start: ' + "; ".join(f"{error.object}: {error.message}" for error in errors),
        source=source,
        advice="; ".join(dict.fromkeys(error.cure.rstrip(".") for error in errors)),
    )


def _server(catalogue: Catalogue, source: str, *, is_first: bool) -> Iterator[Finding]:
    major = catalogue.version // 10_000
    if major < 13:
        yield Finding(
            "version", "error", f"server {major}", "PostgreSQL 13 is the oldest that works", "upgrade the server"
        )
    if catalogue.is_standby and major < 16:
        yield Finding(
            "standby",
            "error",
            f"server {major}",
            "a standby before PostgreSQL 16 can't decode its WAL",
            f"point sources.{source}.dsn at the primary",
        )
    if catalogue.wal_level != "logical":
        yield Finding(
            "wal-level",
            "error",
            "wal_level",
            f'is "{catalogue.wal_level}", and changes can only be read from "logical"',
            "alter system set wal_level = 'logical'; then restart the server",
        )
    if not catalogue.can_replicate:
        yield Finding(
            "replication-right",
            "error",
            f"role {catalogue.user}",
            "may not read replication streams",
            f"alter role {_quoted(catalogue.user)} replication; (managed services: grant rds_replication or its like)",
        )
    if is_first and catalogue.slot is None and catalogue.free_slots <= 0:
        yield Finding(
            "slots",
            "error",
            "max_replication_slots",
            f"all {catalogue.max_slots} are in use",
            "drop a slot that nobody needs (select * from pg_replication_slots), or raise max_replication_slots and restart",
        )
    if catalogue.free_senders <= 0:
        yield Finding(
            "senders",
            "error",
            "max_wal_senders",
            f"all {catalogue.max_senders} are in use",
            "end a reader that nobody needs (select * from pg_stat_replication), or raise max_wal_senders and restart",
        )
    if catalogue.wal_keep_limit == "-1":
        yield Finding(
            "wal-keep-limit",
            "info",
            "max_slot_wal_keep_size",
            "is unlimited: while headrace is stopped its slot keeps all WAL, until the disk is full",
            "alter system set max_slot_wal_keep_size = '50GB'; select pg_reload_conf(); (a slot that falls behind more is lost)",
        )
    if catalogue.oldest_transaction is not None and catalogue.oldest_transaction[1] >= _OLD_TRANSACTION_S:
        pid, age_s = catalogue.oldest_transaction
        yield Finding(
            "old-transaction",
            "warning",
            f"backend {pid}",
            f"has had a writing transaction open for {age_s} s: creating the slot waits for it, and it keeps WAL",
            f"end it: select pg_terminate_backend({pid});",
        )


def _standby(catalogue: Catalogue) -> Iterator[Finding]:
    if not catalogue.is_standby:
        return
    if not catalogue.hot_standby_feedback:
        yield Finding(
            "standby-feedback",
            "warning",
            "hot_standby_feedback",
            "is off: a vacuum on the primary can remove catalogue rows that the slot needs, and the slot is then lost",
            "on this standby: alter system set hot_standby_feedback = on; select pg_reload_conf();",
        )
    if not catalogue.primary_slot_name:
        yield Finding(
            "standby-slot",
            "warning",
            "primary_slot_name",
            "is empty: while this standby is disconnected, the primary may remove catalogue rows and WAL that the slot needs",
            "on the primary: select pg_create_physical_replication_slot('standby1', true); "
            "then on this standby: alter system set primary_slot_name = 'standby1'; select pg_reload_conf();",
        )


def _failover(catalogue: Catalogue, config: PostgresConfig, name: str) -> Iterator[Finding]:
    if catalogue.is_standby or config.standby_dsn is None:
        return
    if catalogue.version < FAILOVER_FROM:
        yield Finding(
            "failover-version",
            "warning",
            f"server {catalogue.version // 10_000}",
            "can't copy slots to standbys: after a promotion the slot is gone, and a new log and snapshot are needed",
            "upgrade to PostgreSQL 17 or newer",
        )
        return
    if catalogue.slot is not None and not catalogue.slot.is_failover and not config.failover:
        yield Finding(
            "failover-slot",
            "warning",
            f'slot "{name}"',
            "isn't copied to standbys",
            "take failover: false out; headrace then marks the slot when it starts",
        )
    if not catalogue.awaited_standby_slots:
        yield Finding(
            "failover-order",
            "warning",
            "synchronized_standby_slots",
            "is empty: headrace may have read changes that the standby hasn't got, and then stops after its promotion",
            "name the standby's physical slot: alter system set synchronized_standby_slots = 'standby1'; "
            "select pg_reload_conf();",
        )


def copy_finding(name: str, server: str, *, said: str | None) -> Finding:
    """The standby's copy of the slot wouldn't survive a promotion. said: why it couldn't be asked; None: it has none that would."""
    return Finding(
        "failover-copy",
        "warning",
        f'slot "{name}"',
        f"standby_dsn ({server}) can't be asked: {said}"
        if said is not None
        else f"has no copy on {server} that is synced and not temporary: a promotion now would lose it",
        "let the standby be reached and logged in to by standby_dsn"
        if said is not None
        else "on the standby: alter system set sync_replication_slots = on; alter system set hot_standby_feedback = on; "
        "set primary_slot_name, and dbname in primary_conninfo; select pg_reload_conf(); then on the primary: "
        "select pg_log_standby_snapshot(); a copy becomes durable while headrace runs",
    )


def _slot(catalogue: Catalogue, source: str, name: str) -> Iterator[Finding]:
    slot = catalogue.slot
    if slot is None:
        return
    where = f'slot "{name}"'
    if slot.plugin != "pgoutput":
        kind = f"uses the plugin {slot.plugin}" if slot.plugin else "is a physical slot"
        yield Finding(
            "slot-plugin", "error", where, f"{kind}; pgoutput is needed", f"name another under sources.{source}.slot"
        )
    elif slot.database != catalogue.database:
        yield Finding(
            "slot-database",
            "error",
            where,
            f"belongs to database {slot.database}, not {catalogue.database}",
            f"name another under sources.{source}.slot",
        )
    elif slot.wal_status == "lost" or slot.restart_lsn is None:
        yield Finding(
            "slot-lost",
            "error",
            where,
            "is lost: the server removed WAL that it needed, so the changes in between can't be had any more",
            f"select pg_drop_replication_slot('{name}'); then start with a new log (another log.path) for a fresh snapshot",
        )
    elif slot.active_pid is not None:
        yield Finding(
            "slot-in-use",
            "warning",
            where,
            f"is being read now, by backend {slot.active_pid}",
            f"fine if that is headrace itself; else stop that reader, or name another under sources.{source}.slot",
        )


def _tables(catalogue: Catalogue, config: PostgresConfig, source: str) -> Iterator[Finding]:
    for pattern in catalogue.unmatched:
        yield Finding(
            "no-such-table",
            "error",
            f"sources.{source}.tables",
            f'"{pattern}" matches no table of database {catalogue.database}'
            + ("" if "." in pattern else "; a table is written schema.table"),
            "correct the name, or take it out",
        )
    if not catalogue.tables and not catalogue.unmatched and not catalogue.others:
        yield Finding(
            "no-tables",
            "error",
            f"sources.{source}.exclude",
            f"excludes every table that sources.{source}.tables names",
            "exclude fewer",
        )
    for table in catalogue.others:
        kind = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}.get(
            table.kind, "an unlogged table" if table.persistence == "u" else "a temporary table"
        )
        yield Finding(
            "not-a-table",
            "error",
            table.full_name,
            f"is {kind}, whose changes are in no WAL",
            f"take it out of sources.{source}.tables, or capture the tables behind it",
        )
    published = catalogue.publication.table_oids if catalogue.publication is not None else frozenset[int]()
    for table in catalogue.tables:
        yield from _identity(table, source, is_published=table.oid in published)
        if config.snapshot == "initial" and not table.is_readable:
            yield Finding(
                "select-right",
                "error",
                table.full_name,
                f"role {catalogue.user} may not read it for the initial copy",
                f"grant usage on schema {_quoted(table.schema)} to {_quoted(catalogue.user)}; "
                f"grant select on {_qualified(table)} to {_quoted(catalogue.user)};",
            )
        if config.snapshot == "initial" and table.has_policies and not catalogue.is_superuser and not table.is_owned:
            yield Finding(
                "row-security",
                "warning",
                table.full_name,
                f"has row level security; unless role {catalogue.user} bypasses it the initial copy is refused",
                f"alter role {_quoted(catalogue.user)} bypassrls;",
            )


def _identity(table: Table, source: str, *, is_published: bool) -> Iterator[Finding]:
    has_identity = table.identity == "f" or (table.identity in "di" and bool(table.identity_columns))
    if not has_identity:
        now = "the server refuses" if is_published else "once it is published the server refuses"
        yield Finding(
            "replica-identity",
            "error",
            table.full_name,
            f"has no replica identity: {now} every UPDATE and DELETE of it",
            f"alter table {_qualified(table)} replica identity full; or give it a primary key, or put it under "
            f"sources.{source}.exclude",
        )
    elif table.identity == "d" and any(column.can_be_toasted for column in table.columns):
        yield Finding(
            "large-values",
            "info",
            table.full_name,
            "large values that an update leaves alone aren't sent again: such columns are listed as unchanged",
            f"alter table {_qualified(table)} replica identity full; where consumers must see whole rows",
        )
    if not table.table_schema().key:
        yield Finding(
            "no-key",
            "warning",
            table.full_name,
            "has no key: its copy is one read, which starts over when it is cut short, and its events have no row key",
            f"alter table {_qualified(table)} add primary key (...);",
        )


def _publication(catalogue: Catalogue, name: str, source: str) -> Iterator[Finding]:
    publication = catalogue.publication
    where = f'publication "{name}"'
    if publication is None:
        not_owned = [table for table in catalogue.tables if not table.is_owned]
        if catalogue.is_standby:
            yield Finding(
                "publication",
                "error",
                where,
                "is missing, and a standby can't create it",
                _create(name, catalogue.tables),
            )
        elif not_owned and not catalogue.is_superuser:
            yield Finding(
                "publication",
                "error",
                where,
                f"is missing, and role {catalogue.user} owns not all tables ({_names(not_owned)}), so can't create it",
                "as the owner: " + _create(name, catalogue.tables),
            )
        elif not catalogue.can_create and not catalogue.is_superuser:
            yield Finding(
                "publication",
                "error",
                where,
                f"is missing, and role {catalogue.user} may not create it",
                f"grant create on database {_quoted(catalogue.database)} to {_quoted(catalogue.user)};",
            )
        return
    missing = [table for table in catalogue.tables if table.oid not in publication.table_oids]
    if missing and not publication.is_all_tables:
        can_add = catalogue.is_superuser or all(table.is_owned for table in missing)
        yield Finding(
            "publication-tables",
            "info" if can_add and not catalogue.is_standby else "error",
            where,
            f"lacks {_names(missing)}"
            + ("; headrace adds them" if can_add else f", and role {catalogue.user} can't add them"),
            f"alter publication {_quoted(name)} add table {', '.join(_qualified(table) for table in missing)};",
        )
    if publication.lacks:
        yield Finding(
            "publication-actions",
            "error",
            where,
            f"leaves out {', '.join(publication.lacks)}: those changes would be missed",
            f"alter publication {_quoted(name)} set (publish = 'insert, update, delete, truncate');",
        )
    if any(table.is_partitioned for table in catalogue.tables) and not publication.via_root:
        yield Finding(
            "publication-root",
            "error",
            where,
            "sends partitions under their own names, and the configuration names their root",
            f"alter publication {_quoted(name)} set (publish_via_partition_root = true);",
        )
    if publication.filtered:
        yield Finding(
            "publication-filter",
            "info",
            where,
            f"sends only some rows or columns of {', '.join(publication.filtered)}; the copy reads the same",
            "nothing, if that is meant",
        )


def _filters(
    catalogue: Catalogue, config: PostgresConfig, events: Mapping[str, EventConfig], publication: str
) -> Iterator[Finding]:
    published = catalogue.publication.table_oids if catalogue.publication is not None else frozenset[int]()
    for table in catalogue.tables:
        event = events.get(table.full_name)
        if event is None:
            continue
        if event.where is not None and catalogue.version < FILTERS_FROM:
            yield Finding(
                "row-filter-version",
                "error",
                f"events.{table.full_name}.where",
                "servers before PostgreSQL 15 can't filter rows",
                "take it out, or upgrade the server",
            )
        elif event.where is not None and table.oid in published and not table.row_filter:
            yield Finding(
                "row-filter",
                "error",
                f"events.{table.full_name}.where",
                f'publication "{publication}" was made without it, and sends all rows',
                f"start with a new log and a new publication (another name under publication), or: alter publication {_quoted(publication)}"
                f" drop table {_qualified(table)}; which headrace then adds with the filter, and a new log",
            )
        names = listed_columns(table, event) if config.column_lists else None
        if names is not None and table.oid in published:
            yield Finding(
                "column-list",
                "info",
                table.full_name,
                f'publication "{publication}" was made without a column list: what events leaves out travels, and is dropped here',
                "nothing, or a new log and a new publication",
            )


def _events(catalogue: Catalogue, events: Mapping[str, EventConfig]) -> Iterator[Finding]:
    tables = {table.full_name: table for table in catalogue.tables}
    for name, event in events.items():
        if name.startswith(f"{MESSAGE_SCHEMA}."):
            continue
        table = tables.get(name)
        if table is None:
            yield Finding(
                "events-table",
                "warning",
                f"events.{name}",
                "is no captured table of this source, so the entry has no effect here",
                "correct the name, or take it out",
            )
            continue
        columns = {column.name for column in table.columns} | table.unpublished
        asked = [event.key] if isinstance(event.key, str) else list(event.key or ())
        hidden = event.columns
        named = [
            *(("key", column) for column in asked),
            ("occurred_at", event.occurred_at),
            *(("columns.include", column) for column in hidden.include),
            *(("columns.exclude", column) for column in hidden.exclude),
            *(("columns.hash", column) for column in hidden.hash),
            *(("columns.mask", column) for column in hidden.mask),
        ]
        for field, column in named:
            if column is not None and column not in columns:
                yield Finding(
                    "events-column",
                    "error",
                    f"events.{name}.{field}",
                    f'"{column}" is no column of {name}',
                    f"use one of {', '.join(sorted(columns))}",
                )


def _role(catalogue: Catalogue, config: PostgresConfig, publication: str) -> Iterator[Finding]:
    if not catalogue.is_superuser or not catalogue.tables:
        return
    yield Finding(
        "superuser",
        "info",
        f"role {catalogue.user}",
        "is a superuser; a role of its own with the least rights is enough, once the publication is there",
        "\n".join(role_sql(catalogue, config, publication)),
    )


def role_sql(catalogue: Catalogue, config: PostgresConfig, publication: str, role: str = "headrace") -> list[str]:
    """The statements, to be run by a superuser, that make a role which can do what this source does and no more."""
    name = _quoted(role)
    schemas = sorted({table.schema for table in catalogue.tables})
    statements = [f"create role {name} login replication password '...';"]
    if config.snapshot == "initial":
        statements += [f"grant usage on schema {_quoted(schema)} to {name};" for schema in schemas]
        statements.append(f"grant select on {', '.join(_qualified(table) for table in catalogue.tables)} to {name};")
    if catalogue.publication is None:
        where = "-- on the primary\n" if catalogue.is_standby else ""
        statements.append(where + _create(publication, catalogue.tables))
    return statements


def _create(name: str, tables: Sequence[Table]) -> str:
    listed = ", ".join(_qualified(table) for table in tables)
    return f"create publication {_quoted(name)} for table {listed} with (publish_via_partition_root = true);"


def _names(tables: Sequence[Table]) -> str:
    shown = [table.full_name for table in tables[:5]]
    return ", ".join(shown) + (f" and {len(tables) - 5} more" if len(tables) > 5 else "")


def _qualified(table: Table) -> str:
    return f"{_quoted(table.schema)}.{_quoted(table.name)}"


def _quoted(name: str) -> str:
    """An SQL identifier, quoted only where it must be."""
    if name.isascii() and name.replace("_", "a").isalnum() and name.islower() and not name[0].isdigit():
        return name
    return '"' + name.replace('"', '""') + '"'
