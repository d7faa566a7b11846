"""Events as the bytes that subscribers get: encoded once, shared by all that stand at the same place.

A Block is a run of consecutive events of one partition, small enough for one write. Its bytes are made when the first reader
needs them. Follows the HTML standard's chapter "Server-sent events". Knows neither sockets nor who reads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from headrace.cdc.event import CustomerEvent
from headrace.cdc.eventfilter import EventFilter
from headrace.cdc.log.base import LogBatch
from headrace.sinks.envelope import Envelope, encode

_BLOCK_EVENTS = 256
_BLOCK_BYTES = 64 << 10
_MOST_FILTERS = 8
"""A block remembers which of its events pass so many filters."""
_EVENT_OVERHEAD_BYTES = 400
"""About what names, times and ids add to an event's own JSON; only for sizing blocks."""
_EVENT_OBJECT_BYTES = 1_000
_BLOCK_OBJECT_BYTES = 1_500
_COPIES = 3
"""What an event and a block take as objects, and how often a block's JSON is held once somebody has read it: line, server-sent event,
whole write. Measured; a caught-up source makes blocks of one event, of which the JSON alone is less than a tenth."""


class Form:
    """A block's bytes in one envelope. Every list runs parallel to the block's events; None: not asked for yet."""

    __slots__ = ("_envelope", "_events", "_first", "_json", "_partition", "_passing", "_tails", "whole")

    def __init__(self, block: Block, envelope: Envelope) -> None:
        # Not the block itself: the two would keep each other alive until the collector comes by, which may be long.
        self._events = block.events
        self._partition = block.partition
        self._first = block.first
        self.whole: tuple[bytes, int] | None = None
        """All events that aren't heartbeats as one write, and their number: what most subscribers get."""
        self._envelope: Envelope = envelope
        self._json: list[bytes | None] = [None] * len(block.events)
        self._tails: list[bytes | None] = [None] * len(block.events)
        self._passing: dict[EventFilter, list[int]] = {}

    def json(self, index: int) -> bytes:
        """Event ``index`` as one line of JSON, without its end of line."""
        found = self._json[index]
        if found is None:
            found = encode(self._envelope, self._events[index], (self._partition, self._first + index))
            if b"\n" in found or b"\r" in found:
                # An SDK's own JSON may be spread over lines; inside strings these bytes are always escaped.
                found = found.replace(b"\n", b" ").replace(b"\r", b" ")
            self._json[index] = found
        return found

    def tail(self, index: int) -> bytes:
        """The server-sent event without its id line."""
        found = self._tails[index]
        if found is None:
            kind = self._events[index].kind.encode()
            found = self._tails[index] = b"event: %b\ndata: %b\n\n" % (kind, self.json(index))
        return found

    def stream(self, filter: EventFilter, before: str, after: str, *, is_shared: bool) -> tuple[bytes, int]:
        """The block's server-sent events that pass, as one write, and their number.

        before, after: the cursor's text around this partition's offset; the id of an event is the place after it.
        is_shared: the two are the same for every reader.
        """
        is_shared = is_shared and filter.is_open
        if is_shared and self.whole is not None:
            return self.whole
        head, end = f"id: {before}".encode(), f"{after}\n".encode()
        next_offset = self._first + 1
        parts = [b"%b%d%b%b" % (head, next_offset + index, end, self.tail(index)) for index in self._passing_of(filter)]
        made = (b"".join(parts), len(parts))
        if is_shared:
            self.whole = made
        return made

    def _passing_of(self, filter: EventFilter) -> list[int]:
        """Places of the events that pass; found once for all readers that ask the same."""
        found = self._passing.get(filter)
        if found is None:
            found = [index for index, event in enumerate(self._events) if filter.passes(event)]
            if len(self._passing) < _MOST_FILTERS:
                self._passing[filter] = found
        return found


class Block:
    """Consecutive events of one partition: events[i] has offset first + i."""

    __slots__ = ("_forms", "events", "first", "partition", "size_bytes")

    def __init__(self, partition: int, first: int, events: Sequence[CustomerEvent], size_bytes: int) -> None:
        self.partition = partition
        self.first = first
        self.events = events
        self.size_bytes = size_bytes
        self._forms: dict[Envelope, Form] = {}

    @property
    def next_offset(self) -> int:
        return self.first + len(self.events)

    @property
    def held_bytes(self) -> int:
        """About what the block takes in memory, once read."""
        return _BLOCK_OBJECT_BYTES + _EVENT_OBJECT_BYTES * len(self.events) + _COPIES * self.size_bytes

    def form(self, envelope: Envelope) -> Form:
        form = self._forms.get(envelope)
        if form is None:
            form = self._forms[envelope] = Form(self, envelope)
        return form


def split(batch: LogBatch) -> list[Block]:
    """A batch in blocks of at most 256 events and about 64 KiB; a larger event stands alone."""
    blocks: list[Block] = []
    events = batch.events
    start = size = 0
    for index, event in enumerate(events):
        bytes_ = len(event.properties) + _EVENT_OVERHEAD_BYTES
        if event.row is not None and event.row.before is not None:
            bytes_ += len(event.row.before)
        if index > start and (index - start == _BLOCK_EVENTS or size + bytes_ > _BLOCK_BYTES):
            blocks.append(Block(batch.partition, batch.first_offset + start, events[start:index], size))
            start, size = index, 0
        size += bytes_
    if start < len(events):
        blocks.append(Block(batch.partition, batch.first_offset + start, events[start:], size))
    return blocks


class BlockCache:
    """The blocks used last, found by partition and first offset; bounded in bytes of memory."""

    def __init__(self, capacity_bytes: int = 16 << 20) -> None:
        self._capacity_bytes = capacity_bytes
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self.size_bytes = 0

    def get(self, partition: int, offset: int) -> Block | None:
        block = self._blocks.get((partition, offset))
        if block is not None:
            self._blocks.move_to_end((partition, offset))
        return block

    def add(self, batch: LogBatch) -> Block | None:
        """Keep the blocks of a batch; the first of them, None for an empty batch."""
        blocks = split(batch)
        for block in blocks:
            place = (block.partition, block.first)
            former = self._blocks.get(place)
            if former is not None:
                if former.next_offset >= block.next_offset:
                    self._blocks.move_to_end(place)  # its bytes are made already
                    continue
                self.size_bytes -= former.held_bytes
            self._blocks[place] = block
            self._blocks.move_to_end(place)
            self.size_bytes += block.held_bytes
        while self.size_bytes > self._capacity_bytes and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self.size_bytes -= oldest.held_bytes
        return self._blocks.get((batch.partition, batch.first_offset), blocks[0]) if blocks else None

    def clear(self) -> None:
        self._blocks.clear()
        self.size_bytes = 0


def keepalive(cursor: str) -> bytes:
    """A comment, and an event without data: nothing is dispatched, but the client's last event id moves on."""
    return f": keepalive\nid: {cursor}\n\n".encode()
