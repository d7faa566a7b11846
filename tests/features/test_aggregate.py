"""Exact sums: any order, any retraction, one rounding."""

from __future__ import annotations

import math
import random
import struct
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.cdc.event import Value
from headrace.features.aggregate import CountRows, CountValues, Pack, SumReal, SumWhole, scaled_decimal
from headrace.features.moments import Mean, Variance
from headrace.features.tiles import pack_slot, unpack_slot


def added(aggregate: SumReal | SumWhole, values: list[Value]) -> list[int]:
    sums = [0] * len(aggregate.slots)
    for value in values:
        sums = [total + part for total, part in zip(sums, aggregate.lift(value), strict=True)]
    return sums


def bits(value: object) -> bytes:
    assert isinstance(value, float)
    return struct.pack("<d", value)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=30))
def test_a_sum_of_doubles_is_bit_equal_to_fsum(values: list[float]) -> None:
    try:
        wanted = math.fsum(values)
    except OverflowError:
        wanted = None  # fsum gives up where the partial sums overflow; ours is the exact sum
    found = SumReal().read(added(SumReal(), list(values)))
    if wanted is not None:
        assert bits(found) == bits(wanted + 0.0)


@given(st.lists(finite, max_size=12), st.lists(finite, max_size=12), st.randoms(use_true_random=False))
def test_retraction_leaves_exactly_what_was_never_retracted(
    stay: list[float], go: list[float], chance: random.Random
) -> None:
    aggregate = SumReal()
    moves = [(1, value) for value in stay + go]
    chance.shuffle(moves)
    moves += [(-1, value) for value in go]
    sums = [0] * len(aggregate.slots)
    for sign, value in moves:
        sums = [total + sign * part for total, part in zip(sums, aggregate.lift(value), strict=True)]
    assert sums == added(aggregate, list(stay))


@given(
    st.lists(
        st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12), max_size=30
    )
)
def test_a_sum_of_numerics_is_the_double_nearest_to_the_exact_sum(values: list[object]) -> None:
    texts = [f"{value:f}" for value in values]
    exact = sum((Fraction(text) for text in texts), Fraction(0))
    assert SumReal().read(added(SumReal(), list(texts))) == float(exact)


numbers = st.one_of(
    finite.filter(lambda value: abs(value) < 1e100),
    st.integers(-(10**9), 10**9),
    st.sampled_from([5e-324, 2.0**-128, 2.0**-129, 1e-300]),
)


@given(st.lists(numbers, min_size=2, max_size=12), st.lists(numbers, max_size=6))
@example([5e-324, 1.0, 3], [])
@example([1e-300, -1e-300], [2.5])
@example([0.5, -0.5, 2], [2])
def test_mean_and_variance_are_those_of_the_exact_values_whatever_their_magnitude(
    stay: list[float | int], gone: list[float | int]
) -> None:
    exact = [Fraction(value) for value in stay]
    mean = sum(exact, Fraction(0)) / len(exact)
    variance = sum(((value - mean) ** 2 for value in exact), Fraction(0)) / (len(exact) - 1)
    for aggregate, wanted in ((Mean(), mean), (Variance(), variance)):
        sums = [0] * len(aggregate.slots)
        for sign, values in ((1, [*stay, *gone]), (-1, gone)):
            for value in values:
                sums = [total + sign * part for total, part in zip(sums, aggregate.lift(value), strict=True)]
        assert bits(aggregate.read(sums)) == bits(wanted.numerator / wanted.denominator + 0.0)


@given(st.one_of(numbers, st.sampled_from(["NaN", "Infinity", "0.25", None])))
def test_sum_mean_and_variance_of_a_column_share_their_slots(value: Value) -> None:
    widest = Variance()
    for aggregate in (SumReal(), Mean()):
        width = len(aggregate.slots)
        assert aggregate.lift(value) == widest.lift(value)[:width]
        assert aggregate.slots == widest.slots[:width]


def test_doubles_numerics_and_ints_of_one_column_add_up_exactly() -> None:
    exact = Fraction(0.1) + Fraction("0.2") + 3
    assert SumReal().read(added(SumReal(), [0.1, "0.2", 3, None])) == float(exact)


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("0.5", 5 * 10**37),
        ("-0.05", -5 * 10**36),
        ("7", 7 * 10**38),
        ("0." + "0" * 38 + "5", 0),
        ("0." + "0" * 37 + "15", 2),
        ("-0." + "0" * 37 + "25", -2),
    ],
)
def test_decimal_text_is_scaled_and_rounded_half_even_at_the_38th_digit(text: str, digits: int) -> None:
    assert scaled_decimal(text) == digits


@pytest.mark.parametrize("text", ["", "abc", "1e5", "1_000", "0x10", "١٢ 3"])
def test_text_that_is_no_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no decimal"):
        SumReal().lift(text)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["NaN", 1.0], math.nan),
        (["Infinity", 1.0], math.inf),
        (["-Infinity", 1.0, "-Infinity"], -math.inf),
        (["Infinity", "-Infinity"], math.nan),
        ([1.7e308, 1.7e308], math.inf),
        ([-1.7e308, -1.7e308, "1"], -math.inf),
        ([-0.0], 0.0),
        ([], 0.0),
        ([None], 0.0),
    ],
)
def test_what_is_not_finite_follows_the_documented_rules(values: list[Value], wanted: float) -> None:
    found = SumReal().read(added(SumReal(), values))
    assert bits(found) == bits(wanted)


def test_the_finite_sum_is_back_when_the_last_infinity_is_retracted() -> None:
    aggregate = SumReal()
    sums = added(aggregate, [0.5, "Infinity", "NaN"])
    for value in ("Infinity", "NaN"):
        sums = [total - part for total, part in zip(sums, aggregate.lift(value), strict=True)]
    assert aggregate.read(sums) == 0.5


def test_whole_numbers_add_exactly_and_read_as_null_beyond_int64() -> None:
    assert SumWhole().read(added(SumWhole(), [1, "2", "3.00", True, None])) == 7
    assert SumWhole().read(added(SumWhole(), [2**63 - 1])) == 2**63 - 1
    assert SumWhole().read(added(SumWhole(), [2**63 - 1, 1])) is None
    with pytest.raises(ValueError, match="no whole number"):
        SumWhole().lift("2.5")


def test_counts() -> None:
    assert (CountRows().lift(None), CountValues().lift(None), CountValues().lift(0)) == ((1,), (0,), (1,))


@given(st.integers(), st.sampled_from(list(Pack)))
def test_any_slot_survives_packing(amount: int, how: Pack) -> None:
    assert unpack_slot(how, pack_slot(how, amount)) == amount


@given(finite)
def test_a_double_is_packed_in_few_bytes(value: float) -> None:
    for scaled in SumReal().lift(value)[:2]:
        packed = pack_slot(Pack.DOUBLE, scaled)
        assert unpack_slot(Pack.DOUBLE, packed) == scaled
        assert packed == 0 or isinstance(packed[1], int), "a double's 53 bits fit a small int"
