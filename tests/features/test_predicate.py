"""Filters follow SQL's three values."""

from __future__ import annotations

from decimal import Decimal

import pytest

from headrace.cdc.event import Value
from headrace.features.predicate import Predicate, col

WHERE = {"a": 0, "b": 1}


def verdict(predicate: Predicate, *row: Value) -> bool | None:
    return predicate.compile(WHERE)(row)


@pytest.mark.parametrize(
    ("predicate", "row", "wanted"),
    [
        (col("a") == "paid", ("paid", 0), True),
        (col("a") == "paid", ("open", 0), False),
        (col("a") == "paid", (None, 0), None),
        (col("a") != "paid", (None, 0), None),
        (~(col("a") == "paid"), (None, 0), None),
        (col("a") == "1", (1, 0), None),
        (col("a") > 100, ("100.01", 0), True),
        (col("a") > 100, ("99.99999999999999999999", 0), False),
        (col("a") >= 0.1, (0.1, 0), True),
        (col("a") == Decimal("0.10"), ("0.1", 0), True),
        (col("a") < 5, ("NaN", 0), None),
        (col("a") < 5, ("five", 0), None),
        (col("a") < 5, ("-Infinity", 0), True),
        (col("a").is_true(), (True, 0), True),
        (col("a").is_true(), (1, 0), None),
        (col("a").is_null(), (None, 0), True),
        (~col("a").is_null(), (None, 0), False),
        (col("a").is_in(["x", "y"]), ("y", 0), True),
        (col("a").is_in(["x", "y"]), ("z", 0), False),
        (col("a").is_in(["x", "y"]), (None, 0), None),
        ((col("a") == 1) & (col("b") == 2), (1, 2), True),
        ((col("a") == 1) & (col("b") == 2), (None, 3), False),
        ((col("a") == 1) & (col("b") == 2), (None, 2), None),
        ((col("a") == 1) | (col("b") == 2), (None, 2), True),
        ((col("a") == 1) | (col("b") == 2), (None, 3), None),
    ],
)
def test_a_filter_is_true_false_or_unknown_as_in_sql(
    predicate: Predicate, row: tuple[Value, ...], wanted: bool | None
) -> None:
    assert verdict(predicate, *row) is wanted


def test_a_chain_written_with_and_is_refused_with_the_cure() -> None:
    with pytest.raises(TypeError, match='combine filters with "&"'):
        assert col("a") == 1 and col("b") == 2
    with pytest.raises(TypeError, match='combine filters with "&"'):
        _ = 1 < col("a") < 5


def test_null_and_strange_literals_are_refused() -> None:
    with pytest.raises(TypeError, match=r"use \.is_null\(\)"):
        _ = col("a") == None  # type: ignore[arg-type]  # noqa: E711
    with pytest.raises(TypeError, match="not with list"):
        _ = col("a") == [1]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="parentheses"):
        _ = (col("a") == 1) & 2  # type: ignore[operator]


def test_different_filters_have_different_plain_forms() -> None:
    filters = [
        col("a") == 1,
        col("a") == 1.0,
        col("a").is_true(),
        col("a") == "1",
        col("a") != 1,
        ~(col("a") == 1),
        col("b") == 1,
    ]
    plain = [str(predicate.plain()) for predicate in filters]
    assert len(set(plain)) == len(filters)
    assert (col("a") == 1).plain() == (col("a") == 1).plain()
