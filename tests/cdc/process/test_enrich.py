"""Steps that add what is known beside the event: from its own words by libraries, from a captured table's rows, from a service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from headrace.cdc.config import FetchConfig, LookupConfig, parse
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, SdkPart
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.process.draft import Draft
from headrace.cdc.process.enrich import fetch_step, lookup_step

SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_4 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 Mobile/15E148 Safari/604.1"
BOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


def event(context: Any = None, properties: Any = None) -> CustomerEvent:
    return CustomerEvent(
        "i1", "track", "Seen", "u1", 1, 2, 3, "web", "", json.dumps(properties or {}).encode(), None, "u1", None,
        None if context is None else json.dumps(context).encode(), SdkPart("website", "m1"),
    )  # fmt: skip


def context_after(made: CustomerEvent, *steps: Any, folder: Path = Path()) -> Any:
    config = parse({"sources": {"web": {"type": "http"}}, "pipeline": {"transforms": list(steps)}}, folder=folder)
    pipeline = build_pipeline(config)
    assert pipeline is not None
    passed = pipeline.one(made)
    assert isinstance(passed, CustomerEvent)
    return None if passed.context is None else json.loads(passed.context)


def test_a_campaign_is_read_from_the_pages_address() -> None:
    step = {"parse": ["campaign"]}
    url = "https://shop.example/a?utm_source=news&utm_medium=email&utm_campaign=May+%C3%BC&x=1&gclid=abc"
    wanted = {"source": "news", "medium": "email", "name": "May ü"}
    assert context_after(event({"page": {"url": url}}), step)["campaign"] == wanted
    assert context_after(event({"page": {"search": url[22:]}}), step)["clickIds"] == {"gclid": "abc"}
    assert context_after(event(None, {"url": url}), step)["campaign"] == wanted
    own = {"page": {"url": url}, "campaign": {"source": "own"}}
    assert context_after(event(own), step)["campaign"] == {**wanted, "source": "own"}, "what it says itself stays"
    for plain in (
        {"page": {"url": "https://shop.example/"}},
        {"page": {"url": "http://[broken?utm_source=x"}},
        {"page": 5},
        {},
    ):
        assert context_after(event(plain), step) == plain


def test_an_agent_is_told_apart_and_a_bot_is_one() -> None:
    step = {"parse": ["user_agent"]}
    seen = context_after(event({"userAgent": SAFARI, "device": {"model": "own"}}), step)
    assert seen["browser"] == {"name": "Mobile Safari", "version": "17.4"}
    assert seen["os"] == {"name": "iOS", "version": "17.4"}
    assert seen["device"] == {"model": "own", "manufacturer": "Apple"}
    assert context_after(event({"userAgent": BOT}), step)["device"] == {"type": "bot"}
    for other in ({"userAgent": 5}, {"userAgent": "x" * 100_000}, {}):
        assert "browser" not in context_after(event(other), step)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoLite2-City")
    writer.insert_network(
        IPSet(["203.0.113.0/24"]),
        {
            "country": {"iso_code": "DE"},
            "city": {"names": {"en": "Berlin"}},
            "subdivisions": [{"iso_code": "BE"}],
            "location": {"latitude": 52.5, "longitude": 13.4, "time_zone": "Europe/Berlin"},
        },
    )
    writer.insert_network(IPSet(["198.51.100.0/24"]), {"country": {"iso_code": "FR"}})
    writer.to_db_file(str(tmp_path / "geo.mmdb"))
    return tmp_path


def test_an_address_is_located_by_a_file(database: Path) -> None:
    step = {"locate": "geo.mmdb"}
    assert context_after(event({"ip": "203.0.113.9"}), step, folder=database)["location"] == {
        "country": "DE", "region": "BE", "city": "Berlin", "latitude": 52.5, "longitude": 13.4, "timezone": "Europe/Berlin",
    }  # fmt: skip
    found = context_after(event({"ip": "198.51.100.1"}), step, {"remove": ["context.ip"]}, folder=database)
    assert found == {"location": {"country": "FR"}}
    for other in ({"ip": "192.0.2.1"}, {"ip": "no address"}, {"ip": None}, {}):
        assert context_after(event(other), step, folder=database) == other


def test_what_cannot_be_used_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "bad.mmdb").write_bytes(b"no database")
    for step, said in (
        ({"locate": "bad.mmdb"}, "is no MaxMind database"),
        ({"locate": "missing.mmdb"}, "is no MaxMind database"),
        ({"lookup": {"table": "public.t", "by": {"id": "nothing.id"}, "into": "properties.x"}}, "lookup.by.id"),
        ({"lookup": {"table": "public.t", "by": {"id": "properties.id"}, "into": "name"}}, "lookup.into"),
        ({"fetch": {"url": "http://127.0.0.1/{properties.*}", "into": "properties.x"}}, "one place"),
        ({"lookup": {"table": "public.p", "by": {"id": "properties.id"}, "into": "properties.x", "columns": ["secret"]}}, "without secret"),
    ):  # fmt: skip
        config = parse(
            {
                "sources": {"web": {"type": "http"}},
                "events": {"public.p": {"columns": {"exclude": ["secret"]}}},
                "pipeline": {"transforms": [step]},
            },
            folder=tmp_path,
        )
        with pytest.raises(ConfigError) as told:
            build_pipeline(config)
        assert told.value.problems[0].startswith("pipeline.transforms[0]") and said in told.value.problems[0]


def test_a_lookup_puts_the_row_where_it_belongs() -> None:
    rows = {("a1", 7): {"name": "Chair", "price": "9.90", "sku": "a1"}}
    config = LookupConfig(
        "public.p", {"sku": "properties.sku", "shop": "properties.shop"}, "properties.product", ["name", "price"]
    )
    step = lookup_step(config, lambda values: rows.get(tuple(values)))

    def after(properties: Any) -> Any:
        draft = step(Draft(event(None, properties)))
        assert draft is not None
        return json.loads(draft.done().properties)

    assert after({"sku": "a1", "shop": 7})["product"] == {"name": "Chair", "price": "9.90"}
    for other in ({"sku": "a1", "shop": 8}, {"sku": "a1"}, {"sku": None, "shop": 7}, {"sku": {}, "shop": 7}):
        assert after(other) == other
    assert after({"sku": "a1", "shop": 7, "product": "own"})["product"] == "own"


def test_a_fetch_asks_with_the_events_values_and_does_without_an_answer() -> None:
    asked: list[str] = []

    def get(url: str) -> Any:
        asked.append(url)
        if "late" in url:
            raise LookupError
        return None if "none" in url else {"score": 3}

    step = fetch_step(FetchConfig("http://s/{user_id}/{properties.a.b}?x={properties.n}", "context.score"), get)

    def after(properties: Any) -> Any:
        draft = step(Draft(event(None, properties)))
        assert draft is not None
        context = draft.done().context
        return None if context is None else json.loads(context)

    assert after({"a": {"b": "ü/&"}, "n": 5}) == {"score": {"score": 3}}
    assert asked == ["http://s/u1/%C3%BC%2F%26?x=5"]
    assert after({"a": {"b": "late"}, "n": 5}) is None
    assert after({"a": {"b": "none"}, "n": 5}) is None
    assert after({"a": {}, "n": 5}) is None and len(asked) == 3, "without a value nobody is asked"
