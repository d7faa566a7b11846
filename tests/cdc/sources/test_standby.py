"""Capture from a physical standby: what the slot waits for, the copy, the stream, idle confirmation, and a promotion on the way."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest
from source_reader import Reader

from fix_servers import postgres_bin
from fix_standby import ask, caught_up, make_standby, promote
from fold import server_rows
from headrace.cdc.config import Duration
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.errors import SourceRefused, SourceUnavailable
from headrace.cdc.position import parse_lsn
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.pgsnapshot import Visibility, read_chunk
from headrace.cdc.sources.pgstate import PostgresState
from headrace.cdc.sources.postgres import PostgresSource
from headrace.cdc.sources.postgres_config import PostgresConfig

Pair = tuple[PostgresServer, PostgresServer]
_ON = {"hot_standby_feedback": "on"}


def _pair(major: int) -> Iterator[Pair]:
    primary = PostgresServer(postgres_bin(major), settings={"fsync": "off", "wal_sender_timeout": "10s"})
    primary.start()
    standby = None
    try:
        standby = make_standby(primary, slot="phys", settings=_ON if major >= 16 else {})
        yield primary, standby
    finally:
        if standby is not None:
            standby.remove()
        primary.remove()


@pytest.fixture(scope="module", params=[16, 18])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield from _pair(request.param)


@pytest.fixture
def pair18() -> Iterator[Pair]:
    yield from _pair(18)


@pytest.fixture
def pair15() -> Iterator[Pair]:
    yield from _pair(15)


class Shop:
    """A database of the primary, and a reader of it on the standby."""

    def __init__(self, pair: Pair, name: str) -> None:
        self.primary, self.standby = pair
        ask(self.primary.dsn, f"create database {name}")
        self.dsn = self.primary.dsn.replace("dbname=postgres", f"dbname={name}")
        self.standby_dsn = self.standby.dsn.replace("dbname=postgres", f"dbname={name}")

    def execute(self, query: str, *args: object) -> list[tuple[object, ...]]:
        return ask(self.dsn, query, *args)

    def publish(self, name: str, tables: str) -> None:
        self.execute(f"create publication {name} for table {tables} with (publish_via_partition_root = true)")
        caught_up(self.primary, self.standby)

    def reader(self, **fields: Any) -> Reader:
        return Reader(self.standby_dsn, **{"primary_dsn": self.dsn, "heartbeat": Duration.parse("100ms"), **fields})


async def test_a_slot_on_a_standby_says_what_it_waits_for(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgserver.SILENCE_S", 0.4)
    shop = Shop(pair, "waits")
    shop.execute("create table t (id int primary key)")
    shop.publish("headrace_twaits", "t")
    r = shop.reader(primary_dsn=None)
    with caplog.at_level(logging.WARNING, "headrace.source"):
        starting = asyncio.create_task(r.start())
        try:
            async with asyncio.timeout(10):
                while "pg_log_standby_snapshot()" not in r.source.status().reason:
                    assert not starting.done()
                    await asyncio.sleep(0.01)
            assert r.source.status().phase == "connecting"
            assert "pg_log_standby_snapshot()" in caplog.text
            await asyncio.wait([starting], timeout=1.5)
            assert not starting.done(), "a wait for the primary is no dead link"
            shop.execute("select pg_log_standby_snapshot()")
            async with asyncio.timeout(20):
                while not starting.done():
                    await asyncio.wait([starting], timeout=0.5)
                    shop.execute("select pg_log_standby_snapshot()")
            starting.result()
        finally:
            await end(starting)
            await r.stop()


async def test_a_cancelled_wait_leaves_no_slot(pair: Pair) -> None:
    shop = Shop(pair, "cancelled")
    shop.execute("create table t (id int primary key)")
    shop.publish("headrace_tcancelled", "t")
    r = shop.reader(primary_dsn=None)
    starting = asyncio.create_task(r.start())
    async with asyncio.timeout(10):
        while "pg_log_standby_snapshot()" not in r.source.status().reason:
            await asyncio.sleep(0.01)
    await end(starting)
    assert not ask(shop.standby_dsn, "select from pg_replication_slots where slot_name = 'headrace_tcancelled'")


async def test_a_primary_that_cannot_be_asked_is_told_while_the_slot_waits(pair: Pair) -> None:
    shop = Shop(pair, "unasked")
    shop.execute("create table t (id int primary key)")
    shop.publish("headrace_tunasked", "t")
    shop.execute("drop role if exists powerless")
    shop.execute("create role powerless login")
    r = shop.reader(primary_dsn=shop.dsn.replace("user=postgres", "user=powerless"))
    starting = asyncio.create_task(r.start())
    try:
        async with asyncio.timeout(10):
            while "grant execute on function pg_log_standby_snapshot()" not in r.source.status().reason:
                assert not starting.done()
                await asyncio.sleep(0.01)
        shop.execute("grant execute on function pg_log_standby_snapshot() to powerless")
        await asyncio.wait_for(starting, 20)
        await r.until_streaming()
    finally:
        await end(starting)
        await r.stop()
        shop.execute("revoke execute on function pg_log_standby_snapshot() from powerless")


async def test_a_standby_that_lags_behind_the_log_is_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after its crash, when it takes connections before it has replayed what it had."""
    shop = Shop(pair, "lags")
    shop.execute("create table t (id int primary key)")
    shop.publish("headrace_tlags", "t")
    r = shop.reader()
    await r.start()
    await r.until_streaming()
    await r.stop()
    assert r.state is not None
    state = msgspec.msgpack.decode(r.state, type=PostgresState)
    ask(shop.standby.dsn, "select pg_wal_replay_pause()")
    try:
        shop.execute("insert into t values (1)")
        state.lsn = parse_lsn(str(shop.execute("select pg_current_wal_lsn()::text")[0][0]))
        r.state = msgspec.msgpack.encode(state)
        monkeypatch.setattr("headrace.cdc.sources.timeline._REPLAY_WAIT_S", 0.1)
        with pytest.raises(SourceUnavailable, match="not yet to the log's position"):
            await r.start()
        monkeypatch.setattr("headrace.cdc.sources.timeline._REPLAY_WAIT_S", 20)
        starting = asyncio.create_task(r.start())
        async with asyncio.timeout(10):
            while "not yet to the log's position" not in r.source.status().reason:
                await asyncio.sleep(0.01)
    finally:
        ask(shop.standby.dsn, "select pg_wal_replay_resume()")
    try:
        await starting
        shop.execute("insert into t values (2)")
        assert [change.after for change in await r.until_op("insert")] == [(2,)]
    finally:
        await r.stop()


async def test_a_missing_publication_is_told_with_the_sql_for_the_primary(pair: Pair) -> None:
    shop = Shop(pair, "unpublished")
    shop.execute("create table t (id int primary key)")
    caught_up(*pair)
    config = PostgresConfig(dsn=shop.standby_dsn)
    found = {finding.code: finding for finding in await PostgresSource("shop", config, {}).check()}
    assert found["publication"].severity == "error"
    assert "standby-feedback" not in found
    assert "standby-slot" not in found
    shop.execute(found["publication"].cure)
    caught_up(*pair)
    found = {finding.code: finding for finding in await PostgresSource("shop", config, {}).check()}
    assert not [finding for finding in found.values() if finding.severity == "error"]


async def _warnings_of(standby: PostgresServer) -> set[str]:
    source = PostgresSource("shop", PostgresConfig(dsn=standby.dsn), {})
    return {finding.code for finding in await source.check()}


@pytest.mark.parametrize("seed", range(3))
async def test_copy_and_stream_from_a_standby_fold_to_the_tables(
    pair: Pair, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small chunks, writers that overlap and stay open long, so that xmin stands still behind what is committed meanwhile."""
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_ROWS", 23)
    rng = random.Random(seed)
    shop = Shop(pair, f"copy{seed}")
    shop.execute("create table a (id int primary key, n int, big text)")
    shop.execute("alter table a alter big set storage external")
    shop.execute("create table bag (n int, s text)")
    shop.execute("alter table bag replica identity full")
    shop.execute("insert into a select n, 0, repeat(chr(65 + n % 26), 3000) from generate_series(1, 300) n")
    shop.execute("insert into bag select n % 10, 'x' from generate_series(1, 100) n")
    shop.publish(f"headrace_tcopy{seed}", "a, bag")
    r = shop.reader()
    await r.start()

    def step(connection: psycopg.Connection[Any]) -> None:
        row = rng.randrange(1, 400)
        there = rng.randrange(1, 400)
        match rng.randrange(6):
            case 0:
                connection.execute("insert into a values (%s, 1, repeat('z', 2500)) on conflict do nothing", [row])
            case 1 | 2:
                connection.execute("update a set n = n + 1 where id = %s", [row])
            case 3:
                move = "update a set id = %s where id = %s and not exists (select from a where id = %s)"
                connection.execute(move, [there, row, there])
            case 4:
                connection.execute("delete from a where id = %s", [row])
            case _:
                connection.execute("insert into bag values (%s, 'new')", [row])

    async def write() -> None:
        with psycopg.connect(shop.dsn) as old, psycopg.connect(shop.dsn) as connection:
            for turn in range(200):
                if turn % 40 == 0:
                    old.commit()
                    old.execute("insert into bag values (-1, 'old')")
                for _ in range(rng.randrange(1, 4)):
                    step(connection)
                connection.commit() if rng.random() < 0.85 else connection.rollback()
                await asyncio.sleep(0)

    try:
        writing = asyncio.create_task(write())
        while not writing.done() or r.source.status().phase != "streaming":
            seen = len(r.changes)
            await r.until(lambda seen=seen: len(r.changes) > seen or r.source.status().phase == "streaming")
            if rng.random() < 0.05:
                await r.restart(forget_confirmations=rng.random() < 0.7)
            await asyncio.sleep(0)
        await writing
        r.fold.is_snapshotting = False
        shop.execute("insert into a values (100000, 0, 'end')")
        await r.until(lambda: any(c.after is not None and c.after[0] == 100000 for c in r.changes))
        for table in ("public.a", "public.bag"):
            assert r.fold.rows(table) == server_rows(shop.dsn, table), f"seed {seed}"
    finally:
        await r.stop()


def test_a_standbys_snapshot_leaves_out_what_runs_and_what_ended_since(pair: Pair) -> None:
    """Why the list alone is never believed there: the open transaction isn't in it."""
    shop = Shop(pair, "hidden")
    shop.execute("create table t (id int primary key)")
    with psycopg.connect(shop.dsn) as old:
        old.execute("insert into t values (1)")
        xid = old.execute("select pg_current_xact_id()::text::int8").fetchone()
        assert xid is not None
        shop.execute("insert into t values (2)")
        caught_up(*pair)
        text = str(ask(shop.standby_dsn, "select pg_current_snapshot()::text")[0][0])
        assert ask(shop.standby_dsn, "select id from t") == [(2,)]
        seen = Visibility.parse(text)
        assert seen.xmin <= int(str(xid[0])) < seen.xmax
        assert not seen.running, "or the primary's rule would do"
        assert seen.sees(int(str(xid[0])), 100), "wrong, by the primary's rule"
        standby = Visibility.parse(text, (50, 70))
        assert standby.sees(int(str(xid[0])), 100) is False
        assert standby.sees(int(str(xid[0])), 60) is None
        assert standby.sees(int(str(xid[0])), 50) is True


async def test_what_ends_behind_a_chunk_is_laid_over_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that ran while the chunk was read, unlisted, and whose delete is delivered before the chunk is."""
    shop = Shop(pair, "late")
    shop.execute("create table t (id int primary key)")
    shop.execute("insert into t values (1), (2), (3)")
    shop.publish("headrace_tlate", "t")
    r = shop.reader()

    async def read_late(*args: Any, **fields: Any) -> Any:
        with psycopg.connect(shop.dsn) as old:
            old.execute("delete from t where id = 1")
            shop.execute("insert into t values (4)")
            caught_up(*pair)
            chunk = await read_chunk(*args, **fields)
            assert len(chunk.rows) == 4
            old.commit()
            lsn = parse_lsn(str(shop.execute("select pg_current_wal_lsn()::text")[0][0]))
            shop.execute("select pg_logical_emit_message(false, 'test', '')")
            while r.source._state is None or r.source._state.lsn < lsn:
                await asyncio.sleep(0.01)
        return chunk

    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.read_chunk", read_late)
    await r.start()
    try:
        await r.until_streaming()
        assert [change.op for change in r.changes].count("read") == 3
        assert r.fold.rows("public.t") == server_rows(shop.dsn, "public.t")
    finally:
        await r.stop()


async def test_an_idle_standby_is_confirmed_by_keepalive(pair: Pair) -> None:
    shop = Shop(pair, "idle")
    shop.execute("create table t (id int primary key)")
    shop.publish("headrace_tidle", "t")
    ask(shop.primary.dsn, "create table if not exists neighbour (n int)")
    r = shop.reader()
    await r.start()
    try:
        await r.until_streaming()
        ask(shop.primary.dsn, "insert into neighbour select generate_series(1, 1000)")
        lsn = ask(shop.primary.dsn, "select pg_current_wal_lsn()::text")[0][0]
        query = "select confirmed_flush_lsn >= %s::pg_lsn from pg_replication_slots where slot_name = %s"
        await r.until(lambda: bool(ask(shop.standby_dsn, query, lsn, r.source._server.slot)[0][0]))
        assert not r.changes
    finally:
        await r.stop()


async def test_a_stream_goes_on_over_the_promotion_of_its_standby(
    pair18: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgmonitor._ASK_EVERY_S", 0.05)
    shop = Shop(pair18, "promoted")
    shop.execute("create table t (id int primary key)")
    shop.publish("headrace_tpromoted", "t")
    r = shop.reader()
    await r.start()
    try:
        await r.until_streaming()
        shop.execute("insert into t values (1)")
        await r.until_op("insert")
        promote(shop.standby)
        ask(shop.standby_dsn, "insert into t values (2)")
        await r.until_op("insert", 2)
        await r.until(lambda: msgspec.msgpack.decode(r.state or b"", type=PostgresState).timeline == 2)
        await r.restart(forget_confirmations=True)
        ask(shop.standby_dsn, "insert into t values (3)")
        assert [change.after for change in await r.until_op("insert", 3)] == [(1,), (2,), (3,)]
    finally:
        await r.stop()


async def test_a_standby_before_16_is_refused(pair15: Pair) -> None:
    primary, standby = pair15
    ask(primary.dsn, "create table t (id int primary key)")
    caught_up(primary, standby)
    with pytest.raises(SourceRefused, match="a standby before PostgreSQL 16 can't decode its WAL"):
        await PostgresSource("shop", PostgresConfig(dsn=standby.dsn), {}).start(None)
    found = await _warnings_of(standby)
    assert {"standby", "standby-feedback"} <= found
