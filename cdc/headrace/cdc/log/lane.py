"""Stored batches of one partition as objects in memory: the whole of a MemoryLog's lane, the fresh end of any other engine's.

A caught-up consumer gets from here the very objects that were appended, and decodes nothing. Owns no durability and no waiting.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque

import msgspec

from headrace.cdc.event import CustomerEvent


class Chunk(msgspec.Struct, gc=False, frozen=True):
    """Consecutive events of one append. bytes: their encoded size. newest_us: largest committed_us."""

    first_offset: int
    events: tuple[CustomerEvent, ...]
    bytes: int
    newest_us: int

    @property
    def end_offset(self) -> int:
        return self.first_offset + len(self.events)


class Lane:
    """Chunks without a gap, oldest first. bytes: sum over the chunks."""

    def __init__(self) -> None:
        self.bytes = 0
        self._chunks: list[Chunk] = []
        self._firsts: list[int] = []

    @property
    def oldest(self) -> Chunk | None:
        return self._chunks[0] if self._chunks else None

    def add(self, chunk: Chunk) -> None:
        """The chunk must start where the last one ends."""
        self._chunks.append(chunk)
        self._firsts.append(chunk.first_offset)
        self.bytes += chunk.bytes

    def read(self, offset: int, max_bytes: int) -> tuple[CustomerEvent, ...]:
        """Events from offset on, at least one; () when offset isn't held here.

        Sizes inside a chunk are taken as even: the result may exceed max_bytes by what one chunk's events differ from their mean.
        """
        index = bisect_right(self._firsts, offset) - 1
        if index < 0 or offset >= self._chunks[-1].end_offset:
            return ()
        chunk = self._chunks[index]
        events = chunk.events[offset - chunk.first_offset :] if offset > chunk.first_offset else chunk.events
        left = max_bytes - chunk.bytes * len(events) // len(chunk.events)
        if left < 0:
            return take(events, chunk.bytes / len(chunk.events), max_bytes)
        if index + 1 == len(self._chunks):
            return events
        found = list(events)
        for chunk in self._chunks[index + 1 :]:
            if chunk.bytes > left:
                if left * len(chunk.events) >= chunk.bytes:
                    found += take(chunk.events, chunk.bytes / len(chunk.events), left)
                break
            found += chunk.events
            left -= chunk.bytes
        return tuple(found)

    def drop_below(self, offset: int) -> int:
        """Forget whole chunks below offset; how many."""
        keep = 0
        while keep < len(self._chunks) and self._chunks[keep].end_offset <= offset:
            keep += 1
        self._drop(keep)
        return keep

    def drop_oldest(self, count: int) -> None:
        """Forget that many chunks."""
        self._drop(count)

    def _drop(self, count: int) -> None:
        if count:
            self.bytes -= sum(chunk.bytes for chunk in self._chunks[:count])
            del self._chunks[:count]
            del self._firsts[:count]


def take(events: tuple[CustomerEvent, ...], mean_bytes: float, max_bytes: int) -> tuple[CustomerEvent, ...]:
    """The first events that fit into max_bytes at that mean size, at least one."""
    return events[: max(1, int(max_bytes / mean_bytes))]


class Tails:
    """The newest chunks of all partitions, in at most max_bytes of encoded events; the oldest over all are forgotten first."""

    def __init__(self, partitions: int, max_bytes: int) -> None:
        self._lanes = [Lane() for _ in range(partitions)]
        self._order: deque[tuple[int, int]] = deque()  # partition and bytes of every held chunk
        self._bytes = 0
        self._max_bytes = max_bytes
        # Forgotten an eighth at a time, so that not every append moves a list of thousands.
        self._low_bytes = max_bytes - max_bytes // 8

    def add(self, partition: int, chunk: Chunk) -> None:
        self._lanes[partition].add(chunk)
        self._order.append((partition, chunk.bytes))
        self._bytes += chunk.bytes
        if self._bytes > self._max_bytes:
            self._shrink()

    def forget(self, partition: int) -> None:
        """Forget all chunks of a partition: what is added next begins further on."""
        self._bytes -= self._lanes[partition].bytes
        self._lanes[partition] = Lane()
        self._order = deque(held for held in self._order if held[0] != partition)

    def read(self, partition: int, offset: int, max_bytes: int) -> tuple[CustomerEvent, ...]:
        """See Lane.read."""
        return self._lanes[partition].read(offset, max_bytes)

    def _shrink(self) -> None:
        dropped: Counter[int] = Counter()
        while self._bytes > self._low_bytes:
            partition, size = self._order.popleft()
            self._bytes -= size
            dropped[partition] += 1
        for partition, count in dropped.items():
            self._lanes[partition].drop_oldest(count)
