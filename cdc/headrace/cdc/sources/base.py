"""The contract between a source and the capture that drives it.

A source yields batches of decoded changes, each with the opaque state from which it can go on after them. The capture makes
both durable in one log transaction and only then calls ``durable``; a source confirms to its server nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from headrace.cdc.event import Change
from headrace.cdc.log.base import EventLog, StoredLetter

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from headrace.cdc.customers import Suppression
    from headrace.cdc.process.pipeline import Pipeline
    from headrace.cdc.process.validate import Plan


class ChangeBatch(msgspec.Struct, gc=False):
    """Whole transactions in commit order, and the state after them.

    changes: may be empty (a heartbeat: only time and state move on).
    state: what the source wants back from ``EventLog.source_state`` after a restart.
    mark: handed back by ``durable``; means something to the source only.
    source_time_us: the server's clock at the last thing read, microseconds since 1970 UTC; log time moves by it.
    position: text of the place after the batch.
    is_part: the changes are of a transaction that goes on in the next batch; state, mark and position mean nothing yet.
    """

    changes: Sequence[Change]
    state: bytes
    mark: Any
    source_time_us: int
    position: str
    is_heartbeat: bool = False
    is_part: bool = False


class SourceStatus(msgspec.Struct, frozen=True):
    """A source's health for /readyz, /metrics and ``headrace status``.

    phase: ``connecting``, ``snapshot``, ``streaming`` or ``stopped``. reason: why it isn't streaming, else "".
    position: everything before it is durable in the log; "" before the first append. lag_bytes: WAL the server has beyond it, retained_bytes: WAL it keeps for us; None when unknown.
    lag_s: age of the newest thing that is durable, while the server has more; 0 when it hasn't. wal: what the server keeps for us and why, as
    numbers and words by name. warnings: what somebody should look at though the source goes on.
    asked: copies that people asked for since the process began, oldest first: number, rows, estimated_rows, is_done.
    is_failover_safe: whether a promotion of the configured standby now would keep our place; None: nobody was asked.
    """

    phase: str
    reason: str
    position: str
    lag_bytes: int | None = None
    retained_bytes: int | None = None
    lag_s: float | None = None
    snapshot: dict[str, Any] | None = None
    is_failover_safe: bool | None = None
    asked: list[dict[str, Any]] = []
    wal: dict[str, Any] | None = None
    warnings: list[str] = []


class Asked(msgspec.Struct, frozen=True):
    """A copy that somebody asked for: its number among the source's, and the tables."""

    number: int
    tables: list[str]


class Source(Protocol):
    """A source obeys one start/stop contract: ``start`` returns once it streams, ``stop`` once all is released.

    One that has an attribute ``folder`` gets the configuration's, for relative paths in its section.
    """

    @property
    def name(self) -> str: ...

    async def start(self, state: bytes | None) -> None:
        """Connect and go on after ``state``; None: from the beginning, with a snapshot if configured.

        Raises SourceUnavailable (try again), SourceRefused or HistoryMismatch (a person must act). Starting again after
        a failure or a stop is fine.
        """
        ...

    async def read(self) -> ChangeBatch:
        """The next batch; waits for one. At most one call at a time. Cancelling loses nothing. Errors as for start."""
        ...

    def durable(self, mark: Any) -> None:
        """Everything up to this batch is durable in the log: may be confirmed to the server."""
        ...

    async def stop(self) -> None:
        """Send what may still be confirmed, close all connections. Stopping twice is fine."""
        ...

    async def snapshot(self, tables: Sequence[str], where: str) -> Asked:
        """Copy existing rows again, beside the stream; returns as soon as it is accepted.

        tables: names or patterns of captured tables. where: SQL condition of the rows, "" for all. Raises RequestRefused.
        """
        ...

    def status(self) -> SourceStatus: ...


class ConnectionMaker(Protocol):
    """Makes the protocol of each connection of the HTTP server."""

    def __call__(self) -> asyncio.Protocol: ...

    async def stop(self, wait_s: float) -> None:
        """Close what isn't handed over: at once what is idle, after wait_s at the latest what is under way."""
        ...


class PushedSource(Protocol):
    """A source that is written to over HTTP: it appends to the log by itself, and has no place to go on from.

    Built as any other source, ``kind(name, section, events)``; told from them by having routes.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_local_clients(self) -> bool:
        """Whether only this machine's own programs may reach it."""
        ...

    @property
    def needs(self) -> str:
        """What to configure so that other machines may send, as it stands in the file."""
        ...

    @property
    def claims(self) -> str:
        """The paths that it answers, in words or as one path: no two sources may claim the same."""
        ...

    def attach(
        self,
        log: EventLog,
        registry: CollectorRegistry,
        durable: Callable[[str, int, int], None],
        plan: Plan | None = None,
        pipeline: Pipeline | None = None,
        suppression: Suppression | None = None,
    ) -> None:
        """Called once, before routes and run. suppression: whose events are answered and forgotten. durable: to be told of each append: source, events, when the first was received."""
        ...

    def routes(self) -> Sequence[Any]:
        """Routes of the HTTP server; their handlers see to rights themselves."""
        ...

    def protocol(self, otherwise: Callable[[], asyncio.Protocol]) -> ConnectionMaker:
        """Who answers a new connection, before anything of it was read. otherwise: makes the server's own protocol, to hand over to."""
        ...

    async def run(self, on_started: Callable[[], None] | None = None) -> None:
        """Take events until cancelled; then what was taken is durable. Raises what the log raises."""
        ...

    def status(self) -> SourceStatus: ...

    async def retry(self, stored: StoredLetter) -> bool:
        """Take a dead letter again, while it runs. True: it is gone, its events are in the log. False: it stays as it is."""
        ...
