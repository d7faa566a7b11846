"""``headrace features training-set``: what is asked of the feature log on the command line."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc.config import Config
from headrace.cdc.errors import ConfigError
from headrace.features.compiled import CompiledView
from headrace.features.config import FeaturesConfig
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


def run(config: Config, section: FeaturesConfig, views: Sequence[CompiledView], arguments: Namespace) -> int:
    """Carry one of the actions out; the exit code."""
    if section.offline is None:
        raise ConfigError(
            "there is no feature log",
            problems=("features.offline: is missing",),
            advice='add "offline: {path: feature_log}" under features and let headrace run',
        )
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
