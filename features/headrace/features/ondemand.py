"""On-demand features: plain Python over a view's stored features, computed when the row is read.

headrace's own readers (the HTTP server, ``features get``) see them beside the stored ones; a stock Feast SDK reads the store itself, and sees
what is stored only. Nothing is stored for them, so another function needs no rebuild. A function that raises, or whose result doesn't fit its
type, gives no value for that row alone: its status is INVALID.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from headrace.features.blame import caller, check_name, is_a, type_name, wrong
from headrace.features.encoding import encode_value
from headrace.features.spec import Field, OnDemand, ValueType, ViewSpec
from headrace.features.store.base import FeatureRow


class Failed(enum.Enum):
    """What stands in place of a value that couldn't be computed."""

    INVALID = "INVALID"


INVALID: Final = Failed.INVALID


def on_demand(name: str, dtype: ValueType, *, inputs: Sequence[str], compute: Callable[..., Any]) -> OnDemand:
    """A feature computed at read. inputs: names of stored features of the same view; compute gets their values in this order.

    A missing input comes as None; the result None is null. It must depend on its arguments alone. Raises DefinitionError.
    """
    where = caller()
    who = f"on-demand feature {name!r}"
    check_name(name, where, who)
    if not is_a(dtype, ValueType):
        raise wrong(where, who, f"unsupported type {type_name(dtype)}")
    if isinstance(inputs, str) or not inputs:
        raise wrong(where, who, 'needs the names of its inputs, such as inputs=["total_sum_7d", "count_7d"]')
    if not callable(compute):
        raise wrong(where, who, "needs a function: compute=lambda total, orders: ...")
    if inspect.iscoroutinefunction(compute):
        raise wrong(where, who, "needs a plain function, not a coroutine")
    try:
        inspect.signature(compute).bind(*inputs)
    except TypeError as error:
        raise wrong(where, who, f"its function can't take {len(inputs)} inputs: {error}") from None
    except ValueError:
        pass  # a builtin that doesn't tell its signature
    return OnDemand(name, dtype, tuple(inputs), compute, where)


def check_inputs(view: str, features: Iterable[OnDemand], stored: Iterable[str], join_keys: Iterable[str]) -> None:
    """Raises DefinitionError when a name is taken or an input isn't stored."""
    known = list(stored)
    taken = {*known, *join_keys}
    for feature in features:
        who = f"view {view!r}, on-demand feature {feature.name!r}"
        if feature.name in taken:
            raise wrong(
                feature.defined_at, who, "is already the name of another feature or join key: give it another name"
            )
        taken.add(feature.name)
        for name in feature.inputs:
            if name not in known:
                raise wrong(
                    feature.defined_at,
                    who,
                    f"names {name!r}, which is no stored feature of the view; there are {', '.join(known)}",
                )


def fields_of(view: ViewSpec) -> tuple[Field, ...]:
    """All features that a reader may ask for: the stored ones, then the computed."""
    return (*view.fields, *[Field(feature.name, feature.dtype) for feature in view.on_demand])


def stored_names(view: ViewSpec, names: Sequence[str]) -> list[str]:
    """The stored features that these features need, each once."""
    computed = {feature.name: feature for feature in view.on_demand}
    found: dict[str, None] = {}
    for name in names:
        for stored in computed[name].inputs if name in computed else (name,):
            found[stored] = None
    return list(found)


def computed_rows(
    view: ViewSpec, names: Sequence[str], stored: Sequence[str], rows: Sequence[FeatureRow | None]
) -> list[FeatureRow | None]:
    """Rows of the features ``names``, from rows of the features ``stored`` (see stored_names)."""
    if list(names) == list(stored):
        return list(rows)
    place = {name: index for index, name in enumerate(stored)}
    computed = {feature.name: feature for feature in view.on_demand}
    result: list[FeatureRow | None] = []
    for row in rows:
        if row is None:
            result.append(None)
            continue
        values: list[Any] = []
        for name in names:
            feature = computed.get(name)
            if feature is None:
                values.append(row.values[place[name]])
            else:
                values.append(_computed(feature, [row.values[place[name]] for name in feature.inputs]))
        result.append(FeatureRow(tuple(values), row.event_time_us))
    return result


def _computed(feature: OnDemand, inputs: Sequence[Any]) -> Any:
    try:
        value: Any = feature.compute(*inputs)
        if isinstance(value, list):
            value = tuple(cast("list[Any]", value))
        elif type(value) is int and feature.dtype is ValueType.FLOAT64:
            value = float(value)
        encode_value(feature.dtype, value)
    except Exception:  # noqa: BLE001  # whatever a user's function may raise
        return INVALID
    return value
