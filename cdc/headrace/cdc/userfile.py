"""Runs a Python file of a user's, for transforms and pulls."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def run_file(path: Path, purpose: str, tell: Callable[[BaseException, Path], str]) -> ModuleType:
    """The module that the file makes. purpose: in its name. tell: what is said of an error of the file's own.

    Raises ValueError with what is wrong.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    spec = importlib.util.spec_from_file_location(f"headrace_{purpose}_{path.stem}_{abs(hash(path)):x}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A user's file may import its neighbours; a dataclass in it looks itself up among the modules.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(tell(error, path)) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


__all__ = ["run_file"]
