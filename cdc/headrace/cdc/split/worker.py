"""The program of a further process: it builds the consumers it is told to keep, over the shared log, and keeps them running.

    python -m headrace.cdc.split.worker FD WAY PARENT LEVEL

FD: its end of the socket pair to the process that keeps the log, WAY: of the one by which connections come, PARENT that process's id, LEVEL of the
log lines. Everything else comes over the socket. It ends
when it is told to, and when the other end is gone: on Linux the kernel ends it with its parent, at once. What it hasn't done then is done
after the next start, as after any crash.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import itertools
import logging
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from headrace.cdc.cli import COLLECT_EVERY
from headrace.cdc.config import Config, parse_text, plugins
from headrace.cdc.consumer import Consumer, Health, Services
from headrace.cdc.errors import HeadraceError, LogUnavailable
from headrace.cdc.firsthead import FirstHead
from headrace.cdc.keeping import Keeper
from headrace.cdc.loop import end, run
from headrace.cdc.split.allot import Part, section_of
from headrace.cdc.split.forward import forward
from headrace.cdc.split.handover import Taking
from headrace.cdc.split.report import REPORT_PATH, ConsumerReport, Report
from headrace.cdc.split.sharedlog import SharedLog
from headrace.cdc.split.wire import (
    Asked,
    Copying,
    Done,
    Failed,
    Moved,
    Question,
    Ready,
    Said,
    Start,
    failed,
    frame,
    raised,
    read_told,
    result,
)
from headrace.cdc.state import compiled_modules
from headrace.cdc.web import IDLE_S, MAX_BODY_BYTES, Guard, Handler, answered, error_response, harden, http_log

_log = logging.getLogger("headrace.app")

_PR_SET_PDEATHSIG: Final = 1
_SHUTDOWN_S = 0.4


class ToKeeper:
    """The way to the process that keeps the log: questions out, answers and news in."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[Question, asyncio.Future[Any]]] = {}
        self._is_gone = False

    def say(self, message: Said) -> None:
        self._writer.write(frame(message))

    async def ask(self, question: Question) -> Any:
        """Raises what the log raises there; LogUnavailable when the other process is gone."""
        if self._is_gone:
            raise _gone()
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (question, future)
        self.say(Asked(number, question))
        return await future

    def heard(self, told: Done | Failed) -> None:
        question, future = self._waiting.pop(told.number)
        if future.done():
            return
        if isinstance(told, Done):
            future.set_result(result(question, told.value))
        else:
            future.set_exception(raised(told))

    def gone(self) -> None:
        """Nobody answers any more."""
        self._is_gone = True
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(_gone())
        self._waiting.clear()


def _gone() -> LogUnavailable:
    return LogUnavailable("the process that keeps the log is gone", advice="nothing: this one ends too")


class Worker:
    """One further process, from its start to its end."""

    def __init__(self, start: Start, way: ToKeeper, connections: socket.socket) -> None:
        """Builds its consumers. Raises ConfigError, DefinitionError as they do."""
        self._start = start
        self._connections = connections
        self._taking: Taking | None = None
        self._session: aiohttp.ClientSession | None = None
        self._is_copying = start.is_copying
        self._registry = CollectorRegistry()
        self._keeper = Keeper()
        config = self._config = parse_text(start.config_text, Path(start.config_path))
        engine = config.log.kind
        self.log = SharedLog(
            start.generation, engine.open_batches(config.log.section, config), way.ask, start.firsts, start.ends
        )
        services = Services(config, self.log, self._registry, lambda: self._is_copying)
        self.consumers = _built(config, services, start.parts)
        self._runner: web.AppRunner | None = None

    def copying(self, is_copying: bool) -> None:
        self._is_copying = is_copying

    async def listen(self) -> list[str]:
        """Answer HTTP at the told socket; patterns of the consumers' paths."""
        self._guard = Guard(self._config.server)
        self._session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None))
        application = web.Application(middlewares=[self._answered], client_max_size=MAX_BODY_BYTES)
        for consumer in self.consumers:
            application.add_routes(consumer.routes())
        paths = [_pattern(resource) for resource in application.router.resources()]
        application.add_routes([web.get(REPORT_PATH, self._report), web.route("*", "/{path:.*}", self._of_others)])
        application.on_response_prepare.append(harden)
        runner = self._runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=_SHUTDOWN_S,
            handle_signals=False,
            keepalive_timeout=IDLE_S,
            logger=http_log(),
            auto_decompress=False,
        )
        await runner.setup()
        assert runner.server is not None
        self._taking = Taking(self._connections, FirstHead(runner.server, lambda: IDLE_S))
        self._taking.start()
        await web.UnixSite(runner, self._start.socket).start()
        return paths

    async def work(self, stop: asyncio.Event) -> None:
        """Keep the consumers running until stop is set."""
        gc.collect()
        gc.freeze()
        tasks = [asyncio.create_task(self._keeper.keep_running(consumer)) for consumer in self.consumers]
        try:
            await stop.wait()
        finally:
            await end(tasks)

    async def close(self) -> None:
        if self._taking is not None:
            self._taking.stop()
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self.log.close()

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who comes by the first process's socket has been let in there."""
        if not _is_from_first(request):
            refusal = self._guard.refusal(request)
            if refusal is not None:
                return refusal
        return await answered(request, handler)

    async def _of_others(self, request: web.Request) -> web.StreamResponse:
        """A later request of a connection that came here with its first."""
        if _is_from_first(request) or self._session is None:
            raise web.HTTPNotFound
        try:
            return await forward(request, self._session, self._start.url)
        except aiohttp.ClientError:
            return error_response(503, "the first process doesn't answer now", "ask again in a moment")

    async def _report(self, request: web.Request) -> web.Response:
        if not _is_from_first(request):
            raise web.HTTPNotFound
        troubles = self._keeper.troubles
        report = Report(
            {
                consumer.name: ConsumerReport(
                    consumer.status(),
                    [Health(consumer.name, is_ready=False, reason=troubles[consumer.name])]
                    if consumer.name in troubles
                    else list(consumer.health()),
                )
                for consumer in self.consumers
            },
            generate_latest(self._registry).decode(),
            compiled_modules(),
            time.process_time(),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        )
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")


def _built(config: Config, services: Services, parts: list[Part]) -> list[Consumer]:
    consumers: list[Consumer] = []
    for name, kind in sorted(plugins("headrace.consumers").items()):
        if any(part.kind == name for part in parts):
            built = kind.build(section_of(config, kind, parts, name, is_ours=True), services)
            if isinstance(built, Sequence):
                consumers += cast("Sequence[Consumer]", built)
            elif built is not None:
                consumers.append(built)
    return consumers


def _is_from_first(request: web.Request) -> bool:
    """By the socket in the first process's own folder, not by the port."""
    return request.transport is not None and isinstance(request.transport.get_extra_info("sockname"), str)


def _pattern(resource: web.AbstractResource) -> str:
    """A regular expression of the resource's paths."""
    info = resource.get_info()
    pattern = info.get("pattern")
    if pattern is not None:
        return str(pattern.pattern)
    return re.escape(str(info.get("path", "")))


async def _main(link: socket.socket, connections: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=link)
    start = await read_told(reader)
    if not isinstance(start, Start):
        return 0
    way = ToKeeper(writer)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        worker = Worker(start, way, connections)
        paths = await worker.listen()
    except HeadraceError as error:
        way.say(failed(-1, error))
        await writer.drain()
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - told to the first process, which stops at its first start as it would for a defect of its own
        _log.exception("a further process can't start: please report it")
        way.say(failed(-1, HeadraceError(f"a further process can't start: {type(error).__name__}")))
        await writer.drain()
        return HeadraceError.exit_code
    hearing = asyncio.create_task(_hear(reader, way, worker, stop.set))
    try:
        way.say(Ready([consumer.name for consumer in worker.consumers], paths))
        await worker.work(stop)
    finally:
        await worker.close()
        hearing.cancel()
        await asyncio.wait([hearing])
        writer.close()
    return 0


async def _hear(reader: asyncio.StreamReader, way: ToKeeper, worker: Worker, stop: Callable[[], None]) -> None:
    while True:
        match await read_told(reader):
            case Moved(firsts, ends):
                worker.log.moved(firsts, ends)
            case Done() | Failed() as answer:
                way.heard(answer)
            case Copying(is_copying):
                worker.copying(is_copying)
            case None:
                way.gone()
                stop()
                return
            case _:
                stop()


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent: one that lives on would write a store beside its successor."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def main(words: Sequence[str]) -> int:
    """See the module."""
    link, way, parent, level = (int(word) for word in words)
    _end_with(parent)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to every process of the terminal; the first one tells us to stop
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    gc.set_threshold(*COLLECT_EVERY)
    return run(_main(socket.socket(fileno=link), socket.socket(fileno=way)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
