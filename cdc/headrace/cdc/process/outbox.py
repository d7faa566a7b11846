"""The outbox: a logical message whose content is a JSON object becomes an event of its own, with name, customer and time from its fields.

An application writes it with ``pg_logical_emit_message(true, 'outbox', '{...}')`` in the transaction that it tells of: no outbox table to
write, read and empty. Pure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from headrace.cdc.config import EventConfig
from headrace.cdc.decode.pgtime import timestamp_us
from headrace.cdc.event import Change, customer_key

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_CONTENT = 1
"""Its column in a message's row: prefix, content, content_hex."""


class Message(msgspec.Struct, frozen=True):
    """What an event takes from a content. properties: the content itself. name, key, occurred_us: None where it doesn't say."""

    properties: bytes
    name: str | None
    key: str | None
    occurred_us: int | None


class Outbox:
    """Reads the messages of one prefix. config: names the fields."""

    def __init__(self, config: EventConfig) -> None:
        self._name = config.name
        self._keys = [config.key] if isinstance(config.key, str) else list(config.key or ())
        self._occurred = config.occurred_at

    def read(self, change: Change) -> Message | None:
        """The message; None for a content that is no JSON object, which stays as it is."""
        content = None if change.after is None else change.after[_CONTENT]
        if not isinstance(content, str):
            return None
        properties = content.encode()
        try:
            # Undecoded: a number of another field may be more than a float holds, and is nobody's business here.
            fields = _decode(properties)
        except msgspec.DecodeError:
            return None
        name = _field(fields, self._name)
        key: str | None = None
        values = [_field(fields, field) for field in self._keys]
        if values and all(isinstance(value, (str, int, float, bool)) for value in values):
            key = customer_key(tuple(values))
        return Message(
            properties,
            name if isinstance(name, str) and name else None,
            key,
            _time_us(_field(fields, self._occurred)),
        )


def _field(fields: dict[str, msgspec.Raw], name: str | None) -> Any:
    """Its value; None where the content hasn't it, or no value that Python can say."""
    raw = None if name is None else fields.get(name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None


def _time_us(value: object) -> int | None:
    """Microseconds since 1970 UTC of a timestamp in PostgreSQL's or RFC 3339's form with a zone; None for anything else."""
    if not isinstance(value, str):
        return None
    moment = timestamp_us(value)
    if moment is not None:
        return moment
    try:
        parsed = msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        return None
    if parsed.tzinfo is None:
        return None
    since = parsed.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


__all__ = ["Message", "Outbox"]
