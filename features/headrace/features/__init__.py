"""The feeder: feature views over tables, kept fresh from the log in a store that a stock Feast SDK reads.

The names here are what a definitions file imports; each is loaded when it is first asked for, so that ``import headrace.features`` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.features.definitions import (
        Bool,
        Bytes,
        Entity,
        Events,
        FeatureView,
        Float32,
        Float64,
        Float64List,
        Int32,
        Int64,
        Int64List,
        String,
        StringList,
        Table,
        UnixTimestamp,
    )
    from headrace.features.functions import (
        Feature,
        count,
        distinct,
        last,
        latest,
        max_,
        mean,
        min_,
        quantile,
        ratio,
        stddev,
        sum_,
        time_since_last,
        top_k,
        variance,
    )
    from headrace.features.ondemand import on_demand
    from headrace.features.predicate import Predicate, col

__all__ = [
    "Bool",
    "Bytes",
    "Entity",
    "Events",
    "Feature",
    "FeatureView",
    "Float32",
    "Float64",
    "Float64List",
    "Int32",
    "Int64",
    "Int64List",
    "Predicate",
    "String",
    "StringList",
    "Table",
    "UnixTimestamp",
    "col",
    "count",
    "distinct",
    "last",
    "latest",
    "max_",
    "mean",
    "min_",
    "on_demand",
    "quantile",
    "ratio",
    "stddev",
    "sum_",
    "time_since_last",
    "top_k",
    "variance",
]

_HOMES = {
    "ondemand": ("on_demand",),
    "predicate": ("Predicate", "col"),
    "functions": (
        "Feature",
        "count",
        "distinct",
        "last",
        "latest",
        "max_",
        "mean",
        "min_",
        "quantile",
        "ratio",
        "stddev",
        "sum_",
        "time_since_last",
        "top_k",
        "variance",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"headrace.features.{_HOME_OF.get(name, 'definitions')}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
