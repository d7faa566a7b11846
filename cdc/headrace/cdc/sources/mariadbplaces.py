"""How far the place that MariaDB names for a snapshot is to be trusted. Pure.

MariaDB keeps one place for its snapshots and sets it, with the rows becoming visible, at the end of each commit. But it sets it, too, when it
begins a new binlog file and when it writes a checkpoint event into one, which may be while transactions that stand before that place wait to
become visible: for microseconds, or with semi-synchronous replication for as long as that waits. Measured on 10.11 with a file per commit:
1,065 of 5,560 such places were told for two states of a row (docs/decisions/0017-mysql-copies.md).

So a place is exact where a transaction ends. Of another one nothing is certain but this: what stood before a place that was told QUIET_S ago is
visible by now. From becoming known to becoming visible a transaction needs no disk, only its turn, and what may keep it waiting longer is
counted by the server (``waits``).
"""

from __future__ import annotations

from collections import deque

from headrace.cdc.decode.binlog import BinlogPlace, order_of

QUIET_S = 0.25

_ENDS = 50_000
"""A snapshot is made near the beginning of its window, or where the stream lags behind near its end."""

Order = tuple[int, int]
Waits = tuple[int, ...]
"""Of semi-synchronous replication: sessions that wait now, and how many transactions have waited or not."""

NOTHING: Order = (-1, -1)


class MariaDBPlaces:
    """Of one connection's life: a server that was restarted has nothing pending."""

    def __init__(self) -> None:
        self._first_ends: set[Order] = set()
        self._last_ends: deque[Order] = deque(maxlen=_ENDS)
        self._last: Order | None = None
        self._exact = NOTHING
        self._told: deque[tuple[float, Order, Waits]] = deque()

    def delivered(self, place: BinlogPlace) -> None:
        """A transaction ends here."""
        self._last = order_of(place)
        if len(self._first_ends) < _ENDS:
            self._first_ends.add(self._last)
        else:
            self._last_ends.append(self._last)

    def open(self) -> None:
        """A snapshot is about to be made: it has everything up to here, or is told so."""
        self._first_ends = set() if self._last is None else {self._last}
        self._last_ends.clear()

    def visible(self, place: BinlogPlace, told_s: float, waits: Waits) -> Order:
        """What stands before the result, perhaps NOTHING, is in a snapshot; the stream has passed its place.

        told_s: monotonic seconds when it was told; waits: just before.
        """
        order = order_of(place)
        certain = self.certain(told_s, waits)
        if order in self._first_ends or order in self._last_ends:
            certain = self._exact = max(self._exact, order)
        self.told(place, told_s, waits)
        return certain

    def told(self, place: BinlogPlace, told_s: float, waits: Waits) -> None:
        """A snapshot was told this place, and isn't used."""
        self._told.append((told_s, order_of(place), waits))
        while len(self._told) > 1 and self._told[1][0] <= told_s - QUIET_S:
            self._told.popleft()

    def certain(self, now_s: float, waits: Waits | None = None) -> Order:
        """What stands before it is visible to a snapshot that is made now. waits: None where it isn't known: what has waited may still."""
        if waits is None or (waits and waits[0]):
            return self._exact
        told = [order for at_s, order, then in self._told if at_s <= now_s - QUIET_S and then == waits]
        return max([self._exact, *told])


__all__ = ["NOTHING", "QUIET_S", "MariaDBPlaces", "Order", "Waits"]
