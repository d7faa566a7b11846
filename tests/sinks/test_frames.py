"""Blocks of encoded events: what the cache says it holds is what it takes."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest

from headrace.cdc.event import CustomerEvent, RowPart
from headrace.cdc.eventfilter import EventFilter
from headrace.cdc.log.base import LogBatch
from headrace.sinks.frames import BlockCache


def _event(number: int) -> CustomerEvent:
    row = RowPart("public", "orders", "insert", b'{"id":%d}' % number, None, (), number, 0, True, 1)
    event = CustomerEvent(
        f"shop-0-{number:X}-0", "track", "Order Completed", str(number), number, number, number, "shop",
        f"0/{number:X}:0", b'{"id":%d,"note":"%b"}' % (number, b"x" * 150), row, str(number),
    )  # fmt: skip
    # As from the log: nothing shared with another event.
    return msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=CustomerEvent)


@pytest.mark.parametrize("events_a_block", [1, 10, 200])
def test_a_full_cache_takes_about_the_memory_it_is_bounded_to(events_a_block: int) -> None:
    capacity = 2 << 20
    passes_all = EventFilter()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cache = BlockCache(capacity)
        for first in range(1 << 30, (1 << 30) + 4_000, events_a_block):
            events = tuple([_event(number) for number in range(first, first + events_a_block)])
            block = cache.add(LogBatch(0, first, events))
            while block is not None:
                block.form("headrace").stream(passes_all, "a", "b", is_shared=True)
                block = cache.get(0, block.next_offset)
        del events
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert capacity / 2 < cache.size_bytes <= capacity
    assert capacity / 2 < taken < capacity * 1.25
