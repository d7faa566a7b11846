"""The three source roots stay one namespace: ``headrace`` itself belongs to none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("portion", ["cdc", "features", "sinks"])
def test_no_portion_claims_the_namespace(portion: str) -> None:
    assert not (ROOT / portion / "__init__.py").exists()
    assert not (ROOT / portion / "headrace" / "__init__.py").exists(), "with it the other two portions vanish"
    assert (ROOT / portion / "headrace" / portion / "__init__.py").exists()


@pytest.mark.parametrize("portion", ["cdc", "features", "sinks"])
def test_each_portion_is_typed(portion: str) -> None:
    assert (ROOT / portion / "headrace" / portion / "py.typed").exists()


@pytest.mark.parametrize("folder", ["docker", "benchmarks", "tests"])
def test_these_folders_are_no_packages(folder: str) -> None:
    assert not list((ROOT / folder).rglob("__init__.py"))


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc", "manager"}
    wrong = [
        path
        for portion in ("cdc", "features", "sinks")
        for path in (ROOT / portion).rglob("*.py")
        if path.stem in drawers
    ]
    assert not wrong, f"name the idea: {wrong}"


def test_no_source_file_outgrows_a_reader() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for folder in ("cdc", "features", "sinks", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 700
    ]
    assert not long, "\n".join(long)
