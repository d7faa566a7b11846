"""The first copy of a server's tables: with the stream it is the tables' state, every value as the stream has it."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fix_mariadb import MariaDBServer
from fix_mysql import MySQLServer
from headrace.cdc.errors import RequestRefused, SourceRefused
from headrace.cdc.sources.mysqltable import read_table

sys.path.insert(0, str(Path(__file__).parent))
_spec = importlib.util.spec_from_file_location("mysql_reader", Path(__file__).with_name("test_mysql.py"))
assert _spec is not None and _spec.loader is not None
_of_stream = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_of_stream)
Reader, dsn, run = _of_stream.Reader, _of_stream.dsn, _of_stream.run
_spec = importlib.util.spec_from_file_location("binlog_types", Path(__file__).parents[1] / "decode" / "test_binlog.py")
assert _spec is not None and _spec.loader is not None
_of_types = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_of_types)
TYPES: dict[str, tuple[list[str], str]] = _of_types.TYPES

MakeReader = Callable[..., Awaitable[Any]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle server's first place is believed sooner; what is about that sets its own."""
    monkeypatch.setattr("headrace.cdc.sources.mariadbplaces.QUIET_S", 0.05)


@pytest.fixture
async def reader() -> AsyncIterator[MakeReader]:
    made: list[Any] = []

    async def make(*args: Any, **fields: Any) -> Any:
        new = Reader(*args, snapshot="initial", **fields)
        made.append(new)
        await new.start()
        return new

    yield make
    for each in made:
        await each.source.stop()


@pytest.fixture(params=["mariadb", pytest.param("mysql9", marks=pytest.mark.matrix("mysql"))])
def server(request: pytest.FixtureRequest) -> MariaDBServer:
    found: MariaDBServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def database(server: MariaDBServer, request: pytest.FixtureRequest) -> str:
    name = f"c{abs(hash(request.node.name)) % 10**9}"
    run(server, f"drop database if exists {name}", f"create database {name} character set utf8mb4")
    return name


def numbered(count: int) -> str:
    """A table expression of 1 to count, on both servers."""
    return f"(with recursive n (seq) as (select 1 union all select seq + 1 from n where seq < {count}) select seq from n) as numbered"


def folded(changes: list[Any], table: str) -> dict[Any, Any]:
    """A read lays itself over what is there."""
    found: dict[Any, Any] = {}
    for change in changes:
        if change.table.table != table or change.op == "schema":
            continue
        key = change.table.key
        if change.op == "truncate":
            found.clear()
        if change.before is not None:
            found.pop(tuple(change.before[index] for index in key), None)
        if change.after is not None:
            found[tuple(change.after[index] for index in key)] = change.after
    return found


def skip_what_only_mariadb_has(server: MariaDBServer, kind: str) -> None:
    if isinstance(server, MySQLServer) and ("uuid" in kind or "inet" in kind or "compressed" in kind):
        pytest.skip("a type of MariaDB's")


async def until_streaming(r: Any) -> None:
    await r.until(lambda: r.source.status().phase == "streaming")


@pytest.mark.parametrize("kind", TYPES)
async def test_a_copied_value_is_the_streamed_one(
    server: MariaDBServer, database: str, reader: MakeReader, kind: str
) -> None:
    skip_what_only_mariadb_has(server, kind)
    literals, _ = TYPES[kind]
    run(server, f"create table t (id int primary key auto_increment, v {kind})", database=database)
    fill = [f"insert into t (v) values ({literal})" for literal in [*literals, "null"]]
    run(server, "set time_zone = '+00:00', sql_mode = ''", *fill, database=database)
    r = await reader(dsn(server), database)
    await until_streaming(r)
    run(server, "set time_zone = '+00:00', sql_mode = ''", *fill, database=database)
    count = len(fill)
    await r.until(lambda: len(r.changes) >= 2 * count)
    assert {change.op for change in r.changes} == {"read", "insert"}, "the columns are the same: no schema event"
    copied = [change.after[1] for change in r.changes if change.op == "read"]
    streamed = [change.after[1] for change in r.changes if change.op == "insert"]
    assert repr(copied) == repr(streamed)


@pytest.mark.parametrize(
    "key",
    [
        "id int",
        "id bigint unsigned",
        "id decimal(30,5)",
        "id varchar(20)",
        "id varbinary(20)",
        "grp varchar(5), id int",
        "id uuid",
        "id date",
    ],
)
async def test_each_kind_of_key_is_read_in_order(
    server: MariaDBServer, database: str, reader: MakeReader, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    skip_what_only_mariadb_has(server, key)
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.CHUNK_ROWS", 7)
    names = [part.split()[0] for part in key.split(", ")]
    value = {
        "id bigint unsigned": "18446744073709551615 - seq",
        "id decimal(30,5)": "seq / 3",
        "id uuid": "concat('123e4567-e89b-12d3-a456-4266554400', lpad(hex(seq % 100), 2, '0'))",
        "id date": "date_add('2000-01-01', interval seq day)",
        "id varbinary(20)": "unhex(lpad(hex(seq * 7), 6, '0'))",
        "id varchar(20)": "concat(char(97 + seq % 26 using utf8mb4), 'ä%', seq)",
    }.get(key, "seq")
    values = ["char(65 + seq % 3 using utf8mb4)", value] if len(names) == 2 else [value]
    run(server, f"create table t ({key}, v int, primary key ({', '.join(names)}))", database=database)
    run(server, f"insert into t select {', '.join(values)}, seq from {numbered(99)}", database=database)
    r = await reader(dsn(server), database)
    await until_streaming(r)
    assert Counter(change.after[-1] for change in r.changes) == Counter(range(1, 100))


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(4, 60))]
)
async def test_copy_under_writes_with_restarts_folds_to_the_table(
    server: MariaDBServer, database: str, reader: MakeReader, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.CHUNK_ROWS", 1 + seed % 4 * 9)
    image = "MINIMAL" if seed % 2 else "FULL"
    for table in ("a", "b"):
        run(server, f"create table {table} (id int primary key, n int, v text)", database=database)
        run(server, f"insert into {table} select seq, 0, repeat('v', 100) from {numbered(120)}", database=database)
    over = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        own = random.Random(seed)
        try:
            with server.connect(database=database) as connection, connection.cursor() as cursor:
                cursor.execute(f"set session binlog_row_image = '{image}'")
                while not over.is_set():
                    table, number, other = own.choice("ab"), own.randrange(150), own.randrange(150)
                    cursor.execute("begin")
                    for _ in range(own.randrange(1, 4)):
                        match own.randrange(4):
                            case 0:
                                cursor.execute(f"delete from {table} where id = %s", (number,))
                            case 1:
                                cursor.execute(f"update ignore {table} set id = %s where id = %s", (other, number))
                            case 2:
                                cursor.execute(f"update {table} set n = n + 1 where id = %s", (number,))
                            case _:
                                cursor.execute(f"replace into {table} values (%s, 7, 'new')", (number,))
                        number = own.randrange(150)
                    cursor.execute(own.choice(["commit", "commit", "rollback"]))
        except BaseException as error:  # noqa: BLE001  # told by the test
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        r = await reader(dsn(server), database)
        for _ in range(3):
            wanted = len(r.changes) + rng.randrange(1, 150)
            await r.until(lambda wanted=wanted: len(r.changes) >= wanted)
            await r.restart()
        await until_streaming(r)
    finally:
        over.set()
        await asyncio.to_thread(writer.join)
    assert not failures
    for table in ("a", "b"):
        wanted_rows = {(row[0],): row for row in run(server, f"select id, n, v from {table}", database=database)}

        def whole(table: str = table) -> dict[Any, Any]:
            """What a consumer holds: what an update leaves out stays as it was."""
            found: dict[Any, Any] = {}
            for change in r.changes:
                if change.table.table != table or change.op == "schema":
                    continue
                old = None if change.before is None else found.pop((change.before[0],), None)
                if change.after is not None:
                    base = old or (None, None, None)
                    row = tuple(b if repr(a) == "UNCHANGED" else a for a, b in zip(change.after, base, strict=True))
                    found[(row[0],)] = row
            return found

        await r.until(lambda: whole() == wanted_rows)  # noqa: B023
    ids = [change.id for change in r.changes]
    assert len(ids) == len(set(ids))


async def test_what_cant_be_copied_is_refused_with_the_cure(
    server: MariaDBServer, database: str, reader: MakeReader
) -> None:
    run(server, "create table bag (v int) engine = MyISAM", "create table plain (v int)", database=database)
    run(server, "create table odd (e enum('b', 'a') primary key)", database=database)
    found = {
        finding.object.partition(".")[2]: finding
        for finding in await Reader(dsn(server), database, snapshot="initial").source.check()
        if finding.code == "no-key"
    }
    assert {name: finding.severity for name, finding in found.items()} == {
        "bag": "error",
        "plain": "warning",
        "odd": "info",
    }
    with pytest.raises(SourceRefused, match="bag") as refused:
        await reader(dsn(server), database)
    assert "engine = InnoDB" in refused.value.advice
    await Reader(dsn(server), database, exclude=["*.bag"], snapshot="initial").source.check()


def bag(changes: list[Any], table: str) -> Counter[Any]:
    """A table of which only the count of each row matters."""
    found: Counter[Any] = Counter()
    for change in changes:
        if change.table.table != table or change.op == "schema":
            continue
        if change.op == "truncate":
            found.clear()
        if change.before is not None:
            found[change.before] -= 1
        if change.after is not None:
            found[change.after] += 1
    return +found


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(3, 40))]
)
async def test_a_table_without_a_key_under_writes_with_restarts_is_the_table(
    server: MariaDBServer, database: str, reader: MakeReader, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print(f"seed {seed}")
    monkeypatch.setattr("headrace.cdc.sources.wholerows.PART_ROWS", 100)
    monkeypatch.setattr("headrace.cdc.sources.wholerows.BLOCK_ROWS", 40)
    monkeypatch.setattr("headrace.cdc.sources.mysqlwhole.BLOCK_ROWS", 40)
    run(server, "create table t (n int, v varchar(20))", database=database)
    run(server, "create table o (e enum('b', 'a', 'c') primary key, n int)", database=database)
    run(server, "insert into o values ('a', 1), ('b', 2)", database=database)
    run(server, f"insert into t select seq % 50, 'old' from {numbered(700)}", database=database)
    over = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        own = random.Random(seed)
        try:
            with server.connect(database=database) as connection, connection.cursor() as cursor:
                while not over.is_set():
                    number = own.randrange(50)
                    cursor.execute("begin")
                    for _ in range(own.randrange(1, 4)):
                        match own.randrange(4):
                            case 0:
                                cursor.execute("delete from t where n = %s limit 2", (number,))
                            case 1:
                                cursor.execute("update t set v = %s where n = %s limit 3", (str(number), number))
                            case 2:
                                cursor.execute("replace into o values (%s, %s)", (own.choice("abc"), number))
                            case _:
                                cursor.execute("insert into t values (%s, 'new')", (number,))
                    cursor.execute(own.choice(["commit", "commit", "rollback"]))
        except BaseException as error:  # noqa: BLE001  # told by the test
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        r = await reader(dsn(server), database)
        await r.until(lambda: len(r.changes) + len(r.staged) > 150 * (seed + 1))
        await r.restart()
        await until_streaming(r)
        assert r.source.status().snapshot is None
    finally:
        over.set()
        await asyncio.to_thread(writer.join)
    assert not failures
    for table in ("t", "o"):
        wanted = Counter(run(server, f"select * from {table}", database=database))
        await r.until(lambda table=table, wanted=wanted: bag(r.changes, table) == wanted)
    assert sum(change.op == "truncate" for change in r.changes) == 2, "each was copied once, as a whole"
    ids = [change.id for change in r.changes]
    assert len(ids) == len(set(ids))


async def test_an_empty_table_without_a_key_is_emptied(
    server: MariaDBServer, database: str, reader: MakeReader
) -> None:
    run(server, "create table t (n int)", database=database)
    r = await reader(dsn(server), database)
    await until_streaming(r)
    assert [(change.op, change.is_last) for change in r.changes] == [("truncate", True)]


async def test_a_table_that_is_just_being_altered_is_looked_at_again(
    server: MariaDBServer, database: str, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(server, "create table t (n int)", "insert into t values (1), (2)", database=database)
    looks = 0

    async def look(query: Any, schema: str, table: str, collations: Any) -> Any:
        nonlocal looks
        looks += 1

        async def altered(text: str, *arguments: Any) -> Any:
            # What information_schema says of a table that a statement holds, or has just dropped.
            is_engine = "information_schema.engines" in text
            return ([(None, None)] if looks == 1 else []) if is_engine and looks <= 2 else await query(text, *arguments)

        return await read_table(altered, schema, table, collations)

    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.read_table", look)
    r = await reader(dsn(server), database)
    await until_streaming(r)
    assert bag(r.changes, "t") == Counter({(1,): 1, (2,): 1})
    assert looks > 3


@pytest.mark.matrix("mysql")
async def test_mysql_waits_for_an_open_writer_and_says_so(mysql9: MariaDBServer, reader: MakeReader) -> None:
    database = "waits"
    run(mysql9, "drop database if exists waits", "create database waits", "create table waits.t (n int)")
    run(mysql9, "insert into waits.t values (1)")
    with mysql9.connect(database=database) as connection, connection.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute("insert into t values (2)")
        r = await reader(dsn(mysql9), database)
        await r.until(lambda: "waits.t waits for an open transaction" in r.source.status().reason)
        cursor.execute("commit")
    await until_streaming(r)
    await r.until(lambda: bag(r.changes, "t") == Counter({(1,): 1, (2,): 1}))
    assert r.source.status().reason == ""


@pytest.mark.matrix("mysql")
async def test_mysql_without_the_right_to_lock_is_refused_with_the_grant(
    mysql9: MariaDBServer, reader: MakeReader
) -> None:
    run(mysql9, "drop database if exists unlocked", "create database unlocked", "create table unlocked.t (n int)")
    run(mysql9, "drop user if exists lockless", "create user lockless")
    run(mysql9, "grant replication slave, replication client on *.* to lockless", "grant select on *.* to lockless")
    words = f"mysql://lockless@127.0.0.1:{mysql9.port}"
    with pytest.raises(SourceRefused, match="may not lock the tables of unlocked") as refused:
        await reader(words, "unlocked")
    cure = "grant lock tables on `unlocked`.* to 'lockless'@'%'"
    assert cure in refused.value.advice
    run(mysql9, cure)
    r = await reader(words, "unlocked")
    await until_streaming(r)
    run(mysql9, "revoke lock tables on `unlocked`.* from lockless")
    with pytest.raises(RequestRefused, match="may not lock"):
        await r.source.snapshot(["unlocked.t"], "")
    run(mysql9, cure)
    await r.source.snapshot(["unlocked.t"], "")
    run(mysql9, "revoke lock tables on `unlocked`.* from lockless")
    with pytest.raises(SourceRefused, match="may not lock it"):
        await r.until(lambda: r.source.status().asked[-1]["is_done"])


async def test_wide_rows_come_in_small_chunks(
    server: MariaDBServer, database: str, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.CHUNK_BYTES", 10_000)
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy._FIRST_ROWS", 20)
    run(server, "create table a (id int primary key, v text)", database=database)
    run(server, "create table b (id int primary key, v text)", database=database)
    run(server, f"insert into a select seq, 'v' from {numbered(900)}", database=database)
    run(server, f"insert into b select seq, repeat('v', 1000) from {numbered(100)}", database=database)
    r = await reader(dsn(server), database)
    counts: dict[str, list[int]] = {"a": [], "b": []}
    async with asyncio.timeout(30):
        while sum(counts["b"]) < 100:
            batch = await r.source.read()
            if batch.changes:
                counts[batch.changes[0].table.table].append(len(batch.changes))
    assert max(counts["a"]) > 500, "narrow rows come in large ones"
    assert counts["b"][0] == 20, "of the next table nothing is known again"
    assert max(counts["b"][1:]) <= 10


# asked for by a person


async def test_what_is_asked_for_comes_again_and_goes_on_after_a_restart(
    server: MariaDBServer, database: str, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.CHUNK_ROWS", 7)
    run(server, "create table t (id int primary key, v varchar(20))", database=database)
    run(server, "create table b (n int)", "insert into b values (1), (1)", database=database)
    run(server, f"insert into t select seq, '5%' from {numbered(60)}", database=database)
    r = await reader(dsn(server), database)
    await until_streaming(r)
    first = len(r.changes)
    asked = await r.source.snapshot([f"{database}.*"], "")
    assert (asked.number, sorted(asked.tables)) == (1, [f"{database}.b", f"{database}.t"])
    assert r.source.status().phase == "streaming", "the first copy is over"
    await r.until(lambda: len(r.changes) > first + 20)
    await r.restart()
    await r.until(lambda: all(copy["is_done"] for copy in r.source.status().asked))
    (told,) = r.source.status().asked
    assert (told["number"], told["rows"]) == (1, 62)
    again = r.changes[first:]
    assert Counter(change.after[0] for change in again if change.table.table == "t") == Counter(range(1, 61))
    assert [change.op for change in again if change.table.table == "b"] == ["truncate", "read", "read"]
    some = await r.source.snapshot([f"{database}.t"], "id % 2 = 0 and v like '5%' and v <> '%s'")
    assert some.number == 2
    count = len(r.changes)
    await r.until(lambda: r.source.status().asked[-1]["is_done"])
    assert [change.after[0] for change in r.changes[count:]] == list(range(2, 61, 2))
    ids = [change.id for change in r.changes]
    assert len(ids) == len(set(ids))
    await r.restart()
    await r.until(lambda: r.heartbeats > 0)
    assert r.source.status().snapshot is None, "nothing is copied again"


async def test_what_cant_be_asked_for_is_refused(server: MariaDBServer, database: str, reader: MakeReader) -> None:
    run(server, "create table t (id int primary key)", "create table b (n int)", database=database)
    run(server, "create table m (n int) engine = MyISAM", database=database)
    r = await reader(dsn(server), database, exclude=["*.m"])
    for tables, where, said in [
        ([f"{database}.x"], "", "captures no table"),
        ([f"{database}.m"], "", "captures no table"),
        ([f"{database}.t"], "nothing = 1", "doesn't take the condition .*nothing"),
        ([f"{database}.t"], "1 = 1) ; drop table t; (", "doesn't take the condition"),
        ([f"{database}.b"], "n = 1", "copied whole only"),
    ]:
        with pytest.raises(RequestRefused, match=said):
            await r.source.snapshot(tables, where)
    assert r.source.status().asked == []
    await r.source.stop()
    with pytest.raises(RequestRefused, match="stopped"):
        await r.source.snapshot([f"{database}.t"], "")


@pytest.mark.parametrize("rotates", [False, True])
async def test_a_chunk_that_lacks_what_was_delivered_before_it_is_read_again(
    mariadb_template: Path, reader: MakeReader, *, rotates: bool
) -> None:
    """Semi-synchronous replication waits between a transaction's place in the binlog and its being visible.

    rotates: the transaction is the last of its file, and the beginning of the next one is told as the place of a snapshot.
    """
    own = MariaDBServer(
        mariadb_template,
        {
            "rpl-semi-sync-master-enabled": "ON",
            "rpl-semi-sync-master-wait-point": "AFTER_SYNC",
            "rpl-semi-sync-master-timeout": "1500",
            "max-binlog-size": "4096" if rotates else "1G",
        },
    )
    own.start()
    try:
        run(own, "set global rpl_semi_sync_master_enabled = off", "create database d")
        run(own, "create table d.t (id int primary key, v int, w text)")
        run(own, "create table d.b (v int, w text)")
        run(own, "insert into d.t values (1, 0, null)", "insert into d.b values (0, null)")
        r = await reader(dsn(own), "d")
        await until_streaming(r)
        wide = "w" * 5000
        for table in ("t", "b"):
            # Once it has timed out it waits no more until it is switched on anew.
            run(own, *(f"set global rpl_semi_sync_master_enabled = {word}" for word in ("off", "on")))
            writing = asyncio.create_task(asyncio.to_thread(run, own, f"update d.{table} set v = 7, w = '{wide}'"))
            count = len(r.changes)
            await r.until(lambda count=count: len(r.changes) > count)
            assert run(own, f"select v from d.{table}") == [(0,)], "delivered, and not yet visible"
            await r.source.snapshot([f"d.{table}"], "")
            await r.until(lambda: r.source.status().asked[-1]["is_done"])
            await writing
        assert folded(r.changes, "t") == {(1,): (1, 7, wide)}
        assert bag(r.changes, "b") == Counter({(7, wide): 1})
    finally:
        own.remove()


@pytest.mark.parametrize("image", ["FULL", "MINIMAL"])
@pytest.mark.parametrize("key", [" primary key", ""])
async def test_a_copied_row_is_the_one_that_the_stream_has_given(
    mariadb_template: Path, reader: MakeReader, monkeypatch: pytest.MonkeyPatch, key: str, image: str
) -> None:
    """Each commit begins a new binlog file, whose first place is told for a snapshot before the commit is visible."""
    monkeypatch.setattr("headrace.cdc.sources.mariadbplaces.QUIET_S", 0.2)
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.CHUNK_ROWS", 3)
    own = MariaDBServer(mariadb_template, {"max-binlog-size": "4096", "binlog-row-image": image})
    own.start()
    run(own, "create database d", f"create table d.t (id int{key}, n int, pad text)")
    over, failures = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            with own.connect() as connection, connection.cursor() as cursor:
                for number in range(1, 1 << 20):
                    row = number % 5
                    if number % 3:
                        cursor.execute(f"update d.t set n = {number}, pad = repeat('x', 4900) where id = {row}")
                    else:
                        cursor.execute(f"delete from d.t where id = {row}")
                        cursor.execute(f"insert into d.t values ({row}, {number}, repeat('y', 5000))")
                    if over.is_set():
                        return
        except BaseException as error:  # noqa: BLE001  # told by the test
            failures.append(error)

    rows: dict[int, Any] = {}
    before: dict[int, Any] = {}

    def fold() -> None:
        """Without a key a copy begins with a truncate, and has each row as it was just before."""
        nonlocal rows, before
        for change in r.changes:
            if change.op == "truncate":
                before, rows = rows, {}
                continue
            if change.op == "read":
                known = rows if key else before
                assert change.after == known.get(change.after[0]), f"{change.id} is of another time than the stream"
            former = (None,) * 3 if change.before is None else rows.pop(change.before[0])
            if change.after is not None:
                both = zip(change.after, former, strict=True)
                rows[change.after[0]] = tuple(old if repr(new) == "UNCHANGED" else new for new, old in both)
        r.changes.clear()

    def is_whole() -> bool:
        fold()
        return rows == wanted

    writer = threading.Thread(target=write)
    try:
        r = await reader(dsn(own), "d")
        await until_streaming(r)
        writer.start()
        for _ in range(12 if key else 3):
            await r.source.snapshot(["d.t"], "")
            await r.until(lambda: r.source.status().asked[-1]["is_done"])
            fold()
        over.set()
        await asyncio.to_thread(writer.join)
        assert not failures
        wanted = {row[0]: row for row in run(own, "select id, n, pad from d.t")}
        await r.until(is_whole)
    finally:
        over.set()
        own.remove()
