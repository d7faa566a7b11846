"""What becomes of a subscriber that falls behind the log's end.

``block``: it stands still in the log, for as long as the log keeps its place, and misses nothing. ``skip``: it is told of a gap and goes on at the end, for those who
want what is new. ``disconnect``: it is cut off, and can resume at its cursor, for those who would rather be alarmed. Catching up from where it began is no
slowness: the policy holds from when it was near the end for the first time.
"""

from __future__ import annotations

from typing import Any

from headrace.cdc.errors import HeadraceError
from headrace.sinks.query import Place, Slow


class TooSlow(HeadraceError):
    """A subscriber with slow=disconnect has fallen behind."""

    exit_code = 6
    advice = "resume at the cursor, read faster, or ask for slow=block or slow=skip"


class Slowness:
    """Of one subscriber. behind: events that it may be away from the end."""

    __slots__ = ("_behind", "_is_near", "_slow")

    def __init__(self, slow: Slow = "block", behind: int = 0) -> None:
        self._slow = slow
        self._behind = behind
        self._is_near = False

    def is_over(self, lag: int) -> bool:
        """It has fallen behind too far, and something is to be done about it."""
        if self._slow == "block":
            return False
        if lag <= self._behind:
            self._is_near = True
        return self._is_near and lag > self._behind

    def is_to_be_cut(self, lag: int) -> bool:
        return self._slow == "disconnect" and self.is_over(lag)

    def leap(self, place: Place, ends: dict[int, int]) -> dict[str, Any]:
        """Move the place to the end; what the subscriber is told of it. Raises TooSlow when it is to be cut off."""
        lag = sum(ends[partition] - offset for partition, offset in place.offsets.items())
        before = place.cursor()
        if self._slow == "disconnect":
            raise TooSlow(f"this subscriber is {lag} events behind, more than the {self._behind} it asked for")
        place.offsets.update(ends)
        return {"from": before, "to": place.cursor(), "events": lag}


__all__ = ["Slowness", "TooSlow"]
