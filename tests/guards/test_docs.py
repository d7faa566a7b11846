"""Documentation that can't go stale unnoticed: generated pages, links, commands, the two set-up commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from headrace.cdc.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["headrace.commands"]


@pytest.mark.parametrize(("option", "name"), [("--markdown", "configuration.md"), ("--types", "types.md")])
def test_a_generated_page_is_what_schema_prints(option: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", option]) == 0
    page = ROOT / "docs" / name
    assert page.exists(), 'make it by "make docs"'
    assert page.read_text() == capsys.readouterr().out, 'bring it up to date by "make docs"'


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"[a-z]+:|#", target) and not (page.parent / target.split("#")[0]).exists()
    ]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), path
        assert f"def {name}" in (ROOT / path).read_text(), f"{path} has no {name}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_has_its_section(command: str) -> None:
    assert f"## headrace {command}\n" in (ROOT / "docs" / "commands.md").read_text()


def test_every_promise_has_its_line() -> None:
    lines = re.findall(r"^\| (P\d+) \| \S", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert lines == [f"P{number}" for number in range(1, 11)]


def test_a_reader_sets_up_with_two_commands() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    words = ("make", "pip", "uv", "apt", "apt-get", "sudo", "python", "python3", "npm", "docker", "./")
    setup = [line for block in blocks for line in block.splitlines() if line.split(" ")[0].startswith(words)]
    assert setup == ["make demo", "make test"]


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("0*.md")}
