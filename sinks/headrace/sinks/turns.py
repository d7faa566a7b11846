"""How a sink that works a backlog off shares the event loop with those that are at the log's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_BUSY_S: Final = 0.002
_LONGEST_REST_S: Final = 0.05


async def let_others(clock: Callable[[], float], *, is_far_behind: bool) -> None:
    """Give every task a turn. One that is far behind waits as long again as the others just took.

    So it has all of the loop's time where nobody else wants it, and else about half; what is fresh doesn't wait behind what is old.
    """
    before_s = clock()
    await asyncio.sleep(0)
    taken_s = clock() - before_s
    if is_far_behind and taken_s > _BUSY_S:
        await asyncio.sleep(min(taken_s, _LONGEST_REST_S))


__all__ = ["let_others"]
