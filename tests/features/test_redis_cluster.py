"""What only a Redis Cluster has: a flush over several servers that is cut in the middle, and servers that lose their newest writes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from features.test_engine import is_done, make_engine, run_to_the_end, running, until
from fix_features import START_US, OrdersTable, SlicedLog, random_life, random_row
from fix_servers import RedisCluster
from headrace.cdc.errors import StoreConflict, StoreError
from headrace.features import feast as adapter
from headrace.features.loading import load_definitions
from headrace.features.spec import EntityKey, Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, EntityWrite, FeatureRow, OnlineStore, ViewWrite
from headrace.features.store.memory import MemoryStore
from headrace.features.store.redis import RedisStore, RedisStoreConfig

CLICKS = ViewSpec("clicks", (Field("customer_id", ValueType.INT64),), (Field("clicks_1h", ValueType.INT64),), "c1")
MANY = 40
"""Entities, so that each of three servers has some."""


def store_at(cluster: RedisCluster) -> RedisStore:
    return RedisStore.from_config(
        RedisStoreConfig(f"{cluster.url}/0?decode_responses=true&protocol=3", cluster=True),
        project="shop",
        folder=Path(),
    )


def write_of(offset: int, keys: Sequence[int] = range(MANY)) -> ViewWrite:
    entities = [EntityWrite((key,), (offset,), 1, b"s%d" % offset, 10) for key in keys]
    rows = {b"r%d" % key: Contribution((key,), b"c%d" % offset) for key in keys}
    return ViewWrite(CLICKS, entities, rows, Checkpoint("c1", "g", (offset,), 1))


async def everything(store: OnlineStore, view: ViewSpec) -> dict[EntityKey, FeatureRow | None]:
    keys = sorted(await store.keys(view))
    names = [field.name for field in view.fields]
    return dict(zip(keys, await store.read(view, names, keys), strict=True))


@pytest.fixture
async def store(redis_cluster: RedisCluster) -> AsyncIterator[RedisStore]:
    store = store_at(redis_cluster)
    await store.open()
    yield store
    await store.close()


class Killed(Exception):
    """In place of the end of the process."""


@contextlib.contextmanager
def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """From the numbered command, or pipeline to one server, on nothing is sent any more. Yields the count so far."""
    count = [0]

    def watched(real: Any) -> Any:
        async def send(node: Any, *arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] >= number:
                raise Killed
            return await real(node, *arguments, **options)

        return send

    from redis.asyncio import cluster

    with monkeypatch.context() as patch:
        for name in ("execute_command", "execute_pipeline"):
            patch.setattr(cluster.ClusterNode, name, watched(getattr(cluster.ClusterNode, name)))
        yield count


async def test_an_engine_killed_at_any_command_ends_with_the_rows_of_an_undisturbed_run(
    definitions: Path, redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = load_definitions(definitions)
    table = random_life(91, 40)
    log = SlicedLog()
    log.most = 20
    await log.add(*table.events)
    calm = MemoryStore()
    async with running(make_engine(views, calm, log)) as engine:
        await until(lambda: is_done(engine, 40))
    await calm.open()
    wanted = [await everything(calm, view.spec) for view in views]
    number = 0
    while True:
        number += 1
        redis_cluster.flush()
        with killed_at(number, monkeypatch) as count:
            with contextlib.suppress(Killed, StoreError):
                await run_to_the_end(make_engine(views, store_at(redis_cluster), log), 40)  # type: ignore[arg-type]  # any store
            was_cut = count[0] >= number
        await run_to_the_end(make_engine(views, store_at(redis_cluster), log), 40)  # type: ignore[arg-type]  # any store
        store = store_at(redis_cluster)
        await store.open()
        assert [await everything(store, view.spec) for view in views] == wanted, f"killed at command {number}"
        await store.close()
        if not was_cut:
            break
    assert number > 20


async def test_a_decided_flush_is_carried_out_by_whoever_opens_the_view_next(
    store: RedisStore, redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await store.checkpoint(CLICKS) is None
    await store.write([write_of(1)])
    with killed_at(2, monkeypatch), pytest.raises(Killed):  # the decision is the first command
        await store.write([write_of(2)])
    after = store_at(redis_cluster)
    await after.open()
    assert await after.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((1,), 1)]
    assert await after.checkpoint(CLICKS) == Checkpoint("c1", "g", (2,), 1)
    assert [row for row in (await everything(after, CLICKS)).values() if row != FeatureRow((2,), 1)] == []
    with pytest.raises(StoreConflict):
        await store.write([write_of(1)])
    await after.close()


async def test_a_server_that_lost_rows_shows_as_another_definition(
    store: RedisStore, redis_cluster: RedisCluster
) -> None:
    assert await store.checkpoint(CLICKS) is None
    for offset in (1, 2, 3):
        await store.write([write_of(offset)])
        if offset == 1:
            kept = {port: dumped(port) for port in redis_cluster.ports}
    loser = next(port for port in redis_cluster.ports if not any(b":checkpoint" in key for key in kept[port]))
    restore(loser, kept[loser])
    with pytest.raises(StoreConflict):
        await store.write([write_of(4)])
    for _ in range(2):  # and it goes on saying so
        after = store_at(redis_cluster)
        await after.open()
        found = await after.checkpoint(CLICKS)
        assert found is not None
        assert found.spec_hash == ""
        await after.close()
    await store.drop(CLICKS)
    assert redis_cluster.keys() == set()
    assert await store.checkpoint(CLICKS) is None
    await store.write([write_of(1)])
    await store.write([write_of(2)])


def dumped(port: int) -> dict[bytes, bytes]:
    with redis.Redis(port=port) as each:
        return {key: each.dump(key) for key in each.keys("*")}


def restore(port: int, kept: dict[bytes, bytes]) -> None:
    """As after a failover to a replica that stood there."""
    with redis.Redis(port=port) as each:
        for key in each.keys("*"):
            each.delete(key)
        for key, value in kept.items():
            each.restore(key, 0, value)


async def test_a_view_whose_rows_a_server_lost_is_built_anew(definitions: Path, redis_cluster: RedisCluster) -> None:
    (view,) = load_definitions(definitions)
    table, chance = OrdersTable(), random.Random(92)
    for key in range(120):
        table.insert(random_row(chance, key, START_US) | {"customer_id": key % MANY, "status": "paid"}, START_US)
    log = SlicedLog()
    log.most = 25
    await log.add(*table.events)
    await run_to_the_end(make_engine((view,), store_at(redis_cluster), log), 120)
    store = store_at(redis_cluster)
    await store.open()
    wanted = await everything(store, view.spec)
    loser = next(port for port in redis_cluster.ports if not any(b":checkpoint" in key for key in dumped(port)))
    restore(loser, {})
    assert await everything(store, view.spec) != wanted
    await run_to_the_end(make_engine((view,), store_at(redis_cluster), log), 120)
    assert await everything(store, view.spec) == wanted
    assert await store.checkpoint(view.spec.draft) is None
    table.insert(random_row(chance, 120, START_US), START_US)
    await log.add(table.events[-1])  # and it goes on, with marks that fit
    await run_to_the_end(make_engine((view,), store_at(redis_cluster), log), 121)
    found = await store.checkpoint(view.spec)
    assert found is not None
    assert (found.spec_hash, found.offsets) == (view.spec.spec_hash, (121,))
    wanted = await everything(store, view.spec)
    restore(loser, {})
    again = await store.checkpoint(view.spec)
    assert again is not None
    assert again.spec_hash == "", "a second loss is noticed as the first one was"
    await run_to_the_end(make_engine((view,), store_at(redis_cluster), log), 121)
    assert await everything(store, view.spec) == wanted
    await store.close()


async def test_a_failover_to_a_replica_that_has_everything_goes_on(tmp_path: Path) -> None:
    cluster = RedisCluster(replicas=1)
    try:
        store = store_at(cluster)
        await store.open()
        assert await store.checkpoint(CLICKS) is None
        await store.write([write_of(1)])
        for port in cluster.ports[:3]:
            with redis.Redis(port=port) as each:
                assert each.wait(1, 10_000) >= 1
        cluster.kill(cluster.ports[1])
        offset = 2
        async with asyncio.timeout(60):
            while True:
                try:
                    found = await store.checkpoint(CLICKS)
                    assert found is not None
                    assert found.spec_hash == "c1"
                    await store.write([write_of(offset)])
                    break
                except StoreError:
                    await asyncio.sleep(0.05)  # the servers agree among themselves, and tell nobody when
        assert [row for row in (await everything(store, CLICKS)).values() if row != FeatureRow((offset,), 1)] == []
        assert len(await everything(store, CLICKS)) == MANY
        await store.close()
    finally:
        cluster.remove()


@pytest.mark.filterwarnings("ignore")  # Feast's own, about its coming releases
async def test_a_stock_feast_sdk_reads_it(store: RedisStore, redis_cluster: RedisCluster, tmp_path: Path) -> None:
    feast = importlib.import_module("feast")
    config = RedisStoreConfig(redis_cluster.url, cluster=True)
    await store.write([write_of(7)])
    yaml = tmp_path / "feature_store.yaml"
    yaml.write_text(adapter.feature_store_yaml(config, project="shop", folder=tmp_path, repo=tmp_path))
    adapter.apply((CLICKS,), project="shop", feature_store_yaml=yaml, store=config, folder=tmp_path)
    entities = [{"customer_id": key} for key in (*range(MANY), 999)]
    reader = feast.FeatureStore(repo_path=str(tmp_path))
    found = reader.get_online_features(features=["clicks:clicks_1h"], entity_rows=entities).to_dict()
    assert found["clicks_1h"] == [7] * MANY + [None]


async def test_a_server_that_is_no_cluster_is_told_as_such(redis_url: str) -> None:
    store = RedisStore.from_config(
        RedisStoreConfig(redis_url.removesuffix("/0"), cluster=True), project="shop", folder=Path()
    )
    with pytest.raises(StoreError, match="no Redis Cluster answers at 127") as told:
        await store.open()
    assert "leave features.store.cluster out" in told.value.advice


def test_a_cluster_has_no_databases_and_no_socket() -> None:
    for url in ("redis://127.0.0.1:6379/1", "unix:///tmp/redis.sock"):
        with pytest.raises(ValueError, match="cluster"):
            RedisStoreConfig(url, cluster=True)
