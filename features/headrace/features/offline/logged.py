"""An online store whose every written row also goes to the feature log.

Wraps any OnlineStore. A flush is appended to the journals first, then written to the store: a process killed in between leaves rows in the
journal that the store doesn't have, and the next run cuts them off. Sealing a journal into Parquet happens on a thread of its own;
what the writer does itself is one encode and one write into the system's page cache for each flush and view.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

import msgspec

from headrace.cdc.errors import StoreError, StoreRefused
from headrace.features.encoding import codec_of
from headrace.features.offline.journal import LoggedRow
from headrace.features.offline.viewlog import ViewLog
from headrace.features.spec import EntityKey, FeatureValue, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, FeatureRow, OnlineStore, ViewWrite

_T = TypeVar("_T")

ROLL_BYTES: Final = 64 << 20
_MOST_UNSEALED: Final = 16
"""Journals that may wait for their sealing before writes wait too: a disk that is too slow or full must be felt, not hidden."""
_TEND_EVERY_S: Final = 1.0


class _Place(msgspec.Struct):
    """Where a view goes on, as its store told the engine."""

    offset: int
    generation: str
    is_new: bool


class LoggedStore:
    """See the module, and OnlineStore for every method.

    folder: one folder a view below it. roll_every_s: a journal with rows is sealed at this age, or at roll_bytes. clock: seconds since 1970.
    """

    def __init__(
        self,
        store: OnlineStore,
        folder: Path,
        *,
        roll_every_s: float,
        roll_bytes: int = ROLL_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._folder = folder
        self._roll_every_s = roll_every_s
        self._roll_bytes = roll_bytes
        self._clock = clock
        self._logs: dict[str, ViewLog] = {}
        self._views: dict[str, ViewSpec] = {}
        self._places: dict[str, _Place] = {}
        self._turn = asyncio.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._tending: asyncio.Task[None] | None = None
        self._lock: BinaryIO | None = None
        self._is_clean = True
        self._trouble = ""

    async def open(self) -> None:
        """Raises StoreRefused when another process writes this feature log, or its folder can't be made."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / ".lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._unlock()
            raise StoreRefused(
                f"another process writes the feature log {self._folder}",
                advice="stop that process, or give this one another features.offline.path",
            ) from error
        except OSError as error:
            self._unlock()
            raise StoreRefused(
                f"the feature log {self._folder} can't be written: {error.strerror}",
                advice="correct features.offline.path, or the folder's rights",
            ) from error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="headrace-feature-log")
        self._is_clean = True
        try:
            await self._store.open()
        except BaseException:
            self._unlock()
            raise
        self._tending = asyncio.create_task(self._tend())

    async def checkpoint(self, view: ViewSpec) -> Checkpoint | None:
        stored = await self._store.checkpoint(view)
        self._forget(view)
        self._views[view.name] = view
        if stored is None or stored.spec_hash != view.spec_hash:
            self._places[view.name] = _Place(0, "", is_new=True)
        else:
            self._places[view.name] = _Place(stored.offsets[0], stored.generation, is_new=False)
        return stored

    async def drop(self, view: ViewSpec) -> None:
        await self._store.drop(view)
        self._forget(view)
        if view.is_draft:
            await self._on_thread(lambda: shutil.rmtree(self._folder / view.name, ignore_errors=True))
        self._views[view.name] = view
        self._places[view.name] = _Place(0, "", is_new=True)

    async def promote(self, view: ViewSpec) -> None:
        """See OnlineStore. The draft's logged rows become the view's when this goes on with it."""
        await self._store.promote(view)
        async with self._turn:
            for each in (view, view.draft):
                self._forget(each)
                self._views.pop(each.name, None)
                self._places.pop(each.name, None)

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        async with self._turn:
            try:
                await self._journal(writes)
                await self._store.write(writes)
            except BaseException:
                # The journals may end with what the store doesn't have; only the next run's checkpoint will tell.
                self._is_clean = False
                raise

    async def close(self) -> None:
        if self._tending is not None:
            self._tending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tending
            self._tending = None
        try:
            if self._is_clean and self._thread is not None:
                with contextlib.suppress(OSError, StoreError):
                    await self._begin_idle()
            for log in self._logs.values():
                with contextlib.suppress(OSError):
                    if self._is_clean and log.size_bytes:
                        log.rotate()
                    if self._is_clean:
                        await self._on_thread(log.seal)
        finally:
            if self._thread is not None:
                # First of all: a sealing that has begun may not have looked yet which journal still grows, and a closed one grows no more.
                self._thread.shutdown()
                self._thread = None
            for log in self._logs.values():
                log.close()
            self._logs.clear()
            self._unlock()
            await self._store.close()

    def status(self) -> dict[str, Any]:
        """By view: rows logged by this run, bytes not yet in Parquet, gaps; and what is wrong with the disk, if anything."""
        views = {
            name: {"rows_logged": log.rows, "journal_bytes": log.size_bytes, "gaps": log.gaps}
            for name, log in self._logs.items()
        }
        return {"path": str(self._folder), "trouble": self._trouble, "views": views}

    async def states(self, view: ViewSpec, keys: Sequence[EntityKey]) -> list[bytes | None]:
        return await self._store.states(view, keys)

    async def contributions(self, view: ViewSpec, row_keys: Sequence[bytes]) -> list[Contribution | None]:
        return await self._store.contributions(view, row_keys)

    async def contributions_of(self, view: ViewSpec, key: EntityKey) -> list[tuple[bytes, bytes]]:
        return await self._store.contributions_of(view, key)

    async def due(self, view: ViewSpec, until_us: int, limit: int) -> list[tuple[int, EntityKey]]:
        return await self._store.due(view, until_us, limit)

    async def read(self, view: ViewSpec, features: Sequence[str], keys: Sequence[EntityKey]) -> list[FeatureRow | None]:
        return await self._store.read(view, features, keys)

    async def keys(self, view: ViewSpec) -> list[EntityKey]:
        return await self._store.keys(view)

    async def scrub(self, view: ViewSpec, parts: Mapping[str, FeatureValue]) -> tuple[int, int]:
        """See OnlineStore: rows of the feature log, those of former definitions too. Their writes come first: they begin the view's log."""
        async with self._turn:
            log = self._logs[view.name]
            try:
                if log.size_bytes:
                    log.rotate()
                await self._on_thread(log.seal)
                gone = await self._on_thread(lambda: log.erase(parts))
                left = await self._on_thread(lambda: log.erase(parts))  # a second look
            except OSError as error:
                raise self._broken(error) from error
        others = await self._store.scrub(view, parts)
        return gone + others[0], left + others[1]

    async def _journal(self, writes: Sequence[ViewWrite]) -> None:
        try:
            for write in writes:
                log = self._logs.get(write.view.name)
                if log is None:
                    log = await self._begin(write.view, write.checkpoint.generation)
                if log.size_bytes >= self._roll_bytes:
                    if len(log.unsealed()) >= _MOST_UNSEALED:
                        await self._on_thread(log.seal)
                    log.rotate()
                log.append(write.entities, write.checkpoint.offsets[0], write.checkpoint.log_time_us)
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> StoreError:
        return StoreError(
            f"the feature log {self._folder} can't be written: {error.strerror}",
            advice="check the disk, and the rights of the folder that features.offline.path names",
        )

    async def _begin(self, view: ViewSpec, generation: str) -> ViewLog:
        place = self._places[view.name]
        log = ViewLog(self._folder / view.name, view, clock=self._clock)
        draft = self._folder / view.draft.name
        if place.is_new:
            await self._on_thread(lambda: shutil.rmtree(draft, ignore_errors=True))
        elif not view.is_draft:
            await self._on_thread(lambda: log.adopt(draft))
        doubtful = await self._on_thread(lambda: log.begin(place.offset, generation, is_new=place.is_new))
        not_stored = 0
        for rows in doubtful:
            if await self._has(view, rows):
                break  # flushes follow one another: what is before this one is there too
            not_stored += 1
        await self._on_thread(lambda: log.start(not_stored))
        self._logs[view.name] = log
        return log

    async def _begin_idle(self) -> None:
        """Views that nothing has been written to since the start may have left a journal behind, too."""
        for name, (view, place) in list(self._seen().items()):
            has_rows = (self._folder / name).exists() or (self._folder / view.draft.name).exists()
            if name not in self._logs and has_rows:
                await self._begin(view, place.generation)

    def _seen(self) -> dict[str, tuple[ViewSpec, _Place]]:
        return {name: (self._views[name], place) for name, place in self._places.items() if not place.is_new}

    async def _has(self, view: ViewSpec, rows: Sequence[LoggedRow]) -> bool:
        """The store has taken this flush: by states, and by features, which may change with the time alone and leave the state as it was."""
        keys = [row.key for row in rows]
        states = await self._store.states(view, keys)
        served = await self._store.read(view, [field.name for field in view.fields], keys)
        for row, state, have in zip(rows, states, served, strict=True):
            if state is None or have is None or row.values is None:
                is_there = row.values is None and state is None
            else:
                is_there = zlib.crc32(state) == row.state_crc and _is_same(view, have.values, row.values)
            if not is_there:
                return False
        return True

    async def _tend(self) -> None:
        """Now and then: journals to the disk, those of age into Parquet."""
        while True:
            await asyncio.sleep(min(_TEND_EVERY_S, self._roll_every_s))
            try:
                async with self._turn:
                    await self._begin_idle()
                for log in list(self._logs.values()):
                    if log.size_bytes and self._clock() - log.opened_s >= self._roll_every_s:
                        async with self._turn:  # between two writes: what is sealed is in the store
                            if self._is_clean and log.size_bytes:  # a promotion may have closed it meanwhile
                                log.rotate()
                    await self._on_thread(log.sync)
                    if self._is_clean:
                        await self._on_thread(log.seal)
                self._trouble = ""
            except OSError as error:
                self._trouble = error.strerror or type(error).__name__
            except StoreError as error:
                self._trouble = error.message  # the engine meets it too, and starts again

    def _forget(self, view: ViewSpec) -> None:
        log = self._logs.pop(view.name, None)
        if log is not None:
            log.close()

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_same(view: ViewSpec, served: tuple[FeatureValue, ...], logged: tuple[Any, ...]) -> bool:
    values: list[Any] = [
        tuple(cast("list[Any]", value)) if isinstance(value, list) else value for value in logged
    ]  # a journal has lists
    encode = codec_of(view).encode_values
    try:
        return encode(served) == encode(values)
    except StoreRefused:
        return False  # a row that doesn't fit is in the journal, and never in the store
