"""The contract of a command of the ``headrace`` program (entry points ``headrace.commands``)."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import msgspec


class Command(msgspec.Struct, frozen=True):
    """help: one line for ``headrace --help``. run: gets the parsed arguments, returns the exit code.

    run may raise any HeadraceError: the program prints its paragraph on stderr and exits with its code.
    """

    help: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def config_argument(parser: ArgumentParser) -> None:
    """The positional argument every command with a configuration shares."""
    parser.add_argument(
        "config", nargs="?", default="headrace.yaml", metavar="FILE", help="configuration (default: %(default)s)"
    )
