"""One ``headrace run`` reads Postgres and MariaDB under load into one log, and is ended by kill -9 again and again.

Judged from outside: MariaDB's part of the log, folded, equals a SELECT after each of its transactions, Postgres' at the end; the servers' own
orders are kept, and no transaction is torn, doubled or lost. The load on MariaDB is that of the property test: every type, interleaved
transactions, savepoints, schema changes, each kind of row image, hostile settings, restarts of the server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fix_mariadb import MariaDBServer
from fix_mysql import MySQLServer
from fix_servers import Database
from fold import Fold, difference, server_rows
from headrace.cdc.config import load
from headrace.cdc.demo.shop import Shop, Simulator
from headrace.cdc.log.reader import open_reader
from random_mysql import RandomMySQL
from running import RunningHeadrace

SHOP_TABLES = ("shop.customers", "shop.products", "shop.orders", "shop.order_items")


@pytest.fixture
def maria(mariadb_template: Path) -> Iterator[MariaDBServer]:
    made = MariaDBServer(mariadb_template, {"innodb-flush-log-at-trx-commit": "1", "sync-binlog": "1"})
    made.start()
    yield made
    made.remove()


@pytest.fixture
def mysql(mysql9_template: Path) -> Iterator[MySQLServer]:
    made = MySQLServer(mysql9_template)
    made.start()
    yield made
    made.remove()


@pytest.fixture(params=["maria", pytest.param("mysql", marks=pytest.mark.matrix("mysql"))])
def server(request: pytest.FixtureRequest) -> MariaDBServer:
    found: MariaDBServer = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("seed", [1])
def test_kills_lose_double_and_reorder_nothing_of_either(
    database: Database, server: MariaDBServer, tmp_path: Path, seed: int
) -> None:
    kill_and_judge(database, server, tmp_path, seed=seed, kills=5)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_kills_lose_double_and_reorder_nothing_of_either(
    database: Database, server: MariaDBServer, tmp_path: Path, seed: int
) -> None:
    kill_and_judge(database, server, tmp_path, seed=seed, kills=20)


def kill_and_judge(database: Database, server: MariaDBServer, folder: Path, *, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    shop = Shop(database.dsn, customers=60, products=12)
    shop.create()
    name = f"kill{seed}"
    driver = RandomMySQL(server, name, seed, has_keyless=True)
    for _ in range(3):
        driver.create_table()
    running = RunningHeadrace(
        folder,
        f"""
log: {{path: two.log.db}}
sources:
  pg: {{type: postgres, dsn: "{database.dsn}", tables: ["shop.*"], slot: two_{database.name}, publication: two_{database.name}}}
  other: {{type: mysql, dsn: "mysql://root@127.0.0.1:{server.port}", tables: ["{name}.*"], snapshot: never, heartbeat: 100ms}}""",
    )
    try:
        drive_and_judge(running, driver, shop, database, rng, seed=seed, kills=kills)
    finally:
        running.end()
        driver.drop()


def drive_and_judge(
    running: RunningHeadrace,
    driver: RandomMySQL,
    shop: Shop,
    database: Database,
    rng: random.Random,
    *,
    seed: int,
    kills: int,
) -> None:
    running.start()
    running.wait_until(lambda: is_stored(running), f"seed {seed}: starting")
    simulator = Simulator(shop, rate=200, seed=seed)
    simulator.start()
    try:
        for _ in range(kills):
            for _ in range(rng.randrange(4, 16)):
                driver.step()
                if rng.random() < 0.03:
                    # A first start without its server is a message to a person; a lost server is waited for.
                    running.wait_until(lambda: are_streaming(running), f"seed {seed}: starting again")
                    driver.restart_server(is_killed=rng.random() < 0.5)
            running.kill()
            for _ in range(rng.randrange(0, 4)):
                driver.step()
            running.start()
        driver.finish()
    finally:
        simulator.stop()
    assert simulator.failure is None
    end = driver.end()
    running.wait_until(lambda: position(running, "other") == end, f"seed {seed}: catching up with {end}")
    wanted = {table: server_rows(database.dsn, table) for table in SHOP_TABLES}

    def folded_postgres() -> Fold:
        return asyncio.run(folded(running.config, driver, seed))[0]

    running.wait_until(
        lambda: all(folded_postgres().rows(table) == rows for table, rows in wanted.items()),
        f"seed {seed}: Postgres' tables",
    )
    running.terminate()
    _, checks = asyncio.run(folded(running.config, driver, seed))
    print(f"seed {seed}: {kills} kills, {driver.restarts} server restarts, {checks} states compared, {driver.counts}")
    assert checks > kills


def is_stored(running: RunningHeadrace) -> bool:
    """Both places are in the log: from here on a kill loses nothing."""
    return bool(position(running, "pg")) and bool(position(running, "other"))


def are_streaming(running: RunningHeadrace) -> bool:
    status = running.client.status()
    return status is not None and all(source["phase"] == "streaming" for source in status["sources"].values())


def position(running: RunningHeadrace, source: str) -> str:
    status = running.client.status()
    return "" if status is None else str(status["sources"][source]["position"])


async def folded(config: Path, driver: RandomMySQL, seed: int) -> tuple[Fold, int]:
    """Postgres' fold, and how many states of the other server's tables were compared; each was equal."""
    postgres, other = Fold(), Fold()
    other.is_snapshotting = False
    seen: list[int] = []
    checks = 0
    log = await open_reader(load(config))
    try:
        offset = 0
        while True:
            batch = await log.read(0, offset)
            if not batch.events:
                break
            for event in batch.events:
                (postgres if event.source == "pg" else other).event(event)
                if event.row is None or event.source == "pg" or not event.row.is_last:
                    continue
                gtid = event.position.rpartition(":")[0]
                seen.append(int(gtid.rpartition(":" if ":" in gtid else "-")[2]))
                for table, (columns, wanted) in driver.truths.get(gtid, {}).items():
                    found = other.rows(table, columns)
                    assert found == wanted, f"seed {seed}: after {gtid}: {table} has {difference(found, wanted)}"
                    checks += 1
            offset = batch.next_offset
    finally:
        await log.close()
    assert seen == sorted(set(seen)), f"seed {seed}: a transaction came twice, or out of order"
    return postgres, checks
