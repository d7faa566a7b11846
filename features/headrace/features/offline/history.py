"""One entity's values over time, from the feature log, for people who look."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from headrace.features.answer import readable
from headrace.features.offline.reading import attach, connect, quoted
from headrace.features.offline.segment import CREATED, DELETED, EVENT_TIMESTAMP
from headrace.features.spec import EntityKey, ValueType, ViewSpec

MOST_ROWS: Final = 2_000


def history(view: ViewSpec, folder: Path, key: EntityKey, *, since_us: int) -> list[dict[str, Any]]:
    """Rows that took effect from then on, and the one before, oldest first: time_us, and features by name (None: the row was deleted).

    folder: of the view. The newest 2,000. Raises DefinitionError as reading.attach does.
    """
    connection = connect()
    try:
        # Beside a process that has other work.
        connection.execute("set threads = 1")
        attach(connection, folder, view, "logged")
        same = " and ".join([f"{_told(field.name, field.dtype)} = ?" for field in view.join_keys]) or "true"
        columns = ", ".join(_told(field.name, field.dtype) for field in view.fields)
        found = connection.execute(
            f"with mine as (select * from logged where {same}), recent as (select *, epoch_us({EVENT_TIMESTAMP}) us from mine)"
            f" select us, {DELETED}, {columns} from recent"
            " where us >= coalesce((select max(us) from recent where us < ?), ?)"
            f" order by {EVENT_TIMESTAMP} desc, {CREATED} desc limit {MOST_ROWS}",
            [*key, since_us, since_us],
        ).fetchall()
    finally:
        connection.close()
    names = [field.name for field in view.fields]
    return [
        {"time_us": us, "features": None if deleted else {name: _spelt(value) for name, value in zip(names, values, strict=True)}}
        for us, deleted, *values in reversed(found)
    ]  # fmt: skip


def _told(name: str, dtype: ValueType) -> str:
    return f"epoch_us({quoted(name)})" if dtype is ValueType.UNIX_TIMESTAMP else quoted(name)


def _spelt(value: Any) -> Any:
    return readable(tuple(value) if isinstance(value, list) else value)  # pyright: ignore[reportUnknownArgumentType]


__all__ = ["MOST_ROWS", "history"]
