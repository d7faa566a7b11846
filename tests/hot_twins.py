"""Runs the hot modules' .py files although compiled ones stand beside them: HEADRACE_PURE=1 (``make test`` does both).

Such a run keeps only the decoders' own tests, and those that hold what they decode against a server's SELECT; the others would only
repeat themselves.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOT = runpy.run_path(str(ROOT / ".ci" / "hot.py"))
"""The names of .ci/hot.py: hot_modules, libraries, stale."""

NAMES = {".".join(Path(module).with_suffix("").parts[1:]): ROOT / module for module in HOT["hot_modules"]()}
"""Import name of each hot module, and its .py file."""

_AGAINST_SELECT = (
    "test_postgres_types.py",
    "test_postgres_shapes.py",
    "test_postgres_large.py",
    "test_fold_property.py",
    "test_encoding.py",
    "test_aggregate.py",
    "test_window.py",
    "test_kernel.py",
    "test_kernel_property.py",
)

IS_PURE = os.environ.get("HEADRACE_PURE") == "1"


class UncompiledFinder:
    """Finds the .py file of a hot module before the import system would find the compiled one."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in NAMES:
            return None
        return importlib.util.spec_from_file_location(name, NAMES[name])


def install() -> None:
    """Put the finder first. Called before anything imports headrace."""
    if IS_PURE:
        early = NAMES.keys() & sys.modules.keys()
        assert not early, f"{sorted(early)} were imported before the uncompiled twins could be chosen"
        sys.meta_path.insert(0, UncompiledFinder)  # type: ignore[arg-type]  # static methods serve as well as an instance


def uses_hot_module(module: ModuleType) -> bool:
    """True when the test module, or a module of headrace or of the suite whose names it uses, uses a hot module."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        for origin in _origins(pending.pop()) - seen:
            if origin in NAMES:
                return True
            seen.add(origin)
            if origin in sys.modules and (origin.startswith("headrace.") or _is_of_suite(sys.modules[origin])):
                pending.append(sys.modules[origin])
    return False


def _is_of_decoders(file: Path) -> bool:
    return file.parent.name == "decode" or file.name in _AGAINST_SELECT


def _origins(module: ModuleType) -> set[str]:
    """Names of the modules that a module's names come from."""
    values = list(vars(module).values())
    found = [
        value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in values
    ]
    return {origin for origin in found if isinstance(origin, str)}


def _is_of_suite(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(ROOT / "tests")


def pytest_report_header() -> str:
    if IS_PURE:
        return "headrace: hot modules uncompiled (HEADRACE_PURE=1), only their tests"
    compiled = [name for name, path in NAMES.items() if HOT["libraries"](str(path.relative_to(ROOT)))]
    return f"headrace: {len(compiled)} of {len(NAMES)} hot modules compiled"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not IS_PURE:
        return
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        is_hot = isinstance(item, pytest.Function) and _is_of_decoders(item.path) and uses_hot_module(item.module)
        (kept if is_hot else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)
