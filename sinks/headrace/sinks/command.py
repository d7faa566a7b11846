"""``headrace sink``: what the sinks do, whether their destinations answer, and holding one back.

Exit codes: 0 done; 2 configuration, or no such sink; 7 ``check`` found something to mend; 8 the sinks' file failed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.cdc.command import Command, config_argument
from headrace.cdc.commands.status import status_document
from headrace.cdc.config import Config, load
from headrace.cdc.errors import ConfigError, SinkError
from headrace.sinks.base import SinkChoice, SinkFinding
from headrace.sinks.deadletter import MemorySinkStore
from headrace.sinks.delivery import cursor_group, make_sink
from headrace.sinks.shipped import names
from headrace.sinks.sinkfile import SinkFile, sink_store

_FOUND = 7
_CHECK_S = 30.0


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    shown = actions.add_parser("ls", help="show every sink")
    config_argument(shown)
    checked = actions.add_parser("check", help="make one harmless real request to each destination")
    config_argument(checked)
    checked.add_argument("--sink", action="append", default=[], metavar="NAME", help="only this sink; may be repeated")
    for parser_ in (shown, checked):
        parser_.add_argument("--json", action="store_true", help="one JSON object, for machines")
    actions.add_parser("definitions", help="list the services whose definitions are shipped")
    for action, text in (("pause", "begin no further request until resume"), ("resume", "go on after pause")):
        switch = actions.add_parser(action, help=text)
        switch.add_argument("sink", metavar="SINK", help="name of the sink")
        config_argument(switch)


def _run(arguments: Namespace) -> int:
    if arguments.action == "definitions":
        print("\n".join(names()))
        return 0
    config = load(Path(arguments.config))
    match arguments.action:
        case "ls":
            return _show(config, is_json=arguments.json)
        case "check":
            return _check(config, arguments.sink, is_json=arguments.json)
        case action:
            choice_of(config, arguments.sink)
            return _switch(config, arguments.sink, is_pause=action == "pause")


def choices(config: Config) -> dict[str, SinkChoice]:
    """The sinks of the configuration. Raises ConfigError when there are none."""
    found: dict[str, SinkChoice] = config.sections.get("sinks") or {}
    if not found:
        raise ConfigError("no sink is configured", advice="add one under sinks, as docs/sinks.md shows")
    return found


def choice_of(config: Config, name: str) -> SinkChoice:
    """Raises ConfigError that names the known ones."""
    found = choices(config)
    if name not in found:
        raise ConfigError(f"sink {name!r} is not configured", advice=f"name one of: {', '.join(found)}")
    return found[name]


def durable_store(config: Config) -> SinkFile:
    """Raises ConfigError when the log, and so everything beside it, is in memory only."""
    store = sink_store(config)
    if isinstance(store, MemorySinkStore):
        raise ConfigError(
            f"a log of type {config.log.type} keeps nothing that another process could see",
            advice="use a log with a path",
        )
    return store


def _show(config: Config, *, is_json: bool) -> int:
    lines = _lines(config)
    if is_json:
        sys.stdout.write(msgspec.json.encode({"sinks": lines}).decode() + "\n")
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("sink", "type", "state", "behind", "delivered", "dead letters", "oldest", "p50 / p99"):
        table.add_column(heading, no_wrap=True)
    for name, line in lines.items():
        state = Text("ready", "green") if line["is_ready"] else Text(line["state"], "yellow")
        table.add_row(
            Text(name), line["type"], state, _number(line["lag_events"]), _number(line.get("delivered_events")),
            _number(line["dead_letters"]), f"{line['oldest_unacked_s']:.1f} s" if line.get("oldest_unacked_s") else "-",
            f"{line['p50_ms']:g} / {line['p99_ms']:g} ms" if line.get("p50_ms") and line.get("p99_ms") else "-",
        )  # fmt: skip
    console.print(table)
    return 0


def _lines(config: Config) -> dict[str, Any]:
    """One a sink: what the running process says, else what log and sinks' file hold."""
    document = status_document(config)
    store = sink_store(config)

    async def kept() -> tuple[dict[str, int], dict[str, int]]:
        try:
            if isinstance(store, SinkFile) and not store.path.exists():
                return {}, {}  # looking makes no file
            return await store.counts(), await store.paused()
        finally:
            await store.close()

    dead, paused = asyncio.run(kept())
    lines: dict[str, Any] = {}
    for name, choice in choices(config).items():
        line: dict[str, Any] = {"type": choice.type, "is_ready": False, "state": "not running", "lag_events": None}
        if document["is_running"]:
            found = document["consumers"].get(f"sinks/{name}")
            if found is not None:
                line |= found
                line["state"] = document["troubles"].get(f"sinks/{name}") or found["reason"]
                line["is_ready"] = found["is_ready"] and f"sinks/{name}" not in document["troubles"]
        else:
            cursor = document.get("cursors", {}).get(cursor_group(name))
            if cursor is not None:
                line |= cursor
            if name in paused:
                line["state"] = "paused"
        line["dead_letters"] = dead.get(name, line.get("dead_letters", 0))
        lines[name] = line
    return lines


def _check(config: Config, names: list[str], *, is_json: bool) -> int:
    wanted = {name: choice_of(config, name) for name in names} if names else choices(config)

    async def check_all() -> dict[str, list[SinkFinding]]:
        found: dict[str, list[SinkFinding]] = {}
        for name, choice in wanted.items():
            sink = make_sink(name, choice, config)
            try:
                async with asyncio.timeout(_CHECK_S):
                    await sink.open()
                    found[name] = list(await sink.check())
            except TimeoutError:
                found[name] = [SinkFinding(False, f"no answer within {_CHECK_S:g} s", "check address and network")]
            except SinkError as error:
                found[name] = [SinkFinding(False, error.message, error.advice)]
            finally:
                await sink.close()
        return found

    found = asyncio.run(check_all())
    is_fine = all(finding.is_fine for findings in found.values() for finding in findings)
    if is_json:
        sys.stdout.write(msgspec.json.encode({"ok": is_fine, "sinks": found}).decode() + "\n")
        return 0 if is_fine else _FOUND
    console = Console(highlight=False, soft_wrap=True)
    for name, findings in found.items():
        for finding in findings:
            verdict = Text("ready  ", "green") if finding.is_fine else Text("to mend", "bold red")
            console.print(Text(f"sink {name}: ") + verdict + Text(f" {finding.message}"))
            if finding.cure:
                console.print(Text(f"          {finding.cure}", "dim"))
    return 0 if is_fine else _FOUND


def _switch(config: Config, name: str, *, is_pause: bool) -> int:
    store = durable_store(config)

    async def switch() -> None:
        try:
            await (store.pause(name, time.time_ns() // 1_000) if is_pause else store.resume(name))
        finally:
            await store.close()

    asyncio.run(switch())
    said = "is paused: what comes waits in the log until it is resumed" if is_pause else "goes on"
    print(f"sink {name} {said}")
    return 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}".replace(",", " ")


COMMAND = Command("sinks: show, check, pause, resume", _configure, _run)
