"""Every error a user can meet, in one tree.

::

    HeadraceError
    ├── ConfigError            the file, the command line, the environment          exit 2
    ├── SourceError            a source can't go on as it is                        exit 3
    │   ├── SourceUnavailable  not reachable now; tried again                       exit 3
    │   ├── SourceRefused      reachable, but a person must change something first  exit 3
    │   └── HistoryMismatch    a position of another history: never resumed         exit 3
    ├── DecodeError            bytes that make no sense: never guessed              exit 3
    ├── LogError               the durable log                                      exit 4
    │   ├── LogLocked          another process writes it
    │   ├── LogUnavailable     not writable: folder, disk, rights
    │   ├── Fenced             our lease was taken over by a newer writer
    │   └── Trimmed            the asked offset is no longer kept
    ├── StoreError             the online store                                     exit 5
    │   ├── StoreConflict      its checkpoint isn't the one this process left there; gone on from the stored one
    │   └── StoreRefused       a person must change something first: rights, file, declared types
    ├── DefinitionError        feature definitions                                  exit 2
    ├── RequestRefused         what was asked of a running process can't be done    exit 2
    ├── SinkError              a destination that events are delivered to           exit 8
    │   └── SinkStoreError     dead letters and pauses can't be kept
    └── ServerError            the HTTP server (port taken, public bind)            exit 6

An error says *what happened, to which object, and what to do*: ``message`` is the first two, ``advice`` the third.
``action`` tells the supervisor, not the reader: RETRY by itself, PARK the one event, or STOP until a person acts.
Neither text ever holds row data or a secret: a DSN is named by host, port, user and database only.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Action(enum.Enum):
    """What the process does about an error without asking anyone."""

    RETRY = "retry"
    PARK = "park"
    STOP = "stop"


class HeadraceError(Exception):
    """Base of all errors raised on purpose.

    message: what happened and to which named object, one sentence without a final full stop.
    advice: what to do, imperative; the class default is used when None.
    """

    action: ClassVar[Action] = Action.STOP
    exit_code: ClassVar[int] = 1
    advice: str = "this is a defect of headrace: please report it with the log lines above"

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if advice is not None:
            self.advice = advice

    def paragraph(self) -> str:
        """The one paragraph a person sees in place of a traceback."""
        return f"{self.message}. To mend it: {self.advice}."


class ConfigError(HeadraceError):
    """The configuration can't be used; ``problems`` holds one line for each thing wrong, path first."""

    exit_code = 2
    advice = 'correct the named fields; "headrace schema" prints every field with its type and default'

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.problems = problems

    def paragraph(self) -> str:
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        return f"{self.message}{':' + lines if lines else '.'}\nTo mend it: {self.advice}."


class SourceError(HeadraceError):
    """A source can't go on as it is."""

    exit_code = 3
    advice = 'run "headrace check" for everything that is wrong with the source'

    def __init__(self, message: str, *, source: str, advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.source = source


class SourceUnavailable(SourceError):
    """The server didn't answer or closed the link; the capture tries again with growing pauses."""

    action = Action.RETRY
    advice = "check that the server is up and that host, port, user and password in the DSN are right"


class SourceRefused(SourceError):
    """The server answered, and something on it must be changed by a person first."""


class HistoryMismatch(SourceError):
    """The stored position belongs to another history (other server, reset, older backup): resuming would be a gap."""

    advice = "keep the log as it is, and start a new one (another log.path) to take a fresh snapshot"


class DecodeError(HeadraceError):
    """Bytes that don't follow the protocol.

    The bytes themselves may hold personal data and are never part of the message: only the kind of message, the index
    of the byte and the position are.
    """

    exit_code = 3
    advice = "headrace stopped rather than guess; nothing after this position was confirmed to the server"

    def __init__(self, message: str, *, kind: str = "", index: int = -1, position: str = "") -> None:
        where = ", ".join(
            part
            for part in (
                f"message {kind!r}" if kind else "",
                f"byte {index}" if index >= 0 else "",
                f"at {position}" if position else "",
            )
            if part
        )
        super().__init__(f"{message} ({where})" if where else message)
        self.kind = kind
        self.index = index
        self.position = position


class LogError(HeadraceError):
    """The durable log failed."""

    exit_code = 4
    advice = "check the disk and the rights of the folder that log.path names"


class LogLocked(LogError):
    """Another live process writes this log."""

    advice = "stop that process, or give this one another log.path"


class LogUnavailable(LogError):
    """The log can't be opened or written: folder missing, no rights, disk full."""


class Fenced(LogError):
    """A newer writer took the log over; this process must not write any more."""

    advice = "nothing: the newer process goes on; find out why two were started"


class Trimmed(LogError):
    """The asked offset was removed by retention. ``first_offset`` is the oldest that is still kept."""

    advice = "start again from the earliest offset, or keep more (log.retention)"

    def __init__(self, message: str, *, first_offset: int) -> None:
        super().__init__(message)
        self.first_offset = first_offset


class StoreError(HeadraceError):
    """The online store failed; the cursor stays where it was, and the consumer tries again."""

    action = Action.RETRY
    exit_code = 5
    advice = "check that the online store is reachable (features.store)"


class StoreConflict(StoreError):
    """A view's checkpoint in the store isn't the one this process last wrote or read there; nothing was written.

    Either another process feeds the same view, or the store lost its newest writes. In both cases the work goes on from
    the stored checkpoint, so the action is RETRY.
    """

    advice = (
        "nothing if the store was just restored or failed over; otherwise let one process only feed this project"
        " (features.project)"
    )


class StoreRefused(StoreError):
    """The store can't take this as it is: no rights, not our file, a value that doesn't fit its declared type."""

    action = Action.STOP
    advice = "correct features.store, or the rights of what it names"


class DefinitionError(HeadraceError):
    """A feature definition is wrong; the message names file, line, view and feature."""

    exit_code = 2
    advice = "correct the definition; nothing was changed"


class RequestRefused(HeadraceError):
    """What a person asked of the running process can't be done as it was asked; nothing was changed."""

    exit_code = 2
    advice = "correct the request"


class SinkError(HeadraceError):
    """A destination can't be delivered to as it is configured; what comes waits in the log."""

    exit_code = 8
    advice = 'run "headrace sink check" for what the destination says'


class SinkStoreError(SinkError):
    """Dead letters, or which sinks are paused, can't be stored; nothing passes a cursor before they are."""

    action = Action.RETRY
    advice = "check the disk, and the rights of the folder of log.path"


class ServerError(HeadraceError):
    """The HTTP server can't start."""

    exit_code = 6
    advice = "choose another server.listen"
