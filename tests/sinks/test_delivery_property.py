"""Ordered delivery as a property, over seeds: nothing lost, nothing reordered per key, nothing doubled in effect, bounded memory.

A seed draws the destination's faults (outage, cut after it was applied, time-outs, 429, 401, partial answers, poison told by event or
by request), the traffic (hot keys), the settings, and crashes of our process at any await. Time is virtual (virtual_time.py).
HEADRACE_SEED=n runs that one alone.
"""

from __future__ import annotations

import os

import pytest

from delivery_world import World
from virtual_time import run_virtually

SLICE = range(120)
CAMPAIGN = range(120, 5_000)


def _run(seed: int) -> None:
    world = World(seed)

    async def story() -> list[str]:
        await world.live()
        return await world.judge()

    wrong = run_virtually(story())
    assert not wrong, f"seed {seed}: {wrong[:5]}\n{world.describe()}"


@pytest.mark.parametrize("seeds", [range(start, start + 20) for start in range(0, len(SLICE), 20)], ids=str)
def test_nothing_is_lost_reordered_or_doubled(seeds: range) -> None:
    only = os.environ.get("HEADRACE_SEED")
    for seed in seeds if only is None else [int(only)]:
        print("seed", seed)
        _run(seed)


@pytest.mark.campaign
def test_nothing_is_lost_reordered_or_doubled_over_thousands_of_seeds() -> None:
    for seed in CAMPAIGN:
        if seed % 100 == 0:
            print("seed", seed)
        _run(seed)
