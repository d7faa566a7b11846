"""Every number has a name of the pattern, help, and labels without a user's data."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from headrace.cdc.metrics import CaptureMetrics, capture_numbers
from headrace.cdc.sources.base import SourceStatus
from serving import serving
from shop_log import ShopLog, order_event

UNITS = "batches|bytes|code|events|fds|info|readers|requests|restarts|rows|seconds|tables|commits|appends"  # what is counted is the unit
NAME = re.compile(rf"headrace_(capture|source|log|consumer|subscribe|process)(_[a-z0-9]+)*_({UNITS})(_total)?")


class CountingLog(ShopLog):
    def stats(self) -> dict[str, float | str]:
        return {
            "disk_bytes": 4096,
            "appends_total": 9,
            "events_total": 12,
            "groups_total": 5,
            "commit_s_total": 0.25,
            "path": "/",
        }


async def test_every_metric_follows_the_pattern_and_is_explained() -> None:
    log = CountingLog()
    await log.append([order_event(1)])
    snapshot = {"rows": 10, "estimated_rows": 40, "tables_done": 1, "tables": 2, "table": "public.orders"}
    async with serving(log) as served:
        metrics = CaptureMetrics(served.registry)
        metrics.watch_log(log)
        metrics.watch_sources(lambda: {"shop": SourceStatus("snapshot", "", "0/1", 7, 8, 0.5, snapshot, False)})
        metrics.appended("shop", 3, 1)
        metrics.restarted("shop")
        async with served.http.get(f"{served.url}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            text = await response.text()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) > 25
    for family in families.values():
        for name in {sample.name for sample in family.samples}:
            plain = re.sub(r"_(bucket|sum|count|created)$", "", name)
            assert NAME.fullmatch(plain), name
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            assert set(sample.labels) <= {"source", "table", "sink", "view", "le"}, family.name
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["headrace_capture_appended_rows_total"] == 3
    assert values["headrace_source_lag_bytes"] == 7
    assert values["headrace_source_retained_bytes"] == 8
    assert values["headrace_source_failover_safe_code"] == 0
    assert values["headrace_source_phase_code"] == 2
    assert values["headrace_source_snapshot_copied_rows"] == 10
    assert values["headrace_log_end_offset_events"] == 1
    assert values["headrace_log_disk_bytes"] == 4096
    assert values["headrace_log_commit_seconds_total"] == 0.25


async def test_a_scrape_survives_a_log_that_fails() -> None:
    from headrace.cdc.errors import LogUnavailable

    log = ShopLog()
    async with serving(log) as served:
        log.failure = LogUnavailable("gone")
        async with served.http.get(f"{served.url}/metrics") as response:
            assert response.status == 200


def test_latency_is_from_the_commit_to_now_and_never_negative() -> None:
    registry = CollectorRegistry()
    metrics = CaptureMetrics(registry, clock=lambda: 100.0)
    metrics.appended("shop", 1, 99_998_500)  # 1.5 ms before
    metrics.appended("shop", 1, 100_500_000)  # the source's clock is ahead
    metrics.appended("shop", 0, 1)  # a heartbeat says nothing of rows
    assert registry.get_sample_value("headrace_capture_commit_to_log_seconds_count", {"source": "shop"}) == 2
    assert registry.get_sample_value("headrace_capture_commit_to_log_seconds_sum", {"source": "shop"}) == pytest.approx(
        0.0015
    )
    assert registry.get_sample_value("headrace_capture_appended_batches_total", {"source": "shop"}) == 3


def test_quantiles_are_the_upper_bounds_of_their_buckets() -> None:
    registry = CollectorRegistry()
    metrics = CaptureMetrics(registry, clock=lambda: 100.0)
    for _ in range(98):
        metrics.appended("shop", 2, 99_999_300)  # 0.7 ms
    for _ in range(2):
        metrics.appended("shop", 2, 99_960_000)  # 40 ms
    assert capture_numbers(registry) == {
        "shop": {"appended_rows": 200, "commit_to_log_p50_ms": 1.0, "commit_to_log_p99_ms": 50.0}
    }
    assert capture_numbers(CollectorRegistry()) == {}
