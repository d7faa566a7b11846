"""Logical messages: in their transaction's order, or with a place of their own; headrace's own are never shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from fix_servers import Database
from headrace.cdc.event import UNDECODABLE
from headrace.cdc.position import PostgresPosition
from headrace.cdc.process.normalise import Normaliser

MakeReader = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.parametrize("database", [15, 18], indirect=True)


async def test_a_transactional_message_stands_in_its_place(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    with database.connection.transaction():
        database.execute("insert into t values (1)")
        database.execute("select pg_logical_emit_message(true, 'outbox', %s)", '{"order": "ä"}')
        with database.connection.transaction(force_rollback=True):
            database.execute("select pg_logical_emit_message(true, 'outbox', 'rolled back')")
        database.execute("select pg_logical_emit_message(true, 'headrace', 'our own')")
        database.execute("select pg_logical_emit_message(true, 'outbox', %s)", b"\x00\xff")
        database.execute("insert into t values (2)")
    await r.until_op("insert", 2)
    assert [change.after for change in r.changes] == [
        (1,),
        ("outbox", '{"order": "ä"}', None),
        ("outbox", UNDECODABLE, "\\x00ff"),
        (2,),
    ]
    assert [change.ordinal for change in r.changes] == [0, 1, 2, 3]
    assert [change.is_last for change in r.changes] == [False, False, False, True]
    event = Normaliser("shop", {}).events(r.changes, 0)[1]
    assert (event.name, event.key, event.kind) == ("outbox sent", None, "track")
    assert event.row is not None
    assert (event.row.op, event.row.schema, event.row.table) == ("message", "pg_message", "outbox")
    assert event.properties == '{"prefix":"outbox","content":"{\\"order\\": \\"ä\\"}","content_hex":null}'.encode()


async def test_a_message_outside_transactions_passes_none_of_them(database: Database, reader: MakeReader) -> None:
    """It comes before a transaction that began earlier and commits later; a restart from it still gets that transaction."""
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    with psycopg.connect(database.dsn) as open_one:
        open_one.execute("insert into t values (1)")
        database.execute("select pg_logical_emit_message(false, 'audit', 'now')")
        database.execute("insert into t values (2)")  # flushes the message too
        await r.until(lambda: any(change.op == "message" for change in r.changes))
        message = next(change for change in r.changes if change.op == "message")
        assert (message.xid, message.is_last, message.after) == (0, True, ("audit", "now", None))
        await r.restart(forget_confirmations=True)
        open_one.commit()
    await r.until_op("insert", 2)
    await r.restart(forget_confirmations=True)
    database.execute("insert into t values (3)")
    await r.until_op("insert", 3)
    assert [change.after[0] for change in r.changes] == ["audit", 2, 1, 3]
    positions = [PostgresPosition.parse(change.position) for change in r.changes]
    assert positions == sorted(set(positions))
    assert len({change.id for change in r.changes}) == 4


async def test_a_message_read_again_has_its_id(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader()
    await r.until_streaming()
    state = r.state
    database.execute("select pg_logical_emit_message(false, 'audit', 'now')")
    database.execute("insert into t values (1)")
    await r.until_op("insert")
    first = [change.id for change in r.changes]
    r.state, r.changes, r.fold.ids = state, [], set()
    r.fold.tables.clear()
    await r.restart(forget_confirmations=True)
    await r.until_op("insert")
    assert [change.id for change in r.changes] == first and len(first) == 2


async def test_only_prefixes_that_are_asked_for_come(database: Database, reader: MakeReader) -> None:
    database.execute("create table t (id int primary key)")
    r = await reader(messages=["out*"])
    await r.until_streaming()
    for is_transactional in ("true", "false"):
        for prefix in ("outbox", "other", "headrace"):
            database.execute(f"select pg_logical_emit_message({is_transactional}, '{prefix}', 'x')")
    database.execute("insert into t values (1)")
    await r.until_op("insert")
    assert [change.op for change in r.changes] == ["message", "message", "insert"]
    r.config = type(r.config)(dsn=r.config.dsn, messages=[])
    await r.restart()
    database.execute("select pg_logical_emit_message(true, 'outbox', 'x')")
    database.execute("insert into t values (2)")
    await r.until_op("insert", 2)
    assert [change.op for change in r.changes] == ["message", "message", "insert", "insert"]
