"""``headrace sink`` and ``headrace replay`` on a log and a destination, as a person uses them; no headrace runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.cli import main
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.sinks.deadletter import DeadLetter
from headrace.sinks.sinkfile import SinkFile
from hook_server import Hook, hook_server
from shop_log import order_event


@pytest.fixture
def hook() -> Iterator[Hook]:
    with hook_server() as found:
        yield found


@pytest.fixture
def file(tmp_path: Path, hook: Hook) -> str:
    """A configuration; its log holds orders 0 to 9, a second apart."""
    path = tmp_path / "headrace.yaml"
    path.write_text(
        "log: {path: shop.log.db}\nserver: {listen: '127.0.0.1:1'}\nsources: {shop: {type: postgres, dsn: host=none}}\n"
        f"sinks: {{crm: {{type: http, destination: {{url: '{hook.url}'}}}}}}\n"
    )

    async def fill() -> None:
        log = await SQLiteLog.open(tmp_path / "shop.log.db")
        await log.append([order_event(number) for number in range(10)], source="shop", state=b"")
        await log.close()

    asyncio.run(fill())
    return str(path)


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return msgspec.json.decode(capsys.readouterr().out)


def numbers(hook: Hook) -> list[int]:
    return sorted(int(body["id"].removeprefix("shop-")) for body in hook.got)


def test_a_replay_by_offsets_or_times_delivers_just_that_and_is_marked(
    file: str, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", "crm", file, "--from", "3", "--to", "6", "--json"]) == 0
    assert _json(capsys) == {
        "sink": "crm", "is_whole": True, "delivered": 3, "dead": 0, "skipped": 0, "offsets": {"0": 6},
    }  # fmt: skip
    assert numbers(hook) == [3, 4, 5] and {headers["headrace-replay"] for headers in hook.headers} == {"true"}
    hook.got.clear()
    assert main(["replay", "crm", file, "--from", "2023-11-14T22:13:27Z", "--to", "2023-11-14T22:13:29+00:00"]) == 0
    assert numbers(hook) == [7, 8]
    assert "2 events delivered" in capsys.readouterr().out
    hook.got.clear()
    assert main(["replay", "crm", file, "--from", "earliest"]) == 0
    assert numbers(hook) == list(range(10))


def test_a_replayed_event_that_is_refused_becomes_a_dead_letter(file: str, hook: Hook, tmp_path: Path) -> None:
    hook.answer = lambda body: 422 if body["id"] == "shop-4" else 200
    assert main(["replay", "crm", file, "--from", "3", "--to", "6"]) == 7
    assert numbers(hook) == [3, 5]
    assert main(["replay", "crm", file, "--dead-letters"]) == 7, "it is refused again, and stays"
    hook.answer = lambda body: 200
    assert main(["replay", "crm", file, "--dead-letters"]) == 0
    assert numbers(hook) == [3, 4, 5]

    async def left() -> list[DeadLetter]:
        store = SinkFile(tmp_path / "shop.log.db.sinks")
        found = await store.letters("crm")
        await store.close()
        return found

    assert asyncio.run(left()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "20"], "--from 20: partition 0 keeps 0 to 10"),
        (["--from", "soon"], "--from 'soon' is no place"),
        (["--from", "5", "--to", "5"], "no event between"),
        ([], "a place to begin"),
        (["--from", "1", "--dead-letters"], "a place to begin"),
        (["--from", "1", "--partition", "4"], "the log has 1"),
    ],
    ids=str,
)
def test_a_place_that_makes_no_sense_is_told(
    file: str, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["replay", "crm", file, *words]) == 2
    assert told in capsys.readouterr().err


def test_an_unknown_sink_is_told_with_the_known_ones(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["replay", "crn", file, "--from", "0"], ["sink", "pause", "crn", file]):
        assert main(words) == 2
        assert "name one of: crm" in capsys.readouterr().err


def test_ls_shows_what_log_and_file_hold_when_nothing_runs(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sink", "ls", file]) == 0
    assert "not running" in capsys.readouterr().out
    assert not (tmp_path / "shop.log.db.sinks").exists(), "looking makes no file"
    assert main(["sink", "pause", "crm", file]) == 0
    capsys.readouterr()
    assert main(["sink", "ls", file, "--json"]) == 0
    line = _json(capsys)["sinks"]["crm"]
    assert (line["state"], line["type"], line["dead_letters"]) == ("paused", "http", 0)
    assert main(["sink", "resume", "crm", file]) == 0
    capsys.readouterr()
    assert main(["sink", "ls", file, "--json"]) == 0
    assert _json(capsys)["sinks"]["crm"]["state"] == "not running"


def test_check_asks_the_destination(file: str, hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sink", "check", file]) == 0
    assert "127.0.0.1 answers" in capsys.readouterr().out
    Path(file).write_text(Path(file).read_text().replace(hook.url, "http://127.0.0.1:1/"))
    assert main(["sink", "check", file, "--json"]) == 7
    found = _json(capsys)
    assert found["ok"] is False and "can't be reached" in found["sinks"]["crm"][0]["message"]
