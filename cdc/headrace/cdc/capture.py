"""Drives one source into the log: read, normalise, append, and only then confirm.

Appends overlap with reading: while one batch is being synced to disk the next is decoded. They are confirmed strictly in order, and a
bounded number is under way; when it is reached the source isn't read, its socket fills, and the server waits (back-pressure).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from headrace.cdc.errors import Action, HeadraceError, SourceRefused
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import DeadLetter, EventLog
from headrace.cdc.metrics import CaptureMetrics
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.process.pipeline import Pipeline
from headrace.cdc.setaside import letter_of
from headrace.cdc.sources.base import ChangeBatch, Source
from headrace.cdc.sources.ending import end

_log = logging.getLogger("headrace.capture")

_UnderWay: TypeAlias = tuple[asyncio.Task[object], ChangeBatch]

_UNDER_WAY = 8
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 30.0
_LETTERS_BYTES = 64 << 20


class Capture:
    """Supervises one source for as long as the process runs."""

    def __init__(
        self,
        source: Source,
        normaliser: Normaliser,
        log: EventLog,
        metrics: CaptureMetrics,
        pipeline: Pipeline | None = None,
        *,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self._normaliser = normaliser
        self._log = log
        self._metrics = metrics
        self._pipeline = pipeline
        self._held: list[CustomerEvent] = []
        self._letters: list[DeadLetter] = []
        self._letters_bytes = 0
        self._clock = clock
        self._pause = pause
        self._monotonic = monotonic
        self.events_total = 0
        self._staged_rows = 0
        self.trouble = ""
        """Why the source is being tried again; "" while all is well."""

    async def run(self, on_started: Callable[[], None] | None = None) -> None:
        """Capture until cancelled.

        A RETRY error starts the source again from what the log holds, with growing pauses; any other is raised. So is a RETRY
        error of the very first start: a wrong DSN is a message to the person at the terminal, not a loop.
        """
        attempt = 0
        has_started = False
        try:
            while True:
                began = self._monotonic()
                try:
                    # Parts of a transaction whose end didn't come: it comes again from its beginning.
                    await self._log.unstage(self.source.name)
                    await self.source.start(await self._log.source_state(self.source.name))
                    if not has_started:
                        has_started = True
                        if on_started is not None:
                            on_started()
                    self.trouble = ""
                    await self._pump()
                except HeadraceError as error:
                    if error.action is not Action.RETRY or not has_started:
                        raise
                    if self._monotonic() - began > _LONGEST_PAUSE_S:
                        attempt = 0
                    pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
                    attempt += 1
                    self.trouble = error.message
                    self._metrics.restarted(self.source.name)
                    _log.warning("source %s: %s; trying again in %.1f s", self.source.name, error.message, pause_s)
                    await self.source.stop()
                    await self._pause(pause_s)
        finally:
            await self.source.stop()

    async def _pump(self) -> None:
        """Read and append until something fails; what was appended before the failure is still confirmed."""
        self._staged_rows = 0
        self._held, self._letters, self._letters_bytes = [], [], 0
        under_way: deque[_UnderWay] = deque()
        room = asyncio.Semaphore(_UNDER_WAY)
        news = asyncio.Event()
        # Not a TaskGroup: until Python 3.13 it tells only the error when a child fails at the moment its parent is cancelled.
        halves = [
            asyncio.create_task(self._read(under_way, room, news)),
            asyncio.create_task(self._confirm(under_way, room, news)),
        ]
        try:
            await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        finally:
            try:
                for half in halves:
                    await end(half)
            finally:
                await self._settle(under_way)
        for half in halves:
            if not half.cancelled():
                await half

    async def _read(self, under_way: deque[_UnderWay], room: asyncio.Semaphore, news: asyncio.Event) -> None:
        source = self.source
        while True:
            await room.acquire()
            batch = await source.read()
            received_us = int(self._clock() * 1_000_000)
            if batch.is_heartbeat:
                events = [self._normaliser.heartbeat(batch.source_time_us, received_us, batch.position)]
            else:
                events = self._normaliser.events(batch.changes, received_us)
                if self._pipeline is not None:
                    if self._pipeline.waits:
                        events = await asyncio.to_thread(self._passed, self._pipeline, events, is_part=batch.is_part)
                    else:
                        events = self._passed(self._pipeline, events, is_part=batch.is_part)
            if batch.is_part:
                append: asyncio.Task[object] = asyncio.create_task(self._log.stage(events, source=source.name))
            else:
                letters, self._letters, self._letters_bytes = self._letters, [], 0
                append = asyncio.create_task(self._appended(events, batch.state, letters))
            # No await before this: cancelled there, the append would be nobody's.
            under_way.append((append, batch))
            news.set()

    async def _appended(self, events: list[CustomerEvent], state: bytes, letters: list[DeadLetter]) -> object:
        """letters: of the whole transaction, since they are known only with its end."""
        if not letters:
            return await self._log.append(events, source=self.source.name, state=state)
        return await self._log.append(events, source=self.source.name, state=state, letters=letters)

    def _passed(self, pipeline: Pipeline, events: list[CustomerEvent], *, is_part: bool) -> list[CustomerEvent]:
        """What the pipeline lets go on. The last event of a part waits for the next: if nothing of that goes on, it is the transaction's last.

        Raises SourceRefused when more of one transaction is set aside than memory should hold.
        """
        pipeline.begin()
        passed = pipeline.many(events, self._held)
        self._held = []
        for event, refusal in passed.refused:
            letter = letter_of(event, refusal)
            self._letters.append(letter)
            self._letters_bytes += len(letter.body) + 512
        if self._letters_bytes > _LETTERS_BYTES:
            raise SourceRefused(
                f"the pipeline sets aside more than {_LETTERS_BYTES >> 20} MiB of one transaction",
                source=self.source.name,
                advice="correct the step that the reason of the first names: " + self._letters[0].detail,
            )
        if is_part and passed.events:
            self._held.append(passed.events.pop())
        return passed.events

    async def _confirm(self, under_way: deque[_UnderWay], room: asyncio.Semaphore, news: asyncio.Event) -> None:
        while True:
            while not under_way:
                news.clear()
                await news.wait()
            append, batch = under_way[0]
            # shield leaves the append alone when this task is cancelled; it then still stands first for _settle.
            await asyncio.shield(append)
            under_way.popleft()
            room.release()
            self._confirmed(batch)

    async def _settle(self, under_way: deque[_UnderWay]) -> None:
        """Let the appends that are under way end by themselves; confirm up to the first that failed, and raise its error.

        Behind a failed append nothing is confirmed, whatever became of it: that would be a gap.
        """
        failure: BaseException | None = None
        try:
            while under_way:
                append, batch = under_way[0]
                await asyncio.wait([append])
                under_way.popleft()
                error = asyncio.CancelledError() if append.cancelled() else append.exception()
                failure = failure or error
                if failure is None:
                    self._confirmed(batch)
        finally:
            for append, _ in under_way:  # cancelled a second time: nobody waits any longer
                append.cancel()
        if failure is not None:
            raise failure from None

    def _confirmed(self, batch: ChangeBatch) -> None:
        if batch.is_part:
            self._staged_rows += len(batch.changes)
            return
        rows, self._staged_rows = self._staged_rows + len(batch.changes), 0
        self.source.durable(batch.mark)
        self.events_total += rows
        self._metrics.appended(self.source.name, rows, batch.source_time_us)
