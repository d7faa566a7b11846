"""A source that asks: it runs a dlt resource on a schedule, and its items become rows of a table named after the resource.

A pull is one log transaction: all its items, and with them the cursor from which the next one goes on. A pull that fails, or whose process dies, is made
again from the former cursor. An item is a row as it is now (op ``read``): an API doesn't say what it was before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from datetime import time as day_time
from decimal import Decimal
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import UUID
from zlib import crc32

import msgspec

from headrace.cdc.config import EventConfig
from headrace.cdc.decode.tableversion import TableVersion, schema_changes, versioned
from headrace.cdc.errors import ConfigError, RequestRefused, SourceUnavailable
from headrace.cdc.event import Change, Column, TableSchema, Value
from headrace.cdc.sources import dltresource
from headrace.cdc.sources.base import Asked, ChangeBatch, SourceStatus
from headrace.cdc.sources.dltresource import Item, PullFailed
from headrace.cdc.sources.preflight import Finding
from headrace.cdc.sources.pull_config import PullConfig

_NO_OID: Final = 0
_SCHEMA: Final = "pull"


class PullState(msgspec.Struct):
    """What the log keeps. Fields are only ever appended, with a default.

    number: of pulls that are in the log. cursor: the resource's own, as JSON. began_us: of the last one. columns: of each table, as seen so far.
    """

    number: int = 0
    cursor: bytes = b"{}"
    began_us: int = 0
    columns: dict[str, dict[str, str]] = {}
    versions: dict[int, TableVersion] = {}


class PullSource:
    """See sources/base.py for the contract. folder: where relative files of the configuration are."""

    config_type: ClassVar[type[PullConfig]] = PullConfig

    def __init__(
        self,
        name: str,
        config: PullConfig,
        events: Mapping[str, EventConfig],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._config = config
        self._clock = clock
        self.folder = Path()
        self._state = PullState()
        self._found: Any = None
        self._thread: ThreadPoolExecutor | None = None
        self._run: _Run | None = None
        self._wake = asyncio.Event()
        self._is_all_asked = False
        self._asked: list[Asked] = []
        self._reason = "stopped"
        self._durable = PullState()

    @property
    def name(self) -> str:
        return self._name

    @property
    def _file(self) -> tuple[Path, str]:
        file, _, name = self._config.resource.rpartition(":")
        return self.folder / file, name

    async def start(self, state: bytes | None) -> None:
        """Raises ConfigError for a file that can't be used."""
        await self.stop()
        self._state = PullState() if state is None else msgspec.msgpack.decode(state, type=PullState)
        self._durable = msgspec.msgpack.decode(msgspec.msgpack.encode(self._state), type=PullState)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"headrace-pull-{self._name}")
        try:
            # Importing dlt takes seconds.
            self._found = await asyncio.get_running_loop().run_in_executor(self._thread, dltresource.load, *self._file)
        except ValueError as error:
            await self.stop()
            raise self._unusable(error) from error
        self._reason = ""

    def _unusable(self, error: ValueError) -> ConfigError:
        return ConfigError(
            f'source "{self._name}" can\'t be used',
            problems=(f"sources.{self._name}.resource: {error}",),
            advice="docs/pull.md shows such a file",
        )

    async def read(self) -> ChangeBatch:
        if self._run is None:
            await self._until_due()
            self._run = _Run(self._found, self._file[0], self._state, is_from_start=self._is_all_asked)
            self._is_all_asked = False
            self._began_us = int(self._clock() * 1_000_000)
        run = self._run
        assert self._thread is not None
        try:
            items = await asyncio.get_running_loop().run_in_executor(self._thread, run.next)
        except PullFailed as error:
            self._run = None
            raise SourceUnavailable(
                f'a pull of source "{self._name}" failed: {error}',
                source=self._name,
                advice="look at what the named line asks for; the pull is made again from where the last one ended",
            ) from error
        changes = self._changes(run, items or [])
        # One page is kept back, so that the last row of the pull can say that it is the last.
        if items is not None:
            return ChangeBatch(changes, b"", None, self._began_us, "", is_part=True)
        self._run = None
        state = self._state
        state.number += 1
        state.cursor = msgspec.json.encode(run.cursor, enc_hook=str)
        state.began_us = self._began_us
        encoded = msgspec.msgpack.encode(state)
        return ChangeBatch(changes, encoded, encoded, self._began_us, f"pull {state.number}")

    async def _until_due(self) -> None:
        while not self._is_all_asked:
            left_s = self._state.began_us / 1e6 + self._config.every.s - self._clock()
            if self._state.number == 0 or left_s <= 0:
                return
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), left_s)
            except TimeoutError:
                return

    def _changes(self, run: _Run, items: list[Item]) -> list[Change]:
        """Rows of the page before; of the last page when items is empty."""
        ready, run.kept = run.kept, items
        changes: list[Change] = []
        position = f"pull {self._state.number + 1}:"
        for at, item in enumerate(ready):
            known = self._state.columns.setdefault(item.table, {})
            for column, value in item.fields.items():
                kind = item.types.get(column) or _kind(value)
                if kind and known.get(column) != kind and (column not in known or column in item.types):
                    known[column] = kind
                elif column not in known:
                    known[column] = "text"
            names = list(known)
            schema = TableSchema(
                _SCHEMA,
                item.table,
                tuple([Column(column, _NO_OID, kind) for column, kind in known.items()]),
                tuple([names.index(column) for column in item.key if column in known]),
                oid=crc32(f"{self._name}.{item.table}".encode()) | 1 << 40,
            )
            table, news = versioned(self._state.versions, schema)
            identifier = f"{self._name}-p{self._state.number + 1}-"
            if news is not None:
                changes += schema_changes(
                    news,
                    position=f"{position}{run.ordinal}",
                    identifier=f"{identifier}{run.ordinal}",
                    xid=0,
                    time_us=self._began_us,
                )
            row = tuple([exact(item.fields.get(column)) for column in names])
            is_last = not items and at == len(ready) - 1
            changes.append(
                Change(
                    table,
                    "read",
                    None,
                    row,
                    f"{position}{run.ordinal}",
                    f"{identifier}{run.ordinal}",
                    0,
                    run.ordinal,
                    is_last,
                    self._began_us,
                )
            )
            run.ordinal += 1
        return changes

    def durable(self, mark: Any) -> None:
        self._durable = msgspec.msgpack.decode(mark, type=PullState)

    async def stop(self) -> None:
        run, self._run = self._run, None
        thread, self._thread = self._thread, None
        if thread is not None:
            if run is not None:
                thread.submit(run.close)
            await asyncio.to_thread(thread.shutdown)
        self._reason = "stopped"

    async def check(self) -> list[Finding]:
        """What would go wrong; nobody is asked yet."""
        try:
            await asyncio.to_thread(dltresource.load, *self._file)
        except ValueError as error:
            return [
                Finding(
                    "pull-file", "error", self._config.resource, str(error), "correct the file; docs/pull.md shows one"
                )
            ]
        return []

    async def snapshot(self, tables: Sequence[str], where: str) -> Asked:
        """Pull everything again, from the beginning, now."""
        if self._reason == "stopped":
            raise RequestRefused(f'source "{self._name}" is stopped', advice="ask again once it runs")
        if where:
            raise RequestRefused("a pull knows no condition", advice="leave it out; everything is pulled again")
        self._is_all_asked = True
        self._wake.set()
        asked = Asked(len(self._asked) + 1, sorted(self._state.columns))
        self._asked.append(asked)
        return asked

    def status(self) -> SourceStatus:
        state = self._durable
        position = ""
        if state.number:
            position = (
                f"pull {state.number}, begun {datetime.fromtimestamp(state.began_us / 1e6, UTC):%Y-%m-%d %H:%M:%S}"
            )
        phase = "stopped" if self._reason == "stopped" else "streaming"
        return SourceStatus(
            phase, self._reason, position, lag_s=None if not state.began_us else self._clock() - state.began_us / 1e6
        )


class _Run:
    """One pull. ``next`` and ``close`` in the pull's thread."""

    def __init__(self, found: Any, path: Path, state: PullState, *, is_from_start: bool) -> None:
        self.cursor: dict[str, Any] = {} if is_from_start else msgspec.json.decode(state.cursor)
        self.ordinal = 0
        self.kept: list[Item] = []
        self._pages: Iterator[list[Item]] = dltresource.pages(found, path, self.cursor)

    def next(self) -> list[Item] | None:
        return next(self._pages, None)

    def close(self) -> None:
        close = getattr(self._pages, "close", None)
        if close is not None:
            close()


def exact(value: Any) -> Value:
    """A value of an item as the log has it: numbers that JSON can't say, times and the like as text, objects and arrays as JSON."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if -(1 << 63) <= value < 1 << 64 else str(value)
        case float():
            return value if isfinite(value) else str(value)
        case datetime() | date() | day_time():
            return value.isoformat()
        case Decimal() | UUID():
            return str(value)
        case bytes():
            return "0x" + value.hex()
        case _:
            return msgspec.json.encode(value, enc_hook=str).decode()


def _kind(value: Any) -> str:
    """dlt's word for a value's type; "" for None, which says nothing."""
    match value:
        case None:
            return ""
        case bool():
            return "bool"
        case int():
            return "bigint"
        case float():
            return "double"
        case str() | UUID():
            return "text"
        case datetime():
            return "timestamp"
        case date():
            return "date"
        case day_time():
            return "time"
        case Decimal():
            return "decimal"
        case bytes():
            return "binary"
        case _:
            return "json"


__all__ = ["PullSource", "PullState", "exact"]
