"""One request that may turn out to be several: what a destination calls too large, or refuses without a word on which event, is halved.

Halves go one after the other, in order. A key whose event must come again takes its followers with it, so that halving breaks no order.
Knows no order beyond that, no retry and no pause.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from headrace.sinks.base import Item
from headrace.sinks.verdict import AGAIN, Answer, Fault, FaultKind, Outcome, Verdict, refused


class Carried(msgspec.Struct):
    """verdicts: one an item. fault: the first that a request met, None = every request was answered. was_too_large: so."""

    verdicts: list[Verdict]
    fault: Fault | None = None
    was_too_large: bool = False


async def carry(send: Callable[[Sequence[Item]], Awaitable[Answer]], items: Sequence[Item]) -> Carried:
    """Send items, in as many requests as it takes. A lone item that is refused as a whole is refused itself."""
    answer = await send(items)
    if not isinstance(answer, Fault):
        if len(answer) != len(items):
            raise ValueError(f"a sink gave {len(answer)} verdicts on {len(items)} events: a defect of its type")
        return Carried(list(answer))
    if answer.kind not in (FaultKind.TOO_LARGE, FaultKind.BAD_BATCH):
        after = AGAIN if answer.after_s is None else Verdict(Outcome.AGAIN, answer.reason, answer.after_s)
        return Carried([after] * len(items), answer)
    if len(items) == 1:
        return Carried([refused(answer.reason)])
    is_too_large = answer.kind is FaultKind.TOO_LARGE
    half = (len(items) + 1) // 2
    first = await carry(send, items[:half])
    if first.fault is not None:
        return Carried(first.verdicts + [AGAIN] * (len(items) - half), first.fault, is_too_large)
    waiting = {
        item.key
        for item, verdict in zip(items[:half], first.verdicts, strict=True)
        if verdict.outcome in (Outcome.RETRY, Outcome.AGAIN)
    }
    rest = [item for item in items[half:] if item.key not in waiting]
    second = await carry(send, rest) if rest else Carried([])
    found = iter(second.verdicts)
    verdicts = [AGAIN if item.key in waiting else next(found) for item in items[half:]]
    return Carried(first.verdicts + verdicts, second.fault, is_too_large)


__all__ = ["Carried", "carry"]
