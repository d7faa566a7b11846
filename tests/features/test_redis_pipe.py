"""Questions that share a write: everybody gets the answer to the own question, whatever becomes of the others and of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis.asyncio as redis_asyncio
from redis import exceptions

from headrace.features.store.redispipe import RedisPipe


class ScriptedConnection:
    """A stand-in for redis-py's connection: answers from a script, in order; ``gate`` holds its answers back."""

    def __init__(self, *replies: Any, gate: asyncio.Event | None = None) -> None:
        self.sent: list[bytes] = []
        self.is_disconnected = False
        self._replies = list(replies)
        self._gate = gate

    async def send_packed_command(self, commands: list[bytes]) -> None:
        self.sent += commands

    async def read_response(self) -> Any:
        if self._gate is not None:
            await self._gate.wait()
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def disconnect(self, nowait: bool) -> None:
        assert nowait
        self.is_disconnected = True


class ScriptedPool:
    def __init__(self, *connections: ScriptedConnection) -> None:
        self.connections = list(connections)
        self.taken = 0
        self.given_back: list[ScriptedConnection] = []

    async def get_connection(self) -> ScriptedConnection:
        await asyncio.sleep(0)
        self.taken += 1
        return self.connections.pop(0)

    async def release(self, connection: ScriptedConnection) -> None:
        self.given_back.append(connection)


def packed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[Any]:
    made: Any = redis_asyncio.ConnectionPool.from_url(redis_url)
    yield made
    await made.disconnect()


async def test_each_gets_the_answer_to_its_own_question(pool: Any) -> None:
    pipe = RedisPipe(pool, connections=3)
    await asyncio.gather(*[pipe.ask(b"SET", b"k%d" % number, b"v%d" % number) for number in range(200)])

    async def reader(first: int) -> list[bytes]:
        return [await pipe.ask(b"GET", b"k%d" % (number % 200)) for number in range(first, first + 50)]

    found = await asyncio.gather(*[reader(first) for first in range(0, 200, 7)])
    for first, values in zip(range(0, 200, 7), found, strict=True):
        assert values == [b"v%d" % (number % 200) for number in range(first, first + 50)]
    await pipe.close()


async def test_a_refusal_is_its_askers_alone(pool: Any) -> None:
    pipe = RedisPipe(pool, connections=1)
    await pipe.ask(b"SET", b"text", b"1")
    await pipe.ask(b"HSET", b"hash", b"f", b"2")
    questions = [pipe.ask(b"HGET", key, b"f") for key in (b"hash", b"text", b"hash")]
    first, second, third = await asyncio.gather(*questions, return_exceptions=True)
    assert (first, third) == (b"2", b"2")
    assert isinstance(second, exceptions.ResponseError) and "WRONGTYPE" in str(second)
    await pipe.close()


async def test_a_connection_that_the_server_closed_is_replaced(pool: Any, redis_url: str) -> None:
    pipe = RedisPipe(pool, connections=1)
    await pipe.ask(b"SET", b"k", b"1")
    async with redis_asyncio.Redis.from_url(redis_url) as client:
        await client.client_kill_filter(_type="normal", skipme=True)
        assert await asyncio.gather(pipe.ask(b"GET", b"k"), pipe.ask(b"GET", b"none")) == [b"1", None]
    await pipe.close()


async def test_questions_of_the_same_moment_share_a_connection_and_a_write() -> None:
    only = ScriptedConnection(b"1", b"2", b"3")
    pool = ScriptedPool(only)
    pipe = RedisPipe(pool, connections=4)
    assert await asyncio.gather(*[pipe.ask(b"GET", name) for name in (b"a", b"b", b"c")]) == [b"1", b"2", b"3"]
    assert only.sent == [packed(b"GET", name) for name in (b"a", b"b", b"c")]
    assert (pool.taken, pool.given_back) == (1, [only])


async def under_way(test: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not test():
            await asyncio.sleep(0)


async def test_what_comes_while_all_connections_are_busy_goes_together_afterwards() -> None:
    gate = asyncio.Event()
    first, second = ScriptedConnection(b"1", gate=gate), ScriptedConnection(b"2", gate=gate)
    third = ScriptedConnection(b"3", b"4")
    pool = ScriptedPool(first, second, third)
    pipe = RedisPipe(pool, connections=2)
    asked = [asyncio.create_task(pipe.ask(b"GET", b"a"))]
    await under_way(lambda: bool(first.sent))
    asked.append(asyncio.create_task(pipe.ask(b"GET", b"b")))
    await under_way(lambda: bool(second.sent))
    asked += [asyncio.create_task(pipe.ask(b"GET", name)) for name in (b"c", b"d")]
    for _ in range(10):
        await asyncio.sleep(0)
    assert pool.taken == 2
    gate.set()
    assert await asyncio.gather(*asked) == [b"1", b"2", b"3", b"4"]
    assert third.sent == [packed(b"GET", b"c"), packed(b"GET", b"d")]


async def test_a_reader_that_leaves_takes_no_answer_of_another_ones() -> None:
    gate = asyncio.Event()
    only = ScriptedConnection(b"1", b"2", b"3", gate=gate)
    pipe = RedisPipe(ScriptedPool(only), connections=1)
    asked = [asyncio.create_task(pipe.ask(b"GET", name)) for name in (b"a", b"b", b"c")]
    await under_way(lambda: len(only.sent) == 3)
    asked[1].cancel()
    gate.set()
    first, second, third = await asyncio.gather(*asked, return_exceptions=True)
    assert (first, third) == (b"1", b"3") and isinstance(second, asyncio.CancelledError)
    assert not only.is_disconnected


async def test_where_a_connection_breaks_only_what_has_no_answer_is_asked_again() -> None:
    broken = ScriptedConnection(b"1", exceptions.ConnectionError("gone"))
    other = ScriptedConnection(b"2", b"3")
    pipe = RedisPipe(ScriptedPool(broken, other), connections=1)
    assert await asyncio.gather(*[pipe.ask(b"GET", name) for name in (b"a", b"b", b"c")]) == [b"1", b"2", b"3"]
    assert broken.is_disconnected and not other.is_disconnected
    assert other.sent == [packed(b"GET", b"b"), packed(b"GET", b"c")]


@pytest.mark.parametrize("error", [exceptions.ConnectionError("gone"), OSError("gone")])
async def test_where_the_next_breaks_too_all_are_told(error: Exception) -> None:
    pool = ScriptedPool(ScriptedConnection(b"1", error), ScriptedConnection(error), ScriptedConnection(b"4"))
    pipe = RedisPipe(pool, connections=1)
    found = await asyncio.gather(*[pipe.ask(b"GET", name) for name in (b"a", b"b", b"c")], return_exceptions=True)
    assert found == [b"1", error, error]
    assert len(pool.given_back) == 2
    assert await pipe.ask(b"GET", b"d") == b"4"


async def test_a_server_that_is_too_slow_is_not_asked_twice() -> None:
    slow = exceptions.TimeoutError("slow")
    pool = ScriptedPool(ScriptedConnection(slow), ScriptedConnection(b"2"))
    pipe = RedisPipe(pool, connections=1)
    with pytest.raises(exceptions.TimeoutError):
        await pipe.ask(b"GET", b"a")
    assert await pipe.ask(b"GET", b"b") == b"2"


async def test_a_close_tells_those_who_wait() -> None:
    gate = asyncio.Event()
    busy = ScriptedConnection(b"1", gate=gate)
    pipe = RedisPipe(ScriptedPool(busy), connections=1)
    asked = [asyncio.create_task(pipe.ask(b"GET", b"a"))]
    await under_way(lambda: bool(busy.sent))
    asked.append(asyncio.create_task(pipe.ask(b"GET", b"b")))
    await asyncio.sleep(0)
    await pipe.close()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in found] == [exceptions.ConnectionError] * 2
    assert busy.is_disconnected
