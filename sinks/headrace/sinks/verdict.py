"""What a destination said to one request, in words the dispatcher acts on.

::

    verdict on an event   DELIVERED  it has its effect, the lane goes on
                          RETRY      not now: the key backs off, and the verdict counts as an attempt
                          AGAIN      not asked, or its answer is unknown: as RETRY, but nothing counts
                          REFUSED    never: dead letter, the lane goes on (poison: park) or is held (poison: hold)

    fault of the whole    OUTAGE     no answer, a cut, 5xx: says nothing of the events; nothing counts; the breaker does
    request               THROTTLED  429: slower, for as long as it asks
                          DENIED     401, 403: a person must act; asked again once a minute
                          TOO_LARGE  413: the same events in smaller requests
                          BAD_BATCH  4xx without a word on which event: halved until the one is found

A fault never loses events and never costs them an attempt, so an outage of any length can't exhaust them. After an outage it isn't
known whether the request was applied: the same events come again, before any of their followers.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec


class Outcome(enum.Enum):
    """What became of one event."""

    DELIVERED = "delivered"
    RETRY = "retry"
    AGAIN = "again"
    REFUSED = "refused"


class Returned(msgspec.Struct, frozen=True, gc=False):
    """What a destination answered to an event, to come back as one of kind ``record``. properties: a JSON object."""

    name: str
    properties: bytes


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """reason: the destination's words without row data, for people. after_s: how long it asked to wait; None = it didn't say.

    returned: with DELIVERED only.
    """

    outcome: Outcome
    reason: str = ""
    after_s: float | None = None
    returned: Returned | None = None


DELIVERED: Final = Verdict(Outcome.DELIVERED)
AGAIN: Final = Verdict(Outcome.AGAIN)


class FaultKind(enum.Enum):
    """What is wrong with a whole request."""

    OUTAGE = "outage"
    THROTTLED = "throttled"
    DENIED = "denied"
    TOO_LARGE = "too large"
    BAD_BATCH = "bad batch"


class Fault(msgspec.Struct, frozen=True, gc=False):
    """reason: for people, without row data or secrets. after_s: the Retry-After of the answer; None = none."""

    kind: FaultKind
    reason: str
    after_s: float | None = None


Answer = Sequence[Verdict] | Fault
"""One verdict for each event of the request, in its order; or a fault of the whole."""


def retry(reason: str, after_s: float | None = None) -> Verdict:
    """Not now."""
    return Verdict(Outcome.RETRY, reason, after_s)


def refused(reason: str) -> Verdict:
    """Never."""
    return Verdict(Outcome.REFUSED, reason)


def outage(reason: str, after_s: float | None = None) -> Fault:
    """The destination's own trouble."""
    return Fault(FaultKind.OUTAGE, reason, after_s)


__all__ = [
    "AGAIN",
    "DELIVERED",
    "Answer",
    "Fault",
    "FaultKind",
    "Outcome",
    "Returned",
    "Verdict",
    "outage",
    "refused",
    "retry",
]
