"""A log in two lists, for tests of what stands right of the log; every call yields to the loop once, as a real engine's would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace.cdc.errors import LogError, Trimmed
from headrace.cdc.event import CustomerEvent, Kind, Op, RowPart
from headrace.cdc.log.base import Bounds, Cursor, LogBatch, partition_of


class ListLog:
    """Keeps the contract of log/base.py as far as readers see it. failure: raised by every read and bounds while set."""

    def __init__(self, partitions: int = 1, generation: str = "g1") -> None:
        self.generation = generation
        self.partitions = partitions
        self.failure: LogError | None = None
        self.reads = 0
        self._events: list[list[CustomerEvent]] = [[] for _ in range(partitions)]
        self._first = [0] * partitions
        self._appended: asyncio.Future[None] | None = None

    async def append(
        self, events: Sequence[CustomerEvent], *, source: str = "shop", state: bytes = b"", epoch: int | None = None
    ) -> tuple[int, ...]:
        for event in events:
            self._events[partition_of(event.key, self.partitions)].append(event)
        if self._appended is not None:
            self._appended.set_result(None)
            self._appended = None
        return tuple(len(lane) for lane in self._events)

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        self.reads += 1
        lane = self._events[partition]
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        if offset > len(lane):
            raise ValueError(offset)
        deadline = asyncio.get_running_loop().time() + wait_s
        while offset == len(lane) and wait_s:
            if self._appended is None:
                self._appended = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(self._appended)
            except TimeoutError:
                break
            if self.failure is not None:
                raise self.failure
        if offset < self._first[partition]:
            raise Trimmed(f"offset {offset} is gone", first_offset=self._first[partition])
        size = 0
        end = offset
        while end < len(lane) and (end == offset or size < max_bytes):
            size += len(lane[end].properties) + 200
            end += 1
        return LogBatch(partition, offset, tuple(lane[offset:end]))

    async def commit(self, group: str, partition: int, offset: int, *, state: bytes = b"") -> None:
        raise NotImplementedError

    async def committed(self, group: str, partition: int) -> Cursor | None:
        return None

    async def source_state(self, source: str) -> bytes | None:
        return None

    async def bounds(self, partition: int) -> Bounds:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return Bounds(self._first[partition], len(self._events[partition]))

    async def trim(self, partition: int, before: int, *, force: bool = False) -> int:
        self._first[partition] = before
        return before

    async def retain(self, now_us: int) -> None:
        return None

    async def close(self) -> None:
        return None


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
