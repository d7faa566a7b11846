"""Windows and tiles by themselves, against a plain recomputation."""

from __future__ import annotations

import random

import pytest

from headrace.features.aggregate import Pack
from headrace.features.tiles import Track, TrackPlan
from headrace.features.window import make_window

S, M, H, D = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000


@pytest.mark.parametrize(
    ("over", "hop_us"),
    [
        ("30s", S),
        ("1m", S),
        ("90s", S),
        ("10m", 10 * S),
        ("1h", M),
        ("12h", 10 * M),
        ("1d", 15 * M),
        ("7d", 2 * H),
        ("30d", 12 * H),
        ("90d", D),
    ],
)
def test_a_hop_is_a_round_sixtieth_that_divides_the_window(over: str, hop_us: int) -> None:
    window = make_window(over, None)
    assert window.hop_us == hop_us
    assert window.length_us % hop_us == 0


@pytest.mark.parametrize(
    ("over", "hop", "reason"),
    [
        ("1 fortnight", None, "no time span"),
        ("0s", None, "longer than nothing"),
        ("1h", "7m", "does not divide"),
        ("1h", "soon", "hop 'soon' is no time span"),
        ("1500ms", None, "no whole number of seconds"),
        ("1d", "1s", "86400 hops"),
    ],
)
def test_a_wrong_window_says_what_is_wrong(over: str, hop: str | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_window(over, hop)


def test_a_given_hop_may_be_shorter_than_a_second() -> None:
    assert make_window("2s", "500ms").hop_us == 500_000


PLAN = TrackPlan(10, (30, 100), (Pack.PLAIN, Pack.DECIMAL))


@pytest.mark.parametrize("seed", range(5))
def test_totals_equal_a_recomputation_at_every_time_and_after_every_reload(seed: int) -> None:
    chance = random.Random(seed)
    track = Track(PLAN)
    now = 1000
    track.advance(now)
    rows: list[tuple[int, int]] = []
    for step in range(600):
        what = chance.random()
        if what < 0.5:
            row = (now + chance.randint(-150, 40), chance.randint(-3, 3))
            rows.append(row)
            track.add(row[0], ((0, 1), (1, row[1])))
        elif what < 0.7 and rows:
            time, amount = rows.pop(chance.randrange(len(rows)))
            track.add(time, ((0, 1), (1, amount)), False)
        elif what < 0.8:
            track = Track.decode(PLAN, track.encode(), now)
        else:
            now += chance.choice((0, 1, 5, 10, 35, 200))
            track.advance(now)
            rows = [row for row in rows if row[0] // 10 > (now - 100) // 10]
        for place, length in enumerate(PLAN.lengths_us):
            inside = [amount for time, amount in rows if (now - length) // 10 < time // 10 <= now // 10]
            assert track.totals[place] == [len(inside), sum(inside)], f"seed {seed}, step {step}, window {length}"
        due = track.due_us()
        assert due is None or due > now, f"seed {seed}, step {step}"


@pytest.mark.parametrize("seed", range(5))
def test_totals_change_only_when_they_are_due(seed: int) -> None:
    chance = random.Random(seed)
    track = Track(PLAN)
    track.advance(1000)
    for number in range(20):
        track.add(1000 + chance.randint(-99, 60), ((0, 1 << number),))  # no two sets of rows have the same sum
    changes = 0
    for now in range(1001, 1300):
        due = track.due_us()
        before = [list(total) for total in track.totals]
        track.advance(now)
        has_changed = before != track.totals
        changes += has_changed
        assert has_changed == (due is not None and now >= due), f"seed {seed}, at {now}"
    assert changes > 5
    assert track.due_us() is None
    assert track.encode() == Track(PLAN).encode()


def test_bytes_do_not_depend_on_order_or_on_detours() -> None:
    one, other = Track(PLAN), Track(PLAN)
    for track in (one, other):
        track.advance(1000)
    for time in (950, 990, 1020):
        one.add(time, ((0, 1), (1, 5)))
    for time in (1020, 970, 990, 950):
        other.add(time, ((0, 1), (1, 5)))
    other.add(970, ((0, 1), (1, 5)), False)
    assert one.encode() == other.encode()
