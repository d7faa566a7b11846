"""``headrace status``: from a running server, and from the log when none runs."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from headrace.cdc.cli import main
from headrace.cdc.config import ServerConfig
from headrace.cdc.status_page import show
from serving import serving
from shop_folder import Shop
from shop_log import ShopLog, order_event


@contextmanager
def running(tokens: dict[str, str] | None = None) -> Iterator[int]:
    """A server of its own thread; gives its port."""
    ports: list[int] = []
    started = threading.Event()
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        log = ShopLog()
        await log.append([order_event(number) for number in range(12)])
        stop = asyncio.Event()
        config = ServerConfig(listen="127.0.0.1:0", tokens=tokens or {})
        async with serving(log, config=config, troubles=lambda: {"features": "a view is wrong"}) as served:
            ports.append(int(served.url.rpartition(":")[2]))
            stops.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    try:
        yield ports[0]
    finally:
        loop, stop = stops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def test_a_running_process_is_asked_with_the_first_token(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    with running({"reader": "token-1", "other": "token-2"}) as port:
        shop.port, shop.tokens = port, {"mine": "token-2"}
        assert main(["status", shop.file, "--json"]) == 0
        document = msgspec.json.decode(capsys.readouterr().out)
        assert document["is_running"] is True
        assert document["log"]["partitions"] == [{"partition": 0, "first": 0, "end": 12}]
        assert main(["status", shop.file]) == 0
        out = capsys.readouterr().out
        for words in ("running", "shop", "streaming", "4.0 KiB", "partition 0", "subscribe", "a view is wrong"):
            assert words in out
        shop.tokens = {"mine": "token-3"}
        assert main(["status", shop.file]) == 6
        err = capsys.readouterr().err
        assert "server.tokens" in err
        assert "token-3" not in err


def test_without_a_process_the_log_tells_what_it_holds(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.append([order_event(number) for number in range(5)])

    async def commit() -> None:
        log = await shop.open_log()
        await log.commit("features", 0, 3)
        await log.close()

    asyncio.run(commit())
    assert main(["status", shop.file, "--json"]) == 0
    document = msgspec.json.decode(capsys.readouterr().out)
    assert document["is_running"] is False
    assert document["log"]["partitions"] == [{"partition": 0, "first": 0, "end": 5}]
    assert document["cursors"] == {"features": {"offset": [3], "lag_events": 2}}
    assert main(["status", shop.file]) == 0
    out = capsys.readouterr().out
    assert "not running" in out
    assert "features is 2 events behind" in out


def test_before_the_first_start_there_is_no_log_and_none_is_made(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", shop.file]) == 0
    assert "there is no log yet at shop.log.db" in capsys.readouterr().out
    assert main(["status", shop.file, "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["log"] is None
    assert [path.name for path in shop.folder.iterdir()] == ["headrace.yaml"]


def test_another_server_at_the_address_is_told_from_headrace(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        shop.port = other.getsockname()[1]

        def answer() -> None:
            peer, _ = other.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")

        thread = threading.Thread(target=answer)
        thread.start()
        assert main(["status", shop.file]) == 6
        thread.join(10)
    assert "no headrace" in capsys.readouterr().err


def test_dead_letters_are_told_with_the_command_that_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    log = {"partitions": [], "disk_bytes": 4096, "dead_letters": 3}
    document = {
        "is_running": True,
        "version": "1",
        "started_us": 0,
        "compiled": {},
        "sources": {},
        "log": log,
        "consumers": {},
        "troubles": {},
    }
    show(document, now=1.0)
    assert "3 dead letters: headrace deadletter ls" in capsys.readouterr().out
    log["dead_letters"] = 0
    show(document, now=1.0)
    assert "dead letters" not in capsys.readouterr().out
