"""The composition: captures decide whether the process lives; consumers fail alone and are seen to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from headrace.cdc import app, config, keeping, loop
from headrace.cdc.app import Application
from headrace.cdc.config import Config, LogChoice, ServerConfig, SourceChoice
from headrace.cdc.consumer import Health, Services
from headrace.cdc.errors import (
    DefinitionError,
    HeadraceError,
    ServerError,
    SourceRefused,
    SourceUnavailable,
    StoreError,
)
from headrace.cdc.log.memory import MemoryLog, MemoryLogConfig
from scripted_source import ScriptedSource, batch

DEADLINE_S = 10.0


class Follower:
    """A consumer that follows the log once each of ``faults`` was raised, one a run."""

    section = None
    config_type = None

    def __init__(self, name: str, *faults: Exception) -> None:
        self.name = name
        self.faults = list(faults)
        self.runs = 0
        self.events: list[str] = []
        self.is_stopped = False
        self.is_wanted = True

    def build(self, section: Any, services: Services) -> Follower | None:
        self.services = services
        return self if self.is_wanted else None

    def routes(self) -> list[web.RouteDef]:
        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=self.name)

        return [web.get(f"/{self.name}", answer)]

    async def run(self) -> None:
        self.runs += 1
        if self.faults:
            raise self.faults.pop(0)
        try:
            while True:
                found = await self.services.log.read(0, len(self.events), wait_s=60)
                self.events += [event.id for event in found.events]
        finally:
            self.is_stopped = True

    def health(self) -> list[Health]:
        return [Health(self.name, True)]

    def status(self) -> dict[str, Any]:
        return {}


class Process:
    """An application of scripted sources, followers and a log in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sources: dict[str, ScriptedSource] = {}
        self.followers: dict[str, Follower] = {}
        self.logs: list[MemoryLog] = []
        self.server = ServerConfig(listen="127.0.0.1:0")
        self.ready: list[str] = []
        self.stop = asyncio.Event()
        monkeypatch.setattr(config, "plugins", self._plugins)
        monkeypatch.setattr(app, "plugins", self._plugins)
        monkeypatch.setattr(keeping, "_FIRST_PAUSE_S", 0.0)

    def _plugins(self, group: str) -> dict[str, Any]:
        process = self

        class Log:
            @classmethod
            async def from_config(cls, section: MemoryLogConfig, config: Config) -> MemoryLog:
                process.logs.append(MemoryLog())
                return process.logs[-1]

        if group == "headrace.sources":
            return {"scripted": lambda name, section, events: self.sources[name]}
        return {"memory": Log} if group == "headrace.logs" else dict(self.followers)

    @property
    def config(self) -> Config:
        return Config(
            log=LogChoice("memory", MemoryLogConfig()),
            sources={name: SourceChoice("scripted", None) for name in self.sources},
            events={},
            server=self.server,
            sections={},
            folder=Path(),
        )

    def source(self, *script: Any, name: str = "shop", starts: Any = ()) -> ScriptedSource:
        self.sources[name] = ScriptedSource(script, name=name, starts=starts)
        return self.sources[name]

    def follower(self, name: str, *faults: Exception) -> Follower:
        self.followers[name] = Follower(name, *faults)
        return self.followers[name]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The base URL of the process; afterwards it is stopped and nothing of it is left."""
        others = asyncio.all_tasks()
        task = asyncio.create_task(Application(self.config).run(self.stop, self.ready.append))
        try:
            await until(lambda: bool(self.ready) or task.done())
            if task.done():
                task.result()
            yield self.ready[0]
        finally:
            self.stop.set()
            async with asyncio.timeout(DEADLINE_S):
                await task
        await until(lambda: asyncio.all_tasks() == others)

    async def readiness(self, url: str) -> tuple[int, dict[str, Any]]:
        """Status of /readyz, and its parts by name."""
        async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as response:
            document = await response.json()
            return response.status, {part["part"]: part for part in document["parts"]}


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not done():
            await asyncio.sleep(0.001)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    yield Process(monkeypatch)
    gc.unfreeze()  # a ready process freezes what it was made of


class Several:
    """A consumer type that builds two consumers of one section."""

    section = None
    config_type = None

    def __init__(self, *followers: Follower) -> None:
        self.followers = followers

    def build(self, section: Any, services: Services) -> list[Follower]:
        return [found for each in self.followers if (found := each.build(section, services)) is not None]


async def test_one_section_may_have_several_consumers_which_fail_alone(process: Process) -> None:
    fine, broken = Follower("fine"), Follower("broken", DefinitionError("it is wrong"))
    process.followers["several"] = Several(fine, broken)  # type: ignore[assignment]
    process.source(batch(1))
    async with process.running() as url:
        await until(lambda: bool(fine.events))
        async with aiohttp.ClientSession() as http, http.get(f"{url}/readyz") as answer:
            parts = {part["part"]: part for part in (await answer.json())["parts"]}
        assert parts["fine"]["is_ready"] and parts["broken"]["reason"] == "it is wrong"
    assert fine.is_stopped


async def test_a_process_is_ready_when_every_source_streams_and_serves_until_it_is_stopped(process: Process) -> None:
    sources = [process.source(batch(1), batch(2)), process.source(name="other")]
    follower = process.follower("follower")
    process.follower("unwanted").is_wanted = False
    async with process.running() as url:
        await until(lambda: follower.events == ["c1-0", "c2-0"])
        status, parts = await process.readiness(url)
        assert (status, sorted(parts)) == (200, ["follower", "log", "source other", "source shop"])
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}/follower") as response:
                assert await response.text() == "follower"
            async with http.get(f"{url}/unwanted") as response:
                assert response.status == 404
    assert [source.phase for source in sources] == ["stopped", "stopped"]
    assert follower.is_stopped
    with pytest.raises(HeadraceError, match="is closed"):
        await process.logs[0].source_state("shop")
    assert process.followers["unwanted"].runs == 0
    assert process.ready == [url]


async def test_a_failing_consumer_is_started_again_and_disturbs_nobody(process: Process) -> None:
    source = process.source(*[batch(number) for number in range(1, 20)])
    failing = process.follower("failing", *[StoreError("no answer")] * 5)
    other = process.follower("other")
    async with process.running() as url:
        await until(lambda: len(other.events) == len(failing.events) == 19)
        assert (failing.runs, other.runs) == (6, 1)
        await until(lambda: len(source.confirmed) == 19)  # a consumer may read an event before its append returns
        assert (await process.readiness(url))[0] == 200


async def test_a_consumer_that_waits_to_be_tried_again_is_not_ready(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_FIRST_PAUSE_S", 3600.0)
    process.source()
    process.follower("failing", StoreError("the store doesn't answer"))
    async with process.running() as url:
        await until(lambda: process.followers["failing"].runs == 1)
        status, parts = await process.readiness(url)
    assert (status, parts["failing"]) == (
        503,
        {"part": "failing", "is_ready": False, "reason": "the store doesn't answer"},
    )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (DefinitionError("view 'orders' is wrong"), "view 'orders' is wrong"),
        (ZeroDivisionError("12 of customer 7"), "stopped by a defect (ZeroDivisionError); see the process's log"),
    ],
    ids=["stop", "defect"],
)
async def test_a_consumer_that_stops_for_good_is_shown_in_readyz_and_disturbs_nobody(
    process: Process, fault: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = asyncio.Event()
    source = process.source(batch(1), gate, batch(2))
    stopping = process.follower("stopping", fault)
    other = process.follower("other")
    async with process.running() as url:
        await until(lambda: stopping.runs == 1 and other.runs == 1)
        status, parts = await process.readiness(url)
        assert (status, parts["stopping"]) == (503, {"part": "stopping", "is_ready": False, "reason": reason})
        assert [part["is_ready"] for name, part in parts.items() if name != "stopping"] == [True, True, True]
        gate.set()
        await until(lambda: other.events == ["c1-0", "c2-0"])
        await until(lambda: source.confirmed == ["confirm 1", "confirm 2"])
    assert stopping.runs == 1
    assert "consumer stopping stopped" in caplog.text


async def test_a_source_that_is_tried_again_is_not_ready_and_says_why(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.source(batch(1), SourceUnavailable("the link broke", source="shop"))
    monkeypatch.setattr("headrace.cdc.capture._FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr("headrace.cdc.capture._LONGEST_PAUSE_S", 3600.0)
    async with process.running() as url:
        async with asyncio.timeout(DEADLINE_S):
            status, parts = await process.readiness(url)
            while status == 200:
                status, parts = await process.readiness(url)
    assert parts["source shop"] == {"part": "source shop", "is_ready": False, "reason": "the link broke"}


@pytest.mark.parametrize("when", ["at the start", "later"])
async def test_a_capture_that_fails_for_good_stops_everything_with_its_error(process: Process, when: str) -> None:
    refused = SourceRefused("the slot is gone", source="shop")
    failing = process.source(starts=[refused]) if when == "at the start" else process.source(batch(1), refused)
    other = process.source(name="other")
    follower = process.follower("follower")
    with pytest.raises(SourceRefused) as raised:
        async with asyncio.timeout(DEADLINE_S):
            await Application(process.config).run(process.stop, process.ready.append)
    assert raised.value is refused
    assert (failing.phase, other.phase, follower.is_stopped) == ("stopped", "stopped", True)
    with pytest.raises(HeadraceError, match="is closed"):
        await process.logs[0].source_state("shop")


async def test_the_error_of_a_person_is_told_before_a_defect(process: Process) -> None:
    class Defect(Exception):
        pass

    nested = BaseExceptionGroup("a", [Defect(), BaseExceptionGroup("b", [DefinitionError("told")]), Defect()])
    assert str(app._first(nested)) == "told"  # pyright: ignore[reportPrivateUsage]
    assert isinstance(app._first(BaseExceptionGroup("a", [Defect(), KeyError()])), Defect)  # pyright: ignore[reportPrivateUsage]


async def test_a_server_that_cannot_start_leaves_no_source_started(process: Process) -> None:
    source = process.source()
    process.server = ServerConfig(listen="0.0.0.0:0")
    with pytest.raises(ServerError, match=r"server\.tokens is empty"):
        await Application(process.config).run(process.stop)
    assert source.diary == []
    with pytest.raises(HeadraceError, match="is closed"):
        await process.logs[0].source_state("shop")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_in_order(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    process = Process(monkeypatch)
    source = process.source(batch(1))
    before = signal.getsignal(number)
    try:
        app.run(process.config, lambda url: os.kill(os.getpid(), number))
    finally:
        signal.signal(number, before)
        gc.unfreeze()
    assert source.diary[-1] == "stop"


async def test_a_task_that_swallows_its_cancellation_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_ASK_AGAIN_S", 0.01)
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while heard < 3:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            heard += 1

    async with asyncio.timeout(20):
        task = asyncio.create_task(deaf())
        await asyncio.sleep(0)
        await loop.end([task])
    assert task.done()
    assert heard == 3
