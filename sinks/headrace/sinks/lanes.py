"""Order and progress of one partition's events on their way to a sink: lanes over one bounded window.

A lane is the queue of one key, and exists while it holds something::

               hold                take                settle: done, more behind
    (nothing) ──────► READY ─────────────► IN FLIGHT ──────────────────────────► READY
        ▲               ▲                  │   │
        │               └───due── BACKING ◄┘   │ settle: done, nothing behind
        │                         OFF   retry  │
        └──────────────────────────────────────┘

Why it holds: *order*: only a lane's head, or a run from the head, is ever in a request, and a lane in at most one; the head leaves only
delivered or buried (a durable dead letter). An event whose fate isn't known stays the head, so its resend precedes every follower.
*No loss*: the cursor passes done offsets only (ledger.py). *Liveness*: a lane is READY, IN FLIGHT (the dispatcher's time limit ends that)
or BACKING OFF (the longest pause does). *Memory*: at most the window, however many keys, however long the outage.

A key that fills its share of the window is *left*: its further events stay in the log, and are read again once its lane has drained. So a
hot key delays itself only. A left key's events before ``left[key]`` are held or done, those from there up to the scan neither.

Pure: no loop; time and random numbers are passed in.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from headrace.sinks.base import CallSpec, Item
from headrace.sinks.ledger import Ledger
from headrace.sinks.verdict import Outcome, Verdict

DEAD: Final = CallSpec("", max_events=1_000, max_bytes=1 << 40, is_run=True)
"""The call of events that only wait for their burial."""

MAX_SPAN: Final = 400_000
"""Offsets between cursor and scan: one bit each must fit into the cursor's state blob of 64 KiB."""

_OBJECT_BYTES: Final = 800
_BUSY_LINGER_S: Final = 0.01
"""Long enough for a request that is under way to make room for a fuller one, and too short to be felt."""
_FIRST_BACKOFF_S: Final = 0.1
_LONGEST_BACKOFF_S: Final = 30.0


class _Lane:
    __slots__ = ("items", "key", "outages", "since_s", "taken")

    def __init__(self, key: str) -> None:
        self.key = key
        self.items: deque[Item] = deque()
        self.taken = 0
        """Of these, how many from the head are in flight."""
        self.outages = 0
        """Requests of the present head that ended without a verdict."""


class _Ready:
    """Lanes whose heads may be sent by one call. Those that hold a whole request's events begin every second request.

    A long lane's requests go one after the other, so each one's wait, and each event that it could have had besides, delays all that is
    behind it. Every second: so that no number of long lanes keeps the short ones waiting.
    """

    __slots__ = ("_began_long", "_call", "_from", "_long", "_short", "since_s")

    def __init__(self, call: CallSpec) -> None:
        self._call = call
        self._short: deque[_Lane] = deque()
        self._long: deque[_Lane] = deque()
        self._from = self._short
        """Where the next lane of the request comes from."""
        self._began_long = False
        self.since_s = 0.0
        """Since when there are lanes."""

    def __bool__(self) -> bool:
        return bool(self._short or self._long)

    def push(self, lane: _Lane, now_s: float) -> None:
        if not self:
            self.since_s = now_s
        (self._long if len(lane.items) >= self._call.max_events > 1 else self._short).append(lane)

    def begin(self) -> None:
        """A request begins."""
        self._began_long = bool(self._long) and not (self._began_long and self._short)
        self._from = self._long if self._began_long else self._short

    def first(self) -> _Lane | None:
        """The next lane of the request. After its first one come short ones; of a run only these, for a part of a long lane's would be lost to it."""
        if not self._from and not self._call.is_run:
            self._from = self._long
        return self._from[0] if self._from else None

    def pop(self) -> None:
        """Take the first out."""
        self._from.popleft()
        if self._short:
            self._from = self._short

    def would_fill(self) -> bool:
        """Whether a request has all the events that it can have, if nothing else ends it before."""
        call = self._call
        if self._long and call.is_run:
            return True
        room = call.max_events - len(self._long) - len(self._short)
        if room > 0 and call.is_run:
            for lane in self._short:
                room -= len(lane.items) - 1
                if room <= 0:
                    break
        return room <= 0


class Flight(msgspec.Struct, gc=False):
    """Items of one request, lane by lane, each lane's from its head on."""

    call: CallSpec
    items: list[Item]
    lanes: list[_Lane]


class Ruling(msgspec.Struct):
    """What verdicts mean. delivered, buried: in the flight's order; buried with the reason.

    again: for each lane that must come again, with the longest asked pause (None = ours) and whether an event's verdict asked for it.
    """

    delivered: list[Item]
    buried: list[tuple[Item, str]]
    again: list[tuple[_Lane, float | None, bool]]
    news: dict[int, int]
    """Events to take from the head, by the lane's place in the flight."""


class Lanes:
    """See the module. mode: ``none`` makes each event a lane of its own. share: events a key may hold before it is left."""

    def __init__(
        self,
        ledger: Ledger,
        calls: Sequence[CallSpec],
        *,
        window: int,
        window_bytes: int,
        share: int | None = None,
        attempts: int = 10,
        is_ordered: bool = True,
        is_holding: bool = False,
        held_keys: Sequence[str] = (),
        max_span: int = MAX_SPAN,
    ) -> None:
        self.ledger = ledger
        self.held = 0
        self.held_bytes = 0
        self.is_filling = False
        """More events are about to be held, without waiting for anything."""
        self._window = window
        self._window_bytes = window_bytes
        self._share = share if share is not None else max(min(256, window), window // 16)
        self._attempts = attempts
        self._is_ordered = is_ordered
        self._is_holding = is_holding
        self._max_span = max_span
        self._lanes: dict[str, _Lane] = {}
        self._ready: dict[str, _Ready] = {call.name: _Ready(call) for call in (*calls, DEAD)}
        self._timers: list[tuple[float, int, _Lane, bool]] = []
        self._timer_number = 0
        self._left: dict[str, int] = {}
        self._stopped: dict[str, int] = dict.fromkeys(held_keys, -1)
        """Keys whose events are all buried (poison: hold), with the offset that began it, -1 = in an earlier run."""

    # in

    @property
    def is_full(self) -> bool:
        """Nothing more may be held now."""
        return self.held >= self._window or self.held_bytes >= self._window_bytes

    @property
    def may_scan(self) -> bool:
        """The log may be read on: there is room, and no left key waits to be read again (it comes first, or it would starve)."""
        return not self.is_full and self.ledger.span < self._max_span and self.reread_from() is None

    def lane_key(self, key: str | None, offset: int) -> str:
        """Events without a key share one lane: their order is the log's."""
        if not self._is_ordered:
            return str(offset)
        return "" if key is None else key

    def leaves(self, key: str, offset: int) -> bool:
        """Leave this event of the scan in the log, because its key has its share; it will be read again."""
        if key in self._left:
            return True
        lane = self._lanes.get(key)
        if lane is None or len(lane.items) < self._share:
            return False
        self._left[key] = offset
        return True

    def hold(self, item: Item, now_s: float) -> None:
        """Take an event in; its offset has been looked at. The order of calls is the order of the lane."""
        stopped = self._stopped.get(item.key)
        if stopped is not None and item.call:
            stop(item, stopped)
        self.held += 1
        self.held_bytes += _weight(item)
        lane = self._lanes.get(item.key)
        if lane is not None:
            lane.items.append(item)
            return
        lane = self._lanes[item.key] = _Lane(item.key)
        lane.items.append(item)
        self._make_ready(lane, now_s)

    def reread_from(self) -> int | None:
        """The offset from which left events should be read again now; None when there are none, or no room."""
        if not self._left or self.is_full:
            return None
        return min((offset for key, offset in self._left.items() if self._has_drained(key)), default=None)

    def returning(self, first: int) -> set[str]:
        """Left keys that may be served from a batch read at ``first``."""
        return {key for key, offset in self._left.items() if offset >= first and self._has_drained(key)}

    def leave_from(self, key: str, offset: int) -> bool:
        """While reading again: True, and noted, when the key has its share again at this offset (or the window is full)."""
        lane = self._lanes.get(key)
        if not self.is_full and (lane is None or len(lane.items) < self._share):
            return False
        self._left[key] = offset
        return True

    def returned(self, keys: set[str], until: int) -> None:
        """These keys were served up to ``until``, exclusive, without meeting their share."""
        for key in keys:
            if until >= self.ledger.scan:
                del self._left[key]
            elif until > self._left[key]:
                self._left[key] = until

    def has_left(self, key: str, offset: int) -> bool:
        """The event at offset is one that was left."""
        start = self._left.get(key)
        return start is not None and offset >= start

    # out

    def tick(self, now_s: float) -> None:
        """Make those ready whose pause is over."""
        timers = self._timers
        while timers and timers[0][0] <= now_s:
            self._make_ready(heapq.heappop(timers)[2], now_s)

    def due_s(self) -> float | None:
        """When the next pause ends."""
        return self._timers[0][0] if self._timers else None

    def linger_s(self, call: CallSpec, *, is_busy: bool = False) -> float | None:
        """Until when a request of this call should wait for more events; None: nothing is ready.

        is_busy: enough requests are under way to keep the destination at work. One that isn't full waits a little then, or while more is
        coming: it would cost as much as a full one, and delay what comes behind it.
        """
        ready = self._ready[call.name]
        if not ready:
            return None
        if ready.would_fill():
            return 0.0
        wait_s = (
            max(call.linger_s, _BUSY_LINGER_S) if (is_busy or self.is_filling) and call.joins_keys else call.linger_s
        )
        return ready.since_s + wait_s

    def take(self, call: CallSpec, limit: int | None = None) -> Flight | None:
        """The next request of this call; None when nothing is ready for it. limit: events at most, below the call's own."""
        ready = self._ready[call.name]
        if not ready:
            return None
        room = call.max_events if limit is None else min(limit, call.max_events)
        bytes_left = call.max_bytes
        items: list[Item] = []
        lanes: list[_Lane] = []
        ready.begin()
        while room > 0 and (lane := ready.first()) is not None:
            group = lane.items[0].group
            most = room if call.is_run else 1
            taken = 0
            for item in lane.items:
                if taken == most or item.call != call.name or item.group != group:
                    break
                if item.size > bytes_left and items:
                    break
                items.append(item)
                bytes_left -= item.size
                taken += 1
            if taken == 0:
                break
            ready.pop()
            lane.taken = taken
            lanes.append(lane)
            room -= taken
            if not call.joins_keys:
                break
        return Flight(call, items, lanes)

    def rule(self, flight: Flight, verdicts: Sequence[Verdict]) -> Ruling:
        """What is to be done about each event. Counts attempts. Bury what it says, durably, before ``settle``.

        Behind an event that must come again nothing of its lane counts: those come again too.
        """
        ruling = Ruling([], [], [], {})
        at = 0
        for place, lane in enumerate(flight.lanes):
            gone = 0
            for index in range(at, at + lane.taken):
                verdict, item = verdicts[index], flight.items[index]
                if verdict.outcome is Outcome.DELIVERED:
                    ruling.delivered.append(item)
                elif verdict.outcome is Outcome.REFUSED:
                    ruling.buried.append((item, verdict.reason))
                elif verdict.outcome is Outcome.AGAIN:
                    ruling.again.append((lane, verdict.after_s, False))
                    break
                else:
                    item.attempts += 1
                    if item.attempts < self._attempts:
                        ruling.again.append((lane, verdict.after_s, True))
                        break
                    ruling.buried.append((item, f"given up after {item.attempts} attempts: {verdict.reason}"))
                gone += 1
            ruling.news[place] = gone
            at += lane.taken
        return ruling

    def settle(self, flight: Flight, ruling: Ruling, now_s: float, random: Callable[[], float]) -> None:
        """Carry a ruling out; what it buries is durable by now. random: of [0, 1), for the jitter."""
        again = {id(lane): (after_s, is_verdict) for lane, after_s, is_verdict in ruling.again}
        if self._is_holding:
            for item, _ in ruling.buried:
                self._stopped.setdefault(item.key, item.offset)
        for place, lane in enumerate(flight.lanes):
            for _ in range(ruling.news[place]):
                item = lane.items.popleft()
                self.held -= 1
                self.held_bytes -= _weight(item)
                self.ledger.done(item.offset)
                lane.outages = 0
            lane.taken = 0
            if self._is_holding and lane.items:
                self._stop_followers(lane)
            if not lane.items:
                del self._lanes[lane.key]
            elif id(lane) in again:
                after_s, is_verdict = again[id(lane)]
                self._back_off(lane, after_s, now_s, random, is_verdict=is_verdict)
            else:
                self._make_ready(lane, now_s)

    def wake(self, now_s: float) -> None:
        """The destination is back: what waits for the end of an outage needn't wait any longer."""
        stay = [timer for timer in self._timers if not timer[3]]
        go = [timer for timer in self._timers if timer[3]]
        if go:
            self._timers = stay
            heapq.heapify(stay)
            for timer in sorted(go):
                self._make_ready(timer[2], now_s)

    def stop_key(self, key: str) -> bool:
        """Whether a key's events are all buried (poison: hold)."""
        return key in self._stopped

    def release_but(self, keys: set[str]) -> None:
        """Only these keys have dead letters still; the others go on with what comes."""
        for key in self._stopped.keys() - keys:
            del self._stopped[key]

    # inside

    def _has_drained(self, key: str) -> bool:
        lane = self._lanes.get(key)
        return lane is None or len(lane.items) <= self._share // 2

    def _make_ready(self, lane: _Lane, now_s: float) -> None:
        self._ready[lane.items[0].call].push(lane, now_s)

    def _back_off(
        self, lane: _Lane, after_s: float | None, now_s: float, random: Callable[[], float], *, is_verdict: bool
    ) -> None:
        if is_verdict:
            tries = lane.items[0].attempts
        else:
            lane.outages += 1
            tries = lane.outages
        ceiling_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(tries, 20))
        # Full jitter; what the destination asks for is a floor, and all its keys must not come back in the same moment either.
        delay_s = random() * ceiling_s if after_s is None else after_s + random() * _FIRST_BACKOFF_S
        self._timer_number += 1
        heapq.heappush(self._timers, (now_s + delay_s, self._timer_number, lane, not is_verdict and after_s is None))

    def _stop_followers(self, lane: _Lane) -> None:
        stopped = self._stopped.get(lane.key)
        if stopped is not None:
            for item in lane.items:
                if item.call:
                    stop(item, stopped)


def _weight(item: Item) -> int:
    """About what the item takes in memory: what it adds to a request, the event it is made of, and their objects."""
    return item.size + len(item.event.properties) + _OBJECT_BYTES


def stop(item: Item, stopped: int = -1) -> Item:
    """The item waits for its burial, because event ``stopped`` of its key is a dead letter (-1: of an earlier run)."""
    item.call = DEAD.name
    item.fault = f"held back: {f'event {stopped}' if stopped >= 0 else 'an earlier event'} of its key is a dead letter"
    item.is_held = True
    return item


__all__ = ["DEAD", "MAX_SPAN", "Flight", "Lanes", "Ruling", "stop"]
