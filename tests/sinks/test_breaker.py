"""The breaker's pauses and the rate's halving, with times passed in."""

from __future__ import annotations

import pytest

from headrace.sinks.breaker import Breaker, BreakerState
from headrace.sinks.rate import Rate


def test_five_outages_in_a_row_open_it_and_one_answer_closes_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(0.0, "503")
    assert not breaker.answered()
    for _ in range(5):
        assert breaker.admits(0.0)
        breaker.failed(0.0, "503")
    assert breaker.state is BreakerState.OPEN and not breaker.admits(0.9) and breaker.due_s() == 1.0
    assert breaker.admits(1.0)
    breaker.began()
    assert not breaker.admits(1.0), "one probe at a time"
    assert breaker.answered()
    assert breaker.admits(1.0) and breaker.reason == ""


def test_probes_come_at_growing_pauses() -> None:
    breaker = Breaker()
    now_s, pauses = 0.0, []
    for _ in range(5):
        breaker.failed(now_s, "503")
    for _ in range(7):
        due_s = breaker.due_s()
        assert due_s is not None
        pauses.append(due_s - now_s)
        now_s = due_s
        breaker.began()
        breaker.failed(now_s, "503")
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_late_answers_of_requests_from_before_do_not_lengthen_a_pause() -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker.failed(0.0, "503")
    assert breaker.due_s() == 1.0


def test_a_denial_opens_it_at_once_for_a_minute() -> None:
    breaker = Breaker()
    breaker.denied(5.0, "401")
    assert breaker.due_s() == 65.0 and breaker.reason == "401"


def _taken(rate: Rate, start_s: float, seconds: float) -> int:
    now_s, count = start_s, 0
    while (ready_s := rate.ready_s(now_s)) < start_s + seconds:
        now_s = max(now_s, ready_s)
        rate.take(now_s)
        count += 1
    return count


def test_a_limit_is_kept_after_its_burst() -> None:
    assert _taken(Rate(100.0), 0.0, 10.0) == pytest.approx(1_010, abs=3)
    assert _taken(Rate(0.5), 0.0, 20.0) == pytest.approx(11, abs=1)


def test_a_429_halves_once_a_second_and_the_rate_climbs_back() -> None:
    rate = Rate(100.0)
    rate.throttled(10.0, None)
    rate.throttled(10.5, None)
    assert rate.rate == pytest.approx(52.5)
    rate.throttled(11.1, None)
    assert rate.rate is not None and 25 < rate.rate < 30
    rate.ready_s(40.0)
    assert rate.rate == 100.0


def test_a_pause_that_was_asked_for_is_kept() -> None:
    rate = Rate(None)
    assert rate.ready_s(1.0) == 1.0
    rate.throttled(1.0, 30.0)
    assert rate.ready_s(2.0) == 31.0


def test_without_a_limit_it_begins_at_half_of_what_was_taken_and_opens_again() -> None:
    rate = Rate(None)
    for number in range(200):
        rate.take(number / 200)
    rate.throttled(1.0, None)
    assert rate.rate == 100.0
    rate.ready_s(302.0)
    assert rate.rate is None
