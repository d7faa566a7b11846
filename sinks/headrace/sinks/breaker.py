"""The circuit breaker of one sink: after a row of outages it asks one probe at a time, with growing pauses.

::

    closed ──5 outages in a row──► open ──pause over──► probing ──answered──► closed
                                    ▲                      │
                                    └──outage, pause x2────┘   1, 2, 4 .. 30 s
    closed, probing ──denied──► open for a minute: only a person can mend it, but it heals by itself once mended

Pure: the time is passed in, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

import enum
from typing import Final

OUTAGES: Final = 5
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
DENIED_PAUSE_S: Final = 60.0


class BreakerState(enum.Enum):
    """value: of headrace_sink_breaker_state_code."""

    CLOSED = 0
    OPEN = 1
    PROBING = 2


class Breaker:
    """See the module. reason: why it isn't closed, for people."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.reason = ""
        self._row = 0
        self._pause_s = FIRST_PAUSE_S
        self._until_s = 0.0

    def admits(self, now_s: float) -> bool:
        """Whether a request may begin now; ``began`` tells that it does."""
        if self.state is BreakerState.OPEN and now_s >= self._until_s:
            return True
        return self.state is BreakerState.CLOSED

    def began(self) -> None:
        """An admitted request begins. While not closed it is the one probe."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.PROBING

    def answered(self) -> bool:
        """The destination answered, whatever it said of the events. True: it was not closed before, and is now."""
        self._row = 0
        was_closed = self.state is BreakerState.CLOSED
        self.state = BreakerState.CLOSED
        self.reason = ""
        self._pause_s = FIRST_PAUSE_S
        return not was_closed

    def failed(self, now_s: float, reason: str, after_s: float | None = None) -> None:
        """An outage. after_s: the pause that the destination itself asked for."""
        self._row += 1
        if self.state is BreakerState.OPEN:  # a request from before it opened
            return
        if self.state is BreakerState.CLOSED and self._row < OUTAGES:
            return
        self._open(now_s + max(self._pause_s, after_s or 0.0), reason)
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)

    def denied(self, now_s: float, reason: str) -> None:
        """The destination doesn't accept who we are."""
        self._open(now_s + DENIED_PAUSE_S, reason)

    def due_s(self) -> float | None:
        """When the next probe may begin; None when closed, or while one is under way."""
        return self._until_s if self.state is BreakerState.OPEN else None

    def _open(self, until_s: float, reason: str) -> None:
        self.state = BreakerState.OPEN
        self._until_s = until_s
        self.reason = reason


__all__ = ["Breaker", "BreakerState"]
