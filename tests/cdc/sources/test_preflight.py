"""Everything a DBA can have got wrong is named, with the SQL that mends it; the SQL is run and mends it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from fix_servers import Database, postgres_bin
from headrace.cdc.config import EventConfig
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.errors import ConfigError, SourceRefused, SourceUnavailable
from headrace.cdc.sources.postgres import PostgresSource
from headrace.cdc.sources.postgres_config import PostgresConfig
from headrace.cdc.sources.preflight import Finding


async def findings(dsn: str, events: dict[str, EventConfig] | None = None, **fields: object) -> dict[str, Finding]:
    config = PostgresConfig(dsn=dsn, **fields)  # type: ignore[arg-type]
    return {finding.code: finding for finding in await PostgresSource("shop", config, events or {}).check()}


async def test_a_sound_database_has_no_error(database: Database) -> None:
    database.execute("create table t (id int primary key)")
    found = await findings(database.dsn)
    assert not [finding for finding in found.values() if finding.severity == "error"]


async def test_a_missing_table_is_named(database: Database) -> None:
    database.execute("create table t (id int primary key)")
    found = await findings(database.dsn, tables=["public.t", "public.ordres", "t"])
    assert found["no-such-table"].severity == "error"
    with pytest.raises(SourceRefused, match=r"public\.ordres"):
        await PostgresSource("shop", PostgresConfig(dsn=database.dsn, tables=["public.ordres"]), {}).start(None)
    assert not database.execute("select from pg_replication_slots where database = %s", database.name), "nothing made"
    assert not database.execute("select from pg_publication")


@pytest.mark.parametrize("cure", ["replica identity full", None])
async def test_a_table_without_replica_identity_is_refused_before_it_breaks_the_application(
    database: Database, cure: str | None
) -> None:
    database.execute("create table t (id int)")
    database.execute("create table fine (id int primary key)")
    finding = (await findings(database.dsn))["replica-identity"]
    assert finding.object == "public.t"
    if cure is None:
        assert "replica-identity" not in await findings(database.dsn, exclude=["public.t"])
    else:
        assert cure in finding.cure
        database.execute(finding.cure.partition(";")[0])
        assert "replica-identity" not in await findings(database.dsn)


async def test_views_unlogged_and_foreign_tables_are_told_apart(database: Database) -> None:
    database.execute("create table t (id int primary key)")
    database.execute("create view v as select * from t")
    database.execute("create unlogged table u (id int primary key)")
    assert "not-a-table" not in await findings(database.dsn), "a wildcard takes only what can be captured"
    assert "a view" in (await findings(database.dsn, tables=["public.v"]))["not-a-table"].message
    assert "an unlogged table" in (await findings(database.dsn, tables=["public.u"]))["not-a-table"].message


async def test_missing_rights_come_with_the_grants(database: Database) -> None:
    database.execute("create table t (id int primary key)")
    role = f"role_{database.name}"
    database.execute(f"create role {role} login")
    dsn = database.dsn.replace("user=postgres", f"user={role}")
    try:
        found = await findings(dsn)
        assert {"replication-right", "select-right", "publication"} <= set(found)
        database.execute(found["replication-right"].cure.partition(";")[0])
        database.execute(found["select-right"].cure)
        database.execute(found["publication"].cure.removeprefix("as the owner: "))
        assert not [f for f in (await findings(dsn)).values() if f.severity == "error" and f.code != "publication"]
    finally:
        database.execute(f"drop owned by {role}")
        database.execute(f"drop role {role}")


async def test_a_publication_that_leaves_something_out_is_refused(database: Database) -> None:
    database.execute("create table t (id int primary key)")
    database.execute("create table p (id int primary key) partition by range (id)")
    database.execute("create publication headrace_shop for table t with (publish = 'insert')")
    found = await findings(database.dsn)
    assert "update, delete, truncate" in found["publication-actions"].message
    assert found["publication-tables"].severity == "info"
    for code in ("publication-actions", "publication-root"):
        database.execute(found[code].cure)
    found = await findings(database.dsn)
    assert not [finding for finding in found.values() if finding.severity == "error"]


async def test_a_slot_of_another_plugin_or_database_is_refused(database: Database) -> None:
    database.execute("create table t (id int primary key)")
    database.execute("select pg_create_physical_replication_slot('headrace_shop')")
    try:
        assert "physical" in (await findings(database.dsn))["slot-plugin"].message
    finally:
        database.execute("select pg_drop_replication_slot('headrace_shop')")
    with psycopg.connect(database.server.dsn, autocommit=True) as other:
        other.execute("select pg_create_logical_replication_slot('headrace_shop', 'pgoutput')")
        try:
            assert "belongs to database postgres" in (await findings(database.dsn))["slot-database"].message
        finally:
            other.execute("select pg_drop_replication_slot('headrace_shop')")


async def test_a_wrong_column_in_events_is_named(database: Database) -> None:
    database.execute("create table orders (id int primary key, customer_id int)")
    events = {"public.orders": EventConfig(key="custmer_id"), "public.ordres": EventConfig()}
    found = await findings(database.dsn, events)
    assert found["events-column"].object == "events.public.orders.key"
    assert found["events-column"].severity == "error"
    assert found["events-table"].severity == "warning"


@pytest.fixture(scope="module")
def replica_level() -> Iterator[PostgresServer]:
    server = PostgresServer(
        postgres_bin(18), settings={"wal_level": "replica", "fsync": "off", "max_replication_slots": "0"}
    )
    server.start()
    yield server
    server.remove()


async def test_a_server_without_logical_wal_says_how_to_turn_it_on(replica_level: PostgresServer) -> None:
    with psycopg.connect(replica_level.dsn, autocommit=True) as connection:
        connection.execute("create table t (id int primary key)")
    found = await findings(replica_level.dsn)
    assert "alter system set wal_level = 'logical'" in found["wal-level"].cure
    assert "slots" in found
    with pytest.raises(SourceRefused, match='wal_level: is "replica"'):
        await PostgresSource("shop", PostgresConfig(dsn=replica_level.dsn), {}).start(None)


async def test_a_wrong_dsn_never_shows_the_password() -> None:
    secret = "hunter2"
    for dsn in (f"postgresql://u:{secret}@127.0.0.1:1/db", f"host=127.0.0.1 port=1 user=u password={secret}"):
        with pytest.raises(SourceUnavailable) as failed:
            await PostgresSource("shop", PostgresConfig(dsn=dsn), {}).start(None)
        assert "127.0.0.1:1" in failed.value.paragraph()
        assert secret not in failed.value.paragraph()
        assert secret not in repr(PostgresConfig(dsn=dsn))
    with pytest.raises(ConfigError) as refused:
        await PostgresSource("shop", PostgresConfig(dsn=f"hots=x password={secret}"), {}).start(None)
    assert "sources.shop.dsn" in refused.value.paragraph()
    assert secret not in refused.value.paragraph()


async def test_a_wrong_database_or_user_stops_rather_than_retries(database: Database) -> None:
    with pytest.raises(SourceRefused, match='database "nowhere" does not exist'):
        await PostgresSource(
            "shop", PostgresConfig(dsn=database.server.dsn.replace("dbname=postgres", "dbname=nowhere")), {}
        ).start(None)
