"""``headrace status``: what the running process says of itself, or what the log holds when none runs.

Exit codes: 0 answered, also when no process runs ("not running" is a state, not a failure); 2 configuration; 4 the log can't be read;
6 something answers at server.listen that isn't this headrace, or doesn't answer in time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc import __version__
from headrace.cdc.ask import ask, not_ours
from headrace.cdc.command import Command, config_argument
from headrace.cdc.config import Config, load
from headrace.cdc.errors import ConfigError
from headrace.cdc.listen import ListenAddress
from headrace.cdc.log.reader import open_reader
from headrace.cdc.metrics import lag_events


def _configure(parser: ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="the whole document, for machines")


def _run(arguments: Namespace) -> int:
    config = load(Path(arguments.config))
    document = ask(config, "/v1/status")
    if document is not None and "is_running" not in document:
        raise not_ours(ListenAddress.parse(config.server.listen))
    if document is None:
        document = asyncio.run(_read_log(config))
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    else:
        from headrace.cdc.status_page import show  # rich takes a while to import, and machines don't need it

        show(document, now=time.time())
    return 0


async def _read_log(config: Config) -> dict[str, Any]:
    """The document when no process runs: what the log holds, or why it can't say."""
    document: dict[str, Any] = {"is_running": False, "version": __version__, "listen": config.server.listen}
    path = getattr(config.log.section, "path", None)
    if path is not None and not config.path(path).exists():
        return document | {"log": None, "reason": f"there is no log yet at {path}"}
    try:
        reader = await open_reader(config)
    except ConfigError as error:
        return document | {"log": None, "reason": error.message}
    try:
        partitions: list[dict[str, int]] = []
        for partition in range(reader.partitions):
            bounds = await reader.bounds(partition)
            partitions.append({"partition": partition, "first": bounds.first, "end": bounds.end})
        ends = [each["end"] for each in partitions]
        cursors: dict[str, Any] = {}
        for group, places in sorted((await reader.groups()).items()):
            offsets = [places[index].offset if index in places else 0 for index in range(reader.partitions)]
            cursors[group] = {"offset": offsets, "lag_events": lag_events(ends, {"offset": offsets})}
        return document | {
            "log": {"generation": reader.generation, "partitions": partitions},
            "cursors": cursors,
        }
    finally:
        await reader.close()


COMMAND = Command("show what the running process does, or what the log holds", _configure, _run)
