"""The lanes by hand: what is in a request, what a verdict does, what is left in the log. The property test tries the rest."""

from __future__ import annotations

import pytest

from headrace.sinks.base import CallSpec, Item
from headrace.sinks.lanes import DEAD, Flight, Lanes, Ruling
from headrace.sinks.ledger import Ledger
from headrace.sinks.verdict import AGAIN, DELIVERED, Verdict, refused, retry
from shop_log import order_event

ONE = CallSpec("one", max_events=10)
RUN = CallSpec("run", max_events=3, is_run=True)
ALONE = CallSpec("alone", max_events=3, is_run=True, joins_keys=False)


class Held:
    """Lanes with events of given keys, one offset each."""

    def __init__(self, call: CallSpec, keys: str, **settings: object) -> None:
        self.call = call
        self.ledger = Ledger(0)
        self.lanes = Lanes(self.ledger, [call], window=1_000, window_bytes=1 << 20, **settings)  # type: ignore[arg-type]
        self.more(keys)

    def more(self, keys: str) -> None:
        for key in keys:
            offset = self.ledger.scan
            assert self.ledger.look(offset)
            if not self.lanes.leaves(key, offset):
                self.lanes.hold(Item(offset, key, order_event(offset), self.call.name, "", None, 10), 0.0)

    def take(self) -> Flight:
        flight = self.lanes.take(self.call)
        assert flight is not None
        return flight

    def settle(self, flight: Flight, *verdicts: Verdict, now_s: float = 0.0) -> list[tuple[int, str]]:
        ruling = self.lanes.rule(flight, verdicts)
        self.lanes.settle(flight, ruling, now_s, lambda: 0.5)
        return [(item.offset, reason) for item, reason in ruling.buried]

    def offsets(self) -> list[int]:
        return [item.offset for item in self.take().items]


def test_a_request_holds_one_event_of_each_key_or_a_run_of_a_key() -> None:
    assert Held(ONE, "aabac").offsets() == [0, 2, 4]
    assert Held(RUN, "aabac").offsets() == [0, 1, 3]
    held = Held(RUN, "abba")
    assert held.offsets() == [0, 3, 1]
    assert Held(ALONE, "abaa").offsets() == [0, 2, 3]


def test_a_key_in_flight_is_in_no_second_request() -> None:
    held = Held(ONE, "aab")
    first = held.take()
    assert [item.key for item in first.items] == ["a", "b"]
    held.more("ab")
    assert held.lanes.take(ONE) is None
    held.settle(first, DELIVERED, DELIVERED)
    assert held.offsets() == [1, 4]


def test_the_cursor_passes_only_what_is_done() -> None:
    held = Held(ONE, "abc")
    flight = held.take()
    held.settle(flight, retry("busy"), DELIVERED, DELIVERED)
    assert (held.ledger.next, held.ledger.scan, held.lanes.held) == (0, 3, 1)
    held.lanes.tick(100.0)
    held.settle(held.take(), DELIVERED)
    assert (held.ledger.next, held.lanes.held, held.lanes.held_bytes) == (3, 0, 0)


def test_behind_an_event_that_comes_again_the_run_comes_again_too() -> None:
    held = Held(RUN, "aaa")
    assert held.settle(held.take(), DELIVERED, retry("busy"), refused("poison")) == []
    assert held.lanes.take(RUN) is None, "the key backs off"
    held.lanes.tick(100.0)
    assert held.settle(held.take(), DELIVERED, refused("poison")) == [(2, "poison")]
    assert held.ledger.next == 3


def test_a_pause_is_jittered_grows_and_ends() -> None:
    held = Held(ONE, "a")
    dues: list[float | None] = []
    for _ in range(4):
        held.settle(held.take(), retry("busy"))
        dues.append(held.lanes.due_s())
        held.lanes.tick(1e9)
    assert dues == [0.1, 0.2, 0.4, 0.8]


def test_what_the_destination_asks_for_is_a_floor() -> None:
    held = Held(ONE, "a")
    held.settle(held.take(), retry("busy", 7.0), now_s=10.0)
    due_s = held.lanes.due_s()
    assert due_s is not None and 17.0 <= due_s <= 17.1


def test_attempts_count_verdicts_and_never_outages() -> None:
    held = Held(ONE, "a", attempts=2)
    for _ in range(50):
        assert held.settle(held.take(), AGAIN) == []
        held.lanes.tick(1e9)
    assert held.settle(held.take(), retry("busy")) == []
    held.lanes.tick(1e9)
    assert held.settle(held.take(), retry("busy")) == [(0, "given up after 2 attempts: busy")]


def test_the_end_of_an_outage_wakes_what_waited_for_it_and_nothing_else() -> None:
    held = Held(ONE, "ab")
    held.settle(held.take(), AGAIN, retry("busy"))
    held.lanes.wake(0.0)
    assert held.offsets() == [0]


def test_a_held_key_follows_its_dead_letter() -> None:
    held = Held(ONE, "aab", is_holding=True)
    assert held.settle(held.take(), refused("poison"), DELIVERED) == [(0, "poison")]
    dead = held.lanes.take(DEAD)
    assert dead is not None and [item.offset for item in dead.items] == [1]
    assert "event 0" in dead.items[0].fault
    held.more("a")
    assert held.lanes.stop_key("a")
    held.lanes.release_but(set())
    assert not held.lanes.stop_key("a")


def test_a_hot_key_is_left_in_the_log_and_read_again() -> None:
    held = Held(ONE, "aaaab", share=2)
    lanes = held.lanes
    assert lanes.held == 3, "two of a, one of b"
    assert lanes.reread_from() is None, "a has not drained yet"
    held.settle(held.take(), DELIVERED, DELIVERED)
    assert lanes.reread_from() == 2
    assert not lanes.may_scan, "what was left comes first"
    keys = lanes.returning(2)
    assert keys == {"a"}
    assert not lanes.leave_from("a", 2)
    lanes.hold(Item(2, "a", order_event(2), "one", "", None, 10), 0.0)
    assert lanes.leave_from("a", 3), "it has its share again"
    assert lanes.may_scan
    for _ in range(2):
        held.settle(held.take(), DELIVERED)
    assert lanes.reread_from() == 3
    assert not lanes.leave_from("a", 3)
    lanes.hold(Item(3, "a", order_event(3), "one", "", None, 10), 0.0)
    lanes.returned({"a"}, 5)
    held.settle(held.take(), DELIVERED)
    assert held.ledger.next == 5
    assert not lanes.leaves("a", 5)


def test_every_second_request_begins_with_a_key_that_fills_it() -> None:
    held = Held(RUN, "abc")
    held.lanes.settle(held.take(), Ruling([], [], [], {0: 0, 1: 0, 2: 0}), 0.0, lambda: 0.5)
    held.more("hhhhhhhh")  # ready behind the others
    first = held.take()
    assert [item.key for item in first.items] == ["a", "b", "c"]
    hot = held.take()
    assert [item.key for item in hot.items] == ["h"] * 3
    held.more("de")
    held.settle(hot, *[DELIVERED] * 3)  # it has five more, a whole request's: long from now on
    held.more("fg")
    assert [[item.key for item in held.take().items] for _ in range(2)] == [["h"] * 3, ["d", "e", "f"]]


def test_however_many_long_keys_the_short_ones_have_every_second_request() -> None:
    held = Held(RUN, "ab")
    held.settle(held.take(), DELIVERED, DELIVERED)
    held.more("x")
    flight = held.take()
    held.more("xxxxxxyyyyyyzzzzzz")
    held.settle(flight, DELIVERED)
    held.more("c")
    order = []
    for _ in range(8):
        flight = held.take()
        order.append("".join(item.key for item in flight.items))
        held.settle(flight, *[DELIVERED] * len(flight.items))
        if "c" in order[-1]:
            break
    assert "c" in order[-1] and all(order.count(key * 3) <= 2 for key in "xyz"), order


def test_a_request_that_isnt_full_waits_a_little_while_others_are_under_way_or_more_is_coming() -> None:
    held = Held(RUN, "ab")
    assert held.lanes.linger_s(RUN) == 0.0
    assert held.lanes.linger_s(RUN, is_busy=True) == pytest.approx(0.01)
    held.lanes.is_filling = True
    assert held.lanes.linger_s(RUN) == pytest.approx(0.01)
    held.more("b")  # three events of two keys
    assert held.lanes.linger_s(RUN, is_busy=True) == 0.0
    one = Held(ONE, "aaaaaaaaaaaaab")
    assert one.lanes.linger_s(ONE, is_busy=True) == pytest.approx(0.01), "one of each key: two events"
    alone = Held(ALONE, "a")
    assert alone.lanes.linger_s(ALONE, is_busy=True) == 0.0, "no other key could fill it"


def test_events_of_several_calls_keep_their_order() -> None:
    other = CallSpec("other", max_events=10)
    lanes = Lanes(Ledger(0), [ONE, other], window=10, window_bytes=1 << 20)
    for offset, call in enumerate(["one", "other", "one"]):
        lanes.ledger.look(offset)
        lanes.hold(Item(offset, "a", order_event(offset), call, "", None, 10), 0.0)
    for offset, call in enumerate([ONE, other, ONE]):
        flight = lanes.take(call)
        assert flight is not None and [item.offset for item in flight.items] == [offset]
        assert lanes.take(ONE) is None and lanes.take(other) is None
        lanes.settle(flight, lanes.rule(flight, [DELIVERED]), 0.0, lambda: 0.0)
