"""``headrace deadletter``: over the log when nothing runs, by the running process when one does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from collecting import NOW_US, collecting
from headrace.cdc.cli import main
from headrace.cdc.log.base import DeadLetter
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.process.sdkcall import Delivery
from headrace.cdc.sources.collector import Collector

CONTEXT = msgspec.json.encode(Delivery("web", "website", NOW_US))
LETTERS = [
    DeadLetter("web", "no_customer", "it has no id", NOW_US, b'{"type":"page"}', CONTEXT),
    DeadLetter(
        "web", "too_large", "it was too large", NOW_US, b'{"type":"page","userId":"u\\u0007","messageId":"1"}', CONTEXT
    ),
    DeadLetter("web", "not_utf8", "bytes", NOW_US, b'{"a":"\x1b[2J\xff"}', CONTEXT),
]


class Web(msgspec.Struct):
    folder: Path
    port: int = 1  # nobody listens there

    @property
    def config(self) -> list[str]:
        path = self.folder / "headrace.yaml"
        path.write_text(
            "log: {path: web.log.db}\n"
            "sources: {web: {type: http, write_keys: {secret-key: website}}}\n"
            f'server: {{listen: "127.0.0.1:{self.port}"}}\n'
        )
        return ["--config", str(path)]

    async def log(self) -> SQLiteLog:
        return await SQLiteLog.open(self.folder / "web.log.db")


@pytest.fixture
def web(tmp_path: Path) -> Web:
    made = Web(tmp_path)

    async def fill() -> None:
        log = await made.log()
        await log.append([], source="web", state=b"", letters=LETTERS)
        await log.close()

    asyncio.run(fill())
    return made


@contextmanager
def running(web: Web) -> Iterator[Collector]:
    """A served collector over the same log, in a thread of its own."""
    started = threading.Event()
    collectors: list[Collector] = []
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        log = await web.log()
        async with collecting(log) as here:
            web.port = here.port
            collectors.append(here.collector)
            stop = asyncio.Event()
            stops.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()
        await log.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(10)
    try:
        yield collectors[0]
    finally:
        loop, stop = stops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        web.port = 1


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_ls_shows_a_line_each_and_the_reasons(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deadletter", "ls", *web.config]) == 0
    *shown, total = lines(capsys)
    assert [line.split()[0] for line in shown] == ["1", "2", "3"]
    assert "it has no id (15 bytes)" in shown[0]
    assert total == "1 no_customer, 1 too_large, 1 not_utf8"
    assert main(["deadletter", "ls", "--reason", "too_large", "--json", *web.config]) == 0
    (line,) = lines(capsys)
    assert msgspec.json.decode(line) == {
        "id": 2,
        "source": "web",
        "reason": "too_large",
        "detail": "it was too large",
        "received_us": NOW_US,
        "bytes": len(LETTERS[1].body),
    }
    assert main(["deadletter", "ls", "--source", "other", *web.config]) == 0
    assert lines(capsys) == ["no dead letters"]


def test_show_prints_the_bytes_and_nothing_that_a_terminal_obeys(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deadletter", "show", "3", *web.config]) == 0
    out = capsys.readouterr().out
    assert '{"a":"\\x1b[2J\\xff"}' in out
    assert "\x1b" not in out
    assert main(["deadletter", "show", "1", "2", "--json", *web.config]) == 0
    shown = [msgspec.json.decode(line) for line in lines(capsys)]
    assert [each["body"] for each in shown] == [LETTERS[0].body.decode(), LETTERS[1].body.decode()]
    assert shown[0]["context"]["writer"] == "website"


@pytest.mark.parametrize("is_running", [False, True])
def test_retry_and_drop_work_with_and_without_a_running_process(
    web: Web, is_running: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def act() -> None:
        assert main(["deadletter", "retry", "--all", *web.config]) == 0
        assert lines(capsys) == ["1 are events now, 2 stay dead letters"]
        assert main(["deadletter", "drop", "1", "77", *web.config]) == 0
        assert lines(capsys) == ["1 dropped"]
        assert main(["deadletter", "retry", "--all", "--json", *web.config]) == 0
        assert lines(capsys) == ['{"retried":0,"kept":1}']

    if is_running:
        with running(web):
            act()
    else:
        act()
    assert main(["deadletter", "ls", "--json", *web.config]) == 0
    assert [msgspec.json.decode(line)["id"] for line in lines(capsys)] == [3]
    assert main(["tail", "--json", str(web.folder / "headrace.yaml")]) == 0
    (event,) = [msgspec.json.decode(line) for line in lines(capsys)]
    assert (event["user_id"], event["received_us"], event["writer"]) == ("u\a", NOW_US, "website")


def test_nothing_is_dropped_or_retried_without_being_named(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("drop", "retry"):
        assert main(["deadletter", action, *web.config]) == 2
        assert "--all" in capsys.readouterr().err
