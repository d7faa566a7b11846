"""After kill -9, and after the loss of an unsynced tail, a store's checkpoint tells exactly which rows are there."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash import store_writer
from crash.store_writer import CUSTOMERS, SOURCE_ROWS, VIEWS, model, open_store
from fix_servers import RedisServer
from headrace.features.store.base import OnlineStore

SEEDS = [1, 2]


@pytest.fixture
def lasting_redis() -> Iterator[RedisServer]:
    server = RedisServer(append_only=True)
    yield server
    server.remove()


def write_and_kill(place: str, flushes: int, *options: str) -> int:
    """Run the writer until it has told of that many flushes, kill it in the middle of a later one; the last it told of."""
    writer = subprocess.Popen(
        [sys.executable, store_writer.__file__, place, *options], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout as lines:
        for count, _ in enumerate(lines, 1):
            if count == flushes:
                break
        writer.kill()
        told = [int(line) for line in lines if line.endswith("\n")]
    writer.wait()
    assert writer.returncode == -9, "the writer failed by itself"
    return told[-1] if told else flushes


async def applied_flushes(store: OnlineStore, seed: int) -> int:
    """What the checkpoint says, after comparing everything in the store with what it must be then."""
    stored = [await store.checkpoint(view) for view in VIEWS]
    counts = {0 if checkpoint is None else checkpoint.offsets[0] for checkpoint in stored}
    assert len(counts) == 1, f"seed {seed}: the views of one flush stand at {counts}"
    (count,) = counts
    for view in VIEWS:
        rows, contributions = model(count, view)
        keys = [(key,) for key in range(CUSTOMERS)]
        found = await store.read(view, ["count", "page"], keys)
        assert {key: row.values for (key,), row in zip(keys, found, strict=True) if row is not None} == {
            key: (value, str(value)) for key, value in rows.items()
        }, f"seed {seed}, {count} flushes"
        states = await store.states(view, keys)
        assert [state is not None for state in states] == [key in rows for key in range(CUSTOMERS)], f"seed {seed}"
        assert sorted(await store.due(view, 1 << 40, 1000)) == sorted((value, (key,)) for key, value in rows.items())
        kept = await store.contributions(view, [b"%d" % row for row in range(SOURCE_ROWS)])
        assert {row: one.entity[0] for row, one in enumerate(kept) if one is not None} == contributions, f"seed {seed}"
        for key in range(CUSTOMERS):
            indexed = await store.contributions_of(view, (key,))
            assert sorted(indexed) == sorted(
                (b"%d" % row, b"blob") for row, owner in contributions.items() if owner == key
            )
    return count


async def check(place: str, seed: int) -> int:
    store = open_store(place)
    await store.open()
    try:
        return await applied_flushes(store, seed)
    finally:
        await store.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_killed_sqlite_feeder_leaves_what_its_checkpoint_says(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    place, told = str(tmp_path / "online.db"), 0
    for _ in range(2):
        last = write_and_kill(place, draw.randint(1, 60))
        told = max(told, last)
        assert await check(place, seed) >= told, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
async def test_sqlite_after_a_power_cut_stands_at_an_earlier_checkpoint_as_a_whole(tmp_path: Path, seed: int) -> None:
    """A file cut anywhere in its write-ahead log stands for the pages that the system had not written."""
    draw = random.Random(seed)
    place = str(tmp_path / "online.db")
    last = write_and_kill(place, draw.randint(20, 60))
    log = tmp_path / "online.db-wal"
    size = log.stat().st_size
    # The second half: cut into the frames that made the tables, there would be no store to look at.
    keep = draw.randint(size // 2, size - 1)
    with log.open("r+b") as file:
        file.truncate(keep)
    (tmp_path / "online.db-shm").unlink()
    assert 0 < await check(place, seed) <= last + 1, f"seed {seed}"
    write_and_kill(place, 5)
    await check(place, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [(), ("5",)], ids=["one script a flush", "many scripts a flush"])
async def test_killed_redis_feeder_and_server_leave_what_the_checkpoint_says(
    lasting_redis: RedisServer, seed: int, options: tuple[str, ...]
) -> None:
    draw = random.Random(seed)
    told = 0
    for _ in range(2):
        told = max(told, write_and_kill(lasting_redis.url, draw.randint(1, 60), *options))
        lasting_redis.kill()
        lasting_redis.start()
        assert await check(lasting_redis.url, seed) >= told, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
async def test_redis_without_its_newest_bytes_stands_at_an_earlier_checkpoint_as_a_whole(
    lasting_redis: RedisServer, seed: int
) -> None:
    """An append-only file cut anywhere stands for the second that everysec may lose."""
    draw = random.Random(seed)
    last = write_and_kill(lasting_redis.url, draw.randint(20, 60))
    lasting_redis.kill()
    (file,) = [path for path in lasting_redis.folder.rglob("*.aof") if "base" not in path.name]
    with file.open("r+b") as stream:
        stream.truncate(draw.randint(1000, file.stat().st_size - 1))
    lasting_redis.start()
    assert await check(lasting_redis.url, seed) <= last, f"seed {seed}"
    write_and_kill(lasting_redis.url, 5)
    await check(lasting_redis.url, seed)
