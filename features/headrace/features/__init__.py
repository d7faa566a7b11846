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
        Feature,
        FeatureView,
        Float32,
        Float64,
        Int32,
        Int64,
        String,
        Table,
        UnixTimestamp,
        count,
        latest,
        sum_,
    )
    from headrace.features.predicate import Predicate, col

__all__ = [
    "Bool",
    "Bytes",
    "Entity",
    "Feature",
    "FeatureView",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "Predicate",
    "String",
    "Table",
    "UnixTimestamp",
    "col",
    "count",
    "latest",
    "sum_",
]

_IN_PREDICATE = ("Predicate", "col")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"headrace.features.{'predicate' if name in _IN_PREDICATE else 'definitions'}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
