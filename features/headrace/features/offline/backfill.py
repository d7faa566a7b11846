"""``headrace features backfill``: the rows that the feature log would have, had headrace been there before.

The past's rows go one by one through the kernel that serves: each at the time at which it became known, and between two of them what falls due by the time alone, at
the very moment at which it does. So a row of the result takes effect at its ``event_timestamp`` exactly, while live rows do when a flush does.
Nothing of it touches the online store or the event log.

The result stands as segment 0 in the view's folder of the feature log, where training sets and Feast find it before the live rows; it ends before the first of these.
A new backfill replaces it; a changed definition retires it with the rest.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from headrace.cdc.errors import StoreRefused
from headrace.features.compiled import CompiledView
from headrace.features.loading import load_definitions
from headrace.features.offline import manycores
from headrace.features.offline.journal import Flush, LoggedRow
from headrace.features.offline.pastrows import PastRows
from headrace.features.offline.reading import attach, connect
from headrace.features.offline.segment import EVENT_TIMESTAMP, OFFSET, SegmentWriter, check_names, served
from headrace.features.offline.viewlog import FIRST_SEGMENT
from headrace.features.rows import RowChange
from headrace.features.spec import ViewSpec
from headrace.features.store.base import ViewWrite
from headrace.features.store.memory import MemoryStore
from headrace.features.worker import FOREVER_US, ViewWorker

NOT_LOGGED: Final = -1
"""hr__offset of a row that no event of the log stands behind."""

_DECAY_SLICE: Final = 10_000
_TELL_EVERY: Final = 1_000
_ROWS_A_CORE: Final = 10_000
"""Fewer aren't worth a process: its start takes a second."""


class Backfilled(msgspec.Struct):
    """rows: read; left_out: of a time when headrace logged already; without_time: of none; written: rows of the result.

    first_us, until_us: the time that the result covers. unreadable: values that can't be read as the type asked, late: rows older than every window.
    """

    view: str
    out: str
    rows: int = 0
    left_out: int = 0
    without_time: int = 0
    written: int = 0
    first_us: int | None = None
    until_us: int = 0
    unreadable: int = 0
    late: int = 0


def first_logged_us(folder: Path, view: ViewSpec) -> int | None:
    """When the first live row took effect, None when there is none yet. Raises DefinitionError as reading.attach does."""
    connection = connect()
    try:
        attach(connection, folder, view, "logged")
        query = f"select epoch_us(min({EVENT_TIMESTAMP})) from logged where {OFFSET} >= 0"
        found: int | None = connection.execute(query).fetchone()[0]
    finally:
        connection.close()
    return found


def backfill(
    view: CompiledView,
    source: str,
    *,
    folder: Path | None,
    out: Path | None,
    at: str = "",
    key: Sequence[str] = (),
    op: str = "",
    tell: Callable[[int, int], None] = lambda done, of: None,
    rows_a_part: int = 200_000,
    cores: int = 1,
    definitions: Path | None = None,
) -> Backfilled:
    """Write the result to ``out``, or else into the view's folder of the feature log. tell: rows done, of how many.

    cores: at most; with more than one, definitions is the file that the view was loaded from. With ``op`` one core does it all.

    Raises DefinitionError: rows, columns or the log can't be used; StoreRefused: the file can't be written.
    """
    check_names(view.spec)
    until_us = time.time_ns() // 1000
    if out is None:
        assert folder is not None
        logged_us = first_logged_us(folder, view.spec)
        until_us = until_us if logged_us is None else logged_us
        out = folder / FIRST_SEGMENT
    past = PastRows(view, source, at=at, key=key, op=op, until_us=until_us, rows_a_part=rows_a_part)
    try:
        result = Backfilled(view.spec.name, str(out), past.rows, past.all_rows - past.rows - past.without_time)
        result.without_time = past.without_time
        result.first_us, result.until_us = past.first_us, until_us
        with SegmentWriter(out, view.spec) as writer:
            cores = min(cores, past.rows // _ROWS_A_CORE)
            if cores > 1 and definitions is not None and not op:
                _on_cores(cores, definitions, view, past, at, key, result, writer, tell)
            else:
                counted = _parts(view, past, range(past.parts), until_us, writer, lambda done: tell(done, past.rows))
                result.unreadable, result.late = counted.unreadable, counted.late
        result.written = writer.rows
    except OSError as error:
        raise StoreRefused(
            f"{out} can't be written: {error.strerror}", advice="correct the path, or its rights"
        ) from error
    finally:
        past.close()
    return result


def _on_cores(
    cores: int,
    definitions: Path,
    view: CompiledView,
    past: PastRows,
    at: str,
    key: Sequence[str],
    result: Backfilled,
    writer: SegmentWriter,
    tell: Callable[[int, int], None],
) -> None:
    parts = cores * -(-past.parts // cores)
    with tempfile.TemporaryDirectory(prefix="headrace-backfill-") as name:
        folder = Path(name)
        past.keep(folder / "rows.duckdb")
        shares = [
            manycores.Share(
                definitions,
                view.spec.name,
                folder / "rows.duckdb",
                at,
                tuple(key),
                result.until_us,
                parts,
                first,
                cores,
                folder / f"{first}.parquet",
            )
            for first in range(cores)
        ]
        for path, counted in manycores.run(carry_out, shares, lambda done: tell(done, past.rows)):
            writer.copy(path)
            result.unreadable += counted.unreadable
            result.late += counted.late


def carry_out(share: manycores.Share, tell: Callable[[int], None]) -> manycores.Counted:
    """One share of the parts, in a process of its own."""
    view = next(each for each in load_definitions(share.definitions) if each.spec.name == share.view)
    past = PastRows(view, "", at=share.at, key=share.key, until_us=share.until_us, parts=share.parts, kept=share.kept)
    try:
        with SegmentWriter(share.out, view.spec) as writer:
            counted = _parts(view, past, range(share.first, share.parts, share.step), share.until_us, writer, tell)
    finally:
        past.close()
    return counted


def _parts(
    view: CompiledView,
    past: PastRows,
    numbers: Iterable[int],
    until_us: int,
    writer: SegmentWriter,
    tell: Callable[[int], None],
) -> manycores.Counted:
    counted = manycores.Counted()
    done = 0
    for number in numbers:
        done = asyncio.run(_part(view, past, number, until_us, writer, counted, tell, done))
    return counted


async def _part(
    view: CompiledView,
    past: PastRows,
    number: int,
    until_us: int,
    writer: SegmentWriter,
    counted: manycores.Counted,
    tell: Callable[[int], None],
    done: int,
) -> int:
    """Rows done after it."""
    store = MemoryStore()
    await store.open()
    line = _Line(view, store, writer)
    await line.worker.begin(0, 0)
    waiting: list[RowChange] = []
    for change in past.part(number):
        if waiting and change.now_us != waiting[0].now_us:
            await line.apply(waiting)
            waiting = []
        waiting.append(change)
        done += 1
        if done % _TELL_EVERY == 0:
            tell(done)
    if waiting:
        await line.apply(waiting)
    await line.decay_until(until_us)
    counts = line.worker.kernel.counts
    counted.unreadable += counts.unreadable
    counted.late += counts.late
    tell(done)
    await store.close()
    return done


class _Line:
    """One view on its way through the past."""

    def __init__(self, view: CompiledView, store: MemoryStore, writer: SegmentWriter) -> None:
        self.worker = ViewWorker(view, store, "past", most_states=1 << 62)
        self._view = view.spec
        self._store = store
        self._writer = writer
        self._offset = 0

    async def apply(self, changes: list[RowChange]) -> None:
        """Changes of one moment."""
        now_us = changes[0].now_us
        await self.decay_until(now_us)
        self._offset = changes[-1].offset + 1
        await self._emit(await self.worker.apply_changes(changes, self._offset, now_us), now_us)

    async def decay_until(self, until_us: int) -> None:
        """All that falls due before, each at its time."""
        while (due_us := self.worker.next_due_us) < until_us and due_us != FOREVER_US:
            write, _ = await self.worker.decay(self._offset, due_us, _DECAY_SLICE)
            await self._emit(write, due_us)

    async def _emit(self, write: ViewWrite | None, now_us: int) -> None:
        if write is None:
            return
        await self._store.write([write])
        self.worker.written(write)
        dtypes = [field.dtype for field in self._view.fields]
        rows = tuple(
            [
                LoggedRow(
                    entity.key,
                    None
                    if entity.values is None
                    else tuple([served(dtype, value) for dtype, value in zip(dtypes, entity.values, strict=True)]),
                    entity.event_time_us,
                )
                for entity in write.entities
            ]
        )
        self._writer.add(Flush(NOT_LOGGED, now_us, now_us, rows))


__all__ = ["Backfilled", "backfill", "first_logged_us"]
