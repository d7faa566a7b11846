"""What a person can get wrong with the demo: one paragraph, the documented exit code, no traceback, no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from fix_servers import Database
from headrace.cdc.cli import main

SECRET = "hunter2"


def test_a_server_that_does_not_answer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dsn = f"host=127.0.0.1 port=1 user=x dbname=d password={SECRET}"
    assert main(["demo", "--json", "--seconds", "1", "--folder", str(tmp_path / "demo"), "--dsn", dsn]) == 3
    said = capsys.readouterr().err
    assert "x@127.0.0.1:1/d" in said
    assert SECRET not in said


def test_a_dsn_that_can_not_be_read_is_refused_and_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "--json", "--folder", str(folder), "--dsn", f"hots=x password={SECRET}"]) == 2
    assert SECRET not in capsys.readouterr().err
    assert not folder.exists(), "nothing was made"


def test_a_folder_that_can_not_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--folder", "/proc/headrace-demo"]) == 2
    assert "/proc/headrace-demo" in capsys.readouterr().err


def test_a_schema_of_that_name_is_left_alone(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.execute("create schema shop")
    database.execute("create table shop.mine (id int)")
    assert main(["demo", "--json", "--seconds", "1", "--folder", str(tmp_path / "demo"), "--dsn", database.dsn]) == 3
    assert "drop schema shop cascade" in capsys.readouterr().err
    assert database.execute("select to_regclass('shop.mine') is not null") == [(True,)]
