"""What every engine checks in the same words before it does anything: arguments, limits, cursors that never go back."""

from __future__ import annotations

from typing import Final

from headrace.cdc.errors import Fenced, Trimmed
from headrace.cdc.log.base import Bounds, Cursor

STATE_BYTES: Final = 1 << 20
CURSOR_STATE_BYTES: Final = 64 << 10


def check_partition(partition: int, partitions: int) -> None:
    """Raises ValueError when there is no such partition."""
    if not 0 <= partition < partitions:
        raise ValueError(f"partition {partition} doesn't exist: the log has {partitions}, counted from 0")


def check_state(source: str, state: bytes) -> None:
    """Raises ValueError when a source's state is above the limit."""
    if len(state) > STATE_BYTES:
        raise ValueError(f"the state of source {source} has {len(state)} bytes, more than {STATE_BYTES}")


def check_epoch(log: str, asked: int | None, held: int) -> None:
    """Raises Fenced when the caller names another epoch than the one the log is written under."""
    if asked is not None and asked != held:
        raise Fenced(f"log {log} is written under epoch {held}, and the append is of epoch {asked}")


def check_read(partition: int, offset: int, bounds: Bounds) -> None:
    """Raises Trimmed or ValueError when nothing can ever be read at offset."""
    if offset < 0 or offset > bounds.end:
        raise ValueError(f"offset {offset} of partition {partition} is outside 0 to {bounds.end}, the end of the log")
    if offset < bounds.first:
        raise Trimmed(
            f"offset {offset} of partition {partition} is no longer kept: the oldest is {bounds.first}",
            first_offset=bounds.first,
        )


def check_commit(group: str, partition: int, cursor: Cursor, former: Cursor | None, end: int) -> None:
    """Raises ValueError when the cursor goes back, points beyond the end, or its state is above the limit."""
    if former is not None and cursor.offset < former.offset:
        raise ValueError(
            f"cursor of group {group}, partition {partition} can't go back from {former.offset} to {cursor.offset}"
        )
    if not 0 <= cursor.offset <= end:
        raise ValueError(f"cursor of group {group}, partition {partition} at {cursor.offset} is outside 0 to {end}")
    if len(cursor.state) > CURSOR_STATE_BYTES:
        raise ValueError(f"the state of group {group} has {len(cursor.state)} bytes, more than {CURSOR_STATE_BYTES}")
