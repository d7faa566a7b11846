"""A dlt resource or source of a user's file, run without dlt's pipelines: pages of items out, its state in and out.

dlt keeps an incremental cursor in the state of the pipeline that runs it. Here the state is ours: it stands in the log, in the append that holds the
items it speaks of. Everything of one run happens in one thread.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc.userfile import run_file

PAGE_ITEMS = 500


class Item(msgspec.Struct, gc=False):
    """table: the resource's name. key: names of its primary key. types: dlt's data types of columns that it declares."""

    table: str
    key: tuple[str, ...]
    types: Mapping[str, str]
    fields: dict[str, Any]


class PullFailed(Exception):
    """Its text names type, file and line, never the failure's own words: a URL with a token may stand in them."""


def load(path: Path, name: str) -> Any:
    """The resource, source or function of a user's file. Raises ValueError with what is wrong."""
    if importlib.util.find_spec("dlt") is None:
        raise ValueError("a source of type pull needs the extra: pip install 'headrace[pull]'")
    module = run_file(path, "pull", _place)
    if not hasattr(module, name):
        raise ValueError(f'{path} has no "{name}"')
    return getattr(module, name)


def pages(found: Any, path: Path, state: dict[str, Any]) -> Iterator[list[Item]]:
    """Items in pages; once it is through, state is what the resource wants back the next time. Raises PullFailed."""
    from dlt.common.configuration.container import Container
    from dlt.common.pipeline import StateInjectableContext

    held = deepcopy(state)
    try:
        with Container().injectable_context(StateInjectableContext(state=held)):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            # dlt types the state as the whole of a pipeline's.
            for resource in _resources(found):
                yield from _pages_of(resource)
    except Exception as error:
        raise PullFailed(_place(error, path)) from error
    state.clear()
    state.update(held)


def _resources(found: Any) -> list[Any]:
    from dlt.extract import DltResource, DltSource

    made: Any = found if isinstance(found, DltResource | DltSource) else found()
    if isinstance(made, DltResource) and not made.args_bound:
        made = made()
    if isinstance(made, DltSource):
        return list(made.selected_resources.values())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(made, DltResource):
        return [made]
    raise TypeError("it gives neither a dlt resource nor a source")


def _pages_of(resource: Any) -> Iterator[list[Item]]:
    columns: Any = resource.compute_table_schema().get("columns") or {}
    key = tuple([name for name, hints in columns.items() if hints.get("primary_key")])
    types = {name: hints["data_type"] for name, hints in columns.items() if hints.get("data_type")}
    page: list[Item] = []
    for fields in resource:
        if not isinstance(fields, dict):
            raise TypeError("an item is no mapping")
        page.append(Item(resource.name, key, types, fields))  # pyright: ignore[reportUnknownArgumentType]
        if len(page) == PAGE_ITEMS:
            yield page
            page = []
    if page:
        yield page


def _place(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        lines += [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == str(path)]
    names = type(error).__name__ if cause is error else f"{type(error).__name__} of {type(cause).__name__}"
    return f"{path}:{lines[-1]}: {names}" if lines else f"{path}: {names}"


__all__ = ["PAGE_ITEMS", "Item", "PullFailed", "load", "pages"]
