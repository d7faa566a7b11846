"""``headrace customer``: who is let alone, and what is erased of whom.

Asks the running process, or opens the log when none runs. Exit codes: 0 done; 2 a bad option or configuration; 4 the log; 6 the running process
can't be asked.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc.command import Command
from headrace.cdc.config import Config, load
from headrace.cdc.customers import Customers, CustomersAsked, Suppression, Told, forms
from headrace.cdc.errors import ConfigError
from headrace.cdc.running import ask

_ERASE_S = 3600.0


def _configure(parser: ArgumentParser) -> None:
    parser.description = "Customers who want to be let alone, or to be forgotten; ids as your applications know them."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("suppress", "take no events of them any more, from SDKs and webhooks"),
        ("allow", "take their events again"),
        ("erase", "remove their events from the log and the dead letters, for ever"),
        ("hash", "show as what an id stands in the log where privacy hashes it"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("ids", nargs="*", metavar="ID")
        action.add_argument("--file", metavar="FILE", help="take ids from a file, one a line")
        action.add_argument("--json", action="store_true", help="one JSON object, for machines")
        action.add_argument(
            "--config", default="headrace.yaml", metavar="FILE", help="configuration (default: %(default)s)"
        )


def _run(arguments: Namespace) -> int:
    config = load(Path(arguments.config))
    ids = _ids(arguments)
    if arguments.action == "hash":
        for each in ids:
            sys.stdout.write("\n".join(forms(config, [each])[1:]) + "\n")
        return 0
    timeout_s = _ERASE_S if arguments.action == "erase" else 30.0
    answer: Any = ask(config, f"/v1/customers/{arguments.action}", CustomersAsked(ids), timeout_s=timeout_s)
    if answer is None:
        answer = msgspec.to_builtins(asyncio.run(_alone(config, arguments.action, ids)))
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    elif arguments.action == "erase":
        sys.stdout.write(f"{answer['events']} events and {answer['letters']} dead letters erased\n")
    else:
        sys.stdout.write(f"{answer['changed']} changed, {answer['suppressed']} customers are suppressed\n")
    return 0


def _ids(arguments: Namespace) -> list[str]:
    ids: list[str] = list(arguments.ids)
    if arguments.file is not None:
        try:
            lines = Path(arguments.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{arguments.file} can't be read: {error}") from error
        ids += [line.strip() for line in lines if line.strip()]
    if not ids or any(not each for each in ids):
        raise ConfigError(f"customer {arguments.action} was given no id", advice="name customers, or give --file FILE")
    return ids


async def _alone(config: Config, action: str, ids: Sequence[str]) -> Told:
    log = await config.log.kind.from_config(config.log.section, config)
    try:
        suppression = Suppression(log)
        await suppression.load()
        customers = Customers(log, config, suppression)
        told: Told = await getattr(customers, action)(ids)
        return told
    finally:
        await log.close()


COMMAND = Command(help="suppress, allow or erase customers", configure=_configure, run=_run)
