"""Customers who are let alone or forgotten: the door, the list over restarts, and no byte left in the log's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collecting import collecting
from headrace.cdc.config import parse
from headrace.cdc.customers import SHARDS, Customers, Suppression, forms
from headrace.cdc.errors import ConfigError, RequestRefused
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.log.sqlite import SQLiteLog

MARK = "customer-that-goes-7d1f"


def event(number: int, user: str, *, size: int = 100) -> CustomerEvent:
    properties = json.dumps({"note": f"of {user}", "pad": "x" * size}).encode()
    return CustomerEvent(f"w-{number}", "track", "Seen", user, 1, 1, 1, "web", "", properties, None, user)


def config(**privacy: Any) -> Any:
    return parse({"sources": {"web": {"type": "http"}}, "privacy": privacy}, folder=Path())


async def test_the_list_outlives_the_process_and_holds_no_id(tmp_path: Path) -> None:
    log = await SQLiteLog.open(tmp_path / "log.db")
    suppression = Suppression(log)
    await suppression.load()
    assert not suppression.refuses(event(1, MARK))
    assert await suppression.add([MARK, "other"]) == 2
    assert await suppression.add([MARK]) == 0
    assert suppression.refuses(event(1, MARK)) and not suppression.refuses(event(1, "third"))
    await log.close()
    assert MARK.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    log = await SQLiteLog.open(tmp_path / "log.db")
    again = Suppression(log)
    await again.load()
    assert again.count == 2 and again.has(MARK)
    assert await again.remove([MARK, "nobody"]) == 1
    assert not again.has(MARK) and again.has("other")
    await log.close()


async def test_a_full_list_says_so_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.customers._SHARD_BYTES", 200)
    suppression = Suppression(MemoryLog())
    await suppression.load()
    with pytest.raises(RequestRefused, match="full"):
        await suppression.add([f"u{number}" for number in range(20 * SHARDS)])
    assert suppression.count == 0


@pytest.mark.parametrize("size", [50, 20_000])
async def test_no_byte_of_an_erased_customer_is_left_in_the_files(tmp_path: Path, size: int) -> None:
    path = tmp_path / "log.db"
    log = await SQLiteLog.open(path)
    for number in range(300):
        await log.append([event(number, MARK if number % 7 == 0 else f"u{number}", size=size)], source="web", state=b"")
    await log.stage([event(1000, MARK, size=size), event(1001, "u1", size=size)], source="web")
    await log.append([], source="web", state=b"")

    def found() -> int:
        return sum(each.read_bytes().count(MARK.encode()) for each in tmp_path.iterdir())

    assert found() >= 44, "the search sees it"
    suppression = Suppression(log)
    await suppression.load()
    customers = Customers(log, config(), suppression)
    told = await customers.erase([MARK])
    assert told.events == 44
    assert found() == 0, "while the log is open"
    await log.append([event(2000, "u1")], source="web", state=b"")
    batch = await log.read(0, 0, max_bytes=1 << 30)
    assert [each.kind for each in batch.events[:8]] == ["heartbeat", *["track"] * 6, "heartbeat"]
    await log.close()
    assert found() == 0
    log = await SQLiteLog.open(path)
    assert (await log.bounds(0)).end == 303
    await log.close()


async def test_the_door_answers_and_forgets(tmp_path: Path) -> None:
    log = await SQLiteLog.open(tmp_path / "log.db")
    async with collecting(log) as here:
        suppression = Suppression(log)
        await suppression.load()
        here.collector._suppression = suppression
        await suppression.add(["u1"])
        calls = [
            {"type": "track", "event": "A", "userId": "u1", "messageId": "1"},
            {"type": "track", "event": "A", "anonymousId": "u1", "messageId": "2"},
            {"type": "alias", "userId": "u2", "previousId": "u1", "messageId": "3"},
            {"type": "track", "event": "A", "userId": "u2", "messageId": "4"},
        ]
        status, _ = await here.post("/v1/batch", {"batch": calls})
        assert status == 200
        assert [each.user_id for each in await here.events()] == ["u2"]
        assert suppression.refused == 3
    await log.close()


def test_an_id_is_known_by_its_hashes_of_today_and_before() -> None:
    today, before = "a salt of sixteen!", "an older salt of sixteen"
    found = forms(config(salt=today, key_id="b", former={"": before}), ["u1"])
    assert found[0] == "u1" and found[1].startswith("b:") and len(found[2]) == 64
    assert found[2] == forms(config(salt=before), ["u1"])[1]
    with pytest.raises(ConfigError, match="problem"):
        config(salt=today, former={"": before})


async def test_an_event_hashed_under_a_former_salt_is_erased_too() -> None:
    today, before = "a salt of sixteen!", "an older salt of sixteen"
    old, new = forms(config(salt=before), ["u1"])[1], forms(config(salt=today, key_id="b"), ["u1"])[1]
    log = MemoryLog()
    await log.append([event(1, old), event(2, new), event(3, "u1"), event(4, "u2")], source="web", state=b"")
    suppression = Suppression(log)
    told = await Customers(log, config(salt=today, key_id="b", former={"": before}), suppression).erase(["u1"])
    assert told.events == 3
