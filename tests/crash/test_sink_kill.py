"""kill -9 of ``headrace run`` while it delivers to a webhook that fails, and to streams over links that break: each customer's events have their effect once and in order.

The webhook is an idempotent one that knows ids, and it outlives every kill. It answers 503, 429 and 409-like repeats at random, and cuts
nothing (test_personalize.py does that). Judged against the log itself: what it holds, in its order, is what had an effect.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
import redis.asyncio as redis_asyncio

from fix_servers import Database
from fix_streams import NatsServer
from headrace.cdc.config import load
from headrace.cdc.demo.client import Client
from headrace.cdc.demo.embedded import free_port
from headrace.cdc.demo.shop import Shop, Simulator
from headrace.cdc.log.reader import open_reader
from hook_server import hook_server
from proxy import Proxy

DEADLINE_S = 60.0
_MAIN = "import sys; from headrace.cdc.cli import main; sys.exit(main())"


def _wait(process: subprocess.Popen[bytes], done: Callable[[], bool], what: str, said: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert process.poll() is None, f"{what}: headrace stopped\n{said()}"
        assert time.monotonic() < end, f"{what} took too long\n{said()}"
        time.sleep(0.02)  # a poll of another process over HTTP: there is no event to wait on


@pytest.mark.parametrize(("seed", "processes"), [(3, 1), (4, 2)])
def test_kills_while_delivering_lose_double_and_reorder_nothing(
    database: Database, tmp_path: Path, seed: int, processes: int
) -> None:
    deliver_over_kills(database, tmp_path, seed=seed, kills=4, processes=processes)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [31, 32])
def test_dozens_of_kills_while_delivering(database: Database, tmp_path: Path, seed: int) -> None:
    deliver_over_kills(database, tmp_path, seed=seed, kills=60, processes=1 + seed % 2)


def deliver_over_kills(database: Database, folder: Path, *, seed: int, kills: int, processes: int) -> None:
    chance = random.Random(seed)
    shop = Shop(database.dsn, customers=60, products=12)
    shop.create()
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}")

    def said() -> str:
        return f"seed {seed}\n{client.status()}\n" + (folder / "run.log").read_text(errors="replace")[-3000:]

    with hook_server() as hook:
        (folder / "headrace.yaml").write_text(
            f"""
log: {{path: shop.log.db}}
processes: {processes}
sources:
  shop: {{type: postgres, dsn: "{database.dsn}", tables: ["shop.*"], slot: sink_{database.name}, publication: sink_{database.name}}}
events:
  shop.orders: {{key: customer_id, occurred_at: placed_at}}
sinks:
  crm: {{type: http, concurrency: 32, when: {{table: [shop.orders]}}, destination: {{url: "{hook.url}"}}}}
server: {{listen: "127.0.0.1:{port}"}}
"""
        )

        def start() -> subprocess.Popen[bytes]:
            with (folder / "run.log").open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-c", _MAIN, "run", "headrace.yaml"],
                    cwd=folder, env={**os.environ, "PYTHONFAULTHANDLER": "1"}, stdout=log, stderr=log,
                )  # fmt: skip

        def fails(body: Any) -> int:
            draw = chance.random()
            return 503 if draw < 0.03 else 429 if draw < 0.04 else 200

        hook.answer = fails
        simulator = Simulator(shop, rate=300, seed=seed)
        simulator.start()
        met = 0
        try:
            for number in range(kills):
                process = start()
                before = len(hook.got)
                if number % 2 == 0 or chance.random() < 0.6:
                    _wait(process, lambda before=before: len(hook.got) > before, "delivering", said)
                time.sleep(chance.uniform(0.0, 0.6))
                process.send_signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL, said()
                met += len(hook.got) > before
        finally:
            simulator.stop()
        assert met >= kills // 2, f"seed {seed}: only {met} of {kills} kills met a delivery"
        hook.answer = lambda body: 200
        process = start()
        try:
            last = _last_order(database)
            _wait(
                process,
                lambda: any(body["after"] and body["key"]["id"] == last for body in hook.got[-2_000:]),
                "last order",
                said,
            )
            _wait(process, lambda: _lag(client) == 0, "catching up", said)
        finally:
            process.terminate()
            assert process.wait(20) == 0, said()
    wanted = asyncio.run(_orders(folder / "headrace.yaml"))
    effects: dict[str, list[str]] = {}
    known: set[str] = set()
    for body in hook.got:
        if body["id"] not in known:
            known.add(body["id"])
            effects.setdefault(str(body["customer_key"]), []).append(body["id"])
    assert effects.keys() == wanted.keys(), f"seed {seed}"
    for key, ids in wanted.items():
        assert effects[key] == ids, f"seed {seed}: customer {key}"


@pytest.mark.parametrize("seed", [5])
async def test_kills_and_cut_links_lose_double_and_reorder_nothing_in_streams(
    database: Database, redis_url: str, nats_server: NatsServer, tmp_path: Path, seed: int
) -> None:
    await stream_over_kills(database, redis_url, nats_server, tmp_path, seed=seed, kills=4)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [51, 52])
async def test_dozens_of_kills_and_cut_links_while_streaming(
    database: Database, redis_url: str, nats_server: NatsServer, tmp_path: Path, seed: int
) -> None:
    await stream_over_kills(database, redis_url, nats_server, tmp_path, seed=seed, kills=60)


async def stream_over_kills(
    database: Database, redis_url: str, nats_server: NatsServer, folder: Path, *, seed: int, kills: int
) -> None:
    """Into Redis Streams and NATS JetStream at once, over links that break. Nothing here drops repetitions: the streams must hold none."""
    chance = random.Random(seed)
    shop = Shop(database.dsn, customers=60, products=12)
    shop.create()
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}")
    subject = f"orders_{database.name}"
    links = [Proxy(int(redis_url.rpartition(":")[2].partition("/")[0])), Proxy(nats_server.port)]
    for link in links:
        await link.start()
    watching = await nats.connect(nats_server.url)
    stream = watching.jetstream()
    await stream.add_stream(name=subject, subjects=[subject], duplicate_window=3600)
    (folder / "headrace.yaml").write_text(
        f"""
log: {{path: shop.log.db}}
sources:
  shop: {{type: postgres, dsn: "{database.dsn}", tables: ["shop.*"], slot: sink_{database.name}, publication: sink_{database.name}}}
events:
  shop.orders: {{key: customer_id, occurred_at: placed_at}}
sinks:
  redis: {{type: redis_stream, url: "redis://127.0.0.1:{links[0].port}", stream: {subject}, when: {{table: [shop.orders]}}, timeout: 2s}}
  nats: {{type: nats, url: "nats://127.0.0.1:{links[1].port}", subject: {subject}, when: {{table: [shop.orders]}}, timeout: 2s}}
server: {{listen: "127.0.0.1:{port}"}}
"""
    )

    def said() -> str:
        return f"seed {seed}\n{client.status()}\n" + (folder / "run.log").read_text(errors="replace")[-3000:]

    async def start() -> asyncio.subprocess.Process:
        with (folder / "run.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-c", _MAIN, "run", "headrace.yaml", cwd=folder, stdout=log, stderr=log,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )  # fmt: skip

    async def held() -> list[int]:
        """Messages in each stream."""
        async with redis_asyncio.Redis.from_url(redis_url) as reader:
            return [await reader.xlen(subject), (await stream.stream_info(subject)).state.messages]

    async def reached(process: asyncio.subprocess.Process, done: Callable[[], Awaitable[bool]], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not await done():
            assert process.returncode is None, f"{what}: headrace stopped\n{said()}"
            assert time.monotonic() < end, f"{what} took too long\n{said()}"
            await asyncio.sleep(0.02)

    async def caught_up() -> bool:
        return [await asyncio.to_thread(_lag, client, name) for name in ("redis", "nats")] == [0, 0]

    async def trouble() -> None:
        link = chance.choice(links)
        draw = chance.random()
        if draw < 0.7:
            (link.cut if draw < 0.35 else link.reset)()
        else:
            link.hold(*chance.choice([("to_client",), ("to_server",), ("to_server", "to_client")]))
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            link.release()

    simulator = Simulator(shop, rate=300, seed=seed)
    await asyncio.to_thread(simulator.start)
    try:
        for _ in range(kills):
            process = await start()
            before = await held()

            async def has_more(before: list[int] = before) -> bool:
                return all(now > then for now, then in zip(await held(), before, strict=True))

            if chance.random() < 0.8:
                await reached(process, has_more, "delivering")
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(chance.uniform(0.0, 0.2))
                await trouble()
            process.kill()
            assert await process.wait() == -signal.SIGKILL, said()
    finally:
        await asyncio.to_thread(simulator.stop)
    process = await start()
    last = str(_last_order(database))
    try:
        await reached(process, lambda: _has_order(redis_url, subject, last), "last order")
        await reached(process, caught_up, "catching up")
    finally:
        process.terminate()
        assert await process.wait() == 0, said()
    wanted = await _orders(folder / "headrace.yaml")
    async with redis_asyncio.Redis.from_url(redis_url) as reader:
        in_redis = [(entry[b"key"].decode(), entry[b"id"].decode()) for _, entry in await reader.xrange(subject)]
    messages = [await stream.get_msg(subject, number) for number in range(1, (await held())[1] + 1)]
    in_nats = [(each.headers.get("Headrace-Key", ""), each.headers["Nats-Msg-Id"]) for each in messages if each.headers]
    for name, got in (("redis", in_redis), ("nats", in_nats)):
        effects: dict[str, list[str]] = {}
        for key, event_id in got:
            effects.setdefault(key or "None", []).append(event_id)  # a delete without the customer's column
        assert effects == wanted, f"seed {seed}: {name}"
    await watching.close()
    for link in links:
        await link.stop()


async def _has_order(redis_url: str, stream: str, order: str) -> bool:
    async with redis_asyncio.Redis.from_url(redis_url) as reader:
        newest = await reader.xrevrange(stream, count=2_000)
    return any(f'"id":{order}'.encode() in entry[b"value"] for _, entry in newest)


def _lag(client: Client, sink: str = "crm") -> int | None:
    status = client.status()
    if status is None or status["sources"]["shop"]["phase"] != "streaming":
        return None
    lag: int = status["consumers"][f"sinks/{sink}"]["lag_events"]
    return lag


def _last_order(database: Database) -> int:
    (row,) = database.execute("select max(id) from shop.orders")
    return int(row[0])


async def _orders(config: Path) -> dict[str, list[str]]:
    """Ids of the log's events of the table, by customer, in the log's order."""
    found: dict[str, list[str]] = {}
    log = await open_reader(load(config))
    try:
        offset = (await log.bounds(0)).first
        while (batch := await log.read(0, offset)).events:
            for event in batch.events:
                if event.row is not None and event.row.table == "orders" and event.row.op != "schema":
                    found.setdefault(str(event.key), []).append(event.id)
            offset = batch.next_offset
    finally:
        await log.close()
    return found
