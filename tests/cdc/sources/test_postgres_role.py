"""The role of docs/getting-started.md is enough: its SQL, run as it stands there, lets a source copy, stream and start again."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from source_reader import Reader

from fix_servers import Database
from fold import server_rows

GUIDE = (Path(__file__).parents[3] / "docs" / "getting-started.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("database", [15, 18], indirect=True)
async def test_the_guides_role_copies_streams_and_restarts(database: Database) -> None:
    database.execute("create table customers (id int primary key, name text)")
    database.execute("create table orders (id int primary key, customer_id int)")
    database.execute("insert into customers select n, 'n' from generate_series(1, 500) n")
    role = f"headrace_{database.name}"
    role_sql = re.search(r"```sql\n(create role.*?)```", GUIDE, re.DOTALL)
    assert role_sql is not None
    for statement in role_sql[1].replace("'...'", "'secret'").replace(" headrace", f" {role}").split(";"):
        if statement.strip():
            database.execute(statement.replace(f"{role}_shop", f"pub_{database.name}"))
    dsn = database.dsn.replace("user=postgres", f"user={role} password=secret")
    reader = Reader(dsn, publication=f"pub_{database.name}")
    try:
        await reader.start()
        await reader.until_streaming()
        database.execute("insert into orders values (1, 7)")
        await reader.until_op("insert")
        await reader.restart()
        database.execute("delete from customers where id > 10")
        await reader.until_op("delete", 490)
        assert reader.fold.rows("public.customers") == server_rows(database.dsn, "public.customers")
        errors = await Reader(dsn, publication=f"pub_{database.name}").source.check()
        assert not [finding for finding in errors if finding.severity == "error"]
    finally:
        await reader.stop()
        with psycopg.connect(database.dsn, autocommit=True) as admin:
            admin.execute(f"drop owned by {role}")
            admin.execute(f"drop role {role}")


async def test_the_role_that_check_prints_is_enough_and_no_part_of_it_is_too_much(database: Database) -> None:
    database.execute("create schema shop")
    database.execute("create table shop.customers (id int primary key, name text)")
    database.execute("insert into shop.customers select n, 'n' from generate_series(1, 100) n")
    role, publication = f"least_{database.name}", f"pub_{database.name}"
    fields = {"publication": publication, "tables": ["shop.*"]}
    [finding] = [found for found in await Reader(database.dsn, **fields).source.check() if found.code == "superuser"]
    statements = [
        statement.replace("'...'", "'secret'")
        .replace("role headrace", f"role {role}")
        .replace("to headrace;", f"to {role};")
        for statement in finding.cure.splitlines()
    ]
    assert len(statements) == 4
    dsn = database.dsn.replace("user=postgres", f"user={role} password=secret")
    try:
        for left_out in (*range(1, len(statements)), None):
            for place, statement in enumerate(statements):
                if place != left_out:
                    database.execute(statement)
            reader = Reader(dsn, **fields)
            errors = [found.code for found in await reader.source.check() if found.severity == "error"]
            if left_out is None:
                assert errors == []
                await reader.start()
                await reader.until_streaming()
                database.execute("insert into shop.customers values (1000, 'new')")
                await reader.until_op("insert")
                await reader.stop()
            else:
                assert errors, f"check misses: {statements[left_out]}"
            drop(database, role, publication)
    finally:
        drop(database, role, publication)


def drop(database: Database, role: str, publication: str) -> None:
    database.execute(f"drop publication if exists {publication}")
    if database.execute("select 1 from pg_roles where rolname = %s", role):
        database.execute(f"drop owned by {role}")
        database.execute(f"drop role {role}")
