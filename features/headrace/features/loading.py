"""Runs a user's definitions file and collects its feature views."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, cast

from headrace.cdc.errors import DefinitionError
from headrace.features.compiled import CompiledView
from headrace.features.definitions import FeatureView

_numbers = itertools.count(1)


def load_definitions(path: Path) -> tuple[CompiledView, ...]:
    """The views that stand in the file's names, or in lists and mappings of it, in order of their first appearance.

    The file runs as a module of a fresh name, with its own folder on sys.path meanwhile. Raises DefinitionError with file and line when
    the file is missing, raises, defines no view, or defines two of the same name.
    """
    path = path.resolve()
    if not path.is_file():
        raise DefinitionError(
            f"definitions file {path} does not exist", advice="correct features.definitions, or write that file"
        )
    views: list[FeatureView] = []
    for view in _views(_run(path)):
        if not any(view is seen for seen in views):
            views.append(view)
    if not views:
        raise DefinitionError(
            f"{path} defines no feature view",
            advice='give it at least one, as customers = FeatureView("customers", ...)',
        )
    by_name: dict[str, FeatureView] = {}
    for view in views:
        other = by_name.setdefault(view.name, view)
        if other is not view:
            raise DefinitionError(
                f"{view.defined_at}: view {view.name!r} is already defined at {other.defined_at}: give one another name"
            )
    return tuple([view.compile() for view in views])


class _Uncached(SourceFileLoader):
    """Compiles the file each time: bytecode kept in ``__pycache__`` is told apart by whole seconds and size only, so that
    an edit right after a load could be passed over, and a user's folder is no place to write to.
    """

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _run(path: Path) -> dict[str, Any]:
    name = f"headrace_definitions_{next(_numbers)}"
    folder = str(path.parent)
    spec = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except DefinitionError:
        raise
    except SyntaxError as error:
        raise DefinitionError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise DefinitionError(f"{_line_of(error, path)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
        del sys.modules[name]
    return vars(module)


def _line_of(error: BaseException, path: Path) -> str:
    """The deepest line of the user's file on the way to the error."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _views(names: Mapping[str, Any]) -> Iterator[FeatureView]:
    for value in list(names.values()):
        if isinstance(value, FeatureView):
            yield value
        elif isinstance(value, (list, tuple)):
            items = cast("Iterable[object]", value)
            yield from [item for item in items if isinstance(item, FeatureView)]
        elif isinstance(value, Mapping):
            named = cast("Mapping[object, object]", value)
            yield from [item for item in named.values() if isinstance(item, FeatureView)]
