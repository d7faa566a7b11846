"""What destinations answer, back in the log: an event of kind ``record`` of the customer whose event was answered.

Durable before the answered event counts as delivered, so no answer is lost; after a crash in between the destination is asked again, and the record comes again
under the same id. Its time is the answer's, its place in log time that of the event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import ConsumerLog
from headrace.sinks.base import RETURNED_SOURCE, Item
from headrace.sinks.verdict import Returned


class ReturnedRecords:
    """Appends for one sink. clock: seconds since 1970."""

    def __init__(self, log: ConsumerLog, sink: str, *, clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._source = RETURNED_SOURCE + sink
        self._clock = clock

    async def append(self, answers: Sequence[tuple[Item, Returned]]) -> None:
        """Durable on return. Raises LogError."""
        now_us = int(self._clock() * 1_000_000)
        events = [
            CustomerEvent(
                f"{self._source}-{item.event.id}", "record", returned.name, item.event.key, now_us, item.event.committed_us,
                now_us, self._source, "", returned.properties, None, item.event.user_id, item.event.anonymous_id,
            )
            for item, returned in answers
        ]  # fmt: skip
        await self._log.append(events, source=self._source, state=b"")


__all__ = ["ReturnedRecords"]
