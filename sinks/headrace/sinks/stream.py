"""What the sinks to streams share: the envelope, the name of the stream by event, and the errors of a missing client library.

A stream sink appends each event as one message: its key decides the order, its event id says which messages are repetitions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from headrace.cdc.errors import SinkError
from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import SinkSection, Unfit
from headrace.sinks.envelope import Envelope, encode
from headrace.sinks.template import Subject, Text


class StreamSection(SinkSection, frozen=True, kw_only=True):
    """What every sink to a stream has."""

    format: Annotated[
        Envelope,
        Meta(
            description="Shape of a message: our own event line, a CloudEvent, Debezium's change event or a Segment message."
        ),
    ] = "cloudevents"


class StreamName:
    """The stream of an event, from a text with ``{fields}``. fits: what a name must look like; words: the same for people."""

    def __init__(self, text: str, fits: re.Pattern[str], words: str) -> None:
        self._text = Text(text)
        self._fits = fits
        self._words = words
        self.constant = self._text.constant
        if self.constant is not None and fits.fullmatch(self.constant) is None:
            raise ValueError(f"{text!r} {words}")

    def value(self, event: CustomerEvent) -> str:
        """Raises Unfit when a field is missing, or makes no name."""
        if self.constant is not None:
            return self.constant
        found = self._text.value(Subject(event))
        if self._fits.fullmatch(found) is None:
            raise Unfit(f"the stream's name that its fields make {self._words}")
        return found


def message(section: StreamSection, event: CustomerEvent) -> bytes:
    """The event in the section's shape."""
    return encode(section.format, event)


def missing(library: str, extra: str) -> SinkError:
    """The client library of an extra isn't installed."""
    return SinkError(f"the client library {library} is not installed", advice=f"pip install 'headrace[{extra}]'")


def names_of(items: Sequence[Any]) -> list[str]:
    """The streams of a request's items, each once, in the order they first come. Payloads begin with the stream's name."""
    return list(dict.fromkeys(item.payload[0] for item in items))


__all__ = ["StreamName", "StreamSection", "message", "missing", "names_of"]
