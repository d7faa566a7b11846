"""The cursor and its flags, over a checkpoint too."""

from __future__ import annotations

import random

import pytest

from headrace.sinks.lanes import MAX_SPAN
from headrace.sinks.ledger import Ledger


def test_the_cursor_is_the_first_that_is_not_done() -> None:
    ledger = Ledger(10)
    for offset in range(10, 15):
        assert ledger.look(offset)
    for offset, cursor in ((11, 10), (13, 10), (10, 12), (12, 14)):
        ledger.done(offset)
        ledger.done(offset)
        assert ledger.next == cursor
    assert ledger.span == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_checkpoint_knows_exactly_what_is_done(seed: int) -> None:
    chance = random.Random(seed)
    first, count = chance.randrange(100_000), chance.choice([1, 9, 300, 20_000])
    ledger, done = Ledger(first), set[int]()
    for offset in range(first, first + count):
        assert ledger.look(offset)
        if chance.random() < 0.9:
            done.add(offset)
    for offset in chance.sample(sorted(done), len(done)):
        ledger.done(offset)
    other = Ledger(ledger.next, ledger.state())
    assert {offset for offset in range(first, first + count + 8) if other.is_done(offset)} == done
    again = {offset for offset in range(other.scan, first + count) if other.look(offset)}
    assert again == set(range(first, first + count)) - done


def test_what_is_known_to_be_done_is_not_looked_at_again() -> None:
    ledger = Ledger(5)
    ledger.known([3, 5, 6, 9])
    assert (ledger.next, ledger.scan) == (7, 7)
    assert [offset for offset in range(7, 12) if ledger.look(offset)] == [7, 8, 10, 11]


def test_the_largest_span_fits_into_a_cursors_state() -> None:
    ledger = Ledger(0)
    for offset in range(MAX_SPAN):
        ledger.look(offset)
    ledger.done(MAX_SPAN - 1)
    assert len(ledger.state()) < 64 << 10


def test_a_state_of_a_newer_version_is_refused() -> None:
    with pytest.raises(ValueError, match="newer version"):
        Ledger(0, b"\x02\x01")
