"""What every online store promises (headrace.features.store.base), as one suite that test_stores.py runs over each engine."""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.cdc.errors import Action, StoreConflict, StoreRefused
from headrace.features.erasing import erase
from headrace.features.spec import EntityKey, FeatureValue, Field, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, EntityWrite, FeatureRow, OnlineStore, ViewWrite

SECOND_US = 1_000_000
INT64_MAX = (1 << 63) - 1

CLICKS = ViewSpec(
    name="clicks",
    join_keys=(Field("customer_id", ValueType.INT64),),
    fields=(
        Field("clicks_1h", ValueType.INT64),
        Field("spend_1h", ValueType.FLOAT64),
        Field("last_page", ValueType.STRING),
    ),
    spec_hash="clicks-1",
)
ORDERS = ViewSpec(
    name="orders",
    join_keys=(Field("customer_id", ValueType.INT64),),
    fields=(Field("orders_7d", ValueType.INT64),),
    spec_hash="orders-1",
)
EVERY_TYPE = ViewSpec(
    name="every_type",
    join_keys=(
        Field("zone", ValueType.STRING),
        Field("number", ValueType.INT32),
        Field("account", ValueType.INT64),
        Field("digest", ValueType.BYTES),
        Field("day", ValueType.UNIX_TIMESTAMP),
    ),
    fields=tuple(Field(f"f_{dtype.name.lower()}", dtype) for dtype in ValueType),
    spec_hash="every-1",
)

TIME_US = 1_700_000_000_123_456
_projects = itertools.count(1)

# One test function runs over every engine on purpose, and each example takes a project of its own.
_ONE_SUITE_MANY_ENGINES = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]


def at(*offsets: int, spec: ViewSpec = CLICKS, generation: str = "g1", log_time_us: int = TIME_US) -> Checkpoint:
    return Checkpoint(spec.spec_hash, generation, offsets, log_time_us)


def row(
    key: EntityKey,
    values: tuple[FeatureValue, ...] | None,
    *,
    event_time_us: int = TIME_US,
    state: bytes = b"state",
    due_us: int | None = None,
) -> EntityWrite:
    return EntityWrite(key, values, event_time_us, state, due_us)


def flush(
    view: ViewSpec,
    entities: Sequence[EntityWrite],
    checkpoint: Checkpoint,
    contributions: Mapping[bytes, Contribution | None] | None = None,
) -> ViewWrite:
    return ViewWrite(view, entities, contributions or {}, checkpoint)


async def all_of(store: OnlineStore, view: ViewSpec, keys: Sequence[EntityKey], row_keys: Sequence[bytes]) -> object:
    """Everything a store tells of a view, comparable."""
    return (
        await store.checkpoint(view),
        await store.read(view, [field.name for field in view.fields], keys),
        await store.states(view, keys),
        await store.due(view, INT64_MAX >> 12, 1000),
        await store.contributions(view, row_keys),
        [sorted(await store.contributions_of(view, key)) for key in keys],
        sorted(await store.keys(view), key=repr),
    )


_texts = st.text(st.characters(codec="utf-8"), max_size=40)
_seconds_us = st.integers(-(10**10), 10**10).map(lambda seconds: seconds * SECOND_US)
_values: dict[ValueType, st.SearchStrategy[FeatureValue]] = {
    ValueType.INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    ValueType.INT64: st.integers(-(1 << 63), INT64_MAX),
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.STRING: _texts,
    ValueType.BOOL: st.booleans(),
    ValueType.BYTES: st.binary(max_size=40),
    ValueType.UNIX_TIMESTAMP: _seconds_us,
    ValueType.INT64_LIST: st.lists(st.integers(-(1 << 63), INT64_MAX), max_size=5).map(tuple),
    ValueType.FLOAT64_LIST: st.lists(st.floats(allow_nan=False), max_size=5).map(tuple),
    ValueType.STRING_LIST: st.lists(_texts, max_size=5).map(tuple),
}


def rows_of(view: ViewSpec) -> st.SearchStrategy[dict[EntityKey, tuple[FeatureValue, ...]]]:
    keys = st.tuples(*(_values[field.dtype] for field in view.join_keys))
    values = st.tuples(*(st.none() | _values[field.dtype] for field in view.fields))
    return st.dictionaries(keys, values, min_size=1, max_size=4)


class Flush(msgspec.Struct):
    """One random flush of the model test: entity -> (value, due) or None, source row -> entity or None."""

    entities: dict[int, tuple[int | None, int | None] | None]
    contributions: dict[int, tuple[int, bytes] | None]


_few = st.integers(0, 5)
_flushes = st.lists(
    st.builds(
        Flush,
        st.dictionaries(
            _few, st.none() | st.tuples(st.none() | st.integers(-5, 5), st.none() | st.integers(0, 20)), max_size=6
        ),
        st.dictionaries(_few, st.none() | st.tuples(_few, st.binary(max_size=3)), max_size=6),
    ),
    max_size=6,
)


class StoreContract(ABC):
    """Subclasses say how to make a store; tests run on one that is open."""

    is_durable = True

    @pytest.fixture
    def project(self) -> str:
        return f"shop{next(_projects)}"

    @pytest.fixture
    @abstractmethod
    def make(self) -> Callable[[str], OnlineStore]:
        """A store of a project, not open yet; two of one project share the rows."""

    @pytest.fixture
    async def store(self, make: Callable[[str], OnlineStore], project: str) -> object:
        store = make(project)
        await store.open()
        yield store
        await store.close()

    async def test_a_view_never_written_has_nothing(self, store: OnlineStore) -> None:
        assert await all_of(store, CLICKS, [(1,)], [b"r"]) == (None, [None], [None], [], [None], [[]], [])

    async def test_a_written_row_comes_back_with_its_time_state_and_due_time(self, store: OnlineStore) -> None:
        write = row((7,), (3, 0.1, "début"), state=b"\x00\xff", due_us=TIME_US + 1)
        await store.write([flush(CLICKS, [write], at(5, 6), {b"r1": Contribution((7,), b"blob")})])
        assert await store.read(CLICKS, ["last_page", "clicks_1h"], [(8,), (7,)]) == [
            None,
            FeatureRow(("début", 3), TIME_US),
        ]
        assert await store.states(CLICKS, [(7,), (8,)]) == [b"\x00\xff", None]
        assert await store.due(CLICKS, TIME_US + 1, 10) == [(TIME_US + 1, (7,))]
        assert await store.contributions(CLICKS, [b"r2", b"r1"]) == [None, Contribution((7,), b"blob")]
        assert await store.contributions_of(CLICKS, (7,)) == [(b"r1", b"blob")]
        assert await store.keys(CLICKS) == [(7,)]
        assert await store.checkpoint(CLICKS) == at(5, 6)

    async def test_nulls_are_kept_apart_from_absent_rows(self, store: OnlineStore) -> None:
        await store.write([flush(CLICKS, [row((1,), (None, None, None))], at(1))])
        assert await store.read(CLICKS, ["spend_1h"], [(1,), (2,)]) == [FeatureRow((None,), TIME_US), None]

    async def test_the_time_of_1970_is_a_time(self, store: OnlineStore) -> None:
        await store.write([flush(CLICKS, [row((1,), (1, None, None), event_time_us=0)], at(1))])
        assert await store.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((1,), 0)]

    async def test_an_erased_entity_leaves_nothing_and_the_others_alone(self, store: OnlineStore) -> None:
        rows = {b"r1": Contribution((1,), b"a"), b"r2": Contribution((1,), b"b"), b"r3": Contribution((2,), b"c")}
        written = [row((1,), (1, 0.5, "x"), due_us=TIME_US), row((2,), (2, None, "y"))]
        await store.write([flush(CLICKS, written, at(1), rows), flush(ORDERS, [row((1,), (9,))], at(1, spec=ORDERS))])
        erased, keys = await erase(CLICKS, {"customer_id": "1"}, store, at(1))
        assert (erased.entities, erased.source_rows, erased.left, keys) == (1, 2, 0, [(1,)])
        assert await store.contributions(CLICKS, [b"r1", b"r2", b"r3"]) == [None, None, rows[b"r3"]]
        assert await store.read(CLICKS, ["last_page"], [(1,), (2,)]) == [None, FeatureRow(("y",), TIME_US)]
        assert await store.due(CLICKS, INT64_MAX >> 12, 10) == []
        assert await store.read(ORDERS, ["orders_7d"], [(1,)]) == [FeatureRow((9,), TIME_US)]
        assert await store.checkpoint(CLICKS) == at(1)

    async def test_an_empty_flush_moves_the_checkpoint(self, store: OnlineStore) -> None:
        await store.write([flush(CLICKS, [], at(1))])
        await store.write([flush(CLICKS, [], at(9, log_time_us=TIME_US + 5))])
        assert await store.checkpoint(CLICKS) == at(9, log_time_us=TIME_US + 5)
        await store.write([])

    @pytest.mark.parametrize("view", [EVERY_TYPE, CLICKS], ids=lambda view: view.name)
    @settings(max_examples=25, deadline=None, suppress_health_check=_ONE_SUITE_MANY_ENGINES)
    @given(data=st.data())
    def test_every_value_of_every_type_comes_back_equal(
        self, make: Callable[[str], OnlineStore], view: ViewSpec, data: st.DataObject
    ) -> None:
        rows = data.draw(rows_of(view))

        async def check(store: OnlineStore) -> None:
            await store.write([flush(view, [row(key, values) for key, values in rows.items()], at(1, spec=view))])
            found = await store.read(view, [field.name for field in view.fields], list(rows))
            assert [None if one is None else repr(one.values) for one in found] == [
                repr(value) for value in rows.values()
            ]
            assert sorted(map(repr, await store.keys(view))) == sorted(map(repr, rows))

        run_fresh(make, check)

    async def test_float32_is_rounded_and_a_timestamp_is_whole_seconds(self, store: OnlineStore) -> None:
        values = {ValueType.FLOAT32: 0.1, ValueType.UNIX_TIMESTAMP: 1_999_999}
        given_values = tuple(values.get(field.dtype) for field in EVERY_TYPE.fields)
        key = ("eu", 1, 2, b"d", SECOND_US)
        await store.write([flush(EVERY_TYPE, [row(key, given_values)], at(1, spec=EVERY_TYPE))])
        assert await store.read(EVERY_TYPE, ["f_float32", "f_unix_timestamp"], [key]) == [
            FeatureRow((0.10000000149011612, SECOND_US), TIME_US)
        ]

    async def test_an_entity_key_of_other_parts_is_another_entity(self, store: OnlineStore) -> None:
        keys: list[EntityKey] = [
            ("a", 1, 1, b"bc", 0),
            ("ab", 1, 1, b"c", 0),
            ("", 1, 1, b"abc", 0),
            ("a\x00", 1, 1, b"", 0),
        ]
        nothing = (None,) * len(EVERY_TYPE.fields)
        contributions = {b"r%d" % number: Contribution(key, b"%d" % number) for number, key in enumerate(keys)}
        writes = [row(key, nothing, state=repr(key).encode()) for key in keys]
        await store.write([flush(EVERY_TYPE, writes, at(1, spec=EVERY_TYPE), contributions)])
        assert await store.states(EVERY_TYPE, keys) == [repr(key).encode() for key in keys]
        for number, key in enumerate(keys):
            assert await store.contributions_of(EVERY_TYPE, key) == [(b"r%d" % number, b"%d" % number)]

    async def test_a_later_write_replaces_row_state_and_due_time(self, store: OnlineStore) -> None:
        await store.write([flush(CLICKS, [row((1,), (1, 1.0, "a"), state=b"old", due_us=50)], at(1))])
        older_us = TIME_US - 5 * SECOND_US  # a correction with an older time replaces too
        await store.write([flush(CLICKS, [row((1,), (2, None, "b"), event_time_us=older_us, state=b"")], at(2))])
        assert await store.read(CLICKS, ["clicks_1h", "spend_1h", "last_page"], [(1,)]) == [
            FeatureRow((2, None, "b"), older_us)
        ]
        assert await store.states(CLICKS, [(1,)]) == [b""]
        assert await store.due(CLICKS, 100, 10) == []

    async def test_the_same_write_again_changes_nothing(self, store: OnlineStore) -> None:
        write = flush(
            CLICKS,
            [row((1,), (1, 1.0, "a"), due_us=50), row((2,), None)],
            at(3),
            {b"r1": Contribution((1,), b"x"), b"r2": None},
        )
        await store.write([write])
        once = await all_of(store, CLICKS, [(1,), (2,)], [b"r1", b"r2"])
        await store.write([write])
        assert await all_of(store, CLICKS, [(1,), (2,)], [b"r1", b"r2"]) == once

    async def test_a_removed_row_leaves_nothing_behind(self, store: OnlineStore) -> None:
        await store.write(
            [flush(CLICKS, [row((1,), (1, 1.0, "a"), due_us=50)], at(1), {b"r": Contribution((1,), b"x")})]
        )
        await store.write([flush(CLICKS, [row((1,), None)], at(2), {b"r": None})])
        assert await all_of(store, CLICKS, [(1,)], [b"r"]) == (at(2), [None], [None], [], [None], [[]], [])

    async def test_due_comes_earliest_first_up_to_the_limit(self, store: OnlineStore) -> None:
        due = {1: 300, 2: 100, 3: 200, 4: 101, 5: None}
        await store.write(
            [flush(CLICKS, [row((key,), (0, 0.0, ""), due_us=at_us) for key, at_us in due.items()], at(1))]
        )
        assert await store.due(CLICKS, 200, 10) == [(100, (2,)), (101, (4,)), (200, (3,))]
        assert await store.due(CLICKS, 1000, 2) == [(100, (2,)), (101, (4,))]
        assert await store.due(CLICKS, 99, 10) == []

    async def test_a_contribution_moves_to_another_entity(self, store: OnlineStore) -> None:
        first = {b"r1": Contribution((1,), b"a"), b"r2": Contribution((1,), b"b")}
        await store.write([flush(CLICKS, [], at(1), first)])
        await store.write([flush(CLICKS, [], at(2), {b"r1": Contribution((2,), b"c")})])
        assert await store.contributions_of(CLICKS, (1,)) == [(b"r2", b"b")]
        assert await store.contributions_of(CLICKS, (2,)) == [(b"r1", b"c")]
        assert await store.contributions(CLICKS, [b"r1"]) == [Contribution((2,), b"c")]

    async def test_views_of_one_entity_are_independent(self, store: OnlineStore) -> None:
        await store.write(
            [
                flush(CLICKS, [row((1,), (1, 1.0, "a"), due_us=5)], at(1), {b"r": Contribution((1,), b"c")}),
                flush(
                    ORDERS,
                    [row((1,), (9,), state=b"o", due_us=6)],
                    at(2, spec=ORDERS),
                    {b"r": Contribution((1,), b"o")},
                ),
            ]
        )
        kept = await all_of(store, ORDERS, [(1,)], [b"r"])
        await store.write([flush(CLICKS, [row((1,), None)], at(2), {b"r": None})])
        assert await all_of(store, ORDERS, [(1,)], [b"r"]) == kept
        await store.drop(CLICKS)
        assert await all_of(store, ORDERS, [(1,)], [b"r"]) == kept

    async def test_projects_are_independent(self, make: Callable[[str], OnlineStore], project: str) -> None:
        mine, other = make(project), make(f"my{project}")  # whose name ends with the first one's
        await mine.open()
        await other.open()
        await other.write([flush(CLICKS, [row((2,), (2, 2.0, "b"))], at(1))])
        await mine.write([flush(CLICKS, [row((1,), (1, 1.0, "a"))], at(1))])
        assert await mine.keys(CLICKS) == [(1,)]
        await mine.drop(CLICKS)
        assert await other.keys(CLICKS) == [(2,)]
        assert await other.states(CLICKS, [(2,)]) == [b"state"]
        await mine.close()
        await other.close()

    async def test_drop_removes_everything_of_the_view_and_another_definition_can_follow(
        self, store: OnlineStore
    ) -> None:
        await store.write(
            [flush(CLICKS, [row((1,), (1, 1.0, "a"), due_us=5)], at(8), {b"r": Contribution((1,), b"c")})]
        )
        other = ViewSpec(
            "clicks", (Field("session", ValueType.STRING),), (Field("clicks_1h", ValueType.FLOAT64),), "clicks-2"
        )
        assert await store.checkpoint(other) == at(8)
        await store.drop(other)
        assert await all_of(store, CLICKS, [(1,)], [b"r"]) == (None, [None], [None], [], [None], [[]], [])
        await store.write([flush(other, [row(("s",), (1.5,))], at(1, spec=other))])
        assert await store.read(other, ["clicks_1h"], [("s",)]) == [FeatureRow((1.5,), TIME_US)]
        assert await store.keys(other) == [("s",)]

    @pytest.mark.parametrize("changed", ["fields", "join keys"])
    async def test_a_promoted_draft_is_all_there_is_of_the_view(self, store: OnlineStore, changed: str) -> None:
        new = msgspec.structs.replace(
            CLICKS, spec_hash="clicks-2", fields=(CLICKS.fields[0], Field("more", ValueType.INT64))
        )
        if changed == "join keys":
            new = msgspec.structs.replace(new, join_keys=(Field("visitor_id", ValueType.INT64),))
        kept, gone, added = (1,), (2,), (3,)
        former = [row(kept, (1, 1.0, "a"), due_us=5), row(gone, (2, 2.0, "b"), due_us=6)]
        await store.write(
            [flush(CLICKS, former, at(9), {b"1": Contribution(kept, b"x"), b"2": Contribution(gone, b"y")})]
        )
        await store.write([flush(ORDERS, [row(kept, (7,)), row(gone, (8,))], at(9, spec=ORDERS))])
        rows = [row(kept, (10, None), state=b"new", due_us=70), row(added, (30, 31), event_time_us=TIME_US + SECOND_US)]
        draft = flush(
            new.draft, rows, at(4, spec=new), {b"1": Contribution(kept, b"z"), b"3": Contribution(added, b"w")}
        )
        await store.write([draft])
        assert await store.read(CLICKS, ["last_page"], [kept, gone]) == [
            FeatureRow(("a",), TIME_US),
            FeatureRow(("b",), TIME_US),
        ]
        wanted = await all_of(store, new.draft, [kept, gone, added], [b"1", b"2", b"3"])
        orders = await all_of(store, ORDERS, [kept, gone], [])
        await store.promote(new)
        assert await all_of(store, new, [kept, gone, added], [b"1", b"2", b"3"]) == wanted
        assert await all_of(store, ORDERS, [kept, gone], []) == orders
        nothing = await all_of(store, new.draft, [kept, gone, added], [b"1", b"3"])
        assert nothing == (None, [None] * 3, [None] * 3, [], [None] * 2, [[], [], []], [])
        await store.promote(new)  # as after an answer that got lost
        assert await all_of(store, new, [kept, gone, added], [b"1", b"2", b"3"]) == wanted
        # The view goes on, and what it had is gone for good.
        await store.write([flush(new, [row(kept, None), row(added, None)], at(5, spec=new), {b"1": None, b"3": None})])
        assert await store.keys(CLICKS) == []
        assert await all_of(store, new, [kept, gone, added], [b"1", b"2", b"3"]) == (
            at(5, spec=new),
            [None] * 3,
            [None] * 3,
            [],
            [None] * 3,
            [[], [], []],
            [],
        )

    async def test_a_draft_can_be_dropped_and_the_view_stays(self, store: OnlineStore) -> None:
        await store.write(
            [flush(CLICKS, [row((1,), (1, 1.0, "a"), due_us=5)], at(9), {b"1": Contribution((1,), b"x")})]
        )
        before = await all_of(store, CLICKS, [(1,)], [b"1"])
        await store.write([flush(CLICKS.draft, [row((1,), (2, 2.0, "b"))], at(4))])
        await store.drop(CLICKS.draft)
        assert await store.checkpoint(CLICKS.draft) is None
        assert await all_of(store, CLICKS, [(1,)], [b"1"]) == before

    async def test_a_view_without_join_keys_has_one_row(self, store: OnlineStore) -> None:
        view = ViewSpec("totals", (), (Field("orders", ValueType.INT64),), "totals-1")
        await store.write([flush(view, [row((), (5,), due_us=3)], at(1, spec=view))])
        assert await store.read(view, ["orders"], [()]) == [FeatureRow((5,), TIME_US)]
        assert await store.keys(view) == [()]
        assert await store.due(view, 3, 1) == [(3, ())]

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            (("1", 1.0, "a"), "clicks:clicks_1h"),
            ((1 << 63, 1.0, "a"), "clicks:clicks_1h"),
            ((True, 1.0, "a"), "clicks:clicks_1h"),
            ((1, "x", "a"), "clicks:spend_1h"),
            ((1, 1.0, b"a"), "clicks:last_page"),
            ((1, 1.0, "\ud800"), "clicks:last_page"),
            ((1, 1.0), "2 values"),
        ],
    )
    async def test_a_value_that_does_not_fit_is_refused_by_name_and_nothing_is_written(
        self, store: OnlineStore, values: tuple[FeatureValue, ...], named: str
    ) -> None:
        with pytest.raises(StoreRefused, match=named) as refused:
            await store.write(
                [flush(ORDERS, [row((1,), (1,))], at(1, spec=ORDERS)), flush(CLICKS, [row((2,), values)], at(1))]
            )
        assert refused.value.action is Action.STOP
        assert await store.keys(ORDERS) == []
        assert await store.checkpoint(ORDERS) is None

    @pytest.mark.parametrize("key", [(None,), ("1",), (1 << 63,), (1.0,), (1, 2), ()], ids=repr)
    async def test_a_key_that_does_not_fit_is_refused(self, store: OnlineStore, key: EntityKey) -> None:
        with pytest.raises(StoreRefused, match="clicks"):
            await store.write([flush(CLICKS, [row(key, (1, 1.0, "a"))], at(1))])

    async def test_a_key_time_with_a_fraction_of_a_second_is_refused(self, store: OnlineStore) -> None:
        with pytest.raises(StoreRefused, match="every_type:day"):
            await store.states(EVERY_TYPE, [("eu", 1, 2, b"d", SECOND_US + 1)])

    async def test_an_unknown_feature_is_a_key_error(self, store: OnlineStore) -> None:
        with pytest.raises(KeyError, match="clicks_2h"):
            await store.read(CLICKS, ["clicks_2h"], [(1,)])

    async def test_a_feeder_whose_checkpoint_was_moved_by_another_is_refused_until_it_looks(
        self, make: Callable[[str], OnlineStore], project: str
    ) -> None:
        first, second = make(project), make(project)
        await first.open()
        await second.open()
        await first.write([flush(CLICKS, [row((1,), (1, 1.0, "a"))], at(1))])
        assert await second.checkpoint(CLICKS) == at(1)
        await second.write([flush(CLICKS, [row((1,), (2, 2.0, "b"))], at(2))])
        late = [
            flush(ORDERS, [row((1,), (7,))], at(3, spec=ORDERS)),
            flush(CLICKS, [row((1,), (3, 3.0, "c"))], at(3), {b"r": Contribution((1,), b"x")}),
        ]
        with pytest.raises(StoreConflict, match="clicks") as conflict:
            await first.write(late)
        assert conflict.value.action is Action.RETRY
        assert await first.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((2,), TIME_US)]
        assert await first.contributions(CLICKS, [b"r"]) == [None]
        assert await first.keys(ORDERS) == []
        assert await first.checkpoint(CLICKS) == at(2)
        await first.write(late)
        assert await second.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((3,), TIME_US)]
        await first.close()
        await second.close()

    async def test_a_feeder_goes_on_when_the_store_lost_its_newest_writes_only_after_looking(
        self, make: Callable[[str], OnlineStore], project: str
    ) -> None:
        feeder, operator = make(project), make(project)
        await feeder.open()
        await operator.open()
        await feeder.write([flush(CLICKS, [row((1,), (1, 1.0, "a"))], at(5))])
        await operator.drop(CLICKS)  # stands for a restart from an older dump
        with pytest.raises(StoreConflict):
            await feeder.write([flush(CLICKS, [row((2,), (1, 1.0, "a"))], at(6))])
        assert await feeder.checkpoint(CLICKS) is None
        await feeder.write([flush(CLICKS, [row((2,), (1, 1.0, "a"))], at(6))])
        assert await feeder.keys(CLICKS) == [(2,)]
        await feeder.close()
        await operator.close()

    @pytest.mark.parametrize("looked", [True, False])
    async def test_offsets_of_one_log_never_go_back(
        self, make: Callable[[str], OnlineStore], project: str, looked: bool
    ) -> None:
        before, store = make(project), make(project)
        await before.open()
        await before.write([flush(CLICKS, [row((1,), (1, 1.0, "a"))], at(5, 5))])
        await before.close()
        await store.open()
        if looked:
            await store.checkpoint(CLICKS)
        for offsets in ((6, 4), (4, 9), (7,)):
            with pytest.raises(StoreConflict):
                await store.write([flush(CLICKS, [row((1,), (0, 0.0, ""))], at(*offsets))])
        assert await store.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((1,), TIME_US)]
        await store.write([flush(CLICKS, [row((1,), (2, 0.0, ""))], at(5, 6, 1))])
        await store.write([flush(CLICKS, [row((1,), (3, 0.0, ""))], at(0, 0, generation="g2"))])
        assert await store.read(CLICKS, ["clicks_1h"], [(1,)]) == [FeatureRow((3,), TIME_US)]
        await store.close()

    async def test_rows_survive_close_and_open(self, make: Callable[[str], OnlineStore], project: str) -> None:
        store = make(project)
        await store.open()
        await store.write(
            [flush(CLICKS, [row((1,), (1, 1.0, "a"), due_us=5)], at(1), {b"r": Contribution((1,), b"c")})]
        )
        before = await all_of(store, CLICKS, [(1,)], [b"r"])
        await store.close()
        await store.open()
        assert await all_of(store, CLICKS, [(1,)], [b"r"]) == before
        await store.close()
        await store.close()

    async def test_opening_twice_is_an_error(self, store: OnlineStore) -> None:
        with pytest.raises(RuntimeError, match="open"):
            await store.open()

    async def test_readers_see_whole_rows_while_a_writer_writes(self, store: OnlineStore) -> None:
        keys: list[EntityKey] = [(number,) for number in range(20)]

        async def write() -> None:
            for turn in range(60):
                rows = [row(key, (turn, float(turn), str(turn)), event_time_us=TIME_US + turn) for key in keys]
                await store.write([flush(CLICKS, rows, at(turn))])

        async def read() -> None:
            seen = 0
            while seen < 59:
                for found in await store.read(CLICKS, ["clicks_1h", "spend_1h", "last_page"], keys):
                    if found is not None:
                        clicks, spend, page = found.values
                        assert (clicks, str(clicks), found.event_time_us - TIME_US) == (spend, page, clicks)
                        seen = max(seen, int(str(clicks)))

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(write())
            group.create_task(read())

    @settings(max_examples=40, deadline=None, suppress_health_check=_ONE_SUITE_MANY_ENGINES)
    @given(flushes=_flushes)
    def test_any_sequence_of_flushes_gives_what_a_plain_model_gives(
        self, make: Callable[[str], OnlineStore], flushes: list[Flush]
    ) -> None:
        async def check(store: OnlineStore) -> None:
            rows: dict[int, tuple[int | None, int | None]] = {}
            contributions: dict[int, tuple[int, bytes]] = {}
            for number, one in enumerate(flushes):
                await store.write(
                    [
                        flush(
                            ORDERS,
                            [
                                row((key,), None)
                                if new is None
                                else row((key,), (new[0],), state=b"%d" % number, due_us=new[1])
                                for key, new in one.entities.items()
                            ],
                            at(number, spec=ORDERS),
                            {
                                b"%d" % key: None if given_one is None else Contribution((given_one[0],), given_one[1])
                                for key, given_one in one.contributions.items()
                            },
                        )
                    ]
                )
                for key, new in one.entities.items():
                    rows.pop(key, None)
                    if new is not None:
                        rows[key] = new
                for key, given_one in one.contributions.items():
                    contributions.pop(key, None)
                    if given_one is not None:
                        contributions[key] = given_one
            keys: list[EntityKey] = [(key,) for key in range(6)]
            assert await store.read(ORDERS, ["orders_7d"], keys) == [
                FeatureRow((rows[key][0],), TIME_US) if key in rows else None for key in range(6)
            ]
            assert sorted(await store.due(ORDERS, 15, 100)) == sorted(
                (due_us, (key,)) for key, (_, due_us) in rows.items() if due_us is not None and due_us <= 15
            )
            assert sorted(await store.keys(ORDERS)) == sorted((key,) for key in rows)
            for key in range(6):
                assert sorted(await store.contributions_of(ORDERS, (key,))) == sorted(
                    (b"%d" % number, blob) for number, (entity, blob) in contributions.items() if entity == key
                )
            assert await store.contributions(ORDERS, [b"%d" % key for key in range(6)]) == [
                Contribution((contributions[key][0],), contributions[key][1]) if key in contributions else None
                for key in range(6)
            ]

        run_fresh(make, check)


def run_fresh(make: Callable[[str], OnlineStore], check: Callable[[OnlineStore], Awaitable[None]]) -> None:
    """Run check on an open store of a new project, in a loop of its own (hypothesis calls plain functions)."""

    async def main() -> None:
        store = make(f"shop{next(_projects)}")
        await store.open()
        try:
            await check(store)
        finally:
            await store.close()

    asyncio.run(main())
