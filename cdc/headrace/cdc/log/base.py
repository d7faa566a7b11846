"""The contract of the log, held by tests/contract/log_contract.py over every engine and the shipped fake.

Promises (shared numbering with docs/architecture.md): an append is atomic and durable on return, and holds whole source
transactions together with the source's position after them (P1 to P4); offsets of a partition count 0, 1, 2, ... without a
gap and are never used twice; a cursor behind the retention gets Trimmed, never a silent gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol
from zlib import crc32

import msgspec

from headrace.cdc.event import CustomerEvent

ID_WINDOW_US: Final = 7 * 86_400_000_000
"""How long a message id is known at least."""

LETTERS_BYTES: Final = 8 << 20
"""No further dead letter is read at once when the bodies fill this."""


class LogBatch(msgspec.Struct, frozen=True, gc=False):
    """Consecutive events of one partition. events[i] has offset first_offset + i; may be empty when a wait timed out."""

    partition: int
    first_offset: int
    events: tuple[CustomerEvent, ...]

    @property
    def next_offset(self) -> int:
        """Where to read on."""
        return self.first_offset + len(self.events)


class Bounds(msgspec.Struct, frozen=True):
    """first: oldest offset kept; end: the offset the next event will get. first == end: nothing kept."""

    first: int
    end: int


class SeenIds(msgspec.Struct, frozen=True, gc=False):
    """Message ids that an append makes known. at_us: when they came. bodies: 16 bytes that stand for the id -> 8 that stand for the body."""

    at_us: int
    bodies: dict[bytes, bytes]


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """An input that became no event. reason: a short code; detail: the sentence for people, without the input's own values.

    body: the input's bytes as they came. context: JSON of what else its source needs to take it again.
    """

    source: str
    reason: str
    detail: str
    received_us: int
    body: bytes
    context: bytes = b"{}"


class StoredLetter(msgspec.Struct, frozen=True, gc=False):
    """A dead letter of the log. Ids grow, and none is used twice."""

    id: int
    letter: DeadLetter


class Cursor(msgspec.Struct, frozen=True):
    """A consumer's place: the next offset to read, and a small blob of its own (at most 64 KiB)."""

    offset: int
    state: bytes = b""


class ConsumerLog(Protocol):
    """The half of the log that consumers use, in whichever process they live; methods as those of EventLog."""

    @property
    def generation(self) -> str: ...

    @property
    def partitions(self) -> int: ...

    async def append(self, events: Sequence[CustomerEvent], *, source: str, state: bytes) -> tuple[int, ...]: ...

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch: ...

    async def commit(self, group: str, partition: int, offset: int, *, state: bytes = b"") -> None: ...

    async def committed(self, group: str, partition: int) -> Cursor | None: ...

    async def groups(self) -> dict[str, dict[int, Cursor]]: ...

    async def forget(self, group: str) -> None: ...

    async def source_state(self, source: str) -> bytes | None: ...

    async def bounds(self, partition: int) -> Bounds: ...


class EventLog(ConsumerLog, Protocol):
    """One durable log. All methods may be called from the event loop only, and concurrently with each other.

    generation: random text made at creation; offsets of another generation mean nothing here.
    partitions: how many ordered lanes, fixed at creation.
    """

    @property
    def generation(self) -> str: ...

    @property
    def partitions(self) -> int: ...

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
        """Store events and the source's state in one transaction; durable on return.

        events: whole source transactions in commit order, may be empty (only the state moves). state: opaque, at most
        1 MiB, replaces the source's former one. Appends of one caller keep their order even when they are not awaited
        one by one; neighbours may share one sync (group commit). Result: end offset of each partition after the append.
        What the source has staged comes first, in the same transaction. ids: known to ``seen`` from this call on, at least for
        ID_WINDOW_US. letters: set aside. retried: ids of dead letters that this append replaces. Raises Fenced when a newer writer opened the log;
        LogUnavailable when the disk refuses (nothing is stored then, nor is anything of a later append: the engine stays failed, so
        that order can't be broken by a gap).
        """
        ...

    async def stage(self, events: Sequence[CustomerEvent], *, source: str, epoch: int | None = None) -> None:
        """Set aside a part of a transaction that isn't whole yet; the source's next append publishes it.

        Nobody sees it before, and a log that is opened again has forgotten it. So a transaction larger than memory becomes part of
        the log at once: publishing doesn't copy what was staged. Returns when it is written. Raises as append.
        """
        ...

    async def unstage(self, source: str) -> None:
        """Forget what the source has staged: its transaction won't be finished, or will come again from its beginning."""
        ...

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        """Events from offset on: at least one if there is one, at most about max_bytes of encoded events.

        wait_s: when offset is the end, wait at most so long for an append; an empty batch after that. Raises Trimmed when
        offset is older than bounds.first; ValueError when it is beyond the end or the partition doesn't exist.
        """
        ...

    async def commit(self, group: str, partition: int, offset: int, *, state: bytes = b"") -> None:
        """Store a group's cursor; durable on return. An offset lower than the stored one is refused by ValueError."""
        ...

    async def committed(self, group: str, partition: int) -> Cursor | None:
        """The stored cursor; None for a group that never committed."""
        ...

    async def groups(self) -> dict[str, dict[int, Cursor]]:
        """Every stored cursor: group -> partition -> cursor."""
        ...

    async def forget(self, group: str) -> None:
        """Drop a group's cursors; durable on return. They hold nothing back any more; a group that isn't there is fine."""
        ...

    async def source_state(self, source: str) -> bytes | None:
        """State of the last append of that source; None for a source that never appended."""
        ...

    async def seen(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Which of these message ids an append has named, with the bytes of the body; also one that isn't durable yet."""
        ...

    async def letters(self, after: int = 0, *, limit: int = 100) -> list[StoredLetter]:
        """Dead letters with an id above ``after``, oldest first: at most limit, and no more once their bodies fill 8 MiB."""
        ...

    async def drop_letters(self, ids: Sequence[int]) -> int:
        """Forget dead letters; durable on return. Result: how many there were. An unknown id is fine."""
        ...

    async def erase(self, ids: frozenset[str]) -> tuple[int, int]:
        """Replace every event of these customers that is stored now by an empty heartbeat, and forget dead letters that name them.

        Offsets stay. Result: how many events and dead letters. Works in steps between appends; one that was cut short is asked for again.
        """
        ...

    async def bounds(self, partition: int) -> Bounds: ...

    async def trim(self, partition: int, before: int, *, force: bool = False) -> int:
        """Drop whole stored batches below offset ``before``, never past a committed cursor unless forced.

        Result: the new first offset, at most ``before``.
        """
        ...

    async def retain(self, now_us: int) -> None:
        """Drop what the configured retention (age, size) no longer keeps; called now and then.

        Dead letters go by the same age; message ids after ID_WINDOW_US.
        """
        ...

    async def close(self) -> None:
        """Finish the appends under way and release the log; closing twice is fine."""
        ...


def partition_of(key: str | None, partitions: int) -> int:
    """The lane of a customer key: CRC-32 of its UTF-8 bytes modulo the count, the same on every engine and machine.

    Events without a customer stand in lane 0.
    """
    if partitions == 1 or key is None:
        return 0
    return crc32(key.encode()) % partitions
