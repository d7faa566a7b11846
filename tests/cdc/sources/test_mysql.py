"""The MySQL and MariaDB source against a live MariaDB: streaming, restarts, histories, and what it refuses."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fix_mariadb import MariaDBServer
from headrace.cdc.capture import Capture
from headrace.cdc.config import Duration
from headrace.cdc.errors import (
    ConfigError,
    DecodeError,
    HistoryMismatch,
    RequestRefused,
    SourceRefused,
    SourceUnavailable,
)
from headrace.cdc.event import Change
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.metrics import CaptureMetrics
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.sources.binlogstream import BinlogStream
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.mysql import MySQLSource
from headrace.cdc.sources.mysql_config import MySQLConfig, safe_name
from proxy import Proxy

DEADLINE_S = 30.0


class Reader:
    """Drives one source as capture does, without a log."""

    def __init__(self, dsn: str, name: str, **fields: Any) -> None:
        fields.setdefault("heartbeat", Duration.parse("100ms"))
        fields.setdefault("snapshot", "never")
        self.config = MySQLConfig(dsn=dsn, tables=[f"{name}.*"], **fields)
        self.name = name
        self.source = MySQLSource(name, self.config, {})
        self.state: bytes | None = None
        self.changes: list[Change] = []
        self.staged: list[Change] = []
        self.parts = 0
        self.heartbeats = 0

    async def start(self) -> None:
        self.staged = []
        await self.source.start(self.state)

    async def restart(self) -> None:
        await self.source.stop()
        self.source = MySQLSource(self.name, self.config, {})
        self.staged = []
        await self.start()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                await self.step()

    async def step(self) -> None:
        """Takes one batch as the log does: parts count with the last one."""
        batch = await self.source.read()
        self.staged += batch.changes
        if batch.is_part:
            self.parts += 1
            return
        self.state = batch.state
        self.heartbeats += batch.is_heartbeat
        self.changes += self.staged
        self.staged = []
        self.source.durable(batch.mark)

    async def until_rows(self, count: int) -> None:
        await self.until(lambda: sum(change.op != "schema" for change in self.changes) >= count)


@pytest.fixture
def own(mariadb_template: Path) -> Iterator[MariaDBServer]:
    """A server of one test, which loses nothing when it is killed."""
    made = MariaDBServer(mariadb_template, {"innodb-flush-log-at-trx-commit": "1", "sync-binlog": "1"})
    made.start()
    yield made
    made.remove()


def dsn(server: MariaDBServer, port: int | None = None) -> str:
    return f"mysql://root@127.0.0.1:{port or server.port}"


def run(server: MariaDBServer, *statements: str, database: str | None = None) -> list[Any]:
    with server.connect(database=database) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


@pytest.fixture
def database(mariadb: MariaDBServer, request: pytest.FixtureRequest) -> str:
    return made_database(mariadb, request.node.name)


def made_database(server: MariaDBServer, test: str) -> str:
    name = f"s{abs(hash(test)) % 10**9}"
    run(server, f"drop database if exists {name}", f"create database {name}")
    run(server, "create table t (id int primary key, v varchar(20))", database=name)
    return name


@pytest.fixture(params=["mariadb", pytest.param("mysql9", marks=pytest.mark.matrix("mysql"))])
def each(request: pytest.FixtureRequest) -> tuple[MariaDBServer, str]:
    """A server of each kind, and a database of its."""
    server: MariaDBServer = request.getfixturevalue(request.param)
    return server, made_database(server, request.node.name)


@pytest.fixture
async def reader() -> AsyncIterator[Callable[..., Awaitable[Reader]]]:
    made: list[Reader] = []

    async def make(*args: Any, **fields: Any) -> Reader:
        new = Reader(*args, **fields)
        made.append(new)
        await new.start()
        return new

    yield make
    for each in made:
        await each.source.stop()


MakeReader = Callable[..., Awaitable[Reader]]


async def test_it_streams_and_goes_on_where_it_was(each: tuple[MariaDBServer, str], reader: MakeReader) -> None:
    mariadb, database = each
    run(mariadb, "insert into t values (0, 'before')", database=database)
    r = await reader(dsn(mariadb), database)
    run(mariadb, "insert into t values (1, 'a'), (2, 'b')", "update t set v = 'c' where id = 1", database=database)
    await r.until_rows(3)
    await r.restart()
    run(mariadb, "delete from t where id = 2", database=database)
    await r.until_rows(4)
    assert [(change.op, change.after) for change in r.changes] == [
        ("insert", (1, "a")),
        ("insert", (2, "b")),
        ("update", (1, "c")),
        ("delete", None),
    ]
    assert len({change.id for change in r.changes}) == 4
    assert r.source.status().phase == "streaming"
    assert re.match(r"0-1-\d+$|[-0-9a-f]{36}:1-\d+", r.source.status().position)


@pytest.mark.matrix("mysql")
async def test_it_goes_on_behind_tagged_and_compressed_transactions(mysql9: MariaDBServer, reader: MakeReader) -> None:
    database = made_database(mysql9, "tagged")
    tagged = ["set gtid_next = 'AUTOMATIC:told', binlog_transaction_compression = on"]
    r = await reader(dsn(mysql9), database)
    run(mysql9, *tagged, "insert into t values (1, 'a')", "insert into t values (2, 'b')", database=database)
    await r.until_rows(2)
    await r.restart()
    run(mysql9, *tagged, "insert into t values (3, 'c')", database=database)
    run(mysql9, "insert into t values (4, 'd')", database=database)
    await r.until_rows(4)
    assert [change.after for change in r.changes] == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert re.search(r":told:1-\d+$", r.source.status().position)


async def test_an_idle_source_has_heartbeats_and_no_lag(
    mariadb: MariaDBServer, database: str, reader: MakeReader
) -> None:
    r = await reader(dsn(mariadb), database)
    await r.until(lambda: r.heartbeats > 3)
    others = ["create table elsewhere (id int)", "insert into elsewhere values (1)", "truncate table elsewhere"]
    run(mariadb, *others, database="mysql")
    end = run(mariadb, "select @@gtid_binlog_pos")[0][0]
    await r.until(lambda: r.source.status().position == end)
    assert not r.changes, "other tables move the place only"
    run(mariadb, "drop table elsewhere", database="mysql")


async def test_restarts_at_any_moment_lose_and_double_nothing(
    each: tuple[MariaDBServer, str], reader: MakeReader
) -> None:
    mariadb, database = each
    seed = 11
    print(f"seed {seed}")
    rng = random.Random(seed)
    r = await reader(dsn(mariadb), database)
    wanted = 0
    for _ in range(12):
        count = rng.randrange(1, 60)
        with mariadb.connect(database=database) as connection, connection.cursor() as cursor:
            for number in range(count):
                cursor.execute("replace into t values (%s, %s)", (rng.randrange(50), f"v{number}"))
        wanted += count
        if rng.random() < 0.5:
            await r.until_rows(len(r.changes) + rng.randrange(1, count + 1))
        await r.restart()
    rows = {row[0]: row for row in run(mariadb, "select id, v from t", database=database)}

    def folded() -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for change in r.changes:
            if change.before is not None:
                assert found.pop(change.before[0], None) == change.before
            if change.after is not None:
                found[change.after[0]] = change.after
        return found

    await r.until(lambda: folded() == rows)
    assert len({change.id for change in r.changes}) == len(r.changes)


def large(count: int, first: int = 1) -> list[str]:
    """One transaction of so many rows."""
    rows = [f"({number}, repeat(char(65 + {number} % 26), 20))" for number in range(first, first + count)]
    inserts = [f"insert into t values {', '.join(rows[at : at + 50])}" for at in range(0, count, 50)]
    return ["begin", *inserts, "commit"]


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_a_large_transaction_is_given_out_as_it_comes_and_counts_whole(
    each: tuple[MariaDBServer, str], reader: MakeReader, monkeypatch: pytest.MonkeyPatch, is_compressed: bool
) -> None:
    mariadb, database = each
    is_mysql = "maria" not in run(mariadb, "select version()")[0][0].lower()
    if is_compressed and not is_mysql:
        pytest.skip("MySQL compresses whole transactions, MariaDB single events")
    monkeypatch.setattr("headrace.cdc.decode.binlog.PART_BYTES", 2000)
    r = await reader(dsn(mariadb), database)
    settings = ["set binlog_transaction_compression = on"] if is_compressed else []
    # A part isn't given out behind whole transactions that were read with it.
    run(mariadb, "insert into t values (0, '')", database=database)
    await r.until_rows(1)
    run(mariadb, *settings, *large(1000), database=database)
    run(mariadb, *settings, "insert into t values (9000, '')", database=database)
    async with asyncio.timeout(DEADLINE_S):
        while r.parts < 3:
            await r.step()
    assert len(r.changes) == 1, "parts were taken for a whole transaction"
    await r.restart()
    await r.until_rows(1002)
    assert r.parts > 10
    assert [change.after[0] for change in r.changes if change.after] == [*range(1001), 9000]
    assert len({change.id for change in r.changes}) == 1002
    assert [change.is_last for change in r.changes] == [True, *[False] * 999, True, True]


async def test_a_large_transaction_with_rows_rolled_back_is_read_again(
    mariadb: MariaDBServer, database: str, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.decode.binlog.PART_BYTES", 2000)
    run(mariadb, "create table m (id int primary key) engine=myisam", database=database)
    r = await reader(dsn(mariadb), database)
    run(mariadb, "insert into t values (0, '')", database=database)
    await r.until_rows(1)
    begin, *kept, commit = large(500)
    gone = large(500, 5000)[1:-1]
    with mariadb.connect(database=database) as connection, connection.cursor() as cursor:
        for statement in [begin, *kept, "savepoint a", *gone, "insert into m values (1)"]:
            cursor.execute(statement)
        await r.until_rows(2)  # the other engine's row is a transaction of its own, before this one
        for statement in ["rollback to a", "insert into t values (600, 'x')", commit]:
            cursor.execute(statement)
    with pytest.raises(SourceUnavailable, match="read again without them"):
        await r.until_rows(503)
    r.staged = []
    await r.start()
    await r.until_rows(503)
    of_t = [change for change in r.changes if change.table.table == "t"]
    assert [change.after[0] for change in of_t if change.after] == [*range(501), 600]


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_xa_rows_are_read_again_when_they_commit(
    each: tuple[MariaDBServer, str], reader: MakeReader, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    mariadb, database = each
    monkeypatch.setattr("headrace.cdc.decode.binlog.PART_BYTES", 2000)
    r = await reader(dsn(mariadb), database)
    with mariadb.connect(database=database) as connection, connection.cursor() as cursor:
        name = f"'{database}'"
        cursor.execute(f"xa start {name}")
        for statement in large(500)[1:-1]:
            cursor.execute(statement)
        cursor.execute(f"xa end {name}")
        cursor.execute(f"xa prepare {name}")
    run(mariadb, "insert into t values (1000, 'between')", "flush logs", database=database)
    await r.until_rows(1)
    if is_restarted:
        await r.restart()
    run(mariadb, f"xa commit {name}", "insert into t values (1001, 'after')", database=database)
    await r.until_rows(502)
    assert r.parts > 3
    assert [change.after[0] for change in r.changes if change.after] == [1000, *range(1, 501), 1001]
    assert len({change.id for change in r.changes}) == 502
    run(mariadb, f"xa start {name}", *large(50, 2000)[1:-1], f"xa end {name}", f"xa prepare {name}", database=database)
    run(mariadb, f"xa rollback {name}", "insert into t values (1002, '')", database=database)
    await r.until_rows(503)
    assert r.changes[-1].after == (1002, "")


async def test_xa_rows_that_were_purged_are_a_gap(own: MariaDBServer, reader: MakeReader) -> None:
    database = made_database(own, "purged")
    r = await reader(dsn(own), database)
    run(own, "xa start 'x'", "insert into t values (1, 'a')", "xa end 'x'", "xa prepare 'x'", database=database)
    run(own, "insert into t values (2, 'b')", "flush logs", database=database)
    await r.until_rows(1)
    await r.restart()
    run(own, "insert into t values (3, 'c')", "flush logs", database=database)
    await r.until_rows(2)
    run(own, "flush logs", f"purge binary logs to '{run(own, 'show master status')[0][0]}'")
    run(own, "xa commit 'x'")
    with pytest.raises(HistoryMismatch):
        await r.until_rows(3)


@pytest.mark.parametrize("fault", ["cut", "reset", "server restart"])
async def test_capture_heals_by_itself(
    own: MariaDBServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("headrace.cdc.capture._FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("headrace.cdc.capture._LONGEST_PAUSE_S", 0.2)
    run(own, "create database shop", "create table shop.t (id int primary key auto_increment, v text)")
    proxy = Proxy(own.port)
    await proxy.start()
    config = MySQLConfig(
        dsn=dsn(own, proxy.port), tables=["shop.*"], snapshot="never", heartbeat=Duration.parse("100ms")
    )
    log = await SQLiteLog.open(tmp_path / "log.db")
    capture = Capture(MySQLSource("m", config, {}), Normaliser("m", {}), log, CaptureMetrics(CollectorRegistry()))
    started = asyncio.Event()
    task = asyncio.create_task(capture.run(started.set))
    try:
        await asyncio.wait_for(started.wait(), DEADLINE_S)
        for _ in range(4):
            await asyncio.to_thread(run, own, *["insert into shop.t (v) values ('x')"] * 25)
            if fault == "server restart":
                await asyncio.to_thread(own.kill)
                await asyncio.to_thread(own.start)
            else:
                (proxy.cut if fault == "cut" else proxy.reset)()
        async with asyncio.timeout(DEADLINE_S):
            while True:
                events = [event for event in (await log.read(0, 0)).events if event.row is not None]
                if len(events) >= 100:
                    break
                assert not task.done() or task.result() is None
                await asyncio.sleep(0.01)  # the capture works in the same loop
    finally:
        await end(task)
        await log.close()
        await proxy.stop()
    assert [event.key for event in events] == [str(number) for number in range(1, 101)]


async def test_a_second_reader_is_kept_out(each: tuple[MariaDBServer, str], reader: MakeReader) -> None:
    mariadb, database = each
    await reader(dsn(mariadb), database)
    with pytest.raises(SourceRefused, match="another reader"):
        await reader(dsn(mariadb), database)


async def test_purged_binlogs_and_a_reset_server_are_a_gap(own: MariaDBServer, reader: MakeReader) -> None:
    run(own, "create database shop", "create table shop.t (id int primary key)", "insert into shop.t values (1)")
    r = await reader(dsn(own), "shop")
    run(own, "insert into shop.t values (2)")
    await r.until_rows(1)
    await r.source.stop()
    run(own, "insert into shop.t values (3)", "flush binary logs", "insert into shop.t values (4)", "flush binary logs")
    last = run(own, "show master status")[0][0]
    run(own, f"purge binary logs to '{last}'")
    again = await reader_of(r)
    with pytest.raises(HistoryMismatch, match="hasn't got the binlog"):
        await again.until_rows(2)
    await again.source.stop()
    run(own, "reset master")
    with pytest.raises(HistoryMismatch, match="reset"):
        await reader_of(r)


async def reader_of(r: Reader) -> Reader:
    again = Reader(r.config.dsn, r.name)
    again.state = r.state
    try:
        await again.start()
    except BaseException:
        await again.source.stop()
        raise
    return again


async def test_another_server_goes_on_by_gtid(own: MariaDBServer, mariadb_template: Path, reader: MakeReader) -> None:
    replica = MariaDBServer(mariadb_template, {"server-id": "2", "log-slave-updates": ""})
    replica.start()
    try:
        run(
            replica,
            f"change master to master_host='127.0.0.1', master_port={own.port}, master_user='root', master_use_gtid=slave_pos",
            "start slave",
        )
        run(own, "create database shop", "create table shop.t (id int primary key)")
        r = await reader(dsn(own), "shop")
        run(own, "insert into shop.t values (1)")
        await r.until_rows(1)
        await r.source.stop()
        run(own, "insert into shop.t values (2)")
        end = run(own, "select @@gtid_binlog_pos")[0][0]
        assert run(replica, f"select master_gtid_wait('{end}', 20)") == [(0,)]
        own.kill()
        run(replica, "stop slave", "reset slave all")
        moved = await reader(dsn(replica), "shop")
        await moved.source.stop()
        moved.state, moved.changes = r.state, r.changes
        await moved.restart()
        run(replica, "insert into shop.t values (3)")
        await moved.until_rows(3)
        assert [change.after for change in moved.changes] == [(1,), (2,), (3,)]
    finally:
        replica.remove()


async def test_a_wrong_server_setting_is_named_with_its_statement(own: MariaDBServer, reader: MakeReader) -> None:
    run(own, "create database shop", "create table shop.t (id int primary key)")
    run(own, "create table shop.u (t int, foreign key (t) references shop.t (id) on delete cascade)")
    run(own, "set global binlog_row_metadata = 'MINIMAL', binlog_format = 'MIXED', binlog_row_image = 'MINIMAL'")
    r = Reader(dsn(own), "shop")
    found = {finding.code: finding for finding in await r.source.check()}
    assert {code for code, finding in found.items() if finding.severity == "error"} == {"binlog-format"}
    assert found["row-metadata"].severity == "warning"
    assert found["cascade"].object == "shop.u"
    assert found["row-image"].severity == "info"
    with pytest.raises(SourceRefused, match="binlog_format"):
        await r.start()
    for finding in found.values():
        if finding.severity == "error":
            run(own, finding.cure.split(";")[0])
    await reader(dsn(own), "shop")


@pytest.mark.parametrize(
    ("number", "kind"), [(1053, SourceUnavailable), (1927, SourceUnavailable), (1045, SourceRefused)]
)
def test_a_server_that_shuts_down_is_waited_for_and_one_that_refuses_is_not(number: int, kind: type[Exception]) -> None:
    stream = BinlogStream({}, server_id=1, source="shop")
    assert type(stream._refused(number, "Server shutdown in progress")) is kind


async def test_a_session_that_logs_statements_stops_it(
    mariadb: MariaDBServer, database: str, reader: MakeReader
) -> None:
    r = await reader(dsn(mariadb), database)
    run(mariadb, "set binlog_format = 'STATEMENT'", "insert into t values (1, 'a')", database=database)
    with pytest.raises(DecodeError, match="binlog_format"):
        await r.until_rows(1)


async def test_unreachable_and_unknown_are_told_apart(mariadb: MariaDBServer, database: str) -> None:
    run(mariadb, "create or replace user limited identified by 'secret'")
    for words, kind, said in (
        (f"mysql://root:hushhush@127.0.0.1:{mariadb.port}", SourceRefused, "correct user or password"),
        ("mysql://root:hushhush@127.0.0.1:1", SourceUnavailable, "check that the server"),
        (f"mysql://limited:secret@127.0.0.1:{mariadb.port}", SourceRefused, "binlog monitor"),
    ):
        r = Reader(words, database)
        with pytest.raises(kind) as refused:
            await r.start()
        assert said in refused.value.paragraph()
        assert "hushhush" not in refused.value.paragraph() + repr(r.config)
    for words in ("mysql://127.0.0.1", "postgres://u@h", "mysql://u:a@b@h:x", "mysql://u@h/?nonsense=1"):
        with pytest.raises(ConfigError) as unreadable:
            Reader(words, database)
        assert "a@b" not in unreadable.value.paragraph()
    assert safe_name("mysql://u:p@h") == "u@h:3306"
    with pytest.raises(RequestRefused):
        await Reader(dsn(mariadb), database).source.snapshot(["t"], "")
