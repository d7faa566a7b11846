"""The Postgres versions that the default suite doesn't start: copy, stream, every row shape and a crash, against the server's SELECT.

What else they do, such as the failover of 17, is tested beside the default versions' (pytest -m matrix).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cdc" / "sources"))

from source_reader import Reader

from fix_servers import MATRIX_POSTGRES, Database, matrix_postgres
from fold import server_rows
from headrace.cdc.demo.embedded import PostgresServer


@pytest.fixture(scope="module", params=sorted(MATRIX_POSTGRES))
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with matrix_postgres(request.param) as binaries:
        made = PostgresServer(binaries, settings={"fsync": "off"})
        made.start()
        yield made
        made.remove()


@pytest.mark.matrix("postgres")
async def test_copy_stream_and_restart_fold_to_the_tables(server: PostgresServer) -> None:
    database = Database(server)
    reader = Reader(database.dsn)
    try:
        database.execute("create table a (id int primary key, n numeric, big text, at timestamptz default now())")
        database.execute("alter table a alter big set storage external")
        database.execute("create table p (id int, r text, primary key (id, r)) partition by list (r)")
        database.execute("create table p1 partition of p for values in ('x')")
        database.execute("create table p2 partition of p for values in ('y')")
        database.execute("create table bag (v float8, j jsonb)")
        database.execute("alter table bag replica identity full")
        database.execute("insert into a select n, n / 3.0, repeat('x', 3000) from generate_series(1, 12000) n")
        database.execute("insert into p select n, 'x' from generate_series(1, 50) n")
        database.execute("insert into bag values ('NaN', '{}'), (-0.0, '[1]')")
        await reader.start()
        database.execute("update a set n = n + 1 where id % 7 = 0")
        database.execute("update a set id = -id where id % 11 = 0")
        database.execute("update p set r = 'y' where id % 2 = 0")
        await reader.until_streaming()
        database.execute("delete from bag where v = 'NaN'")
        await reader.until_op("delete")
        await reader.restart(forget_confirmations=True)
        database.execute("truncate p")
        database.execute("insert into p values (1, 'x')")
        await reader.until_op("truncate")
        await reader.until(lambda: len(reader.fold.rows("public.p")) == 1)
        for table in ("public.a", "public.p", "public.bag"):
            assert reader.fold.rows(table) == server_rows(database.dsn, table), table
        assert not [finding for finding in await Reader(database.dsn).source.check() if finding.severity == "error"]
    finally:
        await reader.stop()
        database.drop()
