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

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from headrace.features.blame import caller, check_name, is_a, type_name, wrong
from headrace.features.compiled import CompiledView, EventsPlan, FeaturePlan, canonical_json, spec_hash
from headrace.features.eventrows import WORDS
from headrace.features.functions import Draft, Feature
from headrace.features.ondemand import check_inputs
from headrace.features.predicate import Predicate
from headrace.features.spec import Field, OnDemand, ValueType, ViewSpec
from headrace.features.window import span_us

Int32: Final = ValueType.INT32
Int64: Final = ValueType.INT64
Float32: Final = ValueType.FLOAT32
Float64: Final = ValueType.FLOAT64
String: Final = ValueType.STRING
Bool: Final = ValueType.BOOL
Bytes: Final = ValueType.BYTES
UnixTimestamp: Final = ValueType.UNIX_TIMESTAMP
Int64List: Final = ValueType.INT64_LIST
Float64List: Final = ValueType.FLOAT64_LIST
StringList: Final = ValueType.STRING_LIST

EVENT_KINDS: Final = ("track", "page", "screen", "identify", "group", "record")

JOIN_KEY_TYPES: Final = (Int32, Int64, String, Bytes, UnixTimestamp)
"""Feast's entity key bytes (version 3) know no others."""


class Entity:
    """What features describe. join_keys: name and type of each part of its key, in order."""

    def __init__(self, name: str, *, join_keys: Mapping[str, ValueType], description: str = "") -> None:
        where = caller()
        who = f"entity {name!r}"
        check_name(name, where, who)
        if not join_keys:
            raise wrong(where, who, "needs at least one join key, such as join_keys={'customer_id': Int64}")
        for key, dtype in join_keys.items():
            check_name(key, where, f"{who}, join key {key!r}")
            if dtype not in JOIN_KEY_TYPES:
                known = ", ".join(kind.value for kind in JOIN_KEY_TYPES)
                raise wrong(
                    where,
                    f"{who}, join key {key!r}",
                    f"type {type_name(dtype)} can't be a join key; these can: {known}",
                )
        self.name = name
        self.join_keys = tuple([Field(key, dtype) for key, dtype in join_keys.items()])
        self.description = description

    def join_keys_names(self) -> list[str]:
        """In declared order."""
        return [key.name for key in self.join_keys]


class Table:
    """A table whose rows the log carries.

    name: ``schema.table`` as the server names it (no quotes). key: the primary key column or columns; only needed when the table
    has no primary key of its own but a unique replica identity. source: name under ``sources:``, when two sources have the same table.
    """

    def __init__(self, name: str, *, key: str | Sequence[str] | None = None, source: str | None = None) -> None:
        where = caller()
        schema, dot, table = name.partition(".")
        if not (schema and dot and table):
            raise wrong(
                where,
                f"table {name!r}",
                f'must be written as schema.table, such as "public.{name.strip(".") or "orders"}"',
            )
        self.name = name
        self.key = (key,) if isinstance(key, str) else tuple(key or ())
        self.source = source


class Events:
    """Events that applications send, by SDKs and webhooks, or that come back from others; each is a row that never changes.

    names: as the log has them; none for all of the kind. kind: track, page, screen, identify, group or record, or several. source: name
    under ``sources:``. A view's columns are then properties (``total``, ``product.price``), ``event.user_id`` and the like, ``context.PATH``.
    """

    def __init__(self, *names: str, kind: str | Sequence[str] = "track", source: str | None = None) -> None:
        where = caller()
        kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        who = f"events {', '.join(map(repr, names)) or repr(kinds)}"
        unknown = [each for each in kinds if each not in EVENT_KINDS]
        if unknown or not kinds:
            raise wrong(
                where, who, f"kind {', '.join(map(repr, unknown)) or 'is missing'}: must be of {', '.join(EVENT_KINDS)}"
            )
        if any(not is_a(name, str) or not name for name in names):
            raise wrong(where, who, 'names must be texts, such as Events("Product Viewed")')
        self.names = tuple(sorted(set(names)))
        self.kinds = tuple(sorted(set(kinds)))
        self.source = source

    def __str__(self) -> str:
        return " or ".join(self.names) or f"all {' and '.join(self.kinds)} events"


class FeatureView:
    """A named group of features of one entity, computed from the rows of one table, or from events.

    Over events entity_key says whose each is (``event.key`` is its customer), and one happened when its sender says. entity_key: join key -> column of the table; a join key that isn't named stands in the column of its own name. event_time: timestamp
    column that says when a row happened; without it (or where it is NULL) the commit time of the row's last change. where: only rows for
    which it is true count. ttl: age of an entity's newest event after which readers are told OUTSIDE_MAX_AGE; None: never.
    on_demand: features made by on_demand(...), computed from the others at read.
    """

    def __init__(
        self,
        name: str,
        *,
        entity: Entity,
        source: Table | Events,
        features: Iterable[Feature],
        entity_key: Mapping[str, str] | None = None,
        event_time: str | None = None,
        where: Predicate | None = None,
        ttl: str | None = None,
        description: str = "",
        on_demand: Iterable[OnDemand] = (),
    ) -> None:
        self.defined_at = caller()
        self.name = name
        self._who = f"view {name!r}"
        check_name(name, self.defined_at, self._who)
        self._require(is_a(entity, Entity), "entity must be an Entity")
        self._require(
            is_a(source, Table) or is_a(source, Events),
            'source must be a Table, such as Table("public.orders"), or Events, such as Events("Product Viewed")',
        )
        self._require(
            where is None or is_a(where, Predicate), 'where must be a filter, such as col("status") == "paid"'
        )
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
                raise wrong(self.defined_at, self._who, str(error)) from None
        self.entity_key = self._entity_key(dict(entity_key or {}))
        self._check_features()
        self.on_demand = tuple(on_demand)
        for computed in self.on_demand:
            self._require(is_a(computed, OnDemand), "on_demand must hold features made by on_demand(...)")
        stored = [draft.name for feature in self.features for draft in feature.drafts]
        check_inputs(name, self.on_demand, stored, entity.join_keys_names())

    def compile(self) -> CompiledView:
        """The view as the kernel runs it, with its spec."""
        drafts = [draft for feature in self.features for draft in feature.drafts]
        events = None
        row_key: tuple[str, ...] = ()
        if isinstance(self.source, Events):
            events = EventsPlan(self.source.names, self.source.kinds, self.source.source)
        else:
            row_key = self.source.key
        reads = set(self.entity_key.values()) | set(row_key)
        for draft in drafts:
            reads |= draft.columns()
        if self.event_time is not None:
            reads.add(self.event_time)
        if self.where is not None:
            reads |= self.where.columns()
        columns = tuple(sorted(reads))
        index = {column: place for place, column in enumerate(columns)}
        plans = tuple([_plan(draft, index) for draft in drafts])
        fields = tuple([Field(plan.name, plan.dtype) for plan in plans])
        join_keys = self.entity.join_keys
        unhashed = CompiledView(
            spec=ViewSpec(self.name, join_keys, fields, "", self.ttl_us, self.description, self.on_demand),
            table=self.source.name if isinstance(self.source, Table) else str(self.source),
            source=self.source.source,
            columns=columns,
            row_key=tuple([index[column] for column in row_key]),
            entity=tuple([(index[self.entity_key[key.name]], key.dtype) for key in join_keys]),
            event_time=-1 if self.event_time is None else index[self.event_time],
            where=self.where,
            features=plans,
            defined_at=self.defined_at,
            events=events,
        )
        if events is not None:
            self._check_columns(columns)
        digest = spec_hash(canonical_json(self.name, join_keys, fields, unhashed))
        return msgspec.structs.replace(unhashed, spec=msgspec.structs.replace(unhashed.spec, spec_hash=digest))

    def _entity_key(self, given: dict[str, str]) -> dict[str, str]:
        names = [key.name for key in self.entity.join_keys]
        for key in given:
            self._require(
                key in names,
                f"entity_key names {key!r}, which is no join key of entity {self.entity.name!r}; its join keys: {', '.join(names)}",
            )
        for key, column in given.items():
            self._require(bool(column) and is_a(column, str), f"join key {key!r} needs the name of a column")
        self._require(
            not is_a(self.source, Events) or all(key in given for key in names),
            f'needs entity_key: over events say whose each is, such as entity_key={{"{names[0]}": "event.key"}} for the event\'s customer',
        )
        return {key: given.get(key, key) for key in names}

    def _check_columns(self, columns: Sequence[str]) -> None:
        for column in columns:
            root, _, rest = column.partition(".")
            self._require(
                root != "event" or rest in WORDS,
                f"column {column!r} is nothing of an event; known: {', '.join(f'event.{word}' for word in WORDS)}",
            )
            self._require(
                all(column.split(".")) and column != "context",
                f"column {column!r} is no path; write names with dots between them, such as product.price or context.page.path",
            )

    def _check_features(self) -> None:
        self._require(
            bool(self.features), "has no features: give at least one, such as latest(...), count(...) or sum_(...)"
        )
        taken = {key.name: f"join key {key.name!r}" for key in self.entity.join_keys}
        for feature in self.features:
            self._require(
                is_a(feature, Feature),
                "features must be made by functions such as latest(...), count(...) and sum_(...)",
            )
            for draft in feature.drafts:
                name = draft.name
                if name in taken:
                    what = f"is already the name of {taken[name]}: give one of them another name="
                    raise wrong(feature.defined_at, f"{self._who}, feature {name!r}", what)
                taken[name] = f"another feature ({feature.defined_at})"

    def _require(self, holds: bool, reason: str) -> None:
        if not holds:
            raise wrong(self.defined_at, self._who, reason)


def _plan(draft: Draft, index: Mapping[str, int]) -> FeaturePlan:
    """The feature by the columns' indexes."""
    return FeaturePlan(
        draft.name,
        draft.dtype,
        draft.kind,
        -1 if draft.column is None else index[draft.column],
        draft.window,
        draft.where,
        draft.size,
        draft.level,
        tuple([_plan(part, index) for part in draft.parts]),
    )
