"""A further process as the first one sees it: started, told what it needs, answered, watched, started again, and ended last.

Its consumers are shown like those of this process, by what it reports when somebody asks. Should it die, nothing else stops: its
consumers are behind until it runs again, and go on from their own places.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web

from headrace.cdc.config import Config
from headrace.cdc.consumer import Health
from headrace.cdc.errors import Action, HeadraceError
from headrace.cdc.keeping import Pauses
from headrace.cdc.split.allot import Part
from headrace.cdc.split.forward import forward
from headrace.cdc.split.handover import give, pair
from headrace.cdc.split.logshare import Shareable, answer
from headrace.cdc.split.report import REPORT_PATH, Report
from headrace.cdc.split.wire import (
    Asked,
    Copying,
    Failed,
    Moved,
    Ready,
    Start,
    Stop,
    Told,
    done,
    failed,
    frame,
    raised,
    read_said,
)
from headrace.cdc.web import error_response

_log = logging.getLogger("headrace.app")

_REPORT_S: Final = 2.0
"""How long a report is waited for; the last one is shown then."""
_END_S: Final = 15.0
"""How long a process may take to finish what it has under way."""
_COPYING_EVERY_S: Final = 0.5
_MOST_UNREAD_BYTES: Final = 256 << 10
"""News wait while the other side hasn't read so much: only the newest count."""


class AwayConsumer:
    """A consumer of another process: Consumer for those who show it, and nothing to run."""

    def __init__(self, host: WorkerHost, name: str) -> None:
        self._host = host
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def routes(self) -> Iterable[web.RouteDef]:
        return ()

    async def run(self) -> None:
        """Its own process does."""

    def health(self) -> Iterable[Health]:
        return self._host.health_of(self._name)

    def status(self) -> dict[str, Any]:
        return self._host.status_of(self._name)


class WorkerHost:
    """See the module. number: counts from 1. is_copying: as Services has it. folder: of sockets, for this process alone."""

    def __init__(
        self,
        number: int,
        parts: list[Part],
        config: Config,
        log: Shareable,
        folder: Path,
        is_copying: Callable[[], bool],
    ) -> None:
        self.number = number
        self.parts = parts
        self.report = Report({}, "", {})
        self._config = config
        self._log = log
        self._socket = folder / f"{number}.sock"
        self._is_copying = is_copying
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._session: aiohttp.ClientSession | None = None
        self._way: socket.socket | None = None
        self.url = ""
        """Where this process answers, for what the other one is asked and doesn't know."""
        self._paths: list[re.Pattern[str]] = []
        self.was_ready = False
        """It has worked once, so it is known what it answers."""
        self._trouble = "its process is starting"
        self._last: tuple[list[int], list[int]] = ([], [])

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    def consumers(self) -> list[AwayConsumer]:
        """What it keeps, under the names that its consumers have."""
        return [AwayConsumer(self, part.kind if not part.name else f"{part.kind}/{part.name}") for part in self.parts]

    def answers(self, path: str) -> bool:
        """Whether one of its consumers has a route for the path."""
        return any(pattern.fullmatch(path) for pattern in self._paths)

    def take(self, number: int, data: bytes) -> bool:
        """Give it a connection, see handover.py. False when it can't take one now."""
        return self._way is not None and not self._trouble and give(self._way, number, data)

    async def run(self, started: Callable[[], None]) -> None:
        """Keep the process running until cancelled. started: called once, when it works first.

        Raises what its consumers say against the configuration at the first start; later that leaves it stopped, and shown.
        """
        pauses = Pauses()
        told: Callable[[], None] | None = started
        while True:
            pauses.begin()

            def ready() -> None:
                nonlocal told
                if told is not None:
                    told()
                told = None

            try:
                reason = await self._life(ready)
            except HeadraceError as error:
                if told is not None:
                    raise
                if error.action is not Action.RETRY:
                    self._trouble = error.message
                    _log.error("process %d (%s) stopped: %s", self.number, self._shown, error.paragraph())
                    return
                reason = error.message
            pause_s = pauses.next_s()
            self._trouble = reason
            _log.warning("process %d (%s): %s; starting it again in %.1f s", self.number, self._shown, reason, pause_s)
            await asyncio.sleep(pause_s)

    async def refresh(self) -> None:
        """Ask for a new report; without an answer in time the last one stays."""
        if self._trouble or self._session is None:
            return
        try:
            async with self._session.get(
                f"http://worker{REPORT_PATH}", timeout=aiohttp.ClientTimeout(total=_REPORT_S)
            ) as response:
                self.report = msgspec.json.decode(await response.read(), type=Report)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            _log.warning("process %d (%s) gives no report: %s", self.number, self._shown, type(error).__name__)

    def health_of(self, name: str) -> list[Health]:
        if self._trouble:
            return [Health(name, is_ready=False, reason=self._trouble)]
        found = self.report.consumers.get(name)
        return [Health(name, is_ready=False, reason="it hasn't reported yet")] if found is None else found.health

    def status_of(self, name: str) -> dict[str, Any]:
        found = self.report.consumers.get(name)
        return {"process": self.number} | ({} if found is None else found.status)

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Let the process answer a request of one of its consumers."""
        if self._session is None or self._trouble:
            return self.absent()
        try:
            return await forward(request, self._session, "http://worker")
        except aiohttp.ClientError:
            return self.absent()

    def absent(self) -> web.Response:
        """The answer while it doesn't run."""
        kept = ", ".join(consumer.name for consumer in self.consumers())
        return error_response(
            503, f"the process of {kept} doesn't answer now", "ask again in a moment; /readyz says how it is"
        )

    @property
    def _shown(self) -> str:
        return ", ".join(consumer.name for consumer in self.consumers())

    async def _life(self, ready: Callable[[], None]) -> str:
        """One process from its start to its end: why it ended. Raises what keeps it from starting.

        Cancelled, it lets the process finish first: its last words, such as places in the log, are still answered.
        """
        life = asyncio.create_task(self._live(ready))
        try:
            return await asyncio.shield(life)
        except asyncio.CancelledError:
            self._say(Stop())
            limit = asyncio.get_running_loop().call_later(_END_S, self._kill)
            while not life.done():
                try:
                    await asyncio.wait([life])
                except asyncio.CancelledError:  # asked again; the limit ends it
                    continue
            limit.cancel()
            raise

    async def _live(self, ready: Callable[[], None]) -> str:
        ours, theirs = socket.socketpair()
        way, their_way = pair()
        with theirs, their_way:
            try:
                self._process = process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "headrace.cdc.split.worker",
                    str(theirs.fileno()), str(their_way.fileno()), str(os.getpid()), str(logging.getLogger().getEffectiveLevel()),
                    pass_fds=(theirs.fileno(), their_way.fileno()), stdin=asyncio.subprocess.DEVNULL,
                )  # fmt: skip
            except OSError as error:
                ours.close()
                way.close()
                return f"a process can't be started: {error.strerror}"
        self._way = way
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._socket), limit=0),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )
        unwatch = self._log.watch(self._tell_moved)
        answering: set[asyncio.Task[None]] = set()
        self._socket.unlink(missing_ok=True)
        firsts, ends = self._log.places
        self._last = (list(firsts), list(ends))
        self._say(
            Start(
                self._config.text, str(self._config.folder / self._config.name), self.parts, self._log.generation,
                *self._last, self._is_copying(), str(self._socket), self.url,
            )
        )  # fmt: skip
        copying = asyncio.create_task(self._tell_copying())
        try:
            await self._serve(reader, ready, answering)
        finally:
            unwatch()
            copying.cancel()
            self._trouble = self._trouble or "its process has ended"
            await self._end(process, answering)
        return _why(process.returncode)

    async def _serve(
        self, reader: asyncio.StreamReader, ready: Callable[[], None], answering: set[asyncio.Task[None]]
    ) -> None:
        """Answer until the other side is gone."""
        while (said := await read_said(reader)) is not None:
            match said:
                case Asked():
                    task = asyncio.create_task(self._answer(said))
                    answering.add(task)
                    task.add_done_callback(answering.discard)
                case Ready(_, paths):
                    self._paths = [re.compile(path) for path in paths]
                    self._trouble = ""
                    self.was_ready = True
                    await self.refresh()
                    _log.info("process %d runs, pid %s: %s", self.number, self.pid, self._shown)
                    ready()
                case Failed():
                    raise raised(said)

    async def _answer(self, asked: Asked) -> None:
        try:
            value = await answer(self._log, asked.question)
        except (HeadraceError, ValueError) as error:
            self._say(failed(asked.number, error))
        else:
            self._say(done(asked.number, value))

    async def _end(self, process: asyncio.subprocess.Process, answering: set[asyncio.Task[None]]) -> None:
        way, self._way = self._way, None
        if way is not None:
            way.close()
        session, self._session = self._session, None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        if session is not None:
            await session.close()
        limit = asyncio.get_running_loop().call_later(_END_S, self._kill)
        await process.wait()
        limit.cancel()
        self._process = None
        # What it asked before it ended stays asked: an append that was heard is an append.
        if answering:
            await asyncio.wait(set(answering))

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            _log.warning("process %d (%s) didn't end in time, and is killed", self.number, self._shown)
            self._process.kill()

    def _tell_moved(self) -> None:
        firsts, ends = self._log.places
        if self._writer is None or (firsts, ends) == self._last:
            return
        if self._writer.transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
            return  # it is told with the next move; while it doesn't read, it can't use the news
        self._last = (list(firsts), list(ends))
        self._say(Moved(*self._last))

    async def _tell_copying(self) -> None:
        told = None
        while True:
            if (now := self._is_copying()) != told:
                told = now
                self._say(Copying(now))
            self._tell_moved()
            await asyncio.sleep(_COPYING_EVERY_S)

    def _say(self, told: Told) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(told))


def _why(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with code {code}"


__all__ = ["AwayConsumer", "WorkerHost"]
