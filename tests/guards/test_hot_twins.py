"""The compiled hot modules are of the present source, and each run uses the twin that it says it uses."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sysconfig
from pathlib import Path

import pytest

import hot_twins
from headrace.cdc.decode import pgoutput

ROOT = hot_twins.ROOT


def test_no_compiled_module_is_older_than_its_source() -> None:
    stale = hot_twins.HOT["stale"]()
    assert not stale, 'run "make test", which compiles anew:\n' + "\n".join(stale)


@pytest.mark.skipif(os.environ.get("HEADRACE_COMPILE") == "0", reason="HEADRACE_COMPILE=0")
def test_hot_modules_are_compiled_where_a_compiler_is_found() -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None or not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip("no C compiler, or no headers of this Python: apt-get install -y gcc python3-dev")
    uncompiled = [module for module in hot_twins.HOT["hot_modules"]() if not hot_twins.HOT["libraries"](module)]
    assert not uncompiled, (
        f'Cython could not compile them; "HEADRACE_COMPILE=1 pip install -v -e ." shows why: {uncompiled}'
    )


def test_the_chosen_twin_of_each_hot_module_is_the_one_that_runs() -> None:
    assert pgoutput.__name__ in hot_twins.NAMES, "by this name the uncompiled run finds this file"
    for name, path in hot_twins.NAMES.items():
        module = importlib.import_module(name)
        assert module.__file__ is not None
        is_compiled = bool(hot_twins.HOT["libraries"](str(path.relative_to(ROOT)))) and not hot_twins.IS_PURE
        assert Path(module.__file__).suffix == (".so" if is_compiled else ".py")


def test_compiled_modules_have_the_types_of_their_pxd_files() -> None:
    """Without them Cython compiles as well, says nothing, and the result is three times as slow."""
    if hot_twins.IS_PURE:
        pytest.skip("the uncompiled twins have no C types")
    for name, path in hot_twins.NAMES.items():
        declarations = path.with_suffix(".pxd")
        if not declarations.exists() or not hot_twins.HOT["libraries"](str(path.relative_to(ROOT))):
            continue
        typed = re.findall(r"^cdef (?!class)[^(]*?(\w+)\(", declarations.read_text(), re.MULTILINE)
        visible = [function for function in typed if hasattr(importlib.import_module(name), function)]
        assert not visible, f"{name} was compiled without {declarations.name}: {visible} are Python functions"
        assert typed or "cdef class" in declarations.read_text()
