"""Named subscriptions: their place is kept in the log, as the cursor of a group, until the subscriber commits a later one.

A cursor holds the retention back, and a subscriber that never comes again would hold it back for ever: a name that nobody has used for
``subscribe.forget_after`` is forgotten. When it was used stands in the cursor's own state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from headrace.cdc.log.base import ConsumerLog
from headrace.sinks.query import Place, RequestError

PREFIX: Final = "subscription:"
_TOUCH_EVERY_S: Final = 60.0


class NamedPlaces:
    """Of one log. clock: seconds since 1970."""

    def __init__(
        self, log: ConsumerLog, *, forget_after_s: float | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._log = log
        self._forget_after_s = forget_after_s
        self._clock = clock

    async def place(self, name: str, partitions: list[int]) -> dict[int, int] | None:
        """Its offsets in these partitions; None for a name that is new in one of them."""
        found: dict[int, int] = {}
        for partition in partitions:
            cursor = await self._log.committed(PREFIX + name, partition)
            if cursor is None:
                return None
            found[partition] = cursor.offset
        return found

    async def commit(self, name: str, place: Place) -> None:
        """Everything before the place is done; durable on return. Raises RequestError (409) for a place before the stored one."""
        state = msgspec.msgpack.encode(self._clock())
        for partition, offset in place.offsets.items():
            stored = await self._log.committed(PREFIX + name, partition)
            if stored is not None and stored.offset > offset:
                raise RequestError(
                    f"subscription {name}: offset {offset} is before {stored.offset}, which was committed already",
                    status=409,
                    advice="go on; to read events again use a cursor with from=, without a name",
                )
            await self._log.commit(PREFIX + name, partition, offset, state=state)

    async def touch(self, name: str, offsets: dict[int, int]) -> None:
        """Somebody reads it now."""
        for partition in offsets:
            stored = await self._log.committed(PREFIX + name, partition)
            if stored is not None and self._clock() - _used(stored.state) > _TOUCH_EVERY_S:
                await self._log.commit(
                    PREFIX + name, partition, stored.offset, state=msgspec.msgpack.encode(self._clock())
                )

    async def names(self) -> dict[str, dict[str, Any]]:
        """Every name: its offsets, how many events it is behind, seconds since it was used."""
        found: dict[str, dict[str, Any]] = {}
        for group, cursors in (await self._log.groups()).items():
            if not group.startswith(PREFIX):
                continue
            lag = 0
            for partition, cursor in cursors.items():
                lag += (await self._log.bounds(partition)).end - cursor.offset
            used = max(_used(cursor.state) for cursor in cursors.values())
            found[group.removeprefix(PREFIX)] = {
                "offsets": {str(partition): cursor.offset for partition, cursor in cursors.items()},
                "lag_events": lag,
                "unused_s": round(max(0.0, self._clock() - used)),
            }
        return found

    async def forget(self, name: str) -> bool:
        """Let go of it; False when it isn't there."""
        if PREFIX + name not in await self._log.groups():
            return False
        await self._log.forget(PREFIX + name)
        return True

    async def forget_unused(self) -> list[str]:
        """Names that nobody has used for too long; they are gone on return."""
        if self._forget_after_s is None:
            return []
        gone = [name for name, told in (await self.names()).items() if told["unused_s"] > self._forget_after_s]
        for name in gone:
            await self._log.forget(PREFIX + name)
        return gone


def _used(state: bytes) -> float:
    return msgspec.msgpack.decode(state, type=float) if state else 0.0


__all__ = ["NamedPlaces"]
