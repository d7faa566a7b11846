"""What only the Redis store has: a server that refuses, dies, forgets or answers too late, and names it shares with Feast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from fix_servers import RedisServer
from headrace.cdc.config import Duration
from headrace.cdc.errors import Action, DefinitionError, StoreConflict, StoreError, StoreRefused
from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, EntityWrite, FeatureRow, ViewWrite
from headrace.features.store.redis import RedisStore, RedisStoreConfig

CLICKS = ViewSpec(
    "clicks",
    (Field("customer_id", ValueType.INT64),),
    (Field("clicks_1h", ValueType.INT64), Field("page", ValueType.STRING)),
    "c1",
)
ONE_KEY = b"\x01\0\0\0\x02\0\0\0\x0b\0\0\0customer_id\x04\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0"


def store_at(url: str, *, project: str = "shop", key_ttl: Duration | None = None) -> RedisStore:
    return RedisStore.from_config(RedisStoreConfig(url, key_ttl), project=project, folder=Path())


def write_of(offset: int, *, page: str = "a", state: bytes = b"s") -> ViewWrite:
    entity = EntityWrite((1,), (offset, page), 1, state, 10)
    return ViewWrite(CLICKS, [entity], {b"r": Contribution((1,), b"c")}, Checkpoint("c1", "g", (offset,), 1))


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    store = store_at(redis_url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    server = RedisServer()
    yield server
    server.remove()


class Link:
    """A TCP proxy before Redis that can swallow the answers, or all of it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._is_deaf = False
        self._writers: list[asyncio.StreamWriter] = []
        self.swallowed = asyncio.Event()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def swallow_answers(self) -> None:
        self._is_deaf = True

    def mend(self) -> None:
        self._is_deaf = False

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, far_writer]

        async def requests() -> None:
            while data := await reader.read(1 << 16):
                far_writer.write(data)

        async def answers() -> None:
            while data := await far_reader.read(1 << 16):
                if self._is_deaf:
                    self.swallowed.set()
                    writer.close()
                    return
                writer.write(data)

        await asyncio.gather(requests(), answers(), return_exceptions=True)
        far_writer.close()


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[Link]:
    link = Link(redis_server.port)
    yield link
    await link.stop()


async def test_a_lost_answer_is_repaired_by_writing_the_same_again(redis_url: str, link: Link) -> None:
    store = store_at(await link.start())
    await store.open()
    await store.write([write_of(1)])
    link.swallow_answers()
    with pytest.raises(StoreError, match=r"127\.0\.0\.1") as lost:
        await store.write([write_of(2)])
    assert lost.value.action is Action.RETRY
    assert link.swallowed.is_set(), "Redis had applied the write"
    link.mend()
    await store.write([write_of(2)])
    await store.write([write_of(3)])
    assert await store.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((3,), 1)]
    await store.close()


async def test_after_a_lost_answer_another_write_is_refused_until_the_engine_looks(redis_url: str, link: Link) -> None:
    store = store_at(await link.start())
    await store.open()
    await store.write([write_of(1)])
    link.swallow_answers()
    with pytest.raises(StoreError):
        await store.write([write_of(2)])
    link.mend()
    with pytest.raises(StoreConflict):
        await store.write([write_of(3)])
    assert await store.checkpoint(CLICKS) == Checkpoint("c1", "g", (2,), 1)
    await store.write([write_of(3)])
    await store.close()


async def test_a_cancelled_write_leaves_the_store_usable(store: RedisStore) -> None:
    for offset in range(1, 30):
        writing = asyncio.create_task(store.write([write_of(offset)]))
        for _ in range(offset % 7):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await store.write([write_of(offset)])
        assert await store.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((offset,), 1)]


async def test_a_dead_server_is_told_by_host_and_port_and_tried_again(own_server: RedisServer) -> None:
    store = store_at(own_server.url)
    await store.open()
    await store.write([write_of(1)])
    own_server.kill()
    for call in (store.write([write_of(2)]), store.checkpoint(CLICKS), store.read(CLICKS, ["page"], [(1,)])):
        with pytest.raises(StoreError, match=f"127.0.0.1:{own_server.port}") as dead:
            await call
        assert dead.value.action is Action.RETRY
    own_server.start()  # with nothing in it: this server keeps no file
    with pytest.raises(StoreConflict, match="lost its newest writes"):
        await store.write([write_of(2)])
    assert await store.checkpoint(CLICKS) is None
    await store.close()


async def test_a_password_is_in_no_message_and_no_repr(redis_url: str, redis_server: RedisServer) -> None:
    url = f"redis://nobody:hunter2@127.0.0.1:{redis_server.port}/0"
    with pytest.raises(StoreRefused, match=f"127.0.0.1:{redis_server.port}") as refused:
        await store_at(url).open()
    assert refused.value.action is Action.STOP
    assert "hunter2" not in refused.value.paragraph()
    assert "hunter2" not in repr(RedisStoreConfig(url))
    with pytest.raises(StoreError) as unreachable:
        await store_at("redis://nobody:hunter2@127.0.0.1:1/0").open()
    assert "hunter2" not in unreachable.value.paragraph()


async def test_a_user_without_the_rights_is_refused_with_the_rights_it_needs(
    redis_url: str, redis_server: RedisServer
) -> None:
    with redis.Redis(port=redis_server.port) as admin:
        admin.acl_setuser("reader", enabled=True, passwords=["+pw"], commands=["+ping"], keys=["*"])
        store = store_at(f"redis://reader:pw@127.0.0.1:{redis_server.port}/0")
        await store.open()
        with pytest.raises(StoreRefused) as refused:
            await store.write([write_of(1)])
        assert "@scripting" in refused.value.advice
        admin.acl_setuser("reader", categories=["+@hash", "+@sortedset", "+@scripting", "+@keyspace"])
        await store.write([write_of(1)])
        await store.drop(CLICKS)
        await store.close()
        admin.acl_deluser("reader")


async def test_a_full_server_takes_nothing_and_is_tried_again(redis_url: str, redis_server: RedisServer) -> None:
    store = store_at(redis_url)
    await store.open()
    await store.write([write_of(1)])
    with redis.Redis(port=redis_server.port) as admin:
        admin.config_set("maxmemory", "100kb")
        try:
            with pytest.raises(StoreError, match="OOM") as full:
                await store.write([write_of(2)])
        finally:
            admin.config_set("maxmemory", "0")
    assert full.value.action is Action.RETRY
    assert await store.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((1,), 1)]
    await store.write([write_of(2)])
    await store.close()


async def test_something_else_under_our_names_is_refused(store: RedisStore, redis_server: RedisServer) -> None:
    with redis.Redis(port=redis_server.port) as other:
        other.set("_hr:shop:clicks:checkpoint", "mine")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        await store.write([write_of(1)])


async def test_a_drop_that_was_cut_short_shows_as_another_definition(
    store: RedisStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write([write_of(1)])
    monkeypatch.setattr(RedisStore, "_scan", cut_short)
    with pytest.raises(StoreError):
        await store.drop(CLICKS)
    monkeypatch.undo()
    after = store_at(redis_url)
    await after.open()
    stored = await after.checkpoint(CLICKS)
    assert stored is not None
    assert stored.spec_hash != CLICKS.spec_hash
    await after.drop(CLICKS)
    assert await after.checkpoint(CLICKS) is None
    await after.close()


async def cut_short(*args: object) -> AsyncIterator[list[bytes]]:
    raise redis.exceptions.ConnectionError("cut")
    yield []


async def test_a_removed_entity_and_a_dropped_view_leave_no_key(store: RedisStore, redis_server: RedisServer) -> None:
    with redis.Redis(port=redis_server.port) as admin:
        await store.write([write_of(1)])
        assert admin.exists(ONE_KEY + b"shop") == 1
        gone = ViewWrite(CLICKS, [EntityWrite((1,), None, 1, b"")], {b"r": None}, Checkpoint("c1", "g", (2,), 1))
        await store.write([gone])
        assert admin.keys() == [b"_hr:shop:clicks:checkpoint"]
        await store.write([write_of(3)])
        await store.drop(CLICKS)
        assert admin.keys() == []


async def test_feasts_own_fields_and_keys_are_left_alone(store: RedisStore, redis_server: RedisServer) -> None:
    with redis.Redis(port=redis_server.port) as feast:
        feast.hset(ONE_KEY + b"shop", mapping={b"_ts:other": b"", b"abcd": b"\x20\x01"})
        feast.hset(ONE_KEY + b"myshop", mapping={b"_ts:clicks": b""})
        feast.set("unrelated", "x")
        await store.write([write_of(1)])
        await store.drop(CLICKS)
        assert feast.hgetall(ONE_KEY + b"shop") == {b"_ts:other": b"", b"abcd": b"\x20\x01"}
        assert sorted(feast.keys()) == sorted([ONE_KEY + b"shop", ONE_KEY + b"myshop", b"unrelated"])


async def test_key_ttl_is_set_anew_by_each_write(redis_url: str, redis_server: RedisServer) -> None:
    store = store_at(redis_url, key_ttl=Duration.parse("1h"))
    await store.open()
    with redis.Redis(port=redis_server.port) as admin:
        await store.write([write_of(1)])
        admin.expire(ONE_KEY + b"shop", 100)
        await store.write([write_of(2)])
        assert 3590 < admin.ttl(ONE_KEY + b"shop") <= 3600
    await store.close()


async def test_a_large_flush_goes_through_as_one(store: RedisStore) -> None:
    entities = [EntityWrite((key,), (key, "x" * 50), 1, b"s" * 2000, key) for key in range(12_000)]
    await store.write([ViewWrite(CLICKS, entities, {}, Checkpoint("c1", "g", (1,), 1))])
    keys = [(key,) for key in range(12_000)]
    rows = await store.read(CLICKS, ["clicks_1h"], keys)
    assert [row and row.values for row in rows] == [(key,) for key in range(12_000)]
    assert len(await store.keys(CLICKS)) == 12_000


async def test_features_whose_feast_names_collide_are_refused(store: RedisStore) -> None:
    fields = tuple(Field(name, ValueType.INT64) for name in ("f60935", "f93571"))  # found by trying
    view = ViewSpec("clicks", CLICKS.join_keys, fields, "x")
    with pytest.raises(DefinitionError, match="clicks:f60935 and clicks:f93571"):
        await store.write([ViewWrite(view, [], {}, Checkpoint("x", "g", (1,), 1))])


def of_many(view: ViewSpec, first: int, values: tuple[object, ...]) -> ViewWrite:
    """Twelve entities from this number on."""
    keys = range(first, first + 12)
    entities = [EntityWrite((key,), values, 1, b"s", 10) for key in keys]  # type: ignore[arg-type]  # ints and texts
    rows = {b"r%d" % key: Contribution((key,), b"c") for key in keys}
    return ViewWrite(view, entities, rows, Checkpoint(view.spec_hash, "g", (first,), 1))


SPLIT = ViewSpec(
    "clicks", CLICKS.join_keys, (Field("clicks_1h", ValueType.INT64), Field("more", ValueType.INT64)), "c2"
)
OTHER_KEY = ViewSpec("clicks", (Field("visitor", ValueType.INT64),), SPLIT.fields, "c3")


async def promote_cut_at(
    url: str, store: RedisStore, view: ViewSpec, number: int, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """A promotion over rows half of which have a successor, whose numbered command finds the link cut; whether it came that far."""
    redis.Redis.from_url(url).flushdb()
    await store.checkpoint(CLICKS)
    await store.checkpoint(view.draft)
    await store.write([of_many(CLICKS, 1, (1, "a"))])
    await store.write([of_many(view.draft, 7, (2, 3))])
    calls = 0
    real = redis.asyncio.Redis.execute_command

    async def cut(client: object, *args: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            raise redis.ConnectionError
        return await real(client, *args, **options)  # type: ignore[arg-type]  # its own object

    with monkeypatch.context() as patch:
        patch.setattr("redis.asyncio.Redis.execute_command", cut)
        try:
            await store.promote(view)
        except StoreError:
            return True
    return False


@pytest.mark.parametrize("view", [SPLIT, OTHER_KEY], ids=["other features", "other join key"])
async def test_a_promotion_cut_anywhere_is_finished_by_the_next_one(
    view: ViewSpec, redis_url: str, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.store.redis._SCAN_COUNT", 3)
    monkeypatch.setattr("headrace.features.store.redis._MOVE_CHUNK", 2)
    number = 1
    while await promote_cut_at(redis_url, store, view, number, monkeypatch):
        seen = await store.read(view, ["clicks_1h"], [(key,) for key in range(7, 13)])
        if view is SPLIT:
            assert None not in seen, f"cut at {number}: an entity with a former and a new row had none"
        await store.promote(view)
        assert sorted(await store.keys(view)) == [(key,) for key in range(7, 19)], number
        rows = await store.read(view, ["clicks_1h", "more"], [(key,) for key in range(1, 19)])
        assert [None if row is None else row.values for row in rows] == [None] * 6 + [(2, 3)] * 12, number
        assert await store.contributions(view, [b"r6", b"r7"]) == [None, Contribution((7,), b"c")]
        assert len(await store.due(view, 10, 100)) == 12
        await store.drop(view)
        assert redis.Redis.from_url(redis_url).keys() == [], f"cut at {number}"
        number += 1
    assert number > 10


async def test_a_half_promotion_and_a_third_definition_leave_nothing_behind(
    redis_url: str, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.store.redis._MOVE_CHUNK", 2)
    number = 1
    while await promote_cut_at(redis_url, store, SPLIT, number, monkeypatch):
        # The store of the next process, which knows only the third definition.
        after = store_at(redis_url)
        await after.open()
        await after.drop(OTHER_KEY)
        await after.drop(OTHER_KEY.draft)
        await after.close()
        assert redis.Redis.from_url(redis_url).keys() == [], f"cut at {number}"
        number += 1


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", "redis://", "unix://", ""])
def test_an_address_that_is_none_is_refused_by_the_configuration(url: str) -> None:
    with pytest.raises(ValueError, match="redis://host:port/db"):
        RedisStoreConfig(url)


@pytest.mark.parametrize(
    ("url", "place", "database"),
    [
        ("redis://127.0.0.1", "127.0.0.1:6379", 0),
        ("rediss://u:p@redis.example.com:6380/3", "redis.example.com:6380", 3),
        ("redis://h?db=2", "h:6379", 2),
        ("unix:///run/redis.sock?db=4", "/run/redis.sock", 4),
    ],
)
def test_place_and_database_of_an_address(url: str, place: str, database: int) -> None:
    config = RedisStoreConfig(url)
    assert (config.place, config.database) == (place, database)
