"""What can be done with the log's dead letters: inputs that became no event, each with its reason and its own bytes.

Serves the command and the running process alike; knows neither HTTP nor the terminal. A retry gives a letter back to its source, which
makes of it what it would make of it today: after a fix, a raised limit, a newer headrace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Protocol

import msgspec

from headrace.cdc.log.base import StoredLetter
from headrace.cdc.sources.base import PushedSource


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters: all that every given field fits. ids: None for all."""

    ids: list[int] | None = None
    source: str | None = None
    reason: str | None = None

    def has(self, stored: StoredLetter) -> bool:
        letter = stored.letter
        return (
            (self.ids is None or stored.id in self.ids)
            and (self.source is None or letter.source == self.source)
            and (self.reason is None or letter.reason == self.reason)
        )


class Retried(msgspec.Struct, frozen=True):
    """retried: letters that are events now. kept: letters for which nothing has changed."""

    retried: int
    kept: int


class HasLetters(Protocol):
    """The reading half, of an EventLog or a LogReader."""

    async def letters(self, after: int = 0, *, limit: int = 100) -> list[StoredLetter]: ...


class KeepsLetters(HasLetters, Protocol):
    async def drop_letters(self, ids: list[int]) -> int: ...


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

    def __init__(self, log: KeepsLetters, sources: Iterable[PushedSource]) -> None:
        self._log = log
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
                source = self._sources.get(stored.letter.source)
                if stored.id == number and source is not None and await source.retry(stored):
                    retried += 1
                else:
                    kept += 1
        return Retried(retried, kept)
