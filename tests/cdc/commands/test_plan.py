"""``headrace plan`` through the program's own entry, on a real log file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.cli import main
from headrace.cdc.event import CustomerEvent
from shop_folder import Shop
from shop_log import heartbeat, order_event


def call(number: int, properties: dict[str, Any], name: str = "Order Completed") -> CustomerEvent:
    return CustomerEvent(
        f"w-{number}",
        "track",
        name,
        "u",
        1,
        1,
        1_700_000_000_000_000 + number,
        "web",
        "",
        msgspec.json.encode(properties),
    )


def fill(shop: Shop) -> None:
    calls = [call(number, {"order_id": str(number), "total": number}) for number in range(120)]
    shop.append([order_event(1), heartbeat(2), *calls, call(500, {"total": "much"})])


def test_learn_then_check_on_the_same_log(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(shop)
    out = tmp_path / "plan.yaml"
    assert main(["plan", "learn", "--config", shop.file, "--out", str(out)]) == 0
    assert "121 events of 1 names read" in capsys.readouterr().err
    assert main(["plan", "learn", "--config", shop.file, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["plan", "check", "--config", shop.file, "--plan", str(out)]) == 0
    said = capsys.readouterr().out
    assert "of 121 events 0 would be set aside" in said, "one in 121 is no mistake yet"
    out.write_text("track: {Order Completed: {schema: {required: [order_id], properties: {total: {type: number}}}}}")
    assert main(["plan", "check", "--config", shop.file, "--plan", str(out)]) == 0
    said = capsys.readouterr().out
    assert "track Order Completed: 121 seen, 1 would be set aside (0.8%), 0 stripped" in said
    assert "1  required (order_id)" in said and "1  properties/total/type" in said
    assert "much" not in said
    assert main(["plan", "check", "--config", shop.file, "--plan", str(out), "--json"]) == 0
    told = msgspec.json.decode(capsys.readouterr().out)
    assert told["events"]["track Order Completed"]["quarantined"] == 1


def test_a_sample_and_a_source_narrow_it(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    fill(shop)
    assert main(["plan", "learn", "--config", shop.file, "--sample", "0.3"]) == 0
    first = capsys.readouterr()
    assert 10 < int(first.err.split()[0]) < 70
    assert main(["plan", "learn", "--config", shop.file, "--sample", "0.3"]) == 0
    assert capsys.readouterr().out == first.out, "the same ones"
    for more, said in (
        (["--source", "other"], "holds no event"),
        (["--last", "1h"], "holds no event"),
        (["--last", "soon"], "--last soon"),
        (["--sample", "2"], "--sample must be"),
    ):
        assert main(["plan", "learn", "--config", shop.file, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["plan", "check", "--config", shop.file]) == 2
    assert "there is no plan to check" in capsys.readouterr().err


def test_import_tells_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "segment.json"
    schema = {"type": "object", "properties": {"properties": {"type": "object", "required": ["a"]}}}
    rules = [{"type": "TRACK", "key": "A", "jsonSchema": schema}, {"type": "COMMON", "jsonSchema": schema}]
    path.write_bytes(msgspec.json.encode({"data": {"rules": rules}}))
    assert main(["plan", "import", str(path)]) == 0
    told = capsys.readouterr()
    assert "required:" in told.out
    assert "left out: common" in told.err
    for text, said in (("{", "can't be taken over"), ("{}", "no rule of an event"), (None, "can't be read")):
        path.unlink() if text is None else path.write_text(text)
        assert main(["plan", "import", str(path)]) == 2
        assert said in capsys.readouterr().err
