"""What only the embedded log promises: its file, its lock, its faults."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from contract.log_contract import event, events, letter, read_all, seen_ids
from headrace.cdc.config import Config, Duration, Size
from headrace.cdc.errors import ConfigError, Fenced, LogError, LogLocked, LogUnavailable, Trimmed
from headrace.cdc.log import sqlite, sqlite_checkpoint, sqlite_ids, sqlite_known, sqlite_trim, sqlite_writer
from headrace.cdc.log.base import Bounds, Cursor
from headrace.cdc.log.codec import BLOB_BYTES
from headrace.cdc.log.memory import MemoryLogConfig
from headrace.cdc.log.sqlite import SQLiteLog, SQLiteLogConfig
from headrace.cdc.log.sqlite_reader import SQLiteLogReader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "headrace.log.db"


@pytest.fixture
async def log(path: Path) -> AsyncIterator[SQLiteLog]:
    opened = await SQLiteLog.open(path)
    yield opened
    await opened.close()


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """Ask the file itself, as a person with the sqlite3 shell would."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def change(path: Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement, values)


async def test_a_reopened_log_has_everything_and_goes_on(path: Path) -> None:
    log = await SQLiteLog.open(path, partitions=2)
    await log.append([event(number, key=str(number)) for number in range(100)], source="shop", state=b"100")
    await log.commit("g", 1, 7, state=b"s")
    await log.trim(1, 7)
    lanes = [await read_all(log, 0), await read_all(log, 1)]
    bounds = [await log.bounds(0), await log.bounds(1)]
    first = log
    await log.close()
    log = await SQLiteLog.open(path, partitions=2)
    assert (log.generation, log.epoch) == (first.generation, first.epoch + 1)
    assert [await read_all(log, 0), await read_all(log, 1)] == lanes
    assert [await log.bounds(0), await log.bounds(1)] == bounds
    assert await log.source_state("shop") == b"100"
    assert await log.committed("g", 1) == Cursor(7, b"s")
    with pytest.raises(ValueError, match="can't go back"):
        await log.commit("g", 1, 6)
    ends = await log.append([event(100, key="1")], source="shop", state=b"101")
    assert sum(ends) == 101
    await log.close()


async def test_offsets_go_on_after_everything_was_trimmed_and_the_log_reopened(path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append(events(0, 5), source="shop", state=b"")
    await log.trim(0, 5)
    await log.close()
    log = await SQLiteLog.open(path)
    assert await log.bounds(0) == Bounds(5, 5)
    assert await log.append(events(5, 1), source="shop", state=b"") == (6,)
    with pytest.raises(Trimmed):
        await log.read(0, 4)
    await log.close()


async def test_a_commit_waits_for_the_disk(log: SQLiteLog) -> None:
    connection = log._writer._connection
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    assert connection.execute("pragma synchronous").fetchone() == (2,), "FULL: the WAL is synced at every commit"


async def test_a_clean_end_leaves_one_file_beside_the_lock(path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append(events(0, 5), source="shop", state=b"")
    await log.source_state("shop")
    await log.close()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.name + ".lock"]


async def test_every_file_is_the_owners_alone_whatever_the_umask(path: Path) -> None:
    former = os.umask(0)
    try:
        log = await SQLiteLog.open(path)
        await log.append(events(0, 1), source="shop", state=b"")
        modes = {file.name.removeprefix(path.name): stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await log.close()
    finally:
        os.umask(former)
    assert modes == {"": 0o600, "-wal": 0o600, "-shm": 0o600, ".lock": 0o600}


async def test_appends_that_gather_share_one_transaction_and_one_batch(log: SQLiteLog, path: Path) -> None:
    await asyncio.gather(*(log.append(events(n, 1), source="shop", state=b"%d" % n) for n in range(50)))
    # The first may have been on its way alone before the others were queued.
    assert log.stats().groups_total <= 3
    assert len(rows(path, "select * from batches")) <= 3
    assert rows(path, "select partition, first_offset from batches order by 2 limit 1") == [(0, 0)]


async def test_a_large_append_is_cut_into_bounded_batches_of_one_transaction(log: SQLiteLog, path: Path) -> None:
    stored = [*events(0, 2000, size=1500), event(2000, size=3 << 20), *events(2001, 10)]
    await log.append(stored, source="shop", state=b"")
    assert log.stats().groups_total == 1
    sizes = [size for (size,) in rows(path, "select bytes from batches order by end_offset")]
    assert sum(isinstance(size, int) and size > BLOB_BYTES + 8 for size in sizes) == 1, sizes
    assert len(sizes) >= 4
    assert await read_all(log) == stored


_OPEN_AND_PRINT = """
import asyncio, pathlib, sys
from headrace.cdc.errors import LogLocked
from headrace.cdc.log.sqlite import SQLiteLog
try:
    asyncio.run(SQLiteLog.open(pathlib.Path(sys.argv[1])))
except LogLocked as error:
    print(error.message)
"""


async def test_a_second_writer_is_refused_with_the_first_ones_pid(log: SQLiteLog, path: Path) -> None:
    with pytest.raises(LogLocked, match=f"pid {os.getpid()}") as locked:
        await SQLiteLog.open(path)
    assert str(path) in locked.value.message
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _OPEN_AND_PRINT, str(path), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await other.communicate()
    assert other.returncode == 0
    assert f"pid {os.getpid()}" in said.decode()
    assert await log.append(events(0, 1), source="shop", state=b"") == (1,)


async def test_the_lock_is_free_after_a_close_and_after_a_failed_open(path: Path) -> None:
    await (await SQLiteLog.open(path)).close()
    with pytest.raises(ConfigError):
        await SQLiteLog.open(path, partitions=3)
    await (await SQLiteLog.open(path)).close()


async def test_a_log_on_a_file_system_without_locks_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(LogUnavailable, match="can't be locked") as refused:
        await SQLiteLog.open(path)
    assert "local file system" in refused.value.advice


async def test_a_writer_that_was_taken_over_stays_fenced(log: SQLiteLog, path: Path) -> None:
    await log.append(events(0, 1), source="shop", state=b"1")
    change(path, "update meta set value = value + 1 where key = 'epoch'")
    for _ in range(2):
        with pytest.raises(Fenced, match="its epoch is 2, ours 1"):
            await log.append(events(1, 1), source="shop", state=b"2")
    with pytest.raises(Fenced):
        await log.commit("g", 0, 1)
    assert rows(path, "select state from source") == [(b"1",)]


async def test_another_number_of_partitions_is_a_config_error_that_names_both(path: Path) -> None:
    await (await SQLiteLog.open(path, partitions=4)).close()
    with pytest.raises(ConfigError, match="created with 4 partitions, and log.partitions is 2"):
        await SQLiteLog.open(path, partitions=2)


async def test_a_missing_folder_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match="there is no folder") as missing:
        await SQLiteLog.open(tmp_path / "logs" / "headrace.log.db")
    assert "mkdir" in missing.value.advice
    assert list(tmp_path.iterdir()) == []


async def test_a_path_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogUnavailable, match="is a folder"):
        await SQLiteLog.open(tmp_path)
    with pytest.raises(LogUnavailable, match="is a folder"):
        await SQLiteLog.open_reader(SQLiteLogConfig(path=str(tmp_path)), _config(tmp_path))


@contextlib.contextmanager
def _without_privilege() -> Iterator[None]:
    """As a user to whom rights apply: the superuser of a container may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Path]:
    """A folder that may be entered and not written."""
    folder = tmp_path / "forbidden"
    folder.mkdir()
    folder.chmod(0o555)
    entered = [parent for parent in (tmp_path, *tmp_path.parents) if parent.stat().st_uid == os.getuid()]
    modes = [parent.stat().st_mode for parent in entered]
    for parent in entered:
        parent.chmod(parent.stat().st_mode | 0o055)
    yield folder
    for parent, mode in zip(entered, modes, strict=True):
        parent.chmod(mode)
    folder.chmod(0o755)


async def test_a_folder_without_rights_is_an_error_that_names_it(forbidden: Path) -> None:
    with _without_privilege(), pytest.raises(LogUnavailable, match="Permission denied") as refused:
        await SQLiteLog.open(forbidden / "headrace.log.db")
    assert str(forbidden) in refused.value.advice


async def test_a_file_without_rights_is_an_error(forbidden: Path) -> None:
    path = forbidden.parent / "headrace.log.db"
    await (await SQLiteLog.open(path)).close()
    path.chmod(0o400)
    path.with_name(path.name + ".lock").chmod(0o666)
    with _without_privilege(), pytest.raises(LogUnavailable, match="this user has no right to"):
        await SQLiteLog.open(path)


@pytest.mark.parametrize("content", [b"offset,name\n1,orders\n" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_log_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LogError, match=r"is no headrace log|is damaged"):
        await SQLiteLog.open(path)
    with pytest.raises(LogError, match=r"is no headrace log|is damaged"):
        await SQLiteLog.open_reader(SQLiteLogConfig(path=str(path)), _config(path.parent))
    assert path.read_bytes() == content


async def test_somebody_elses_database_is_refused(path: Path) -> None:
    change(path, "create table customers (id integer)")
    before = path.read_bytes()
    with pytest.raises(LogError, match="is no headrace log"):
        await SQLiteLog.open(path)
    assert path.read_bytes() == before


_TO_FORMAT_2 = (
    "drop table letter",
    "drop table seen_run",
    "drop table seen",
    "update meta set value = 2 where key = 'format'",
)
_TO_FORMAT_1 = (
    *_TO_FORMAT_2,
    "drop view batches",
    "drop table staged",
    "drop table staging",
    "create view batches as select id >> 48 as partition from batch",
    "update meta set value = 1 where key = 'format'",
)


@pytest.mark.parametrize("statements", [_TO_FORMAT_1, _TO_FORMAT_2], ids=["1", "2"])
async def test_a_log_of_a_former_format_is_read_and_written_on(path: Path, statements: tuple[str, ...]) -> None:
    log = await SQLiteLog.open(path)
    await log.append(events(0, 5), source="shop", state=b"a")
    await log.close()
    for statement in statements:
        change(path, statement)
    reader = await SQLiteLogReader.open(path)
    assert await read_all(reader) == events(0, 5)
    assert await reader.letters() == []
    await reader.close()
    log = await SQLiteLog.open(path)
    await log.stage(events(5, 5), source="shop")
    ids = seen_ids(0, 3)
    await log.append(events(10, 1), source="shop", state=b"b", ids=ids, letters=[letter(1)])
    assert await read_all(log) == events(0, 11)
    assert await log.seen(list(ids.bodies)) == ids.bodies
    assert [stored.letter for stored in await log.letters()] == [letter(1)]
    await log.close()
    assert rows(path, "select value from meta where key = 'format'") == [(3,)]
    assert [row[0] for row in rows(path, "select end_offset from batches order by 1")] == [5, 10, 11]
    assert all(row[0] > 100 for row in rows(path, "select bytes from batches"))


@pytest.fixture
def few_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids move into the tree from 1,000 on, in steps of 100."""
    monkeypatch.setattr(sqlite_known, "MERGE_IDS", 1000)
    monkeypatch.setattr(sqlite_ids, "_STEP_IDS", 100)
    monkeypatch.setattr(sqlite_known, "SLICE_IDS", 100)


@pytest.mark.usefixtures("few_recent")
async def test_ids_stay_known_while_and_after_they_move_into_the_tree_and_over_a_restart(path: Path) -> None:
    log = await SQLiteLog.open(path)
    everything: dict[bytes, bytes] = {}
    for number in range(45):
        ids = seen_ids(number * 100, 100)
        everything |= ids.bodies
        await log.append([], source="web", state=b"", ids=ids)
        assert await log.seen(list(everything)) == everything
    assert await log.seen(list(seen_ids(10_000, 50).bodies)) == {}
    await log.close()
    in_tree = rows(path, "select count(*) from seen")[0][0]
    assert isinstance(in_tree, int) and in_tree >= 1000, "some have moved"
    log = await SQLiteLog.open(path)
    assert await log.seen(list(everything)) == everything, "before the filter is whole"
    assert log._known._upkeep is not None
    await log._known._upkeep
    assert log._known._filter is not None
    assert await log.seen(list(everything)) == everything
    assert await log.seen(list(seen_ids(10_000, 50).bodies)) == {}
    await log.close()


@pytest.mark.usefixtures("few_recent")
async def test_ids_are_forgotten_after_a_week_and_not_before(path: Path) -> None:
    day_us = 86_400_000_000
    log = await SQLiteLog.open(path)
    old, middle, fresh = seen_ids(0, 1500, day=20_000), seen_ids(5000, 1200, day=20_004), seen_ids(9000, 10, day=20_008)
    await log.append([], source="web", state=b"", ids=old)
    await log.append([], source="web", state=b"", ids=middle)
    await log.append([], source="web", state=b"", ids=fresh)
    await log.retain(20_007 * day_us)
    assert await log.seen(list(old.bodies)) == old.bodies
    await log.retain(20_008 * day_us)
    assert await log.seen(list(old.bodies)) == {}
    assert await log.seen([*middle.bodies, *fresh.bodies]) == middle.bodies | fresh.bodies
    await log.close()
    log = await SQLiteLog.open(path)
    await log.retain(20_030 * day_us)
    assert await log.seen([*old.bodies, *middle.bodies, *fresh.bodies]) == {}
    await log.close()
    assert rows(path, "select (select count(*) from seen) + (select count(*) from seen_run)") == [(0,)]


async def test_dead_letters_outlive_a_restart_and_keep_their_numbers(path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append([], source="web", state=b"", letters=[letter(0), letter(1)])
    await log.drop_letters([2])
    assert log.stats().dead_letters == 1
    await log.close()
    log = await SQLiteLog.open(path)
    assert log.stats().dead_letters == 1
    await log.append([], source="web", state=b"", letters=[letter(2)])
    assert [stored.id for stored in await log.letters()] == [1, 3]
    reader = await SQLiteLogReader.open(path)
    assert await reader.letters() == await log.letters()
    await reader.close()
    await log.close()


async def test_a_reader_beside_sees_staged_events_once_they_are_published(path: Path, log: SQLiteLog) -> None:
    reader = await SQLiteLogReader.open(path)
    await log.append(events(0, 1), source="shop", state=b"a")
    await log.stage(events(1, 3000), source="shop")
    assert await read_all(reader) == events(0, 1)
    await log.append([], source="shop", state=b"b")
    assert await read_all(reader) == events(0, 3001)
    await reader.close()


async def test_what_was_left_staged_is_removed_beside_the_next_opens_appends(path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append(events(0, 1), source="shop", state=b"a")
    for number in range(40):
        await log.stage(events(number * 100, 100, size=2000), source="shop")
    await log.close()
    assert rows(path, "select count(*) from staged") == [(40,)]
    log = await SQLiteLog.open(path)
    await log.stage(events(7000, 10), source="shop")
    await log.append(events(7010, 1), source="shop", state=b"b")
    assert await read_all(log) == [*events(0, 1), *events(7000, 11)]
    async with asyncio.timeout(10):
        while rows(path, "select count(*) from staged") != [(1,)]:
            await asyncio.sleep(0)
    await log.unstage("shop")
    await log.close()
    assert rows(path, "select count(*) from staging") == [(0,)]


async def test_a_batch_whose_staged_events_are_missing_is_named(path: Path, log: SQLiteLog) -> None:
    await log.stage(events(0, 10), source="shop")
    await log.append(events(10, 1), source="shop", state=b"b")
    await log.close()
    change(path, "delete from staged")
    reader = await SQLiteLogReader.open(path)
    with pytest.raises(LogError, match="damaged at partition 0, offset 0: the batch's events are missing"):
        await reader.read(0, 0)
    assert (await reader.read(0, 10)).events == tuple(events(10, 1))
    await reader.close()


async def test_a_newer_format_is_refused_by_name(path: Path) -> None:
    await (await SQLiteLog.open(path)).close()
    change(path, "update meta set value = 4 where key = 'format'")
    with pytest.raises(LogError, match="its format is 4, and this one knows up to 3"):
        await SQLiteLog.open(path)


async def test_an_empty_file_becomes_a_log(path: Path) -> None:
    path.touch()
    log = await SQLiteLog.open(path)
    assert await log.append(events(0, 1), source="shop", state=b"") == (1,)
    await log.close()


async def test_a_full_disk_stores_nothing_and_the_engine_stays_failed(log: SQLiteLog, path: Path) -> None:
    await log.append(events(0, 10), source="shop", state=b"before")
    # SQLite's own bound on the file reports what a full disk does.
    (pages,) = log._writer._connection.execute("pragma page_count").fetchone()
    log._writer._connection.execute(f"pragma max_page_count = {pages + 4}")
    with pytest.raises(LogUnavailable, match="the disk is full") as full:
        await log.append(events(10, 1000, size=1000), source="shop", state=b"after")
    assert "make room" in full.value.advice and str(path.parent) in full.value.paragraph()
    with pytest.raises(LogUnavailable, match="the disk is full"):
        await log.append(events(10, 1), source="shop", state=b"small")
    with pytest.raises(LogUnavailable):
        await log.commit("g", 0, 10)
    assert await read_all(log) == events(0, 10)
    assert await log.source_state("shop") == b"before"
    await log.close()
    log = await SQLiteLog.open(path)
    assert await log.append(events(10, 1), source="shop", state=b"after") == (11,)
    await log.close()


async def test_a_refused_write_fails_the_appends_of_its_group_and_every_later_one(path: Path) -> None:
    log = await SQLiteLog.open(path)
    await log.append(events(0, 10), source="shop", state=b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        outcomes = await asyncio.gather(
            *(log.append(events(10 * n, 10, size=50_000), source="shop", state=b"after") for n in range(1, 9)),
            return_exceptions=True,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    failed = [isinstance(outcome, LogUnavailable) for outcome in outcomes]
    assert any(failed) and failed == sorted(failed), outcomes
    assert any("file size limit" in outcome.advice for outcome in outcomes if isinstance(outcome, LogUnavailable))
    with pytest.raises(LogUnavailable):
        await log.append(events(100, 1), source="shop", state=b"later")
    stored = 1 + failed.count(False)
    assert [one.id for one in await read_all(log)] == [f"e{number}" for number in range(10 * stored)]
    await log.close()
    log = await SQLiteLog.open(path)
    assert (await log.bounds(0)).end == 10 * stored
    await log.close()


async def test_a_defect_in_the_writer_reaches_whoever_waits(log: SQLiteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pieces: object) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(sqlite_writer, "frame", broken)
    with pytest.raises(LogError, match="failed: ZeroDivisionError"):
        await log.append(events(0, 1), source="shop", state=b"")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (
            "update batch set events = cast('\x93' || 'no such thing' as blob) where id = 20",
            "the checksum of the batch is wrong",
        ),
        ("update batch set crc = 3808858755, events = cast('123456789' as blob) where id = 20", "checksum|decoded"),
        ("update batch set crc = 3421780262, events = cast('123456789' as blob) where id = 20", "can't be decoded"),
        ("delete from batch where id = 20", "missing"),
        ("update batch set id = 19 where id = 20", "another number of events"),
    ],
)
async def test_a_damaged_batch_is_named_by_partition_and_offset(path: Path, statement: str, reason: str) -> None:
    log = await SQLiteLog.open(path)
    for start in (0, 10, 20):
        await log.append(events(start, 10), source="shop", state=b"")
    await log.close()
    change(path, statement)
    log = await SQLiteLog.open(path)
    assert list((await log.read(0, 0, max_bytes=700)).events)[:5] == events(0, 5)
    with pytest.raises(LogError, match=f"is damaged at partition 0, offset 1[0-9]: .*({reason})") as damaged:
        await read_all(log)
    assert not isinstance(damaged.value, Trimmed)
    await log.close()


async def test_the_wal_starts_over_under_a_load_that_never_rests(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_checkpoint, "_PASS_BYTES", 1 << 20)
    monkeypatch.setattr(sqlite_checkpoint, "_REST_BYTES", 1 << 18)
    monkeypatch.setattr(sqlite_checkpoint, "_MOST_BYTES", 8 << 20)
    log = await SQLiteLog.open(path)
    fresh = events(0, 100, size=1000)
    under_way: list[asyncio.Task[tuple[int, ...]]] = []
    for _ in range(400):
        under_way.append(asyncio.create_task(log.append(fresh, source="shop", state=b"")))
        if len(under_way) == 8:
            await under_way.pop(0)
    await asyncio.gather(*under_way)
    assert log.stats().checkpoints_total > 3
    assert path.stat().st_size > 20 << 20, "most of 40 MB was moved into the file"
    assert path.with_name(path.name + "-wal").stat().st_size < 24 << 20, "and the WAL is used over and over"
    await log.close()


async def test_trimmed_space_is_used_again(path: Path) -> None:
    log = await SQLiteLog.open(path, max_bytes=4 << 20)
    fresh = events(0, 500, size=1000)
    for _ in range(40):
        await log.append(fresh, source="shop", state=b"")
        await log.retain(0)
    await log.close()
    assert path.stat().st_size < 8 << 20, "20 MB went through"
    log = await SQLiteLog.open(path)
    bounds = await log.bounds(0)
    assert bounds.end == 20_000 and bounds.end - bounds.first >= 2000
    await log.close()


async def test_a_long_trim_works_in_steps_between_which_appends_go_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_trim, "_STEP_BATCHES", 2)
    log = await SQLiteLog.open(path)
    for start in range(20):
        await log.append(events(start, 1), source="shop", state=b"")
    before = log.stats().groups_total
    trim = asyncio.create_task(log.trim(0, 20))
    append = asyncio.create_task(log.append(events(20, 1), source="shop", state=b""))
    await append
    assert not trim.done()
    assert await trim == 20
    assert log.stats().groups_total - before >= 10
    assert log.stats().batches_dropped_total == 20
    await log.close()


async def test_the_stats_count_what_was_done(log: SQLiteLog) -> None:
    took: list[float] = []
    log.on_commit = took.append
    await log.append(events(0, 5), source="shop", state=b"")
    await log.append([], source="shop", state=b"x")
    stats = log.stats()
    assert (stats.ends, stats.appends_total, stats.events_total, stats.batches_total, stats.groups_total) == (
        (5,),
        2,
        5,
        1,
        2,
    )
    assert stats.commit_s_total == pytest.approx(sum(took)) and stats.last_commit_s == took[-1] > 0
    assert stats.disk_bytes > 8192


async def test_a_read_of_what_was_just_appended_gets_the_same_objects(log: SQLiteLog) -> None:
    stored = events(0, 3)
    await log.append(stored, source="shop", state=b"")
    batch = await log.read(0, 1)
    assert batch.events[0] is stored[1]


async def test_the_tail_in_memory_is_bounded_and_the_file_has_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_TAIL_BYTES", 50_000)
    log = await SQLiteLog.open(path)
    stored = events(0, 300, size=1000)
    for start in range(0, 300, 10):
        await log.append(stored[start : start + 10], source="shop", state=b"")
    assert (await log.read(0, 299)).events[0] is stored[299]
    old = await log.read(0, 0, max_bytes=100)
    assert old.events[0] == stored[0] and old.events[0] is not stored[0]
    assert await read_all(log) == stored
    await log.close()


class _Folder:
    """Stands for a Config: an engine asks it for paths only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, text: str) -> Path:
        return (self.folder / text).resolve()


def _config(folder: Path) -> Config:
    return cast("Config", _Folder(folder))


async def test_from_config_takes_path_partitions_retention_and_size(tmp_path: Path) -> None:
    section = SQLiteLogConfig(path="shop.log.db", partitions=3, retention=Duration(1_000_000), max_size=Size(1 << 20))
    log = await SQLiteLog.from_config(section, _config(tmp_path))
    assert (log.path, log.partitions) == (tmp_path / "shop.log.db", 3)
    await log.append([event(0, committed_us=1)], source="shop", state=b"")
    await log.retain(1_000_000)
    assert (await log.bounds(0)).first == 0
    await log.retain(1_000_002)
    assert (await log.bounds(0)).first == 1
    await log.close()


def test_the_default_keeps_a_week() -> None:
    section = SQLiteLogConfig()
    assert section.retention is not None and section.retention.s == 7 * 86400
    assert (section.path, section.partitions, section.max_size) == ("headrace.log.db", 1, None)


def test_the_sections_of_the_engines_have_a_json_schema() -> None:
    schemas, parts = msgspec.json.schema_components(
        [SQLiteLogConfig, MemoryLogConfig], schema_hook=lambda kind: {"type": "string"}
    )
    assert len(schemas) == 2
    assert set(parts["SQLiteLogConfig"]["properties"]) == {"path", "retention", "max_size", "partitions"}
    assert all("description" in part for part in parts["SQLiteLogConfig"]["properties"].values())
