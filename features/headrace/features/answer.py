"""How values, statuses and keys are spelled for readers, over HTTP and on the command line alike.

Follows the JSON of Feast 0.67's feature server. Pure: the time of the reader is an argument.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from headrace.cdc.event import Value
from headrace.features.ondemand import INVALID, fields_of
from headrace.features.spec import EntityKey, FeatureValue, Field, ValueType, ViewSpec
from headrace.features.store.base import FeatureRow
from headrace.features.values import converter

Status: TypeAlias = Literal["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE", "INVALID"]

_AS_IT_IS: Final = frozenset({ValueType.INT32, ValueType.INT64, ValueType.STRING, ValueType.BOOL})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode: Final = msgspec.json.Encoder().encode


def key_part(name: str, dtype: ValueType, value: Value) -> FeatureValue:
    """One join key's value as a reader sends it: base64 for bytes, whole seconds or a timestamp's text for a time.

    Raises ValueError with a sentence that names the join key, never its value.
    """
    if dtype is ValueType.BYTES and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except ValueError:
            raise ValueError(f"{name} must be base64 text") from None
    if dtype is ValueType.UNIX_TIMESTAMP and isinstance(value, int):
        return value * 1_000_000
    try:
        part = converter(dtype)(value)
    except ValueError:
        part = None
    if part is None:
        raise ValueError(f"{name} must be of type {dtype.value}")
    return part


def key_of(view: ViewSpec, texts: Mapping[str, str]) -> EntityKey:
    """The entity key that ``name=value`` texts give. Raises ValueError with a sentence: unknown, missing, or of another type."""
    known = [field.name for field in view.join_keys]
    for name in texts:
        if name not in known:
            raise ValueError(f"{name} is unknown: view {view.name} is read by {', '.join(known)}")
    for name in known:
        if name not in texts:
            raise ValueError(f"{name} is missing: view {view.name} is read by {', '.join(known)}")
    return tuple([key_part(field.name, field.dtype, texts[field.name]) for field in view.join_keys])


def entity_answer(view: ViewSpec, key: EntityKey, row: FeatureRow | None, now_us: int) -> dict[str, Any]:
    """One entity's row of a view, all features, in JSON types; row None: status NOT_FOUND and no features."""
    body: dict[str, Any] = {
        "view": view.name,
        "entity": {field.name: readable(part) for field, part in zip(view.join_keys, key, strict=True)},
    }
    if row is None:
        return {**body, "status": "NOT_FOUND"}
    is_outside = _is_outside(view, row, now_us)
    fields = fields_of(view)
    values = (None,) * len(fields) if is_outside else row.values
    of_row: Status = "OUTSIDE_MAX_AGE" if is_outside else "PRESENT"
    return {
        **body,
        "status": of_row,
        "features": {
            field.name: _spelt(value, _spelling(field.dtype, is_wire=False))
            for field, value in zip(fields, values, strict=True)
        },
        "statuses": {field.name: _status(of_row, value) for field, value in zip(fields, values, strict=True)},
        "event_timestamp": timestamp(row.event_time_us),
        "freshness_ms": round((now_us - row.event_time_us) / 1000, 3),
    }


class Column(msgspec.Struct, gc=False):
    """What Feast answers for one join key or feature: of each entity its value, and ready JSON of its status and time."""

    values: Sequence[Any]
    statuses: msgspec.Raw
    event_timestamps: msgspec.Raw


def key_column(values: Sequence[Value]) -> Column:
    """A join key among the answered columns, as Feast has it."""
    count = len(values)
    return Column(values, _raw(["PRESENT"] * count), _raw([timestamp(0)] * count))


class Columns:
    """Spells some features of a view, as Feast's server answers them; made once for many requests. fields: in the order of a row's values."""

    def __init__(self, view: ViewSpec, fields: Sequence[Field]) -> None:
        self._view = view
        self._spells = tuple([_spelling(field.dtype, is_wire=True) for field in fields])
        self._nothing = (None,) * len(fields)

    def of(self, rows: Sequence[FeatureRow | None], now_us: int) -> list[Column]:
        """One column a feature. They share what they have in common: the times, and the statuses where every value is there."""
        view = self._view
        times: list[str] = []
        of_rows: list[Status] = []
        shown: list[tuple[Any, ...]] = []
        for row in rows:
            if row is None or _is_outside(view, row, now_us):
                of_rows.append("NOT_FOUND" if row is None else "OUTSIDE_MAX_AGE")
                shown.append(self._nothing)
            else:
                of_rows.append("PRESENT")
                shown.append(row.values)
            times.append(timestamp(0 if row is None else row.event_time_us))
        raw_times, raw_statuses = _raw(times), _raw(of_rows)
        given: list[tuple[Any, ...]] = list(zip(*shown, strict=True)) if rows else [()] * len(self._spells)
        answered: list[Column] = []
        for values, spell in zip(given, self._spells, strict=True):
            if None in values or INVALID in values:
                statuses = [_status(status, value) for status, value in zip(of_rows, values, strict=True)]
                spelt = [_spelt(value, spell) for value in values]
                answered.append(Column(spelt, _raw(statuses), raw_times))
            elif spell is None:
                answered.append(Column(values, raw_statuses, raw_times))
            else:
                answered.append(Column([spell(value) for value in values], raw_statuses, raw_times))
        return answered


def _raw(texts: Sequence[str]) -> msgspec.Raw:
    return msgspec.Raw(_encode(texts))


def _spelt(value: Any, spell: Callable[[Any], Any] | None) -> Any:
    if value is None or value is INVALID:
        return None
    return value if spell is None else spell(value)


def _status(of_row: Status, value: Any) -> Status:
    if of_row != "PRESENT" or (value is not None and value is not INVALID):
        return of_row
    return "NULL_VALUE" if value is None else "INVALID"


def _is_outside(view: ViewSpec, row: FeatureRow, now_us: int) -> bool:
    return view.ttl_us > 0 and now_us - row.event_time_us > view.ttl_us


def _spelling(dtype: ValueType, *, is_wire: bool) -> Callable[[Any], Any] | None:
    """What makes JSON of a value; None where JSON takes it as it is."""
    if dtype is ValueType.UNIX_TIMESTAMP:
        return _whole_seconds if is_wire else None
    if dtype is ValueType.FLOAT64 or dtype is ValueType.FLOAT32:
        return _real
    return None if dtype in _AS_IT_IS else readable


def _whole_seconds(value: int) -> int:
    return value // 1_000_000


def _real(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def readable(value: FeatureValue) -> Any:
    """A value in JSON's types: base64 for bytes, a list for a tuple; NaN and the infinities as text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return [readable(item) for item in value]
    return _real(value) if isinstance(value, float) else value


def timestamp(time_us: int) -> str:
    """RFC 3339 in UTC, with microseconds where they aren't zero, as protobuf's JSON has it."""
    moment = _EPOCH + timedelta(microseconds=time_us)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S") if moment.year >= 1000 else moment.isoformat()[:19]
    return f"{text}.{moment.microsecond:06d}Z" if moment.microsecond else f"{text}Z"
