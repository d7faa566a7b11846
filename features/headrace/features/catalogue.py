"""Which aggregate computes which kind of feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from headrace.features.aggregate import Aggregate, CountRows, CountValues, SumReal, SumWhole
from headrace.features.compiled import COUNT, MEAN, STDDEV, SUM, VARIANCE, FeaturePlan
from headrace.features.moments import Mean, Stddev, Variance
from headrace.features.predicate import Predicate
from headrace.features.spec import ValueType


class AggregateKey(msgspec.Struct, frozen=True):
    """What tells two aggregates of a view apart, whatever their windows. column: -1 for none; where: which rows count."""

    kind: str
    column: int
    dtype: ValueType
    where: Predicate | None


_LINEAR: Final[dict[str, Callable[[], Aggregate]]] = {MEAN: Mean, VARIANCE: Variance, STDDEV: Stddev}


def key_of(plan: FeaturePlan) -> AggregateKey:
    """The aggregate that a feature reads."""
    return AggregateKey(plan.kind, plan.column, plan.dtype, plan.where)


def make_aggregate(key: AggregateKey) -> Aggregate:
    """The linear aggregate of this key."""
    if key.kind == COUNT:
        return CountRows() if key.column < 0 else CountValues()
    if key.kind == SUM:
        return SumWhole() if key.dtype is ValueType.INT64 else SumReal()
    return _LINEAR[key.kind]()
