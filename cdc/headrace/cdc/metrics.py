"""The numbers of capture and log in Prometheus' form: what is counted, and what is looked up when somebody asks.

Names follow ``headrace_<room>_<what>_<unit>[_total]`` with base units (seconds, bytes, rows, events); labels are ``source``, ``table``,
``sink`` and ``view`` only, never a user's data. The hot path pays one call a batch; everything that can be looked up is looked up
at scrape time by a collector. Knows nothing of HTTP: web.py serves the registry (Prometheus text format 0.0.4).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.cdc.consumer import Consumer
from headrace.cdc.log.base import Bounds, EventLog
from headrace.cdc.sources.base import SourceStatus

PHASE_CODES: Final = {"stopped": 0, "connecting": 1, "snapshot": 2, "streaming": 3}
"""Values of headrace_source_phase_code."""

# From a lone commit on a fast disk (0.3 ms) to a capture that is hours behind; a factor of about two where the goals lie.
LATENCY_BUCKETS_S: Final = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600,
)  # fmt: skip

_ROWS = "headrace_capture_appended_rows"
_LATENCY = "headrace_capture_commit_to_log_seconds"


class CaptureMetrics:
    """What the captures report and what is watched for them; one object a process.

    Makes the series of a source at its first batch, so that a scrape never shows a source that doesn't exist.
    """

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock
        self._rows = Counter(_ROWS, "Row changes made durable in the log.", ["source"], registry=registry)
        self._batches = Counter(
            "headrace_capture_appended_batches", "Log transactions, heartbeats included.", ["source"], registry=registry
        )
        self._restarts = Counter(
            "headrace_capture_source_restarts",
            "Times a source was started again after a failure.",
            ["source"],
            registry=registry,
        )
        self._latency = Histogram(
            _LATENCY,
            "From the commit in the source (its clock) to the batch durable in the log; one observation a batch with rows.",
            ["source"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._hot: dict[str, tuple[Counter, Counter, Histogram]] = {}
        ProcessCollector(namespace="headrace", registry=registry)

    def appended(self, name: str, rows: int, source_time_us: int) -> None:
        """A batch of source ``name`` is durable. rows: 0 for a heartbeat; source_time_us: the commit time of its last row."""
        hot = self._hot.get(name)
        if hot is None:
            hot = self._hot[name] = (self._rows.labels(name), self._batches.labels(name), self._latency.labels(name))
        hot[1].inc()
        if rows:
            hot[0].inc(rows)
            # Two machines' clocks may differ by more than the way takes: never a negative time.
            hot[2].observe(max(0.0, self._clock() - source_time_us / 1_000_000))

    def restarted(self, name: str) -> None:
        """Source ``name`` failed and is started again."""
        self._restarts.labels(name).inc()

    def watch_log(self, log: EventLog) -> None:
        """Show at each scrape what the engine counts itself (``stats()``), if it counts anything."""
        self._registry.register(_EngineCollector(log))

    def watch_sources(self, statuses: Callable[[], dict[str, SourceStatus]]) -> None:
        """Show every source's status at each scrape. statuses: cheap, no I/O."""
        self._registry.register(_SourceCollector(statuses))

    def watch_pipeline(self, counts: Callable[[], tuple[int, int]]) -> None:
        """Show at each scrape how many events the pipeline's steps have dropped and set aside. counts: cheap, no I/O."""
        self._registry.register(_PipelineCollector(counts))

    def watch_suppression(self, counts: Callable[[], tuple[int, int]]) -> None:
        """Show at each scrape how many customers are suppressed, and how many events of theirs were refused. counts: cheap, no I/O."""
        self._registry.register(_SuppressionCollector(counts))


class _SuppressionCollector(Collector):
    def __init__(self, counts: Callable[[], tuple[int, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        count, refused = self._counts()
        yield GaugeMetricFamily("headrace_suppressed_customers", "Customers whose events are refused.", value=count)
        yield CounterMetricFamily(
            "headrace_suppressed_events", "Events of suppressed customers, answered and forgotten.", value=refused
        )


class _PipelineCollector(Collector):
    def __init__(self, counts: Callable[[], tuple[int, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        dropped, set_aside = self._counts()
        yield CounterMetricFamily(
            "headrace_pipeline_dropped_events", "Events that a step of the pipeline dropped.", value=dropped
        )
        yield CounterMetricFamily(
            "headrace_pipeline_quarantined_events", "Events that a step set aside, as dead letters.", value=set_aside
        )


class _SourceCollector(Collector):
    def __init__(self, statuses: Callable[[], dict[str, SourceStatus]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        codes = ", ".join(f"{code} {phase}" for phase, code in PHASE_CODES.items())
        phase = _gauge("headrace_source_phase_code", f"What the source does: {codes}.", "source")
        lag_bytes = _gauge("headrace_source_lag_bytes", "What the server has and we haven't read.", "source")
        lag_s = _gauge(
            "headrace_source_lag_seconds",
            "Age of the newest durable thing, while the server has more; 0 without.",
            "source",
        )
        retained = _gauge("headrace_source_retained_bytes", "What the server keeps on its disk for us.", "source")
        unconfirmed = _gauge(
            "headrace_source_unconfirmed_bytes", "Of these what isn't confirmed to the server.", "source"
        )
        left = _gauge(
            "headrace_source_safe_wal_bytes",
            "What the server writes before it gives the slot up; absent: no limit.",
            "source",
        )
        warned = _gauge(
            "headrace_source_warned_code",
            "Whether somebody should look at the source though it goes on: 0 no, 1 yes; status says why.",
            "source",
        )
        safe = _gauge(
            "headrace_source_failover_safe_code",
            "Whether a promotion of the configured standby would keep the source's place: 0 no, 1 yes.",
            "source",
        )
        copied = _gauge("headrace_source_snapshot_copied_rows", "Rows copied by the running snapshot.", "source")
        estimated = _gauge(
            "headrace_source_snapshot_estimated_rows", "Rows the snapshot will copy, estimated.", "source"
        )
        done = _gauge("headrace_source_snapshot_done_tables", "Tables the running snapshot has copied.", "source")
        known = _gauge("headrace_source_snapshot_known_tables", "Tables of the running snapshot.", "source")
        for name, status in self._statuses().items():
            phase.add_metric([name], PHASE_CODES.get(status.phase, 0))
            for family, value in (
                (lag_bytes, status.lag_bytes),
                (lag_s, status.lag_s),
                (retained, status.retained_bytes),
                (unconfirmed, (status.wal or {}).get("unconfirmed_bytes")),
                (left, (status.wal or {}).get("safe_bytes")),
                (warned, int(bool(status.warnings))),
                (safe, None if status.is_failover_safe is None else int(status.is_failover_safe)),
            ):
                if value is not None:
                    family.add_metric([name], value)
            snapshot = status.snapshot or {}
            for family, key in (
                (copied, "rows"),
                (estimated, "estimated_rows"),
                (done, "tables_done"),
                (known, "tables"),
            ):
                if isinstance(snapshot.get(key), int):
                    family.add_metric([name], snapshot[key])
        yield from (phase, lag_bytes, lag_s, retained, unconfirmed, left, warned, safe, copied, estimated, done, known)


class _EngineCollector(Collector):
    """An engine may offer ``stats()``: a struct or mapping of numbers. Known names become series, others are left alone."""

    _GAUGES: Final = {
        "disk_bytes": ("headrace_log_disk_bytes", "Bytes the log takes on disk."),
        "dead_letters": ("headrace_log_dead_letter_events", "Dead letters that are kept."),
    }
    _COUNTERS: Final = {
        "appends_total": ("headrace_log_appends", "Appends made durable since the start."),
        "events_total": ("headrace_log_appended_events", "Events in them, heartbeats included."),
        "groups_total": ("headrace_log_commits", "Transactions of the engine; one holds all that waited for it."),
        "commit_s_total": ("headrace_log_commit_seconds", "Time spent in them, the sync to disk included."),
    }

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def collect(self) -> Iterator[Metric]:
        numbers = engine_stats(self._log)
        for key, (name, text) in self._GAUGES.items():
            if key in numbers:
                yield GaugeMetricFamily(name, text, numbers[key])
        for key, (name, text) in self._COUNTERS.items():
            if key in numbers:
                yield CounterMetricFamily(name, text, numbers[key])


class LogCollector(Collector):
    """Places in the log, and how far each consumer is behind. ``refresh`` asks the log; a scrape shows what it answered.

    Offsets are summed over the partitions: the end less the first is the number of events kept.
    """

    def __init__(self, log: EventLog, consumers: Sequence[Consumer]) -> None:
        self._log = log
        self._consumers = consumers
        self._bounds: list[Bounds] = []

    async def refresh(self) -> list[Bounds]:
        """Bounds of every partition, asked now. Raises LogError as the log does."""
        self._bounds = [await self._log.bounds(partition) for partition in range(self._log.partitions)]
        return self._bounds

    def collect(self) -> Iterator[Metric]:
        ends = [bounds.end for bounds in self._bounds]
        yield GaugeMetricFamily(
            "headrace_log_first_offset_events",
            "Oldest offset kept, over all partitions.",
            sum(b.first for b in self._bounds),
        )
        yield GaugeMetricFamily("headrace_log_end_offset_events", "End of the log, over all partitions.", sum(ends))
        lag = _gauge("headrace_consumer_lag_events", "Events in the log that the consumer hasn't passed.", "sink")
        for consumer in self._consumers:
            behind = lag_events(ends, consumer.status())
            if behind is not None:
                lag.add_metric([consumer.name], behind)
        yield lag


def lag_events(ends: Sequence[int], status: dict[str, Any]) -> int | None:
    """How many events a consumer with that ``Consumer.status`` is behind; None when it has no cursor."""
    offsets: list[int] | None = status.get("offset")
    return None if offsets is None else sum(max(0, end - offset) for end, offset in zip(ends, offsets, strict=False))


def engine_stats(log: EventLog) -> dict[str, float]:
    """Numbers of the engine's own ``stats()``; empty for an engine without one."""
    stats = getattr(log, "stats", None)
    if stats is None:
        return {}
    found: Any = msgspec.to_builtins(stats())
    return {str(key): value for key, value in found.items() if isinstance(value, int | float)}


def capture_numbers(registry: CollectorRegistry) -> dict[str, dict[str, float | None]]:
    """For each source what the counters say since the start: ``appended_rows``, ``commit_to_log_p50_ms``, ``.._p99_ms``.

    Quantiles are upper bounds of the histogram's buckets, in milliseconds; None before the first row or past the last bucket.
    """
    numbers: dict[str, dict[str, float | None]] = {}
    buckets: dict[str, list[tuple[float, float]]] = {}
    for metric in registry.collect():
        if metric.name not in (_ROWS, _LATENCY):
            continue
        for sample in metric.samples:
            source = sample.labels.get("source", "")
            if sample.name == f"{_ROWS}_total":
                numbers.setdefault(source, {})["appended_rows"] = sample.value
            elif sample.name == f"{_LATENCY}_bucket":
                buckets.setdefault(source, []).append((float(sample.labels["le"]), sample.value))
    for source, counts in buckets.items():
        entry = numbers.setdefault(source, {})
        entry["commit_to_log_p50_ms"] = _quantile_ms(counts, 0.50)
        entry["commit_to_log_p99_ms"] = _quantile_ms(counts, 0.99)
    return numbers


def _quantile_ms(counts: list[tuple[float, float]], part: float) -> float | None:
    """counts: (upper bound in seconds, cumulative count) in rising order, the last bound infinite."""
    total = counts[-1][1]
    for bound_s, count in counts:
        if total and count >= part * total and bound_s != float("inf"):
            return bound_s * 1000
    return None


def _gauge(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=[label])
