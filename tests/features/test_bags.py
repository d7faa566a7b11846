"""Bags: what they keep, when they cross over, what their sketches promise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.features import counted
from headrace.features.counted import Counted, Distinct, Quantile, TopK, bucket_of, bucket_value, cell_of, estimate
from headrace.features.extremes import Extremes
from headrace.features.items import float_key, key_float
from headrace.features.spec import ValueType

doubles = st.floats(allow_nan=False)


@given(doubles, doubles)
def test_keys_of_doubles_sort_as_the_doubles_do(left: float, right: float) -> None:
    assert (float_key(left) < float_key(right)) == (left < right)
    assert key_float(float_key(left)) == left
    assert float_key(math.nan) > float_key(math.inf)


@given(doubles)
def test_a_bucket_is_within_one_128th_of_its_values(value: float) -> None:
    found = bucket_value(bucket_of(value))
    if math.isinf(value):
        assert found == value
    else:
        assert abs(found - value) <= abs(value) / 128 + 2.3e-308


@given(doubles, doubles)
def test_buckets_sort_as_their_values_do(left: float, right: float) -> None:
    if left < right:
        assert bucket_of(left) <= bucket_of(right)


@pytest.mark.parametrize("has_greatest", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_bag_of_extremes_holds_the_best_or_says_that_it_is_short(seed: int, has_greatest: bool) -> None:
    chance = random.Random(seed)
    bag = Extremes(3, has_greatest=has_greatest)
    live: list[int] = []
    for step in range(2_000):
        if live and chance.random() < 0.48:
            bag.remove(live.pop(chance.randrange(len(live))))
        else:
            live.append(chance.randint(0, 12))
            bag.add(live[-1])
        wanted = sorted(live)[-3:] if has_greatest else sorted(live)[:3]
        if not bag.is_short():
            assert bag.plain() == [len(live), *wanted], f"seed {seed}, step {step}"
        elif chance.random() < 0.5:
            bag.refill(live)
            assert bag.plain() == [len(live), *wanted], f"seed {seed}, step {step}"


@pytest.mark.parametrize("count", [1_025, 5_000, 100_000])
def test_distinct_counts_exactly_to_its_limit_and_closely_beyond(count: int) -> None:
    kind = Distinct(ValueType.STRING)
    bag = kind.empty()
    for number in range(counted.MOST_DISTINCT):
        bag.add(kind.lift(f"visitor {number}", 0, 0))
    assert kind.read([bag], 0) == counted.MOST_DISTINCT
    for number in range(counted.MOST_DISTINCT, count):
        bag.add(kind.lift(f"visitor {number}", 0, 0))
    found = kind.read([bag], 0)
    assert isinstance(found, int)
    assert abs(found - count) <= 0.07 * count, "three standard errors"


def test_what_is_taken_out_of_a_sketch_leaves_it_as_if_it_had_never_been_there() -> None:
    kind = Distinct(ValueType.INT64)
    stay, both = kind.empty(), kind.empty()
    for number in range(3_000):
        stay.add(kind.lift(number, 0, 0))
        both.add(kind.lift(number, 0, 0))
    for number in range(3_000, 9_000):
        both.add(kind.lift(number, 0, 0))
    for number in range(3_000, 9_000):
        both.remove(kind.lift(number, 0, 0))
    assert both.plain() == stay.plain()


def test_an_emptied_bag_is_exact_again() -> None:
    bag = Counted(2, cell_of)
    for item in (1, 2, 3):
        bag.add(item)
    assert bag.has_crossed
    for item in (1, 2, 3):
        bag.remove(item)
    assert bag.plain() == Counted(2, cell_of).plain()


def test_an_exact_tile_and_a_crossed_one_are_counted_together() -> None:
    kind = Distinct(ValueType.INT64)
    small, large = kind.empty(), kind.empty()
    for number in range(500):
        small.add(number)
    for number in range(2_000):
        large.add(number)
    assert kind.read([small, large], 0) == kind.read([large], 0), "the small one's values are among the large one's"


@pytest.mark.parametrize("kind", [TopK(ValueType.INT64, 3), Quantile("0.5")])
def test_beyond_its_limit_a_feature_is_null_rather_than_wrong(
    kind: TopK | Quantile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "MOST_VALUES", 10)
    bag = kind.empty()
    for number in range(10):
        bag.add(number)
    assert kind.read([bag], 0) is not None
    bag.add(10)
    assert kind.read([bag], 0) is None


def test_no_cell_is_estimated_as_none() -> None:
    assert estimate([]) == 0
