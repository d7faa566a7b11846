"""kill -9 of ``headrace run`` in the middle of transactions too large for memory, open, rolled back and committed."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path

import psycopg
import pytest

from fix_servers import Database
from fold import Fold, server_rows
from headrace.cdc.config import load
from headrace.cdc.log.reader import open_reader
from headrace.cdc.position import parse_lsn
from running import RunningHeadrace

ROWS = 40_000
"""Some 8 MB of messages: four times what stays in memory."""


class Writer:
    """Large transactions, every third rolled back, beside single rows; until stopped."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=[turn]) for turn in (self._large, self._small)]
        self.failure: BaseException | None = None
        self.open = threading.Event()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _guard(self, turn: object) -> None:
        assert callable(turn)
        try:
            with psycopg.connect(self._dsn) as connection:
                while not self._over.is_set():
                    turn(connection)
        except Exception as error:  # noqa: BLE001  # told by the test
            self.failure = error

    def _large(self, connection: psycopg.Connection[object]) -> None:
        for is_kept in (True, True, False):
            if self._over.is_set():
                return
            connection.execute("delete from big where id %% 3 = 0 and id > %s", [10 * ROWS])
            self.open.set()
            connection.execute(
                "insert into big select nextval('ids'), repeat('v', 150) from generate_series(1, %s)", [ROWS]
            )
            if is_kept:
                connection.commit()
            else:
                connection.rollback()
            self._over.wait(0.3)

    def _small(self, connection: psycopg.Connection[object]) -> None:
        connection.execute("insert into small (v) values ('x')")
        connection.commit()
        self._over.wait(0.02)


@pytest.mark.parametrize("seed", [3])
def test_kills_in_large_transactions_lose_and_double_nothing(database: Database, tmp_path: Path, seed: int) -> None:
    kill_and_judge(database, tmp_path, seed=seed, kills=6)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [31, 32])
def test_many_kills_in_large_transactions(database: Database, tmp_path: Path, seed: int) -> None:
    kill_and_judge(database, tmp_path, seed=seed, kills=50)


def kill_and_judge(database: Database, folder: Path, *, seed: int, kills: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    database.execute("create sequence ids")
    database.execute("create table big (id bigint primary key, v text)")
    database.execute("create table small (id bigint generated always as identity primary key, v text)")
    running = RunningHeadrace(
        folder,
        f'log: {{path: large.log.db}}\nsources: {{s: {{type: postgres, dsn: "{database.dsn}", slot: large_{database.name},'
        f" publication: large_{database.name}, spill_folder: {folder}}}}}",
    )
    writer = Writer(database.dsn)
    writer.start()
    try:
        for _ in range(kills):
            running.start()
            running.wait_until(lambda: running.appended() > 1, f"seed {seed}: starting")
            time.sleep(rng.uniform(0.0, 1.0))  # the moment of the kill is what is tried here
            running.kill()
            assert not list(folder.glob("tmp*")), "a killed process left a spill file"
    finally:
        writer.stop()
    assert writer.failure is None
    running.start()
    try:
        committed = parse_lsn(str(database.execute("select pg_current_wal_flush_lsn()::text")[0][0]))

        def has_passed() -> bool:
            status = running.client.status()
            place = "" if status is None else status["sources"]["s"]["position"]
            return bool(place) and parse_lsn(place) >= committed

        running.wait_until(has_passed, f"seed {seed}: catching up")
        fold = asyncio.run(folded(running.config))
        for table in ("public.big", "public.small"):
            assert fold.rows(table) == server_rows(database.dsn, table), f"seed {seed}: {table} differs"
    finally:
        running.terminate()


async def folded(config: Path) -> Fold:
    """The whole log; a transaction comes whole, and none twice (Fold refuses an id that it knows)."""
    fold = Fold()
    log = await open_reader(load(config))
    try:
        offset = (await log.bounds(0)).first
        under_way = 0
        while True:
            batch = await log.read(0, offset)
            if not batch.events:
                assert under_way == 0, "the last transaction is torn"
                return fold
            for event in batch.events:
                fold.event(event)
                if event.row is not None and event.row.xid:
                    assert under_way in (0, event.row.xid), f"{event.position} stands inside another transaction"
                    under_way = 0 if event.row.is_last else event.row.xid
            offset = batch.next_offset
    finally:
        await log.close()
