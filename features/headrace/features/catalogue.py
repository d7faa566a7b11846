"""Which aggregate computes which kind of feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from headrace.features.aggregate import Aggregate, CountRows, CountValues, SumReal, SumWhole
from headrace.features.bags import BagKind
from headrace.features.compiled import (
    COUNT,
    DISTINCT,
    LAST,
    MAX,
    MEAN,
    MIN,
    QUANTILE,
    SINCE,
    STDDEV,
    SUM,
    TOP_K,
    VARIANCE,
    FeaturePlan,
)
from headrace.features.counted import Distinct, Quantile, Since, TopK
from headrace.features.extremes import Greatest, Least, Newest
from headrace.features.moments import Mean, Stddev, Variance
from headrace.features.predicate import Predicate
from headrace.features.spec import LISTS, ValueType


class AggregateKey(msgspec.Struct, frozen=True):
    """What tells two aggregates of a view apart, whatever their windows. column: -1 for none; where: which rows count."""

    kind: str
    column: int
    dtype: ValueType
    where: Predicate | None
    size: int
    level: str


_LINEAR: Final[dict[str, Callable[[], Aggregate]]] = {MEAN: Mean, VARIANCE: Variance, STDDEV: Stddev}


_ITEM_TYPES: Final = {lists: single for single, lists in LISTS.items()}

_BAGS: Final[dict[str, Callable[[AggregateKey], BagKind]]] = {
    MIN: lambda key: Least(key.dtype),
    MAX: lambda key: Greatest(key.dtype),
    LAST: lambda key: Newest(_ITEM_TYPES[key.dtype], key.size),
    DISTINCT: lambda key: Distinct(ValueType(key.level)),
    TOP_K: lambda key: TopK(_ITEM_TYPES[key.dtype], key.size),
    QUANTILE: lambda key: Quantile(key.level),
    SINCE: lambda _: Since(),
}


def key_of(plan: FeaturePlan) -> AggregateKey:
    """The aggregate that a feature reads."""
    return AggregateKey(plan.kind, plan.column, plan.dtype, plan.where, plan.size, plan.level)


def make_aggregate(key: AggregateKey) -> Aggregate:
    """The linear aggregate of this key."""
    if key.kind == COUNT:
        return CountRows() if key.column < 0 else CountValues()
    if key.kind == SUM:
        return SumWhole() if key.dtype is ValueType.INT64 else SumReal()
    return _LINEAR[key.kind]()


def base_of(key: AggregateKey) -> AggregateKey:
    """The same for aggregates that read the same slots of a row's value: those of one are the first of the other's."""
    if key.kind in _LINEAR or (key.kind == SUM and key.dtype is not ValueType.INT64):
        return AggregateKey(SUM, key.column, ValueType.FLOAT64, key.where, 0, "")
    return key


def is_bag(kind: str) -> bool:
    """The kind keeps bags of values, and make_bag_kind makes it."""
    return kind in _BAGS


def make_bag_kind(key: AggregateKey) -> BagKind:
    """The bag kind of this key."""
    return _BAGS[key.kind](key)
