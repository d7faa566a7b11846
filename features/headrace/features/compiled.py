"""A feature view as the kernel runs it: columns by index, windows in microseconds, one hash over all that decides the values.

Made by definitions.py from what a user wrote; plain data, so that the same definition gives the same canonical JSON on every machine.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from headrace.features.predicate import Predicate
from headrace.features.spec import Field, ValueType, ViewSpec
from headrace.features.window import Window

FORMAT = 2
"""Part of the hash: raised when the kernel would compute or store something else from the same definition."""

LATEST = "latest"
COUNT = "count"
SUM = "sum"
MEAN = "mean"
VARIANCE = "variance"
STDDEV = "stddev"
MIN = "min"
MAX = "max"
LAST = "last"
DISTINCT = "distinct"
TOP_K = "top_k"
QUANTILE = "quantile"
SINCE = "time_since_last"
RATIO = "ratio"


class FeaturePlan(msgspec.Struct, frozen=True):
    """One feature. column: index into CompiledView.columns, -1 for none. window None: over all live rows.

    where: only rows for which it is true count for the feature. size: n of last, k of top_k. level: of a quantile, as decimal text.
    parts: what a ratio divides; it has nothing else of its own.
    """

    name: str
    dtype: ValueType
    kind: str
    column: int
    window: Window | None
    where: Predicate | None = None
    size: int = 0
    level: str = ""
    parts: tuple[FeaturePlan, ...] = ()

    def leaves(self) -> tuple[FeaturePlan, ...]:
        """Itself, or its parts."""
        return self.parts or (self,)

    def plain(self) -> list[Any]:
        """All that decides its values, in JSON types; what isn't asked for is left out, so that older definitions keep their hash."""
        window = None if self.window is None else [self.window.length_us, self.window.hop_us]
        more: dict[str, Any] = {} if self.where is None else {"where": self.where.plain()}
        if self.size:
            more["size"] = self.size
        if self.level:
            more["level"] = self.level
        if self.parts:
            more["parts"] = [[part.dtype.value, part.plain()] for part in self.parts]
        return [self.kind, self.column, window, *([more] if more else [])]


class EventsPlan(msgspec.Struct, frozen=True):
    """Which events are rows. names: none for all of these kinds. source None: of any source."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    source: str | None


class CompiledView(msgspec.Struct, frozen=True):
    """All that the kernel needs of a view.

    columns: every column of the table the view reads, sorted; a row's values tuple has this order. entity: index and type of each join
    key's column, in the order of spec.join_keys. row_key: indexes of the declared primary key columns; empty means the log's own.
    event_time: index, or -1 for the commit time. source None: the table of any source. events: a view over events has these in place of a
    table; ``table`` then says them for people.
    """

    spec: ViewSpec
    table: str
    source: str | None
    columns: tuple[str, ...]
    row_key: tuple[int, ...]
    entity: tuple[tuple[int, ValueType], ...]
    event_time: int
    where: Predicate | None
    features: tuple[FeaturePlan, ...]
    defined_at: str
    events: EventsPlan | None = None


def canonical_json(
    name: str,
    join_keys: tuple[Field, ...],
    fields: tuple[Field, ...],
    view: CompiledView,
) -> bytes:
    """Everything that decides the values of a view, as one JSON text: same text, same content.

    ttl and description are left out: they change what a reader is told, not what is stored.
    """
    plain = {
        "format": FORMAT,
        "name": name,
        "join_keys": [[field.name, field.dtype.value] for field in join_keys],
        "fields": [[field.name, field.dtype.value] for field in fields],
        "table": view.table,
        "source": view.source,
        "columns": view.columns,
        "row_key": view.row_key,
        "entity": [index for index, _ in view.entity],
        "event_time": view.event_time,
        "where": None if view.where is None else view.where.plain(),
        "features": [plan.plain() for plan in view.features],
    }
    if view.events is not None:  # else left out: older definitions keep their hash
        plain["events"] = [view.events.names, view.events.kinds, view.events.source]
    return msgspec.json.encode(plain, order="deterministic")


def spec_hash(canonical: bytes) -> str:
    """16 hex digits."""
    return hashlib.sha256(canonical).hexdigest()[:16]
