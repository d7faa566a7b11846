"""Questions to Redis that are asked at the same moment, sent as one write; their answers come back in the order of the questions.

Readers ask for one entity in several views, and many readers ask at once; a connection taken and given back, a time limit and two system calls for
each question cost several times what the question itself does. Nothing waits for company: the first question goes as soon as the loop
has run what is ready, and those that come while it is under way go together, on another connection or behind it. For questions
alone, since what was asked may be asked again: once, where a connection breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, cast

import hiredis
from redis import exceptions

_pack: Final[Any] = cast("Any", hiredis).pack_command

_AGAIN_S: Final = 0.1

_Question: TypeAlias = tuple[bytes, "asyncio.Future[Any]"]


class RedisPipe:
    """pool: redis-py's. connections: how many may be under way; what is asked meanwhile waits for the first that comes back."""

    def __init__(self, pool: Any, *, connections: int) -> None:
        self._pool = pool
        self._free = connections
        self._waiting: list[_Question] = []
        self._is_called = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, *command: bytes) -> Any:
        """The reply. Raises redis-py's ResponseError for a refusal, its other errors or OSError when the server doesn't answer."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((_pack(command), answer))
        if self._free and not self._is_called:
            self._is_called = True
            self._free -= 1
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def close(self) -> None:
        """What is under way fails."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # Again after a while: redis-py takes a cancellation that comes while it looks into its socket for a time-out of its own.
            await asyncio.wait(self._tasks, timeout=_AGAIN_S)
        self._fail(self._waiting, exceptions.ConnectionError("the store is closed"))
        self._waiting = []

    async def _work(self) -> None:
        try:
            while self._waiting:
                asked = [question for question in self._waiting if not question[1].done()]
                self._waiting = []
                self._is_called = False
                if asked:
                    await self._carry_out(asked)
        finally:
            self._free += 1

    async def _carry_out(self, asked: Sequence[_Question]) -> None:
        try:
            try:
                await self._try(asked)
            except exceptions.TimeoutError:
                raise
            except (exceptions.ConnectionError, OSError):
                await self._try(asked)  # the connection had died unseen, most likely
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to those who wait
            self._fail(asked, error)
        except BaseException:
            self._fail(asked, exceptions.ConnectionError("the store is closed"))
            raise

    async def _try(self, asked: Sequence[_Question]) -> None:
        """Answer all that have none yet."""
        open_ones = [question for question in asked if not question[1].done()]
        connection = await self._pool.get_connection()
        try:
            await connection.send_packed_command([packed for packed, _ in open_ones])
            for _, answer in open_ones:
                try:
                    reply = await connection.read_response()
                except exceptions.ResponseError as error:
                    if not answer.done():
                        answer.set_exception(error)
                else:
                    if not answer.done():  # a reader may have gone
                        answer.set_result(reply)
        except BaseException:
            # Cut off in between: what comes next on it belongs to nobody.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    @staticmethod
    def _fail(asked: Sequence[_Question], error: Exception) -> None:
        for _, answer in asked:
            if not answer.done():
                answer.set_exception(error)
