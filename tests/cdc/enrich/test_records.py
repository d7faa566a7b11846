"""Credit: what customers were told lately, and which of it they acted on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from collecting import collecting
from headrace.cdc.config import parse
from headrace.cdc.enrich.knowledge import Knowledge
from headrace.cdc.enrich.mirror import MirrorFeeder
from headrace.cdc.enrich.records import KEPT, RecentRecords
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, Kind
from headrace.cdc.pipeline import build_pipeline
from shop_log import ShopLog

HOUR_US = 3_600_000_000
STEP = {
    "credit": {
        "record": "Recommended",
        "item": "properties.sku",
        "into": "properties.recommendationId",
        "impression": "properties.shown",
        "within": "2h",
    }
}


def event(
    number: int, properties: Any, *, kind: Kind = "track", name: str = "Viewed", key: str | None = "u1", at_us: int = 0
) -> CustomerEvent:
    return CustomerEvent(
        f"e{number}", kind, name, key, at_us, at_us, at_us, "web", "", json.dumps(properties).encode(), None, key
    )


def record(
    number: int, items: Any, *, key: str | None = "u1", at_us: int = 0, name: str = "Recommended"
) -> CustomerEvent:
    return event(
        number, {"items": items, "recommendationId": f"r{number}"}, kind="record", name=name, key=key, at_us=at_us
    )


def made(folder: Path, step: Any = STEP) -> tuple[Any, Knowledge]:
    knowledge = Knowledge()
    config = parse({"sources": {"web": {"type": "http"}}, "pipeline": {"transforms": [step]}}, folder=folder)
    return build_pipeline(config, knowledge), knowledge


async def test_an_event_names_the_newest_recommendation_that_held_its_item(tmp_path: Path) -> None:
    log = ShopLog()
    await log.append(
        [
            record(1, ["a", {"itemId": "b"}], at_us=0), record(2, ["a", 7], at_us=HOUR_US), record(3, ["c"], at_us=HOUR_US, name="Other"),
            record(4, ["a"], key="u2", at_us=HOUR_US), record(5, ["a"], key=None), record(6, "none"), event(7, {"items": ["z"]}),
        ]
    )  # fmt: skip
    pipeline, knowledge = made(tmp_path)
    assert knowledge.records is not None
    await MirrorFeeder(knowledge.records, log, "records").catch_up()

    def after(properties: Any, *, at_us: int = HOUR_US + 1, key: str | None = "u1") -> Any:
        return json.loads(pipeline.one(event(100, properties, at_us=at_us, key=key)).properties)

    assert after({"sku": "a"}) == {"sku": "a", "recommendationId": "r2", "shown": ["a", "7"]}
    assert after({"sku": 7})["recommendationId"] == "r2" and after({"sku": "b"})["recommendationId"] == "r1"
    assert after({"sku": "a"}, key="u2")["recommendationId"] == "r4"
    assert after({"sku": "a", "recommendationId": "own"}) == {"sku": "a", "recommendationId": "own"}
    assert after({"sku": "a"}, at_us=10) == {"sku": "a", "recommendationId": "r1", "shown": ["a", "b"]}, (
        "none of the future"
    )
    for other, more in (
        ({"sku": "c"}, {}),
        ({"sku": "z"}, {}),
        ({}, {}),
        ({"sku": ["a"]}, {}),
        ({"sku": "a"}, {"at_us": 4 * HOUR_US}),
        ({"sku": "a"}, {"key": None}),
    ):
        assert after(other, **more) == other  # type: ignore[arg-type]  # fields by name
    knowledge.close()


@pytest.mark.parametrize("seed", range(3))
def test_property_the_newest_few_of_each_are_kept(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    records = RecentRecords(tmp_path / "records.db")
    records.add("Recommended")
    records.place("g")
    every: dict[str, list[tuple[int, str]]] = {}
    for number in range(200):
        key, at_us = f"u{rng.randrange(4)}", rng.randrange(50)
        records.feed([record(number, [], key=key, at_us=at_us)], number + 1)
        every.setdefault(key, []).append((at_us, f"e{number}"))
        if rng.random() < 0.1:
            records.close()
            assert records.place("g") == number + 1
    for key, mine in every.items():
        wanted = [f"r{each[1][1:]}" for each in sorted(mine, reverse=True)[:KEPT]]
        assert [said.body["recommendationId"] for said in records.of("Recommended", key)] == wanted, f"seed {seed}"
    assert records.place("other") == 0 and records.of("Recommended", "u1") == []
    records.close()


async def test_records_are_posted_like_any_call() -> None:
    async with collecting() as here:
        body = {
            "userId": "u1",
            "event": "Recommended",
            "messageId": "m1",
            "properties": {"items": ["a"], "recommendationId": "r1"},
        }
        assert (await here.post("/v1/record", body))[0] == 200
        assert (
            await here.post(
                "/v1/batch",
                {
                    "batch": [
                        {**body, "type": "record", "messageId": "m2"},
                        {**body, "type": "record", "event": None, "messageId": "m3"},
                    ]
                },
            )
        )[0] == 200
        assert [(found.kind, found.name, found.key) for found in await here.events()] == [
            ("record", "Recommended", "u1")
        ] * 2
        assert [stored.letter.reason for stored in await here.letters()] == ["no_name"]


def test_what_is_wrong_is_said_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        made(tmp_path, {"credit": {"record": "R", "item": "nothing", "into": "name", "impression": "properties.*"}})
    assert len(told.value.problems) == 3 and all("credit." in problem for problem in told.value.problems)
