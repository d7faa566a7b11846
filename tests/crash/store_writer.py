"""A process to be killed: writes flush after flush into an online store, and says each one's number once it is durable.

Flush n is the same in every run, and so is what the store must hold after any number of them (see model): the checkpoint
alone tells every row. A second argument cuts the Redis flushes into pieces of that many arguments.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import msgspec

from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.store import redisscript
from headrace.features.store.base import Checkpoint, Contribution, EntityWrite, OnlineStore, ViewWrite
from headrace.features.store.redis import RedisStore, RedisStoreConfig
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig

CUSTOMER = Field("customer_id", ValueType.INT64)
VIEWS = tuple(
    ViewSpec(name, (CUSTOMER,), (Field("count", ValueType.INT64), Field("page", ValueType.STRING)), f"{name}-1")
    for name in ("clicks", "orders")
)
CUSTOMERS = 40
SOURCE_ROWS = 60


class Flush(msgspec.Struct):
    """rows: customer -> value or None (removed). contributions: source row -> customer or None."""

    rows: dict[int, int | None]
    contributions: dict[int, int | None]


def flush_number(n: int, view: ViewSpec) -> Flush:
    draw = random.Random(f"{n} {view.name}")
    rows = {draw.randrange(CUSTOMERS): None if draw.random() < 0.2 else n for _ in range(8)}
    contributions = {
        draw.randrange(SOURCE_ROWS): None if draw.random() < 0.2 else draw.randrange(CUSTOMERS) for _ in range(8)
    }
    return Flush(rows, contributions)


def model(flushes: int, view: ViewSpec) -> tuple[dict[int, int], dict[int, int]]:
    """(rows, contributions) after that many flushes."""
    rows: dict[int, int | None] = {}
    contributions: dict[int, int | None] = {}
    for n in range(flushes):
        one = flush_number(n, view)
        rows |= one.rows
        contributions |= one.contributions
    return (
        {key: value for key, value in rows.items() if value is not None},
        {key: value for key, value in contributions.items() if value is not None},
    )


def view_write(n: int, view: ViewSpec) -> ViewWrite:
    one = flush_number(n, view)
    entities = [
        EntityWrite((key,), None if value is None else (value, str(value)), value or 0, b"%d" % n, value)
        for key, value in one.rows.items()
    ]
    contributions = {
        b"%d" % row: None if customer is None else Contribution((customer,), b"blob")
        for row, customer in one.contributions.items()
    }
    return ViewWrite(view, entities, contributions, Checkpoint(view.spec_hash, "g", (n + 1,), n))


def open_store(place: str) -> OnlineStore:
    """place: a redis:// URL or a SQLite file."""
    if place.startswith("redis:"):
        return RedisStore.from_config(RedisStoreConfig(place), project="shop", folder=Path())
    return SQLiteStore.from_config(SQLiteStoreConfig(place), project="shop", folder=Path())


async def main(place: str) -> None:
    store = open_store(place)
    await store.open()
    checkpoint = await store.checkpoint(VIEWS[0])
    n = 0 if checkpoint is None else checkpoint.offsets[0]
    while True:
        await store.write([view_write(n, view) for view in VIEWS])
        n += 1
        sys.stdout.write(f"{n}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        redisscript.MAX_ARGS = int(sys.argv[2])
    asyncio.run(main(sys.argv[1]))
