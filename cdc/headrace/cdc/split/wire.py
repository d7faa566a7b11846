"""What the process that keeps the log and those that keep consumers say to each other: framed MessagePack over a socket pair.

Events aren't among it, but for the few that a consumer appends: they are read from the log itself.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final, TypeAlias

import msgspec

from headrace.cdc import errors
from headrace.cdc.errors import ConfigError, HeadraceError, Trimmed
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import Cursor
from headrace.cdc.split.allot import Part

_LENGTH: Final = struct.Struct(">I")


class Start(msgspec.Struct, tag=True):
    """To a new process: what it keeps and how. config_text: of the file as the first process read it, which may have changed since.

    socket: where it answers HTTP, to the first process alone; url: where that one does. firsts, ends: the log's, by partition.
    """

    config_text: str
    config_path: str
    parts: list[Part]
    generation: str
    firsts: list[int]
    ends: list[int]
    is_copying: bool
    socket: str
    url: str


class Moved(msgspec.Struct, tag=True):
    """The log's bounds have moved: everything below an end is durable."""

    firsts: list[int]
    ends: list[int]


class Copying(msgspec.Struct, tag=True):
    """Whether a source isn't streaming yet; see Services.is_copying."""

    is_copying: bool


class Stop(msgspec.Struct, tag=True):
    """End, after what is under way is done."""


class Done(msgspec.Struct, tag=True):
    """The answer to what was asked under that number; value as result_type says."""

    number: int
    value: msgspec.Raw


class Failed(msgspec.Struct, tag=True):
    """An error as it was raised there. number: of what was asked; -1 = the process can't start."""

    number: int
    kind: str
    message: str
    advice: str = ""
    problems: list[str] = []
    first_offset: int = 0


class Ready(msgspec.Struct, tag=True):
    """A process answers and works. names: of its consumers. paths: patterns of the routes they answer."""

    names: list[str]
    paths: list[str]


class Append(msgspec.Struct, tag=True):
    """EventLog.append."""

    events: list[CustomerEvent]
    source: str
    state: bytes


class Commit(msgspec.Struct, tag=True):
    """EventLog.commit."""

    group: str
    partition: int
    offset: int
    state: bytes


class Committed(msgspec.Struct, tag=True):
    """EventLog.committed."""

    group: str
    partition: int


class Groups(msgspec.Struct, tag=True):
    """EventLog.groups."""


class Forget(msgspec.Struct, tag=True):
    """EventLog.forget."""

    group: str


class SourceState(msgspec.Struct, tag=True):
    """EventLog.source_state."""

    source: str


Question: TypeAlias = Append | Commit | Committed | Groups | Forget | SourceState


class Asked(msgspec.Struct, tag=True):
    """A question to the log. number: of the asking process, never used twice."""

    number: int
    question: Question


Told: TypeAlias = Start | Moved | Copying | Stop | Done | Failed
"""What the first process says."""
Said: TypeAlias = Ready | Asked | Failed
"""What the others say."""

_encode = msgspec.msgpack.Encoder().encode
_decode_told = msgspec.msgpack.Decoder(Told).decode
_decode_said = msgspec.msgpack.Decoder(Said).decode

_RESULTS: Final[dict[type, Any]] = {
    Append: tuple[int, ...],
    Commit: None,
    Committed: Cursor | None,
    Groups: dict[str, dict[int, Cursor]],
    Forget: None,
    SourceState: bytes | None,
}


def frame(message: Told | Said) -> bytes:
    """The bytes of a message."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


def done(number: int, value: Any) -> Done:
    """A Done of any value."""
    return Done(number, msgspec.Raw(_encode(value)))


def result(question: Question, value: msgspec.Raw) -> Any:
    """What a Done's value is, of the type that the question has."""
    return msgspec.msgpack.decode(value, type=_RESULTS[type(question)])


async def read_told(reader: asyncio.StreamReader) -> Told | None:
    """None when the other side is gone."""
    body = await _body(reader)
    return None if body is None else _decode_told(body)


async def read_said(reader: asyncio.StreamReader) -> Said | None:
    """None when the other side is gone."""
    body = await _body(reader)
    return None if body is None else _decode_said(body)


async def _body(reader: asyncio.StreamReader) -> bytes | None:
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def failed(number: int, error: HeadraceError | ValueError) -> Failed:
    """An error in words."""
    if not isinstance(error, HeadraceError):
        return Failed(number, "ValueError", str(error))
    first_offset = error.first_offset if isinstance(error, Trimmed) else 0
    problems = list(error.problems) if isinstance(error, ConfigError) else []
    return Failed(number, type(error).__name__, error.message, error.advice, problems, first_offset)


def raised(told: Failed) -> HeadraceError | ValueError:
    """The error that the words are of; one of a kind that this process doesn't know is a HeadraceError."""
    if told.kind == "ValueError":
        return ValueError(told.message)
    kind = getattr(errors, told.kind, HeadraceError)
    if kind is Trimmed:
        return Trimmed(told.message, first_offset=told.first_offset)
    if kind is ConfigError:
        return ConfigError(told.message, problems=tuple(told.problems), advice=told.advice)
    if not issubclass(kind, HeadraceError) or issubclass(kind, errors.SourceError | errors.DecodeError):
        kind = HeadraceError
    error: HeadraceError = kind(told.message, advice=told.advice)
    return error


__all__ = [
    "Append",
    "Asked",
    "Commit",
    "Committed",
    "Copying",
    "Done",
    "Failed",
    "Forget",
    "Groups",
    "Moved",
    "Question",
    "Ready",
    "Said",
    "SourceState",
    "Start",
    "Stop",
    "Told",
    "done",
    "failed",
    "frame",
    "raised",
    "read_said",
    "read_told",
    "result",
]
