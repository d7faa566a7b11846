"""The one composition root: configuration in, a running process out.

Everything that lives long is a task of one TaskGroup. A failing capture stops the process (rather than skip, P8); a failing consumer
is started again, or stays stopped and is shown in /readyz, and never disturbs capture or another consumer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Sequence
from typing import cast

from prometheus_client import CollectorRegistry

from headrace.cdc.capture import Capture
from headrace.cdc.config import Config, plugins
from headrace.cdc.consumer import Consumer, Services
from headrace.cdc.customers import Customers, Suppression
from headrace.cdc.deadletters import DeadLetters
from headrace.cdc.enrich.knowledge import Knowledge
from headrace.cdc.errors import ConfigError, HeadraceError, RequestRefused
from headrace.cdc.keeping import Keeper
from headrace.cdc.log.base import EventLog
from headrace.cdc.loop import end
from headrace.cdc.loop import run as run_loop
from headrace.cdc.metrics import CaptureMetrics
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.plan import read_plan
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.sources.base import Asked, PushedSource, SourceStatus
from headrace.cdc.split.allot import Part, section_of
from headrace.cdc.split.hosts import Hosts
from headrace.cdc.web import WebServer

_log = logging.getLogger("headrace.app")

_RETAIN_EVERY_S = 60.0
_ADVISE_EVERY_S = 60.0


class Application:
    """The first process: all captures, the log, the server, the consumers that aren't kept by further ones."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._registry = CollectorRegistry()
        self._captures: list[Capture] = []
        self._pushed: list[PushedSource] = []
        self._keeper = Keeper()

    async def run(self, stop: asyncio.Event, on_ready: Callable[[str], None] | None = None) -> None:
        """Work until ``stop`` is set. on_ready gets the server's base URL once every source streams.

        Raises the first HeadraceError that stops the process; all parts have been stopped by then.
        """
        metrics = CaptureMetrics(self._registry)
        plan = read_plan(self._config)
        knowledge = Knowledge()
        pipeline = build_pipeline(self._config, knowledge)
        log: EventLog = await self._config.log.kind.from_config(self._config.log.section, self._config)
        metrics.watch_log(log)
        hosts: Hosts | None = None
        try:
            hosts = Hosts(self._config, log, self._is_copying)
            services = Services(self._config, log, self._registry, self._is_copying)
            suppression = Suppression(log)
            await suppression.load()
            consumers = self._consumers(services, hosts.parts)
            fed = {"lookup": knowledge.mirror, "records": knowledge.records}
            used = {consumer.name for consumer in consumers} | {name for name, file in fed.items() if file is not None}
            await _forget_unused(log, used)
            for name, file in fed.items():
                if file is not None:
                    from headrace.cdc.enrich.mirror import MirrorFeeder  # only for those who look something up

                    feeder = MirrorFeeder(file, log, name)
                    await feeder.catch_up()
                    consumers.append(feeder)
            for name, choice in self._config.sources.items():
                source = choice.kind(name, choice.section, self._config.events)
                if hasattr(source, "folder"):
                    source.folder = self._config.folder
                if hasattr(source, "routes"):
                    source.attach(log, self._registry, metrics.appended, plan, pipeline, suppression)
                    self._pushed.append(source)
                    continue
                normaliser = Normaliser(
                    name, self._config.events, self._config.privacy.salt, self._config.privacy.key_id
                )
                steps = pipeline if pipeline is not None and pipeline.has_steps else None
                self._captures.append(Capture(source, normaliser, log, metrics, steps))
            _check_paths(self._pushed)
            metrics.watch_sources(self.source_status)
            if pipeline is not None:
                metrics.watch_pipeline(lambda: (pipeline.counts.dropped, pipeline.counts.set_aside))
            metrics.watch_suppression(lambda: (suppression.count, suppression.refused))
            server = WebServer(
                self._config.server,
                consumers=[*consumers, *hosts.consumers()],
                sources=self.source_status,
                log=log,
                registry=self._registry,
                troubles=lambda: dict(self._keeper.troubles),
                snapshot=self._snapshot,
                pushed=self._pushed,
                letters=DeadLetters(log, self._pushed, pipeline),
                customers=Customers(log, self._config, suppression),
                others=hosts,
            )
            await server.start()
            hosts.reachable(server.url)
            try:
                await self._supervise(stop, consumers, hosts, log, server, on_ready)
            finally:
                await server.stop()
        finally:
            await asyncio.to_thread(knowledge.close)
            await log.close()
            if hosts is not None:
                hosts.close()

    def _consumers(self, services: Services, elsewhere: list[Part]) -> list[Consumer]:
        """Those of this process."""
        consumers: list[Consumer] = []
        for name, kind in plugins("headrace.consumers").items():
            section = section_of(self._config, kind, elsewhere, name, is_ours=False)
            built = kind.build(section, services)
            if isinstance(built, Sequence):
                consumers += cast("Sequence[Consumer]", built)
            elif built is not None:
                consumers.append(built)
        return consumers

    async def _supervise(
        self,
        stop: asyncio.Event,
        consumers: list[Consumer],
        hosts: Hosts,
        log: EventLog,
        server: WebServer,
        on_ready: Callable[[str], None] | None,
    ) -> None:
        waiting = len(self._captures) + len(self._pushed) + len(hosts.hosts)

        def started() -> None:
            nonlocal waiting
            waiting -= 1
            if waiting == 0:
                # What was made at start lives as long as the process: the collector needn't walk it in each full collection.
                gc.collect()
                gc.freeze()
                if on_ready is not None:
                    on_ready(server.url)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(capture.run(started)) for capture in self._captures]
                tasks += [group.create_task(source.run(started)) for source in self._pushed]
                tasks += [group.create_task(host.run(started)) for host in hosts.hosts]
                tasks += [group.create_task(self._keeper.keep_running(consumer)) for consumer in consumers]
                tasks.append(group.create_task(self._retain(log)))
                tasks.append(group.create_task(_advise(hosts)))
                await stop.wait()
                await end(tasks)
        except BaseExceptionGroup as failed:
            raise _first(failed) from None

    async def _retain(self, log: EventLog) -> None:
        while True:
            await log.retain(int(time.time() * 1_000_000))
            await asyncio.sleep(_RETAIN_EVERY_S)

    async def _snapshot(self, source: str, tables: Sequence[str], where: str) -> Asked:
        for capture in self._captures:
            if capture.source.name == source:
                return await capture.source.snapshot(tables, where)
        known = ", ".join(capture.source.name for capture in self._captures)
        raise RequestRefused(f'there is no source "{source}"', advice=f"name one of sources: {known}")

    def _is_copying(self) -> bool:
        return any(status.phase in ("connecting", "snapshot") for status in self.source_status().values())

    def source_status(self) -> dict[str, SourceStatus]:
        """Every source's health by name."""
        statuses: dict[str, SourceStatus] = {}
        for capture in self._captures:
            status = capture.source.status()
            if capture.trouble:
                status = SourceStatus(
                    "connecting", capture.trouble, status.position, status.lag_bytes, status.retained_bytes
                )
            statuses[capture.source.name] = status
        return statuses | {source.name: source.status() for source in self._pushed}


async def _advise(hosts: Hosts) -> None:
    """One line, once, when this process is at its end and could share its work."""
    while True:
        before_s, cpu_s = time.monotonic(), time.process_time()
        await asyncio.sleep(_ADVISE_EVERY_S)
        told = hosts.advice((time.process_time() - cpu_s) / (time.monotonic() - before_s))
        if told is not None:
            _log.warning("%s", told)
            return


async def _forget_unused(log: EventLog, used: set[str]) -> None:
    """Cursors of what isn't configured any more, and can begin anew: they would hold the log's retention back for ever."""
    for group in ("checks", "lookup", "records"):
        if group not in used and group in await log.groups():
            await log.forget(group)
            _log.info("%s isn't configured any more: its place in the log is forgotten", group)


def _check_paths(pushed: Sequence[PushedSource]) -> None:
    """Raises ConfigError for two sources that would answer the same paths."""
    for source in pushed:
        same = [other for other in pushed if other.claims == source.claims]
        if len(same) > 1:
            raise ConfigError(
                f"two sources would answer {source.claims}",
                problems=tuple(f"sources.{other.name}: is one of {len(same)}" for other in same),
                advice="of type http keep one, with the write keys of all of them (events carry the name of their key);"
                " of type webhook give each a path of its own",
            )


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error to tell: the first HeadraceError, else the first of any kind."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = list(failed.exceptions)
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(cast("BaseExceptionGroup[BaseException]", error).exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, HeadraceError)), leaves[0])


def run(config: Config, on_ready: Callable[[str], None] | None = None) -> None:
    """Run until SIGINT or SIGTERM; uvloop where it is installed. Raises HeadraceError."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await Application(config).run(stop, on_ready)

    run_loop(main())
