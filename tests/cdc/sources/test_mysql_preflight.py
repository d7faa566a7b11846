"""What check says of MySQL and MariaDB: each trouble by its code, with the statement that mends it; and how far behind a source is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_mysql import Reader, dsn, run

from fix_mariadb import MariaDBServer
from headrace.cdc.config import ColumnsConfig, EventConfig
from headrace.cdc.decode.binlog import BinlogPlace
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.sources.mysql import MySQLSource
from headrace.cdc.sources.mysql_config import MySQLConfig
from headrace.cdc.sources.mysqlmonitor import BinlogFiles
from headrace.cdc.sources.mysqlpreflight import findings
from headrace.cdc.sources.mysqlserver import ServerFacts

MARIADB = ServerFacts(
    {
        "version": "10.11.11-MariaDB-log",
        "log_bin": "ON",
        "binlog_format": "ROW",
        "binlog_row_image": "FULL",
        "binlog_row_metadata": "FULL",
        "gtid_binlog_pos": "0-1-5",
        "server_id": "1",
        "binlog_expire_logs_seconds": "0",
    },
    BinlogPlace("b.000001", 4),
    ["shop.t"],
    is_replica=False,
    cascades=[],
    user="'h'@'%'",
    grants=["GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO `h`@`%`"],
)
MYSQL = msgspec.structs.replace(
    MARIADB, variables={**MARIADB.variables, "version": "9.7.0", "gtid_mode": "ON", "server_uuid": "u"}
)
CONFIG = MySQLConfig(dsn="mysql://h@127.0.0.1", tables=["shop.*"])


def told(facts: ServerFacts, variables: dict[str, str] | None = None, config: MySQLConfig = CONFIG, **more: Any) -> Any:
    changed = msgspec.structs.replace(facts, variables={**facts.variables, **(variables or {})}, **more)
    return [
        (finding.code, finding.severity, finding.cure)
        for finding in findings(changed, config, source="shop", tables=[], events={})
    ]


def test_a_server_as_it_should_be_has_nothing_to_be_told() -> None:
    assert told(MARIADB) == []
    assert told(MYSQL) == []


@pytest.mark.parametrize(
    ("facts", "variables", "more", "code", "severity", "cure"),
    [
        (MARIADB, {}, {"prepared": ["a"]}, "prepared-xa", "warning", "xa commit, or xa rollback"),
        (MARIADB, {"log_bin": "OFF"}, {}, "log-bin", "error", "--log-bin"),
        (MARIADB, {"binlog_format": "MIXED"}, {}, "binlog-format", "error", "set global binlog_format = 'ROW';"),
        (MARIADB, {"binlog_row_metadata": "NO_LOG"}, {}, "row-metadata", "warning", "binlog_row_metadata = 'FULL';"),
        (MARIADB, {"binlog_row_image": "MINIMAL"}, {}, "row-image", "info", "binlog_row_image = 'FULL';"),
        (MYSQL, {"binlog_row_value_options": "PARTIAL_JSON"}, {}, "partial-json", "info", "binlog_row_value_options = '';"),
        (MYSQL, {"binlog_row_value_options": "PARTIAL_JSON", "binlog_row_image": "MINIMAL"}, {}, "partial-json", "warning", "binlog_row_image = 'FULL';"),
        (MYSQL, {"log_replica_updates": "OFF"}, {"is_replica": True}, "replica-updates", "error", "primary"),
        (MARIADB, {"log_slave_updates": "OFF"}, {"is_replica": True}, "replica-updates", "error", "primary"),
        (MARIADB, {"binlog_expire_logs_seconds": "3600"}, {}, "retention", "warning", "binlog_expire_logs_seconds = 604800;"),
        (MARIADB, {"expire_logs_days": "3.0"}, {}, "retention", "info", "binlog_expire_logs_seconds = 604800;"),
        (MARIADB, {"gtid_binlog_pos": ""}, {}, "gtid", "warning", "first transaction"),
        (MYSQL, {"gtid_mode": "OFF"}, {}, "no-copy", "error", "gtid_mode = ON"),
        (MARIADB, {"server_id": "0"}, {}, "server-id", "error", "set global server_id = 1;"),
        (MARIADB, {}, {"grants": ["GRANT SELECT ON *.* TO `h`@`%`"]}, "rights", "error", "grant replication slave on *.* to 'h'@'%';"),
        (MARIADB, {}, {"tables": ["other.t"]}, "no-such-table", "warning", "grant select"),
    ],
)  # fmt: skip
def test_each_setting_is_told_with_its_cure(
    facts: ServerFacts, variables: dict[str, str], more: dict[str, Any], code: str, severity: str, cure: str
) -> None:
    found = {each[0]: each for each in told(facts, variables, **more)}
    assert code in found
    assert found[code][1] == severity
    assert cure in found[code][2]


def test_a_taken_server_id_is_told() -> None:
    for number, replicas, is_told in [
        (1, [], True),
        (7, [(7, "db2")], True),
        (7, [(7, "headrace")], False),
        (7, [(8, "db2")], False),
    ]:
        config = MySQLConfig(dsn="mysql://h@127.0.0.1", tables=["shop.*"], server_id=number)
        assert bool(told(MARIADB, config=config, replicas=replicas)) == is_told


def test_rights_that_roles_may_give_are_left_alone() -> None:
    assert told(MARIADB, grants=["GRANT `reader`@`%` TO `h`@`%`", "GRANT USAGE ON *.* TO `h`@`%`"]) == []
    assert told(MARIADB, grants=["GRANT ALL PRIVILEGES ON *.* TO `h`@`%` WITH GRANT OPTION"]) == []


@pytest.fixture(params=["mariadb", pytest.param("mysql9", marks=pytest.mark.matrix("mysql"))])
def server(request: pytest.FixtureRequest) -> MariaDBServer:
    found: MariaDBServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def database(server: MariaDBServer, request: pytest.FixtureRequest) -> str:
    name = f"p{abs(hash(request.node.name)) % 10**9}"
    run(server, f"drop database if exists {name}", f"create database {name} character set utf8mb4")
    return name


@pytest.fixture
async def source(server: MariaDBServer, database: str) -> AsyncIterator[Any]:
    made: list[MySQLSource] = []

    def make(words: str = "", events: dict[str, EventConfig] | None = None, **fields: Any) -> MySQLSource:
        config = MySQLConfig(dsn=words or dsn(server), tables=[f"{database}.*"], **fields)
        made.append(MySQLSource("shop", config, events or {}))
        return made[-1]

    yield make
    for each in made:
        await each.stop()


async def test_tables_are_told_by_what_is_odd_in_them(server: MariaDBServer, database: str, source: Any) -> None:
    run(
        server,
        "create table plain (id int primary key, v text)",
        "create table old (id int primary key) engine = MyISAM",
        "create table far (id int primary key, v varchar(9) character set dec8, e enum('a') character set hp8, w text)",
        "create table child (id int primary key, t int, foreign key (t) references plain (id) on delete cascade)",
        database=database,
    )
    found = {(finding.code, finding.object): finding for finding in await source().check()}
    about = {key for key in found if key[1].startswith(database)}
    assert about - {("cascade", f"{database}.child")} == {
        ("engine", f"{database}.old"),
        ("charset", f"{database}.far.v"),
        ("charset", f"{database}.far.e"),
    }
    assert "dec8" in found["charset", f"{database}.far.v"].message
    assert f"alter table `{database}`.`old` engine = InnoDB;" == found["engine", f"{database}.old"].cure


async def test_a_cascade_is_told_where_the_server_leaves_it_out(
    server: MariaDBServer, database: str, source: Any
) -> None:
    run(
        server,
        "create table plain (id int primary key)",
        "create table child (id int primary key, t int, foreign key (t) references plain (id) on delete cascade)",
        "insert into plain values (1)",
        "insert into child values (1, 1)",
        database=database,
    )
    is_told = "cascade" in {finding.code for finding in await source().check()}
    reader = Reader(dsn(server), database)
    await reader.start()
    run(server, "delete from plain", "insert into plain values (2)", database=database)
    await reader.until(lambda: any(change.after == (2,) for change in reader.changes))
    await reader.source.stop()
    is_logged = any(change.table.table == "child" for change in reader.changes)
    assert is_told is not is_logged


async def test_missing_rights_are_told_with_the_grant_that_mends_them(
    server: MariaDBServer, database: str, source: Any
) -> None:
    run(server, "create table t (id int primary key)", "create table b (n int)", database=database)
    monitor = "replication client" if server.connect().get_server_info().find("Maria") < 0 else "binlog monitor"
    run(server, "drop user if exists poor", "create user poor", f"grant {monitor} on *.* to poor")
    run(server, f"grant insert on {database}.* to poor")
    poor = source(f"mysql://poor@127.0.0.1:{server.port}")
    found = [finding for finding in await poor.check() if finding.severity == "error" and finding.code == "rights"]
    wanted = {"may not read the binlog", "can't be copied: the user may not read it"}
    assert {finding.message for finding in found} >= wanted
    for finding in found:
        run(server, finding.cure.rstrip(";"))
    assert not [finding for finding in await poor.check() if finding.severity == "error"]
    await poor.start(None)


async def test_events_that_name_no_table_or_column_are_told(server: MariaDBServer, database: str, source: Any) -> None:
    run(server, "create table t (id int primary key, email text)", database=database)
    events = {
        f"{database}.t": EventConfig(key="idd", columns=ColumnsConfig(exclude=["emial"])),
        f"{database}.u": EventConfig(),
    }
    found = {(finding.code, finding.object) for finding in await source(events=events).check()}
    assert {
        ("events-column", f"events.{database}.t.key"),
        ("events-column", f"events.{database}.t.columns.exclude"),
        ("events-table", f"events.{database}.u"),
    } <= found


async def test_hidden_values_are_in_no_byte_of_the_log(server: MariaDBServer, database: str, tmp_path: Path) -> None:
    run(server, "create table people (id int primary key, email text, note text, phone text)", database=database)
    run(server, "insert into people values (1, 'ada@example.org', 'very private', '+41 79')", database=database)
    run(server, "create table outbox (id int primary key, who text, body text)", database=database)
    events = {
        f"{database}.people": EventConfig(
            kind="identify", key="email", columns=ColumnsConfig(exclude=["note"], hash=["email"], mask={"phone": "***"})
        ),
        f"{database}.outbox": EventConfig(key="who", insert="Order Completed"),
    }
    reader = Reader(dsn(server), database, snapshot="initial")
    reader.source = MySQLSource(database, reader.config, events)
    log = await SQLiteLog.open(tmp_path / "log.db")
    try:
        await reader.start()
        await reader.until(lambda: reader.source.status().phase == "streaming")
        run(server, "update people set id = 2, note = 'very private too'", "delete from people", database=database)
        run(server, "insert into outbox values (1, 'ada', 'a body')", database=database)
        await reader.until(lambda: any(change.table.table == "outbox" for change in reader.changes))
        made = Normaliser(database, events, "a salt of many characters").events(reader.changes, 0)
        await log.append(made, source=database, state=b"")
    finally:
        await reader.source.stop()
        await log.close()
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"a body" in written
    assert not [word for word in (b"ada@example", b"very private", b"+41 79") if word in written]
    assert [(event.name, event.key) for event in made if event.row is not None and event.row.table == "outbox"] == [
        ("Order Completed", "ada")
    ]


async def test_lag_and_the_size_of_the_binlog_are_told(server: MariaDBServer, database: str) -> None:
    run(server, "create table t (id int primary key, v text)", database=database)
    reader = Reader(dsn(server), database)
    await reader.start()
    try:
        reader.source._asked_at = -1e9
        await reader.until(lambda: reader.source.status().retained_bytes is not None)
        sizes = sum(int(row[1]) for row in run(server, "show binary logs"))
        assert reader.source.status().retained_bytes == sizes
        await reader.until(lambda: reader.source.status().lag_bytes == 0)
        assert reader.source.status().lag_s == 0.0
        # Nobody reads on: what the server has beyond us is the lag.
        run(
            server, *(f"insert into t values ({number}, repeat('v', 10000))" for number in range(20)), database=database
        )
        run(server, "flush logs", "insert into t values (99, 'v')", database=database)
        assert reader.source._server is not None
        reader.source._server_end, reader.source._files = await reader.source._ask(reader.source._server)
        status = reader.source.status()
        assert 200_000 < (status.lag_bytes or 0) < 220_000
        assert status.lag_s is not None
        assert status.lag_s < time.time()
        await reader.until_rows(21)
        await reader.until(lambda: reader.source.status().lag_bytes == 0)
    finally:
        await reader.source.stop()


def test_lag_is_counted_over_files_and_the_oldest_file_is_a_warning() -> None:
    files = BinlogFiles((("b.000009", 1000), ("b.000010", 500), ("b.000011", 70)))
    end = BinlogPlace("b.000011", 80)
    for file, pos, wanted in [
        ("b.000011", 80, 0), ("b.000011", 60, 20), ("b.000010", 100, 480), ("b.000009", 900, 680),
        ("b.000008", 4, None), ("b.000012", 4, 0), ("", 0, None),
    ]:  # fmt: skip
        assert files.lag_bytes(BinlogPlace(file, pos), end) == wanted
    assert files.total_bytes == 1570
    (warned,) = files.warnings(BinlogPlace("b.000009", 900), end)
    assert "b.000009" in warned
    assert files.warnings(BinlogPlace("b.000010", 4), end) == []
    assert BinlogFiles().total_bytes is None
    assert BinlogFiles((("b.000011", 80),)).warnings(BinlogPlace("b.000011", 4), end) == []


async def test_prepared_transactions_are_found(mariadb: MariaDBServer) -> None:
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute("create or replace database prepared_xa")
        cursor.execute("create table prepared_xa.t (id int primary key)")
        cursor.execute("xa start 'waiting'")
        cursor.execute("insert into prepared_xa.t values (1)")
        cursor.execute("xa end 'waiting'")
        cursor.execute("xa prepare 'waiting'")
        try:
            source = MySQLSource(
                "shop", MySQLConfig(dsn=f"mysql://root@127.0.0.1:{mariadb.port}", tables=["prepared_xa.*"]), {}
            )
            assert "prepared-xa" in {finding.code for finding in await source.check()}
        finally:
            cursor.execute("xa rollback 'waiting'")
