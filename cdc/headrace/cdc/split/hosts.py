"""All further processes of a configuration, and the one place where requests find the process that answers them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from headrace.cdc.config import Config, plugins
from headrace.cdc.consumer import Consumer
from headrace.cdc.errors import ServerError
from headrace.cdc.log.base import EventLog
from headrace.cdc.split.allot import Part, allot, movable
from headrace.cdc.split.handover import FirstLine, Take
from headrace.cdc.split.host import WorkerHost
from headrace.cdc.split.logshare import shareable

_BUSY: Final = 0.9
_LONGEST_FOLDER: Final = 80
"""A socket's whole path has at most some 100 bytes (unix(7): 108, 104 elsewhere)."""


class Hosts:
    """See the module. Without further processes it is empty, and costs nothing."""

    def __init__(self, config: Config, log: EventLog, is_copying: Callable[[], bool]) -> None:
        """Raises ConfigError for a log that one process alone can have."""
        self._config = config
        count = wanted(config.processes)
        kept = [] if count == 1 else allot(movable(config, plugins("headrace.consumers")), count)
        self.parts: list[Part] = [part for parts in kept for part in parts]
        self.hosts: list[WorkerHost] = []
        self._folder: Path | None = None
        if kept:
            shared = shareable(log, config.log.type)
            self._folder = _socket_folder()
            self.hosts = [
                WorkerHost(number, parts, config, shared, self._folder, is_copying)
                for number, parts in enumerate(kept, 1)
            ]

    def consumers(self) -> list[Consumer]:
        """Those of all processes, to be shown."""
        return [consumer for host in self.hosts for consumer in host.consumers()]

    def protocol(self, maker: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """See OtherProcesses."""
        return (lambda: FirstLine(maker(), self._taker)) if self.hosts else maker

    def reachable(self, url: str) -> None:
        """Where this process answers; before the others start."""
        for host in self.hosts:
            host.url = url

    def routes(self) -> Sequence[web.RouteDef]:
        """One for all that no route of this process takes; mount it last."""
        return [web.route("*", "/{path:.*}", self._forward)] if self.hosts else []

    async def refresh(self) -> None:
        """Ask every process for its report."""
        await asyncio.gather(*(host.refresh() for host in self.hosts))

    def status(self) -> list[dict[str, Any]]:
        """Of each further process."""
        return [
            {
                "process": host.number,
                "pid": host.pid,
                "consumers": [consumer.name for consumer in host.consumers()],
                "cpu_s": round(host.report.cpu_s, 2),
                "peak_bytes": host.report.peak_bytes,
            }
            for host in self.hosts
        ]

    def compiled(self) -> dict[str, bool]:
        """Hot modules that any of them has loaded; False where one runs the plain file."""
        found: dict[str, bool] = {}
        for host in self.hosts:
            for name, is_compiled in host.report.compiled.items():
                found[name] = found.get(name, True) and is_compiled
        return found

    def advice(self, busy: float) -> str | None:
        """What to tell a person when this process alone does everything and has been busy for a while; busy: share of a core, 1.0 = all of it."""
        parts = len(movable(self._config, plugins("headrace.consumers")))
        if busy < _BUSY or self._config.processes != 1 or not parts or wanted("auto") == 1:
            return None
        return (
            f"this process has been busy for {busy:.0%} of the last minute, and there are {wanted('auto')} cores:"
            f' "processes: {min(1 + parts, wanted("auto"))}" in the configuration gives features and sinks cores of their own'
        )

    def collector(self) -> Collector:
        """What the processes count, as it was at the last ``refresh``."""
        return _Away(self.hosts)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _taker(self, path: str) -> Take | None:
        return next((host.take for host in self.hosts if host.answers(path)), None)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        for host in self.hosts:
            if host.answers(request.path):
                return await host.forward(request)
        for host in self.hosts:
            if not host.was_ready:  # nobody knows yet what it answers
                return host.absent()
        raise web.HTTPNotFound


class _Away(Collector):
    def __init__(self, hosts: Sequence[WorkerHost]) -> None:
        self._hosts = hosts

    def collect(self) -> Iterator[Metric]:
        """A family that several processes have is one, with the samples of all."""
        cpu = CounterMetricFamily("headrace_further_cpu_seconds", "CPU of a further process.", labels=["process"])
        peak = GaugeMetricFamily(
            "headrace_further_peak_resident_bytes", "Memory that it had at most.", labels=["process"]
        )
        families: dict[str, Metric] = {cpu.name: cpu, peak.name: peak}
        for host in self._hosts:
            cpu.add_metric([str(host.number)], host.report.cpu_s)
            peak.add_metric([str(host.number)], host.report.peak_bytes)
            for family in text_string_to_metric_families(host.report.metrics):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples
        yield from families.values()


def _socket_folder() -> Path:
    """For this user alone. Raises ServerError when there is no place for it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="headrace-"))  # 0700
        if len(str(folder)) > _LONGEST_FOLDER:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix="headrace-", dir="/tmp"))
    except OSError as error:
        raise ServerError(
            f"several processes need a folder for their sockets, and none can be made: {error.strerror}",
            advice="set TMPDIR to a folder where this user may write, or processes: 1",
        ) from error
    return folder


def wanted(processes: int | str) -> int:
    """How many processes a configuration asks for: "auto" is one for each core of this machine that we may use."""
    if processes == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(processes)


__all__ = ["Hosts", "wanted"]
