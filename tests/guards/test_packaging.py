"""What is built and what is declared: entry points, the wheel, the compiled modules."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from headrace.cdc import __version__
from headrace.cdc.config import plugins

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENTRIES = [(group, name) for group, names in PROJECT["entry-points"].items() for name in names]


@pytest.mark.parametrize(("group", "name"), ENTRIES)
def test_an_entry_point_resolves(group: str, name: str) -> None:
    assert plugins(group)[name] is not None


@pytest.mark.parametrize(("group", "name"), [entry for entry in ENTRIES if entry[0] != "headrace.commands"])
def test_what_a_section_picks_declares_its_struct(group: str, name: str) -> None:
    assert hasattr(plugins(group)[name], "config_type")


def test_the_version_stands_in_one_meaning() -> None:
    assert PROJECT["version"] == __version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source package, built without compiler and without network."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "HEADRACE_COMPILE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_the_three_portions_and_nothing_else(built: Path) -> None:
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    for portion in ("cdc", "features", "sinks"):
        assert f"headrace/{portion}/__init__.py" in names
        assert f"headrace/{portion}/py.typed" in names
    assert "headrace/__init__.py" not in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"headrace", f"headrace-{__version__}.dist-info"}
    assert not [name for name in names if name.endswith((".so", ".c"))], "a pure wheel holds no compiled module"
    source = {str(path.relative_to(ROOT / path.relative_to(ROOT).parts[0])) for path in _source_files()}
    assert source <= set(names), f"left out: {sorted(source - set(names))}"


def test_the_source_package_can_be_built_from(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE"} <= names
    assert {str(path.relative_to(ROOT)) for path in _source_files()} <= names


def _source_files() -> list[Path]:
    return [
        path
        for portion in ("cdc", "features", "sinks")
        for path in (ROOT / portion / "headrace").rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc", ".c")
    ]
