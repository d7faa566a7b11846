"""The central claim as a property, for MariaDB and MySQL: the log, folded back into tables, is what a SELECT saw after each commit.

Random tables of every type, interleaved transactions, savepoints, XA, schema changes, row images of each kind and hostile settings; a link that
is cut, a capture that crashes at random batches, and a server that is ended, by kill -9 or in an orderly way, in the middle. The seed is part
of every message; ``pytest -k 'mysql and mariadb-7'`` runs one again.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from fix_mariadb import MariaDBServer
from fix_mysql import MySQLServer
from fold import Fold, Values, difference
from headrace.cdc.capture import Capture
from headrace.cdc.config import Duration
from headrace.cdc.errors import SourceUnavailable
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.metrics import CaptureMetrics
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.sources.base import ChangeBatch
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.mysql import MySQLSource, MySQLState
from headrace.cdc.sources.mysql_config import MySQLConfig
from proxy import Proxy
from random_mysql import RandomMySQL

DEADLINE_S = 60.0
_DURABLE = {"innodb-flush-log-at-trx-commit": "1", "sync-binlog": "1"}


class Crash(Exception):
    """The process is gone."""


class Progress:
    """What the capture has emitted over all its lives: ids in order, and from which of them on a table's copy is whole."""

    def __init__(self) -> None:
        self.order: dict[str, int] = {}
        self.copied_at: dict[str, int] = {}
        self.lives = 0
        self.crashes = 0

    def saw(self, batch: ChangeBatch) -> None:
        for change in batch.changes:
            self.order.setdefault(change.id, len(self.order))
        if getattr(batch, "is_part", False):
            return
        for copy in msgspec.msgpack.decode(batch.state, type=MySQLState).copies:
            name = f"{copy.schema}.{copy.table}"
            if not copy.is_done:
                self.copied_at.pop(name, None)
            else:
                self.copied_at.setdefault(name, len(self.order))


class CrashingSource(MySQLSource):
    """Crashes after ``lives_for`` batches, with its last batch read or not: the log never has it."""

    def __init__(self, config: MySQLConfig, progress: Progress, rng: random.Random) -> None:
        super().__init__("s", config, {})
        self._progress = progress
        self._lives_for = rng.randrange(1, 60)
        self._loses_batch = rng.random() < 0.5
        self.never_crashes = False

    async def read(self) -> ChangeBatch:
        if self._lives_for <= 0 and not self.never_crashes:
            if self._loses_batch:
                await super().read()
            raise Crash
        self._lives_for -= 1
        batch = await super().read()
        self._progress.saw(batch)
        return batch


@asynccontextmanager
async def a_log(path: Path) -> AsyncIterator[SQLiteLog]:
    log = await SQLiteLog.open(path)
    try:
        yield log
    finally:
        ending = asyncio.create_task(log.close())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending  # a cancellation that meets the end of a crashed life must not leave the log locked
            raise


async def capture_until(stop: asyncio.Event, config: MySQLConfig, path: Path, progress: Progress, rng: random.Random) -> None:  # fmt: skip
    """Capture with crashes until ``stop``, then without until cancelled."""
    while True:
        source = CrashingSource(config, progress, rng)
        source.never_crashes = stop.is_set()
        progress.lives += 1
        async with a_log(path) as log:
            capture = Capture(source, Normaliser("s", {}), log, CaptureMetrics(CollectorRegistry()))
            try:
                await capture.run()
            except Crash:
                progress.crashes += 1
            except SourceUnavailable:
                await asyncio.sleep(
                    0.05
                )  # a life that begins while the server is away: whoever supervises starts it again


async def hold(server: MariaDBServer, folder: Path, seed: int, steps: int) -> str:
    """One run; the result is a line about what it met."""
    rng = random.Random(seed * 7919)
    has_copy = rng.random() < 0.6
    server.kill()
    server.start()  # without the settings of the seed before
    driver = RandomMySQL(server, f"f{seed}", seed, has_keyless=not has_copy)
    driver.may_prepare = False
    progress = Progress()
    proxy = Proxy(server.port)
    await proxy.start()
    try:
        for _ in range(rng.randrange(1, 4)):
            driver.create_table()
        if has_copy:
            for _ in range(rng.randrange(0, 30)):
                driver.step()
            driver.finish()
        config = MySQLConfig(
            dsn=f"mysql://root@127.0.0.1:{proxy.port}",
            tables=[f"{driver.database}.*"],
            snapshot="initial" if has_copy else "never",
            heartbeat=Duration.parse("50ms"),
        )
        stop = asyncio.Event()
        path = folder / "log.db"
        capturing = asyncio.create_task(capture_until(stop, config, path, progress, rng))

        async def until(done: Callable[[], bool], what: str) -> None:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    while not done():
                        if capturing.done():
                            capturing.result()
                        await asyncio.sleep(0.01)  # the capture runs beside, in the same loop
            except TimeoutError:
                raise AssertionError(f"seed {seed}: {what} took too long") from None

        try:
            if not has_copy:
                await until(lambda: stored(path) is not None, "the first life")
            for _ in range(steps):
                driver.may_prepare = driver.may_prepare or stored(path) is not None
                await asyncio.to_thread(driver.step)
                trouble = rng.random()
                if trouble < 0.03:
                    await asyncio.to_thread(driver.restart_server, is_killed=trouble < 0.02)
                elif trouble < 0.1:
                    (proxy.cut if trouble < 0.065 else proxy.reset)()
                if capturing.done():
                    capturing.result()
            stop.set()
            await asyncio.to_thread(driver.finish)
            await end(capturing)
            capturing = asyncio.create_task(capture_until(stop, config, path, progress, rng))
            goal = await asyncio.to_thread(driver.end)

            def is_over() -> bool:
                state = stored(path)
                return state is not None and state.gtids == goal and all(copy.is_done for copy in state.copies)

            await until(is_over, f"catching up with {goal}")
        finally:
            await end(capturing)
        checks = await judge(path, driver, progress, seed)
        line = (
            f"seed {seed}: {'copy' if has_copy else 'stream'}, images {driver.image}, {len(progress.order)} changes, "
            f"{checks} states compared, {progress.lives} lives, {progress.crashes} crashes, {driver.restarts} server restarts, {driver.counts}"
        )
        print(line)
        return line
    finally:
        await proxy.stop()
        driver.drop()


def stored(path: Path) -> MySQLState | None:
    """What the log durably holds of the source, read past the capture."""
    with closing(sqlite3.connect(path)) as reader:
        try:
            row = reader.execute("select state from source where name = 's'").fetchone()
        except sqlite3.OperationalError:
            return None  # not made yet
    return None if row is None else msgspec.msgpack.decode(row[0], type=MySQLState)


async def judge(path: Path, driver: RandomMySQL, progress: Progress, seed: int) -> int:
    """Fold the log, transaction by transaction, and compare with each truth; the number of compared tables."""
    fold = Fold()
    checks = 0
    seen: list[str] = []
    has_copy = bool(progress.copied_at)
    async with a_log(path) as log:
        offset = 0
        while True:
            batch = await log.read(0, offset)
            if not batch.events:
                break
            for event in batch.events:
                row = event.row
                if row is None:
                    continue
                place = progress.order[event.id]
                fold.copied = {name for name, at in progress.copied_at.items() if place >= at}
                if not has_copy:
                    fold.is_snapshotting = False
                try:
                    fold.event(event)
                except AssertionError as error:
                    raise AssertionError(f"seed {seed}: {error}") from None
                if row.op == "read" or not row.is_last:
                    continue
                gtid = event.position.rpartition(":")[0]
                seen.append(gtid)
                for name, (columns, wanted) in driver.truths.get(gtid, {}).items():
                    if not has_copy or name in fold.copied:
                        hold_equal(fold, name, columns, wanted, f"seed {seed}: after {event.position}")
                        checks += 1
            offset = batch.next_offset
    assert len(seen) == len(set(seen)), f"seed {seed}: a transaction came twice"
    assert [place_of(gtid) for gtid in seen] == sorted(place_of(gtid) for gtid in seen), f"seed {seed}: out of order"
    assert checks or has_copy, f"seed {seed}: nothing was compared"
    for name in driver.tables:
        columns, wanted = driver.truth(name)
        hold_equal(fold, f"{driver.database}.{name}", columns, wanted, f"seed {seed}: at the end")
        checks += 1
    return checks


def place_of(gtid: str) -> int:
    """One server, one domain: the number is the order."""
    return int(gtid.rpartition(":" if ":" in gtid else "-")[2])


def hold_equal(fold: Fold, table: str, columns: list[str], wanted: list[Values], where: str) -> None:
    bare = [column for row in fold.rows(table) for column in columns if column not in row]
    assert not bare, f"{where}: rows of {table} lack {set(bare)}"
    found = fold.rows(table, columns)
    assert found == wanted, f"{where}: {table} has {difference(found, wanted)}"


@pytest.fixture(scope="module")
def durable_mariadb(mariadb_template: Path) -> Iterator[MariaDBServer]:
    made = MariaDBServer(mariadb_template, _DURABLE)
    made.start()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def durable_mysql(mysql9_template: Path) -> Iterator[MySQLServer]:
    made = MySQLServer(mysql9_template)
    made.start()
    yield made
    made.remove()


@pytest.fixture(params=["mariadb", pytest.param("mysql", marks=pytest.mark.matrix("mysql"))])
def server(request: pytest.FixtureRequest) -> MariaDBServer:
    found: MariaDBServer = request.getfixturevalue(f"durable_{request.param}")
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.capture._FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr("headrace.cdc.capture._LONGEST_PAUSE_S", 0.2)


@pytest.mark.parametrize("seed", range(4))
async def test_property_the_log_folds_to_every_state_that_was_committed(
    server: MariaDBServer, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.CHUNK_ROWS", 7)
    await hold(server, tmp_path, seed, steps=60)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 160))
async def test_property_holds_over_many_seeds(
    server: MariaDBServer, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.cdc.sources.mysqlcopy.CHUNK_ROWS", 1 + seed % 13)
    await hold(server, tmp_path, seed, steps=150)
