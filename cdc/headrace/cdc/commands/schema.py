"""``headrace schema``: every field of headrace.yaml, as JSON Schema for editors or as the reference page."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

import msgspec

from headrace.cdc.command import Command
from headrace.cdc.config import json_schema
from headrace.cdc.reference import configuration_page


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="the reference page in Markdown instead of JSON Schema")


def _run(arguments: Namespace) -> int:
    if arguments.markdown:
        sys.stdout.write(configuration_page())
    else:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n")
    return 0


COMMAND = Command("print every field of the configuration", _configure, _run)
