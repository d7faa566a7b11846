"""All further processes of a configuration, and the one place where requests find the process that answers them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from headrace.cdc.config import Config, plugins
from headrace.cdc.consumer import Consumer
from headrace.cdc.log.base import EventLog
from headrace.cdc.split.allot import Part, allot, movable
from headrace.cdc.split.host import WorkerHost
from headrace.cdc.split.logshare import shareable


class Hosts:
    """See the module. Without further processes it is empty, and costs nothing."""

    def __init__(self, config: Config, log: EventLog, is_copying: Callable[[], bool]) -> None:
        """Raises ConfigError for a log that one process alone can have."""
        count = wanted(config.processes)
        kept = [] if count == 1 else allot(movable(config, plugins("headrace.consumers")), count)
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-")) if kept else None  # 0700
        self.parts: list[Part] = [part for parts in kept for part in parts]
        self.hosts: list[WorkerHost] = []
        if self._folder is not None:
            shared = shareable(log, config.log.type)
            self.hosts = [
                WorkerHost(number, parts, config, shared, self._folder, is_copying)
                for number, parts in enumerate(kept, 1)
            ]

    def consumers(self) -> list[Consumer]:
        """Those of all processes, to be shown."""
        return [consumer for host in self.hosts for consumer in host.consumers()]

    def routes(self) -> Sequence[web.RouteDef]:
        """One for all that no route of this process takes; mount it last."""
        return [web.route("*", "/{path:.*}", self._forward)] if self.hosts else []

    async def refresh(self) -> None:
        """Ask every process for its report."""
        await asyncio.gather(*(host.refresh() for host in self.hosts))

    def status(self) -> list[dict[str, Any]]:
        """Of each further process."""
        return [
            {"process": host.number, "pid": host.pid, "consumers": [consumer.name for consumer in host.consumers()]}
            for host in self.hosts
        ]

    def collector(self) -> Collector:
        """What the processes count, as it was at the last ``refresh``."""
        return _Away(self.hosts)

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        for host in self.hosts:
            if host.answers(request.path):
                return await host.forward(request)
        raise web.HTTPNotFound


class _Away(Collector):
    def __init__(self, hosts: Sequence[WorkerHost]) -> None:
        self._hosts = hosts

    def collect(self) -> Iterator[Metric]:
        """A family that several processes have is one, with the samples of all."""
        families: dict[str, Metric] = {}
        for host in self._hosts:
            for family in text_string_to_metric_families(host.report.metrics):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples
        yield from families.values()


def wanted(processes: int | str) -> int:
    """How many processes a configuration asks for: "auto" is one for each core of this machine that we may use."""
    if processes == "auto":
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(processes)


__all__ = ["Hosts", "wanted"]
