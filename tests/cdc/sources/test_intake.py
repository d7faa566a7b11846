"""Between requests and the log: whatever a call says, the log takes it, and what it doesn't take is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from collecting import NOW_US
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.sources.collector import Asked, Collector, UnreadableRefused
from headrace.cdc.sources.collector_config import CollectorConfig
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.intake import ClosingError

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(
        [
            10**18,
            -(10**30),
            1 << 63,
            1e300,
            "2026-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999+00:00",
            "0001-01-01",
            "",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "messageId", "anonymousId", "userId", "previousId", "groupId", "event", "name", "category", "channel", "properties",
    "traits", "context", "integrations", "timestamp", "originalTimestamp", "sentAt", "writeKey",
)  # fmt: skip
calls = st.builds(
    lambda kind, user, rest: {"type": kind, "userId": user, "event": "A", "groupId": "g", "previousId": "p"} | rest,
    st.sampled_from(["identify", "track", "page", "screen", "group", "alias"]),
    st.text(min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(FIELDS), anything, max_size=5),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(calls, max_size=4), min_size=1, max_size=6), sent_at=anything)
async def test_no_call_makes_the_log_fail_and_each_is_an_event_a_repetition_or_a_dead_letter(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Any]], sent_at: Any
) -> None:
    log = await SQLiteLog.open(tmp_path_factory.mktemp("log") / "log.db")
    collector = Collector("web", CollectorConfig(write_keys={"k": "w"}))
    collector.attach(log, CollectorRegistry(), lambda source, events, first_us: None)
    started = asyncio.Event()
    running = asyncio.create_task(collector.run(started.set))
    await started.wait()
    expected = 0
    for batch in batches:
        body = json.dumps({"batch": batch, "sentAt": sent_at}).encode()
        try:
            await collector.take(Asked("", "k", body, NOW_US))
        except UnreadableRefused:
            expected += 1
        else:
            expected += len(batch)
    counts = collector.intake.counts
    assert counts.events + counts.duplicates + counts.letters == expected
    found = (await log.read(0, 0)).events
    assert len(found) == counts.events
    for event in found:
        assert isinstance(json.loads(event.properties), dict)
    await end(running)
    await log.close()


class BrokenLog(MemoryLog):
    """Fails once by a defect, not by a LogError."""

    is_broken = True

    async def append(self, events: Sequence[CustomerEvent], **rest: Any) -> tuple[int, ...]:
        if self.is_broken:
            self.is_broken = False
            raise OverflowError("a defect")
        return await super().append(events, **rest)


async def test_a_defect_ends_the_collector_loudly_and_nobody_is_answered(tmp_path: Path) -> None:
    collector = Collector("web", CollectorConfig(write_keys={"k": "w"}))
    collector.attach(BrokenLog(), CollectorRegistry(), lambda source, events, first_us: None)
    started = asyncio.Event()
    running = asyncio.create_task(collector.run(started.set))
    await started.wait()
    with pytest.raises(ClosingError):
        await collector.take(Asked("", "k", b'{"batch":[{"type":"page","userId":"u"}]}', NOW_US))
    with pytest.raises(OverflowError, match="a defect"):
        await asyncio.wait_for(running, 10)
