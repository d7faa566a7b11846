"""Networks, servers and people at their worst: each fault is recognised, named, and healed or stopped with a cure. Never a gap.

The waits of the product are shortened here; what they are in production is the constants' own matter.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from capture_rig import CaptureRig, folded
from fix_servers import Database, postgres_bin
from fold import Fold, server_rows
from headrace.cdc.config import Duration
from headrace.cdc.demo.embedded import EmbeddedServerError, PostgresServer
from headrace.cdc.errors import HistoryMismatch, SourceRefused
from headrace.cdc.log.sqlite_reader import SQLiteLogReader
from headrace.cdc.sources.ending import end

MakeRig = Callable[..., Awaitable[CaptureRig]]
NAMED_WITHIN_S = 12.0
ROWS = 120


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgserver.SILENCE_S", 1.0)
    monkeypatch.setattr("headrace.cdc.sources.pgmonitor._ASK_EVERY_S", 0.2)
    monkeypatch.setattr("headrace.cdc.sources.pgstream._ANSWER_S", 1.0)
    monkeypatch.setattr("headrace.cdc.sources.postgres_config._CONNECT_TIMEOUT_S", 2)
    monkeypatch.setattr("headrace.cdc.capture._FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("headrace.cdc.capture._LONGEST_PAUSE_S", 0.5)
    monkeypatch.setattr("headrace.cdc.sources.pgsnapshot.CHUNK_ROWS", 10)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[MakeRig]:
    """Start a CaptureRig over a table ``a`` of ROWS rows."""
    made: list[CaptureRig] = []

    async def make(database: Database, **fields: Any) -> CaptureRig:
        fill(database)
        fields.setdefault("heartbeat", Duration.parse("100ms"))
        new = CaptureRig(database, tmp_path, **fields)
        made.append(new)
        await new.start()
        return new

    yield make
    for each in made:
        await each.stop()


def fill(database: Database) -> None:
    database.execute("create table a (id int primary key, n int, v text)")
    database.execute("insert into a select n, 0, 'value ' || n from generate_series(1, %s) n", ROWS)


def write(database: Database, round_: int) -> None:
    """Committed work of every kind while the fault lasts."""
    database.execute("update a set n = n + 1 where id %% 3 = %s", round_ % 3)
    database.execute("insert into a values (%s, 0, 'new')", 1000 + round_)
    database.execute("delete from a where id = %s", 1 + round_)
    database.execute("update a set id = -id where id = %s", 50 + round_)


async def at(rig: CaptureRig, phase: str) -> None:
    """In the middle of the copy, or streaming."""
    if phase == "stream":
        await rig.until_streaming()
    else:
        await rig.until(lambda: (rig.status().snapshot or {}).get("rows", 0) >= 20, "the first chunks")


# the network


@pytest.mark.parametrize("phase", ["snapshot", "stream"])
@pytest.mark.parametrize("ending", ["cut", "reset"])
async def test_a_broken_link_heals_by_itself(database: Database, rig: MakeRig, phase: str, ending: str) -> None:
    r = await rig(database)
    await at(r, phase)
    for round_ in range(4):
        write(database, round_)
        (r.proxy.cut if ending == "cut" else r.proxy.reset)()
        await r.until(lambda: bool(r.capture.trouble), "noticing", within_s=NAMED_WITHIN_S)
        await r.until(lambda: not r.capture.trouble, "healing")
    await r.until_caught_up()
    await r.judge("public.a")


@pytest.mark.parametrize(
    ("phase", "directions"),
    [
        ("snapshot", ("to_server", "to_client")),
        ("snapshot", ("to_client",)),
        ("stream", ("to_server",)),
        ("stream", ("to_client",)),
    ],
)
async def test_a_black_hole_is_named_and_healed(
    database: Database, rig: MakeRig, phase: str, directions: tuple[str, ...]
) -> None:
    r = await rig(database)
    await at(r, phase)
    r.proxy.hold(*directions)
    write(database, 0)
    await r.until(lambda: bool(r.capture.trouble), "noticing", within_s=NAMED_WITHIN_S)
    assert "answer" in r.capture.trouble
    # New connections are swallowed as well: each try ends by itself.
    told = r.capture.trouble
    await r.until(lambda: r.capture.trouble != told, "another try", within_s=NAMED_WITHIN_S)
    write(database, 1)
    r.proxy.release()
    await r.until_caught_up()
    write(database, 2)
    await r.until_caught_up()
    await r.judge("public.a")


@pytest.mark.parametrize("phase", ["snapshot", "stream"])
async def test_one_byte_at_a_time_is_only_slow(database: Database, rig: MakeRig, phase: str) -> None:
    r = await rig(database)
    await at(r, phase)
    r.proxy.one_byte = True
    for round_ in range(3):
        write(database, round_)
    database.execute("insert into a values (5000, 0, repeat('x', 20000))")
    await r.until_caught_up()
    assert not r.capture.trouble
    await r.judge("public.a")


@pytest.mark.parametrize("phase", ["snapshot", "stream"])
async def test_a_slow_link_is_only_slow(database: Database, rig: MakeRig, phase: str) -> None:
    r = await rig(database)
    await at(r, phase)
    r.proxy.delay_s = 0.03
    for round_ in range(3):
        write(database, round_)
    await r.until_caught_up()
    await r.judge("public.a")


# the server's processes


@pytest.mark.parametrize("connection", ["_stream", "_admin", "_copier"])
async def test_a_terminated_backend_is_replaced(database: Database, rig: MakeRig, connection: str) -> None:
    r = await rig(database)
    await at(r, "snapshot" if connection == "_copier" else "stream")

    def pid() -> int:
        if connection == "_stream":
            found = database.execute(
                "select active_pid from pg_replication_slots where slot_name = %s", r.source._server.slot
            )
            return int(str(found[0][0] or 0))
        if connection == "_admin":
            admin = r.source._server._admin
            return 0 if admin is None else admin.info.backend_pid
        workers = [] if r.source._copier is None else r.source._copier._workers
        connections = [worker.connection for worker in workers if worker.connection is not None]
        return connections[0].info.backend_pid if connections else 0

    former = pid()
    database.execute("select pg_terminate_backend(%s)", former)
    write(database, 0)
    if connection != "_copier":
        await r.until(lambda: pid() not in (0, former), "a new backend", within_s=NAMED_WITHIN_S)
    await r.until_caught_up()
    await r.judge("public.a")


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server of one test, with fsync on."""
    server = PostgresServer(postgres_bin(18), settings={"wal_sender_timeout": "1s", "max_slot_wal_keep_size": "32MB"})
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own_database(own_server: PostgresServer) -> Iterator[Database]:
    made = Database(own_server)
    yield made
    made.connection.close()


@pytest.mark.parametrize("phase", ["snapshot", "stream"])
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
async def test_a_server_restart_loses_nothing(
    own_server: PostgresServer, own_database: Database, rig: MakeRig, phase: str, ending: signal.Signals
) -> None:
    r = await rig(own_database)
    await at(r, phase)
    write(own_database, 0)
    process = own_server._process
    assert process is not None
    process.send_signal(ending)
    await asyncio.to_thread(process.wait)
    await r.until(lambda: bool(r.capture.trouble), "noticing", within_s=NAMED_WITHIN_S)
    await asyncio.to_thread(start_again, own_server)
    own_database.connection.close()
    own_database.connection = psycopg.connect(own_database.dsn, autocommit=True)
    write(own_database, 1)
    await r.until_caught_up()
    await r.judge("public.a")


def start_again(server: PostgresServer) -> None:
    """The killed server's children need a moment to go."""
    end = time.monotonic() + 20
    while True:
        try:
            server.start()
            return
        except EmbeddedServerError:
            assert time.monotonic() < end, "the server doesn't come back"


# slot and publication


async def test_a_dropped_slot_stops_it_with_the_cure(database: Database, rig: MakeRig) -> None:
    r = await rig(database)
    await r.until_streaming()

    def drop() -> bool:
        database.execute(
            "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s",
            r.source._server.slot,
        )
        try:
            database.execute("select pg_drop_replication_slot(%s)", r.source._server.slot)
        except psycopg.errors.ObjectInUse:
            return False
        return True

    async with asyncio.timeout(20):
        while not await asyncio.to_thread(drop):
            pass
    error = await r.until_it_stops(within_s=NAMED_WITHIN_S)
    assert isinstance(error, HistoryMismatch)
    assert "was dropped" in error.message
    assert "log.path" in error.advice


async def test_a_slot_that_the_server_gave_up_stops_it_with_the_cure(own_database: Database, rig: MakeRig) -> None:
    r = await rig(own_database)
    await r.until_streaming()
    r.proxy.hold("to_server", "to_client")

    def fall_behind() -> bool:
        own_database.execute("insert into a select max(id) + 1, 0, 'x' from a")
        own_database.execute("select pg_switch_wal()")
        own_database.execute("checkpoint")
        found = own_database.execute(
            "select wal_status from pg_replication_slots where slot_name = %s", r.source._server.slot
        )
        return found[0][0] == "lost"

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(fall_behind):
            pass
    r.proxy.release()
    error = await r.until_it_stops(within_s=NAMED_WITHIN_S)
    assert isinstance(error, SourceRefused)
    assert "is lost" in error.message
    assert "pg_drop_replication_slot" in error.advice


@pytest.mark.parametrize("database", [15, 18], indirect=True)
@pytest.mark.parametrize(
    "statements",
    [
        ["alter publication {p} drop table a"],
        [
            "alter publication {p} drop table a",
            "insert into a values (9001, 0, '')",
            "alter publication {p} add table a",
        ],
        ["drop publication {p}"],
        ["alter publication {p} set (publish = 'insert')"],
    ],
    ids=["table taken out", "table out and in", "dropped", "actions left out"],
)
async def test_an_altered_publication_is_never_a_silent_gap(
    database: Database, rig: MakeRig, statements: list[str]
) -> None:
    database.execute("create table b (id int primary key)")
    r = await rig(database)
    await r.until_caught_up()
    for statement in statements:
        database.execute(statement.format(p=r.source._server.publication))
    database.execute("insert into a values (9000, 0, 'unseen')")
    error = await r.until_it_stops(within_s=NAMED_WITHIN_S)
    assert isinstance(error, HistoryMismatch)
    assert "public.a" in error.message
    assert "log.path" in error.advice


async def test_a_publication_altered_while_headrace_is_down_is_seen_at_the_start(
    database: Database, rig: MakeRig
) -> None:
    r = await rig(database)
    await r.until_caught_up()
    assert r.log is not None
    state = await r.log.source_state(r.source.name)
    assert r.task is not None
    await end(r.task)
    publication = r.source._server.publication
    database.execute(f"alter publication {publication} drop table a")
    database.execute("insert into a values (9000, 0, 'unseen')")
    database.execute(f"alter publication {publication} add table a")
    with pytest.raises(HistoryMismatch, match="stopped sending changes"):
        await r.source.start(state)


# rights


@pytest.fixture
def limited(own_server: PostgresServer, own_database: Database) -> str:
    """A role that must give a password; the DSN's part that gives it."""
    hba = own_server.data / "pg_hba.conf"
    hba.write_text("host all limited 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
    own_database.execute("select pg_reload_conf()")
    own_database.execute("create role limited login replication password 'first'")
    own_database.execute(f"grant create on database {own_database.name} to limited")
    own_database.execute("alter default privileges grant select on tables to limited")
    return "limited password=first"


async def test_a_changed_password_stops_it_with_the_cure(own_database: Database, rig: MakeRig, limited: str) -> None:
    own_database.execute("create publication fp for all tables")
    r = await rig(own_database, user=limited, publication="fp")
    await r.until_streaming()
    own_database.execute("alter role limited password 'second'")
    r.proxy.cut()
    error = await r.until_it_stops(within_s=NAMED_WITHIN_S)
    assert isinstance(error, SourceRefused)
    assert "password authentication failed" in error.message
    assert "DSN" in error.advice
    assert "first" not in error.paragraph()


@pytest.mark.parametrize(
    ("revocation", "words"),
    [("revoke select on a from limited", "may not read it"), ("alter role limited noreplication", "replication")],
)
async def test_revoked_rights_stop_it_with_the_cure(
    own_database: Database, rig: MakeRig, limited: str, revocation: str, words: str
) -> None:
    own_database.execute("create publication fp for all tables")
    r = await rig(own_database, user=limited, publication="fp")
    await at(r, "snapshot")
    own_database.execute(revocation)
    if "replication" in revocation:
        r.proxy.cut()
    error = await r.until_it_stops(within_s=NAMED_WITHIN_S)
    assert isinstance(error, SourceRefused)
    assert words in error.message or "permission denied" in error.message
    assert "grant" in error.advice or "alter role" in error.advice


# the process


class HeadraceRun:
    """``headrace run`` as a process of its own."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.folder = folder
        self.database = database
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "headrace.yaml").write_text(
            f'log: {{path: run.log.db}}\nserver: {{listen: "127.0.0.1:0"}}\n'
            f'sources: {{s: {{type: postgres, dsn: "{database.dsn}", slot: run_{database.name}, heartbeat: 100ms}}}}\n'
        )

    def start(self, *, file_bytes: int | None = None) -> None:
        with (self.folder / "run.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "import sys; from headrace.cdc.cli import main; sys.exit(main())", "run"],
                cwd=self.folder,
                env=dict(os.environ),
                stdout=log,
                stderr=log,
            )
        if file_bytes is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return (self.folder / "run.log").read_text(errors="replace")

    async def until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end, f"{what} took too long\n{self.said()[-2000:]}"
            await asyncio.sleep(0.02)  # another process's work: there is no event to wait on

    def has_logged_all(self) -> bool:
        """Everything committed so far was confirmed, hence is durable."""
        found = self.database.execute(
            "select confirmed_flush_lsn >= pg_current_wal_flush_lsn() from pg_replication_slots where slot_name = %s"
            " and active",
            f"run_{self.database.name}",
        )
        return bool(found and found[0][0])

    async def until_copied(self) -> None:
        await self.until(self.has_logged_all, "the start")
        async with asyncio.timeout(30):
            while len((await self.folded()).rows("public.a")) < ROWS:
                pass

    async def folded(self) -> Fold:
        reader = await SQLiteLogReader.open(self.folder / "run.log.db")
        try:
            return await folded(reader)
        finally:
            await reader.close()

    async def judge(self, table: str) -> None:
        fold = await self.folded()
        assert fold.rows(table) == server_rows(self.database.dsn, table)


@pytest.fixture
def run(own_database: Database, tmp_path: Path) -> Iterator[HeadraceRun]:
    made = HeadraceRun(own_database, tmp_path)
    yield made
    made.kill()


async def test_a_frozen_process_that_the_server_gave_up_goes_on(own_database: Database, run: HeadraceRun) -> None:
    fill(own_database)
    run.start()
    assert run.process is not None
    await run.until_copied()
    run.process.send_signal(signal.SIGSTOP)
    write(own_database, 0)
    await run.until(
        lambda: own_database.execute("select count(*) from pg_stat_replication")[0][0] == 0, "wal_sender_timeout"
    )
    write(own_database, 1)
    run.process.send_signal(signal.SIGCONT)
    await run.until(run.has_logged_all, "going on")
    write(own_database, 2)
    await run.until(run.has_logged_all, "catching up")
    assert run.process.poll() is None, run.said()
    run.kill()
    await run.judge("public.a")


async def test_a_full_disk_stops_it_with_the_cure_and_room_heals_it(own_database: Database, run: HeadraceRun) -> None:
    fill(own_database)
    run.start(file_bytes=600_000)
    assert run.process is not None
    await run.until_copied()
    process = run.process

    def has_stopped() -> bool:
        own_database.execute(
            "update a set v = (select string_agg(md5(random()::text), '') from generate_series(1, 20))"
        )
        return process.poll() is not None

    await run.until(has_stopped, "the disk to be full")
    assert process.returncode == 4, run.said()
    assert "check the disk" in run.said()
    run.start()
    await run.until(run.has_logged_all, "catching up")
    run.kill()
    await run.judge("public.a")
