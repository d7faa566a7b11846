"""Sliding windows: their texts, their hops, and which tiles they hold.

A window of length W moves in hops. Log time is cut into tiles of one hop; tile k holds the event times in
``[k * hop, (k + 1) * hop)``. At log time t the window holds the tiles k with ``floor((t - W) / hop) < k <= floor(t / hop)``: W / hop tiles,
the newest one still filling. So a row enters a window when its tile begins and leaves it at ``k * hop + W``, for every reader at the
same log time. Knows nothing of rows, aggregates or clocks.
"""

from __future__ import annotations

import msgspec

from headrace.cdc.config import Duration

_SECOND_US = 1_000_000
_MINUTE_US = 60 * _SECOND_US
_HOUR_US = 60 * _MINUTE_US
_DAY_US = 24 * _HOUR_US

_WISHED_TILES = 60
MOST_TILES = 1_440
"""A window of more tiles is refused: each live tile of each entity costs memory and bytes in the store."""

_NICE_HOPS_US = (
    *(seconds * _SECOND_US for seconds in (1, 2, 5, 10, 15, 30)),
    *(minutes * _MINUTE_US for minutes in (1, 2, 5, 10, 15, 30)),
    *(hours * _HOUR_US for hours in (1, 2, 3, 4, 6, 12)),
    *(days * _DAY_US for days in (1, 2, 5, 7, 10, 14, 30)),
)


class Window(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Length and hop in microseconds; the hop divides the length."""

    length_us: int
    hop_us: int


def span_us(text: str, what: str) -> int:
    """Microseconds of ``"1h"``, ``"90d"`` and the like. Raises ValueError with a sentence that names ``what``."""
    try:
        span = Duration.parse(text).us
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f'{what} {text!r} is no time span; write a number with us, ms, s, m, h or d, such as "1h" or "7d"'
        ) from None
    if span <= 0:
        raise ValueError(f"{what} {text!r} must be longer than nothing")
    return span


def make_window(over: str, hop: str | None) -> Window:
    """The window of these texts; without a hop, one sixtieth of the length rounded down to a round step, at least 1 s.

    Raises ValueError with a sentence: unreadable text, a hop that doesn't divide the window, too many tiles.
    """
    length_us = span_us(over, "window")
    if hop is not None:
        hop_us = span_us(hop, "hop")
        if length_us % hop_us:
            raise ValueError(f"hop {hop} does not divide window {over}: a window must be a whole number of hops")
    else:
        wished_us = max(length_us // _WISHED_TILES, _SECOND_US)
        fitting = [step for step in _NICE_HOPS_US if step <= wished_us and length_us % step == 0]
        if not fitting:
            raise ValueError(f"window {over} is no whole number of seconds: give a hop that divides it")
        hop_us = fitting[-1]
    if length_us // hop_us > MOST_TILES:
        raise ValueError(
            f"window {over} would have {length_us // hop_us} hops, {MOST_TILES} at most: give a longer hop"
        )
    return Window(length_us, hop_us)
