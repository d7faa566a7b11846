"""Views over events: every aggregate equals a recomputation from the events, over replays, failures and trimmed logs."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fix_features import HOUR_US, MINUTE_US, SECOND_US, START_US, SlicedLog, heartbeat, until
from headrace.cdc.errors import DefinitionError
from headrace.cdc.event import CustomerEvent, Kind, SdkPart
from headrace.features.engine import FeatureEngine
from headrace.features.loading import load_definitions
from headrace.features.store.memory import MemoryStore
from headrace.features.store.sqlite import SQLiteStore
from headrace.features.verify import verify

DEFINITIONS = """
from headrace.features import *

customer = Entity("customer", join_keys={"customer_id": String})
product = Entity("product", join_keys={"sku": String})

views = FeatureView(
    "views",
    entity=customer,
    source=Events("Product Viewed", source="web"),
    entity_key={"customer_id": "event.key"},
    where=col("product.price") > 0,
    features=[
        count(over=["1m", "1h"], name="views"),
        count(name="views_ever"),
        sum_("product.price", Float64, over="1h", name="price"),
        distinct("sku", String, over="1h", name="skus"),
        last("sku", 3, String, name="last_skus"),
        latest("context.page.path", String, name="page"),
        max_("product.price", Float64, over="1h", name="dearest"),
        ratio(count(over="1h", where=col("event.anonymous_id") == "a1"), count(over="1h"), name="of_a1"),
    ],
)
seen = FeatureView("seen", entity=product, source=Events(kind=["track", "page"]), entity_key={"sku": "sku"}, features=[count(name="seen")])
"""


def event(
    number: int, user: str | None, properties: dict[str, Any], at_us: int, *, name: str = "Product Viewed", kind: Kind = "track",
    source: str = "web", received_us: int | None = None, anonymous: str | None = None, path: str | None = None,
) -> CustomerEvent:  # fmt: skip
    received_us = at_us if received_us is None else received_us
    context = None if path is None else json.dumps({"page": {"path": path}}).encode()
    return CustomerEvent(
        f"web-{number}", kind, name, user, at_us, received_us, received_us, source, "", json.dumps(properties).encode(),
        None, user, anonymous, context, SdkPart("website", f"m{number}"),
    )  # fmt: skip


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    path = tmp_path / "shop_features.py"
    path.write_text(DEFINITIONS)
    return path


class Fed:
    def __init__(self, definitions: Path, log: SlicedLog, store: Any) -> None:
        self.views = load_definitions(definitions)
        self.store = store
        self.log = log
        self.engine = FeatureEngine(self.views, lambda: store, log, CollectorRegistry())
        self.task: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        """Until everything in the log is applied."""
        end = (await self.log.bounds(0)).end
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.engine.run())
        await until(lambda: self.engine.status()["offset"][0] >= end)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    async def read(self, view: str, *key: Any) -> dict[str, Any] | None:
        spec = next(each.spec for each in self.views if each.spec.name == view)
        names = [field.name for field in spec.fields]
        store = self.engine._store
        assert store is not None
        (row,) = await store.read(spec, names, [key])
        return None if row is None else dict(zip(names, row.values, strict=True))


async def test_events_are_counted_by_customer_and_by_property(definitions: Path) -> None:
    log = SlicedLog()
    fed = Fed(definitions, log, MemoryStore())
    now = START_US
    await log.add(
        event(1, "c1", {"sku": "a", "product": {"price": 5}}, now, path="/a", anonymous="a1"),
        event(2, "c1", {"sku": "b", "product": {"price": 2.5}}, now + SECOND_US, path="/b"),
        event(3, "c1", {"sku": "b", "product": {"price": -1}}, now + SECOND_US),
        event(4, "c2", {"sku": "a", "product": "none"}, now + SECOND_US),
        event(5, None, {"sku": "a", "product": {"price": 1}}, now + SECOND_US),
        event(6, "c1", {"sku": "a", "product": {"price": 9}}, now + SECOND_US, name="Product Clicked"),
        event(7, "c1", {"sku": "a", "product": {"price": 9}}, now + SECOND_US, source="app"),
        event(8, "c1", {"sku": ["x"]}, now + SECOND_US, kind="page"),
    )
    await fed.follow()
    assert await fed.read("views", "c1") == {
        "views_1m": 2, "views_1h": 2, "views_ever": 2, "price": 7.5, "skus": 2, "last_skus": ("b", "a"), "page": "/b", "dearest": 5.0, "of_a1": 0.5,
    }  # fmt: skip
    assert await fed.read("views", "c2") is None
    assert (await fed.read("seen", "a") or {})["seen"] == 5 and (await fed.read("seen", "b") or {})["seen"] == 2
    await log.add(heartbeat(now + 2 * MINUTE_US))
    await fed.follow()
    await until_value(fed, "views_1m", 0)
    assert (await fed.read("views", "c1") or {})["views_1h"] == 2
    await fed.stop()


async def test_verify_finds_no_differing_bit_and_finds_one_that_is_made(definitions: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    log = SlicedLog()
    fed = Fed(definitions, log, MemoryStore())
    for number in range(300):
        await log.add(
            event(
                number,
                f"c{number % 7}",
                {"sku": f"s{number % 5}", "product": {"price": rng.random()}},
                START_US + number * SECOND_US,
                anonymous="a1",
            )
        )
    await fed.follow()
    async with asyncio.timeout(20):
        while fed.engine.status()["views"]["views"]["stored_offset"] < 300:
            await asyncio.sleep(0.01)
    await fed.stop()
    store = fed.store
    await store.open()
    view = fed.views[0]
    verdict = await verify(view, store, log, None, sample=100)
    assert (verdict.differing_bits, verdict.note, verdict.entities + verdict.pending) == (0, "", 7), verdict
    for row in store._views[view.spec.name].rows.values():
        row.values["price"] = row.values["dearest"]
    verdict = await verify(view, store, log, None, sample=100)
    assert verdict.differing_bits > 0 and "price is served as" in verdict.examples[0]


async def until_value(fed: Fed, name: str, wanted: Any) -> None:
    async with asyncio.timeout(20):
        while (await fed.read("views", "c1") or {}).get(name) != wanted:
            await asyncio.sleep(0.001)


async def test_an_event_counts_when_its_sender_says_it_happened(definitions: Path) -> None:
    log = SlicedLog()
    fed = Fed(definitions, log, MemoryStore())
    now = START_US + 10 * HOUR_US
    old = {"sku": "a", "product": {"price": 1}}
    await log.add(
        event(1, "c1", old, now - 30 * MINUTE_US, received_us=now),
        event(2, "c1", old, now - 5 * HOUR_US, received_us=now),
    )
    await fed.follow()
    found = await fed.read("views", "c1") or {}
    assert (found["views_1m"], found["views_1h"], found["views_ever"]) == (0, 1, 2)
    await fed.stop()


async def test_nothing_of_an_event_is_kept_but_what_it_adds(definitions: Path) -> None:
    log = SlicedLog()
    store = MemoryStore()
    fed = Fed(definitions, log, store)
    await log.add(
        *(event(number, "c1", {"sku": "a", "product": {"price": 1}}, START_US + number) for number in range(500))
    )
    await fed.follow()
    assert await store.contributions_of(fed.views[0].spec, ("c1",)) == []
    await fed.stop()


@pytest.mark.parametrize("seed", range(4))
async def test_property_features_equal_a_recomputation_from_the_events(
    definitions: Path, tmp_path: Path, seed: int
) -> None:
    """With the engine started anew at random moments from a store on disk."""
    rng = random.Random(seed)
    log = SlicedLog()
    now = START_US
    kept: list[tuple[str, str, float, int]] = []
    fed = Fed(definitions, log, SQLiteStore(tmp_path / "online.db", project="p"))
    for number in range(400):
        now += rng.choice((0, SECOND_US, 20 * SECOND_US, 3 * MINUTE_US))
        user, sku, price = f"c{rng.randrange(3)}", f"s{rng.randrange(5)}", rng.choice((-1, 0.1, 2, 1e300))
        at = now - rng.choice((0, 0, SECOND_US, 40 * MINUTE_US, 2 * HOUR_US))
        await log.add(event(number, user, {"sku": sku, "product": {"price": price}}, at, received_us=now))
        if price > 0:
            kept.append((user, sku, price, at))
        if rng.random() < 0.06:
            await fed.follow()
            if rng.random() < 0.5:
                await fed.stop()
                fed = Fed(definitions, log, SQLiteStore(tmp_path / "online.db", project="p"))
    await log.add(heartbeat(now))
    await fed.follow()
    hour = next(plan.window for plan in fed.views[0].features if plan.name == "views_1h")
    assert hour is not None
    low, high = ((now - hour.length_us) // hour.hop_us + 1) * hour.hop_us, (now // hour.hop_us + 1) * hour.hop_us
    for user in ("c0", "c1", "c2"):
        mine = [each for each in kept if each[0] == user]
        within = [each for each in mine if low <= each[3] < high]

        async def is_equal(user: str = user, mine: Any = mine, within: Any = within) -> bool:
            found = await fed.read("views", user) or {}
            return (
                found["views_ever"] == len(mine)
                and found["views_1h"] == len(within)
                and found["skus"] == len({each[1] for each in within})
                and found["dearest"] == max((each[2] for each in within), default=None)
            )

        async with asyncio.timeout(20):
            while not await is_equal():
                await asyncio.sleep(0.001)  # decay goes on beside
    await fed.stop()


async def test_a_new_view_begins_with_what_the_log_still_has(definitions: Path) -> None:
    log = SlicedLog()
    for number in range(10):
        await log.add(event(number, "c1", {"sku": "a", "product": {"price": 1}}, START_US + number))
    await log.trim(0, 6, force=True)
    fed = Fed(definitions, log, MemoryStore())
    await fed.follow()
    assert (await fed.read("views", "c1") or {})["views_ever"] == 4
    assert fed.engine.status()["views"]["views"]["phase"] == "live"
    await fed.stop()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('Events("A", kind="tracks")', "kind 'tracks'"),
        ('Events("A", kind=[])', "kind is missing"),
        ("Events(5)", "names must be texts"),
        ('Events("A"), entity_key={"customer_id": "event.nothing"}', "nothing of an event"),
        ('Events("A"), where=col("a..b") == 1, entity_key={"customer_id": "event.key"}', "is no path"),
        ('Events("A")', "needs entity_key"),
        ('"public.orders"', "or Events"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, source: str, said: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "from headrace.features import *\n"
        'customer = Entity("customer", join_keys={"customer_id": String})\n'
        f'v = FeatureView("v", entity=customer, source={source}, features=[count(name="n")])\n'
    )
    with pytest.raises(DefinitionError) as told:
        load_definitions(path)
    text = str(told.value) + "".join(told.value.problems if hasattr(told.value, "problems") else ())
    assert said in text and "bad.py:3" in text
