"""Ending a source's background task so that it has ended."""

from __future__ import annotations

import asyncio
from typing import Any

_ASK_AGAIN_S = 1.0


async def end(task: asyncio.Task[Any] | None) -> None:
    """Cancel a task and wait until it is over, whatever it ended with; None and a task that is over are fine.

    One request isn't always heard: wait_for of Python 3.11, which psycopg uses, can swallow a cancellation.
    """
    if task is None:
        return
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_ASK_AGAIN_S)
    if not task.cancelled():
        task.exception()  # looked at: what it failed of was told when it mattered
