"""A source that does what a script says, and a log whose appends end when a test says: for the capture and the app.

Both keep one diary of what happened, in order, so that a test can say what came before what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from headrace.cdc.event import Change, Column, CustomerEvent, TableSchema
from headrace.cdc.sources.base import ChangeBatch, SourceStatus

TABLE = TableSchema("public", "orders", (Column("id", 23, "int4"),), (0,))


def batch(number: int, *, rows: int = 1, is_heartbeat: bool = False, is_part: bool = False) -> ChangeBatch:
    """A batch whose state, mark and row ids all say its number."""
    position = f"0/{number:X}"
    changes = [
        Change(
            TABLE, "insert", None, (number,), f"{position}:{row}", f"c{number}-{row}", number, row, row == rows - 1, 0
        )
        for row in range(0 if is_heartbeat else rows)
    ]
    return ChangeBatch(changes, str(number).encode(), number, 1_700_000_000_000_000, position, is_heartbeat, is_part)


class ScriptedSource:
    """starts: what each start does (None: fine, an error: raised; fine once used up).

    script: what each read gives; an error is raised, an Event waited for; used up, reads wait until cancelled.
    """

    def __init__(
        self,
        script: Sequence[ChangeBatch | Exception | asyncio.Event] = (),
        *,
        starts: Sequence[Exception | None] = (),
        name: str = "shop",
        diary: list[str] | None = None,
    ) -> None:
        self.name = name
        self.script = list(script)
        self.starts = list(starts)
        self.diary: list[str] = [] if diary is None else diary
        self.phase = "connecting"
        self.reads = 0
        self.is_idle = asyncio.Event()

    async def start(self, state: bytes | None) -> None:
        self.diary.append(f"start after {'nothing' if state is None else state.decode()}")
        outcome = self.starts.pop(0) if self.starts else None
        if outcome is not None:
            raise outcome
        self.phase = "streaming"

    async def read(self) -> ChangeBatch:
        while self.script:
            self.reads += 1
            step = self.script.pop(0)
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            else:
                return step
        self.is_idle.set()
        await asyncio.Event().wait()
        raise AssertionError

    def durable(self, mark: Any) -> None:
        self.diary.append(f"confirm {mark}")

    async def stop(self) -> None:
        self.phase = "stopped"
        self.diary.append("stop")

    def status(self) -> SourceStatus:
        return SourceStatus(self.phase, "", "")

    @property
    def confirmed(self) -> list[str]:
        return [line for line in self.diary if line.startswith("confirm")]


class HeldLog:
    """A log whose appends wait for ``release``; is_held False makes them durable at once. states: by source."""

    generation = "g"
    partitions = 1

    def __init__(self, *, is_held: bool = True, diary: list[str] | None = None) -> None:
        self.is_held = is_held
        self.diary: list[str] = [] if diary is None else diary
        self.states: dict[str, bytes] = {}
        self.events: list[CustomerEvent] = []
        self.staged: list[CustomerEvent] = []
        self.held: dict[str, asyncio.Future[None]] = {}
        self.cancelled: list[str] = []

    async def append(
        self, events: Sequence[CustomerEvent], *, source: str, state: bytes, epoch: int | None = None
    ) -> tuple[int, ...]:
        number = state.decode()
        self.diary.append(f"append {number}")
        if self.is_held:
            self.held[number] = asyncio.get_running_loop().create_future()
            try:
                await self.held[number]
            except asyncio.CancelledError:
                self.cancelled.append(number)
                raise
        self.diary.append(f"durable {number}")
        self.events += self.staged
        self.events += events
        self.staged = []
        self.states[source] = state
        return (len(self.events),)

    async def stage(self, events: Sequence[CustomerEvent], *, source: str, epoch: int | None = None) -> None:
        self.diary.append(f"stage {len(events)}")
        self.staged += events

    async def unstage(self, source: str) -> None:
        self.staged = []

    def release(self, number: int, error: Exception | None = None) -> None:
        """End the append of that batch, well or with an error."""
        if error is None:
            self.held[str(number)].set_result(None)
        else:
            self.held[str(number)].set_exception(error)

    async def source_state(self, source: str) -> bytes | None:
        return self.states.get(source)
