"""A backfill says of every moment of the past what serving would have said, and stands before what was logged live."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.test_engine import run_to_the_end
from features.test_feature_log import RecordingStore, bits, make_engine
from fix_features import MINUTE_US, SECOND_US, START_US, SlicedLog, row_event, text_of
from headrace.cdc.cli import main
from headrace.cdc.errors import DefinitionError, StoreRefused
from headrace.features.compiled import CompiledView
from headrace.features.loading import load_definitions
from headrace.features.offline import manycores
from headrace.features.offline.backfill import backfill
from headrace.features.offline.logged import LoggedStore
from headrace.features.store.memory import MemoryStore

TIME = pa.timestamp("us", tz="UTC")
SHOP = """
from headrace.features import *

customer = Entity("customer", join_keys={"customer_id": Int64})

orders = FeatureView("orders", entity=customer, source=Table("public.orders"), event_time="created_at", where=col("status") != "void",
    features=[count(over=["1m", "10m"]), sum_("total", Float64, over="10m", name="spent"), max_("total", Float64, over="10m", name="dearest"),
        latest("status", String, name="status"), count(name="ever"), distinct("status", String, over="10m", name="kinds")])
pages = FeatureView("pages", entity=customer, source=Events("Page Seen"), entity_key={"customer_id": "event.user_id"},
    features=[count(over="1m", name="seen"), last("context.page.path", 2, String, name="paths"), sum_("cart.value", Float64, name="value")])
"""
KEYS = range(1, 5)


@pytest.fixture
def views(tmp_path: Path) -> dict[str, CompiledView]:
    (tmp_path / "shop_features.py").write_text(SHOP)
    (tmp_path / "headrace.yaml").write_text(
        "log: {type: memory}\nsources: {shop: {type: postgres, dsn: host=nowhere}}\n"
        "features: {definitions: shop_features.py, project: shop, offline: {path: feature_log}}\n"
    )
    return {view.spec.name: view for view in load_definitions(tmp_path / "shop_features.py")}


def past(seed: int, steps: int) -> list[dict[str, Any]]:
    """A table's life with its operations: rows with op and at (microseconds), growing."""
    draw = random.Random(seed)
    now_us, number = START_US, 0
    live: dict[int, dict[str, Any]] = {}
    told: list[dict[str, Any]] = []
    for _ in range(steps):
        now_us += draw.choice((0, 1, SECOND_US // 3, 7 * SECOND_US, MINUTE_US, 4 * MINUTE_US))
        what = draw.random()
        if what < 0.5 or not live:
            number += 1
            op, row = "insert", {"id": number, "created_at": now_us - draw.choice((0, SECOND_US, 3 * MINUTE_US))}
        else:
            op, row = ("update" if what < 0.8 else "delete"), dict(live[draw.choice(sorted(live))])
        if op == "delete":
            del live[row["id"]]
        else:
            row |= {
                "customer_id": draw.choice(KEYS),
                "total": draw.choice((None, 0.1, -0.1, 1e300, draw.uniform(-9, 9))),
                "status": draw.choice(("paid", "open", "void")),
            }
            live[row["id"]] = row
        told.append({**row, "op": op, "at": now_us})
    return told


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    times = {name: pa.array([row[name] for row in rows], TIME) for name in ("created_at", "at")}
    plain = {name: pa.array([row.get(name) for row in rows]) for name in ("id", "customer_id", "total", "status", "op")}
    pq.write_table(pa.table({**plain, **times}), path)


def event_of(row: dict[str, Any]) -> Any:
    after = {name: row[name] for name in ("id", "customer_id", "total", "status")} | {
        "created_at": text_of(row["created_at"])
    }
    if row["op"] == "delete":
        return row_event("delete", committed_us=row["at"], before={"id": row["id"]})
    return row_event(row["op"], committed_us=row["at"], after=after)


def as_of(path: Path, view: CompiledView, times: list[int]) -> dict[tuple[int, int], Any]:
    """(customer, time) -> values at that time by the files' rows; None without a row."""
    table = pq.read_table(path)
    rows = table.set_column(
        table.column_names.index("event_timestamp"), "event_timestamp", table["event_timestamp"].cast("int64")
    ).to_pylist()
    names = [field.name for field in view.spec.fields]
    found: dict[tuple[int, int], Any] = {}
    for customer in KEYS:
        mine = [row for row in rows if row["customer_id"] == customer]
        for time_us in times:
            newest = None
            for row in mine:
                if row["event_timestamp"] <= time_us:
                    newest = row
            is_there = newest is not None and not newest["hr__deleted"]
            found[customer, time_us] = bits(tuple(newest[name] for name in names)) if newest and is_there else None
    return found


@pytest.mark.parametrize("seed", [81, 82, 83])
async def test_a_history_gives_what_serving_had_after_each_change(
    views: dict[str, CompiledView], tmp_path: Path, seed: int
) -> None:
    told = past(seed, 150)
    view = views["orders"]
    log, store = SlicedLog(), RecordingStore()
    log.most = 1
    await log.add(*[event_of(row) for row in told])
    await run_to_the_end(make_engine([view], store, log, tmp_path / "live"), len(told))
    write_rows(tmp_path / "past.parquet", told)
    out = tmp_path / "out.parquet"
    # The command's own loop runs in a process without one.
    import asyncio

    result = await asyncio.to_thread(
        lambda: backfill(view, str(tmp_path / "past.parquet"), folder=None, out=out, at="at", op="op", key=["id"])
    )
    assert (result.rows, result.left_out, result.without_time) == (150, 0, 0)
    times = sorted({row["at"] for row in told})
    told_live = store.taken["orders"]
    filled = as_of(out, view, times)
    for (customer, time_us), values in filled.items():
        newest = None
        for _, log_time_us, key, served, _ in told_live:
            if key == (customer,) and log_time_us <= time_us:
                newest = served
        assert values == newest, f"seed {seed}: customer {customer} at {time_us}"


@pytest.mark.parametrize("rows_a_part", [200_000, 20])
def test_between_two_rows_every_window_has_moved_as_sql_says(
    views: dict[str, CompiledView], tmp_path: Path, rows_a_part: int
) -> None:
    rows = [row for row in past(84, 300) if row["op"] == "insert"]
    for row in rows:
        row["created_at"] = row["at"]
    write_rows(tmp_path / "past.parquet", rows)
    view, out = views["orders"], tmp_path / "out.parquet"
    backfill(view, str(tmp_path / "past.parquet"), folder=None, out=out, rows_a_part=rows_a_part)
    draw = random.Random(85)
    times = [START_US + draw.randrange(rows[-1]["at"] - START_US + 15 * MINUTE_US) for _ in range(200)]
    names = [field.name for field in view.spec.fields]
    filled = as_of(out, view, times)
    connection = duckdb.connect()
    connection.execute(f"create table past as select *, epoch_us(created_at) t from '{tmp_path / 'past.parquet'}'")
    for time_us in times:
        lo_1m, hi_1m = (
            (time_us - MINUTE_US) // SECOND_US * SECOND_US + SECOND_US,
            time_us // SECOND_US * SECOND_US + SECOND_US,
        )
        hop = 10 * SECOND_US
        lo_10m, hi_10m = (time_us - 10 * MINUTE_US) // hop * hop + hop, time_us // hop * hop + hop
        for customer in KEYS:
            one, ten, dearest, ever, kinds = connection.execute(
                f"select count(*) filter (t >= {lo_1m} and t < {hi_1m}), count(*) filter (t >= {lo_10m} and t < {hi_10m}),"
                f" max(total) filter (t >= {lo_10m} and t < {hi_10m}), count(*),"
                f" count(distinct status) filter (t >= {lo_10m} and t < {hi_10m})"
                f" from past where customer_id = {customer} and status <> 'void' and t <= {time_us}"
            ).fetchone()
            values = filled[customer, time_us]
            if values is None:
                assert ever == 0
                continue
            have = dict(zip(names, values, strict=True))
            want = {"count_1m": one, "count_10m": ten, "ever": ever, "kinds": kinds, "dearest": bits((dearest,))[0]}
            assert {name: have[name] for name in want} == want, (customer, time_us)


def test_events_from_a_warehouse_are_found_under_their_names(views: dict[str, CompiledView], tmp_path: Path) -> None:
    query = (
        "select * from (values ('1', '/a', 0.1::float, timestamp '2026-01-01 00:00:00.5'), ('2', '/b', 2::float, timestamp '2026-01-01 00:00:01'),"
        " ('1', '/c', 0.2::float, timestamp '2026-01-01 00:00:30')) _(user_id, context_page_path, cart_value, timestamp)"
    )
    out = tmp_path / "pages.parquet"
    result = backfill(views["pages"], query, folder=None, out=out)
    assert result.rows == 3 and result.unreadable == 0
    rows = [
        (str(row["event_timestamp"])[11:21], row["customer_id"], row["seen"], row["paths"], row["value"])
        for row in pq.read_table(out).to_pylist()
    ]
    assert rows == [
        ("00:00:00.5", 1, 1, ["/a"], 0.1),
        ("00:00:01+0", 2, 1, ["/b"], 2.0),
        ("00:00:30+0", 1, 2, ["/c", "/a"], 0.1 + 0.2),
        ("00:01:00+0", 1, 1, ["/c", "/a"], 0.1 + 0.2),
        ("00:01:01+0", 2, 0, ["/b"], 2.0),
        ("00:01:30+0", 1, 0, ["/c", "/a"], 0.1 + 0.2),
    ]


def test_training_sets_find_it_before_the_live_rows_and_nothing_takes_it_back(
    views: dict[str, CompiledView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    monkeypatch.chdir(tmp_path)
    told = [row for row in past(86, 120) if row["op"] == "insert"]
    write_rows(tmp_path / "past.parquet", told)
    assert main(["features", "backfill", "--view", "orders", "--rows", "past.parquet"]) == 2
    assert "has no feature log" in capsys.readouterr().err
    # headrace is attached in the middle: the first half comes as its snapshot, at that moment.
    half = told[len(told) // 2 :]
    attached_us = half[0]["at"]
    log, store = SlicedLog(), MemoryStore()
    log.most = 1
    first = [row | {"at": attached_us} for row in told[: len(told) // 2]]

    async def live() -> None:
        end = (await log.bounds(0)).end
        await run_to_the_end(make_engine([views["orders"]], store, log, tmp_path / "feature_log"), end)

    asyncio.run(log.add(*[event_of(row) for row in [*first, *half]]))
    asyncio.run(live())
    for turn in range(2):
        assert main(["features", "backfill", "--view", "orders", "--rows", "past.parquet", "--at", "at", "--json"]) == 0
        told_result = json.loads(capsys.readouterr().out)
        assert told_result["left_out"] == len([row for row in told if row["at"] >= attached_us]), turn
        assert told_result["until_us"] == attached_us
        asyncio.run(log.add(event_of(told[-1] | {"id": 10_000 + turn, "customer_id": 99, "at": told[-1]["at"] + turn})))
        asyncio.run(live())  # a restart between
    asked = [(row["customer_id"], row["at"] + 1) for row in told]
    pq.write_table(
        pa.table(
            {
                "customer_id": pa.array([each for each, _ in asked], pa.int64()),
                "event_timestamp": pa.array([time for _, time in asked], TIME),
            }
        ),
        tmp_path / "asked.parquet",
    )
    assert (
        main(
            ["features", "training-set", "--entities", "asked.parquet", "--features", "orders", "--out", "set.parquet"]
        )
        == 0
    )
    ever = pq.read_table("set.parquet")["ever"].to_pylist()
    for (customer, time_us), number in zip(asked, ever, strict=True):
        want = [
            row for row in told if row["customer_id"] == customer and row["at"] <= time_us and row["status"] != "void"
        ]
        assert (number or 0) == len([row for row in want if row["created_at"] // SECOND_US <= time_us // SECOND_US])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "nothing.parquet"], "nothing.parquet doesn't exist"),
        (["--rows", "select 1 as id, now() as created_at"], "reads 'customer_id', which --rows doesn't have"),
        (["--rows", "select from where"], "--rows can't be read"),
        (["--rows", "select 1 customer_id, 'x' status, 1 total, 5 created_at"], "created_at of --rows is INTEGER, no time"),
        (["--rows", "select 1 customer_id, 'x' status, 1 total, 'noon' created_at"], "--rows can't be read"),
        (["--rows", "select 1 customer_id, 'x' status, 1 total, now() created_at, 'c' op", "--op", "op"], "--key"),
        (
            ["--rows", "select 1 id, 1 customer_id, 'x' status, 1 total, '2026-01-01'::date created_at, 'gone' op", "--op", "op", "--key", "id"],
            "says 'gone'",
        ),
        (["--rows", "select 1 id", "--at", "when"], "has no column 'when'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said_and_nothing_is_written(
    views: dict[str, CompiledView],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    assert views
    monkeypatch.chdir(tmp_path)
    assert main(["features", "backfill", "--view", "orders", "--out", "out.parquet", *options]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("*out.parquet*"))


async def test_a_changed_definition_retires_a_backfill_too(views: dict[str, CompiledView], tmp_path: Path) -> None:
    import asyncio

    view, folder = views["orders"], tmp_path / "feature_log"
    log, store = SlicedLog(), MemoryStore()
    row = past(87, 1)[0] | {"at": START_US + 10**9}
    await log.add(event_of(row))
    await run_to_the_end(make_engine([view], store, log, folder), 1)
    rows = f"select 1 customer_id, 'paid' status, 1.5 total, to_timestamp({START_US / 1e6}) created_at"
    await asyncio.to_thread(lambda: backfill(view, rows, folder=folder / "orders", out=None))
    first = folder / "orders" / "00000000-00000000000000000000.parquet"
    assert pq.read_table(first).num_rows > 0
    (tmp_path / "shop_features.py").write_text(SHOP.replace("10m", "20m"))
    changed = load_definitions(tmp_path / "shop_features.py")
    await run_to_the_end(make_engine(changed[:1], store, log, folder), 1)
    assert pq.read_table(first).num_rows == 0
    with pytest.raises(DefinitionError, match="another definition"):
        await asyncio.to_thread(lambda: backfill(view, rows, folder=folder / "orders", out=None))
    assert isinstance(LoggedStore(store, folder, roll_every_s=1), LoggedStore)


def test_changes_of_one_moment_go_in_the_order_given(views: dict[str, CompiledView], tmp_path: Path) -> None:
    rows = [
        {"id": key, "customer_id": 1, "total": 1.0, "status": status, "op": op, "at": START_US, "created_at": START_US}
        for key in range(3_000, 0, -1)
        for op, status in (("insert", "open"), ("update", "paid"), ("update", "void"))
    ]
    rows[-1]["status"] = "open"
    write_rows(tmp_path / "past.parquet", rows)
    out = tmp_path / "out.parquet"
    backfill(views["orders"], str(tmp_path / "past.parquet"), folder=None, out=out, at="at", op="op", key=["id"])
    first = pq.read_table(out).to_pylist()[0]
    assert (first["ever"], first["status"]) == (1, "open"), "all but the last row ended as void"


def test_on_several_cores_the_rows_are_the_same(
    views: dict[str, CompiledView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in past(86, 400) if row["op"] == "insert"]
    for row in rows:
        row["created_at"] = row["at"]
    source = tmp_path / "past.parquet"
    write_rows(source, rows)
    view, one, many = views["orders"], tmp_path / "one.parquet", tmp_path / "many.parquet"
    single = backfill(view, str(source), folder=None, out=one)
    monkeypatch.setattr("headrace.features.offline.backfill._ROWS_A_CORE", 10)
    told: list[tuple[int, int]] = []
    result = backfill(
        view,
        str(source),
        folder=None,
        out=many,
        cores=3,
        definitions=tmp_path / "shop_features.py",
        tell=lambda done, of: told.append((done, of)),
    )
    assert (result.rows, result.written, result.late) == (single.rows, single.written, single.late)
    assert told[-1][1] == single.rows
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    query = "select count(*) from (from '{}' except all from '{}')"
    connection = duckdb.connect()
    for first, second in ((one, many), (many, one)):
        assert connection.execute(query.format(first, second)).fetchone() == (0,)


def test_what_goes_wrong_in_another_process_is_told_as_here(
    views: dict[str, CompiledView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.features.offline.backfill._ROWS_A_CORE", 10)
    source = tmp_path / "past.parquet"
    write_rows(source, [row | {"created_at": row["at"]} for row in past(87, 100) if row["op"] == "insert"])
    broken = tmp_path / "broken.py"
    broken.write_text("from headrace.features import *\nnot python")
    out = tmp_path / "out.parquet"
    with pytest.raises(DefinitionError, match=r"broken\.py:2"):
        backfill(views["orders"], str(source), folder=None, out=out, cores=2, definitions=broken)
    assert not out.exists()


def die(share: manycores.Share, tell: object) -> manycores.Counted:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("never here")


def test_a_process_that_is_killed_is_told_with_the_cure(tmp_path: Path) -> None:
    share = manycores.Share(tmp_path, "orders", tmp_path, "", (), 0, 2, 0, 1, tmp_path / "out.parquet")
    with pytest.raises(StoreRefused, match="ended from outside"):
        list(manycores.run(die, [share], lambda done: None))
