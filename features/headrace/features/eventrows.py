"""From events of SDKs, webhooks and other consumers to rows of one view: each event is a row that comes once and never changes.

A column is a property, by its name or a path with dots (``product.price``), or of the event itself: ``event.key``, ``event.user_id``,
``event.anonymous_id``, ``event.name``, ``event.source``, ``context.PATH``. A number is a place in an array
(``items.0.id``). What isn't there is NULL; so is an object or an array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from headrace.cdc.event import CustomerEvent
from headrace.features.compiled import CompiledView, EventsPlan
from headrace.features.rows import RowChange

WORDS: Final = ("key", "user_id", "anonymous_id", "name", "source")

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_Getter = Callable[[CustomerEvent, dict[str, Any], dict[str, Any]], Any]


class EventReader:
    """Reads the events of one view."""

    def __init__(self, view: CompiledView) -> None:
        assert view.events is not None
        self._plan = view.events
        self._getters = tuple([_getter(column) for column in view.columns])
        self._has_context = any(column.startswith("context.") for column in view.columns)

    def reads(self, event: CustomerEvent) -> bool:
        return is_one_of(event, self._plan)

    def read(self, event: CustomerEvent, offset: int, now_us: int) -> RowChange:
        """An insert; when it happened is what its sender says, corrected by the clocks of both."""
        properties = _decode(event.properties)
        context = _decode(event.context) if self._has_context and event.context is not None else {}
        values = tuple([get(event, properties, context) for get in self._getters])
        return RowChange(offset, now_us, event.occurred_us, "insert", event.id.encode(), None, values, None)


def is_one_of(event: CustomerEvent, plan: EventsPlan) -> bool:
    return (
        event.row is None
        and event.kind in plan.kinds
        and (not plan.names or event.name in plan.names)
        and (plan.source is None or event.source == plan.source)
    )


def _getter(column: str) -> _Getter:
    root, _, rest = column.partition(".")
    if root == "event":
        return lambda event, properties, context: getattr(event, rest)
    if root == "context":
        parts = tuple(rest.split("."))
        return lambda event, properties, context: _at(context, parts)
    parts = tuple(column.split("."))
    if len(parts) == 1:
        return lambda event, properties, context: _plain(properties.get(column))
    return lambda event, properties, context: _at(properties, parts)


def _at(tree: Any, parts: tuple[str, ...]) -> Any:
    for part in parts:
        if isinstance(tree, list) and part.isdecimal():
            place = int(part)
            tree = tree[place] if place < len(tree) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        elif isinstance(tree, dict):
            tree = tree.get(part)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        else:
            return None
    return _plain(tree)  # pyright: ignore[reportUnknownArgumentType]


def _plain(value: Any) -> Any:
    return None if isinstance(value, dict | list) else value


__all__ = ["WORDS", "EventReader", "is_one_of"]
