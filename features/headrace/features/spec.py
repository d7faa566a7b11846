"""The words that definitions, engine, stores and the Feast adapter share: value types, fields, the compiled view."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

FeatureValue: TypeAlias = (
    int | float | bool | str | bytes | tuple[int, ...] | tuple[float, ...] | tuple[str, ...] | None
)
"""A tuple for a list type."""


class ValueType(enum.Enum):
    """Value types as Feast names them; the enum value is Feast's own dtype name (feast.types)."""

    INT32 = "Int32"
    INT64 = "Int64"
    FLOAT32 = "Float32"
    FLOAT64 = "Float64"
    STRING = "String"
    BOOL = "Bool"
    BYTES = "Bytes"
    UNIX_TIMESTAMP = "UnixTimestamp"
    """int microseconds since 1970 UTC inside headrace; Feast's wire form is whole seconds."""
    INT64_LIST = "Array(Int64)"
    FLOAT64_LIST = "Array(Float64)"
    STRING_LIST = "Array(String)"


SCALARS: Final = tuple([dtype for dtype in ValueType if not dtype.value.startswith("Array(")])
"""Types of a single value: what a column may be read as."""

LISTS: Final = {
    ValueType.INT64: ValueType.INT64_LIST,
    ValueType.FLOAT64: ValueType.FLOAT64_LIST,
    ValueType.STRING: ValueType.STRING_LIST,
}
"""The list type of each type that has one."""


class Field(msgspec.Struct, frozen=True, array_like=True):
    """A named, typed column of a view, as Feast's Field."""

    name: str
    dtype: ValueType


DRAFT: Final = "__next"
"""Ends the name under which a changed view is built beside its former rows. No definition can have such a name."""


class OnDemand(msgspec.Struct, frozen=True):
    """A feature that isn't stored: compute gets the values of the stored features named inputs. See ondemand.py."""

    name: str
    dtype: ValueType
    inputs: tuple[str, ...]
    compute: Callable[..., Any]
    defined_at: str


class ViewSpec(msgspec.Struct, frozen=True):
    """A feature view as compiled from its definition: what stores and readers need of it.

    join_keys: in declared order (Feast's key bytes sort them by name themselves). fields: in declared order; every values
    tuple has this order. spec_hash: hash of everything that decides the values; another hash means another content.
    on_demand: features computed at read, which no store knows. ttl_us: age of the newest row at which a reader is told OUTSIDE_MAX_AGE; 0 means never.
    """

    name: str
    join_keys: tuple[Field, ...]
    fields: tuple[Field, ...]
    spec_hash: str
    ttl_us: int = 0
    description: str = ""
    on_demand: tuple[OnDemand, ...] = ()

    @property
    def draft(self) -> ViewSpec:
        """The same view under its draft's name."""
        return msgspec.structs.replace(self, name=self.name + DRAFT)

    @property
    def is_draft(self) -> bool:
        return self.name.endswith(DRAFT)

    @property
    def shown(self) -> str:
        """The name that people gave it."""
        return self.name.removesuffix(DRAFT)


EntityKey: TypeAlias = tuple[FeatureValue, ...]
"""Join key values in the declared order of ViewSpec.join_keys."""
