"""The keeper's side of a shared log: it answers the questions of another process, in the order in which they came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from headrace.cdc.errors import ConfigError
from headrace.cdc.log.base import EventLog
from headrace.cdc.split.wire import Append, Commit, Committed, Forget, Groups, Question, SourceState


class Shareable(EventLog, Protocol):
    """A log that other processes can read while this one writes it."""

    @property
    def places(self) -> tuple[list[int], list[int]]:
        """First and end offset of each partition, as they are now."""
        ...

    def watch(self, moved: Callable[[], None]) -> Callable[[], None]:
        """Have a function called on the loop whenever ``places`` changed; the result ends that."""
        ...


def shareable(log: Any, kind: str) -> Shareable:
    """The log as one that can be shared. Raises ConfigError for an engine that can't: it needs ``watch``, ``places`` and ``open_batches``."""
    if not (hasattr(log, "watch") and hasattr(log, "open_batches")):
        raise ConfigError(
            f"a log of type {kind} can't be shared by several processes",
            problems=(f"processes: the log of type {kind} belongs to one process alone",),
            advice="set processes: 1, or log.type: sqlite",
        )
    shared: Shareable = log
    return shared


async def answer(log: EventLog, question: Question) -> Any:
    """What the log says. Up to its own first await nothing is awaited, so that questions keep their order. Raises as the log does."""
    match question:
        case Append(events, source, state):
            return await log.append(events, source=source, state=state)
        case Commit(group, partition, offset, state):
            return await log.commit(group, partition, offset, state=state)
        case Committed(group, partition):
            return await log.committed(group, partition)
        case Groups():
            return await log.groups()
        case Forget(group):
            return await log.forget(group)
        case SourceState(source):
            return await log.source_state(source)


__all__ = ["Shareable", "answer", "shareable"]
