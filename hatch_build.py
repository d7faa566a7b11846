"""Build hook: compiles the hot modules with Cython where a compiler is found; a pure wheel or install otherwise.

HEADRACE_COMPILE=0 switches it off. The same .py file runs uncompiled; a .pxd beside it only adds C types.
An editable install also leaves a stamp (STAMP) that tells which sources each compiled module was made of: ``make`` rebuilds
by it (.ci/hot.py), and a test refuses a compiled module that is older than its source.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOT_MODULES = [
    "cdc/headrace/cdc/decode/binlog.py",
    "cdc/headrace/cdc/decode/copytext.py",
    "cdc/headrace/cdc/decode/mysqlvalue.py",
    "cdc/headrace/cdc/decode/pgoutput.py",
    "cdc/headrace/cdc/decode/pgtime.py",
    "cdc/headrace/cdc/decode/pgvalue.py",
    "features/headrace/features/aggregate.py",
    "features/headrace/features/encoding.py",
    "features/headrace/features/kernel.py",
    "features/headrace/features/moments.py",
    "features/headrace/features/protovalue.py",
    "features/headrace/features/state.py",
    "features/headrace/features/store/redisscript.py",
    "features/headrace/features/tiles.py",
]

STAMP = f"build/compiled-{sys.implementation.cache_tag}.json"
"""{module: {"library": path of the compiled module, "sources": {path: SHA-256}}}, paths relative to the root."""


class CompileHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        is_editable = version == "editable"
        if is_editable and self._is_current(root):
            return
        if is_editable:
            # Whatever happens next, a module compiled of older source must not hide the .py file.
            (root / STAMP).unlink(missing_ok=True)
            for module in HOT_MODULES:
                for old in (root / module).parent.glob(f"{Path(module).stem}.{sys.implementation.cache_tag}*.so"):
                    old.unlink()
        if os.environ.get("HEADRACE_COMPILE") == "0":
            return
        try:
            built = self._compile(root)
        except (Exception, SystemExit) as error:  # any failure means a pure install, never no install
            self.app.display_warning(f"headrace: hot modules stay uncompiled ({error})")
            return
        if is_editable:
            stamp = {}
            for module, library in built.items():
                beside = Path(module).parent / library.name
                shutil.copy2(library, root / beside)
                stamp[module] = {"library": str(beside), "sources": _digests(root, module)}
            (root / STAMP).write_text(json.dumps(stamp, indent=1))
            return
        for module, library in built.items():
            inside = Path(*Path(module).parts[1:]).parent / library.name
            build_data["force_include"][str(library)] = str(inside)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _is_current(self, root: Path) -> bool:
        """True when every hot module stands compiled of its present source: another extra is being installed."""
        if os.environ.get("HEADRACE_COMPILE") == "0":
            return False
        try:
            stamp = json.loads((root / STAMP).read_text())
            return list(stamp) == HOT_MODULES and all(
                (root / made["library"]).exists() and made["sources"] == _digests(root, module)
                for module, made in stamp.items()
            )
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _compile(self, root: Path) -> dict[str, Path]:
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension

        work = root / "build" / f"cython-{sys.implementation.cache_tag}"
        work.mkdir(parents=True, exist_ok=True)
        extensions = [
            Extension(
                ".".join(Path(module).with_suffix("").parts[1:]), [str(root / module)], extra_compile_args=["-O2"]
            )
            for module in HOT_MODULES
        ]
        here = Path.cwd()
        os.chdir(root)
        try:
            # The roots are named because a namespace package has no __init__.py by which Cython would find the .pxd files: it
            # would compile without their types and say nothing.
            roots = sorted({str(root / Path(module).parts[0]) for module in HOT_MODULES})
            # The .pxd files alone give C types: an annotation ``int`` would mean a Python object and contradict them.
            # force: neither Cython nor setuptools sees that this file, or Cython itself, is another than last time.
            modules = cythonize(
                extensions,
                build_dir=str(work),
                include_path=roots,
                language_level=3,
                compiler_directives={"annotation_typing": False},
                quiet=True,
                force=True,
            )
            command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
            command.force = True
            command.parallel = os.cpu_count()
            command.build_lib = str(work / "lib")
            command.build_temp = str(work / "temp")
            command.ensure_finalized()
            command.run()
        finally:
            os.chdir(here)
        return {
            module: Path(command.get_ext_fullpath(extension.name))
            for module, extension in zip(HOT_MODULES, extensions, strict=True)
        }


def _digests(root: Path, module: str) -> dict[str, str]:
    """SHA-256 of the module, of the .pxd beside it, and of this file, which decides how it is compiled."""
    sources = [module, str(Path(module).with_suffix(".pxd")), Path(__file__).name]
    return {
        source: hashlib.sha256((root / source).read_bytes()).hexdigest()
        for source in sources
        if (root / source).exists()
    }
