"""The composition root: how a process ends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from headrace.cdc import app


async def test_a_task_that_swallows_its_cancellation_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_ASK_AGAIN_S", 0.01)
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while heard < 3:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            heard += 1

    async with asyncio.timeout(20):
        task = asyncio.create_task(deaf())
        await asyncio.sleep(0)
        await app._end([task])
    assert task.done()
    assert heard == 3
