"""What would go wrong with a MySQL or MariaDB source, said before anything is touched, with the statement that mends it.

Pure: what the server says of itself, its tables and the configuration in, findings out. ``headrace check`` prints all of them; a start refuses on
errors only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from headrace.cdc.config import EventConfig
from headrace.cdc.event import MESSAGE_SCHEMA, TableSchema
from headrace.cdc.sources.mysql_config import MySQLConfig
from headrace.cdc.sources.mysqlserver import ServerFacts
from headrace.cdc.sources.mysqltable import CopiedTable, quoted_name
from headrace.cdc.sources.preflight import Finding

_SHORTEST_RETENTION_S = 86_400
_GOOD_RETENTION_S = 7 * 86_400
_ORDER = {"error": 0, "warning": 1, "info": 2}


def findings(
    facts: ServerFacts,
    config: MySQLConfig,
    *,
    source: str,
    tables: Sequence[CopiedTable],
    refused: Sequence[Finding] = (),
    events: Mapping[str, EventConfig],
) -> list[Finding]:
    """Everything found, errors first. tables: the captured ones that the user can see; refused: what reading them has told already."""
    found = [
        *_binlog(facts),
        *_place(facts, config, source),
        *rights(facts, config, tables),
        *_filters(facts, tables),
        *_patterns(facts, config, source),
        *refused,
        *(finding for table in tables for finding in table_findings(table, config, source)),
        *_prepared(facts),
        *_cascades(facts, {table.schema.name for table in tables}),
        *_events(tables, events),
    ]
    return sorted(found, key=lambda finding: _ORDER[finding.severity])


def _prepared(facts: ServerFacts) -> Iterator[Finding]:
    if facts.prepared:
        yield Finding(
            "prepared-xa",
            "warning",
            "XA RECOVER",
            f"lists {len(facts.prepared)} prepared transaction{'s' if len(facts.prepared) > 1 else ''}: one that was prepared before this source's "
            "very first start stops it when it commits",
            "decide on them before the first start: xa commit, or xa rollback",
        )


def _binlog(facts: ServerFacts) -> Iterator[Finding]:
    says = facts.variables.get
    if says("log_bin") not in ("ON", "1"):
        yield Finding(
            "log-bin", "error", "log_bin", "is off: there is no binlog to read", "start the server with --log-bin"
        )
    if says("binlog_format") != "ROW":
        yield Finding(
            "binlog-format",
            "error",
            "binlog_format",
            f"is {says('binlog_format')}: rows come as statements, or some of them do",
            "set global binlog_format = 'ROW'; (sessions that are open keep theirs)",
        )
    if says("binlog_row_metadata") != "FULL":
        yield Finding(
            "row-metadata",
            "warning",
            "binlog_row_metadata",
            f"is {says('binlog_row_metadata') or 'missing'}: the binlog doesn't say what columns are called, so the catalogue is asked; a table that "
            "is altered while headrace is down or behind, and altered again before its rows are read, stops the source",
            "set global binlog_row_metadata = 'FULL'; and in the server's file",
        )
    if says("binlog_row_image") not in (None, "FULL"):
        yield Finding(
            "row-image",
            "info",
            "binlog_row_image",
            f"is {says('binlog_row_image')}: what a statement leaves alone isn't in the binlog, and is listed as unchanged",
            "set global binlog_row_image = 'FULL'; where consumers must see whole rows",
        )
    if says("binlog_row_value_options"):
        yield Finding(
            "partial-json",
            "info" if says("binlog_row_image") in (None, "FULL") else "warning",
            "binlog_row_value_options",
            "is PARTIAL_JSON: updates of JSON columns hold only differences, which are applied to the old document; where the row image lacks that "
            "(binlog_row_image isn't FULL), the new one is listed as undecodable",
            "set global binlog_row_image = 'FULL'; or set global binlog_row_value_options = '';",
        )
    updates = says("log_replica_updates") or says("log_slave_updates")
    if facts.is_replica and updates not in ("ON", "1"):
        yield Finding(
            "replica-updates",
            "error",
            "log_replica_updates" if not facts.is_mariadb else "log_slave_updates",
            "is off: this replica's binlog lacks what comes from its primary",
            "set it in the server's file and restart, or point the DSN at the primary",
        )
    kept_s = int(says("binlog_expire_logs_seconds") or 0) or int(float(says("expire_logs_days") or 0) * 86_400)
    if 0 < kept_s < _GOOD_RETENTION_S:
        yield Finding(
            "retention",
            "warning" if kept_s < _SHORTEST_RETENTION_S else "info",
            "binlog_expire_logs_seconds",
            f"keeps {kept_s} s: an outage that is longer is a gap",
            f"set global binlog_expire_logs_seconds = {_GOOD_RETENTION_S};",
        )


def _place(facts: ServerFacts, config: MySQLConfig, source: str) -> Iterator[Finding]:
    if not facts.has_gtids:
        yield Finding(
            "gtid",
            "warning",
            "gtid_mode" if not facts.is_mariadb else "gtid_binlog_pos",
            "has no transaction ids: after a failover the source can't go on at another server",
            "set global gtid_mode = ON, step by step, as the server's manual says"
            if not facts.is_mariadb
            else "nothing: the first transaction brings one",
        )
        if config.snapshot == "initial" and not facts.is_mariadb:
            yield Finding(
                "no-copy",
                "error",
                f"sources.{source}.snapshot",
                "existing rows can't be copied without transaction ids: nothing else says what a SELECT has seen",
                "set global gtid_mode = ON, step by step, as the server's manual says; or snapshot: never, for changes from now on",
            )
    own = facts.variables.get("server_id", "")
    if own == "0":
        yield Finding(
            "server-id", "error", "server_id", "is 0: the server serves no replicas", "set global server_id = 1;"
        )
    if config.server_id is None:
        return
    others = {number for number, host in facts.replicas if host != "headrace"}
    if str(config.server_id) == own or config.server_id in others:
        whose = "the server's own" if str(config.server_id) == own else "a replica's"
        yield Finding(
            "server-id",
            "error",
            f"sources.{source}.server_id",
            f"{config.server_id} is {whose} too: the server would throw one of the two out",
            "take a number that no server has, or leave it out",
        )


def rights(facts: ServerFacts, config: MySQLConfig, tables: Sequence[CopiedTable]) -> Iterator[Finding]:
    """What the user may not do, as far as its grants say it."""
    if not facts.grants or any(" ON " not in grant for grant in facts.grants):
        return  # it has roles, whose rights aren't listed
    user = facts.user or "the user"
    if not _has(facts, "REPLICATION SLAVE", "*"):
        yield Finding(
            "rights",
            "error",
            f"user {user}",
            "may not read the binlog",
            f"grant replication slave on *.* to {user};",
        )
    if facts.is_mariadb or config.snapshot == "never":
        return
    for schema in sorted({table.schema.schema for table in tables if not table.key and table.is_transactional}):
        if not _has(facts, "LOCK TABLES", schema):
            yield Finding(
                "rights",
                "error",
                f"user {user}",
                f"may not lock the tables of {schema} that have no key, for the moment that a copy of them needs",
                f"grant lock tables on `{schema}`.* to {user};",
            )


def _has(facts: ServerFacts, right: str, schema: str) -> bool:
    """Whether a grant on everything, or on the schema, names the right. Patterns in a grant's schema count as they stand."""
    for grant in facts.grants:
        rights, _, rest = grant.partition(" ON ")
        held = {each.strip() for each in rights.removeprefix("GRANT ").split(",")}
        on = rest.partition(" TO ")[0]
        about = on.replace("\\\\_", "_").partition(".")[0].strip("`")
        if ("ALL PRIVILEGES" in held or right in held) and (
            on == "*.*" or fnmatchcase(schema, about.replace("%", "*"))
        ):
            return True
    return False


def _filters(facts: ServerFacts, tables: Sequence[CopiedTable]) -> Iterator[Finding]:
    only, without = facts.filters
    for schema in sorted({table.schema.schema for table in tables}):
        if (only and schema not in only) or schema in without:
            yield Finding(
                "binlog-filter",
                "warning",
                schema,
                "is left out of the binlog (binlog-do-db, binlog-ignore-db), or a part of its changes is",
                "take the filter out of the server's file and restart it",
            )


def _patterns(facts: ServerFacts, config: MySQLConfig, source: str) -> Iterator[Finding]:
    for pattern in config.tables:
        if not any(fnmatchcase(name, pattern) for name in facts.tables):
            yield Finding(
                "no-such-table",
                "warning",
                f"sources.{source}.tables",
                f'"{pattern}" matches no table that the user can see',
                "correct the name; or grant select on it, which isn't needed for the binlog itself",
            )


def _cascades(facts: ServerFacts, captured: set[str]) -> Iterator[Finding]:
    # From 9.6 on MySQL's foreign keys work above the binlog, unless this is switched on.
    changed = [name for name in facts.cascades if name in captured]
    if changed and facts.variables.get("innodb_native_foreign_keys") != "OFF":
        yield Finding(
            "cascade",
            "warning",
            ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else ""),
            "rows that a foreign key deletes or sets (ON DELETE, ON UPDATE) are in no binlog",
            "let the application, or a trigger, change them",
        )


def table_findings(table: CopiedTable, config: MySQLConfig, source: str) -> Iterator[Finding]:
    """Of one captured table."""
    name, alter = table.schema.name, f"alter table {quoted_name(table.schema.schema, table.schema.table)}"
    for column, charset in table.unreadable:
        yield Finding(
            "charset",
            "warning",
            f"{name}.{column}",
            f"is text of the character set {charset}, which can't be read here: its values are marked undecodable, never guessed",
            f"{alter} modify `{column}` ... character set utf8mb4; or leave it out: events.{name}.columns.exclude",
        )
    if config.snapshot == "initial" and not table.key:
        yield without_key(table, source=source)
    elif not table.is_transactional:
        yield Finding(
            "engine",
            "warning",
            name,
            f"has the engine {table.engine}, without transactions: what a statement wrote before it failed stays, and rows written while a "
            "chunk of it is copied may come twice",
            f"{alter} engine = InnoDB;",
        )


def unreadable(table: TableSchema, user: str) -> Finding:
    """Of a table that is to be copied, and that the user may not select from."""
    return Finding(
        "rights",
        "error",
        table.name,
        "can't be copied: the user may not read it",
        f"grant select on {quoted_name(table.schema, table.table)} to {user};",
    )


def without_key(table: CopiedTable, *, source: str) -> Finding:
    """Of a table whose rows can't be read in the order of a key."""
    name, alter = table.schema.name, f"alter table {quoted_name(table.schema.schema, table.schema.table)}"
    if not table.is_transactional:
        return Finding(
            "no-key",
            "error",
            name,
            f"can't be copied: it has no primary key, or one of an ENUM, SET, BIT or floating type, and its engine {table.engine} "
            "shows no moment of it",
            f"{alter} engine = InnoDB; or add primary key (...); or put it under sources.{source}.exclude, or set snapshot: never",
        )
    if table.schema.key:
        return Finding(
            "no-key",
            "info",
            name,
            "has a primary key of an ENUM, SET, BIT or floating type: its copy is one read, which starts over when it is cut short",
            f"{alter} add primary key (...); of another type, where the table is large",
        )
    return Finding(
        "no-key",
        "warning",
        name,
        "has no primary key: its copy is one read, which starts over when it is cut short, and its events have no row key",
        f"{alter} add primary key (...);",
    )


def _events(tables: Sequence[CopiedTable], events: Mapping[str, EventConfig]) -> Iterator[Finding]:
    known = {table.schema.name: table for table in tables}
    for name, event in events.items():
        if name.startswith(f"{MESSAGE_SCHEMA}."):
            continue
        table = known.get(name)
        if table is None:
            yield Finding(
                "events-table",
                "warning",
                f"events.{name}",
                "is no captured table of this source that the user can see, so the entry has no effect here",
                "correct the name, or take it out",
            )
            continue
        columns = {column.name for column in table.schema.columns}
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


__all__ = ["findings", "rights", "table_findings", "unreadable", "without_key"]
