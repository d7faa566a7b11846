"""The log read from outside: beside a live writer, after its clean end, after its crash."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cdc.log.append_until_killed import PARTITIONS, batch, forked_writers
from contract.log_contract import DEADLINE_S, event, events, read_all
from headrace.cdc.errors import LogError, LogUnavailable, Trimmed
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Bounds, Cursor, partition_of
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.log.sqlite_reader import SQLiteLogReader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "headrace.log.db"


@pytest.fixture
async def log(path: Path) -> AsyncIterator[SQLiteLog]:
    opened = await SQLiteLog.open(path)
    yield opened
    await opened.close()


def names(path: Path) -> list[str]:
    return sorted(file.name.removeprefix(path.name) for file in path.parent.iterdir())


async def test_a_reader_sees_what_the_writer_has_stored(log: SQLiteLog, path: Path) -> None:
    await log.append(events(0, 300), source="shop", state=b"300")
    await log.commit("features", 0, 120, state=b"s")
    reader = await SQLiteLogReader.open(path)
    assert (reader.generation, reader.partitions, reader.path) == (log.generation, 1, path)
    assert await reader.bounds(0) == Bounds(0, 300)
    batch = await reader.read(0, 100)
    assert list(batch.events) == events(100, 200) and batch.next_offset == 300
    assert (await reader.read(0, 300)).events == ()
    assert await reader.source_state("shop") == b"300" and await reader.source_state("web") is None
    assert await reader.committed("features", 0) == Cursor(120, b"s") and await reader.committed("sinks", 0) is None
    assert await reader.groups() == {"features": {0: Cursor(120, b"s")}}
    await log.trim(0, 120, force=True)
    await log.append(events(300, 1), source="shop", state=b"301")
    await log.trim(0, 300)
    with pytest.raises(ValueError, match="offset 302 of partition 0"):
        await reader.read(0, 302)
    with pytest.raises(ValueError, match="partition 1 doesn't exist"):
        await reader.read(1, 0)
    await reader.close()
    await reader.close()
    with pytest.raises(LogError, match="is closed"):
        await reader.bounds(0)


async def test_a_trim_reaches_the_reader_as_trimmed(log: SQLiteLog, path: Path) -> None:
    for start in (0, 10):
        await log.append(events(start, 10), source="shop", state=b"")
    reader = await SQLiteLogReader.open(path)
    await log.trim(0, 10)
    with pytest.raises(Trimmed) as trimmed:
        await reader.read(0, 9)
    assert trimmed.value.first_offset == 10
    await reader.close()


async def test_a_waiting_reader_gets_the_next_append(log: SQLiteLog, path: Path) -> None:
    reader = await SQLiteLogReader.open(path)
    waiting = asyncio.create_task(reader.read(0, 0, wait_s=DEADLINE_S))
    assert (await reader.read(0, 0, wait_s=0.05)).events == ()
    await log.commit("g", 0, 0)  # a commit that brings no event doesn't end the wait
    await log.append(events(0, 2), source="shop", state=b"")
    assert list((await waiting).events) == events(0, 2)
    await reader.close()


async def test_a_log_without_a_writer_is_read_and_no_file_is_made(path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append(events(0, 10), source="shop", state=b"10")
    await log.close()
    before = names(path)
    path.parent.chmod(0o755)
    reader = await SQLiteLogReader.open(path)
    assert await read_all(reader) == events(0, 10)
    assert (await reader.read(0, 10, wait_s=0.05)).events == ()
    assert names(path) == before
    await reader.close()
    assert names(path) == before


async def test_a_reader_stays_while_writers_come_and_go(path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append(events(0, 1), source="shop", state=b"")
    await log.close()
    reader = await SQLiteLogReader.open(path)
    for number in range(1, 6):
        waiting = asyncio.create_task(reader.read(0, number, wait_s=DEADLINE_S))
        log = await SQLiteLog.open(path)
        await log.append(events(number, 1), source="shop", state=b"")
        if number % 2:
            await log.close()
        assert list((await waiting).events) == events(number, 1)
        await log.close()
        assert await reader.bounds(0) == Bounds(0, number + 1)
    await reader.close()


async def test_an_answer_is_asked_again_when_a_writer_appeared_meanwhile(path: Path) -> None:
    await (await SQLiteLog.open(path)).close()
    reader = await SQLiteLogReader.open(path)
    asked = 0

    def ask(connection: sqlite3.Connection) -> int:
        nonlocal asked
        asked += 1
        path.with_name(path.name + "-wal").touch()
        return asked

    assert await reader._run(ask) == 2
    await reader.close()


async def test_no_log_and_a_foreign_file_are_refused(path: Path) -> None:
    with pytest.raises(LogUnavailable, match="there is no log at") as missing:
        await SQLiteLogReader.open(path)
    assert "headrace run" in missing.value.advice
    assert names(path) == []
    connection = sqlite3.connect(path)
    connection.execute("create table customers (id integer)")
    connection.close()
    with pytest.raises(LogError, match="is no headrace log"):
        await SQLiteLogReader.open(path)


async def test_a_reader_never_holds_the_log_back(log: SQLiteLog, path: Path) -> None:
    await log.append(events(0, 1000, size=1000), source="shop", state=b"")
    reader = await SQLiteLogReader.open(path)
    reading = asyncio.create_task(reader.read(0, 1000, wait_s=DEADLINE_S))
    for start in range(1000, 1050):
        assert await log.append(events(start, 1), source="shop", state=b"") == (start + 1,)
    assert (await reading).first_offset == 1000
    await reader.close()


@pytest.fixture
def forker() -> Iterator[subprocess.Popen[str]]:
    with forked_writers() as process:
        yield process


async def test_a_reader_follows_another_process_and_goes_on_after_its_crash(
    path: Path, forker: subprocess.Popen[str]
) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    assert forker.stdin is not None and forker.stdout is not None
    forker.stdin.write(f"{path} {seed}\n")
    forker.stdin.flush()
    pid = int(forker.stdout.readline())
    end = time.monotonic() + DEADLINE_S
    while not path.with_name(path.name + ".acked").exists():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)  # a poll of another process's file, with a deadline
    reader = await SQLiteLogReader.open(path)
    offsets = [0] * PARTITIONS
    found: list[list[CustomerEvent]] = [[] for _ in range(PARTITIONS)]
    while min(offsets) < 2000:
        assert time.monotonic() < end, f"seed {seed}: {offsets}"
        for partition in range(PARTITIONS):
            read = await reader.read(partition, offsets[partition], wait_s=0.1)
            found[partition] += read.events
            offsets[partition] = read.next_offset
    os.kill(pid, signal.SIGKILL)
    assert forker.stdout.readline() == "gone\n"
    before = names(path)
    for partition in range(PARTITIONS):
        found[partition] += await read_all(reader, partition, offsets[partition])
    assert found == _appended(seed, await reader.source_state("shop")), f"seed {seed}"
    await reader.close()

    # The first one to come after a crash replays the WAL: the group that was just being written may be whole in it.
    late = await SQLiteLogReader.open(path)
    again = [await read_all(late, partition) for partition in range(PARTITIONS)]
    assert again == _appended(seed, await late.source_state("shop")), f"seed {seed}"
    assert all(now[: len(then)] == then for now, then in zip(again, found, strict=True)), f"seed {seed}"
    await late.close()
    assert names(path) == before


def _appended(seed: int, state: bytes | None) -> list[list[CustomerEvent]]:
    """What each partition holds once the batches that the state counts are stored."""
    lanes: list[list[CustomerEvent]] = [[] for _ in range(PARTITIONS)]
    for number in range(int(state or b"0")):
        for one in batch(seed, number):
            lanes[partition_of(one.key, PARTITIONS)].append(one)
    return lanes


async def test_a_copy_of_a_closed_log_is_readable_where_nobody_may_write(path: Path, tmp_path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append([event(0)], source="shop", state=b"")
    await log.close()
    folder = tmp_path / "copy"
    folder.mkdir()
    copy = folder / path.name
    shutil.copy(path, copy)
    copy.chmod(0o400)
    folder.chmod(0o500)
    reader = await SQLiteLogReader.open(copy)
    assert (await reader.read(0, 0)).events == (event(0),)
    await reader.close()
    folder.chmod(0o700)
    assert names(copy) == [""]
