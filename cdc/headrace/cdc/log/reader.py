"""The log as another process sees it while ``headrace run`` writes it, or while nobody does: read only, nothing is created."""

from __future__ import annotations

from typing import Protocol

from headrace.cdc.config import Config
from headrace.cdc.errors import ConfigError
from headrace.cdc.log.base import Bounds, Cursor, LogBatch, StoredLetter


class LogReader(Protocol):
    """What ``open_reader`` of an engine gives; methods as those of EventLog."""

    @property
    def generation(self) -> str: ...

    @property
    def partitions(self) -> int: ...

    async def read(self, partition: int, offset: int, *, max_bytes: int = 1 << 20, wait_s: float = 0.0) -> LogBatch: ...

    async def bounds(self, partition: int) -> Bounds: ...

    async def groups(self) -> dict[str, dict[int, Cursor]]:
        """Every stored cursor: group -> partition -> cursor."""
        ...

    async def letters(self, after: int = 0, *, limit: int = 100) -> list[StoredLetter]: ...

    async def close(self) -> None: ...


async def open_reader(config: Config) -> LogReader:
    """The configured log, open for reading. Raises ConfigError when its engine can't be shared, LogError as the engine does."""
    engine = config.log.kind
    if not hasattr(engine, "open_reader"):
        raise ConfigError(
            f"a log of type {config.log.type} can't be read by another process",
            advice="read it through the running server: GET /v1/stream and GET /v1/events",
        )
    reader: LogReader = await engine.open_reader(config.log.section, config)
    return reader
