"""``headrace snapshot`` against a running ``headrace run``."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from fix_servers import Database
from headrace.cdc.cli import main
from headrace.cdc.config import load
from headrace.cdc.log.reader import open_reader
from running import RunningHeadrace


async def read_ids(config: Path) -> list[int]:
    """Keys of all copied rows, in the order of the log."""
    log = await open_reader(load(config))
    try:
        found: list[int] = []
        offset = 0
        while True:
            batch = await log.read(0, offset)
            if not batch.events:
                return found
            found += [
                msgspec.json.decode(event.properties)["id"]
                for event in batch.events
                if event.row is not None and event.row.op == "read"
            ]
            offset = batch.next_offset
    finally:
        await log.close()


def test_rows_are_copied_again_and_the_command_says_how_many(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.execute("create table t (id int primary key, v text)")
    database.execute("insert into t select n, 'v' from generate_series(1, 1000) n")
    running = RunningHeadrace(
        tmp_path,
        f'log: {{path: t.log.db}}\nsources: {{s: {{type: postgres, dsn: "{database.dsn}", slot: c_{database.name},'
        f" publication: c_{database.name}}}}}",
    )
    command = ["snapshot", "--config", str(running.config)]
    assert main([*command, "s", "public.t"]) == 6
    assert "headrace run" in capsys.readouterr().err
    running.start()
    try:
        running.wait_until(running.client.is_ready, "starting")
        assert main([*command, "s", "public.t", "--where", "id > 900"]) == 0
        assert capsys.readouterr().out.startswith("copied 100 rows of public.t in ")
        assert main([*command, "s", "public.*", "--json"]) == 0
        document = msgspec.json.decode(capsys.readouterr().out)
        assert (document["number"], document["tables"], document["rows"]) == (3, ["public.t"], 1000)
        assert main([*command, "s", "public.t", "--no-wait"]) == 0
        assert "number 4" in capsys.readouterr().out
        for words, said in (
            (["s", "public.other"], "captures no table public.other"),
            (["s", "public.t", "--where", "nonsense"], "nonsense"),
            (["other", "public.t"], 'no source "other"'),
        ):
            assert main([*command, *words]) == 2
            error = capsys.readouterr().err
            assert said in error
            assert "To mend it" in error
        running.wait_until(
            lambda: all(copy["is_done"] for copy in (running.client.status() or {})["sources"]["s"]["asked"]),
            "the copies",
        )
    finally:
        running.terminate()
    ids = asyncio.run(read_ids(running.config))
    everything = list(range(1, 1001))
    assert ids == [*everything, *range(901, 1001), *everything, *everything]
