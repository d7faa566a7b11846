"""A stretch of the log, or a sink's dead letters, delivered once more beside the live cursor.

The same dispatcher as for live delivery, over a range that ends. Events keep their ids; the sink is told that it is a replay. The live
cursor isn't touched, so a customer's replayed events may come between newer ones: a destination that knows event ids isn't disturbed by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Bounds, Cursor, LogBatch
from headrace.sinks.base import Item, Sink, SinkSection
from headrace.sinks.deadletter import DeadLetter, DeadLetters
from headrace.sinks.dispatcher import Dispatcher, Range
from headrace.sinks.intake import Readable


class RangeCursors:
    """A replay's places: where each range begins. Nothing of them is kept."""

    def __init__(self, ranges: Mapping[int, Range]) -> None:
        self._ranges = ranges

    async def load(self, partition: int) -> Cursor:
        found = self._ranges.get(partition)
        return Cursor(0 if found is None else found.first)

    async def save(self, partition: int, cursor: Cursor) -> None: ...


def replay_range(
    name: str,
    sink: Sink,
    section: SinkSection,
    *,
    log: Readable,
    ranges: Mapping[int, Range],
    letters: DeadLetters,
    **more: Any,
) -> Dispatcher:
    """What delivers these ranges when it is run. What is refused again becomes, or stays, a dead letter."""
    return Dispatcher(
        name, sink, section, log=log, cursors=RangeCursors(ranges), letters=_Unheld(letters), ranges=ranges, **more
    )


def replay_letters(
    name: str, sink: Sink, section: SinkSection, *, letters: Sequence[DeadLetter], store: DeadLetters, **more: Any
) -> Dispatcher:
    """What delivers these dead letters when it is run; each that the destination takes is removed, the others stay as they are."""
    ranges = {0: Range(0, len(letters))}

    async def remove(items: Sequence[Item]) -> None:
        await store.remove([letters[item.offset] for item in items])

    return Dispatcher(
        name,
        sink,
        section,
        log=_LetterLog(letters),
        cursors=RangeCursors(ranges),
        letters=_Staying(store),
        ranges=ranges,
        on_delivered=remove,
        **more,
    )


async def offset_at(log: Readable, partition: int, committed_us: int) -> int:
    """The first kept offset whose event was committed at that time or later; the end when there is none. Commit times rise in the log."""
    bounds = await log.bounds(partition)
    low, high = bounds.first, bounds.end
    while low < high:
        middle = (low + high) // 2
        batch = await log.read(partition, middle, max_bytes=1)
        if batch.events[0].committed_us < committed_us:
            low = middle + 1
        else:
            high = middle
    return low


class _LetterLog:
    """Dead letters as a log of one partition; offsets are their places in the list."""

    generation = "dead letters"
    partitions = 1

    def __init__(self, letters: Sequence[DeadLetter]) -> None:
        self._events: tuple[CustomerEvent, ...] = tuple(letter.event for letter in letters)

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        return LogBatch(partition, offset, self._events[offset : offset + 1_000])

    async def bounds(self, partition: int) -> Bounds:
        return Bounds(0, len(self._events))


class _Unheld:
    """A store whose dead letters don't hold a replay back: replaying them is what ends that."""

    def __init__(self, store: DeadLetters) -> None:
        self._store = store
        self.counts = store.counts
        self.letters = store.letters
        self.remove = store.remove

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        await self._store.bury(letters)

    async def buried(self, sink: str, generation: str, partition: int, first: int) -> list[int]:
        return []

    async def stopped_keys(self, sink: str) -> set[str]:
        return set()


class _Staying(_Unheld):
    """Replayed dead letters that are refused again are there already."""

    async def bury(self, letters: Sequence[DeadLetter]) -> None: ...


__all__ = ["offset_at", "replay_letters", "replay_range"]
