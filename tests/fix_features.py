"""What the feature tests share: row events as the normaliser makes them, a table that makes them, a log, a definitions file."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.errors import Trimmed
from headrace.cdc.event import CustomerEvent, Op, RowPart
from headrace.cdc.log.base import Bounds, Cursor, LogBatch

START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US

_numbers = itertools.count(1)


def text_of(time_us: int) -> str:
    """A timestamptz as Postgres prints it in UTC."""
    seconds, micros = divmod(time_us, SECOND_US)
    from datetime import UTC, datetime

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
        f"{source}-{number}", "track", f"{name} {op}", None, committed_us, committed_us, committed_us, source, number, properties, row
    )


def heartbeat(committed_us: int, source: str = "shop") -> CustomerEvent:
    """The event that only moves log time."""
    return CustomerEvent(
        f"{source}-hb-{committed_us}", "heartbeat", "heartbeat", None, committed_us, committed_us, committed_us, source, "0", b"{}"
    )


class ListLog:
    """A log of one partition in a list; see EventLog. ``trim`` is forced by ``forget``."""

    def __init__(self, events: Sequence[CustomerEvent] = (), *, generation: str = "g1", partitions: int = 1) -> None:
        self.events = list(events)
        self.first = 0
        self.generation = generation
        self.partitions = partitions
        self.cursors: dict[str, Cursor] = {}
        self._grown = asyncio.Event()

    async def append(
        self, events: Sequence[CustomerEvent], *, source: str = "shop", state: bytes = b"", epoch: int | None = None
    ) -> tuple[int, ...]:
        self.events.extend(events)
        self._grown.set()
        return (len(self.events),)

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        if offset < self.first:
            raise Trimmed(f"offset {offset} is older than {self.first}")
        if offset > len(self.events):
            raise ValueError("beyond the end")
        if offset == len(self.events) and wait_s:
            self._grown.clear()
            try:
                await asyncio.wait_for(self._grown.wait(), wait_s)
            except TimeoutError:
                return LogBatch(0, offset, ())
        return LogBatch(0, offset, tuple(self.events[offset : offset + max(1, max_bytes // 256)]))

    async def commit(self, group: str, partition: int, offset: int, *, state: bytes = b"") -> None:
        stored = self.cursors.get(group)
        if stored is not None and offset < stored.offset:
            raise ValueError("a cursor never goes back")
        self.cursors[group] = Cursor(offset, state)

    async def committed(self, group: str, partition: int) -> Cursor | None:
        return self.cursors.get(group)

    async def source_state(self, source: str) -> bytes | None:
        return None

    async def bounds(self, partition: int) -> Bounds:
        return Bounds(self.first, len(self.events))

    async def trim(self, partition: int, before: int, *, force: bool = False) -> int:
        self.first = before
        return before

    async def retain(self, now_us: int) -> None: ...

    async def close(self) -> None: ...


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


DEFINITIONS = '''
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
'''


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    """A file with one view of many kinds of features over OrdersTable."""
    path = tmp_path / "shop_features.py"
    path.write_text(DEFINITIONS)
    return path
