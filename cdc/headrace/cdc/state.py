"""What the process says about itself: the document of ``GET /v1/status`` and the verdicts of ``GET /readyz``.

Only gathers what parts report; knows neither HTTP nor how it is shown. No row data and no secret is ever part of it.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from headrace.cdc import __version__
from headrace.cdc.consumer import Consumer, Health, OtherProcesses
from headrace.cdc.errors import LogError
from headrace.cdc.log.base import Bounds, EventLog
from headrace.cdc.metrics import LogCollector, capture_numbers, engine_stats, lag_events
from headrace.cdc.sources.base import SourceStatus


class ProcessState:
    """Gathers the reports of all parts when asked."""

    def __init__(
        self,
        *,
        consumers: Sequence[Consumer],
        sources: Callable[[], dict[str, SourceStatus]],
        log: EventLog,
        registry: CollectorRegistry,
        troubles: Callable[[], dict[str, str]],
        clock: Callable[[], float] = time.time,
        others: OtherProcesses | None = None,
    ) -> None:
        """others: further processes, which are asked before they are shown."""
        self._others = others
        self._consumers = consumers
        self._sources = sources
        self._log = log
        self._registry = registry
        self._troubles = troubles
        self._clock = clock
        self._started = clock()
        self._places = LogCollector(log, consumers)
        registry.register(self._places)
        if others is not None:
            registry.register(others.collector())

    async def refresh(self) -> list[Bounds]:
        """Ask the log for its bounds, for a scrape that follows. Raises LogError."""
        await self._ask_others()
        return await self._places.refresh()

    async def _ask_others(self) -> None:
        if self._others is not None:
            await self._others.refresh()

    async def readiness(self) -> list[Health]:
        """A verdict on each part: every source, the log, every consumer.

        A source is ready while it streams. During a snapshot it isn't: what is served from it is not complete yet.
        """
        await self._ask_others()
        verdicts: list[Health] = []
        for name, status in self._sources().items():
            is_ready = status.phase == "streaming"
            verdicts.append(Health(f"source {name}", is_ready, "" if is_ready else _source_reason(status)))
        try:
            await self._places.refresh()
        except LogError as error:
            verdicts.append(Health("log", False, error.message))
        else:
            verdicts.append(Health("log", True))
        troubles = self._troubles()
        for consumer in self._consumers:
            if consumer.name in troubles:
                verdicts.append(Health(consumer.name, False, troubles[consumer.name]))
            else:
                verdicts.extend(consumer.health())
        return verdicts

    async def document(self) -> dict[str, Any]:
        """The status as JSON types: process, sources, log, consumers, troubles by name. Times in microseconds since 1970 UTC."""
        await self._ask_others()
        now = self._clock()
        numbers = capture_numbers(self._registry)
        compiled = compiled_modules()
        for name, is_compiled in ({} if self._others is None else self._others.compiled()).items():
            compiled[name] = compiled.get(name, True) and is_compiled
        troubles = self._troubles()
        # Sources before the log's ends before the consumers: what a source calls durable then lies below the ends told beside it.
        sources = {
            name: msgspec.to_builtins(status) | numbers.get(name, {}) for name, status in self._sources().items()
        }
        log: dict[str, Any] = {"generation": self._log.generation, "partitions": [], "ends": []}
        ends: list[int] = []
        try:
            bounds = await self._places.refresh()
        except LogError as error:
            troubles["log"] = error.message
        else:
            log["ends"] = ends = [each.end for each in bounds]
            log["partitions"] = [
                {"partition": index, "first": each.first, "end": each.end} for index, each in enumerate(bounds)
            ]
        return {
            "is_running": True,
            "version": __version__,
            "python": platform.python_version(),
            "is_compiled": all(compiled.values()),
            "compiled": compiled,
            "time_us": int(now * 1_000_000),
            "started_us": int(self._started * 1_000_000),
            "sources": sources,
            "log": log | engine_stats(self._log),
            "consumers": {consumer.name: _consumer(consumer, ends) for consumer in self._consumers},
            "processes": [] if self._others is None else self._others.status(),
            "troubles": troubles,
        }


def _consumer(consumer: Consumer, ends: list[int]) -> dict[str, Any]:
    status = consumer.status()
    verdicts = list(consumer.health())
    return status | {
        "is_ready": all(verdict.is_ready for verdict in verdicts),
        "reason": "; ".join(verdict.reason for verdict in verdicts if verdict.reason),
        "lag_events": lag_events(ends, status),
    }


def _source_reason(status: SourceStatus) -> str:
    snapshot = status.snapshot
    if status.phase != "snapshot" or snapshot is None:
        return status.reason or status.phase
    return (
        f"the initial copy runs: {snapshot.get('tables_done')} of {snapshot.get('tables')} tables, "
        f"{snapshot.get('rows')} of about {snapshot.get('estimated_rows')} rows"
    )


def compiled_modules() -> dict[str, bool]:
    """Loaded hot modules by name: True when the compiled form runs, False when the plain Python file does.

    A module is hot when a ``.pxd`` file with its C types stands beside it, or when it is compiled.
    """
    found: dict[str, bool] = {}
    for name, module in sorted(sys.modules.items()):
        if not name.startswith("headrace."):
            continue
        file = getattr(module, "__file__", None)
        if file is None:
            continue
        path = Path(file)
        is_compiled = path.suffix != ".py"
        if is_compiled or path.with_suffix(".pxd").exists():
            found[name] = is_compiled
    return found
