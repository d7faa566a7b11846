"""What is left of events that are erased: their places, so that no offset moves, and nothing of their customer."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headrace.cdc.event import CustomerEvent

ERASED = "erased"


def is_of(event: CustomerEvent, ids: frozenset[str]) -> bool:
    """Whether it names one of these customers: as its key, its user or anonymous id, or the former id of an alias."""
    if event.key in ids or event.user_id in ids or event.anonymous_id in ids:
        return True
    return event.sdk is not None and event.sdk.previous_id in ids


def erased(events: Sequence[CustomerEvent], ids: frozenset[str]) -> tuple[list[CustomerEvent], int]:
    """The events with those of these customers as empty heartbeats, and how many these are.

    The mark of a transaction's end moves to the last of its rows that stays.
    """
    found: list[CustomerEvent] = []
    count = 0
    for event in events:
        if not is_of(event, ids):
            found.append(event)
            continue
        count += 1
        row = event.row
        last = found[-1] if found else None
        if row is not None and row.is_last and last is not None and last.row is not None and last.row.xid == row.xid:
            found[-1] = msgspec.structs.replace(last, row=msgspec.structs.replace(last.row, is_last=True))
        found.append(
            CustomerEvent(
                event.id, "heartbeat", ERASED, None, event.occurred_us, event.committed_us, event.received_us,
                event.source, event.position, b"{}",
            )
        )  # fmt: skip
    return found, count


def marks(ids: frozenset[str]) -> list[bytes]:
    """Bytes one of which stands wherever a customer's id does: in msgpack and in JSON, escaped or not."""
    found = {each.encode() for each in ids} | {msgspec.json.encode(each)[1:-1] for each in ids}
    return sorted(found)


__all__ = ["ERASED", "erased", "is_of", "marks"]
