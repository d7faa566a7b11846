"""Customers who want to be let alone: whose events are refused at the door, and what is erased of them.

The list stands in the log, as hashes under the log's own name: it says of an id whether it is on it, and nobody else can read ids from it. It is spread over
SHARDS states, each of which may hold a mebibyte.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec

from headrace.cdc.config import Config
from headrace.cdc.errors import RequestRefused
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import EventLog
from headrace.cdc.process.privacy import Hasher

SHARDS = 64
_SHARD_BYTES = (1 << 20) - 64
_STATE = "suppressed-{:02}"


class CustomersAsked(msgspec.Struct, frozen=True):
    """What is asked of customers; ids as applications know them."""

    ids: list[str]


class Told(msgspec.Struct, frozen=True):
    """suppressed: how many the list has now. changed: of the asked ones. events, letters: erased from the log."""

    suppressed: int
    changed: int = 0
    events: int = 0
    letters: int = 0


class Suppression:
    """Whose events are refused. ``load`` first."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._key = log.generation.encode()[:64]
        self._since: dict[bytes, int] = {}
        self.refused = 0

    async def load(self) -> None:
        for shard in range(SHARDS):
            state = await self._log.source_state(_STATE.format(shard))
            if state:
                self._since |= msgspec.msgpack.decode(state, type=dict[bytes, int])

    @property
    def count(self) -> int:
        return len(self._since)

    def has(self, name: str) -> bool:
        return bool(self._since) and self._hash(name) in self._since

    def refuses(self, event: CustomerEvent) -> bool:
        """Whether it is of a customer on the list; it is counted then."""
        if not self._since:
            return False
        sdk = event.sdk
        names = {event.key, event.user_id, event.anonymous_id, None if sdk is None else sdk.previous_id}
        if any(name is not None and self.has(name) for name in names):
            self.refused += 1
            return True
        return False

    async def add(self, ids: Iterable[str]) -> int:
        """Durable on return; how many are new. Raises RequestRefused when the list is full."""
        now_us = int(time.time() * 1_000_000)
        new = {hashed: now_us for each in ids if (hashed := self._hash(each)) not in self._since}
        await self._store({**self._since, **new}, new)
        return len(new)

    async def remove(self, ids: Iterable[str]) -> int:
        gone = {hashed for each in ids if (hashed := self._hash(each)) in self._since}
        await self._store({each: at for each, at in self._since.items() if each not in gone}, gone)
        return len(gone)

    async def _store(self, since: dict[bytes, int], changed: Iterable[bytes]) -> None:
        touched = {each[0] % SHARDS for each in changed}
        states: dict[int, bytes] = {}
        for shard in touched:
            states[shard] = msgspec.msgpack.encode(
                {each: at for each, at in since.items() if each[0] % SHARDS == shard}
            )
            if len(states[shard]) > _SHARD_BYTES:
                raise RequestRefused(
                    f"the list of suppressed customers is full ({len(self._since)})",
                    advice="let go of customers who no longer send anything: headrace customer allow ID",
                )
        for shard, state in states.items():
            await self._log.append([], source=_STATE.format(shard), state=state)
        self._since = since

    def _hash(self, name: str) -> bytes:
        return blake2b(name.encode(), key=self._key, digest_size=16).digest()


class Customers:
    """What ``headrace customer`` asks for. config: its salts tell as what else an id may stand in the log."""

    def __init__(self, log: EventLog, config: Config, suppression: Suppression) -> None:
        self._log = log
        self._config = config
        self._suppression = suppression

    async def suppress(self, ids: Sequence[str]) -> Told:
        return Told(changed=await self._suppression.add(ids), suppressed=self._suppression.count)

    async def allow(self, ids: Sequence[str]) -> Told:
        return Told(changed=await self._suppression.remove(ids), suppressed=self._suppression.count)

    async def erase(self, ids: Sequence[str]) -> Told:
        """From the log and its dead letters. Raises RequestRefused for a log that can't."""
        wanted = frozenset(forms(self._config, ids))
        if not hasattr(self._log, "erase"):
            raise RequestRefused("this log can't erase customers", advice="let its retention drop their events")
        events, letters = await self._log.erase(wanted)
        return Told(self._suppression.count, 0, events, letters)


def forms(config: Config, ids: Iterable[str]) -> list[str]:
    """Each id and what it is hashed to, under the salt of today and former ones."""
    hashers = [Hasher(salt, key_id) for key_id, salt in config.privacy.salts()]
    return [form for each in ids for form in (each, *(str(hasher(each)) for hasher in hashers))]


__all__ = ["Customers", "CustomersAsked", "Suppression", "Told", "forms"]
