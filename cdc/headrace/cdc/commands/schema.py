"""``headrace schema``: every field of headrace.yaml, as JSON Schema for editors or as the reference page; --types: the type table."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

import msgspec

from headrace.cdc.command import Command
from headrace.cdc.config import json_schema
from headrace.cdc.decode import mysqltypes, pgtypes
from headrace.cdc.reference import configuration_page


def _configure(parser: ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="the reference page in Markdown instead of JSON Schema")
    form.add_argument("--types", action="store_true", help="what comes out for each database type, in Markdown")


def _run(arguments: Namespace) -> int:
    if arguments.markdown:
        sys.stdout.write(configuration_page())
    elif arguments.types:
        sys.stdout.write(pgtypes.types_page() + mysqltypes.types_page())
    else:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n")
    return 0


COMMAND = Command("print every field of the configuration", _configure, _run)
