"""An event as one line for people. What a machine reads is eventline.py.

Row data may hold anything, terminal control sequences too: every character that isn't printable is shown escaped.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from headrace.cdc.event import CustomerEvent, RowPart, SchemaEvent

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_VALUE = 40
_LONGEST_LINE = 240
_COLOURS: Final = {
    "insert": "32",
    "read": "36",
    "update": "33",
    "delete": "31",
    "truncate": "31;1",
    "heartbeat": "2",
}
_OTHER_COLOUR: Final = "35"
_DEFAULT_ENDINGS: Final = (
    "inserted",
    "updated",
    "deleted",
    "truncated",
    "read",
    "message",
    "messaged",
    "sent",
    "altered",
)


class ReadableLines:
    """Makes lines whose columns stay aligned with the lines before.

    has_colour: ANSI colours. width: of the terminal in characters, longer lines are cut; None: not a terminal.
    partitions: with more than one, an offset is written ``partition:offset``.
    """

    def __init__(self, *, has_colour: bool, width: int | None, partitions: int) -> None:
        self._has_colour = has_colour
        self._width = width or _LONGEST_LINE
        self._partitions = partitions
        self._place_width = 6
        self._subject_width = 16
        self._key_width = 4

    def line(self, event: CustomerEvent, *, partition: int, offset: int) -> str:
        """Time (UTC, of the commit), offset, operation, table or name, key, columns."""
        row = event.row
        op = event.kind if row is None else row.op
        subject = _printable(event.name) if row is None else _printable(f"{row.schema}.{row.table}")
        key = _key(event)
        place = f"{partition}:{offset}" if self._partitions > 1 else str(offset)
        self._place_width = max(self._place_width, len(place))
        self._subject_width = max(self._subject_width, min(len(subject), _LONGEST_VALUE))
        self._key_width = max(self._key_width, min(len(key), _LONGEST_VALUE))
        before = f"{_time(event.committed_us)}  {place:>{self._place_width}}  "
        after = f"  {subject:<{self._subject_width}}  {key:<{self._key_width}}  {_details(event)}".rstrip()
        room = max(20, self._width - len(before) - 8)
        if len(after) > room:
            after = after[: room - 1] + "…"
        shown = f"{op:<8}"
        if self._has_colour:
            return f"\x1b[2m{before}\x1b[0m\x1b[{_COLOURS.get(op, _OTHER_COLOUR)}m{shown}\x1b[0m{after}"
        return f"{before}{shown}{after}"


def _time(at_us: int) -> str:
    try:
        at = _EPOCH + timedelta(microseconds=at_us)
    except OverflowError:
        return f"{at_us} us"
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}"


def _key(event: CustomerEvent) -> str:
    """The row's primary key; of an event without a row the customer's."""
    if event.row is None:
        return "-" if event.key is None else _value(event.key)
    key: dict[str, Any] = {} if event.row.key is None else msgspec.json.decode(event.row.key)
    if len(key) == 1:
        return _value(next(iter(key.values())))
    return ",".join(f"{_printable(name)}={_value(value)}" for name, value in key.items()) or "-"


def _details(event: CustomerEvent) -> str:
    """What is worth a look: an event's own name, its customer, and the columns that changed."""
    parts: list[str] = []
    row = event.row
    after: dict[str, Any] = msgspec.json.decode(event.properties)
    if row is None:
        return " ".join(_pairs(after, ()))
    if row.op == "schema":
        return _schema(event.properties)
    if event.name not in [f"{row.table} {ending}" for ending in _DEFAULT_ENDINGS]:
        parts.append(f'"{_printable(event.name)}"')
    key: dict[str, Any] = {} if row.key is None else msgspec.json.decode(row.key)
    if event.key is not None and event.key != _key(event):
        parts.append(f"by {_value(event.key)}")
    before: dict[str, Any] = {} if row.before is None else msgspec.json.decode(row.before)
    if row.op == "update" and before:
        parts += _changes(before, after)
    elif row.op == "delete":
        parts += _pairs(before, key)
    else:
        parts += _pairs(after, key)
    parts += _absent(row)
    return " ".join(parts)


def _schema(properties: bytes) -> str:
    told = msgspec.json.decode(properties, type=SchemaEvent)
    columns = ", ".join(f"{_printable(column.name)} {_printable(column.type)}" for column in told.columns)
    origin = f", was {_printable(told.renamed_from)}" if told.renamed_from else ""
    if told.replaced_oid:
        origin += ", another table of this name"
    return f"version {told.version}{origin}: {columns}"


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Columns whose old value is known and another; the rest of the row when only an old key is known."""
    changed = [
        f"{_printable(name)}={_value(before[name])}→{_value(value)}"
        for name, value in after.items()
        if name in before and before[name] != value
    ]
    return changed + _pairs(after, before) if len(before) < len(after) else changed


def _pairs(columns: dict[str, Any], without: Any) -> list[str]:
    return [f"{_printable(name)}={_value(value)}" for name, value in columns.items() if name not in without]


def _absent(row: RowPart) -> list[str]:
    return [f"{_printable(name)}=(unchanged)" for name in row.unchanged] + [
        f"{_printable(name)}=(undecodable)" for name in row.undecodable
    ]


def _value(value: Any) -> str:
    if value is None:
        return "NULL"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = _printable(text)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
