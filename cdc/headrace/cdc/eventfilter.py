"""Which events somebody asked for: the conditions of ``headrace tail`` and of subscriptions, checked one event at a time."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import partition_of


class EventFilter(msgspec.Struct, frozen=True):
    """Values of one field are alternatives; different fields must all hold. Empty: no condition.

    tables: ``table`` in any schema or ``schema.table``. Heartbeats only pass when has_heartbeats. share: (i, n): of n parts of the customers,
    by a hash of their key that is the same on every machine, the i-th; events without one are in part 0. where: any further condition.
    """

    names: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    has_heartbeats: bool = False
    share: tuple[int, int] | None = None
    where: Callable[[CustomerEvent], bool] | None = None

    @property
    def is_open(self) -> bool:
        """True when every event passes that isn't a heartbeat, and no heartbeat does."""
        return not (
            self.names or self.kinds or self.tables or self.keys or self.has_heartbeats or self.share or self.where
        )

    def passes(self, event: CustomerEvent) -> bool:
        if event.kind == "heartbeat" and not self.has_heartbeats:
            return False
        if self.share is not None and partition_of(event.key, self.share[1]) != self.share[0]:
            return False
        if self.kinds and event.kind not in self.kinds:
            return False
        if self.names and event.name not in self.names:
            return False
        if self.keys and event.key not in self.keys:
            return False
        if self.tables:
            row = event.row
            if row is None or (row.table not in self.tables and f"{row.schema}.{row.table}" not in self.tables):
                return False
        return self.where is None or self.where(event)
