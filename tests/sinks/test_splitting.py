"""Halving what is too large or vaguely refused: order per key, and what is known afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from headrace.sinks.base import Item
from headrace.sinks.splitting import carry
from headrace.sinks.verdict import AGAIN, DELIVERED, Answer, Fault, FaultKind, Outcome, outage, retry
from shop_log import order_event


def _items(keys: str) -> list[Item]:
    return [Item(number, key, order_event(number), "a", "", None, 10) for number, key in enumerate(keys)]


@pytest.mark.parametrize("seed", range(50))
async def test_the_one_that_is_poison_is_found_and_the_others_are_delivered_in_order(seed: int) -> None:
    chance = random.Random(seed)
    items = _items("".join(chance.choice("abc") for _ in range(chance.randrange(1, 30))))
    poison = {item.offset for item in items if chance.random() < 0.1}
    applied: list[int] = []

    async def send(part: Sequence[Item]) -> Answer:
        if any(item.offset in poison for item in part):
            return Fault(FaultKind.BAD_BATCH, "422")
        applied.extend(item.offset for item in part)
        return [DELIVERED] * len(part)

    carried = await carry(send, items)
    assert carried.fault is None
    assert {n for n, v in enumerate(carried.verdicts) if v.outcome is Outcome.REFUSED} == poison
    assert applied == [item.offset for item in items if item.offset not in poison]


async def test_a_key_that_must_wait_takes_its_followers_with_it() -> None:
    sent: list[list[int]] = []

    async def send(part: Sequence[Item]) -> Answer:
        sent.append([item.offset for item in part])
        if len(part) > 2:
            return Fault(FaultKind.TOO_LARGE, "413")
        return [retry("busy") if item.offset == 0 else DELIVERED for item in part]

    carried = await carry(send, _items("abab"))
    assert sent == [[0, 1, 2, 3], [0, 1], [3]]
    assert [v.outcome for v in carried.verdicts] == [Outcome.RETRY, Outcome.DELIVERED, Outcome.AGAIN, Outcome.DELIVERED]
    assert carried.was_too_large


async def test_an_outage_in_the_middle_keeps_what_is_known() -> None:
    async def send(part: Sequence[Item]) -> Answer:
        if len(part) > 2:
            return Fault(FaultKind.TOO_LARGE, "413")
        return outage("503") if part[0].offset else [DELIVERED] * len(part)

    carried = await carry(send, _items("abcd"))
    assert carried.fault is not None and carried.fault.kind is FaultKind.OUTAGE
    assert carried.verdicts == [DELIVERED, DELIVERED, AGAIN, AGAIN]
