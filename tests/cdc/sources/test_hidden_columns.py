"""What the configuration hides is in no byte of the log: not after a copy, an update, a delete, or under FULL identity."""

from __future__ import annotations

from pathlib import Path

import pytest
from source_reader import Reader

from fix_servers import Database
from headrace.cdc.config import ColumnsConfig, EventConfig
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.process.normalise import Normaliser

SECRETS = (b"ada@example.org", b"very private", b"+41 79 000 00 00")


@pytest.mark.parametrize("identity", ["default", "full"])
async def test_hidden_values_are_in_no_byte_of_the_log(database: Database, tmp_path: Path, identity: str) -> None:
    database.execute("create table people (id int primary key, email text, note text, phone text, city text)")
    database.execute(f"alter table people replica identity {identity}")
    values = "'ada@example.org', 'very private', '+41 79 000 00 00', 'Bern'"
    database.execute(f"insert into people values (1, {values})")
    events = {
        "public.people": EventConfig(
            kind="identify",
            key="email",
            columns=ColumnsConfig(exclude=["note"], hash=["email"], mask={"phone": "***"}),
        )
    }
    reader = Reader(database.dsn, events=events)
    normaliser = Normaliser("shop", events, "a salt of many characters")
    log = await SQLiteLog.open(tmp_path / "log.db")
    try:
        assert not [finding for finding in await reader.source.check() if finding.severity == "error"]
        await reader.start()
        await reader.until_streaming()
        database.execute(f"insert into people values (2, {values})")
        database.execute("update people set city = 'Lyon'")
        database.execute("delete from people where id = 2")
        await reader.until_op("delete")
        made = normaliser.events(reader.changes, 0)
        await log.append(made, source="shop", state=b"")
    finally:
        await reader.stop()
        await log.close()
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"Lyon" in written
    assert not [secret for secret in SECRETS if secret in written]
    keys = {event.key for event in made if event.row is not None and event.row.op in ("read", "insert", "update")}
    assert len(keys) == 1, "the hash stays joinable"
    assert {len(key or "") for key in keys} == {64}


async def test_a_hidden_column_that_is_none_is_named(database: Database) -> None:
    database.execute("create table people (id int primary key, email text)")
    events = {"public.people": EventConfig(columns=ColumnsConfig(exclude=["emial"]))}
    (finding,) = [one for one in await Reader(database.dsn, events=events).source.check() if one.severity == "error"]
    assert finding.object == "events.public.people.columns.exclude"
    assert '"emial" is no column' in finding.message
