"""``headrace features training-set`` and ``backfill``: what is asked of the feature log on the command line."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.cdc.config import Config
from headrace.cdc.errors import ConfigError, DefinitionError
from headrace.features.compiled import CompiledView
from headrace.features.config import FeaturesConfig
from headrace.features.offline.backfill import backfill
from headrace.features.offline.training import training_set


def configure(actions: Any) -> None:
    """Add the actions to argparse's subparsers."""
    training: ArgumentParser = actions.add_parser(
        "training-set", help="a point-in-time join: the features that serving had for each (entity, time)"
    )
    training.add_argument(
        "config", metavar="FILE", nargs="?", default="headrace.yaml", help="configuration (default: %(default)s)"
    )
    training.add_argument(
        "--entities",
        required=True,
        metavar="FILE|SQL",
        help="join keys and event_timestamp: .parquet, .csv, .json, or a query",
    )
    training.add_argument("--out", required=True, metavar="FILE", help="to write: .parquet or .csv")
    training.add_argument(
        "--features", nargs="+", default=[], metavar="VIEW[:FEATURE]", help="default: every view that fits the entities"
    )
    training.add_argument("--full-names", action="store_true", help="columns are called view__feature")
    training.add_argument("--json", action="store_true", help="one JSON object, for machines")
    past: ArgumentParser = actions.add_parser(
        "backfill",
        help="fill the feature log with what was before headrace, from a file or a query, by the same kernel",
    )
    past.add_argument(
        "config", metavar="FILE", nargs="?", default="headrace.yaml", help="configuration (default: %(default)s)"
    )
    past.add_argument("--view", required=True, help="name of the feature view")
    past.add_argument(
        "--rows",
        required=True,
        metavar="FILE|SQL",
        help="rows of its table, or events: .parquet, .csv, .json, or a query",
    )
    past.add_argument(
        "--at",
        default="",
        metavar="COLUMN",
        help="when each row became known (default: the view's event time; timestamp)",
    )
    past.add_argument("--op", default="", metavar="COLUMN", help="insert, update or delete (default: all are inserts)")
    past.add_argument("--key", nargs="+", default=[], metavar="COLUMN", help="the rows' primary key; needed with --op")
    past.add_argument("--out", type=Path, metavar="FILE", help="a Parquet file to write in place of the feature log")
    past.add_argument(
        "--cores", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at most (default: all cores)"
    )
    past.add_argument("--json", action="store_true", help="one JSON object, for machines")


def run(config: Config, section: FeaturesConfig, views: Sequence[CompiledView], arguments: Namespace) -> int:
    """Carry one of the actions out; the exit code."""
    if arguments.action == "backfill":
        return _backfill(config, section, views, arguments)
    if section.offline is None:
        raise _no_log()
    log = config.path(section.offline.path)
    rows = training_set(
        [view.spec for view in views],
        log,
        arguments.entities,
        Path(arguments.out),
        features=arguments.features,
        full_names=arguments.full_names,
    )
    if arguments.json:
        sys.stdout.write(msgspec.json.encode({"rows": rows, "out": arguments.out}).decode() + "\n")
    else:
        sys.stdout.write(f"{rows} rows in {arguments.out}\n")
    return 0


def _backfill(config: Config, section: FeaturesConfig, views: Sequence[CompiledView], arguments: Namespace) -> int:
    by_name = {view.spec.name: view for view in views}
    view = by_name.get(arguments.view)
    if view is None:
        raise DefinitionError(f"view {arguments.view!r} is not defined", advice=f"take one of: {', '.join(by_name)}")
    if arguments.out is None and section.offline is None:
        raise _no_log()
    folder = None if section.offline is None else config.path(section.offline.path) / view.spec.name
    say = Console(stderr=True, quiet=arguments.json or not sys.stderr.isatty())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=say) as bar:
        task = bar.add_task(f"rows of {view.spec.name}", total=None)
        result = backfill(
            view,
            arguments.rows,
            folder=folder,
            out=arguments.out,
            at=arguments.at,
            key=arguments.key,
            op=arguments.op,
            cores=arguments.cores,
            definitions=config.path(section.definitions),
            tell=lambda done, of: bar.update(task, completed=done, total=of),
        )
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        return 0
    covers = "" if result.first_us is None else f", from {_time(result.first_us)} to {_time(result.until_us)}"
    sys.stdout.write(f"{result.rows:,} rows read, {result.written:,} feature rows in {result.out}{covers}\n")
    for number, what in (
        (result.left_out, "rows are of a time that headrace has logged itself, and were left out"),
        (result.without_time, "rows have no time, and were left out"),
        (result.late, "rows were older than every window when they became known"),
        (result.unreadable, "values can't be read as the type that the definition asks for, and count as NULL"),
    ):
        if number:
            sys.stdout.write(f"{number:,} {what}\n")
    if not arguments.op and view.events is None:
        sys.stdout.write(
            "each row counts with the values given, from its first moment on: columns that were updated since tell of their future then\n"
        )
    return 0


def _no_log() -> ConfigError:
    return ConfigError(
        "there is no feature log",
        problems=("features.offline: is missing",),
        advice='add "offline: {path: feature_log}" under features and let headrace run',
    )


def _time(us: int) -> str:
    return f"{datetime.fromtimestamp(us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
