"""The ``sinks:`` section: each sink is a consumer of its own, with its cursor in the log under ``sink:<name>``.

A sink that fails, is paused or can't reach its destination concerns nobody else: its events wait in the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

from aiohttp import web

from headrace.cdc.config import Config
from headrace.cdc.consumer import Health, Services
from headrace.cdc.log.base import ConsumerLog, Cursor
from headrace.sinks.base import Sink, SinkChoice, SinkSection
from headrace.sinks.deadletter import MemorySinkStore
from headrace.sinks.dispatcher import Dispatcher
from headrace.sinks.returned import ReturnedRecords
from headrace.sinks.sinkfile import SinkFile, sink_store
from headrace.sinks.sinkmetrics import SinkCollector, SinkNumbers

_LOOK_S: Final = 1.0


class LogCursors:
    """A live sink's places: the log's own cursors, which hold its retention back."""

    def __init__(self, log: ConsumerLog, sink: str) -> None:
        self._log = log
        self._group = cursor_group(sink)

    async def load(self, partition: int) -> Cursor | None:
        return await self._log.committed(self._group, partition)

    async def save(self, partition: int, cursor: Cursor) -> None:
        await self._log.commit(self._group, partition, cursor.offset, state=cursor.state)


class SinkConsumer:
    """One sink's delivery; see consumer.py for the contract."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        section: SinkSection,
        *,
        log: ConsumerLog,
        store: SinkFile | MemorySinkStore,
        numbers: SinkNumbers | None = None,
    ) -> None:
        self._sink = name
        self._store = store
        self._is_holding = section.poison == "hold"
        self._dead = 0
        self.dispatcher = Dispatcher(
            name, sink, section, log=log, cursors=LogCursors(log, name), letters=store, numbers=numbers,
            on_returned=ReturnedRecords(log, name).append,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return f"sinks/{self._sink}"

    def routes(self) -> Iterable[web.RouteDef]:
        return ()

    def health(self) -> Iterable[Health]:
        return [self.dispatcher.health()]

    def status(self) -> dict[str, Any]:
        """As Dispatcher.status, and dead_letters: how many are kept."""
        return self.dispatcher.status() | {"dead_letters": self._dead}

    async def run(self) -> None:
        """Deliver until cancelled. Raises LogError, SinkError as the dispatcher does."""
        await self._look()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.dispatcher.run())
                group.create_task(self._keep_looking())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await self._store.close()

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """What a person has said by command: pause, resume, replayed dead letters."""
        since_us = (await self._store.paused()).get(self._sink)
        if since_us is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since_us / 1_000_000))
            self.dispatcher.pause(f'paused by a person since {since}; "headrace sink resume {self._sink}" goes on')
        elif self.dispatcher.pause_reason:
            self.dispatcher.resume()
        self._dead = (await self._store.counts()).get(self._sink, 0)
        if self._is_holding:
            self.dispatcher.release_but(await self._store.stopped_keys(self._sink))


class Sinks:
    """The consumer type behind the section: one consumer a sink."""

    section: ClassVar[str | None] = "sinks"
    may_be_elsewhere: ClassVar[bool] = True
    config_type: ClassVar[Any] = dict[str, SinkChoice]

    @classmethod
    def build(cls, section: Any, services: Services) -> Sequence[SinkConsumer]:
        """Raises ConfigError when a sink can't be made as it is configured."""
        choices: dict[str, SinkChoice] = section or {}
        if not choices:
            return ()
        collector = SinkCollector()
        services.registry.register(collector)
        memory = MemorySinkStore()
        consumers: list[SinkConsumer] = []
        for name, choice in choices.items():
            store = sink_store(services.config)
            consumers.append(
                SinkConsumer(
                    name,
                    make_sink(name, choice, services.config),
                    choice.section,
                    log=services.log,
                    store=store if isinstance(store, SinkFile) else memory,
                    numbers=collector.numbers(name),
                )
            )
        return consumers


def make_sink(name: str, choice: SinkChoice, config: Config, *, is_replay: bool = False) -> Sink:
    """The sink of a section, not open yet. Raises ConfigError."""
    sink: Sink = choice.kind.from_config(name, choice.section, config, is_replay=is_replay)
    return sink


def cursor_group(sink: str) -> str:
    """The name under which the log keeps the sink's cursor."""
    return f"sink:{sink}"


__all__ = ["SinkConsumer", "Sinks", "cursor_group", "make_sink"]
