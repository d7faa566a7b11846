"""A transform that is a Python function: what it is given, and what its answer or its exception comes to. Pure; the file is loaded by pipeline.py."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from math import isfinite
from typing import Any, cast

import msgspec

from headrace.cdc.event import CustomerEvent, RowPart, SdkPart
from headrace.cdc.process.draft import Draft, Unfit
from headrace.cdc.process.transform import Step


class Event:
    """What a function gets, and may change: name, key, user_id, anonymous_id, properties, context.

    properties: a dict, for a row the columns of its new image. context: a dict or None. before: a row's old image as a dict, or None; changed
    in place it is taken too. The rest is to read: id, kind, source, table ("schema.table" or None), op (None for an SDK's event),
    writer, occurred_us, committed_us, received_us (microseconds since 1970 UTC).
    """

    __slots__ = ("_event", "_opened", "anonymous_id", "key", "name", "user_id")

    def __init__(self, event: CustomerEvent) -> None:
        self._event = event
        self._opened: dict[str, Any] = {}
        self.name = event.name
        self.key = event.key
        self.user_id = event.user_id
        self.anonymous_id = event.anonymous_id

    def __repr__(self) -> str:
        return (
            f"<Event {self._event.kind} {self._event.source}>"  # never a customer's words: it may stand in a log line
        )

    @property
    def properties(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self._open("properties", self._event.properties))

    @properties.setter
    def properties(self, value: dict[str, Any]) -> None:
        self._opened["properties"] = value

    @property
    def context(self) -> dict[str, Any] | None:
        return self._open("context", self._event.context)

    @context.setter
    def context(self, value: dict[str, Any] | None) -> None:
        self._opened["context"] = value

    @property
    def before(self) -> dict[str, Any] | None:
        return self._open("before", None if self._event.row is None else self._event.row.before)

    def _open(self, name: str, raw: bytes | None) -> dict[str, Any] | None:
        if name not in self._opened:
            self._opened[name] = None if raw is None else msgspec.json.decode(raw)
        return cast("dict[str, Any] | None", self._opened[name])

    @property
    def id(self) -> str:
        return self._event.id

    @property
    def kind(self) -> str:
        return self._event.kind

    @property
    def source(self) -> str:
        return self._event.source

    @property
    def table(self) -> str | None:
        row: RowPart | None = self._event.row
        return None if row is None else f"{row.schema}.{row.table}"

    @property
    def op(self) -> str | None:
        return None if self._event.row is None else self._event.row.op

    @property
    def writer(self) -> str | None:
        sdk: SdkPart | None = self._event.sdk
        return None if sdk is None else sdk.writer

    @property
    def occurred_us(self) -> int:
        return self._event.occurred_us

    @property
    def committed_us(self) -> int:
        return self._event.committed_us

    @property
    def received_us(self) -> int:
        return self._event.received_us


def python_step(
    function: Callable[[Event], Any], *, file: str, name: str, when: Callable[[Draft], bool] | None
) -> Step:
    """file: as tracebacks name it. when: None for every event."""

    def step(draft: Draft) -> Draft | None:
        if when is not None and not when(draft):
            return draft
        given = Event(draft.done())
        try:
            answer = function(given)
        except Exception as error:  # noqa: BLE001  # whatever a user's function may raise is this event's fault only
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
            where = f"{file}:{lines[-1]}" if lines else file
            # Not the error's text: it may quote the event.
            raise Unfit("transform_failed", f"{type(error).__name__} in {name} at {where}") from None
        if answer is None:
            return None
        if not isinstance(answer, Event):
            raise Unfit("transform_failed", f"{name} of {file} returned {type(answer).__name__}, not the event or None")
        return Draft(_taken(answer, f"{name} of {file}"))

    return step


def _taken(given: Event, what: str) -> CustomerEvent:
    event: CustomerEvent = given._event  # the other half of Event  # pyright: ignore[reportPrivateUsage]
    fields: dict[str, Any] = {}
    for word in ("name", "key", "user_id", "anonymous_id"):
        value = getattr(given, word)
        if value != getattr(event, word):
            if not (isinstance(value, str) or (value is None and word != "name")):
                raise Unfit("transform_failed", f"{what} made {word} a {type(value).__name__}, not a text")
            fields[word] = value
    opened: dict[str, Any] = given._opened  # pyright: ignore[reportPrivateUsage]
    if (
        "key" not in fields
        and event.key == (event.user_id or event.anonymous_id)
        and not fields.keys().isdisjoint(("user_id", "anonymous_id"))
    ):
        fields["key"] = given.user_id or given.anonymous_id
    for name, value in opened.items():
        if value is None and name != "properties":
            if name == "context":
                fields[name] = None
            continue
        if not isinstance(value, dict):
            raise Unfit("transform_failed", f"{what} made {name} a {type(value).__name__}, not a dict")
        try:
            _check_finite(value)
            encoded = msgspec.json.encode(value)
            if event.row is not None and name == "before":
                fields["row"] = msgspec.structs.replace(event.row, before=encoded)
            else:
                fields[name] = encoded
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
            raise Unfit("transform_failed", f"{what} put something into {name} that JSON has no word for") from None
    return msgspec.structs.replace(event, **fields) if fields else event


def _check_finite(value: Any) -> None:
    """Raises ValueError for NaN and infinity, of which JSON would silently make null."""
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError
    elif isinstance(value, dict):
        for item in cast("dict[Any, Any]", value).values():
            _check_finite(item)
    elif isinstance(value, list | tuple):
        for item in cast("list[Any]", value):
            _check_finite(item)


__all__ = ["Event", "python_step"]
