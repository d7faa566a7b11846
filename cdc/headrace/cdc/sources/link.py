"""A query connection that notices a dead link: one that is open, and on which no answer ever comes.

A cut link is an error at once. One that swallows bytes (a firewall that forgot it, a proxy whose far side is gone) is none: TCP's own
timers end at the proxy, and a query would wait for ever. So a connection watches its own waits: when no byte has come for long, the
socket is shut down, and the waiting query fails as on any broken link. A server that is still at work on the query (a lock, a long
scan) isn't dead: who can ask it by another connection gives ``is_working``.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import psycopg

_ENDLESS = (
    "select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings"
    " where name in ('idle_session_timeout', 'transaction_timeout')"
)
"""Not part of the connection string as the other pinned settings: a server that doesn't know one would refuse the connection."""


class WatchedConnection(psycopg.AsyncConnection[tuple[object, ...]]):
    """psycopg's connection, made by ``connect`` and watched from ``watch`` on."""

    _heard_at: float | None = None
    _silence_s = 0.0
    _is_working: Callable[[], Awaitable[bool]] | None = None
    _timer: asyncio.TimerHandle | None = None
    _asking: asyncio.Task[None] | None = None
    _is_severed = False

    async def watch(self, silence_s: float, *, is_working: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Watch from now on, and lift the server's limits on idle sessions and long transactions for this one."""
        self._silence_s = silence_s
        self._is_working = is_working
        self._tick()
        await self.execute(_ENDLESS)

    async def wait(self, gen: Generator[Any, Any, Any], *args: Any, **more: Any) -> Any:
        self._heard_at = time.monotonic()
        try:
            return await super().wait(self._hearing(gen), *args, **more)
        except psycopg.OperationalError as error:
            if not self._is_severed:
                raise
            raise psycopg.OperationalError(f"no answer for {self._silence_s:.0f} s, though the link is open") from error
        finally:
            self._heard_at = None

    def _hearing(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same steps; each time the socket was ready is noted. A value of 100 MB takes its time, and is no silence."""
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    self._heard_at = time.monotonic()
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            if self._asking is not None:
                self._asking.cancel()
                await asyncio.gather(self._asking, return_exceptions=True)
                self._asking = None
        finally:
            await super().close()

    def sever(self) -> None:
        """Shut the socket down: whoever waits on it gets an error now, without a cancellation that the server would have to answer."""
        if self.closed:
            return
        self._is_severed = True
        try:
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as ours:
                ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # shut already

    def _tick(self) -> None:
        if self.closed:
            return
        self._timer = asyncio.get_running_loop().call_later(self._silence_s / 4, self._tick)
        if self._heard_at is None or time.monotonic() - self._heard_at < self._silence_s:
            return
        if self._is_working is None:
            self.sever()
        elif self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(self._is_working))

    async def _ask(self, is_working: Callable[[], Awaitable[bool]]) -> None:
        try:
            is_at_work = await is_working()
        except psycopg.Error:
            is_at_work = False
        if not is_at_work:
            self.sever()
        elif self._heard_at is not None:
            self._heard_at = time.monotonic()


async def is_backend_at_work(connection: psycopg.AsyncConnection[tuple[object, ...]], pid: int) -> bool:
    """Whether the server works on a query of backend pid; False when it is idle, or waits for its client to read or write.

    A slot in the making waits for WAL, which the server counts among the waits for clients.
    """
    cursor = await connection.execute(
        "select state = 'active' and (wait_event_type is distinct from 'Client' or wait_event in ('WalSenderWaitForWal',"
        " 'WalSenderWaitForWAL')) from pg_catalog.pg_stat_activity where pid = %s",
        [pid],
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


__all__ = ["WatchedConnection", "is_backend_at_work"]
