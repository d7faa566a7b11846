"""A process to be killed: the feature engine over a fixed log, a SQLite store and a feature log, one line before and after each write of the store.

Triggers in the store's own file note every row it takes, in the same transaction: what the feature log must hold, exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from features.test_engine import jumping_clock, run_to_the_end
from fix_features import START_US, SlicedLog, random_life
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.offline.logged import LoggedStore
from headrace.features.store.base import ViewWrite
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig

STEPS = 400
WITNESS = """
create table if not exists witness (n integer primary key, entity_key blob, event_time_us integer, state blob);
create trigger if not exists w_insert after insert on _hr_state begin
  insert into witness (entity_key, event_time_us, state) values (new.entity_key, new.event_time_us, new.state); end;
create trigger if not exists w_update after update on _hr_state begin
  insert into witness (entity_key, event_time_us, state) values (new.entity_key, new.event_time_us, new.state); end;
create trigger if not exists w_delete after delete on _hr_state begin
  insert into witness (entity_key) values (old.entity_key); end;
"""


class ToldStore(SQLiteStore):
    async def write(self, writes: Sequence[ViewWrite]) -> None:
        sys.stdout.write("before\n")
        sys.stdout.flush()
        await super().write(writes)
        sys.stdout.write("after\n")
        sys.stdout.flush()


def store_of(folder: Path) -> ToldStore:
    return ToldStore.from_config(SQLiteStoreConfig("online.db"), project="shop", folder=folder)


async def main(folder: Path, seed: int) -> None:
    views = load_definitions(folder / "shop_features.py")
    table = random_life(seed, STEPS)
    log = SlicedLog()
    log._content.generation = "always"
    log.most = 5
    await log.add(*table.events)
    first = store_of(folder)
    await first.open()
    await first.close()
    with contextlib.closing(sqlite3.connect(folder / "online.db")) as connection:
        connection.executescript(WITNESS)
    engine = FeatureEngine(
        views,
        lambda: LoggedStore(store_of(folder), folder / "log", roll_every_s=0.02, roll_bytes=4000),
        log,
        CollectorRegistry(),
        monotonic=jumping_clock(),
        clock=lambda: START_US / 1e6,
    )
    await run_to_the_end(engine, len(table.events))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
