"""``headrace check``: everything that would go wrong with the sources, with the SQL that mends it; touches nothing.

Exit code 0 when ``run`` would start (warnings allowed), 7 when an error was found.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from headrace.cdc.command import Command, config_argument
from headrace.cdc.config import load
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.plan import read_plan
from headrace.cdc.sources.preflight import Finding

_FOUND = 7
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def _configure(parser: ArgumentParser) -> None:
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")


def _run(arguments: Namespace) -> int:
    config = load(Path(arguments.config))
    read_plan(config)
    build_pipeline(config)

    async def check_all() -> dict[str, list[Finding]]:
        found: dict[str, list[Finding]] = {}
        for name, choice in config.sources.items():
            source = choice.kind(name, choice.section, config.events)
            if hasattr(source, "folder"):
                source.folder = config.folder
            found[name] = await source.check()
        return found

    found = asyncio.run(check_all())
    is_fine = not any(finding.severity == "error" for findings in found.values() for finding in findings)
    if arguments.json:
        line: dict[str, Any] = {"ok": is_fine, "sources": found}
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    else:
        _print(found)
    return 0 if is_fine else _FOUND


def _print(found: dict[str, list[Finding]]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for name, findings in found.items():
        errors = sum(finding.severity == "error" for finding in findings)
        verdict = (
            Text("ready", "bold green") if not errors else Text(f"{errors} to mend before it can start", "bold red")
        )
        console.print(Text(f"source {name}: ") + verdict)
        for finding in findings:
            console.print(
                Text(f"  {finding.severity:7} ", _STYLES[finding.severity]) + f"{finding.object}: {finding.message}"
            )
            console.print(Text("          " + finding.cure.replace("\n", "\n          "), "dim"))


COMMAND = Command("say what would go wrong with the sources, and how to mend it", _configure, _run)
