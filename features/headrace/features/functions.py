"""What may stand in a view's ``features=[...]``: one function an aggregate, each giving one feature or several.

Everything is checked where it is written. Options shared by all aggregates, given by keyword:

over: a window such as ``"1h"``, several of them, or None for all live rows.
hop: by how much the window moves; by default about a sixtieth of it.
name: of the feature. With several windows, or with groups, each gets its group and its window appended.
where: only rows for which this filter is true count for the feature, besides the view's own ``where``.
by, groups: one feature for each of these values of the column ``by``; groups is a list of them, or name -> value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, TypedDict, Unpack, cast

import msgspec

from headrace.features.blame import caller, check_name, is_a, type_name, wrong
from headrace.features.compiled import (
    COUNT,
    DISTINCT,
    LAST,
    LATEST,
    MAX,
    MEAN,
    MIN,
    QUANTILE,
    RATIO,
    SINCE,
    STDDEV,
    SUM,
    TOP_K,
    VARIANCE,
)
from headrace.features.predicate import Literal, Predicate, col
from headrace.features.spec import LISTS, SCALARS, ValueType
from headrace.features.window import Window, make_window


class Options(TypedDict, total=False):
    """See the module."""

    over: str | Sequence[str] | None
    hop: str | None
    name: str | None
    where: Predicate | None
    by: str | None
    groups: Sequence[Literal] | Mapping[str, Literal] | None


MOST_SIZE: Final = 100
"""Longest list that last and top_k give."""

_ORDERED: Final = (ValueType.INT32, ValueType.INT64, ValueType.FLOAT64, ValueType.STRING, ValueType.UNIX_TIMESTAMP)
_SECOND_US: Final = 1_000_000

_OPTIONS: Final = ("over", "hop", "name", "where", "by", "groups")


class Draft(msgspec.Struct, frozen=True):
    """One feature as written: columns by name. window None: over all live rows. suffix: its group and window, as in names.

    where, size, level, parts: as in compiled.FeaturePlan.
    """

    name: str
    dtype: ValueType
    kind: str
    column: str | None
    window: Window | None
    where: Predicate | None = None
    suffix: str = ""
    size: int = 0
    level: str = ""
    parts: tuple[Draft, ...] = ()

    def columns(self) -> set[str]:
        """Every column that it reads."""
        found: set[str] = set() if self.column is None else {self.column}
        if self.where is not None:
            found |= self.where.columns()
        for part in self.parts:
            found |= part.columns()
        return found


class Feature(msgspec.Struct, frozen=True):
    """What one call of a function of this module asks for: one feature, or one a window and group."""

    drafts: tuple[Draft, ...]
    defined_at: str


def latest(column: str, dtype: ValueType = ValueType.STRING, *, name: str | None = None) -> Feature:
    """The column of the entity's newest row: by event time, then by order of change. Named like the column by default."""
    where = caller()
    found = name or column
    check_name(found, where, f"feature {found!r}")
    _check_type(dtype, SCALARS, where, found)
    return Feature((Draft(found, dtype, LATEST, column, None),), where)


def count(column: str | None = None, **options: Unpack[Options]) -> Feature:
    """Rows of the entity, or those whose ``column`` is not NULL, as Int64. Default names: ``count_1h``, ``<column>_count_1h``."""
    return _aggregate(COUNT, column, ValueType.INT64, f"{column}_count" if column else "count", options)


def sum_(column: str, dtype: ValueType = ValueType.FLOAT64, **options: Unpack[Options]) -> Feature:
    """Exact sum of a numeric column over the entity's rows; NULLs add nothing, the sum of nothing is 0.

    dtype: Float64 (any numeric column; rounded once, at the end) or Int64 (whole numbers; beyond the range it reads as null). Default
    name ``<column>_sum_1h``.
    """
    if dtype not in (ValueType.FLOAT64, ValueType.INT64):
        raise wrong(
            caller(),
            f"feature {_stem(f'{column}_sum', options)!r}",
            f"a sum is Float64 or Int64, not {type_name(dtype)}",
        )
    return _aggregate(SUM, column, dtype, f"{column}_sum", options)


def mean(column: str, **options: Unpack[Options]) -> Feature:
    """Exact sum of a numeric column over the number of its values, rounded once, as Float64; null without any value.

    Default name ``<column>_mean_1h``.
    """
    return _aggregate(MEAN, column, ValueType.FLOAT64, f"{column}_mean", options)


def variance(column: str, **options: Unpack[Options]) -> Feature:
    """Sample variance (SQL's ``var_samp``, divided by n - 1) of a numeric column, exact until it is rounded once, as Float64.

    Null below two values; NaN when one of them isn't finite. Default name ``<column>_variance_1h``.
    """
    return _aggregate(VARIANCE, column, ValueType.FLOAT64, f"{column}_variance", options)


def stddev(column: str, **options: Unpack[Options]) -> Feature:
    """Square root of ``variance``, rounded once from the exact value. Default name ``<column>_stddev_1h``."""
    return _aggregate(STDDEV, column, ValueType.FLOAT64, f"{column}_stddev", options)


def min_(column: str, dtype: ValueType = ValueType.FLOAT64, **options: Unpack[Options]) -> Feature:
    """Smallest value of a column; null without any. Text by code points, NaN after all numbers. Default name ``<column>_min_1h``."""
    _check_type(dtype, _ORDERED, caller(), _stem(f"{column}_min", options))
    return _aggregate(MIN, column, dtype, f"{column}_min", options)


def max_(column: str, dtype: ValueType = ValueType.FLOAT64, **options: Unpack[Options]) -> Feature:
    """Greatest value of a column; as min_. Default name ``<column>_max_1h``."""
    _check_type(dtype, _ORDERED, caller(), _stem(f"{column}_max", options))
    return _aggregate(MAX, column, dtype, f"{column}_max", options)


def last(column: str, size: int, dtype: ValueType = ValueType.STRING, **options: Unpack[Options]) -> Feature:
    """Values of the newest ``size`` rows (1 to 100), newest first, as a list of Int64, Float64 or String; NULLs are left out.

    Newest by event time, then by order of change. Without any value an empty list. Default name ``<column>_last_5_1h``.
    """
    return _listed(LAST, column, size, dtype, f"{column}_last_{size}", options)


def top_k(column: str, size: int, dtype: ValueType = ValueType.STRING, **options: Unpack[Options]) -> Feature:
    """The ``size`` most frequent values (1 to 100), most frequent first, equally frequent ones by value; as last otherwise.

    Null while a tile of the window has more than 4,096 different values. Default name ``<column>_top_5_1h``.
    """
    return _listed(TOP_K, column, size, dtype, f"{column}_top_{size}", options)


def distinct(column: str, dtype: ValueType = ValueType.STRING, **options: Unpack[Options]) -> Feature:
    """Number of different values that aren't NULL, as Int64; values are told apart as ``dtype``: as String, "1.0" is not "1".

    Exact while no tile of the window has met more than 1,024 of them, then by HyperLogLog (standard error 2.3 %), deletes included.
    Default name ``<column>_distinct_1h``.
    """
    _check_type(dtype, SCALARS, caller(), _stem(f"{column}_distinct", options))
    return _aggregate(DISTINCT, column, ValueType.INT64, f"{column}_distinct", options, level=dtype.value)


def quantile(column: str, level: float, **options: Unpack[Options]) -> Feature:
    """The value at rank ``floor(level * (n - 1))`` of n sorted values, within 1/128 of itself, as Float64; null without any.

    level: 0 to 1. Default name ``<column>_p95_1h`` for 0.95.
    """
    where = caller()
    percent = f"{Decimal(str(level)) * 100:f}" if is_a(level, float) or is_a(level, int) else "0"
    percent = percent.rstrip("0").rstrip(".") if "." in percent else percent
    stem = f"{column}_p{percent.replace('.', '_')}"
    if not (is_a(level, float) or is_a(level, int)) or not 0 <= level <= 1:
        raise wrong(
            where, f"feature {_stem(f'{column}_quantile', options)!r}", f"level {level!r} must be a number from 0 to 1"
        )
    return _aggregate(QUANTILE, column, ValueType.FLOAT64, stem, options, level=str(Decimal(str(level))))


def time_since_last(**options: Unpack[Options]) -> Feature:
    """Seconds since the entity's newest row, in whole hops, as Int64; null without any row in the window.

    Needs over=: while rows are in the window, the value is written at each hop, so choose a hop as long as its readers bear. Default name
    ``time_since_last_1h``.
    """
    feature = _aggregate(SINCE, None, ValueType.INT64, "time_since_last", options)
    for draft in feature.drafts:
        if draft.window is None:
            raise wrong(feature.defined_at, f"feature {draft.name!r}", 'needs a window: give over=, such as "7d"')
        if draft.window.hop_us % _SECOND_US:
            raise wrong(feature.defined_at, f"feature {draft.name!r}", "needs a hop of whole seconds: give hop=")
    return feature


def ratio(numerator: Feature, denominator: Feature, *, name: str) -> Feature:
    """One number over another, as Float64; null where one is null or the denominator is 0.

    Both: single features, or as many as each other, paired in order. They need not stand in the view themselves. name: of the
    feature; of several, each gets the group and window of its numerator.
    """
    where = caller()
    who = f"feature {name!r}"
    check_name(name, where, who)
    if not (is_a(numerator, Feature) and is_a(denominator, Feature)):
        raise wrong(where, who, "a ratio divides two features, such as ratio(count(...), count(...), name=...)")
    tops, bottoms = numerator.drafts, denominator.drafts
    if len(tops) != len(bottoms):
        raise wrong(where, who, f"its numerator has {len(tops)} windows and groups, its denominator {len(bottoms)}")
    for draft in (*tops, *bottoms):
        if (
            draft.parts
            or draft.dtype not in (ValueType.INT32, ValueType.INT64, ValueType.FLOAT64)
            or draft.kind == LATEST
        ):
            raise wrong(where, who, f"{draft.name!r} can't be divided: it needs an aggregate that is a number")
    drafts: list[Draft] = []
    for top, bottom in zip(tops, bottoms, strict=True):
        full = f"{name}_{top.suffix}" if len(tops) > 1 else name
        drafts.append(Draft(full, ValueType.FLOAT64, RATIO, None, None, None, top.suffix, parts=(top, bottom)))
    return Feature(tuple(drafts), where)


def _listed(kind: str, column: str, size: int, dtype: ValueType, stem: str, options: Options) -> Feature:
    where = caller()
    name = _stem(stem, options)
    _check_type(dtype, tuple(LISTS), where, name)
    if not is_a(size, int) or not 1 <= size <= MOST_SIZE:
        raise wrong(where, f"feature {name!r}", f"its size {size!r} must be a whole number from 1 to {MOST_SIZE}")
    return _aggregate(kind, column, LISTS[dtype], stem, options, size=size)


def _aggregate(kind: str, column: str | None, dtype: ValueType, stem: str, options: Options, **more: Any) -> Feature:
    """A draft for each group and window; more: what else the drafts of this kind carry."""
    where = caller()
    stem = _stem(stem, options)
    who = f"feature {stem!r}"
    check_name(stem, where, who)
    for option in options:
        if option not in _OPTIONS:
            raise wrong(where, who, f"has no option {option!r}; there are {', '.join(_OPTIONS)}")
    if column is not None and not (is_a(column, str) and column):
        raise wrong(where, who, "needs the name of a column")
    windows = _windows(options.get("over"), options.get("hop"), where, who)
    groups = _groups(options, where, who)
    drafts: list[Draft] = []
    for group, predicate in groups:
        for text, window in windows:
            # A name that was given stays as it is where it can.
            has_suffix = text and not (options.get("name") and len(windows) == 1)
            suffix = "_".join(part for part in (group, text) if part)
            name = "_".join(part for part in (stem, group, text if has_suffix else "") if part)
            check_name(name, where, f"feature {name!r}")
            drafts.append(Draft(name, dtype, kind, column, window, predicate, suffix, **more))
    return Feature(tuple(drafts), where)


def _stem(default: str, options: Options) -> str:
    return options.get("name") or default


def _windows(
    over: str | Sequence[str] | None, hop: str | None, where: str, who: str
) -> list[tuple[str, Window | None]]:
    """(text for a name, window) of each window asked."""
    if over is None:
        if hop is not None:
            raise wrong(where, who, "has a hop but no window: give over= as well")
        return [("", None)]
    # What is neither text nor several is refused as no window below.
    texts = (cast("str", over),) if isinstance(over, str) or not is_a(over, Iterable) else tuple(over)
    if not texts:
        raise wrong(where, who, 'over= names no window: give one such as "1h", or leave it out for all live rows')
    try:
        return [(re.sub("[^A-Za-z0-9]+", "_", str(text)).strip("_"), make_window(text, hop)) for text in texts]
    except ValueError as error:
        raise wrong(where, who, str(error)) from None


def _groups(options: Options, where: str, who: str) -> list[tuple[str, Predicate | None]]:
    """(text for a name, filter) of each group, filters joined with the feature's own."""
    own = options.get("where")
    if own is not None and not is_a(own, Predicate):
        raise wrong(where, who, 'where must be a filter, such as col("status") == "paid"')
    by, groups = options.get("by"), options.get("groups")
    if by is None and groups is None:
        return [("", own)]
    if by is None or not groups or isinstance(groups, str):
        raise wrong(where, who, 'by= and groups= go together: by="status", groups=["paid", "open"]')
    named: dict[str, Literal] = (
        dict(groups) if isinstance(groups, Mapping) else {_group_name(value): value for value in groups}
    )
    if len(named) < len(groups):
        raise wrong(where, who, 'two groups would have one name: give groups={"name": value, ...}')
    found: list[tuple[str, Predicate | None]] = []
    for name, value in named.items():
        check_name(name, where, f'{who}, group {value!r} (or give groups={{"name": value, ...}}): its name')
        try:
            predicate = col(by) == value
        except TypeError as error:
            raise wrong(where, who, f"groups: {error}") from None
        found.append((name, predicate if own is None else own & predicate))
    return found


def _group_name(value: Literal) -> str:
    if isinstance(value, (float, Decimal)):
        return str(value).replace(".", "_").replace("-", "minus_")
    text = re.sub("[^A-Za-z0-9]+", "_", str(value)).strip("_")
    return text if text[:1].isalpha() or not text else f"is_{text}"


def _check_type(dtype: ValueType, allowed: Sequence[ValueType], where: str, feature: str) -> None:
    if dtype not in allowed:
        known = ", ".join(kind.value for kind in allowed)
        raise wrong(where, f"feature {feature!r}", f"unsupported type {type_name(dtype)}; known: {known}")
