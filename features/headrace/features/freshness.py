"""How fresh features are, and what the engine counts: Prometheus metrics and a ring of recent samples for people."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from headrace.features.kernel import Counts

_SAMPLES = 10_000
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class FeatureMetrics:
    """The numbers of the feature engine. Freshness: from a row's commit to its features being readable."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._freshness = Histogram(
            "headrace_features_freshness_seconds",
            "From the commit of a row to its features being readable in the online store",
            registry=registry,
            buckets=_BUCKETS_S,
        )
        self._written = Counter(
            "headrace_features_written_rows_total",
            "Entity rows written to the online store",
            ["view"],
            registry=registry,
        )
        self._late = Counter(
            "headrace_features_late_rows_total",
            "Inserted rows older than every window of the view",
            ["view"],
            registry=registry,
        )
        self._unknown = Counter(
            "headrace_features_unknown_columns_total",
            "Columns the server didn't send (unchanged) and whose value wasn't known: read as NULL",
            ["view"],
            registry=registry,
        )
        self._unreadable = Counter(
            "headrace_features_unreadable_values_total",
            "Column values that can't be read as the type the definition asks for: read as NULL",
            ["view"],
            registry=registry,
        )
        self._lag = Gauge(
            "headrace_features_lag_events", "Events of the log that features haven't applied", registry=registry
        )
        self._ring: deque[float] = deque(maxlen=_SAMPLES)

    def fresh(self, age_s: float) -> None:
        """One row's features became readable this long after its commit."""
        age_s = max(age_s, 0.0)  # two machines' clocks
        self._freshness.observe(age_s)
        self._ring.append(age_s)

    def counted(self, view: str, news: Counts) -> None:
        """What a view's kernel has met since the last call."""
        for counter, more in (
            (self._written, news.written),
            (self._late, news.late),
            (self._unknown, news.unknown),
            (self._unreadable, news.unreadable),
        ):
            if more:
                counter.labels(view).inc(more)

    def lag(self, events: int) -> None:
        self._lag.set(events)

    def recent(self) -> dict[str, Any]:
        """p50 and p99 in ms over the newest samples, None without any; and how many samples."""
        ordered = sorted(self._ring)
        return {
            "p50": _percentile_ms(ordered, 0.50),
            "p99": _percentile_ms(ordered, 0.99),
            "samples": len(ordered),
        }


def _percentile_ms(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000, 3)
