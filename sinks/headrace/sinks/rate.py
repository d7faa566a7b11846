"""How many requests a second one call of a sink may make: a token bucket whose rate halves when it is told so and climbs back.

Additive increase, multiplicative decrease: each 429 halves the rate, at most once a second (requests under way are one message, not
many), and it climbs by 5 % of the limit a second. Without a limit of its own, the bucket is open until the first 429 and then begins at
half of what the last second took; five minutes without another open it again. Pure: time is passed in, in seconds of a clock that only goes forward.
"""

from __future__ import annotations

from typing import Final

_CLIMB: Final = 0.05
_CALM_S: Final = 300.0
_LOWEST: Final = 0.1


class Rate:
    """limit: requests a second, None = as fast as it goes. burst: tokens that may be saved up."""

    def __init__(self, limit: float | None, burst: float | None = None) -> None:
        self._limit = limit
        self._ceiling = limit
        self._burst = burst if burst is not None else max(1.0, (limit or 0.0) / 10)
        self.rate: float | None = limit
        """Requests a second now; None = open."""
        self._tokens = self._burst
        self._at_s: float | None = None
        self._pause_until_s = 0.0
        self._halved_s = float("-inf")
        self._second = 0.0
        self._taken = 0
        self._taken_before = 0

    def ready_s(self, now_s: float) -> float:
        """When the next request may begin: now_s or earlier means at once."""
        self._refill(now_s)
        if now_s < self._pause_until_s:
            return self._pause_until_s
        if self.rate is None or self._tokens >= 1.0:
            return now_s
        # A little late rather than a little early: rounding must not leave the bucket a hair below one token for ever.
        return now_s + (1.0 - self._tokens) / self.rate + 1e-6

    def take(self, now_s: float) -> None:
        """A request begins."""
        self._refill(now_s)
        if now_s - self._second >= 1.0:
            self._taken_before = self._taken if now_s - self._second < 2.0 else 0
            self._second, self._taken = now_s, 0
        self._taken += 1
        if self.rate is not None:
            self._tokens -= 1.0

    def throttled(self, now_s: float, after_s: float | None) -> None:
        """429. after_s: the pause it asked for."""
        self._refill(now_s)
        if after_s is not None:
            self._pause_until_s = max(self._pause_until_s, now_s + after_s)
        if now_s - self._halved_s < 1.0:
            return
        self._halved_s = now_s
        now_rate = self.rate if self.rate is not None else float(max(self._taken, self._taken_before, 2))
        if self._ceiling is None:
            self._ceiling = now_rate
        self.rate = max(_LOWEST, now_rate / 2)
        self._tokens = min(self._tokens, 1.0)

    def _refill(self, now_s: float) -> None:
        if self._at_s is None:
            self._at_s = now_s
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = now_s
        if self.rate is None:
            return
        assert self._ceiling is not None
        if self._limit is None and now_s - self._halved_s > _CALM_S:
            self.rate = self._ceiling = None
            return
        self._tokens = min(self._burst, self._tokens + passed_s * self.rate)
        ceiling = self._ceiling if self._limit is not None else self._ceiling * 4
        self.rate = min(ceiling, self.rate + passed_s * _CLIMB * self._ceiling)


__all__ = ["Rate"]
