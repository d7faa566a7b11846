"""What the feature tests share: row events as the normaliser makes them, a table that makes them, a log, a definitions file."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.event import CustomerEvent, Op, RowPart
from headrace.cdc.log.base import LogBatch
from headrace.cdc.log.memory import MemoryLog
from headrace.features.spec import EntityKey, ViewSpec
from headrace.features.store.base import OnlineStore

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US

_numbers = itertools.count(1)


def text_of(time_us: int) -> str:
    """A timestamptz as Postgres prints it in UTC."""
    seconds, micros = divmod(time_us, SECOND_US)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{micros:06d}+00"


def row_event(
    op: Op,
    *,
    committed_us: int,
    after: dict[str, Any] | None = None,
    key: dict[str, Any] | None = None,
    before: dict[str, Any] | None = None,
    unchanged: tuple[str, ...] = (),
    undecodable: tuple[str, ...] = (),
    table: str = "public.orders",
    source: str = "shop",
    identity: str | None = None,
) -> CustomerEvent:
    """One row event; ``key`` defaults to the ``id`` of the image."""
    schema, _, name = table.partition(".")
    image = after if after is not None else before
    if key is None and image is not None and "id" in image:
        key = {"id": image["id"]}
    encode = msgspec.json.encode
    row = RowPart(
        schema,
        name,
        op,
        None if key is None else encode(key),
        None if before is None else encode(before),
        unchanged,
        1,
        0,
        True,
        1,
        undecodable,
    )
    number = identity or str(next(_numbers))
    properties = encode(after if after is not None else {})
    return CustomerEvent(
        f"{source}-{number}",
        "track",
        f"{name} {op}",
        None,
        committed_us,
        committed_us,
        committed_us,
        source,
        number,
        properties,
        row,
    )


def heartbeat(committed_us: int, source: str = "shop") -> CustomerEvent:
    """The event that only moves log time."""
    return CustomerEvent(
        f"{source}-hb-{committed_us}",
        "heartbeat",
        "heartbeat",
        None,
        committed_us,
        committed_us,
        committed_us,
        source,
        "0",
        b"{}",
    )


class SlicedLog(MemoryLog):
    """A log in memory whose reads give at most ``most`` events."""

    most = 4096

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        batch = await super().read(partition, offset, max_bytes=max_bytes, wait_s=wait_s)
        return LogBatch(partition, offset, batch.events[: self.most])

    async def add(self, *events: CustomerEvent) -> None:
        """Append events of the source ``shop``."""
        await self.append(events, source="shop", state=b"")


class OrdersTable:
    """A table ``public.orders(id, customer_id, total, amount, status, note, created_at)`` that tells its changes as events.

    rows: the live table. changed: offset of each row's last change. Only a key is sent as the old image, and an unchanged ``note``
    isn't sent, as under the default replica identity.
    """

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.changed: dict[int, int] = {}
        self.events: list[CustomerEvent] = []

    def insert(self, row: dict[str, Any], now_us: int, op: Op = "insert") -> CustomerEvent:
        self._set(row)
        return self._told(row_event(op, committed_us=now_us, after=row))

    def update(self, key: int, new: dict[str, Any], now_us: int) -> CustomerEvent:
        old = self.rows.pop(key)
        self.changed.pop(key)
        row = {**old, **new}
        self._set(row)
        # PostgreSQL sends short values always; a long one that didn't change stays out of line and isn't sent.
        unchanged = () if "note" in new or len(row["note"] or "") <= 20 else ("note",)
        sent = {column: value for column, value in row.items() if column not in unchanged}
        before = {"id": key} if row["id"] != key else None
        return self._told(row_event("update", committed_us=now_us, after=sent, before=before, unchanged=unchanged))

    def delete(self, key: int, now_us: int) -> CustomerEvent:
        del self.rows[key]
        del self.changed[key]
        return self._told(row_event("delete", committed_us=now_us, before={"id": key}))

    def truncate(self, now_us: int) -> CustomerEvent:
        self.rows.clear()
        self.changed.clear()
        return self._told(row_event("truncate", committed_us=now_us))

    def heartbeat(self, now_us: int) -> CustomerEvent:
        return self._told(heartbeat(now_us))

    def _set(self, row: dict[str, Any]) -> None:
        self.rows[row["id"]] = row
        self.changed[row["id"]] = len(self.events)

    def _told(self, event: CustomerEvent) -> CustomerEvent:
        self.events.append(event)
        return event


async def until(condition: Callable[[], bool], *, deadline_s: float = 20.0) -> None:
    """Let the loop work until the condition holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition didn't come true in time"
        await asyncio.sleep(0.0005)


async def dump(store: OnlineStore, view: ViewSpec) -> dict[EntityKey, tuple[Any, ...]]:
    """All that a store keeps of a view's entities: features, time, state, due time, contributions."""
    names = [field.name for field in view.fields]
    keys = await store.keys(view)
    rows = await store.read(view, names, keys)
    states = await store.states(view, keys)
    due = {key: due_us for due_us, key in await store.due(view, 1 << 62, 1_000_000)}
    found: dict[EntityKey, tuple[Any, ...]] = {}
    for key, row, state in zip(keys, rows, states, strict=True):
        assert row is not None
        contributions = sorted(await store.contributions_of(view, key))
        found[key] = (row.values, row.event_time_us, state, due.get(key), contributions)
    return found


def random_life(seed: int, steps: int) -> OrdersTable:
    """A table after a random life, with all its events; time ends still, so that nothing is left to come but decay."""
    chance = random.Random(seed)
    table = OrdersTable()
    now_us = START_US
    for _ in range(steps):
        now_us = random_step(chance, table, now_us)
    return table


STATUSES = ("paid", "open", "cancelled")


def random_row(chance: random.Random, key: int, now_us: int) -> dict[str, Any]:
    age_us = chance.choice(
        (0, 30 * SECOND_US, MINUTE_US, 50 * MINUTE_US, HOUR_US, 3 * HOUR_US, -20 * SECOND_US, -10 * MINUTE_US)
    )
    return {
        "id": key,
        "customer_id": chance.choice((1, 2, 3, 4, None)) if chance.random() < 0.1 else chance.randint(1, 4),
        "total": chance.choice((None, 0.1, -0.1, 1e300, -1e300, 5e-324, chance.uniform(-1e6, 1e6))),
        "amount": chance.choice(
            (None, "0.10", "19.99", "-7", "12345678901234567890.123456789", f"{chance.randint(-999, 999)}.5")
        ),
        "status": chance.choice(STATUSES),
        "note": chance.choice((None, "a", "b", "long " * 50)),
        "created_at": text_of(
            now_us - chance.randint(0, age_us) if age_us >= 0 else now_us + chance.randint(0, -age_us)
        ),
    }


def random_step(chance: random.Random, table: OrdersTable, now_us: int) -> int:
    """Change the table somehow; the new time."""
    now_us += chance.choice((0, 1, SECOND_US // 3, SECOND_US, 7 * SECOND_US, MINUTE_US, 20 * MINUTE_US, 90 * MINUTE_US))
    free = next(key for key in range(1, 10_000) if key not in table.rows)
    keys = sorted(table.rows)
    what = chance.random()
    if what < 0.30 or not keys:
        table.insert(random_row(chance, free, now_us), now_us, "insert" if chance.random() < 0.8 else "read")
    elif what < 0.70:
        key = chance.choice(keys)
        new = random_row(chance, key, now_us)
        columns = chance.sample(
            ["customer_id", "total", "amount", "status", "note", "created_at"], chance.randint(1, 3)
        )
        changes = {column: new[column] for column in columns}
        if table.rows[key]["customer_id"] is None:
            changes["note"] = new["note"]  # nothing is kept of a row without an entity: see test_kernel.py
        if chance.random() < 0.15:
            changes["id"] = free
        table.update(key, changes, now_us)
    elif what < 0.85:
        table.delete(chance.choice(keys), now_us)
    elif what < 0.87:
        table.insert(random_row(chance, chance.choice(keys), now_us), now_us, "read")
    elif what < 0.88:
        table.truncate(now_us)
    else:
        table.heartbeat(now_us)
    return now_us


DEFINITIONS = """
from headrace.features import Entity, FeatureView, Float64, Int64, String, Table, col, count, latest, sum_

customer = Entity("customer", join_keys={"customer_id": Int64})

customer_orders = FeatureView(
    "customer_orders",
    entity=customer,
    source=Table("public.orders"),
    event_time="created_at",
    where=col("status") != "cancelled",
    ttl="90d",
    features=[
        count(over=["1m", "1h"], name="orders"),
        sum_("total", over=["1m", "1h"]),
        sum_("amount", over="1h", hop="5m"),
        sum_("total", name="total_ever"),
        count(name="orders_ever"),
        latest("status", String),
        latest("note", String),
    ],
)
"""


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    """A file with one view of many kinds of features over OrdersTable."""
    path = tmp_path / "shop_features.py"
    path.write_text(DEFINITIONS)
    return path
