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


def test_a_block_read_again_keeps_the_bytes_that_were_made() -> None:
    cache = BlockCache()
    events = tuple([_event(number) for number in range(1, 21)])
    block = cache.add(LogBatch(0, 0, events))
    assert block is not None
    size = cache.size_bytes
    again = cache.add(LogBatch(0, 0, tuple([_event(number) for number in range(1, 21)])))
    assert again is block
    assert cache.size_bytes == size
    longer = cache.add(LogBatch(0, 0, tuple([_event(number) for number in range(1, 41)])))
    assert longer is not None and longer is not block and longer.next_offset == 40
    assert cache.size_bytes == longer.held_bytes


def test_what_passes_is_found_once_for_all_that_ask_the_same_and_for_each_filter_apart() -> None:
    looked = 0

    class Above:
        def __init__(self, least: int) -> None:
            self.least = least

        def __call__(self, event: CustomerEvent) -> bool:
            nonlocal looked
            looked += 1
            return event.occurred_us >= self.least

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Above) and other.least == self.least

        def __hash__(self) -> int:
            return self.least

    block = BlockCache().add(LogBatch(0, 100, tuple([_event(number) for number in range(20)])))
    assert block is not None
    form = block.form("headrace")
    for _ in range(3):
        for least in range(5, 19):
            chunk, count = form.stream(EventFilter(where=Above(least)), "g.", "", is_shared=True)
            assert count == 20 - least
            assert chunk.startswith(b"id: g.%d\n" % (100 + least + 1))
    assert looked == 20 * (8 + 3 * 6), "eight filters are remembered"
