"""One ``headrace run`` captures Postgres and MariaDB into one log, copies and streams alike, and goes on after kill -9."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from fix_mariadb import MariaDBServer
from fix_servers import Database
from headrace.cdc.config import load
from headrace.cdc.log.reader import open_reader
from running import RunningHeadrace


async def logged(config: Path) -> dict[str, list[tuple[str, int]]]:
    """Operation and key of each row, by source, in the order of the log."""
    found: dict[str, list[tuple[str, int]]] = {}
    log = await open_reader(load(config))
    try:
        offset = 0
        while True:
            batch = await log.read(0, offset)
            if not batch.events:
                return found
            for event in batch.events:
                if event.row is not None:
                    key = msgspec.json.decode(event.row.key or b"{}")["id"]
                    found.setdefault(event.source, []).append((event.row.op, key))
            offset = batch.next_offset
    finally:
        await log.close()


def test_both_stand_in_one_log(database: Database, mariadb: MariaDBServer, tmp_path: Path) -> None:
    schema = f"two_{database.name}"
    with mariadb.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"create or replace database {schema}")
        cursor.execute(f"create table {schema}.t (id int primary key, v text)")
        cursor.execute(f"insert into {schema}.t values (0, 'old')")
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t values (0, 'old')")
    running = RunningHeadrace(
        tmp_path,
        f"""
log: {{path: two.log.db}}
sources:
  pg: {{type: postgres, dsn: "{database.dsn}", slot: two_{database.name}, publication: two_{database.name}}}
  maria: {{type: mysql, dsn: "mysql://root@127.0.0.1:{mariadb.port}", tables: ["{schema}.*"]}}""",
    )
    running.start()
    running.wait_until(running.client.is_ready, "starting")
    for number in range(1, 41):
        database.execute("insert into t values (%s, 'new')", number)
        with mariadb.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"insert into {schema}.t values (%s, 'new')", (number,))
        if number == 20:
            running.kill()
            running.start()
    wanted = {source: [("read", 0), *(("insert", number) for number in range(1, 41))] for source in ("pg", "maria")}

    def rows() -> int:
        status = running.client.status()
        return 0 if status is None else int(status["log"]["partitions"][0]["end"])

    running.wait_until(lambda: rows() >= 82 and asyncio.run(logged(running.config)) == wanted, "both")
    running.terminate()
    assert asyncio.run(logged(running.config)) == wanted
