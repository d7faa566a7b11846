"""A log that holds everything in memory and forgets it with the process: same contract, nothing durable.

For tests of whatever reads or fills a log, and for trying headrace without a file (``log: {type: memory}``).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import ClassVar

from headrace.cdc.config import Config, Section
from headrace.cdc.errors import Fenced, LogError
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import (
    ID_WINDOW_US,
    LETTERS_BYTES,
    Bounds,
    Cursor,
    DeadLetter,
    LogBatch,
    SeenIds,
    StoredLetter,
    partition_of,
)
from headrace.cdc.log.codec import pack
from headrace.cdc.log.erasing import erased, marks
from headrace.cdc.log.lane import Chunk, Lane
from headrace.cdc.log.rules import check_commit, check_epoch, check_partition, check_read, check_state
from headrace.cdc.log.waiters import Waiters


class MemoryLogConfig(Section, frozen=True):
    """A log in memory: nothing outlives the process. For trying things out."""


class _Content:
    """What successive writers of one log share."""

    def __init__(self, partitions: int) -> None:
        self.generation = secrets.token_hex(8)
        self.epoch = 0
        self.lanes = [Lane() for _ in range(partitions)]
        self.firsts = [0] * partitions
        self.ends = [0] * partitions
        self.states: dict[str, bytes] = {}
        self.staged: dict[str, list[CustomerEvent]] = {}
        self.cursors: dict[tuple[str, int], Cursor] = {}
        self.waiters = Waiters(partitions)
        self.ids: dict[bytes, tuple[int, bytes]] = {}
        self.letters: dict[int, DeadLetter] = {}
        self.next_letter = 1


class MemoryLog:
    """EventLog in memory. retention_us, max_bytes (of encoded events): as log.retention and log.max_size; None keeps everything."""

    config_type: ClassVar[type[MemoryLogConfig]] = MemoryLogConfig

    def __init__(self, *, partitions: int = 1, retention_us: int | None = None, max_bytes: int | None = None) -> None:
        self._content = _Content(partitions)
        self._retention_us = retention_us
        self._max_bytes = max_bytes
        self._is_closed = False
        self._content.epoch = self.epoch = 1

    @classmethod
    async def from_config(cls, section: MemoryLogConfig, config: Config) -> MemoryLog:
        """An empty log of one partition."""
        return cls()

    def successor(self) -> MemoryLog:
        """A newer writer of the same content: the appends of all earlier ones raise Fenced from now on."""
        newer = MemoryLog(partitions=self.partitions, retention_us=self._retention_us, max_bytes=self._max_bytes)
        newer._content = self._content
        self._content.staged.clear()
        self._content.epoch += 1
        newer.epoch = self._content.epoch
        return newer

    @property
    def generation(self) -> str:
        return self._content.generation

    @property
    def partitions(self) -> int:
        return len(self._content.lanes)

    async def append(
        self,
        events: Sequence[CustomerEvent],
        *,
        source: str,
        state: bytes,
        epoch: int | None = None,
        ids: SeenIds | None = None,
        letters: Sequence[DeadLetter] = (),
        retried: Sequence[int] = (),
    ) -> tuple[int, ...]:
        """See EventLog.append. Raises ValueError when state is above 1 MiB."""
        self._hold_epoch(epoch)
        content = self._content
        check_state(source, state)
        lanes: dict[int, list[CustomerEvent]] = {}
        for event in (*content.staged.pop(source, ()), *events):
            lanes.setdefault(partition_of(event.key, self.partitions), []).append(event)
        chunks = {partition: _chunks(content.ends[partition], found) for partition, found in lanes.items()}
        for partition, made in chunks.items():
            for chunk in made:
                content.lanes[partition].add(chunk)
                content.ends[partition] = chunk.end_offset
            content.waiters.wake(partition)
        content.states[source] = state
        if ids is not None:
            content.ids |= {key: (ids.at_us, body) for key, body in ids.bodies.items()}
        for letter in letters:
            content.letters[content.next_letter] = letter
            content.next_letter += 1
        for number in retried:
            content.letters.pop(number, None)
        return tuple(content.ends)

    async def seen(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See EventLog.seen."""
        self._check_open()
        ids = self._content.ids
        return {key: ids[key][1] for key in keys if key in ids}

    async def letters(self, after: int = 0, *, limit: int = 100) -> list[StoredLetter]:
        """See EventLog.letters."""
        self._check_open()
        found: list[StoredLetter] = []
        held = 0
        for number, letter in self._content.letters.items():
            if number > after and len(found) < limit and held < LETTERS_BYTES:
                found.append(StoredLetter(number, letter))
                held += len(letter.body)
        return found

    async def drop_letters(self, ids: Sequence[int]) -> int:
        """See EventLog.drop_letters."""
        self._check_open()
        return sum(self._content.letters.pop(number, None) is not None for number in ids)

    async def stage(self, events: Sequence[CustomerEvent], *, source: str, epoch: int | None = None) -> None:
        """See EventLog.stage; here it takes memory all the same."""
        self._hold_epoch(epoch)
        self._content.staged.setdefault(source, []).extend(events)

    async def unstage(self, source: str) -> None:
        """See EventLog.unstage."""
        self._check_open()
        self._content.staged.pop(source, None)

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        """See EventLog.read."""
        check_partition(partition, self.partitions)
        self._check_open()
        content = self._content
        check_read(partition, offset, Bounds(content.firsts[partition], content.ends[partition]))
        if offset == content.ends[partition]:
            if wait_s <= 0 or not await content.waiters.wait(partition, wait_s):
                return LogBatch(partition, offset, ())
            self._check_open()
            check_read(partition, offset, Bounds(content.firsts[partition], content.ends[partition]))
        return LogBatch(partition, offset, content.lanes[partition].read(offset, max_bytes))

    async def commit(self, group: str, partition: int, offset: int, *, state: bytes = b"") -> None:
        """See EventLog.commit. Raises ValueError also for an offset beyond the end and a state above 64 KiB."""
        check_partition(partition, self.partitions)
        self._check_open()
        place = (group, partition)
        cursor = Cursor(offset, state)
        check_commit(group, partition, cursor, self._content.cursors.get(place), self._content.ends[partition])
        self._content.cursors[place] = cursor

    async def committed(self, group: str, partition: int) -> Cursor | None:
        check_partition(partition, self.partitions)
        return self._content.cursors.get((group, partition))

    async def groups(self) -> dict[str, dict[int, Cursor]]:
        """Every stored cursor: group -> partition -> cursor."""
        groups: dict[str, dict[int, Cursor]] = {}
        for (group, partition), cursor in sorted(self._content.cursors.items(), key=lambda item: item[0]):
            groups.setdefault(group, {})[partition] = cursor
        return groups

    async def forget(self, group: str) -> None:
        """See EventLog.forget."""
        self._check_open()
        for place in [place for place in self._content.cursors if place[0] == group]:
            del self._content.cursors[place]

    async def source_state(self, source: str) -> bytes | None:
        self._check_open()
        return self._content.states.get(source)

    async def erase(self, ids: frozenset[str]) -> tuple[int, int]:
        """See EventLog.erase."""
        self._check_open()
        content = self._content
        total = 0
        for partition, lane in enumerate(content.lanes):
            first = content.firsts[partition]
            events, count = erased(lane.read(first, 1 << 62) if first < content.ends[partition] else (), ids)
            if count:
                total += count
                content.lanes[partition] = Lane()
                for chunk in _chunks(first, events):
                    content.lanes[partition].add(chunk)
        wanted = marks(ids)
        gone = [
            number
            for number, letter in content.letters.items()
            if any(mark in letter.body or mark in letter.context for mark in wanted)
        ]
        return total, await self.drop_letters(gone)

    async def bounds(self, partition: int) -> Bounds:
        check_partition(partition, self.partitions)
        return Bounds(self._content.firsts[partition], self._content.ends[partition])

    async def trim(self, partition: int, before: int, *, force: bool = False) -> int:
        """See EventLog.trim."""
        check_partition(partition, self.partitions)
        self._check_open()
        self._drop_below(partition, before if force else min(before, self._pinned(partition)))
        return self._content.firsts[partition]

    async def retain(self, now_us: int) -> None:
        """See EventLog.retain."""
        self._check_open()
        content = self._content
        content.ids = {key: found for key, found in content.ids.items() if found[0] >= now_us - ID_WINDOW_US}
        if self._retention_us is not None:
            oldest_us = now_us - self._retention_us
            content.letters = {
                number: letter for number, letter in content.letters.items() if letter.received_us >= oldest_us
            }
            for partition in range(self.partitions):
                while self._drops_oldest(partition, before_us=now_us - self._retention_us):
                    pass
        if self._max_bytes is not None:
            pinned: set[int] = set()
            while sum(lane.bytes for lane in content.lanes) > self._max_bytes:
                heads = [
                    (lane.oldest.newest_us, partition)
                    for partition, lane in enumerate(content.lanes)
                    if lane.oldest is not None and partition not in pinned
                ]
                if not heads:
                    break
                _, partition = min(heads)
                if not self._drops_oldest(partition):
                    pinned.add(partition)

    async def close(self) -> None:
        """See EventLog.close."""
        if not self._is_closed:
            self._is_closed = True
            self._content.waiters.wake_all()

    def _hold_epoch(self, epoch: int | None) -> None:
        self._check_open()
        check_epoch("in memory", epoch, self.epoch)
        if self._content.epoch != self.epoch:
            raise Fenced(f"log in memory was taken over: its epoch is {self._content.epoch}, ours {self.epoch}")

    def _check_open(self) -> None:
        if self._is_closed:
            raise LogError("log in memory is closed", advice="nothing: the process is stopping")

    def _pinned(self, partition: int) -> int:
        return min(
            (cursor.offset for (_, at), cursor in self._content.cursors.items() if at == partition),
            default=self._content.ends[partition],
        )

    def _drops_oldest(self, partition: int, before_us: int | None = None) -> bool:
        """Drop the oldest chunk if no cursor still has to read it and, with before_us, it is older than that."""
        chunk = self._content.lanes[partition].oldest
        if chunk is None or chunk.end_offset > self._pinned(partition):
            return False
        if before_us is not None and chunk.newest_us >= before_us:
            return False
        self._drop_below(partition, chunk.end_offset)
        return True

    def _drop_below(self, partition: int, offset: int) -> None:
        content = self._content
        lane = content.lanes[partition]
        lane.drop_below(offset)
        content.firsts[partition] = content.ends[partition] if lane.oldest is None else lane.oldest.first_offset


def _chunks(first_offset: int, events: list[CustomerEvent]) -> list[Chunk]:
    chunks: list[Chunk] = []
    at = 0
    for piece in pack(events):
        chunks.append(Chunk(first_offset + at, tuple(events[at : at + piece.count]), len(piece.array), piece.newest_us))
        at += piece.count
    return chunks
