"""Build hook: compiles the hot modules with Cython where a compiler is found; a pure wheel or install otherwise.

HEADRACE_COMPILE=0 switches it off. The same .py file runs uncompiled; a .pxd beside it only adds C types.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOT_MODULES = [
    "cdc/headrace/cdc/decode/pgoutput.py",
]


class CompileHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or os.environ.get("HEADRACE_COMPILE") == "0":
            return
        try:
            built = self._compile()
        except (Exception, SystemExit) as error:  # any failure means a pure install, never no install
            self.app.display_warning(f"headrace: hot modules stay uncompiled ({error})")
            return
        root = Path(self.root)
        if version == "editable":
            for module, library in built.items():
                shutil.copy2(library, root / Path(module).parent / library.name)
            return
        for module, library in built.items():
            inside = Path(*Path(module).parts[1:]).parent / library.name
            build_data["force_include"][str(library)] = str(inside)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def _compile(self) -> dict[str, Path]:
        from Cython.Build import cythonize
        from setuptools import Distribution, Extension

        root = Path(self.root)
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
            modules = cythonize(extensions, build_dir=str(work), language_level=3, quiet=True)
            command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
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
