"""Which message ids the embedded log knows, asked on the event loop: the new ones in memory, the older ones behind a filter.

Owns the dicts and the filter, and starts the upkeep of the tables in sqlite_ids.py. An id is known from the call of its append on: should
that append fail, the log takes none after it, so nothing can be lost by that.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from headrace.cdc.errors import LogError
from headrace.cdc.log.base import SeenIds
from headrace.cdc.log.sqlite_ids import (
    DAY_US,
    MERGE_IDS,
    SLICE_IDS,
    ForgetIds,
    IdFilter,
    MergeIds,
    find_ids,
    has_tree_ids,
    page_of_ids,
    recent_ids,
)
from headrace.cdc.log.sqlite_writer import Step

_T = TypeVar("_T")


class _Reader(Protocol):
    def __call__(self, ask: Callable[[sqlite3.Connection], _T]) -> Awaitable[_T]: ...


class KnownIds:
    """add and seen, from the loop. submit: hands a step to the writer. read: runs a question in a reader's thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        submit: Callable[[Any], asyncio.Future[Any]],
        read: _Reader,
    ) -> None:
        """Blocks while it reads the newest ids, about 3 MiB at most."""
        self._path = path
        self._submit = submit
        self._read = read
        self._recent, self._oldest_us = recent_ids(connection, path)
        self._merging: dict[bytes, bytes] = {}
        self._has_tree = has_tree_ids(connection, path)
        row = connection.execute("select value from meta where key = 'ids_forgotten_day'").fetchone()
        self._forgotten_day = 0 if row is None else int(row[0])
        self._filter: IdFilter | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._is_closing = False

    def add(self, ids: SeenIds) -> None:
        """Called once the append that holds them has been submitted."""
        self._recent |= ids.bodies
        if self._oldest_us is None:
            self._oldest_us = ids.at_us
        if len(self._recent) >= MERGE_IDS:
            self._start(self._merge)

    async def seen(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """See EventLog.seen."""
        recent, merging = self._recent, self._merging
        found: dict[bytes, bytes] = {}
        asked: list[bytes] = []
        has_tree = self._has_tree
        for key in keys:
            body = recent.get(key)
            if body is None and merging:
                body = merging.get(key)
            if body is not None:
                found[key] = body
            elif has_tree and (self._filter is None or self._filter.may_hold(key)):
                asked.append(key)
        if self._has_tree and self._filter is None:
            self._start(self._fill)
        if asked:
            found |= await self._read(lambda connection: find_ids(connection, self._path, asked))
        return found

    async def forget(self, before_us: int) -> None:
        """Drop, once a day, what came before; waits for upkeep under way."""
        if self._upkeep is not None:
            await asyncio.wait([self._upkeep])
        day = before_us // DAY_US
        if day <= self._forgotten_day:
            return
        self._forgotten_day = day
        if self._oldest_us is not None and self._oldest_us < before_us:
            self._start(self._merge)
            if self._upkeep is not None:
                await asyncio.wait([self._upkeep])
        if self._has_tree:
            forget = ForgetIds(day)
            while not self._is_closing:
                step: Step = await self._submit(forget)
                if not step.has_more:
                    break
            self._filter = None  # its bits of what is gone would only cost; the next look-up fills a new one

    async def close(self) -> None:
        """Let the step under way end. Closing twice is fine."""
        self._is_closing = True
        if self._upkeep is not None:
            await asyncio.wait([self._upkeep])

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._is_closing or (self._upkeep is not None and not self._upkeep.done()):
            return

        async def guarded() -> None:
            try:
                await work()
            except LogError:
                pass  # whoever appends next is told; the tables hold every id all the same

        self._upkeep = asyncio.get_running_loop().create_task(guarded())

    async def _merge(self) -> None:
        # What is in the dict now was submitted before this step, so the step finds it in the runs.
        self._merging, self._recent = self._recent, {}
        self._oldest_us = None
        if not self._has_tree:
            self._has_tree, self._filter = True, IdFilter()
        merge = MergeIds()
        # The filter's part goes in slices beside the steps: all at once would hold the loop for 10 ms.
        left = iter(self._merging)
        while not self._is_closing:
            step: Step = await self._submit(merge)
            if self._filter is not None:
                self._filter.add(islice(left, SLICE_IDS if step.has_more else None))
            if not step.has_more:
                self._merging = {}
                return

    async def _fill(self) -> None:
        """Until the filter is whole every id it can't rule out is looked for in the tree. Pages of some thousands: a page blocks little."""
        made = IdFilter()
        after = b""
        while not self._is_closing:
            page = await self._page(after)
            if not page:
                self._filter = made
                return
            made.add(page)
            after = page[-1]

    async def _page(self, after: bytes) -> list[bytes]:
        return await self._read(lambda connection: page_of_ids(connection, self._path, after))
