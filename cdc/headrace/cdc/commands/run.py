"""``headrace run``: capture, log, features and subscriptions in one process until Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from headrace.cdc import app
from headrace.cdc.command import Command, config_argument
from headrace.cdc.config import load


def _configure(parser: ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def _run(arguments: Namespace) -> int:
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    config = load(Path(arguments.config))

    def ready(url: str) -> None:
        logging.getLogger("headrace.app").info(
            "ready: subscriptions %s/v1/stream, features %s/get-online-features, health %s/readyz", url, url, url
        )

    app.run(config, ready)
    return 0


COMMAND = Command("capture, log and serve until Ctrl-C", _configure, _run)
