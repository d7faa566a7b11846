"""``headrace tail`` through the program's own entry, on a real log file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import msgspec
import pytest

from headrace.cdc.cli import main
from headrace.cdc.event import CustomerEvent
from shop_folder import Shop
from shop_log import heartbeat, order_event

PROGRAM = "import sys; from headrace.cdc.cli import main; sys.exit(main(sys.argv[1:]))"


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines_hold_the_whole_event(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.append([order_event(1, key="c7", op="update", before=b'{"id":1,"total":"8.00"}'), heartbeat(2)])
    assert main(["tail", shop.file, "--json"]) == 0
    (line,) = lines(capsys)
    assert line == {
        "id": "shop-1",
        "partition": 0,
        "offset": 0,
        "kind": "track",
        "name": "orders inserted",
        "customer_key": "c7",
        "user_id": None,
        "anonymous_id": None,
        "occurred_us": 1_700_000_001_000_000,
        "committed_us": 1_700_000_001_000_000,
        "received_us": 1_700_000_001_000_000,
        "source": "shop",
        "position": "0/1:0",
        "schema": "public",
        "table": "orders",
        "op": "update",
        "key": {"id": 1},
        "before": {"id": 1, "total": "8.00"},
        "after": {"id": 1, "total": "9.90"},
        "unchanged": [],
        "undecodable": [],
        "transaction_id": 7,
        "ordinal": 0,
        "last_in_transaction": True,
        "schema_version": 1,
    }


def test_text_beyond_ascii_is_utf_8_whatever_the_locale(shop: Shop) -> None:
    shop.append([order_event(1, properties='{"name":"Zoë 🛒"}'.encode())])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "tail", shop.file, "--json"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert msgspec.json.decode(done.stdout)["after"] == {"name": "Zoë 🛒"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], [0, 1, 2, 4]),
        (["--heartbeats"], [0, 1, 2, 3, 4]),
        (["--kind", "heartbeat"], [3]),
        (["--from", "2"], [2, 4]),
        (["--from", "latest"], []),
        (["--limit", "2"], [0, 1]),
        (["--table", "people"], [1]),
        (["--table", "public.people", "--table", "baskets"], [1, 2]),
        (["--name", "Order Completed"], [4]),
        (["--key", "42"], [0, 2]),
        (["--key", "42", "--table", "baskets"], [2]),
        (["--partition", "0", "--from", "4"], [4]),
    ],
)
def test_places_and_filters(
    shop: Shop, capsys: pytest.CaptureFixture[str], words: list[str], expected: list[int]
) -> None:
    shop.append(
        [
            order_event(0, key="42"),
            order_event(1, kind="identify", table="people"),
            order_event(2, key="42", table="baskets"),
            heartbeat(3),
            order_event(4, name="Order Completed"),
        ]
    )
    assert main(["tail", shop.file, "--json", *words]) == 0
    assert [line["offset"] for line in lines(capsys)] == expected


def test_partitions_are_merged_by_commit_time(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.partitions = 4
    shop.append([order_event(number) for number in range(80)])
    assert main(["tail", shop.file, "--json"]) == 0
    seen = lines(capsys)
    assert [line["id"] for line in seen] == [f"shop-{number}" for number in range(80)]
    assert {line["partition"] for line in seen} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--from", "99"], "beyond the end"),
        (["--from", "yesterday"], "no place"),
        (["--partition", "3"], "--partition 3"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_a_bad_option_is_named(shop: Shop, capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    shop.append([order_event(1)])
    assert main(["tail", shop.file, *words]) == 2
    assert reason in capsys.readouterr().err


def test_a_trimmed_offset_is_told_with_the_oldest_kept(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    shop.append([order_event(number) for number in range(5)])

    async def trim() -> None:
        log = await shop.open_log()
        assert await log.trim(0, 3) == 3
        await log.close()

    asyncio.run(trim())
    assert main(["tail", shop.file, "--from", "1"]) == 4
    assert "3" in capsys.readouterr().err


def test_a_missing_log_is_told_and_nothing_is_created(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", shop.file]) == 4
    assert "shop.log.db" in capsys.readouterr().err
    assert [path.name for path in shop.folder.iterdir()] == ["headrace.yaml"]


def test_a_log_in_memory_is_read_through_the_server(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    path = shop.folder / "other.yaml"
    path.write_text("log: {type: memory}\nsources: {shop: {type: postgres, dsn: 'dbname=shop'}}")
    assert main(["tail", str(path)]) == 2
    assert "/v1/stream" in capsys.readouterr().err


def test_people_get_aligned_lines(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.append(
        [
            order_event(1, op="insert"),
            order_event(2, op="update", before=b'{"id":2,"total":"8.00"}', key="c1"),
            order_event(3, op="delete", before=b'{"id":3}', properties=b"{}"),
            order_event(4, table="customers", name="Signed Up", properties=b'{"id":4,"note":null,"tags":["a"]}'),
        ]
    )
    assert main(["tail", shop.file]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2023-11-14 22:13:21.000       0  insert    public.orders     1     total=9.90",
        "2023-11-14 22:13:22.000       1  update    public.orders     2     by c1 total=8.00→9.90",
        "2023-11-14 22:13:23.000       2  delete    public.orders     3",
        '2023-11-14 22:13:24.000       3  insert    public.customers  4     "Signed Up" note=NULL tags=["a"]',
    ]


def test_row_data_cannot_command_the_terminal(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    evil = msgspec.json.encode({"id": 1, "note": "\x1b]0;owned\x07\n\u202e\x9b2J"})
    shop.append([order_event(1, properties=evil, table="t\x1b[2J")])
    assert main(["tail", shop.file]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.rstrip("\n").isprintable()
    assert "\\x1b]0;owned" in out


def test_following_shows_what_a_running_process_appends_until_ctrl_c(shop: Shop) -> None:
    import asyncio

    shop.append([order_event(1)])

    async def scenario() -> tuple[list[int], int]:
        log = await shop.open_log()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, "tail", shop.file, "--json", "--follow", "--from", "earliest",
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        seen: list[int] = []
        async with asyncio.timeout(20):
            seen.append(msgspec.json.decode(await process.stdout.readline())["offset"])
            for number in (2, 3):
                await log.append([order_event(number)], source="shop", state=b"")
                seen.append(msgspec.json.decode(await process.stdout.readline())["offset"])
            process.send_signal(signal.SIGINT)
            code = await process.wait()
        await log.close()
        return seen, code

    assert asyncio.run(scenario()) == ([0, 1, 2], 0)


def test_a_closed_pipe_is_an_ordinary_end(shop: Shop) -> None:
    events: list[CustomerEvent] = [
        order_event(number, properties=b'{"text":"%b"}' % (b"x" * 2000)) for number in range(200)
    ]
    shop.append(events)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "tail", shop.file, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    killer = threading.Timer(20, process.kill)
    killer.start()
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")
    process.stderr.close()
    killer.cancel()
