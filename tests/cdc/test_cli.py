"""The program: one command is loaded, an error is one paragraph and an exit code, a closed pipe is no trouble."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cdc import __version__, cli, errors
from headrace.cdc.command import Command, config_argument
from headrace.cdc.errors import ConfigError, DecodeError, HeadraceError, SourceUnavailable, Trimmed

PROGRAM = "import sys; from headrace.cdc.cli import main; sys.exit(main())"


class Point:
    """An entry point as importlib.metadata gives them; remembers whether it was loaded."""

    def __init__(self, name: str, run: Callable[[Namespace], int]) -> None:
        self.name = name
        self.value = f"somewhere:{name.upper()}"
        self.is_loaded = False
        self._run = run

    def load(self) -> Any:
        self.is_loaded = True

        def configure(parser: ArgumentParser) -> None:
            config_argument(parser)
            parser.add_argument("--json", action="store_true")

        return Command(f"{self.name} something", configure, self._run)


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> dict[str, Point]:
    """The program's commands in place of the real ones: ``fine`` and ``fail``; a test may put others in."""
    found: dict[str, Point] = {"fine": Point("fine", lambda arguments: 0), "fail": Point("fail", lambda arguments: 7)}
    monkeypatch.setattr(cli, "entry_points", lambda group: found.values())
    return found


def _exit_code(words: list[str]) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(words)
    return int(raised.value.code or 0)


def test_the_exit_code_is_the_commands_own(points: dict[str, Point]) -> None:
    assert (cli.main(["fine"]), cli.main(["fail"])) == (0, 7)


def test_only_the_asked_command_is_loaded(points: dict[str, Point]) -> None:
    cli.main(["fine", "fail"])  # a file may have a command's name
    assert {name: point.is_loaded for name, point in points.items()} == {"fine": True, "fail": False}


def test_a_command_gets_its_arguments_and_a_default_configuration(points: dict[str, Point]) -> None:
    seen: list[tuple[str, bool]] = []

    def run(arguments: Namespace) -> int:
        seen.append((arguments.config, arguments.json))
        return 0

    points["look"] = Point("look", run)
    cli.main(["look"])
    cli.main(["look", "shop.yaml", "--json"])
    assert seen == [("headrace.yaml", False), ("shop.yaml", True)]


def test_the_version_needs_no_command(points: dict[str, Point], capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {__version__}\n"
    assert not any(point.is_loaded for point in points.values())


def test_help_names_every_command(points: dict[str, Point], capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(["--help"]) == 0
    told = capsys.readouterr().out
    assert "fine something" in told and "fail something" in told


@pytest.mark.parametrize(
    "words", [[], ["frobnicate"], ["frobnicate", "fine"], ["fine", "--frobnicate"], ["fine", "a", "b"]], ids=str
)
def test_wrong_words_exit_2_with_the_usage(
    points: dict[str, Point], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert _exit_code(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: headrace")
    if words[:1] == ["frobnicate"]:
        assert "frobnicate" in told and "fail" in told and "fine" in told


def _kinds() -> list[HeadraceError]:
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeadraceError)]
    made: list[HeadraceError] = []
    for kind in own:
        fields: dict[str, Any] = {"source": "shop"} if issubclass(kind, errors.SourceError) else {}
        made.append(kind("it broke", **({"first_offset": 1} if kind is Trimmed else fields)))
    return made


@pytest.mark.parametrize("error", _kinds(), ids=lambda error: type(error).__name__)
def test_an_error_is_one_paragraph_on_stderr_and_its_exit_code(
    points: dict[str, Point], capsys: pytest.CaptureFixture[str], error: HeadraceError
) -> None:
    def run(arguments: Namespace) -> int:
        raise error

    points["break"] = Point("break", run)
    assert cli.main(["break"]) == error.exit_code != 0
    told = capsys.readouterr()
    between = "\n" if isinstance(error, ConfigError) else " "
    assert (told.out, told.err) == ("", f"headrace break: it broke.{between}To mend it: {error.advice}.\n")


def test_errors_carry_fields_beside_their_text() -> None:
    assert SourceUnavailable("x", source="shop", advice="wait").advice == "wait"
    error = DecodeError("no sense", kind="I", index=30, position="0/1")
    assert (error.kind, error.index, error.position) == ("I", 30, "0/1")
    assert str(error) == error.message == "no sense (message 'I', byte 30, at 0/1)"
    assert str(DecodeError("no sense")) == "no sense"
    assert Trimmed("gone", first_offset=9).first_offset == 9


def test_ctrl_c_exits_130(points: dict[str, Point], capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: Namespace) -> int:
        raise KeyboardInterrupt

    points["long"] = Point("long", run)
    assert cli.main(["long"]) == 130
    assert capsys.readouterr().err == ""


def test_a_defect_is_not_dressed_up(points: dict[str, Point]) -> None:
    def run(arguments: Namespace) -> int:
        raise ZeroDivisionError

    points["broken"] = Point("broken", run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["broken"])


def test_an_entry_point_that_is_no_command_is_refused(
    points: dict[str, Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points["fine"], "load", lambda: print)
    with pytest.raises(TypeError, match="somewhere:FINE is no Command"):
        cli.main(["fine"])


@pytest.mark.parametrize("letters", [1, 100_000])
def test_a_reader_that_went_away_is_no_trouble(letters: int) -> None:
    program = f"""
import sys
from headrace.cdc import cli
from headrace.cdc.command import Command

class Point:
    name, value = "write", ""
    def load(self):
        return Command("", lambda parser: None, lambda arguments: print("x" * {letters}))

cli.entry_points = lambda group: [Point()]
sys.exit(cli.main(["write"]))
"""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONUNBUFFERED": ""},  # buffered as a person's is, so that the flush is what fails
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_real_program_tells_a_missing_file_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "check", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("headrace check: configuration file ")
    assert "To mend it: " in done.stderr and "Traceback" not in done.stderr
