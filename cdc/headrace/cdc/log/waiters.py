"""Readers that stand at the end of a partition and want to know when it moves; of one event loop."""

from __future__ import annotations

import asyncio


class Waiters:
    """Who waits at which partition."""

    def __init__(self, partitions: int) -> None:
        self._waiting: list[set[asyncio.Future[bool]]] = [set() for _ in range(partitions)]

    async def wait(self, partition: int, timeout_s: float) -> bool:
        """True once the partition was woken, False after timeout_s."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        waiting = self._waiting[partition]
        waiting.add(future)
        timer = loop.call_later(timeout_s, _settle, future, False)
        try:
            return await future
        finally:
            timer.cancel()
            waiting.discard(future)

    def wake(self, partition: int) -> None:
        waiting = self._waiting[partition]
        for future in waiting:
            _settle(future, True)
        waiting.clear()

    def wake_all(self) -> None:
        for partition in range(len(self._waiting)):
            self.wake(partition)


def _settle(future: asyncio.Future[bool], woken: bool) -> None:
    if not future.done():
        future.set_result(woken)
