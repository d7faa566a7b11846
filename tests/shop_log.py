"""A log in memory for tests of what stands right of the log: fixed generation, failures on demand; and events to put in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.cdc.errors import LogError
from headrace.cdc.event import CustomerEvent, Kind, Op, RowPart
from headrace.cdc.log.base import Bounds, LogBatch
from headrace.cdc.log.memory import MemoryLog


class ShopLog(MemoryLog):
    """failure: raised by every read and bounds while set. reads: calls of read so far."""

    def __init__(self, partitions: int = 1, generation: str = "g1") -> None:
        super().__init__(partitions=partitions)
        self._content.generation = generation
        self.failure: LogError | None = None
        self.reads = 0

    async def append(
        self, events: Sequence[CustomerEvent], *, source: str = "shop", state: bytes = b"", **rest: Any
    ) -> tuple[int, ...]:
        return await super().append(events, source=source, state=state, **rest)

    async def append_one_by_one(self, events: Sequence[CustomerEvent]) -> None:
        """A trim drops whole appends: so each event can go alone."""
        for event in events:
            await self.append([event])

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        self.reads += 1
        self._fail()
        batch = await super().read(partition, offset, max_bytes=max_bytes, wait_s=wait_s)
        self._fail()
        return batch

    async def bounds(self, partition: int) -> Bounds:
        self._fail()
        return await super().bounds(partition)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


def order_event(
    number: int,
    *,
    key: str | None = None,
    name: str = "orders inserted",
    kind: Kind = "track",
    op: Op = "insert",
    table: str = "orders",
    properties: bytes | None = None,
    before: bytes | None = None,
) -> CustomerEvent:
    """Event ``shop-<number>`` of one row of public.orders, a second apart."""
    at_us = 1_700_000_000_000_000 + number * 1_000_000
    row = RowPart("public", table, op, b'{"id":%d}' % number, before, (), 7, 0, True, 1)
    return CustomerEvent(
        f"shop-{number}",
        kind,
        name,
        str(number) if key is None else key,
        at_us,
        at_us,
        at_us,
        "shop",
        f"0/{number:X}:0",
        b'{"id":%d,"total":"9.90"}' % number if properties is None else properties,
        row,
    )


def heartbeat(number: int) -> CustomerEvent:
    at_us = 1_700_000_000_000_000 + number * 1_000_000
    return CustomerEvent(
        f"beat-{number}", "heartbeat", "heartbeat", None, at_us, at_us, at_us, "shop", f"0/{number:X}:0", b"{}"
    )
