"""What happens to every event between its making and the log, in one order for rows and SDK events. Pure.

An event goes on, is dropped because a step says so, or is set aside with its reason. Heartbeats and schema events pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.event import CustomerEvent
from headrace.cdc.process.draft import Unfit
from headrace.cdc.process.eventprivacy import EventPrivacy
from headrace.cdc.process.transform import Step, run_steps


class PipelineCounts(msgspec.Struct):
    """Since the start."""

    dropped: int = 0
    set_aside: int = 0


class Passed(msgspec.Struct):
    """events: that go on, in their order. refused: those that don't, as they came, with why."""

    events: list[CustomerEvent]
    refused: list[tuple[CustomerEvent, Refusal]]


class Waits(Protocol):
    """What steps share that ask others (enrich/knowledge.py)."""

    @property
    def waits(self) -> bool: ...

    def begin(self) -> None: ...


class Pipeline:
    """The steps of one configuration. Holds no event.

    privacy: what comes before the plan, for events of SDKs and webhooks only.
    """

    def __init__(self, steps: Sequence[Step], privacy: EventPrivacy | None = None, shared: Waits | None = None) -> None:
        self._steps = tuple(steps)
        self.privacy = privacy
        self._shared = shared
        self.counts = PipelineCounts()

    @property
    def has_steps(self) -> bool:
        return bool(self._steps)

    @property
    def waits(self) -> bool:
        """A step may wait for somebody: run it in a thread, ``begin`` first."""
        return self._shared is not None and self._shared.waits

    def begin(self) -> None:
        """What this thread gives it from here on came together."""
        if self._shared is not None:
            self._shared.begin()

    def one(self, event: CustomerEvent) -> CustomerEvent | Refusal | None:
        """The event as it goes on; why it doesn't; None when it is dropped."""
        if not self._steps or event.kind in ("heartbeat", "schema"):
            return event
        try:
            found = run_steps(self._steps, event)
        except Unfit as unfit:
            self.counts.set_aside += 1
            return unfit.refusal
        if found is None:
            self.counts.dropped += 1
        return found

    def many(self, events: Iterable[CustomerEvent], held: Iterable[CustomerEvent] = ()) -> Passed:
        """A source's events: whole transactions, or parts of one. The last that goes on of each carries the mark of its end.

        held: events of the same transaction that went through before and come first. A transaction of which nothing goes on has no mark.
        """
        passed = list(held)
        refused: list[tuple[CustomerEvent, Refusal]] = []
        one: Callable[[CustomerEvent], CustomerEvent | Refusal | None] = self.one
        for event in events:
            found = one(event)
            if isinstance(found, CustomerEvent):
                passed.append(found)
                continue
            if found is not None:
                refused.append((event, found))
            row = event.row
            if row is not None and row.is_last and passed:
                last = passed[-1]
                if last.row is not None and last.row.xid == row.xid and not last.row.is_last:
                    passed[-1] = msgspec.structs.replace(last, row=msgspec.structs.replace(last.row, is_last=True))
        return Passed(passed, refused)


__all__ = ["Passed", "Pipeline", "PipelineCounts"]
