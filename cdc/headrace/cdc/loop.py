"""How every process of headrace runs its loop: uvloop where it is installed, and how long a thread may keep the interpreter."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")

_ASK_AGAIN_S = 2.0
_SWITCH_S = 0.0005
"""How long a thread keeps the interpreter's lock from another that wants it. With Python's own 5 ms each of the log's short steps in its own thread waits so long
while the loop is busy, and a fresh event with it: p99 190 to 280 ms, against 28 to 33 ms, while a sink works a backlog off (benchmarks/sink_latency.py)."""


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run it to its end."""
    sys.setswitchinterval(_SWITCH_S)
    try:
        import uvloop  # optional at run time: a platform without it runs on asyncio's own loop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel until they have ended.

    One request isn't always heard: Python 3.11's wait_for, which redis and psycopg use, swallows a cancellation that comes at the same
    moment as the answer it waits for.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_ASK_AGAIN_S)


__all__ = ["end", "run"]
