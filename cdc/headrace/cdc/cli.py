"""The ``headrace`` program: finds the command by its entry point, runs it, turns errors into one paragraph and an exit code.

Exit codes: 0 done; 1 defect of headrace; 2 configuration, arguments or definitions; 3 source; 4 log; 5 online store;
6 HTTP server; 7 a check or proof found differences; 8 a destination; 130 interrupted by Ctrl-C where the command had no end of its own.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from importlib.metadata import EntryPoint, entry_points

from headrace.cdc import __version__
from headrace.cdc.command import Command
from headrace.cdc.errors import HeadraceError

INTERRUPTED = 130

COLLECT_EVERY = (20_000, 20, 50)
"""Thresholds of the cycle collector. Python's own (700, 10, 10) walk every row under way again and again, and all modules while they are
imported, and find nothing: 5 % of a drain (benchmarks/postgres_drain.py) and a tenth of the start."""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    gc.set_threshold(*COLLECT_EVERY)
    words = sys.argv[1:] if argv is None else argv
    points = {point.name: point for point in entry_points(group="headrace.commands")}
    parser = argparse.ArgumentParser(
        prog="headrace",
        description="Committed rows become fresh features and delivered events, in order, with nothing lost.",
    )
    parser.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the asked command is imported: a start costs what that command needs, and --help needs them all.
    asked = next((word for word in words if not word.startswith("-")), "")
    needed = [asked] if asked in points else [] if "--version" in words else sorted(points)
    loaded: dict[str, Command] = {}
    for name in needed:
        command = _load(points[name])
        loaded[name] = command
        command.configure(commands.add_parser(name, help=command.help, description=command.help))
    arguments = parser.parse_args(words)
    try:
        code = loaded[arguments.command].run(arguments)
        sys.stdout.flush()  # here a closed pipe is caught; at exit Python would complain
        return code
    except HeadraceError as error:
        print(f"headrace {arguments.command}: {error.paragraph()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # `headrace tail | head` is ordinary use; Python would complain again while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _load(point: EntryPoint) -> Command:
    command = point.load()
    if not isinstance(command, Command):
        raise TypeError(f"entry point {point.value} is no Command")
    return command
