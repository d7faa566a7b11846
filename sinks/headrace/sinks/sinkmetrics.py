"""The numbers of every sink: plain counters that the dispatchers raise, shown at scrape time. Labels: ``sink`` only."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

AGE_BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0,
)  # fmt: skip
"""From the commit in the source to the destination's answer."""


class SinkNumbers:
    """One sink's counters since the start. Raised once a request; ``aged`` once an event, so it stays a bisection."""

    __slots__ = (
        "again",
        "ages",
        "ages_sum_s",
        "breaker_code",
        "calls",
        "dead",
        "delivered",
        "faults",
        "held",
        "in_flight",
        "oldest_s",
        "returned",
        "skipped",
    )  # fmt: skip

    def __init__(self) -> None:
        self.delivered = self.dead = self.returned = self.skipped = self.again = self.calls = self.faults = 0
        self.ages = [0] * (len(AGE_BUCKETS_S) + 1)
        self.ages_sum_s = 0.0
        self.in_flight: Callable[[], int] = int
        self.held: Callable[[], int] = int
        self.oldest_s: Callable[[], float] = float
        self.breaker_code: Callable[[], int] = int

    def aged(self, age_s: float) -> None:
        """An event was delivered so long after its commit."""
        if age_s < 0.0:  # two machines' clocks
            age_s = 0.0
        self.ages[bisect_left(AGE_BUCKETS_S, age_s)] += 1
        self.ages_sum_s += age_s

    def quantile_ms(self, part: float) -> float | None:
        """Upper bound of the bucket that holds the quantile, in ms; None without a sample, or past the last bucket."""
        total = sum(self.ages)
        count = 0
        for bound_s, more in zip(AGE_BUCKETS_S, self.ages, strict=False):
            count += more
            if total and count >= part * total:
                return bound_s * 1000
        return None


class SinkCollector(Collector):
    """All sinks at one scrape."""

    def __init__(self) -> None:
        self._sinks: dict[str, SinkNumbers] = {}

    def numbers(self, sink: str) -> SinkNumbers:
        """The counters of a sink, made when first asked for."""
        return self._sinks.setdefault(sink, SinkNumbers())

    def collect(self) -> Iterator[Metric]:
        counters = [
            ("headrace_sink_delivered_events", "Events the destination has taken.", "delivered"),
            ("headrace_sink_dead_events", "Events set aside as dead letters.", "dead"),
            ("headrace_sink_skipped_events", "Events of the log that the sink has no use for.", "skipped"),
            ("headrace_sink_retried_events", "Times an event had to be sent again.", "again"),
            ("headrace_sink_returned_events", "Answers that came back as events.", "returned"),
            ("headrace_sink_requests", "Requests made.", "calls"),
            ("headrace_sink_failed_requests", "Requests that failed as a whole.", "faults"),
        ]
        for name, text, field in counters:
            family = CounterMetricFamily(name, text, labels=["sink"])
            for sink, numbers in self._sinks.items():
                family.add_metric([sink], getattr(numbers, field))
            yield family
        gauges = [
            ("headrace_sink_in_flight_events", "Events in requests under way.", "in_flight"),
            ("headrace_sink_held_events", "Events held in memory, those in flight included.", "held"),
            ("headrace_sink_oldest_unacked_seconds", "Age of the oldest event that isn't done; 0 = none.", "oldest_s"),
            ("headrace_sink_breaker_state_code", "0 closed, 1 open, 2 probing.", "breaker_code"),
        ]
        for name, text, field in gauges:
            gauge = GaugeMetricFamily(name, text, labels=["sink"])
            for sink, numbers in self._sinks.items():
                gauge.add_metric([sink], getattr(numbers, field)())
            yield gauge
        ages = HistogramMetricFamily(
            "headrace_sink_end_to_end_seconds", "From the commit to the destination's answer.", labels=["sink"]
        )
        for sink, numbers in self._sinks.items():
            count = 0
            buckets: list[tuple[str, float]] = []
            for bound, more in zip((*map(str, AGE_BUCKETS_S), "+Inf"), numbers.ages, strict=True):
                count += more
                buckets.append((bound, count))
            ages.add_metric([sink], buckets, numbers.ages_sum_s)
        yield ages


__all__ = ["SinkCollector", "SinkNumbers"]
