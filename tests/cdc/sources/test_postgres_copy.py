"""The copy of existing rows: several workers, ranges, rows of any width, tables without a key, and copies that a person asks for."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from fix_servers import Database
from fold import server_rows
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.errors import RequestRefused, SourceUnavailable
from headrace.cdc.event import Change, Column, Row, TableSchema
from headrace.cdc.sources.copyout import copy_out
from headrace.cdc.sources.pgstate import PostgresState
from headrace.cdc.sources.pgvisibility import Visibility
from headrace.cdc.sources.pgwhole import WholeTable
from headrace.cdc.sources.pgwindow import ChunkWindow

MakeReader = Callable[..., Awaitable[Any]]

both = pytest.mark.parametrize("database", [15, 18], indirect=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table counts as large."""
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.SPLIT_ROWS", -1)
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_ROWS", 50)


def stored(reader: Any) -> PostgresState:
    return msgspec.msgpack.decode(reader.state, type=PostgresState)


@both
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "key",
    [
        "id int primary key",
        "name text primary key, id int",
        "grp text, id int, primary key (grp, id)",
        "id numeric primary key",
    ],
)
async def test_workers_share_a_table_and_miss_no_row(database: Database, reader: MakeReader, key: str) -> None:
    database.execute(f"create table t ({key}, v text)")
    values = {"name": "chr(97 + n %% 26) || n || '_ä'", "grp": "chr(65 + n %% 7)", "id": "n"}
    columns = [name for name in ("name", "grp", "id") if name in key]
    database.execute(
        f"insert into t ({', '.join(columns)}, v) select {', '.join(values[name] for name in columns)}, repeat('v', 20)"
        " from generate_series(1, 3000) n".replace("%%", "%")
    )
    database.execute("analyze t")
    r = await reader(snapshot_workers=3)
    met: set[int] = set()

    def is_over() -> bool:
        copier = r.source._copier
        met.add(sum(worker.copy is not None for worker in copier._workers))
        return r.source.status().phase == "streaming"

    await r.until(is_over)
    assert max(met) == 3
    [copy] = stored(r).snapshot.tables  # type: ignore[union-attr]  # there is one
    assert len(copy.ranges) > 6
    assert copy.rows == 3000
    assert r.fold.rows("public.t") == server_rows(database.dsn, "public.t")
    assert all(change.op == "read" for change in r.changes)


@pytest.mark.usefixtures("small")
async def test_restarts_go_on_in_every_range(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t select n, 'v' from generate_series(1, 3000) n")
    database.execute("analyze t")
    r = await reader(snapshot_workers=2)
    rng = random.Random(7)
    restarts = 0
    while r.source.status().phase != "streaming":
        rows = sum(change.op == "read" for change in r.changes)
        wanted = rows + rng.randrange(1, 900)
        await r.until(
            lambda wanted=wanted: (
                sum(change.op == "read" for change in r.changes) >= wanted or r.source.status().phase == "streaming"
            )
        )
        database.execute("update t set id = -id, v = v || 'x' where id = %s", rng.randrange(1, 3000))
        await r.restart(forget_confirmations=True)
        restarts += 1
    assert restarts > 3
    database.execute("insert into t values (9999, 'last')")
    await r.until(lambda: any(change.after == (9999, "last") for change in r.changes))
    assert r.fold.rows("public.t") == server_rows(database.dsn, "public.t")
    # What was in the log wasn't read again: a chunk or so a worker and restart.
    assert sum(change.op == "read" for change in r.changes) <= 3000 + restarts


@both
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "alter",
    [
        "alter table t alter id type text",
        "alter table t drop constraint t_pkey, add primary key (other)",
        "alter table t drop constraint t_pkey, replica identity full",
    ],
)
async def test_another_key_or_order_of_keys_begins_the_copy_anew(
    database: Database, reader: MakeReader, alter: str
) -> None:
    """Behind 500 come other rows among texts than among numbers."""
    database.execute("create table t (id int primary key, other int not null)")
    database.execute("insert into t select n, 2000 - n from generate_series(1, 1500) n")
    database.execute("analyze t")
    r = await reader(snapshot_workers=2)
    await r.until(lambda: sum(change.op == "read" for change in r.changes) >= 700)
    for statement in alter.split(", replica"):
        words = statement if statement.startswith("alter") else f"alter table t replica{statement}"
        await asyncio.to_thread(database.execute, words)  # it waits for the chunk that is being read in this loop
    await r.until_streaming()
    # Rows of the former key stay in a consumer's table until they are written: what counts is that none is missing.
    wanted = {(str(row["id"]), row["other"]) for row in server_rows(database.dsn, "public.t")}
    last_schema = max([0, *(number for number, change in enumerate(r.changes) if change.op in ("schema", "truncate"))])
    read = {(str(change.after[0]), change.after[1]) for change in r.changes[last_schema:] if change.op == "read"}
    assert wanted <= read


@both
async def test_rows_of_any_width_are_read_in_about_the_same_memory(
    database: Database, reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_BYTES", 100_000)
    database.execute("create table wide (id int primary key, v text)")
    database.execute("insert into wide select n, repeat(md5(n::text), 1000) from generate_series(1, 60) n")
    r = await reader()
    sizes: list[int] = []
    copier = r.source._copier
    finish = copier.finish

    async def seen(*arguments: Any) -> Any:
        found = await finish(*arguments)
        if found[0]:
            sizes.append(len(found[0]))
        return found

    copier.finish = seen
    await r.until_streaming()
    assert max(sizes) <= 4, "32,000 bytes a row"
    assert r.fold.rows("public.wide") == server_rows(database.dsn, "public.wide")


@both
async def test_a_table_without_a_key_comes_whole_in_parts(
    database: Database, reader: MakeReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.wholerows.PART_ROWS", 100)
    monkeypatch.setattr("headrace.cdc.sources.wholerows.BLOCK_ROWS", 40)
    database.execute("create table bag (n int, v text)")
    database.execute("alter table bag replica identity full")
    database.execute(
        "insert into bag select n %% 700, E'tab\\t' || n %% 700 from generate_series(1, 2000) n".replace("%%", "%")
    )
    database.execute("create table empty (n int)")
    database.execute("alter table empty replica identity full")
    r = await reader(spill_folder=str(tmp_path))
    await r.until(lambda: len(r.parts) > 3)
    await r.restart(forget_confirmations=True)
    database.execute("delete from bag where n < 100")
    await r.until_streaming()
    assert r.largest > 10
    assert r.fold.rows("public.bag") == server_rows(database.dsn, "public.bag")
    assert [change.is_last for change in r.changes if change.table.table == "empty"] == [True]
    assert not list(tmp_path.iterdir()), "the files have no names"


async def test_a_table_without_a_key_as_of_its_high_mark(database: Database, tmp_path: Path) -> None:
    """Whatever the stream does while it is read, the rows are those of a recomputation (seeded)."""
    database.execute("create table bag (n int, v text)")
    database.execute("insert into bag select n / 2, 'v' || n / 2 from generate_series(1, 300) n")
    [(oid,)] = database.execute("select 'bag'::regclass::oid::int8")
    table = TableSchema("public", "bag", (Column("n", 23, "int4"), Column("v", 25, "text")), (), "f", int(str(oid)))
    truth: list[Row] = [(n // 2, f"v{n // 2}") for n in range(1, 301)]
    for seed in range(20):
        print(f"seed {seed}")
        rng = random.Random(seed)
        rows = list(truth)
        whole = WholeTable(table.oid, frozenset(), tmp_path)

        def change(op: Any, before: Row | None, after: Row | None) -> Change:
            return Change(table, op, before, after, "", "", 1, 0, False, 0)

        def happen(whole: WholeTable, rows: list[Row], rng: random.Random) -> None:
            changes: list[Change] = []
            for _ in range(rng.randrange(1, 20)):
                kind = rng.random()
                if kind < 0.01:
                    rows.clear()
                    changes.append(change("truncate", None, None))
                elif kind < 0.5 or not rows:
                    rows.append((rng.randrange(5), "new"))
                    changes.append(change("insert", None, rows[-1]))
                elif kind < 0.75:
                    changes.append(change("delete", rows.pop(rng.randrange(len(rows))), None))
                else:
                    place = rng.randrange(len(rows))
                    before, rows[place] = rows[place], (rng.randrange(5), "changed")
                    changes.append(change("update", before, rows[place]))
            whole.note(Transaction(1_000_000_000, 1, 0, changes, 0, []), changes)

        happen(whole, rows, rng)  # before it is known what the SELECT sees
        async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection:
            await whole.read(connection, table, is_partitioned=False)
        assert whole.visibility is not None
        assert whole.visibility.sees(1_000_000_000, 1) is False, "its transactions have small numbers"
        for _ in range(rng.randrange(60)):
            happen(whole, rows, rng)
        assert not whole.is_spoiled
        parts = list(whole.parts())
        assert [is_last for _, is_last in parts] == [False] * (len(parts) - 1) + [True]
        assert Counter(row for part, _ in parts for row in part) == Counter(rows)
        whole.close()


def test_a_window_forgets_what_is_too_much_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgwindow.NOTED_CHANGES", 10)
    table = TableSchema("public", "t", (Column("id", 23, "int4"),), (0,), oid=7)

    def transaction(xid: int, rows: int) -> tuple[Transaction, list[Change]]:
        changes = [Change(table, "insert", None, (n,), "", "", xid, n, False, 0) for n in range(rows)]
        return Transaction(xid, xid, 0, changes, 0, []), changes

    window = ChunkWindow(7, frozenset())
    window.note(*transaction(100, 11))
    window.note(*transaction(101, 3))
    window.know(Visibility.parse("102:102:"))
    assert window.unseen(table) == [], "all of it was seen by the SELECT"
    window.note(*transaction(102, 4))
    assert len(window.unseen(table) or []) == 4
    window.note(*transaction(103, 7))
    assert window.unseen(table) is None


@both
async def test_copy_out_hands_on_every_line_and_the_servers_error(database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection:
        lines: list[bytes] = []

        def take(more: list[bytes]) -> bool:
            lines.extend(more)
            return len(lines) < 5000

        assert await copy_out(connection, b"copy (select generate_series(1, 3000)) to stdout", take)
        assert lines == [b"%d\n" % n for n in range(1, 3001)]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await copy_out(connection, b"copy (select 1 / (n - 2000) from generate_series(1, 3000) n) to stdout", take)
        assert not await copy_out(connection, b"copy (select generate_series(1, 30000000)) to stdout", take)
        assert len(lines) < 100_000
        with pytest.raises(psycopg.errors.SyntaxError):
            await copy_out(connection, b"copy nonsense", take)
        cursor = await connection.execute("select 1")
        assert await cursor.fetchall() == [(1,)]


# asked for by a person


@both
@pytest.mark.usefixtures("small")
async def test_an_asked_copy_brings_the_rows_again_once_each(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t select n, 'v' from generate_series(1, 500) n")
    database.execute("create table bag (v int)")
    database.execute("alter table bag replica identity full")
    database.execute("insert into bag values (1), (1)")
    r = await reader()
    await r.until_streaming()
    ids = {change.id for change in r.changes}
    r.changes.clear()
    asked = await r.source.snapshot(["public.t"], "id % 2 = 0 and v = 'v'")
    assert (asked.number, asked.tables) == (2, ["public.t"])
    assert r.source.status().phase == "streaming", "what is served is whole meanwhile"
    await r.until(lambda: r.source.status().asked[0]["is_done"])
    assert [change.after[0] for change in r.changes if change.op == "read"] == list(range(2, 501, 2))
    asked = await r.source.snapshot(["public.*"], "")
    assert (asked.number, sorted(asked.tables)) == (3, ["public.bag", "public.t"])
    await r.until(lambda: r.source.status().asked[1]["is_done"])
    assert r.source.status().asked[1]["rows"] == 502
    assert not ids & {change.id for change in r.changes}
    for table in ("public.t", "public.bag"):
        assert r.fold.rows(table) == server_rows(database.dsn, table)
    await r.restart()
    database.execute("insert into t values (1000, 'after')")
    await r.until(lambda: any(change.after == (1000, "after") for change in r.changes))
    assert (await r.source.snapshot(["public.t"], "")).number == 4


@pytest.mark.usefixtures("small")
async def test_an_asked_copy_survives_a_crash(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t select n, 'v' from generate_series(1, 500) n")
    r = await reader(snapshot="never")
    await r.source.snapshot(["public.t"], "id > 100")
    await r.until(lambda: sum(change.op == "read" for change in r.changes) >= 100)
    await r.restart(forget_confirmations=True)
    await r.until(lambda: r.source.status().asked[0]["is_done"])
    assert Counter(change.after[0] for change in r.changes if change.op == "read") == Counter(range(101, 501))


async def test_what_cant_be_copied_is_refused_with_the_cure(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key, v text)")
    database.execute("create table bag (v int)")
    database.execute("alter table bag replica identity full")
    r = await reader()
    for tables, where, words in (
        (["public.orders"], "", "captures no table public.orders"),
        (["public.t"], "nonsense = 1", 'column "nonsense" does not exist'),
        (["public.t"], "true) to program 'x'; drop table t; --", "syntax error"),
        (["public.t"], "true); drop table t; --", "cannot insert multiple commands"),
        (["public.bag"], "v = 1", "has no key"),
    ):
        with pytest.raises(RequestRefused, match=words.replace("(", r"\(")) as refused:
            await r.source.snapshot(tables, where)
        assert refused.value.advice
    await r.stop()
    with pytest.raises(RequestRefused, match="stopped"):
        await r.source.snapshot(["public.t"], "")


async def test_a_full_disk_for_a_table_without_a_key_is_named(
    database: Database, reader: MakeReader, tmp_path: Path
) -> None:
    folder = tmp_path / "spill"
    folder.mkdir()
    database.execute("create table bag (v int)")
    database.execute("alter table bag replica identity full")
    database.execute("insert into bag values (1)")
    r = await reader(spill_folder=str(folder), snapshot="never")
    folder.rmdir()
    await r.source.snapshot(["public.bag"], "")
    with pytest.raises(SourceUnavailable, match="spill"):
        await r.until(lambda: False)


@both
@pytest.mark.usefixtures("small")
async def test_a_stop_in_the_middle_leaves_no_transaction_open(database: Database, reader: MakeReader) -> None:
    """It would hold up schema changes, and vacuum."""
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t select n, repeat('v', 1000) from generate_series(1, 3000) n")
    database.execute("analyze t")
    r = await reader(snapshot_workers=2)
    for cut in (False, True):
        await r.until(lambda: any(worker.reads for worker in r.source._copier._workers))
        stopping = asyncio.create_task(r.source.stop())
        if cut:
            await asyncio.sleep(0)
            stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        database.execute("set statement_timeout = '10s'")
        database.execute("alter table t add column if not exists w int")
        database.execute("reset statement_timeout")
        await r.restart()
