"""What can be done with the log's dead letters: inputs that became no event, each with its reason and its own bytes.

Serves the command and the running process alike; knows neither HTTP nor the terminal. A retry gives a letter back to its source, which
makes of it what it would make of it today: after a fix, a raised limit, a newer headrace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final, Protocol

import msgspec

from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import DeadLetter, StoredLetter
from headrace.cdc.process.pipeline import Pipeline
from headrace.cdc.setaside import event_of
from headrace.cdc.sources.base import PushedSource

_RETRIES: Final = "dead-letters"
"""Appends of retries; no source of a configuration can have a name with a hyphen."""


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters: all that every given field fits. ids: None for all.

    event: name of the event, where the letter tells one. since_us, until_us: when it was received, the second one excluded.
    """

    ids: list[int] | None = None
    source: str | None = None
    reason: str | None = None
    event: str | None = None
    since_us: int | None = None
    until_us: int | None = None

    def has(self, stored: StoredLetter) -> bool:
        letter = stored.letter
        return (
            (self.ids is None or stored.id in self.ids)
            and (self.source is None or letter.source == self.source)
            and (self.reason is None or letter.reason == self.reason)
            and (self.since_us is None or letter.received_us >= self.since_us)
            and (self.until_us is None or letter.received_us < self.until_us)
            and (self.event is None or event_name(letter) == self.event)
        )


class Retried(msgspec.Struct, frozen=True):
    """retried: letters that are events now. kept: letters for which nothing has changed."""

    retried: int
    kept: int


class _Named(msgspec.Struct):
    event: str | None = None
    name: str | None = None


def event_name(letter: DeadLetter) -> str | None:
    """Name of the event that the letter holds, of a track call its ``event``; None where the bytes don't say."""
    try:
        named = msgspec.json.decode(letter.body, type=_Named)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return named.event or named.name


class HasLetters(Protocol):
    """The reading half, of an EventLog or a LogReader."""

    async def letters(self, after: int = 0, *, limit: int = 100) -> list[StoredLetter]: ...


class KeepsLetters(HasLetters, Protocol):
    async def drop_letters(self, ids: list[int]) -> int: ...

    async def append(
        self, events: list[CustomerEvent], *, source: str, state: bytes, retried: list[int]
    ) -> tuple[int, ...]: ...


async def selected(log: HasLetters, selection: Selection) -> AsyncIterator[StoredLetter]:
    """The dead letters that were there when it began, oldest first."""
    after = 0
    if selection.ids:
        after = min(selection.ids) - 1
    while page := await log.letters(after):
        for stored in page:
            if selection.has(stored):
                yield stored
        after = page[-1].id


class DeadLetters:
    """sources: those that are running, and can take their letters again."""

    def __init__(self, log: KeepsLetters, sources: Iterable[PushedSource], pipeline: Pipeline | None = None) -> None:
        self._log = log
        self._pipeline = pipeline
        self._sources = {source.name: source for source in sources}

    async def drop(self, selection: Selection) -> int:
        """Forget them; how many there were."""
        ids = [stored.id async for stored in selected(self._log, selection)]
        return await self._log.drop_letters(ids) if ids else 0

    async def retry(self, selection: Selection) -> Retried:
        """Take them again one after the other, in their order. Raises what a source's retry raises; those before are done."""
        retried = kept = 0
        ids = [stored.id async for stored in selected(self._log, selection)]
        for number in ids:
            for stored in await self._log.letters(number - 1, limit=1):
                if stored.id == number and await self._retry(stored):
                    retried += 1
                else:
                    kept += 1
        return Retried(retried, kept)

    async def _retry(self, stored: StoredLetter) -> bool:
        source = self._sources.get(stored.letter.source)
        if source is not None:
            return await source.retry(stored)
        kept = event_of(stored.letter)
        if kept is None or kept[0].sdk is not None:
            return False  # of an application's source that doesn't run now
        passed = kept[0] if self._pipeline is None else await asyncio.to_thread(self._pipeline.one, kept[0])
        if isinstance(passed, Refusal):
            return False
        # One append takes the event in and the letter out, so a crash can't double it. The row's source keeps its own place.
        await self._log.append([] if passed is None else [passed], source=_RETRIES, state=b"", retried=[stored.id])
        return True
