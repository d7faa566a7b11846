"""The online store contract over every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.register_assert_rewrite("contract.store_contract")

from contract.store_contract import StoreContract  # rewritten asserts show their values
from fix_servers import RedisCluster
from headrace.cdc.config import plugins
from headrace.features.store.base import OnlineStore
from headrace.features.store.memory import MemoryStore, MemoryStoreConfig
from headrace.features.store.redis import RedisStore, RedisStoreConfig
from headrace.features.store.sqlite import SQLiteStore, SQLiteStoreConfig


class TestMemory(StoreContract):
    @pytest.fixture
    def make(self) -> Callable[[str], OnlineStore]:
        first: dict[str, MemoryStore] = {}

        def make(project: str) -> OnlineStore:
            return MemoryStore(rows_of=first.setdefault(project, MemoryStore()))

        return make


class TestSQLite(StoreContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[str], OnlineStore]:
        return lambda project: SQLiteStore.from_config(SQLiteStoreConfig("online.db"), project=project, folder=tmp_path)


class TestRedis(StoreContract):
    protocol = 2

    @pytest.fixture
    def make(self, redis_url: str, tmp_path: Path) -> Callable[[str], OnlineStore]:
        config = RedisStoreConfig(f"{redis_url}?protocol={self.protocol}")
        return lambda project: RedisStore.from_config(config, project=project, folder=tmp_path)


class TestRedisInManySmallPieces(TestRedis):
    """Each flush of more than a few arguments goes as several scripts in one transaction, over RESP3."""

    protocol = 3

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("headrace.features.store.redisscript.MAX_ARGS", 3)


class TestRedisCluster(StoreContract):
    @pytest.fixture
    def make(self, redis_cluster: RedisCluster, tmp_path: Path) -> Callable[[str], OnlineStore]:
        config = RedisStoreConfig(redis_cluster.url, cluster=True)
        return lambda project: RedisStore.from_config(config, project=project, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("memory", MemoryStoreConfig()),
        ("sqlite", SQLiteStoreConfig()),
        ("redis", RedisStoreConfig("redis://127.0.0.1")),
    ],
)
def test_the_entry_point_makes_a_store_without_opening_anything(name: str, section: object, tmp_path: Path) -> None:
    kind = plugins("headrace.stores")[name]
    assert isinstance(section, kind.config_type)
    assert isinstance(kind.from_config(section, project="shop", folder=tmp_path), kind)
    assert list(tmp_path.iterdir()) == []
