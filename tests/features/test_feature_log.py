"""The feature log holds each row that the online store got, once, in order, whatever fails in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import struct
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from features.test_engine import FaultyStore, jumping_clock, run_to_the_end
from fix_features import DEFINITIONS, START_US, SlicedLog, random_life
from headrace.cdc.errors import DefinitionError, StoreError, StoreRefused
from headrace.features.compiled import CompiledView
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.offline.journal import Flush, Header, JournalWriter, LoggedRow
from headrace.features.offline.logged import LoggedStore
from headrace.features.offline.segment import check_names, write_segment
from headrace.features.offline.viewlog import ViewLog, read_description, segments
from headrace.features.spec import FeatureValue, Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, EntityWrite, ViewWrite
from headrace.features.store.memory import MemoryStore


class RecordingStore(FaultyStore):
    """Remembers each row it really took."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, list[tuple[Any, ...]]] = {}

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        before = self.writes
        try:
            await super().write(writes)
        finally:
            if before + 1 not in self.fail_before:
                for write in writes:
                    rows = self.taken.setdefault(write.view.name, [])
                    for entity in write.entities:
                        place = (write.checkpoint.offsets[0], write.checkpoint.log_time_us)
                        rows.append((*place, entity.key, bits(entity.values), entity.event_time_us))


def bits(values: tuple[Any, ...] | None) -> Any:
    """Floats as their bits, so that -0.0 differs from 0.0."""
    if values is None:
        return None
    return tuple(struct.pack("<d", value) if isinstance(value, float) else value for value in values)


def logged(folder: Path, view: ViewSpec) -> list[tuple[Any, ...]]:
    """The rows of the sealed log in the order of created."""
    keys = [field.name for field in view.join_keys]
    fields = [field.name for field in view.fields]
    found: list[tuple[Any, ...]] = []
    for path in segments(folder / view.name):
        table = pq.read_table(path)
        for name in ("event_timestamp", "created", "hr__event_time"):
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].cast("int64"))
        for row in table.to_pylist():
            values = None if row["hr__deleted"] else bits(tuple(row[name] for name in fields))
            key = tuple(row[name] for name in keys)
            found.append(
                (row["created"], row["hr__offset"], row["event_timestamp"], key, values, row["hr__event_time"])
            )
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    return [row[1:] for row in found]


def make_engine(
    views: Sequence[CompiledView], store: MemoryStore, log: SlicedLog, folder: Path, *, roll_bytes: int = 2000
) -> FeatureEngine:
    return FeatureEngine(
        views,
        lambda: LoggedStore(store, folder, roll_every_s=0.01, roll_bytes=roll_bytes),
        log,
        CollectorRegistry(),
        monotonic=jumping_clock(),
        clock=lambda: START_US / 1e6,
    )


def two_views(path: Path) -> tuple[CompiledView, ...]:
    path.write_text(
        DEFINITIONS
        + 'statuses = FeatureView("statuses", entity=customer, source=Table("public.orders"), features=[latest("status"), count(over="1h")])\n'
    )
    return load_definitions(path)


async def test_writes_wait_for_a_sealing_that_is_slow(
    definitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.offline.logged._MOST_UNSEALED", 1)
    views = two_views(definitions)
    table = random_life(73, 120)
    log = SlicedLog()
    log.most = 11
    await log.add(*table.events)
    store = RecordingStore()
    await run_to_the_end(make_engine(views, store, log, tmp_path / "log", roll_bytes=1), len(table.events))
    for view in views:
        assert logged(tmp_path / "log", view.spec) == store.taken[view.spec.name]


@pytest.mark.parametrize("reason", ["No space left on device"])
async def test_a_sealing_that_fails_says_why_and_loses_and_doubles_no_row(
    definitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """The second view's fails, so that the first's journal already has what its store doesn't."""
    monkeypatch.setattr("headrace.features.offline.logged._MOST_UNSEALED", 1)
    views = two_views(definitions)
    table = random_life(74, 120)
    log = SlicedLog()
    log.most = 11
    await log.add(*table.events)
    store = RecordingStore()
    seal = ViewLog.seal

    def fail(self: ViewLog) -> None:
        if self.view.name == "statuses":
            raise OSError(28, reason)
        seal(self)

    with monkeypatch.context() as full:
        full.setattr(ViewLog, "seal", fail)
        with pytest.raises(StoreError, match=reason):
            await run_to_the_end(make_engine(views, store, log, tmp_path / "log", roll_bytes=1), len(table.events))
    await run_to_the_end(make_engine(views, store, log, tmp_path / "log", roll_bytes=1), len(table.events))
    for view in views:
        assert logged(tmp_path / "log", view.spec) == store.taken[view.spec.name]


@pytest.mark.parametrize("seed", [71, 72])
async def test_a_failure_at_any_write_loses_and_doubles_no_row(definitions: Path, tmp_path: Path, seed: int) -> None:
    views = two_views(definitions)
    table = random_life(seed, 120)
    log = SlicedLog()
    log.most = 11
    await log.add(*table.events)
    calm = RecordingStore()
    await run_to_the_end(make_engine(views, calm, log, tmp_path / "calm"), len(table.events))
    assert calm.taken["customer_orders"]
    for view in views:
        assert logged(tmp_path / "calm", view.spec) == calm.taken[view.spec.name]
    for number in range(1, calm.writes + 1):
        for kind in ("before", "after"):
            store, folder = RecordingStore(), tmp_path / f"{kind}{number}"
            getattr(store, f"fail_{kind}").add(number)
            for most in (11, 7):  # what is read again comes in other batches
                log.most = most
                with contextlib.suppress(StoreError):
                    await run_to_the_end(make_engine(views, store, log, folder), len(table.events))
            for view in views:
                wanted = store.taken[view.spec.name]
                assert logged(folder, view.spec) == wanted, f"seed {seed}, failed {kind} write {number}"


async def test_a_storm_that_is_cut_short_is_logged_once(tmp_path: Path, view_of_one: ViewSpec) -> None:
    """Slices of decay carry the same checkpoint: which of them the store has, its states tell."""
    store = RecordingStore()
    store.fail_before.add(3)
    slices = [
        ViewWrite(view_of_one, [EntityWrite((key,), (float(key),), 5, b"s")], {}, Checkpoint("v", "g", (9,), 7))
        for key in (1, 2, 3)
    ]
    for _ in range(2):
        logging = LoggedStore(store, tmp_path, roll_every_s=60)
        await logging.open()
        await logging.checkpoint(view_of_one)
        with contextlib.suppress(StoreError):
            for number, one in enumerate(slices, 1):
                if store.writes < 3 or number == 3:
                    await logging.write([one])
        await logging.close()
    assert [row[2] for row in logged(tmp_path, view_of_one)] == [(1,), (2,), (3,)]


async def test_a_row_whose_features_change_and_not_its_state_is_logged_once(
    tmp_path: Path, view_of_one: ViewSpec
) -> None:
    """As when a row of the future comes into a window: the tiles are the same, the window's total isn't."""
    store = RecordingStore()
    store.fail_before.add(2)
    before, after = one(view_of_one, 1, 9, value=0.5), one(view_of_one, 1, 9, value=1.5)
    logging = LoggedStore(store, tmp_path, roll_every_s=60)
    await logging.open()
    await logging.checkpoint(view_of_one)
    await logging.write([before])
    with pytest.raises(StoreError):
        await logging.write([after])
    await logging.close()
    await run_writes(store, tmp_path, after)
    assert [row[3] for row in logged(tmp_path, view_of_one)] == [bits((0.5,)), bits((1.5,))]


async def test_a_sealing_under_way_when_a_write_fails_leaves_the_growing_journal_alone(
    tmp_path: Path, view_of_one: ViewSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has begun and not yet looked which journals are ready when the failed run closes: what the store refused must not be sealed."""
    began, closed = threading.Event(), threading.Event()
    seal, close = ViewLog.seal, ViewLog.close

    def late(self: ViewLog) -> None:
        began.set()
        closed.wait(0.5)  # in vain when the close waits for this
        seal(self)

    def told(self: ViewLog) -> None:
        close(self)
        closed.set()

    slices = [
        ViewWrite(view_of_one, [EntityWrite((key,), (float(key),), 5, b"s")], {}, Checkpoint("v", "g", (9,), 7))
        for key in (1, 2, 3)
    ]
    store = RecordingStore()
    store.fail_before.add(2)
    with monkeypatch.context() as patched:
        patched.setattr(ViewLog, "seal", late)
        patched.setattr(ViewLog, "close", told)
        logging = LoggedStore(store, tmp_path, roll_every_s=0.001)
        await logging.open()
        await logging.checkpoint(view_of_one)
        await logging.write([slices[0]])
        await asyncio.to_thread(began.wait)
        with pytest.raises(StoreError):
            await logging.write([slices[1]])
        await logging.close()
    await run_writes(store, tmp_path, *slices[1:])
    assert [row[2] for row in logged(tmp_path, view_of_one)] == [(1,), (2,), (3,)]


@pytest.fixture
def view_of_one() -> ViewSpec:
    return ViewSpec("ones", (Field("k", ValueType.INT64),), (Field("x", ValueType.FLOAT64),), "v")


def one(view: ViewSpec, key: int, offset: int, value: float = 0.5, generation: str = "g") -> ViewWrite:
    return ViewWrite(
        view,
        [EntityWrite((key,), (value,), offset, b"s")],
        {},
        Checkpoint(view.spec_hash, generation, (offset,), offset * 1_000_000),
    )


async def run_writes(store: MemoryStore, folder: Path, *writes: ViewWrite) -> LoggedStore:
    logging = LoggedStore(store, folder, roll_every_s=60)
    await logging.open()
    for name in {write.view.name: write.view for write in writes}.values():
        await logging.checkpoint(name)
    for write in writes:
        await logging.write([write])
    await logging.close()
    return logging


async def test_a_store_that_lost_its_newest_writes_takes_them_out_of_the_log(
    tmp_path: Path, view_of_one: ViewSpec
) -> None:
    store = MemoryStore()
    await run_writes(store, tmp_path, one(view_of_one, 1, 1), one(view_of_one, 2, 2))
    older = MemoryStore()  # as a Redis that lost the tail of its append-only file
    await older.open()
    await older.write([one(view_of_one, 1, 1)])
    await older.close()
    await run_writes(older, tmp_path, one(view_of_one, 3, 2))
    assert [row[2] for row in logged(tmp_path, view_of_one)] == [(1,), (3,)]
    assert list((tmp_path / "ones" / "retired" / "rewound").glob("*.parquet")), "what was served is kept aside"


async def test_another_definition_or_event_log_retires_what_was_logged(tmp_path: Path, view_of_one: ViewSpec) -> None:
    await run_writes(MemoryStore(), tmp_path, one(view_of_one, 1, 5))
    await run_writes(MemoryStore(), tmp_path, one(view_of_one, 2, 1, generation="h"))
    assert [row[2] for row in logged(tmp_path, view_of_one)] == [(2,)]
    assert [path.name for path in (tmp_path / "ones" / "retired").iterdir()] == ["v-g"]


async def test_rows_lost_by_the_disk_are_named_as_a_gap(tmp_path: Path, view_of_one: ViewSpec) -> None:
    store = MemoryStore()
    await run_writes(store, tmp_path, one(view_of_one, 1, 1))
    await store.open()
    await store.checkpoint(view_of_one)
    await store.write([one(view_of_one, 2, 4)])  # the store has it, the log's disk forgot it
    await store.close()
    await run_writes(store, tmp_path, one(view_of_one, 3, 5))
    description = read_description(tmp_path / "ones")
    assert description is not None
    assert description.gaps == [(1, 4)]


async def test_two_writers_of_one_log_are_refused(tmp_path: Path) -> None:
    first, second = (LoggedStore(MemoryStore(), tmp_path, roll_every_s=60) for _ in range(2))
    await first.open()
    with pytest.raises(StoreRefused, match="another process writes the feature log"):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_a_journal_cut_anywhere_gives_its_whole_records(tmp_path: Path, view_of_one: ViewSpec) -> None:
    store = MemoryStore()
    logging = LoggedStore(store, tmp_path, roll_every_s=60)
    await logging.open()
    await logging.checkpoint(view_of_one)
    ends = []
    for offset in range(1, 6):
        await logging.write([one(view_of_one, offset, offset)])
        ends.append(next((tmp_path / "ones").glob("*.journal")).stat().st_size)
    journal = next((tmp_path / "ones").glob("*.journal"))
    whole = journal.read_bytes()
    logging._is_clean = False  # as if killed: nothing is sealed
    await logging.close()
    from headrace.features.offline.journal import read_flushes

    for size in range(ends[0], len(whole) + 1):
        journal.write_bytes(whole[:size])
        count = sum(end <= size for end in ends)
        assert [flush.offset for flush in read_flushes(journal)] == list(range(1, count + 1)), f"cut at {size}"


def test_every_type_has_exact_values_in_parquet(tmp_path: Path) -> None:
    view = ViewSpec(
        "types", (Field("k", ValueType.STRING),), tuple(Field(f"f{n}", kind) for n, kind in enumerate(ValueType)), "t"
    )
    rows: dict[ValueType, FeatureValue] = {
        ValueType.INT32: -(1 << 31),
        ValueType.INT64: (1 << 63) - 1,
        ValueType.FLOAT32: 0.5,
        ValueType.FLOAT64: -0.0,
        ValueType.STRING: "naïve 🎈",
        ValueType.BOOL: False,
        ValueType.BYTES: b"\x00\xff",
        ValueType.UNIX_TIMESTAMP: 1_700_000_000_000_000,
        ValueType.INT64_LIST: ((1 << 63) - 1, -1),
        ValueType.FLOAT64_LIST: (0.1, -0.0),
        ValueType.STRING_LIST: (),
    }
    values = tuple(rows[kind] for kind in ValueType)
    write_segment(
        tmp_path / "00000001-00000000000000000001.parquet",
        view,
        [Flush(1, 2, 3, (LoggedRow(("a",), values, 1), LoggedRow(("b",), None, 1)))],
    )
    read = duckdb.sql(
        f"select f0, f1, f2, f3, f4, f5, f6, epoch_us(f7), f8, f9, f10 from '{tmp_path}/*.parquet' order by k"
    ).fetchall()
    assert bits(read[0][:8]) == bits(values[:8])
    assert [tuple(found) for found in read[0][8:]] == list(values[8:])
    assert math.copysign(1, read[0][9][1]) == -1
    assert math.copysign(1, read[0][3]) == -1
    assert read[1] == (None,) * 11


def test_a_feature_named_as_a_column_of_the_log_is_refused() -> None:
    view = ViewSpec("v", (Field("k", ValueType.STRING),), (Field("created", ValueType.INT64),), "t")
    with pytest.raises(DefinitionError, match="'created' is the name of a column of the feature log"):
        check_names(view)


def test_a_journal_closed_while_another_thread_syncs_it(
    tmp_path: Path, view_of_one: ViewSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rotation does when the disk is slow."""
    writer = JournalWriter(tmp_path / "00000001.journal", Header(view_of_one, "g"))
    writer.append(Flush(1, 2, 3, ()))
    is_syncing, may_go_on = threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        is_syncing.set()
        assert may_go_on.wait(10)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    with ThreadPoolExecutor(1) as other:
        syncing = other.submit(writer.sync)
        assert is_syncing.wait(10)
        writer.close()
        may_go_on.set()
        syncing.result()
        other.submit(writer.sync).result()


async def test_a_view_with_on_demand_features_is_logged_too(definitions: Path, tmp_path: Path) -> None:
    definitions.write_text(
        DEFINITIONS.replace("import Entity", "import on_demand, Entity")
        + 'halves = FeatureView("halves", entity=customer, source=Table("public.orders"), features=[count(name="n")],'
        + ' on_demand=[on_demand("half", Float64, inputs=["n"], compute=lambda n: n / 2)])\n'
    )
    view = load_definitions(definitions)[-1]
    log, table = SlicedLog(), random_life(98, 60)
    await log.add(*table.events)
    await run_to_the_end(make_engine([view], MemoryStore(), log, tmp_path / "log"), 60)
    assert logged(tmp_path / "log", view.spec)


class GatedStore(MemoryStore):
    """Its writes wait for a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_writing = asyncio.Event()

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        self.is_writing.set()
        await self.gate.wait()
        await super().write(writes)

    async def promote(self, view: ViewSpec) -> None:
        pass


async def test_a_log_that_a_promotion_closes_while_it_waits_to_be_rotated_is_left_alone(
    definitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncing, may_sync = threading.Event(), threading.Event()
    sync = ViewLog.sync

    def slow_sync(self: ViewLog) -> None:
        syncing.set()
        assert may_sync.wait(30)
        sync(self)

    monkeypatch.setattr(ViewLog, "sync", slow_sync)
    first, second = (view.spec for view in two_views(definitions))
    clock = itertools.count(1_700_000_000.0)
    inner = GatedStore()
    store = LoggedStore(inner, tmp_path / "log", roll_every_s=0.01, clock=lambda: next(clock))
    await store.open()

    def a_write(view: ViewSpec, offset: int) -> ViewWrite:
        values = tuple(None for _ in view.fields)
        row = EntityWrite((1,), values, START_US, b"state", None)
        return ViewWrite(view, [row], {}, Checkpoint(view.spec_hash, "g", (offset,), START_US))

    for view in (first, second):
        assert await store.checkpoint(view) is None
        await store.write([a_write(view, 1)])
    assert await asyncio.to_thread(syncing.wait, 30)  # it syncs the first view's, and comes to the second one's next
    await store.write([a_write(second, 2)])
    inner.gate.clear()
    inner.is_writing.clear()
    writing = asyncio.create_task(store.write([a_write(first, 2)]))
    await inner.is_writing.wait()
    promoting = asyncio.create_task(store.promote(second))
    await asyncio.sleep(0)  # it asks for its turn now, before the one that tends the logs does
    may_sync.set()
    async with asyncio.timeout(30):
        while len(store._turn._waiters or ()) < 2:  # type: ignore[attr-defined]  # the two that wait
            await asyncio.sleep(0.001)  # the thread tells nobody
    inner.gate.set()
    await asyncio.gather(writing, promoting)
    await store.write([a_write(first, 3)])  # after the tending has had its turn
    await store.close()  # raises what ended the tending
