"""What the server's catalogue says of a source: one reading, for the checks, the start and the snapshot.

Follows the PostgreSQL 18 manual, "System Catalogs". Only reads; knows nothing of the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec
import psycopg

from headrace.cdc.event import Column, TableSchema
from headrace.cdc.sources.postgres_config import PostgresConfig

_Connection = psycopg.AsyncConnection[tuple[object, ...]]


class CatalogueColumn(msgspec.Struct, frozen=True):
    """A column that the stream sends: not dropped, not generated (unless the publication has those), in its column list."""

    number: int
    name: str
    type_oid: int
    type_name: str
    modifier: int
    can_be_toasted: bool


class Table(msgspec.Struct, frozen=True):
    """A table, partitioned table or other relation whose name the configuration matches.

    kind, persistence, identity: letters of pg_class.relkind, relpersistence and relreplident. identity_columns: names in the
    order of the index that is the replica identity (primary key, or the chosen one), else of the primary key; empty without.
    row_filter: SQL condition of the rows that the publication sends, "" for all. unpublished: names of columns that it doesn't.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    is_readable: bool
    is_owned: bool
    has_policies: bool
    estimated_rows: int
    columns: tuple[CatalogueColumn, ...]
    identity_columns: tuple[str, ...]
    row_filter: str = ""
    unpublished: frozenset[str] = frozenset()

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def is_partitioned(self) -> bool:
        return self.kind == "p"

    def table_schema(self) -> TableSchema:
        """The table as the stream announces it. Version 1: the decoder's ``versioned`` gives the true one."""
        names = [column.name for column in self.columns]
        key = tuple(sorted(names.index(name) for name in self.identity_columns if name in names))
        return TableSchema(
            self.schema,
            self.name,
            tuple([Column(column.name, column.type_oid, column.type_name, column.modifier) for column in self.columns]),
            key if len(key) == len(self.identity_columns) else (),
            self.identity,
            self.oid,
        )

    def key_order(self) -> tuple[int, ...]:
        """Indexes into the columns in the order of the index, so that reading in this order is an index scan."""
        names = [column.name for column in self.columns]
        if not all(name in names for name in self.identity_columns):
            return ()
        return tuple([names.index(name) for name in self.identity_columns])

    def typed_key(self) -> tuple[str, ...]:
        """``name type`` of the key's columns in the order of the index."""
        return tuple([f"{self.columns[index].name} {self.columns[index].type_oid}" for index in self.key_order()])


class Slot(msgspec.Struct, frozen=True):
    """A row of pg_replication_slots."""

    plugin: str | None
    database: str | None
    active_pid: int | None
    confirmed_flush_lsn: str | None
    restart_lsn: str | None
    wal_status: str | None
    is_failover: bool = False


class Publication(msgspec.Struct, frozen=True):
    """A publication; lacks: actions it leaves out. filtered: tables it sends only in part (rows or columns)."""

    is_all_tables: bool
    lacks: tuple[str, ...]
    via_root: bool
    table_oids: frozenset[int]
    filtered: tuple[str, ...]


class Catalogue(msgspec.Struct, frozen=True):
    """One reading. wal_lsn: where the server writes (a standby: replays).
    awaited_standby_slots: synchronized_standby_slots (from 17 on). tables: what the configuration selects and can be
    captured; others: what its patterns match but logical replication can't carry. unmatched: patterns that match nothing.
    """

    version: int
    system_identifier: str
    timeline: int
    database: str
    user: str
    is_standby: bool
    wal_level: str
    wal_lsn: str
    clock_us: int
    can_replicate: bool
    is_superuser: bool
    can_create: bool
    free_slots: int
    free_senders: int
    max_slots: int
    max_senders: int
    wal_keep_limit: str
    oldest_transaction: tuple[int, int] | None
    tables: tuple[Table, ...]
    others: tuple[Table, ...]
    unmatched: tuple[str, ...]
    slot: Slot | None
    publication: Publication | None
    hot_standby_feedback: bool = True
    primary_slot_name: str = ""
    awaited_standby_slots: str = ""


_SERVER = """
select current_setting('server_version_num')::int,
       (select system_identifier::text from pg_catalog.pg_control_system()),
       (select timeline_id from pg_catalog.pg_control_checkpoint()),
       pg_catalog.current_database()::text, current_user::text, pg_catalog.pg_is_in_recovery(), current_setting('wal_level'),
       (case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
             else pg_catalog.pg_current_wal_flush_lsn() end)::text,
       (extract(epoch from pg_catalog.clock_timestamp()) * 1000000)::int8,
       r.rolreplication or r.rolsuper or exists (
           select from pg_catalog.pg_roles m where m.rolname in ('rds_replication', 'rds_superuser', 'azure_pg_admin')
           and pg_catalog.pg_has_role(current_user, m.oid, 'member')),
       r.rolsuper,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create'),
       current_setting('max_replication_slots')::int - (select count(*) from pg_catalog.pg_replication_slots)::int,
       current_setting('max_wal_senders')::int - (select count(*) from pg_catalog.pg_stat_get_wal_senders())::int,
       current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int,
       current_setting('max_slot_wal_keep_size', true),
       current_setting('hot_standby_feedback')::bool, current_setting('primary_slot_name'),
       coalesce(current_setting('synchronized_standby_slots', true), '')
  from pg_catalog.pg_roles r where r.rolname = current_user
"""

_OLDEST_TRANSACTION = """
select pid, extract(epoch from pg_catalog.clock_timestamp() - xact_start)::int
  from pg_catalog.pg_stat_activity
 where backend_xid is not null and xact_start is not null and pid <> pg_catalog.pg_backend_pid()
 order by xact_start limit 1
"""

# A leaf partition is captured through its root (publish_via_partition_root), so that moving a row between leaves is an update.
_RELATIONS = """
select c.oid::int8, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
       pg_catalog.has_table_privilege(c.oid, 'select') and pg_catalog.has_schema_privilege(n.oid, 'usage'), pg_catalog.pg_has_role(current_user, c.relowner, 'usage'),
       c.relrowsecurity,
       case when c.relkind = 'p' then
            (select coalesce(sum(greatest(l.reltuples, 0)), -1) from pg_catalog.pg_partition_tree(c.oid) t
               join pg_catalog.pg_class l on l.oid = t.relid where t.isleaf)::int8
            else c.reltuples::int8 end
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f') and not c.relispartition
   and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and (%s::oid is null or c.oid = %s::oid)
 order by n.nspname, c.relname
"""

# Of servers before 15 a publication has no column lists, before 18 no generated columns.
_COLUMNS = """
select a.attrelid::int8, a.attnum::int, a.attname::text, a.atttypid::int8, t.typname::text, a.atttypmod::int,
       a.attstorage in ('x', 'e', 'm')
  from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
  left join pg_catalog.pg_publication p on p.pubname = %s
  left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = a.attrelid
 where a.attrelid = any(%s::oid[]) and a.attnum > 0 and not a.attisdropped and {published}
 order by a.attrelid, a.attnum
"""
_PUBLISHED = (
    (
        180000,
        "case when r.prattrs is null then a.attgenerated = '' or (a.attgenerated = 's' and p.pubgencols = 's')"
        " else a.attnum = any(r.prattrs::int2[]) end",
    ),
    (150000, "a.attgenerated = '' and (r.prattrs is null or a.attnum = any(r.prattrs::int2[]))"),
    (0, "a.attgenerated = ''"),
)

_IDENTITY_COLUMNS = """
select i.indrelid::int8, pg_catalog.array_agg(a.attname::text order by k.place)
  from pg_catalog.pg_index i
  join pg_catalog.pg_class c on c.oid = i.indrelid
  cross join lateral pg_catalog.unnest(i.indkey::int2[]) with ordinality k(number, place)
  join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
 where i.indrelid = any(%s::oid[]) and k.place <= i.indnkeyatts and i.indisvalid
   and case when c.relreplident = 'i' then i.indisreplident else i.indisprimary end
 group by i.indrelid, i.indexrelid
"""

_SLOT = """
select plugin::text, database::text, active_pid, confirmed_flush_lsn::text, restart_lsn::text, wal_status,
       coalesce((pg_catalog.to_jsonb(s) ->> 'failover')::bool, false)
  from pg_catalog.pg_replication_slots s where slot_name = %s
"""

_PUBLICATION = """
select p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,
       (select coalesce(pg_catalog.array_agg(c.oid::int8), '{}') from pg_catalog.pg_publication_tables t
          join pg_catalog.pg_namespace n on n.nspname = t.schemaname
          join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
         where t.pubname = p.pubname)
  from pg_catalog.pg_publication p where p.pubname = %s
"""

_ROW_FILTERS = """
select r.prrelid::int8, pg_catalog.pg_get_expr(r.prqual, r.prrelid)
  from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
 where p.pubname = %s and r.prqual is not null and r.prrelid = any(%s::oid[])
"""

_NAMES = """
select attrelid::int8, attname::text from pg_catalog.pg_attribute
 where attrelid = any(%s::oid[]) and attnum > 0 and not attisdropped and attgenerated = ''
"""

_FILTERED = """
select pg_catalog.format('%%s.%%s', n.nspname, c.relname)
  from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
  join pg_catalog.pg_class c on c.oid = r.prrelid join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where p.pubname = %s and (r.prqual is not null or r.prattrs is not null) order by 1
"""


async def read_catalogue(connection: _Connection, config: PostgresConfig, *, slot: str, publication: str) -> Catalogue:
    """Read everything once. connection: autocommit. Raises psycopg's errors."""
    server = (await _rows(connection, _SERVER))[0]
    oldest = await _rows(connection, _OLDEST_TRANSACTION)
    selected, unmatched = _select(await _rows(connection, _RELATIONS, None, None), config)
    tables = await _tables(connection, selected, publication)
    version = _int(server[0])
    slots = await _rows(connection, _SLOT, slot)
    return Catalogue(
        version=version,
        system_identifier=str(server[1]),
        timeline=_int(server[2]),
        database=str(server[3]),
        user=str(server[4]),
        is_standby=bool(server[5]),
        wal_level=str(server[6]),
        wal_lsn=str(server[7] or ""),
        clock_us=_int(server[8]),
        can_replicate=bool(server[9]),
        is_superuser=bool(server[10]),
        can_create=bool(server[11]),
        free_slots=_int(server[12]),
        free_senders=_int(server[13]),
        max_slots=_int(server[14]),
        max_senders=_int(server[15]),
        wal_keep_limit=str(server[16] or "-1"),
        oldest_transaction=(_int(oldest[0][0]), _int(oldest[0][1])) if oldest else None,
        tables=tuple([table for table in tables if table.kind in "rp" and table.persistence == "p"]),
        others=tuple([table for table in tables if table.kind not in "rp" or table.persistence != "p"]),
        unmatched=unmatched,
        slot=_slot(slots),
        publication=await _publication(connection, publication, version),
        hot_standby_feedback=bool(server[17]),
        primary_slot_name=str(server[18] or ""),
        awaited_standby_slots=str(server[19]),
    )


def _slot(rows: list[tuple[object, ...]]) -> Slot | None:
    if not rows:
        return None
    plugin, database, active_pid, confirmed, restart, status, is_failover = rows[0]
    return Slot(
        _text(plugin),
        _text(database),
        None if active_pid is None else _int(active_pid),
        _text(confirmed),
        _text(restart),
        _text(status),
        bool(is_failover),
    )


def _select(
    relations: list[tuple[object, ...]], config: PostgresConfig
) -> tuple[list[tuple[object, ...]], tuple[str, ...]]:
    """The relations that the patterns select, and the patterns that select none.

    A wildcard takes tables only; views and the like are matched by their plain name, to be told that they can't be.
    """
    unmatched = set(config.tables)
    selected: list[tuple[object, ...]] = []
    for relation in relations:
        name = f"{relation[1]}.{relation[2]}"
        if any(fnmatchcase(name, pattern) for pattern in config.exclude):
            # What is excluded on purpose still shows that the pattern isn't a typing error.
            unmatched -= {pattern for pattern in config.tables if fnmatchcase(name, pattern)}
            continue
        can_be_captured = relation[3] in ("r", "p") and relation[4] == "p"
        matching = {
            pattern for pattern in config.tables if pattern == name or (can_be_captured and fnmatchcase(name, pattern))
        }
        if matching:
            unmatched -= matching
            selected.append(relation)
    return selected, tuple([pattern for pattern in config.tables if pattern in unmatched])


async def current_table(connection: _Connection, oid: int, *, publication: str) -> Table | None:
    """The table as it is now; None when it was dropped, or can't be captured any more."""
    tables = await _tables(connection, await _rows(connection, _RELATIONS, oid, oid), publication)
    return tables[0] if tables and tables[0].kind in "rp" and tables[0].persistence == "p" else None


async def _tables(connection: _Connection, relations: list[tuple[object, ...]], publication: str) -> list[Table]:
    oids = [_int(relation[0]) for relation in relations]
    published = next(words for version, words in _PUBLISHED if connection.info.server_version >= version)
    query = _COLUMNS.format(published=published)
    columns: dict[int, list[CatalogueColumn]] = {oid: [] for oid in oids}
    for oid, number, name, type_oid, type_name, modifier, can_be_toasted in await _rows(
        connection, query, publication, oids
    ):
        columns[_int(oid)].append(
            CatalogueColumn(
                _int(number), str(name), _int(type_oid), str(type_name), _int(modifier), bool(can_be_toasted)
            )
        )
    identity = await _identity_columns(connection, oids)
    filters: dict[int, str] = {}
    names: dict[int, set[str]] = {}
    if connection.info.server_version >= 150000:
        filters = {_int(oid): str(words) for oid, words in await _rows(connection, _ROW_FILTERS, publication, oids)}
        for oid, name in await _rows(connection, _NAMES, oids):
            names.setdefault(_int(oid), set()).add(str(name))
    return [
        Table(
            _int(oid),
            str(schema),
            str(name),
            str(kind),
            str(persistence),
            str(replica_identity),
            bool(is_readable),
            bool(is_owned),
            bool(has_policies),
            _int(rows),
            tuple(columns[_int(oid)]),
            identity.get(_int(oid), ()),
            filters.get(_int(oid), ""),
            frozenset(names.get(_int(oid), set()) - {column.name for column in columns[_int(oid)]}),
        )
        for oid, schema, name, kind, persistence, replica_identity, is_readable, is_owned, has_policies, rows in relations
    ]


async def _identity_columns(connection: _Connection, oids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    return {
        _int(oid): tuple([str(name) for name in _list(names)])
        for oid, names in await _rows(connection, _IDENTITY_COLUMNS, list(oids))
    }


async def _publication(connection: _Connection, name: str, version: int) -> Publication | None:
    rows = await _rows(connection, _PUBLICATION, name)
    if not rows:
        return None
    is_all, inserts, updates, deletes, truncates, via_root, oids = rows[0]
    actions = {"insert": inserts, "update": updates, "delete": deletes, "truncate": truncates}
    # Row filters and column lists came with 15.
    filtered = [str(row[0]) for row in await _rows(connection, _FILTERED, name)] if version >= 150000 else []
    return Publication(
        bool(is_all),
        tuple([action for action, is_sent in actions.items() if not is_sent]),
        bool(via_root),
        frozenset(_int(oid) for oid in _list(oids)),
        tuple(filtered),
    )


async def primary_keys(connection: _Connection, *, oid: int | None = None) -> dict[int, tuple[str, ...]]:
    """Table OID -> primary key columns in the order of the table's columns; all tables, or one."""
    rows = await _rows(
        connection,
        "select i.indrelid::int8, pg_catalog.array_agg(a.attname::text order by a.attnum) from pg_catalog.pg_index i"
        " join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any((i.indkey::int2[])[:i.indnkeyatts - 1])"
        " where i.indisprimary and (%s::oid is null or i.indrelid = %s::oid) group by i.indrelid",
        oid,
        oid,
    )
    return {_int(table): tuple([str(name) for name in _list(names)]) for table, names in rows}


async def type_names(connection: _Connection) -> dict[int, str]:
    """Type OID -> name without modifiers, of every type in the database."""
    rows = await _rows(connection, "select oid::int8, typname::text from pg_catalog.pg_type")
    return {_int(oid): str(name) for oid, name in rows}


async def _rows(connection: _Connection, query: str, *parameters: object) -> list[tuple[object, ...]]:
    cursor = await connection.execute(query.encode(), parameters or None)
    return await cursor.fetchall()


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return list(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  # psycopg: an SQL array
