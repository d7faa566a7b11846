"""A failover slot: made so, called safe only when its copy would survive, and a promotion after kill -9 loses and doubles nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psycopg
import pytest
from source_reader import Reader

from fix_servers import matrix_postgres, postgres_bin
from fix_standby import ask, make_standby, promote, wait_until
from fold import server_rows
from headrace.cdc.config import Duration
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.errors import SourceUnavailable
from headrace.cdc.sources.failover import StandbyCopy
from headrace.cdc.sources.postgres import PostgresSource
from headrace.cdc.sources.postgres_config import PostgresConfig

Pair = tuple[PostgresServer, PostgresServer]
_SYNC = {"hot_standby_feedback": "on", "sync_replication_slots": "on", "fsync": "on"}


@pytest.fixture(params=[18, pytest.param(17, marks=pytest.mark.matrix("postgres"))])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with nullcontext(postgres_bin(18)) if request.param == 18 else matrix_postgres(request.param) as binaries:
        yield from made_pair(binaries)


def made_pair(binaries: Path) -> Iterator[Pair]:
    primary = PostgresServer(binaries, settings={"wal_sender_timeout": "10s"})
    primary.start()
    standby = None
    try:
        standby = make_standby(primary, slot="phys", settings=_SYNC)
        ask(primary.dsn, "alter system set synchronized_standby_slots = 'phys'")
        ask(primary.dsn, "select pg_reload_conf()")
        yield primary, standby
    finally:
        if standby is not None:
            standby.remove()
        primary.remove()


async def test_a_promotion_after_kill_9_loses_and_doubles_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgmonitor._ASK_EVERY_S", 0.05)
    primary, standby = pair
    ask(primary.dsn, "create table t (id int primary key, n int)")
    both = (
        f"host=127.0.0.1,127.0.0.1 port={primary.port},{standby.port} user=postgres target_session_attrs=read-write "
        "dbname=postgres"
    )
    r = Reader(both, standby_dsn=standby.dsn, heartbeat=Duration.parse("100ms"))
    committed: list[int] = []
    is_killed = threading.Event()

    def write() -> None:
        with psycopg.connect(primary.dsn, autocommit=True) as connection:
            try:
                for number in range(100_000):
                    connection.execute("insert into t values (%s, 0)", [number])
                    committed.append(number)
            except psycopg.OperationalError:
                is_killed.set()

    await r.start()
    writer = threading.Thread(target=write)
    try:
        await r.until_streaming()
        assert ask(
            primary.dsn, "select failover from pg_replication_slots where slot_name = %s", r.source._server.slot
        ) == [(True,)]
        writer.start()
        assert r.source.status().is_failover_safe is not True

        async def read_until_safe() -> None:
            while not r.source.status().is_failover_safe:
                ask(primary.dsn, "select pg_log_standby_snapshot()")
                seen = r.heartbeats + len(r.changes)
                await r.until(lambda seen=seen: r.heartbeats + len(r.changes) > seen)

        await asyncio.wait_for(read_until_safe(), 60)
        found = await PostgresSource("tpostgres", r.config, {}).check()
        assert not {finding.code for finding in found} & {"failover-copy", "failover-order", "failover-slot"}
        primary.kill()
        await asyncio.to_thread(writer.join, 30)
        assert is_killed.is_set()
        with pytest.raises(SourceUnavailable):
            await r.until(lambda: False)
        with pytest.raises(SourceUnavailable, match="target_session_attrs|can't reach"):
            await r.start()  # no server takes writes yet: tried again, not given up
        promote(standby)
        await r.restart(forget_confirmations=True)
        ask(standby.dsn, "insert into t values (-1, 0)")
        await r.until(lambda: any(change.after is not None and change.after[0] == -1 for change in r.changes))
        assert r.fold.rows("public.t") == server_rows(standby.dsn, "public.t")
        inserted = [change.id for change in r.changes]
        assert len(inserted) == len(set(inserted)), "none twice"
        # With an asynchronous standby the application can lose its last commits; what is there must be a prefix.
        kept = [number for (number,) in ask(standby.dsn, "select id from t where id >= 0 order by id")]
        assert kept == list(range(len(kept)))
        assert len(kept) > 0
    finally:
        if primary._process is not None:
            primary.kill()
        if writer.is_alive():
            writer.join(30)
        await r.stop()


async def test_an_existing_slot_becomes_a_failover_slot_unless_told_not_to(pair: Pair) -> None:
    primary, standby = pair
    ask(primary.dsn, "create table t (id int primary key)")
    query = "select failover from pg_replication_slots where slot_name = 'headrace_tpostgres'"
    r = Reader(primary.dsn, failover=False)
    await r.start()
    await r.until_streaming()
    await r.stop()
    assert ask(primary.dsn, query) == [(False,)]
    config = PostgresConfig(dsn=primary.dsn, failover=False, standby_dsn=standby.dsn)
    found = {finding.code: finding for finding in await PostgresSource("tpostgres", config, {}).check()}
    assert {"failover-slot", "failover-copy"} <= set(found)
    again = Reader(primary.dsn)
    again.state, again.fold = r.state, r.fold
    await again.start()
    try:
        assert ask(primary.dsn, query) == [(True,)]
    finally:
        await again.stop()


async def test_a_copy_that_a_promotion_would_drop_is_not_safe(pair: Pair) -> None:
    primary, standby = pair
    made = "select pg_create_logical_replication_slot('idle', 'pgoutput', failover => true)"
    with psycopg.connect(primary.dsn, autocommit=True) as connection:
        connection.execute(made)
        for number in range(20):
            connection.execute(f"create table later{number} (id int)")  # nobody advances the slot past these
    query = "select temporary from pg_replication_slots where slot_name = 'idle'"
    wait_until(lambda: ask(standby.dsn, query) == [(True,)], "a temporary copy")
    copy = StandbyCopy(PostgresConfig(dsn=primary.dsn, standby_dsn=standby.dsn), source="shop", slot="idle")
    assert copy.is_safe is None
    await copy.ask()
    assert copy.is_safe is False
    (finding,) = await copy.findings()
    assert "pg_log_standby_snapshot()" in finding.cure


async def test_an_unreachable_standby_is_never_called_safe(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgmonitor._ASK_EVERY_S", 0.05)
    primary, standby = pair
    ask(primary.dsn, "create table t (id int primary key)")
    r = Reader(primary.dsn, standby_dsn=f"{standby.dsn} password=hushhush", heartbeat=Duration.parse("100ms"))
    ask(primary.dsn, "alter system reset synchronized_standby_slots")
    ask(primary.dsn, "select pg_reload_conf()")
    standby.stop()
    await r.start()
    try:
        await r.until(lambda: r.source.status().is_failover_safe is not None)
        assert r.source.status().is_failover_safe is False
        found = {finding.code: finding for finding in await PostgresSource("tpostgres", r.config, {}).check()}
        assert "can't be asked" in found["failover-copy"].message
        assert "hushhush" not in str(found)
        assert "synchronized_standby_slots" in found["failover-order"].cure
    finally:
        await r.stop()
