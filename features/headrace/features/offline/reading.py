"""The feature log as DuckDB relations: sealed segments and, from the journals, what isn't sealed yet.

Reads beside a running process: a journal is read up to its last whole record, and a segment that was sealed meanwhile is left out
of the journals' part. The only module that imports duckdb, late.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

from headrace.cdc.errors import DefinitionError
from headrace.features.offline.journal import Flush, read_flushes, read_header
from headrace.features.offline.segment import table_of
from headrace.features.offline.viewlog import number_of, read_description, segments
from headrace.features.spec import ViewSpec

_TRIES: Final = 5


def connect() -> Any:
    """A DuckDB connection in memory, in UTC. Raises DefinitionError when duckdb isn't installed."""
    try:
        duckdb = importlib.import_module("duckdb")
    except ImportError as error:
        raise DefinitionError(
            "this needs a Python package that isn't installed: duckdb", advice='pip install "headrace[offline]"'
        ) from error
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    connection.execute("set enable_progress_bar = false")  # it would write between what we write
    return connection


def error_type() -> Any:
    """What DuckDB raises."""
    return importlib.import_module("duckdb").Error


def attach(connection: Any, folder: Path, view: ViewSpec, name: str) -> None:
    """Make ``name`` a relation of all logged rows of a view, in the columns of segment.py.

    folder: of the view. Raises DefinitionError when nothing is logged there, or what is there is of another definition.
    """
    description = read_description(folder)
    if description is None:
        raise DefinitionError(
            f"view {view.name!r} has no feature log in {folder}",
            advice='run headrace with features.offline set; "headrace features backfill" fills in what was before',
        )
    if description.spec_hash != view.spec_hash:
        raise DefinitionError(
            f"the feature log of view {view.name!r} is of another definition than the one in your file",
            advice="run headrace once with this definition, so that it is logged anew, or take the older definition",
        )
    sealed: list[Path] = []
    flushes: list[Flush] = []
    for _ in range(_TRIES):
        sealed = segments(folder)
        done = {number_of(path) for path in sealed}
        flushes = []
        try:
            for journal in sorted(folder.glob("*.journal")):
                header = None if number_of(journal) in done else read_header(journal)
                if header is not None:
                    flushes += read_flushes(journal)
        except FileNotFoundError:
            continue  # sealed just now: look again
        if segments(folder) == sealed:
            break
    connection.register(f"{name}_journal", table_of(view, flushes))
    paths = ", ".join(quoted_text(str(path)) for path in sealed)
    parquet = f"select * from read_parquet([{paths}]) union all by name " if paths else ""
    connection.execute(f"create temp view {name} as {parquet}select * from {name}_journal")


def quoted_text(text: str) -> str:
    """An SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
