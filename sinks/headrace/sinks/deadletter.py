"""Events that a destination will never take, with the reason, kept until somebody replays or drops them; and who is paused.

The protocol is small on purpose: whatever store keeps dead letters durable can stand behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from headrace.cdc.event import CustomerEvent


class DeadLetter(msgspec.Struct, frozen=True):
    """One event set aside. It is whole, so that it can be replayed after the log has let it go.

    generation, partition, offset: its place in the log. key: its lane. reason: without row data. attempts: verdicts on it.
    is_held: nothing is wrong with it, an earlier event of its key is a dead letter (poison: hold). at_us: when it was set aside.
    """

    sink: str
    generation: str
    partition: int
    offset: int
    key: str
    reason: str
    attempts: int
    is_held: bool
    at_us: int
    event: CustomerEvent


class DeadLetters(Protocol):
    """Where dead letters are kept. Raises SinkStoreError when the store fails."""

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Keep them; durable on return. One that is there already (same sink, generation, partition, offset) stays as it is."""
        ...

    async def stopped_keys(self, sink: str) -> set[str]:
        """Keys with a dead letter of that sink: under ``poison: hold`` their later events follow it."""
        ...

    async def buried(self, sink: str, generation: str, partition: int, first: int) -> list[int]:
        """Offsets from ``first`` on that are dead letters of that sink: done, though a crash came before the cursor knew."""
        ...

    async def counts(self) -> dict[str, int]:
        """How many are kept, by sink."""
        ...

    async def letters(self, sink: str, *, after: tuple[int, int] | None = None, limit: int = 1_000) -> list[DeadLetter]:
        """In the order of (partition, offset), those after that place."""
        ...

    async def remove(self, letters: Sequence[DeadLetter]) -> None:
        """They were delivered, or given up by a person. Idempotent."""
        ...


class Switches(Protocol):
    """Which sinks a person has paused; outlives the process. Raises SinkStoreError when the store fails."""

    async def paused(self) -> dict[str, int]:
        """Paused sinks, with the time of the pause in microseconds since 1970."""
        ...

    async def pause(self, sink: str, at_us: int) -> None: ...

    async def resume(self, sink: str) -> None: ...


class MemorySinkStore:
    """Both in memory: for a log in memory, and for tests."""

    def __init__(self) -> None:
        self._letters: dict[tuple[str, str, int, int], DeadLetter] = {}
        self._paused: dict[str, int] = {}

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See DeadLetters."""
        for letter in letters:
            self._letters.setdefault((letter.sink, letter.generation, letter.partition, letter.offset), letter)

    async def stopped_keys(self, sink: str) -> set[str]:
        """See DeadLetters."""
        return {letter.key for letter in self._letters.values() if letter.sink == sink}

    async def buried(self, sink: str, generation: str, partition: int, first: int) -> list[int]:
        """See DeadLetters."""
        return [
            letter.offset
            for letter in self._letters.values()
            if (letter.sink, letter.generation, letter.partition) == (sink, generation, partition)
            and letter.offset >= first
        ]

    async def counts(self) -> dict[str, int]:
        """See DeadLetters."""
        found: dict[str, int] = {}
        for letter in self._letters.values():
            found[letter.sink] = found.get(letter.sink, 0) + 1
        return found

    async def letters(self, sink: str, *, after: tuple[int, int] | None = None, limit: int = 1_000) -> list[DeadLetter]:
        """See DeadLetters."""
        found = sorted(
            (letter for letter in self._letters.values() if letter.sink == sink),
            key=lambda letter: (letter.partition, letter.offset),
        )
        return [letter for letter in found if after is None or (letter.partition, letter.offset) > after][:limit]

    async def remove(self, letters: Sequence[DeadLetter]) -> None:
        """See DeadLetters."""
        for letter in letters:
            self._letters.pop((letter.sink, letter.generation, letter.partition, letter.offset), None)

    async def paused(self) -> dict[str, int]:
        """See Switches."""
        return dict(self._paused)

    async def pause(self, sink: str, at_us: int) -> None:
        """See Switches."""
        self._paused.setdefault(sink, at_us)

    async def resume(self, sink: str) -> None:
        """See Switches."""
        self._paused.pop(sink, None)

    async def close(self) -> None:
        """Nothing to close."""


__all__ = ["DeadLetter", "DeadLetters", "MemorySinkStore", "Switches"]
