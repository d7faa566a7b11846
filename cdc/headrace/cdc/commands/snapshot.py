"""``headrace snapshot``: has the running process copy tables again, beside the stream, and shows how far it is.

The rows come as ``read`` events in the log, each as of a moment between the changes around it; a consumer lays them over what it has.
Ctrl-C ends the watching, not the copy. Exit codes: 0 copied, or accepted with --no-wait; 2 configuration, no such table, a condition that
the server refuses; 6 no process answers.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc.command import Command
from headrace.cdc.config import Config, load
from headrace.cdc.errors import RequestRefused, ServerError
from headrace.cdc.running import ask

_POLL_S = 0.2


def _configure(parser: ArgumentParser) -> None:
    parser.description = "Copy rows of captured tables into the log again, while the stream runs."
    parser.add_argument("source", help="its name under sources")
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="schema.table; * and ? are wildcards")
    parser.add_argument("--where", default="", metavar="SQL", help="only rows for which this condition holds")
    parser.add_argument("--no-wait", action="store_true", help="return as soon as it is accepted; see headrace status")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end, for machines")
    parser.add_argument(
        "--config", default="headrace.yaml", metavar="FILE", help="configuration (default: %(default)s)"
    )


def _run(arguments: Namespace) -> int:
    config = load(Path(arguments.config))
    if arguments.source not in config.sources:
        raise RequestRefused(
            f'there is no source "{arguments.source}"', advice=f"name one of sources: {', '.join(config.sources)}"
        )
    asked = _ask(
        config, f"/v1/sources/{arguments.source}/snapshot", {"tables": arguments.tables, "where": arguments.where}
    )
    if arguments.no_wait:
        _say(asked, arguments, f"accepted: {', '.join(asked['tables'])} (number {asked['number']})")
        return 0
    began = time.monotonic()
    try:
        rows = _watch(config, arguments, asked["number"])
    except KeyboardInterrupt:
        sys.stderr.write("the copy goes on; headrace status shows how far it is\n")
        return 130
    took_s = time.monotonic() - began
    _say(
        asked | {"rows": rows, "seconds": round(took_s, 1)},
        arguments,
        f"copied {rows:,} rows of {', '.join(asked['tables'])} in {took_s:.1f} s",
    )
    return 0


def _say(document: dict[str, Any], arguments: Namespace, line: str) -> None:
    sys.stdout.write((msgspec.json.encode(document).decode() if arguments.json else line) + "\n")


def _ask(config: Config, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    document = ask(config, path, body)
    if document is None:
        raise ServerError(
            f"no headrace process answers at {config.server.listen}",
            advice="start it with headrace run: the copy runs beside its stream (server.listen needs a fixed port)",
        )
    return document


def _watch(config: Config, arguments: Namespace, number: int) -> int:
    """The rows copied, once all are."""
    if arguments.json or not sys.stderr.isatty():
        while True:
            copy, _ = _progress(config, arguments.source, number)
            if copy["is_done"]:
                return int(copy["rows"])
            time.sleep(_POLL_S)
    from rich.console import Console  # it takes a while to import, and machines don't need it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows, {task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("copying", total=None, rate="")
        while True:
            copy, source = _progress(config, arguments.source, number)
            snapshot: dict[str, Any] = source["snapshot"] or {}
            rate = snapshot.get("rows_per_s")
            said = source["reason"] or (f"{rate:,} a second" if rate else "")
            shown.update(task, completed=copy["rows"], total=max(1, copy["estimated_rows"]), rate=said)
            if copy["is_done"]:
                return int(copy["rows"])
            time.sleep(_POLL_S)


def _progress(config: Config, source: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the copy, and its source's status."""
    status = _ask(config, "/v1/status")["sources"][source]
    found = [copy for copy in status["asked"] if copy["number"] == number]
    if not found:
        raise ServerError(
            f"the process doesn't know the copy number {number} any more",
            advice="it was restarted before the copy was stored: ask again",
        )
    return found[0], status


COMMAND = Command("copy rows of some tables again, while the stream runs", _configure, _run)
