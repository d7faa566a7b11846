"""The binlog decoder against a live MariaDB: its own SELECT says what each value is, its own tables what the folded rows must be."""

from __future__ import annotations

import contextlib
import random
import struct
from collections import Counter
from typing import Any

import pymysql
import pytest
import zstandard

from binlog_reader import place, read_events
from fix_mariadb import MariaDBServer
from headrace.cdc.decode import binlog
from headrace.cdc.decode.binlog import BinlogDecoder, BinlogPlace, BinlogTransaction, Undone
from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.decode.mysqlcharset import charset_name
from headrace.cdc.decode.mysqlpayload import _varying, payload_events, varying
from headrace.cdc.decode.tableversion import changes_of
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNCHANGED, UNDECODABLE, Change


class Watched:
    """A database of its own, and what its binlog says from here on."""

    def __init__(self, server: MariaDBServer, name: str) -> None:
        self.server = server
        self.name = name
        self.connection = server.connect()
        self.run(f"drop database if exists {name}")
        self.run(f"create database {name} character set utf8mb4")
        self.run(f"use {name}")
        self.run("set time_zone = '+00:00', sql_mode = ''")
        self.start = place(server)
        self.is_mysql = "maria" not in self.run("select version()")[0][0].lower()

    def run(self, query: str, *args: object) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, args or None)
            return list(cursor.fetchall())

    def events(self, **more: Any) -> list[bytes]:
        return read_events(self.server, *self.start, **more)

    def decoder(self, **more: Any) -> BinlogDecoder:
        return BinlogDecoder(
            "m-0-",
            more.pop("versions", {}),
            place=BinlogPlace(*self.start),
            gtids=MySQLGtidSet() if self.is_mysql else MariaDBGtids(),
            **more,
        )

    def changes(self, **more: Any) -> list[Change]:
        found = self.transactions(self.events(**more))
        return [change for change in changes_of(found) if change.table.schema == self.name]

    def transactions(self, events: list[bytes], **more: Any) -> list[BinlogTransaction]:
        """All of them, an XA transaction with its rows, as the source reads them."""
        decoder = self.decoder(**more)
        found: list[BinlogTransaction] = []
        for event in events:
            decoder.feed(event)
            while True:
                taken, decoder.transactions = decoder.transactions, []
                for transaction in taken:
                    if transaction.rows_at is None:
                        found.append(transaction)
                        continue
                    again = self.decoder(stands_for=transaction, versions=decoder.versions)
                    for earlier in events:
                        again.feed(earlier)
                        if again.transactions and not again.transactions[-1].is_part:
                            break
                    found += again.transactions
                if not decoder.is_unpacking:
                    break
                decoder.go_on()
        assert (decoder.place.file, decoder.place.pos) == place(self.server)
        assert not decoder.in_transaction
        return found


@pytest.fixture(params=["mariadb", pytest.param("mysql9", marks=pytest.mark.matrix("mysql"))])
def db(request: pytest.FixtureRequest) -> Watched:
    server: MariaDBServer = request.getfixturevalue(request.param)
    return Watched(server, f"d{abs(hash(request.node.name)) % 10**9}")


# type -> literals; the value is what a SELECT of the expression gives ({} is the column)
TYPES: dict[str, tuple[list[str], str]] = {
    "tinyint": (["-128", "127", "0"], "{}"),
    "tinyint unsigned": (["0", "255"], "{}"),
    "smallint": (["-32768", "32767"], "{}"),
    "smallint unsigned": (["65535"], "{}"),
    "mediumint": (["-8388608", "8388607", "-1"], "{}"),
    "mediumint unsigned": (["16777215"], "{}"),
    "int": (["-2147483648", "2147483647"], "{}"),
    "int unsigned zerofill": (["4294967295"], "{} + 0"),
    "bigint": (["-9223372036854775808", "9223372036854775807"], "{}"),
    "bigint unsigned": (["18446744073709551615", "0"], "{}"),
    "decimal(65,30)": (["-12345678901234567890123456789012345.123456789012345678901234567890", "0", "1e-30", "-0.1"], "{}"),
    "decimal(36,18)": (["-999999999999999999.999999999999999999", "999999999999999999.000000000000000001", "0", "-0.000000000000000001"], "{}"),
    "decimal(19,9)": (["-1234567890.000000009", "9999999999.999999999", "-1"], "{}"),
    "decimal(10,0)": (["-1", "9999999999"], "{}"),
    "decimal(9,9)": (["0.123456789", "-0.000000001"], "{}"),
    "decimal(38,2) unsigned": (["0.01", "123456789012345678901234567890123456.99"], "{}"),
    "float": (["0.1", "-3.4e38", "1.17549e-38", "16777216"], "cast({} as double)"),
    "double": (["0.1", "-1.7976931348623157e308", "2.2250738585072014e-308", "-0.0"], "{}"),
    "bit(1)": (["b'1'", "b'0'"], "{} + 0"),
    "bit(12)": (["b'101010101010'"], "{} + 0"),
    "bit(64)": (["18446744073709551615"], "{} + 0"),
    "year": (["1901", "2155", "0"], "{} + 0"),
    "date": (["'1000-01-01'", "'9999-12-31'", "'0000-00-00'", "'2024-00-15'", "'0005-02-29'"], "{}"),
    "time": (["'-838:59:59'", "'838:59:59'", "'00:00:00'", "'-00:00:01'"], "{}"),
    "time(1)": (["'-12:00:00.1'", "'11:11:11.9'"], "{}"),
    "time(3)": (["'-12:00:00.001'", "'11:11:11.999'"], "{}"),
    "time(6)": (["'-12:00:00.000001'", "'838:59:58.999999'", "'-00:00:00.000001'"], "{}"),
    "datetime": (["'0000-00-00 00:00:00'", "'9999-12-31 23:59:59'", "'2024-00-00 01:02:03'"], "{}"),
    "datetime(4)": (["'1000-01-01 00:00:00.0001'"], "{}"),
    "datetime(6)": (["'9999-12-31 23:59:59.999999'", "'0000-00-00 00:00:00.000001'"], "{}"),
    "timestamp null": (["'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "'0000-00-00 00:00:00'"], "{}"),
    "timestamp(6) null": (["'2024-02-29 23:59:59.123456'", "'1970-01-01 00:00:01.000000'"], "{}"),
    "timestamp(2) null": (["'2000-03-01 00:00:00.01'"], "{}"),
    "char(10)": (["'a  '", "''", "'äöü€😀'"], "{}"),
    "char(255) character set utf8mb4": (["repeat('😀', 255)"], "{}"),
    "varchar(300)": (["''", "repeat('ä', 300)", "'a\\0b'"], "{}"),
    "varchar(20) character set latin1": (["'äÿ€'", "_latin1 x'818D8F909D'"], "{}"),
    "text character set ucs2": (["'äö€'"], "{}"),
    "text character set utf16": (["'äö€😀'"], "{}"),
    "text character set utf16le": (["'äö€😀'"], "{}"),
    "text character set utf32": (["'äö€😀'"], "{}"),
    "text character set utf8mb3": (["'äö€'"], "{}"),
    "text character set sjis": (["'日本'"], "{}"),
    "text character set gbk": (["'中文'"], "{}"),
    "text character set big5": (["'中文'"], "{}"),
    "text character set euckr": (["'한글'"], "{}"),
    "text character set koi8r": (["'Привет'"], "{}"),
    "text character set cp1251": (["'Привет'"], "{}"),
    "text character set greek": (["'Ελλάδα'"], "{}"),
    "text character set hebrew": (["'שלום'"], "{}"),
    "text character set latin2": (["'Łódź'"], "{}"),
    "text character set latin5": (["'ğış'"], "{}"),
    "text character set cp850": (["'äß'"], "{}"),
    "tinytext": (["'x'"], "{}"),
    "mediumtext": (["repeat('ab', 40000)"], "{}"),
    "longtext": (["'ä'"], "{}"),
    "binary(5)": (["x'0102'", "x'0000000000'", "x'0100000000'"], "concat('0x', lower(hex({})))"),
    "varbinary(300)": (["x''", "x'00ff00'"], "concat('0x', lower(hex({})))"),
    "blob": (["x'00'", "repeat(x'ff', 70000)"], "concat('0x', lower(hex({})))"),
    "longblob": (["x'0102'"], "concat('0x', lower(hex({})))"),
    "enum('a','ä,b','')": (["'a'", "'ä,b'", "''", "'nonsense'"], "{}"),
    "set('a','b','c')": (["'a,c'", "''", "'c'"], "{}"),
    "json": (["'{\"b\": [1, 2.50, null], \"a\": \"ä\"}'", "'[1e-7, 1e-16, 1e14, 1e15, 1.5e22, -0.0, 1234567890123456.75, 123456789012345.6]'"], "{}"),
    "uuid": (["'123e4567-e89b-12d3-a456-426655440000'", "'00000000-0000-0000-0000-000000000000'"], "concat('0x', lower(hex({})))"),
    "inet6": (["'2001:db8::ff00:42:8329'", "'::'"], "concat('0x', lower(hex({})))"),
    "inet4": (["'192.168.0.1'", "'0.0.0.0'"], "concat('0x', lower(hex({})))"),
    "point": (["st_geomfromtext('POINT(1 2)', 4326)"], "concat('0x', lower(hex({})))"),
    "geometry": (["st_geomfromtext('POLYGON((0 0,1 0,1 1,0 0))')"], "concat('0x', lower(hex({})))"),
    "varchar(200) compressed": (["repeat('ab', 100)", "'ä'", "''"], "{}"),
    "blob compressed": (["repeat(x'00', 5000)", "x'01'"], "concat('0x', lower(hex({})))"),
    "text compressed character set latin1": (["repeat('ä', 5000)"], "{}"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_a_value_is_what_select_says(db: Watched, kind: str) -> None:
    literals, expression = TYPES[kind]
    if db.is_mysql and (kind in ("uuid", "inet4", "inet6") or "compressed" in kind):
        pytest.skip("a type of MariaDB's")
    db.run(f"create table t (id int primary key auto_increment, v {kind})")
    for literal in [*literals, "null"]:
        db.run(f"insert into t (v) values ({literal})")
    wanted = [value for (value,) in db.run(f"select {expression.format('v')} from t order by id")]
    found = [change.after[1] for change in db.changes() if change.op == "insert" and change.after is not None]
    for value, said in zip(found, wanted, strict=True):
        if kind == "float" and isinstance(value, float):
            assert struct.pack("<f", value) == struct.pack("<f", said)
        elif said is None or isinstance(value, (int, float)):
            assert value == said
            assert type(value) is type(said) or kind != "double"
        else:
            assert value == (said if isinstance(said, str) else said_text(said, kind))


def said_text(said: Any, kind: str) -> str:
    """PyMySQL makes Python's own types of some; their text is what the server said."""
    if kind.startswith("time"):
        raise AssertionError("compare texts")
    return str(said)


@pytest.fixture(autouse=True)
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decimals and times as the server prints them, not as PyMySQL understands them."""
    import pymysql.connections

    real = pymysql.connections.Connection.__init__

    def init(self: Any, *args: Any, **more: Any) -> None:
        from pymysql.constants import FIELD_TYPE
        from pymysql.converters import conversions

        plain = dict(conversions)
        for field in ("DECIMAL", "NEWDECIMAL", "DATE", "TIME", "DATETIME", "TIMESTAMP", "NEWDATE"):
            plain.pop(getattr(FIELD_TYPE, field), None)
        real(self, *args, **{"conv": plain, **more})

    monkeypatch.setattr(pymysql.connections.Connection, "__init__", init)


def test_columns_beside_each_other_keep_their_signs_and_charsets(db: Watched) -> None:
    """The binlog tells both by the how-manieth of a group: who belongs to it differs between the servers."""
    db.run(
        "create table t (y year, b bigint unsigned, s smallint, e enum('ä'), u tinyint unsigned, t text character set latin1,"
        " g geometry, v varchar(9) character set utf8mb3, bin blob, d decimal(3) unsigned, w set('ö'), p point, x text, i int unsigned)"
    )
    db.run(
        "insert into t values (2155, 18446744073709551615, -1, 'ä', 255, 'ä', point(1, 2), 'ä', 'a', 9, 'ö', point(1, 2), 'ä', 4294967295)"
    )
    (change,) = db.changes()
    assert change.after is not None
    geometry = f"0x{db.run('select lower(hex(g)) from t')[0][0]}"
    texts = ("ä", geometry, "ä", "0x61", "9", "ö", geometry, "ä", 4294967295)
    assert change.after == (2155, 18446744073709551615, -1, "ä", 255, *texts)


def test_bytes_that_are_no_text_are_marked(db: Watched) -> None:
    db.run("create table t (v varchar(10) character set armscii8)")
    db.run("insert into t values (_armscii8 x'b2b3')")
    assert [change.after for change in db.changes()] == [(UNDECODABLE,)]


def test_every_collation_of_the_server_is_known(mariadb: MariaDBServer) -> None:
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "select a.id, a.character_set_name, a.full_collation_name from information_schema.collation_character_set_applicability a"
        )
        rows = cursor.fetchall()
    assert len(rows) > 300
    assert not [(number, name, full) for number, name, full in rows if charset_name(int(number)) != name]


def test_each_operation_has_its_images(db: Watched) -> None:
    db.run("create table t (id int, grp int, v text, primary key (grp, id))")
    db.run("insert into t values (1, 7, 'a'), (2, 7, null)")
    db.run("update t set v = 'b', id = id + 10 where grp = 7")
    db.run("delete from t where id = 11")
    db.run("truncate table t")
    changes = db.changes()
    assert [(change.op, change.before, change.after) for change in changes] == [
        ("insert", None, (1, 7, "a")),
        ("insert", None, (2, 7, None)),
        ("update", (1, 7, "a"), (11, 7, "b")),
        ("update", (2, 7, None), (12, 7, "b")),
        ("delete", (11, 7, "b"), None),
        ("truncate", None, None),
    ]
    assert changes[0].table.key == (0, 1)
    assert [change.is_last for change in changes] == [False, True, False, True, True, True]
    assert len({change.id for change in changes}) == 6
    if not db.is_mysql:
        assert changes[0].id.startswith("m-0-0-1-")


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB", "FULL_NODUP"])
def test_partial_images_leave_what_they_lack_unchanged(db: Watched, image: str) -> None:
    try:
        db.run(f"set session binlog_row_image = '{image}'")
    except Exception as error:
        if "Variable" not in str(error) and "can't be set" not in str(error):
            raise
        pytest.skip(f"this server has no {image} images")
    db.run("create table t (id int primary key, n int, big text)")
    db.run("insert into t (id, n, big) values (1, 1, 'large')")
    db.run("update t set n = 2 where id = 1")
    db.run("delete from t where id = 1")
    insert, update, delete = db.changes()
    assert insert.after == (1, 1, "large")
    assert update.before is not None and update.after is not None and delete.before is not None
    assert update.before[0] == 1 and update.after[:2] == (1, 2) and delete.before[0] == 1
    if image == "MINIMAL":
        assert (update.before, update.after, delete.before) == (
            (1, UNCHANGED, UNCHANGED),
            (1, 2, UNCHANGED),
            (1, UNCHANGED, UNCHANGED),
        )
    elif image == "NOBLOB":
        assert update.after == (1, 2, UNCHANGED)


def test_transactions_savepoints_and_rollbacks(db: Watched) -> None:
    db.run("create table t (id int primary key) engine=innodb")
    # With GTIDs enforced MySQL refuses to mix engines, and then writes no savepoint into the binlog.
    db.run(f"create table m (id int primary key) engine={'innodb' if db.is_mysql else 'myisam'}")
    db.run("begin")
    db.run("insert into t values (1)")
    db.run("savepoint a")
    db.run("insert into t values (2)")
    db.run("insert into m values (100)")
    db.run("rollback to a")
    db.run("insert into t values (3)")
    db.run("commit")
    db.run("begin")
    db.run("insert into t values (4)")
    db.run("rollback")
    assert sorted(rows(db.changes(), "t")) == [(1,), (3,)] == sorted(db.run("select id from t"))
    assert rows(db.changes(), "m") == ([] if db.is_mysql else [(100,)])


def rows(changes: list[Change], table: str) -> list[tuple[Any, ...]]:
    return [change.after for change in changes if change.table.table == table and change.after is not None]


def test_xa_rows_come_with_the_outcome(db: Watched) -> None:
    db.run("create table t (id int primary key)")
    for number, outcome in ((1, "commit"), (2, "rollback")):
        db.run(f"xa start 'x{number}', 'b', 7")
        db.run("insert into t values (%s)", number)
        db.run(f"xa end 'x{number}', 'b', 7")
        db.run(f"xa prepare 'x{number}', 'b', 7")
        with db.server.connect(database=db.name) as other, other.cursor() as cursor:
            cursor.execute("insert into t values (%s)", (10 + number,))
        db.run(f"xa {outcome} 'x{number}', 'b', 7")
    db.run("xa start 'x3'")
    db.run("insert into t values (3)")
    db.run("xa end 'x3'")
    db.run("xa commit 'x3' one phase")
    assert rows(db.changes(), "t") == [(11,), (1,), (12,), (3,)]


def test_a_large_transaction_comes_in_parts(db: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binlog, "PART_BYTES", 20_000)
    db.run("create table t (id int primary key, v varchar(1000))")
    db.run("insert into t values (0, 'before')")
    if db.is_mysql:
        db.run("set session binlog_transaction_compression = on")
    db.run("begin")
    for first in range(1, 601, 100):
        values = ", ".join(f"({number}, repeat(char(65 + {number} % 26), 500))" for number in range(first, first + 100))
        db.run(f"insert into t values {values}")
    db.run("commit")
    db.run("insert into t values (1000, 'after')")
    found = [each for each in db.transactions(db.events()) if each.changes]
    assert [each.is_part for each in found] == [False, *[True] * (len(found) - 3), False, False]
    assert len(found) > 10
    large = [change for each in found[1:-1] for change in each.changes]
    assert [change.ordinal for change in large] == list(range(600))
    assert len({change.id for change in large}) == 600
    assert [change.is_last for change in large] == [False] * 599 + [True]
    assert len({change.committed_us for change in large}) == 1
    assert {each.gtid for each in found[1:-1]} == {found[-2].gtid} != {""}
    assert fold([change for each in found for change in each.changes], "t") == Counter(db.run("select * from t"))


def test_rows_that_were_given_out_and_rolled_back_are_left_out_of_the_next_reading(
    db: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    if db.is_mysql:
        pytest.skip("with GTIDs enforced MySQL refuses to mix engines, and then writes no savepoint into the binlog")
    monkeypatch.setattr(binlog, "PART_BYTES", 2_000)
    db.run("create table t (id int primary key, v varchar(1000)) engine=innodb")
    db.run("create table m (id int primary key) engine=myisam")
    db.run("begin")
    number = 0
    for savepoint in ("a", "b"):
        for _ in range(10):
            number += 1
            db.run("insert into t values (%s, repeat('k', 500))", number)
        db.run(f"savepoint {savepoint}")
        for _ in range(10):
            number += 1
            db.run("insert into t values (%s, repeat('g', 500))", number)
        db.run("insert into m values (%s)", number)
        db.run(f"rollback to {savepoint}")
    db.run("insert into t values (1000, 'x')")
    db.run("commit")
    events = db.events()
    undone: dict[str, list[range]] = {}
    found: list[BinlogTransaction] = []
    times = 0
    while not found:
        try:
            found = db.transactions(events, undone=undone)
        except Undone as error:
            undone.setdefault(error.transaction, []).append(error.rows)
            times += 1
    assert times == 2
    changes = [change for each in found for change in each.changes if change.table.table == "t"]
    assert fold(changes, "t") == Counter(db.run("select * from t"))
    assert [change.ordinal for change in changes] == list(range(21))


def test_schema_changes_are_told_by_the_rows_themselves(db: Watched) -> None:
    db.run("create table t (id int primary key, v int)")
    db.run("insert into t values (1, 1)")
    db.run("alter table t add w varchar(5) default 'x', drop v")
    db.run("insert into t values (2, 'y')")
    db.run("create table other as select * from t")
    db.run("rename table t to gone, other to t")
    db.run("/* ! odd */ create definer = current_user view seen as select 1")
    db.run("alter table t add column j int invisible")
    db.run("insert into t (id, w, j) values (3, 'z', 4)")
    found = [(change.op, change.table.table, change.table.version, change.after) for change in db.changes()]
    assert found == [
        ("insert", "t", 1, (1, 1)),
        ("schema", "t", 2, None),
        ("insert", "t", 2, (2, "y")),
        ("insert", "other", 1, (1, "x")),
        ("insert", "other", 1, (2, "y")),
        ("schema", "t", 3, None),
        ("insert", "t", 3, (3, "z", 4)),
    ]


@pytest.mark.parametrize("has_checksums", [True, False])
def test_compressed_events_and_large_ones(db: Watched, has_checksums: bool) -> None:
    if not db.is_mysql:
        db.run("set global log_bin_compress = on, log_bin_compress_min_len = 10")
    try:
        db.run("create table t (id int primary key, v longblob)")
        for first in range(1, 301, 100):
            values = ", ".join(f"({number}, repeat('v', 100))" for number in range(first, first + 100))
            db.run(f"insert into t values {values}")
        db.run("update t set v = 'short' where id < 10")
        db.run("delete from t where id > 290")
    finally:
        if not db.is_mysql:
            db.run("set global log_bin_compress = off")
    db.run("set global max_allowed_packet = 67108864")
    with db.server.connect(database=db.name, max_allowed_packet=1 << 26) as other, other.cursor() as cursor:
        # Over 16 MiB: the packet is split.
        cursor.execute("insert into t values (1000, repeat('x', 17000000))")
    folded = fold(db.changes(has_checksums=has_checksums), "t")
    large = [row for row in folded if row[0] == 1000]
    assert large == [(1000, "0x" + "78" * 17_000_000)]
    del folded[large[0]]
    assert folded == Counter(db.run("select id, concat('0x', lower(hex(v))) from t where id < 1000"))


def fold(changes: list[Change], table: str) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for change in changes:
        if change.table.table != table:
            continue
        if change.op == "truncate":
            found.clear()
        if change.before is not None:
            assert found[change.before] > 0
            found[change.before] -= 1
        if change.after is not None:
            found[change.after] += 1
    return +found


@pytest.mark.parametrize("seed", range(5))
def test_random_transactions_fold_to_the_table(db: Watched, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    db.run("create table t (id int primary key, n decimal(20,5), v varchar(50), b bit(3), e enum('a','b'))")
    for _ in range(60):
        db.run("begin")
        for _ in range(rng.randrange(1, 6)):
            number = rng.randrange(40)
            match rng.randrange(5):
                case 0:
                    db.run("delete from t where id = %s", number)
                case 1:
                    db.run("update t set n = n * -1.5, e = if(e = 'a', 'b', 'a') where id %% 7 = %s", number % 7)
                case 2:
                    db.run("update ignore t set id = %s where id = %s", rng.randrange(40), number)
                case _:
                    db.run(
                        "replace into t values (%s, %s, %s, %s, 'a')",
                        number,
                        rng.random() * 1000,
                        "ä" * (number % 9),
                        number % 8,
                    )
            if rng.random() < 0.2:
                db.run("savepoint s")
            elif rng.random() < 0.1:
                with contextlib.suppress(pymysql.err.OperationalError):  # there is none yet
                    db.run("rollback to s")
        db.run(rng.choice(["commit", "commit", "rollback"]))
    wanted = Counter(db.run("select id, n, v, b + 0, e from t"))
    assert fold(db.changes(), "t") == wanted


def test_what_may_be_data_and_cant_be_read_stops_the_reader(db: Watched) -> None:
    db.run("create table t (id int primary key)")
    db.run("insert into t values (1)")
    events = db.events()
    db.run("set session binlog_format = 'STATEMENT'")
    db.run("insert into t values (2)")
    db.run("set session binlog_format = 'ROW'")
    with pytest.raises(DecodeError, match=r"binlog_format.*binlog\.\d+:\d+"):
        db.changes()
    rng = random.Random(5)
    for _ in range(400):
        decoder = db.decoder()
        broken = list(events)
        place_ = rng.randrange(len(broken))
        event = bytearray(broken[place_])
        if rng.random() < 0.5:
            event[rng.randrange(len(event))] ^= 1 << rng.randrange(8)
        else:
            del event[rng.randrange(len(event)) :]
        broken[place_] = bytes(event)
        with pytest.raises(DecodeError):
            for each in broken:
                decoder.feed(each)
            raise (
                DecodeError("only a flag of the first rotation, which has no meaning here")
                if place_ == 0
                else AssertionError(place_)
            )


def test_broken_bodies_without_checksums_are_errors_and_never_other_exceptions(db: Watched) -> None:
    db.run("create table t (id int primary key, v varchar(20), d decimal(10,2), j datetime(3), e enum('a','b'))")
    db.run("insert into t values (1, 'value', 1.5, now(3), 'b')")
    db.run("update t set v = 'other'")
    events = db.events(has_checksums=False)
    rng = random.Random(6)
    for _ in range(3000):
        decoder = db.decoder()
        broken = list(events)
        place_ = rng.randrange(len(broken))
        event = bytearray(broken[place_])
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(19, len(event)) if len(event) > 19 else 0
            event[at] = rng.randrange(256)
        broken[place_] = bytes(event)
        try:
            for each in broken:
                decoder.feed(each)
        except DecodeError:
            continue


def test_a_server_without_names_is_named_with_the_cure(db: Watched) -> None:
    db.run("create table t (id int primary key)")
    db.run("set global binlog_row_metadata = 'MINIMAL'")
    try:
        db.run("insert into t values (1)")
    finally:
        db.run("set global binlog_row_metadata = 'FULL'")
    with pytest.raises(DecodeError, match="binlog_row_metadata = 'FULL'"):
        db.changes()


def test_compressed_transactions_and_tagged_ids_of_mysql(db: Watched) -> None:
    if not db.is_mysql:
        pytest.skip("MySQL has them, MariaDB hasn't")
    db.run("create table t (id int primary key, v text)")
    db.run("create table m (id int primary key) engine=myisam")
    db.start = place(db.server)
    db.run("set binlog_transaction_compression = on, gtid_next = 'AUTOMATIC:told'")
    db.run("begin")
    db.run("insert into t values (1, repeat('a', 60000)), (2, null)")
    db.run("update t set v = 'b' where id = 2")
    db.run("commit")
    db.run("set gtid_next = 'AUTOMATIC', binlog_transaction_compression = off")
    db.run("insert into t values (3, 'plain')")
    db.run("set binlog_transaction_compression = on")
    db.run("insert into m values (1)")
    db.run("delete from t where id = 1")
    kinds = Counter(event[4] for event in db.events())
    assert kinds[40] >= 2 and kinds[42] == 1
    changes = db.changes()
    assert [(change.op, change.before, change.after) for change in changes] == [
        ("insert", None, (1, "a" * 60_000)),
        ("insert", None, (2, None)),
        ("update", (2, None), (2, "b")),
        ("insert", None, (3, "plain")),
        ("insert", None, (1,)),
        ("delete", (1, "a" * 60_000), None),
    ]
    assert [change.is_last for change in changes] == [False, False, True, True, True, True]
    assert ":told:1:0" in changes[0].position
    executed = MySQLGtidSet.parse(db.run("select @@gtid_executed")[0][0])
    decoder = db.decoder()
    for event in db.events():
        decoder.feed(event)
    assert any(source.endswith(":told") for source in decoder.gtids.intervals())  # type: ignore[union-attr]
    assert decoder.gtids <= executed  # type: ignore[operator]


def test_a_broken_compressed_transaction_is_an_error_and_never_a_row() -> None:
    inner = struct.pack("<IBIIIH", 0, 2, 1, 19, 0, 0) * 20
    packed_ = zstandard.ZstdCompressor().compress(inner)
    head = bytes([2, 1, 0, 3, 3, 252]) + struct.pack("<H", len(inner)) + bytes([1, 1, len(packed_), 0])
    assert b"".join(payload_events(head + packed_)) == inner
    for broken in (
        head + packed_[:-3],
        head + packed_ + b"x",
        head[:2] + b"\x07" + head[3:] + packed_,
        head[:6] + struct.pack("<H", len(inner) - 19) + head[8:] + packed_,
        head + bytes([packed_[0] ^ 1]) + packed_[1:],
    ):
        with pytest.raises(DecodeError):
            list(payload_events(broken))
    for cut in range(len(head) - 1):
        with pytest.raises((DecodeError, IndexError)):
            list(payload_events(head[:cut]))


def test_varying_integers() -> None:
    for number in [0, 1, 127, 128, 16383, 16384, *[1 << bits for bits in range(64)], (1 << 64) - 1]:
        text = varying(number)
        assert _varying(text + b"rest", 0) == (number, len(text))
