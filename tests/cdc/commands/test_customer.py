"""``headrace customer`` through the program's own entry: on a log that nobody runs, and asking one that is run."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.cdc.cli import main
from headrace.cdc.event import CustomerEvent
from running import RunningHeadrace
from shop_folder import Shop


def call(number: int, user: str) -> CustomerEvent:
    return CustomerEvent(f"w-{number}", "track", "Seen", user, 1, 1, 1, "web", "", b"{}", None, user)


def test_suppress_allow_and_erase_on_a_log_that_nobody_runs(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.append([call(number, f"u{number % 3}") for number in range(9)])
    assert main(["customer", "suppress", "u1", "u2", "--config", shop.file]) == 0
    assert capsys.readouterr().out == "2 changed, 2 customers are suppressed\n"
    (tmp_path / "ids").write_text("u2\n\nu3\n")
    assert main(["customer", "allow", "--file", str(tmp_path / "ids"), "--config", shop.file, "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["suppressed"] == 1
    assert main(["customer", "erase", "u1", "--config", shop.file]) == 0
    assert capsys.readouterr().out == "3 events and 0 dead letters erased\n"
    assert main(["tail", shop.file, "--json"]) == 0
    assert {msgspec.json.decode(line)["user_id"] for line in capsys.readouterr().out.splitlines()} == {"u0", "u2"}
    for arguments, said in (
        (["erase"], "was given no id"),
        (["erase", ""], "was given no id"),
        (["allow", "--file", "nowhere"], "can't be read"),
    ):
        assert main(["customer", *arguments, "--config", shop.file]) == 2
        assert said in capsys.readouterr().err


def test_the_running_process_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = RunningHeadrace(
        tmp_path, "log: {path: c.log.db}\nsources: {web: {type: http}}\nprivacy: {salt: a salt of sixteen, key_id: k1}"
    )
    running.start()
    try:
        running.wait_until(running.client.is_ready, "starting")
        assert main(["customer", "suppress", "u1", "--config", str(running.config)]) == 0
        assert main(["customer", "erase", "u1", "--config", str(running.config)]) == 0
        assert main(["customer", "hash", "u1", "--config", str(running.config)]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[:2] == ["1 changed, 1 customers are suppressed", "0 events and 0 dead letters erased"]
        assert said[2].startswith("k1:")
    finally:
        running.terminate()
