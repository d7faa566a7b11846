"""Training sets: what serving would have answered for each (entity, time), from the feature log, by DuckDB.

For a time t the row is the newest with event_timestamp <= t; among rows of one event_timestamp the one that was created last. A deleted row,
no row, and one whose newest event is older than the view's ttl at t give nulls, as the online store would have had none. Nothing is aggregated
here: values are passed through bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.cdc.errors import DefinitionError
from headrace.features.offline.pastrows import relation_of
from headrace.features.offline.reading import attach, connect, error_type, quoted, quoted_text
from headrace.features.offline.segment import CREATED, DELETED, EVENT_TIME, EVENT_TIMESTAMP
from headrace.features.spec import ViewSpec

_ROW: Final = "hr__row"
_FORMATS: Final = {".parquet": "(format parquet, compression zstd)", ".csv": "(format csv, header)"}


def training_set(
    views: Sequence[ViewSpec],
    log: Path,
    entities: str,
    out: Path,
    *,
    features: Sequence[str] = (),
    full_names: bool = False,
) -> int:
    """Write one row for each entity row, in their order: their own columns, then the features. Result: how many rows.

    log: the folder features.offline.path. entities: a Parquet, CSV or JSON file, or an SQL query of DuckDB; it has the join keys and the
    column event_timestamp. features: ``view`` or ``view:feature``; without any, all views whose join keys the entities have. full_names: columns
    are called view__feature. out: .parquet or .csv.
    Raises DefinitionError when entities, features or out can't be used.
    """
    if out.suffix not in _FORMATS:
        raise DefinitionError(f"{out.name} has no format known here", advice="end its name in .parquet or .csv")
    connection = connect()
    duckdb_error: type[Exception] = error_type()
    source = relation_of(entities, "--entities")
    try:
        connection.execute(f"create temp table entities as select *, row_number() over () as {_ROW} from ({source})")
    except duckdb_error as error:
        raise DefinitionError(
            f"--entities can't be read: {str(error).splitlines()[0]}",
            advice="give a .parquet, .csv or .json file, or an SQL query that DuckDB runs",
        ) from error
    columns = [row[0] for row in connection.execute("describe entities").fetchall()]
    if EVENT_TIMESTAMP not in columns:
        raise DefinitionError(
            f"the entities have no column {EVENT_TIMESTAMP}; they have: {', '.join(columns[:-1])}",
            advice="name the time at which each row is asked about event_timestamp",
        )
    chosen = _chosen(views, features, columns)
    selected = [f"e.{quoted(name)}" for name in columns if name != _ROW]
    taken = set(columns)
    joins: list[str] = []
    for place, (view, names) in enumerate(chosen):
        attach(connection, log / view.name, view, f"log_{place}")
        alias = f"v{place}"
        joins.append(_join(view, f"log_{place}", alias))
        alive = f"{alias}.{DELETED} is not true"
        if view.ttl_us:
            age = f"epoch_us(e.{EVENT_TIMESTAMP}::timestamptz) - epoch_us({alias}.{EVENT_TIME})"
            alive += f" and {age} <= {view.ttl_us}"
        for name in names:
            shown = f"{view.name}__{name}" if full_names else name
            if shown in taken:
                raise DefinitionError(f"two columns would be called {shown}", advice="add --full-names")
            taken.add(shown)
            selected.append(f"case when {alive} then {alias}.{quoted(name)} end as {quoted(shown)}")
    query = f"select {', '.join(selected)} from entities e {' '.join(joins)} order by e.{_ROW}"
    try:
        connection.execute(f"copy ({query}) to {quoted_text(str(out))} {_FORMATS[out.suffix]}")
        (count,) = connection.execute("select count(*) from entities").fetchone()
    except duckdb_error as error:
        raise DefinitionError(
            f"the training set can't be made: {str(error).splitlines()[0]}",
            advice="check that the join keys have the types of the views, event_timestamp is a time, and --out can be written",
        ) from error
    finally:
        connection.close()
    return int(count)


def _join(view: ViewSpec, log: str, alias: str) -> str:
    """The newest row of each (entity, event_timestamp), joined as of the asked time."""
    keys = [quoted(field.name) for field in view.join_keys]
    part = ", ".join([*keys, EVENT_TIMESTAMP])
    rows = f"select * from {log} qualify row_number() over (partition by {part} order by {CREATED} desc) = 1"
    same = "".join(f"e.{key} = {alias}.{key} and " for key in keys) or "1 = 1 and "
    return f"asof left join ({rows}) {alias} on {same}e.{EVENT_TIMESTAMP}::timestamptz >= {alias}.{EVENT_TIMESTAMP}"


def _chosen(
    views: Sequence[ViewSpec], features: Sequence[str], columns: Sequence[str]
) -> list[tuple[ViewSpec, list[str]]]:
    by_name = {view.name: view for view in views}
    known = ", ".join(by_name)
    wanted: dict[str, list[str]] = {}
    if not features:
        features = [view.name for view in views if all(field.name in columns for field in view.join_keys)]
    for reference in features:
        name, colon, feature = reference.partition(":")
        view = by_name.get(name)
        if view is None:
            raise DefinitionError(f"view {name!r} is not defined", advice=f"ask for one of: {known}")
        names = [field.name for field in view.fields]
        if colon and feature not in names:
            raise DefinitionError(
                f"view {name!r} has no feature {feature!r}", advice=f"ask for one of: {', '.join(names)}"
            )
        found = wanted.setdefault(name, [])
        found += [each for each in ([feature] if colon else names) if each not in found]
    for name in wanted:
        absent = [field.name for field in by_name[name].join_keys if field.name not in columns]
        if absent:
            raise DefinitionError(
                f"the entities have no column {', '.join(absent)}, which view {name!r} is read by",
                advice="add it, or leave the view out",
            )
    if not wanted:
        raise DefinitionError("no view has join keys that the entities have", advice=f"the views are: {known}")
    return [(by_name[name], names) for name, names in wanted.items()]
