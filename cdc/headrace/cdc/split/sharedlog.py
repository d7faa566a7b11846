"""The log as a process sees it that doesn't keep it: events come from the log's own file, everything else is asked of the keeper.

The keeper says at once when the log has moved, so a reader at the end waits for a message and polls nothing. What it hasn't said yet
isn't read, even when the file has it already: ends are the keeper's word.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from headrace.cdc.errors import LogUnavailable
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Bounds, Cursor, LogBatch
from headrace.cdc.log.rules import check_partition, check_read
from headrace.cdc.log.waiters import Waiters
from headrace.cdc.split.wire import Append, Commit, Committed, Forget, Groups, Question, SourceState


class Batches(Protocol):
    """Stored events of an engine, read beside the process that writes it."""

    async def read(self, partition: int, offset: int, max_bytes: int, end: int) -> LogBatch:
        """Events from offset on and below end, at least one. Raises as EventLog.read."""
        ...

    async def close(self) -> None: ...


class SharedLog:
    """ConsumerLog. ask: brings a question to the keeper, and raises what that raises."""

    def __init__(
        self,
        generation: str,
        batches: Batches,
        ask: Callable[[Question], Awaitable[Any]],
        firsts: Sequence[int],
        ends: Sequence[int],
    ) -> None:
        self._generation = generation
        self._batches = batches
        self._ask = ask
        self._firsts = list(firsts)
        self._ends = list(ends)
        self._waiters = Waiters(len(ends))
        self._is_closed = False

    @property
    def generation(self) -> str:
        return self._generation

    @property
    def partitions(self) -> int:
        return len(self._ends)

    def moved(self, firsts: Sequence[int], ends: Sequence[int]) -> None:
        """The keeper's word on the log's bounds."""
        self._firsts[:] = firsts
        for partition, end in enumerate(ends):
            if end != self._ends[partition]:
                self._ends[partition] = end
                self._waiters.wake(partition)

    async def append(self, events: Sequence[CustomerEvent], *, source: str, state: bytes) -> tuple[int, ...]:
        """See EventLog.append."""
        ends: tuple[int, ...] = await self._ask(Append(list(events), source, state))
        return ends

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch:
        """See EventLog.read."""
        self._check(partition, offset)
        if offset == self._ends[partition]:
            if wait_s <= 0 or not await self._waiters.wait(partition, wait_s):
                return LogBatch(partition, offset, ())
            self._check(partition, offset)
        return await self._batches.read(partition, offset, max_bytes, self._ends[partition])

    async def commit(self, group: str, partition: int, offset: int, *, state: bytes = b"") -> None:
        """See EventLog.commit."""
        await self._ask(Commit(group, partition, offset, state))

    async def committed(self, group: str, partition: int) -> Cursor | None:
        """See EventLog.committed."""
        cursor: Cursor | None = await self._ask(Committed(group, partition))
        return cursor

    async def groups(self) -> dict[str, dict[int, Cursor]]:
        """See EventLog.groups."""
        groups: dict[str, dict[int, Cursor]] = await self._ask(Groups())
        return groups

    async def forget(self, group: str) -> None:
        """See EventLog.forget."""
        await self._ask(Forget(group))

    async def source_state(self, source: str) -> bytes | None:
        """See EventLog.source_state."""
        state: bytes | None = await self._ask(SourceState(source))
        return state

    async def bounds(self, partition: int) -> Bounds:
        """As the keeper said last."""
        check_partition(partition, self.partitions)
        return Bounds(self._firsts[partition], self._ends[partition])

    async def close(self) -> None:
        """A read that waits gets LogUnavailable."""
        self._is_closed = True
        self._waiters.wake_all()
        await self._batches.close()

    def _check(self, partition: int, offset: int) -> None:
        if self._is_closed:
            raise LogUnavailable("the log is closed", advice="nothing: the process is stopping")
        check_partition(partition, self.partitions)
        check_read(partition, offset, Bounds(self._firsts[partition], self._ends[partition]))


__all__ = ["Batches", "SharedLog"]
