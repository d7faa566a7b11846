"""Which events somebody asked for: the conditions of ``headrace tail`` and of subscriptions, checked one event at a time."""

from __future__ import annotations

import msgspec

from headrace.cdc.event import CustomerEvent


class EventFilter(msgspec.Struct, frozen=True):
    """Values of one field are alternatives; different fields must all hold. Empty: no condition.

    tables: ``table`` in any schema or ``schema.table``. Heartbeats only pass when has_heartbeats.
    """

    names: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    has_heartbeats: bool = False

    @property
    def is_open(self) -> bool:
        """True when every event passes that isn't a heartbeat, and no heartbeat does."""
        return not (self.names or self.kinds or self.tables or self.keys or self.has_heartbeats)

    def passes(self, event: CustomerEvent) -> bool:
        if event.kind == "heartbeat" and not self.has_heartbeats:
            return False
        if self.kinds and event.kind not in self.kinds:
            return False
        if self.names and event.name not in self.names:
            return False
        if self.keys and event.key not in self.keys:
            return False
        if self.tables:
            row = event.row
            return row is not None and (row.table in self.tables or f"{row.schema}.{row.table}" in self.tables)
        return True
