"""The rules of the kernel one by one; test_kernel_property.py holds them all together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fix_features import HOUR_US, MINUTE_US, SECOND_US, START_US, row_event, text_of
from headrace.cdc.errors import DefinitionError
from headrace.cdc.event import CustomerEvent
from headrace.features.lane import Lane
from headrace.features.loading import load_definitions
from headrace.features.spec import FeatureValue
from headrace.features.store.memory import MemoryStore
from headrace.features.worker import ViewWorker


class Bench:
    """One view over ``public.orders``, fed by hand."""

    def __init__(self, lane: Lane, store: MemoryStore) -> None:
        self.lane = lane
        self.store = store
        self.view = lane.workers[0].view
        self.counts = lane.workers[0].kernel.counts
        self.stopped: list[DefinitionError] = []

    async def row(self, *key: FeatureValue) -> dict[str, FeatureValue] | None:
        names = [field.name for field in self.view.spec.fields]
        (found,) = await self.store.read(self.view.spec, names, [key])
        return None if found is None else dict(zip(names, found.values, strict=True))

    async def event_time_us(self, *key: FeatureValue) -> int:
        (found,) = await self.store.read(self.view.spec, [], [key])
        assert found is not None
        return found.event_time_us

    async def apply(self, *events: CustomerEvent) -> None:
        await self.lane.apply(events)


async def bench(path: Path, view: str) -> Bench:
    path = path / "definitions.py"
    path.write_text(f"""from headrace.features import *
customer = Entity("customer", join_keys={{"customer_id": Int64}})
orders = Table("public.orders")
view = {view}
""")
    store = MemoryStore()
    await store.open()
    worker = ViewWorker(load_definitions(path)[0], store, "g", most_states=100)
    stopped: list[DefinitionError] = []
    lane = Lane([worker], store, 0, 0, lambda worker, error: stopped.append(error))
    made = Bench(lane, store)
    made.stopped = stopped
    return made


LATEST = (
    'FeatureView("v", entity=customer, source=orders, event_time="at", features=[latest("status"), latest("note")])'
)


def order(
    key: int, status: str | None, at_us: int, *, op: Any = "insert", now_us: int = START_US, **more: Any
) -> CustomerEvent:
    after = {"id": key, "customer_id": 1, "status": status, "note": f"note {key}", "at": text_of(at_us), **more}
    return row_event(
        op, committed_us=now_us, after={name: value for name, value in after.items() if value is not ...}, **extra(more)
    )


def extra(more: dict[str, Any]) -> dict[str, Any]:
    left = tuple(name for name, value in more.items() if value is ...)
    return {"unchanged": left} if left else {}


async def test_the_newest_row_by_event_time_is_the_latest_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST)
    await made.apply(order(1, "new", START_US), order(2, "old", START_US - HOUR_US))
    assert await made.row(1) == {"status": "new", "note": "note 1"}


async def test_rows_of_the_same_event_time_rank_by_their_last_change(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST)
    await made.apply(order(1, "a", START_US), order(2, "b", START_US))
    assert (await made.row(1) or {})["status"] == "b"
    await made.apply(order(1, "c", START_US, op="update"))
    assert (await made.row(1) or {})["status"] == "c"


async def test_the_second_newest_row_is_the_latest_again_when_the_newest_is_deleted(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST)
    await made.apply(*[order(key, f"s{key}", START_US + key) for key in range(1, 6)])
    await made.apply(row_event("delete", committed_us=START_US, before={"id": 5}))
    assert (await made.row(1) or {})["status"] == "s4"
    await made.apply(order(4, "s4", START_US - HOUR_US, op="update"))
    assert (await made.row(1) or {})["status"] == "s3"
    await made.apply(*[row_event("delete", committed_us=START_US, before={"id": key}) for key in (1, 2, 3, 4)])
    assert await made.row(1) is None, "no row counts any more: NOT_FOUND, not nulls"


async def test_an_unsent_value_is_taken_from_what_was_kept(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST)
    long = "long " * 100
    await made.apply(order(1, "a", START_US, note=long), order(1, "b", START_US, op="update", note=...))
    assert await made.row(1) == {"status": "b", "note": long}
    assert made.counts.unknown == 0


async def test_an_unsent_value_is_taken_from_the_old_image_where_the_server_sent_one(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST)
    before = {"id": 1, "customer_id": None, "status": "a", "note": "from before", "at": text_of(START_US)}
    after = {"id": 1, "customer_id": 1, "status": "b", "at": text_of(START_US)}
    await made.apply(row_event("update", committed_us=START_US, after=after, before=before, unchanged=("note",)))
    assert await made.row(1) == {"status": "b", "note": "from before"}
    assert made.counts.unknown == 0


async def test_an_unsent_value_that_nobody_knows_is_counted_and_null(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST)
    await made.apply(order(1, "a", START_US, customer_id=None), order(1, "b", START_US, op="update", note=...))
    assert await made.row(1) == {"status": "b", "note": None}
    assert made.counts.unknown == 1


async def test_a_row_outside_the_filter_remembers_its_long_values(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST.replace("event_time", 'where=col("status") == "paid", event_time'))
    long = "long " * 100
    await made.apply(order(1, "open", START_US, note=long))
    assert await made.row(1) is None
    await made.apply(order(1, "paid", START_US, op="update", note=...))
    assert await made.row(1) == {"status": "paid", "note": long}


@pytest.mark.parametrize(
    ("dtype", "value", "wanted"),
    [
        ("Int64", "12", 12),
        ("Int64", "12.00", 12),
        ("Int64", "12.5", None),
        ("Int32", 2**31, None),
        ("Float64", "0.1", 0.1),
        ("Float32", 0.5, 0.5),
        ("Float64", "Infinity", float("inf")),
        ("String", 5, "5"),
        ("String", True, "true"),
        ("Bool", True, True),
        ("Bool", 1, True),
        ("Bool", "yes", None),
        ("Bytes", "\\x00ff", b"\x00\xff"),
        ("Bytes", "ab", None),
        ("UnixTimestamp", "2024-01-01 00:00:01+00", 1_704_067_201_000_000),
        ("UnixTimestamp", "infinity", None),
    ],
)
async def test_a_latest_value_is_read_as_its_type_or_null(
    tmp_path: Path, dtype: str, value: Any, wanted: FeatureValue
) -> None:
    made = await bench(
        tmp_path, f'FeatureView("v", entity=customer, source=orders, features=[latest("status", {dtype}), count()])'
    )
    await made.apply(order(1, value, START_US))
    assert await made.row(1) == {"status": wanted, "count": 1}


async def test_a_value_that_can_not_be_added_is_counted_and_adds_nothing(tmp_path: Path) -> None:
    made = await bench(tmp_path, 'FeatureView("v", entity=customer, source=orders, features=[sum_("status"), count()])')
    await made.apply(order(1, "2.5", START_US), order(2, "abc", START_US))
    assert await made.row(1) == {"status_sum": 2.5, "count": 2}
    assert made.counts.unreadable == 1
    await made.apply(row_event("delete", committed_us=START_US, before={"id": 2}))
    assert await made.row(1) == {"status_sum": 2.5, "count": 1}
    assert made.counts.unreadable == 1, "counted once, when it was new"


async def test_an_undecodable_value_reads_as_null_and_is_counted(tmp_path: Path) -> None:
    made = await bench(tmp_path, LATEST)
    after = {"id": 1, "customer_id": 1, "status": "a", "at": text_of(START_US)}
    await made.apply(row_event("insert", committed_us=START_US, after=after, undecodable=("note",)))
    assert await made.row(1) == {"status": "a", "note": None}
    assert (made.counts.unreadable, made.counts.missing) == (1, frozenset())


WINDOWED = (
    'FeatureView("v", entity=customer, source=orders, event_time="at", features=[count(over=["1m", "1h"]), count()])'
)


async def test_a_late_row_goes_to_its_own_tile_and_an_older_one_is_counted(tmp_path: Path) -> None:
    made = await bench(tmp_path, WINDOWED)
    await made.apply(
        order(1, "a", START_US), order(2, "a", START_US - 30 * MINUTE_US), order(3, "a", START_US - 2 * HOUR_US)
    )
    assert await made.row(1) == {"count_1m": 1, "count_1h": 2, "count": 3}
    assert made.counts.late == 1


async def test_rows_of_a_snapshot_are_history_and_not_late(tmp_path: Path) -> None:
    made = await bench(tmp_path, WINDOWED)
    await made.apply(order(1, "a", START_US - 2 * HOUR_US, op="read"))
    assert await made.row(1) == {"count_1m": 0, "count_1h": 0, "count": 1}
    assert made.counts.late == 0


async def test_a_row_of_the_future_counts_when_its_time_has_come(tmp_path: Path) -> None:
    made = await bench(tmp_path, WINDOWED)
    await made.apply(order(1, "a", START_US + 10 * MINUTE_US))
    assert await made.row(1) == {"count_1m": 0, "count_1h": 0, "count": 1}
    assert await made.event_time_us(1) == START_US, "no row is newer than the log"
    await made.apply(order(2, "a", START_US, now_us=START_US + 10 * MINUTE_US, customer_id=2))
    while await made.lane.decay(10):
        pass
    assert await made.row(1) == {"count_1m": 1, "count_1h": 1, "count": 1}


async def test_a_row_without_an_event_time_stands_at_its_commit(tmp_path: Path) -> None:
    made = await bench(tmp_path, WINDOWED)
    event = row_event("insert", committed_us=START_US, after={"id": 1, "customer_id": 1, "at": None})
    await made.apply(event)
    assert await made.row(1) == {"count_1m": 1, "count_1h": 1, "count": 1}
    assert made.counts.unreadable == 0


async def test_two_sources_with_the_same_table_and_keys_are_two_rows(tmp_path: Path) -> None:
    made = await bench(tmp_path, 'FeatureView("v", entity=customer, source=orders, features=[count()])')
    after = {"id": 1, "customer_id": 1}
    await made.apply(*[row_event("insert", committed_us=START_US, after=after, source=source) for source in ("a", "b")])
    assert await made.row(1) == {"count": 2}
    await made.apply(row_event("truncate", committed_us=START_US, source="a"))
    assert await made.row(1) == {"count": 1}


async def test_a_view_of_one_source_does_not_see_the_other(tmp_path: Path) -> None:
    table = 'Table("public.orders", source="b")'
    made = await bench(tmp_path, f'FeatureView("v", entity=customer, source={table}, features=[count()])')
    after = {"id": 1, "customer_id": 1}
    await made.apply(*[row_event("insert", committed_us=START_US, after=after, source=source) for source in ("a", "b")])
    assert await made.row(1) == {"count": 1}


async def test_rows_can_be_told_apart_by_declared_columns(tmp_path: Path) -> None:
    table = 'Table("public.orders", key=["a", "b"])'
    made = await bench(tmp_path, f'FeatureView("v", entity=customer, source={table}, features=[count()])')
    rows = [{"a": a, "b": b, "customer_id": 1} for a, b in ((1, 1), (1, 2))]
    await made.apply(*[row_event("insert", committed_us=START_US, after=row) for row in rows])
    await made.apply(
        row_event("update", committed_us=START_US, after={"a": 2, "b": 2, "customer_id": 1}, before=rows[1])
    )
    assert await made.row(1) == {"count": 2}
    await made.apply(row_event("delete", committed_us=START_US, before={"a": 2, "b": 2}))
    assert await made.row(1) == {"count": 1}
    await made.apply(row_event("delete", committed_us=START_US, before={"b": 2}))
    assert made.stopped[0].message.startswith("view 'v': the old images of table public.orders")


async def test_a_composite_entity_key_keeps_its_declared_order(tmp_path: Path) -> None:
    entity = 'Entity("pair", join_keys={"z": String, "a": Int64})'
    made = await bench(
        tmp_path, f'FeatureView("v", entity={entity}, source=orders, entity_key={{"z": "status"}}, features=[count()])'
    )
    await made.apply(row_event("insert", committed_us=START_US, after={"id": 1, "status": "x", "a": 5}))
    assert await made.row("x", 5) == {"count": 1}


async def test_an_entity_key_that_can_not_be_read_counts_for_nobody(tmp_path: Path) -> None:
    made = await bench(tmp_path, 'FeatureView("v", entity=customer, source=orders, features=[count()])')
    await made.apply(order(1, "a", START_US, customer_id="abc"), order(2, "a", START_US, customer_id=None))
    assert await made.store.keys(made.view.spec) == []
    assert made.counts.unreadable == 1


async def test_without_an_event_time_a_row_stands_at_its_last_change(tmp_path: Path) -> None:
    made = await bench(tmp_path, 'FeatureView("v", entity=customer, source=orders, features=[count(over="1m")])')
    later = START_US + 50 * SECOND_US
    await made.apply(order(1, "a", START_US), order(1, "b", START_US, op="update", now_us=later))
    await made.apply(order(2, "b", START_US, now_us=START_US + 70 * SECOND_US, customer_id=2))
    while await made.lane.decay(10):
        pass
    assert await made.row(1) == {"count_1m": 1}
    assert await made.event_time_us(1) == later


async def test_a_replayed_change_never_brings_back_what_a_later_one_moved(tmp_path: Path) -> None:
    made = await bench(tmp_path, 'FeatureView("v", entity=customer, source=orders, features=[count()])')
    insert = order(1, "a", START_US)
    await made.apply(insert, order(1, "a", START_US, op="update", customer_id=2))
    made.store._views["v"].checkpoint = None
    made.lane.offset = 0
    await made.apply(insert)  # the update will come again too, but readers look meanwhile
    assert await made.row(1) is None
    assert await made.row(2) == {"count": 1}


@pytest.mark.parametrize("together", [True, False])
async def test_an_entity_that_lost_all_rows_begins_anew(tmp_path: Path, together: bool) -> None:
    made = await bench(tmp_path, LATEST)
    old_us = START_US - HOUR_US
    events = [
        order(1, "a", START_US),
        row_event("delete", committed_us=START_US, before={"id": 1}),
        order(2, "b", old_us),
    ]
    for batch in [events] if together else [[event] for event in events]:
        await made.apply(*batch)
    assert await made.event_time_us(1) == old_us
    assert (await made.row(1) or {})["status"] == "b"
