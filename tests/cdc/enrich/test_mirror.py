"""The mirror of captured tables: after any rows a lookup finds what the table has, also over restarts and another log."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from headrace.cdc.enrich.mirror import Lookup, MirrorFeeder, TableMirror
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, Op, RowPart
from headrace.cdc.log.memory import MemoryLog
from shop_log import ShopLog

BY_SKU = Lookup("public.p", ("sku",), ("name",))
BY_BOTH = Lookup("public.p", ("shop", "sku"))


def change(
    op: Op, key: Any = None, after: Any = None, before: Any = None, *, unchanged: tuple[str, ...] = (), table: str = "p"
) -> CustomerEvent:
    part = RowPart(
        "public", table, op, None if key is None else json.dumps(key).encode(),
        None if before is None else json.dumps(before).encode(), unchanged, 1, 0, True, 1,
    )  # fmt: skip
    return CustomerEvent("i", "track", "x", None, 1, 1, 1, "s", "", json.dumps(after or {}).encode(), part)


def mirror(path: Path) -> TableMirror:
    made = TableMirror(path / "lookups.db")
    made.add(BY_SKU)
    made.add(BY_BOTH)
    return made


def test_a_row_is_found_as_it_is_now(tmp_path: Path) -> None:
    made = mirror(tmp_path)
    assert made.place("g") == 0
    row = {"id": 1, "sku": "a", "shop": 7, "name": "Chair", "text": "long"}
    made.feed([change("insert", {"id": 1}, row), change("insert", {"id": 9}, row, table="other")], 2)
    assert made.get(BY_SKU, ["a"]) == {"name": "Chair", "sku": "a"}
    assert made.get(BY_BOTH, ["7", "a"]) == row, "7 and its text are the same, as customers are"
    assert made.get(BY_SKU, ["b"]) is None
    part = {"id": 1, "sku": "b", "shop": 7, "name": "Stool"}
    made.feed([change("update", {"id": 1}, part, unchanged=("text",))], 3)
    assert made.get(BY_SKU, ["a"]) is None and made.get(BY_SKU, ["b"]) == {"name": "Stool", "sku": "b"}
    assert made.get(BY_BOTH, [7, "b"]) == {**part, "text": "long"}, "what wasn't sent is as it was"
    made.feed([change("update", {"id": 2}, {**part, "id": 2, "text": "t"}, {"id": 1})], 4)
    made.feed([change("delete", {"id": 1}, None, {"id": 1})], 5)
    assert made.get(BY_SKU, ["b"]) is not None, "it is row 2 now"
    made.feed([change("truncate")], 6)
    assert made.get(BY_SKU, ["b"]) is None and made.get(BY_BOTH, [7, "b"]) is None
    made.close()


@pytest.mark.parametrize("seed", range(5))
def test_property_lookups_agree_with_the_table(tmp_path: Path, seed: int) -> None:
    rng, table = random.Random(seed), dict[int, dict[str, Any]]()
    made = mirror(tmp_path)
    made.place("g")
    for offset in range(1, 601):
        key = rng.randrange(12)
        row = {"id": key, "sku": f"s{rng.randrange(6)}", "shop": rng.randrange(2), "name": str(rng.random())}
        if key not in table:
            event = change("insert", {"id": key}, row)
            table[key] = row
        elif rng.random() < 0.3:
            event = change("delete", {"id": key}, None, {"id": key})
            del table[key]
        elif rng.random() < 0.02:
            event = change("truncate")
            table.clear()
        else:
            other = rng.choice([key, *(each for each in range(12) if each not in table)])
            event = change("update", {"id": other}, {**row, "id": other}, {"id": key})
            del table[key]
            table[other] = {**row, "id": other}
        made.feed([event], offset)
        if rng.random() < 0.05:
            made.close()
            assert made.place("g") == offset, f"seed {seed}"
        sku, shop = f"s{rng.randrange(6)}", rng.randrange(2)
        of_sku = [each for each in table.values() if each["sku"] == sku]
        found = made.get(BY_SKU, [sku])
        assert (found in [{"sku": sku, "name": each["name"]} for each in of_sku]) if of_sku else found is None, (
            f"seed {seed}"
        )
        of_both = [each for each in of_sku if each["shop"] == shop]
        found = made.get(BY_BOTH, [shop, sku])
        assert found in of_both if of_both else found is None, f"seed {seed}"
    made.close()


def test_another_log_or_other_lookups_begin_anew(tmp_path: Path) -> None:
    made = mirror(tmp_path)
    made.place("g")
    made.feed([change("insert", {"id": 1}, {"id": 1, "sku": "a", "shop": 1, "name": "x"})], 5)
    assert made.place("g") == 5 and made.get(BY_SKU, ["a"]) is not None
    assert made.place("h") == 0 and made.get(BY_SKU, ["a"]) is None
    made.feed([], 9)
    made.add(Lookup("public.p", ("name",)))
    assert made.place("h") == 0
    made.close()


async def test_it_follows_the_log_and_goes_on_where_it_was(tmp_path: Path) -> None:
    log = ShopLog()
    await log.append([change("insert", {"id": 1}, {"id": 1, "sku": "a", "shop": 1, "name": "x"})])
    made = mirror(tmp_path)
    feeder = MirrorFeeder(made, log)
    await feeder.catch_up()
    assert made.get(BY_SKU, ["a"]) == {"name": "x", "sku": "a"}
    running = asyncio.create_task(feeder.run())
    await log.append([change("update", {"id": 1}, {"id": 1, "sku": "a", "shop": 1, "name": "y"})])
    async with asyncio.timeout(10):
        while made.get(BY_SKU, ["a"]) != {"name": "y", "sku": "a"}:
            await asyncio.sleep(0.01)
        while await log.committed("lookup", 0) is None:
            await asyncio.sleep(0.01)
    assert feeder.status()["offset"] == [2]
    running.cancel()
    await asyncio.wait([running])
    made.close()
    await log.append_one_by_one([change("delete", {"id": 1}, None, {"id": 1}), change("truncate", table="other")])
    await log.trim(0, 3, force=True)
    again = MirrorFeeder(mirror(tmp_path), log)
    await again.catch_up()
    assert again.status()["offset"] == [4]
    again._mirror.close()


def test_several_partitions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one partition"):
        MirrorFeeder(mirror(tmp_path), MemoryLog(partitions=2))
