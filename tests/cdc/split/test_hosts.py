"""What a person is told about processes; the processes themselves are tried by scenario/test_processes.py."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from headrace.cdc import app
from headrace.cdc.config import Config, load
from headrace.cdc.errors import ServerError
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.split import hosts as hosts_module
from headrace.cdc.split.hosts import Hosts, wanted

SINKS = """
sinks:
  a: {type: http, destination: {url: "http://127.0.0.1:9/"}}
  b: {type: http, destination: {url: "http://127.0.0.1:9/"}}
"""


def configuration(folder: Path, more: str) -> Config:
    (folder / "headrace.yaml").write_text("sources: {web: {type: http}}\n" + more)
    return load(folder / "headrace.yaml", {})


def hosts_of(config: Config) -> Hosts:
    return Hosts(config, MemoryLog(), lambda: False)


def test_auto_is_one_for_each_core_that_we_may_use() -> None:
    assert wanted("auto") >= 1
    assert wanted(3) == 3


async def test_a_busy_process_is_told_what_would_help_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts_module, "wanted", lambda processes: 4 if processes == "auto" else processes)
    busy = hosts_of(configuration(tmp_path, SINKS))
    told = busy.advice(0.97)
    assert told is not None and "97%" in told and '"processes: 3"' in told
    assert busy.advice(0.5) is None
    assert hosts_of(configuration(tmp_path, "")).advice(1.0) is None, "nothing could move"
    monkeypatch.setattr(hosts_module, "wanted", lambda processes: 1)
    assert busy.advice(1.0) is None, "one core"


async def test_the_advice_comes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app, "_ADVISE_EVERY_S", 0.0)
    monkeypatch.setattr(hosts_module, "_BUSY", -1.0)
    monkeypatch.setattr(hosts_module, "wanted", lambda processes: 2 if processes == "auto" else processes)
    async with asyncio.timeout(10):
        await app._advise(hosts_of(configuration(tmp_path, SINKS)))  # pyright: ignore[reportPrivateUsage]
    assert caplog.text.count('"processes: 2"') == 1


async def test_before_a_process_has_worked_nothing_of_it_is_unknown(tmp_path: Path) -> None:
    log = await SQLiteLog.open(tmp_path / "log.db")
    hosts = Hosts(configuration(tmp_path, SINKS + "processes: 3\n"), log, lambda: False)
    [route] = hosts.routes()
    asked = make_mocked_request("GET", "/v1/features/views")
    try:
        answered = await route.handler(asked)  # type: ignore[operator]  # a function, not a View
        assert answered.status == 503
        for host in hosts.hosts:
            host.was_ready = True
        with pytest.raises(web.HTTPNotFound):
            await route.handler(asked)  # type: ignore[operator]  # as above
    finally:
        hosts.close()
        await log.close()


async def test_sockets_find_a_place_with_a_short_name_or_the_cure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = hosts_module._socket_folder()  # pyright: ignore[reportPrivateUsage]
    assert len(str(folder)) < 80 and folder.stat().st_mode & 0o777 == 0o700 and not list(deep.iterdir())
    folder.rmdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothere"))
    with pytest.raises(ServerError, match="none can be made: No such file") as told:
        hosts_module._socket_folder()  # pyright: ignore[reportPrivateUsage]
    assert "TMPDIR" in told.value.advice
