"""What users write: entities, tables and feature views, in Feast's words.

::

    from headrace.features import Entity, FeatureView, Int64, String, Table, col, count, latest, sum_

    customer = Entity("customer", join_keys={"customer_id": Int64})

    customer_orders = FeatureView(
        "customer_orders",
        entity=customer,
        source=Table("public.orders"),
        event_time="created_at",
        where=col("status") != "cancelled",
        features=[count(over=["1h", "1d"]), sum_("total", over="1d"), latest("status", String)],
    )

Everything is checked where it is written: a mistake raises DefinitionError with the file and line of the user's own call. Nothing here
reads a table or a store; definitions.compile gives what the kernel runs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import msgspec

from headrace.cdc.errors import DefinitionError
from headrace.features.compiled import COUNT, LATEST, SUM, CompiledView, FeaturePlan, canonical_json, spec_hash
from headrace.features.predicate import Predicate
from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.window import Window, make_window, span_us

Int32: Final = ValueType.INT32
Int64: Final = ValueType.INT64
Float32: Final = ValueType.FLOAT32
Float64: Final = ValueType.FLOAT64
String: Final = ValueType.STRING
Bool: Final = ValueType.BOOL
Bytes: Final = ValueType.BYTES
UnixTimestamp: Final = ValueType.UNIX_TIMESTAMP

JOIN_KEY_TYPES: Final = (Int32, Int64, String, Bytes, UnixTimestamp)
"""Feast's entity key bytes (version 3) know no others."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_FOLDER = str(Path(__file__).parent)


class Entity:
    """What features describe. join_keys: name and type of each part of its key, in order."""

    def __init__(self, name: str, *, join_keys: Mapping[str, ValueType], description: str = "") -> None:
        where = _caller()
        who = f"entity {name!r}"
        _check_name(name, where, who)
        if not join_keys:
            raise _wrong(where, who, "needs at least one join key, such as join_keys={'customer_id': Int64}")
        for key, dtype in join_keys.items():
            _check_name(key, where, f"{who}, join key {key!r}")
            if dtype not in JOIN_KEY_TYPES:
                known = ", ".join(kind.value for kind in JOIN_KEY_TYPES)
                raise _wrong(
                    where,
                    f"{who}, join key {key!r}",
                    f"type {_type_name(dtype)} can't be a join key; these can: {known}",
                )
        self.name = name
        self.join_keys = tuple([Field(key, dtype) for key, dtype in join_keys.items()])
        self.description = description


class Table:
    """A table whose rows the log carries.

    name: ``schema.table`` as the server names it (no quotes). key: the primary key column or columns; only needed when the table
    has no primary key of its own but a unique replica identity. source: name under ``sources:``, when two sources have the same table.
    """

    def __init__(self, name: str, *, key: str | Sequence[str] | None = None, source: str | None = None) -> None:
        where = _caller()
        schema, dot, table = name.partition(".")
        if not (schema and dot and table):
            raise _wrong(
                where,
                f"table {name!r}",
                f'must be written as schema.table, such as "public.{name.strip(".") or "orders"}"',
            )
        self.name = name
        self.key = (key,) if isinstance(key, str) else tuple(key or ())
        self.source = source


class Feature(msgspec.Struct, frozen=True):
    """One or several features of one aggregate, made by latest, count and sum_; ``windows`` holds (name, window)."""

    kind: str
    column: str | None
    dtype: ValueType
    windows: tuple[tuple[str, Window | None], ...]
    defined_at: str


def latest(column: str, dtype: ValueType = ValueType.STRING, *, name: str | None = None) -> Feature:
    """The column of the entity's newest row: by event time, then by order of change. Named like the column by default."""
    where = _caller()
    found = name or column
    _check_name(found, where, f"feature {found!r}")
    _check_type(dtype, where, found)
    return Feature(LATEST, column, dtype, ((found, None),), where)


def count(
    column: str | None = None,
    *,
    over: str | Sequence[str] | None = None,
    hop: str | None = None,
    name: str | None = None,
) -> Feature:
    """Rows of the entity, or those whose ``column`` is not NULL, as Int64.

    over: a window such as ``"1h"``, several, or None for all live rows. hop: by how much the window moves; by default about a sixtieth of
    it. name: of the feature; with several windows each gets its window appended. Default: ``count_1h``, ``<column>_count_1h``.
    """
    stem = name or (f"{column}_count" if column else "count")
    return _windowed(COUNT, column, ValueType.INT64, over, hop, stem, is_named=name is not None)


def sum_(
    column: str,
    dtype: ValueType = ValueType.FLOAT64,
    *,
    over: str | Sequence[str] | None = None,
    hop: str | None = None,
    name: str | None = None,
) -> Feature:
    """Exact sum of a numeric column over the entity's rows; NULLs add nothing, the sum of nothing is 0.

    dtype: Float64 (any numeric column; rounded once, at the end) or Int64 (whole numbers; beyond the range it reads as null). over, hop,
    name: as for count; default name ``<column>_sum_1h``.
    """
    where = _caller()
    stem = name or f"{column}_sum"
    if dtype not in (ValueType.FLOAT64, ValueType.INT64):
        raise _wrong(where, f"feature {stem!r}", f"a sum is Float64 or Int64, not {_type_name(dtype)}")
    return _windowed(SUM, column, dtype, over, hop, stem, is_named=name is not None)


class FeatureView:
    """A named group of features of one entity, computed from the rows of one table.

    entity_key: join key -> column of the table; a join key that isn't named stands in the column of its own name. event_time: timestamp
    column that says when a row happened; without it (or where it is NULL) the commit time of the row's last change. where: only rows for
    which it is true count. ttl: age of an entity's newest event after which readers are told OUTSIDE_MAX_AGE; None: never.
    """

    def __init__(
        self,
        name: str,
        *,
        entity: Entity,
        source: Table,
        features: Iterable[Feature],
        entity_key: Mapping[str, str] | None = None,
        event_time: str | None = None,
        where: Predicate | None = None,
        ttl: str | None = None,
        description: str = "",
    ) -> None:
        self.defined_at = _caller()
        self.name = name
        self._who = f"view {name!r}"
        _check_name(name, self.defined_at, self._who)
        self._require(_is(entity, Entity), "entity must be an Entity")
        self._require(_is(source, Table), 'source must be a Table, such as Table("public.orders")')
        self._require(where is None or _is(where, Predicate), 'where must be a filter, such as col("status") == "paid"')
        self.entity = entity
        self.source = source
        self.features = tuple(features)
        self.event_time = event_time
        self.where = where
        self.description = description
        self.ttl_us = 0
        if ttl is not None:
            try:
                self.ttl_us = span_us(ttl, "ttl")
            except ValueError as error:
                raise _wrong(self.defined_at, self._who, str(error)) from None
        self.entity_key = self._entity_key(dict(entity_key or {}))
        self._check_features()

    def compile(self) -> CompiledView:
        """The view as the kernel runs it, with its spec."""
        reads = set(self.entity_key.values()) | set(self.source.key)
        reads |= {feature.column for feature in self.features if feature.column is not None}
        if self.event_time is not None:
            reads.add(self.event_time)
        if self.where is not None:
            reads |= self.where.columns()
        columns = tuple(sorted(reads))
        index = {column: place for place, column in enumerate(columns)}
        plans = tuple(
            [
                FeaturePlan(
                    name, feature.dtype, feature.kind, -1 if feature.column is None else index[feature.column], window
                )
                for feature in self.features
                for name, window in feature.windows
            ]
        )
        fields = tuple([Field(plan.name, plan.dtype) for plan in plans])
        join_keys = self.entity.join_keys
        draft = CompiledView(
            spec=ViewSpec(self.name, join_keys, fields, "", self.ttl_us, self.description),
            table=self.source.name,
            source=self.source.source,
            columns=columns,
            row_key=tuple([index[column] for column in self.source.key]),
            entity=tuple([(index[self.entity_key[key.name]], key.dtype) for key in join_keys]),
            event_time=-1 if self.event_time is None else index[self.event_time],
            where=self.where,
            features=plans,
            defined_at=self.defined_at,
        )
        digest = spec_hash(canonical_json(self.name, join_keys, fields, draft))
        return msgspec.structs.replace(draft, spec=msgspec.structs.replace(draft.spec, spec_hash=digest))

    def _entity_key(self, given: dict[str, str]) -> dict[str, str]:
        names = [key.name for key in self.entity.join_keys]
        for key in given:
            self._require(
                key in names,
                f"entity_key names {key!r}, which is no join key of entity {self.entity.name!r}; its join keys: {', '.join(names)}",
            )
        for key, column in given.items():
            self._require(bool(column) and _is(column, str), f"join key {key!r} needs the name of a column")
        return {key: given.get(key, key) for key in names}

    def _check_features(self) -> None:
        self._require(bool(self.features), "has no features: give at least one of latest(...), count(...), sum_(...)")
        taken = {key.name: f"join key {key.name!r}" for key in self.entity.join_keys}
        for feature in self.features:
            self._require(_is(feature, Feature), "features must be made by latest(...), count(...), sum_(...)")
            for name, _ in feature.windows:
                if name in taken:
                    what = f"is already the name of {taken[name]}: give one of them another name="
                    raise _wrong(feature.defined_at, f"{self._who}, feature {name!r}", what)
                taken[name] = f"another feature ({feature.defined_at})"

    def _require(self, holds: bool, reason: str) -> None:
        if not holds:
            raise _wrong(self.defined_at, self._who, reason)


def _windowed(
    kind: str,
    column: str | None,
    dtype: ValueType,
    over: str | Sequence[str] | None,
    hop: str | None,
    stem: str,
    *,
    is_named: bool,
) -> Feature:
    where = _caller()
    _check_name(stem, where, f"feature {stem!r}")
    if over is None:
        if hop is not None:
            raise _wrong(where, f"feature {stem!r}", "has a hop but no window: give over= as well")
        return Feature(kind, column, dtype, ((stem, None),), where)
    # What is neither text nor several is refused as no window below.
    texts = (cast("str", over),) if isinstance(over, str) or not _is(over, Iterable) else tuple(over)
    if not texts:
        raise _wrong(
            where,
            f"feature {stem!r}",
            'over= names no window: give one such as "1h", or leave it out for all live rows',
        )
    windows: list[tuple[str, Window | None]] = []
    for text in texts:
        name = stem if is_named and len(texts) == 1 else f"{stem}_{re.sub('[^A-Za-z0-9]+', '_', str(text)).strip('_')}"
        try:
            windows.append((name, make_window(text, hop)))
        except ValueError as error:
            raise _wrong(where, f"feature {name!r}", str(error)) from None
    return Feature(kind, column, dtype, tuple(windows), where)


def _check_name(name: str, where: str, who: str) -> None:
    if not _is(name, str) or _NAME.fullmatch(name) is None or "__" in name:
        # Feast joins view and feature by two underscores in full names.
        raise _wrong(
            where, who, "must be letters, digits and single underscores, not starting with a digit; give another name"
        )


def _check_type(dtype: ValueType, where: str, feature: str) -> None:
    if not _is(dtype, ValueType):
        known = ", ".join(kind.value for kind in ValueType)
        raise _wrong(where, f"feature {feature!r}", f"unsupported type {_type_name(dtype)}; known: {known}")


def _is(value: object, kind: type) -> bool:
    """isinstance, for what type checkers believe already: users' files aren't always type-checked."""
    return isinstance(value, kind)


def _type_name(dtype: object) -> str:
    return dtype.value if isinstance(dtype, ValueType) else repr(dtype)


def _wrong(where: str, who: str, reason: str) -> DefinitionError:
    return DefinitionError(f"{where}: {who} {reason}" if not reason[0].isupper() else f"{where}: {who}: {reason}")


def _caller() -> str:
    """``file:line`` of the nearest frame outside this folder: the user's own line."""
    frame = inspect.currentframe()
    assert frame is not None
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_FOLDER):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
