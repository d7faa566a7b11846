"""The contract of everything right of the log, and what the app lends to it.

A consumer type is found by the entry point group ``headrace.consumers``; the app builds it, mounts its routes on the one HTTP
server and supervises its ``run``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from headrace.cdc.config import Config
from headrace.cdc.log.base import ConsumerLog


class Services(msgspec.Struct, frozen=True):
    """What a consumer may use: the whole configuration, the log, the registry its metrics belong to.

    is_copying: whether a source isn't streaming yet, so that the log may lack rows which its tables have.
    """

    config: Config
    log: ConsumerLog
    registry: CollectorRegistry
    is_copying: Callable[[], bool] = lambda: False


class Health(msgspec.Struct, frozen=True):
    """One line of /readyz: is_ready False makes the process not ready; reason says why in words."""

    part: str
    is_ready: bool
    reason: str = ""


class Consumer(Protocol):
    """Reads the log with its own cursor. A consumer that fails never stops capture or another consumer."""

    @property
    def name(self) -> str: ...

    def routes(self) -> Iterable[web.RouteDef]:
        """HTTP routes to mount; called once before run."""
        ...

    async def run(self) -> None:
        """Work until cancelled. Raising RETRY errors makes the app start it again with growing pauses."""
        ...

    def health(self) -> Iterable[Health]: ...

    def status(self) -> dict[str, Any]:
        """Numbers for ``/v1/status``, JSON types only. Holds ``offset`` (list, one a partition) if it has a cursor."""
        ...


class ConsumerType(Protocol):
    """What an entry point of ``headrace.consumers`` names.

    section: the top-level key of headrace.yaml that belongs to it, or None. config_type: struct of that section, or ``dict[str, ...]`` of
    a Choice for a mapping of the user's names.
    """

    section: ClassVar[str | None]
    config_type: ClassVar[Any]
    # may_be_elsewhere: ClassVar[bool], False where absent: it may be built in a process that doesn't keep sources and log; of a mapping each key by itself.

    @classmethod
    def build(cls, section: Any, services: Services) -> Consumer | Sequence[Consumer] | None:
        """The consumer, or several, or None when the configuration asks for none (section is None when absent from the file)."""
        ...


class OtherProcesses(Protocol):
    """Further processes, which keep some of the consumers; an object without any is fine."""

    async def refresh(self) -> None:
        """Ask each for what it says of itself; what it said last stays when it doesn't answer in time."""
        ...

    def routes(self) -> Sequence[web.RouteDef]:
        """To mount last: requests that no route of this process takes."""
        ...

    def protocol(self, maker: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """Protocols that look at a connection's first request before those of maker do: it may be one for another process."""
        ...

    def status(self) -> list[dict[str, Any]]:
        """One object of JSON types for each."""
        ...

    def compiled(self) -> dict[str, bool]:
        """Hot modules that any of them has loaded; False where one runs the plain file."""
        ...

    def collector(self) -> Collector:
        """What they count, as of the last ``refresh``."""
        ...
