"""``headrace deadletter``: what became no event, why, and what to do with it.

ls and show read the log; drop and retry ask the running process, or open the log when none runs. Exit codes: 0 done; 2 a bad option or
configuration; 4 the log; 6 the running process can't be asked.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from headrace.cdc.command import Command
from headrace.cdc.config import Config, load
from headrace.cdc.deadletters import DeadLetters, Retried, Selection, selected
from headrace.cdc.errors import ConfigError
from headrace.cdc.log.base import StoredLetter
from headrace.cdc.log.reader import open_reader
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.plan import read_plan
from headrace.cdc.running import ask
from headrace.cdc.sources.base import PushedSource


def _configure(parser: ArgumentParser) -> None:
    parser.description = "Events that became dead letters: look at them, take them again, or drop them."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("ls", "one line each, oldest first, and how many there are of each reason"),
        ("show", "everything about some, with the bytes as they came"),
        ("drop", "forget some for ever"),
        ("retry", "take some again, after what was wrong has been mended"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        if name == "show":
            action.add_argument("ids", nargs="+", type=int, metavar="ID")
        else:
            action.add_argument("ids", nargs="*", type=int, metavar="ID", help="numbers that ls shows")
            action.add_argument("--source", help="only of this source")
            action.add_argument("--reason", help="only with this reason")
            action.add_argument("--event", metavar="NAME", help="only events of this name")
            action.add_argument(
                "--since", metavar="TIME", help="only received at or after, such as 2026-01-31T12:00 (UTC)"
            )
            action.add_argument("--until", metavar="TIME", help="only received before")
        if name in ("drop", "retry"):
            action.add_argument("--all", action="store_true", help="all that fit")
        action.add_argument("--json", action="store_true", help="one JSON object a line, for machines")
        action.add_argument(
            "--config", default="headrace.yaml", metavar="FILE", help="configuration (default: %(default)s)"
        )


def _run(arguments: Namespace) -> int:
    config = load(Path(arguments.config))
    ids: list[int] = arguments.ids
    selection = Selection(
        ids or None,
        getattr(arguments, "source", None),
        getattr(arguments, "reason", None),
        getattr(arguments, "event", None),
        _moment_us("since", getattr(arguments, "since", None)),
        _moment_us("until", getattr(arguments, "until", None)),
    )
    if arguments.action in ("ls", "show"):
        asyncio.run(_show(config, selection, is_whole=arguments.action == "show", is_json=arguments.json))
        return 0
    if not ids and not arguments.all:
        raise ConfigError(
            f"deadletter {arguments.action} was given neither numbers nor --all",
            advice='give the numbers that "headrace deadletter ls" shows, or --all (with --reason or --source to narrow it)',
        )
    answer = ask(config, f"/v1/deadletters/{arguments.action}", selection)
    if answer is None:
        answer = msgspec.to_builtins(asyncio.run(_alone(config, arguments.action, selection)))
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    elif arguments.action == "drop":
        sys.stdout.write(f"{answer['dropped']} dropped\n")
    else:
        sys.stdout.write(f"{answer['retried']} are events now, {answer['kept']} stay dead letters\n")
    return 0


def _moment_us(option: str, text: str | None) -> int | None:
    """Raises ConfigError. A time without an offset is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"--{option} {text} is no time", advice='write it as in "2026-01-31" or "2026-01-31T12:00:00+01:00"'
        ) from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return round(moment.timestamp() * 1_000_000)


async def _show(config: Config, selection: Selection, *, is_whole: bool, is_json: bool) -> None:
    reader = await open_reader(config)
    reasons: Counter[str] = Counter()
    try:
        async for stored in selected(reader, selection):
            reasons[stored.letter.reason] += 1
            if is_json:
                sys.stdout.write(msgspec.json.encode(_document(stored, is_whole=is_whole)).decode() + "\n")
            elif is_whole:
                sys.stdout.write(_page(stored))
            else:
                sys.stdout.write(_line(stored))
    finally:
        await reader.close()
    if not is_json and not is_whole:
        total = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        sys.stdout.write(f"{total}\n" if total else "no dead letters\n")


def _line(stored: StoredLetter) -> str:
    letter = stored.letter
    return f"{stored.id:>6}  {_time(letter.received_us)}  {letter.source}  {letter.reason:<12}  {letter.detail} ({len(letter.body)} bytes)\n"


def _page(stored: StoredLetter) -> str:
    letter = stored.letter
    body = letter.body.decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in body)
    return (
        f"dead letter {stored.id} of source {letter.source}, received {_time(letter.received_us)}\n"
        f"reason: {letter.reason}: {letter.detail}\n{shown}\n\n"
    )


def _document(stored: StoredLetter, *, is_whole: bool) -> dict[str, Any]:
    letter = stored.letter
    document: dict[str, Any] = {
        "id": stored.id,
        "source": letter.source,
        "reason": letter.reason,
        "detail": letter.detail,
        "received_us": letter.received_us,
        "bytes": len(letter.body),
    }
    if is_whole:
        document["body"] = letter.body.decode("utf-8", "backslashreplace")
        document["context"] = msgspec.Raw(letter.context)
    return document


def _time(at_us: int) -> str:
    return f"{datetime.fromtimestamp(at_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


async def _alone(config: Config, action: str, selection: Selection) -> dict[str, int] | Retried:
    """The same with the log opened here. Raises LogLocked when a process has it that can't be asked."""
    plan = read_plan(config)
    pipeline = build_pipeline(config)
    log = await config.log.kind.from_config(config.log.section, config)
    try:
        sources: list[PushedSource] = []
        for name, choice in config.sources.items():
            source = choice.kind(name, choice.section, config.events)
            if hasattr(source, "routes"):
                source.attach(log, CollectorRegistry(), _untold, plan, pipeline)
                sources.append(source)
        letters = DeadLetters(log, sources, pipeline)
        if action == "drop":
            return {"dropped": await letters.drop(selection)}
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(_started(source)) for source in sources]
            tasks = [await task for task in running]
        try:
            return await letters.retry(selection)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await log.close()


def _untold(source: str, events: int, first_us: int) -> None:
    """Nobody counts here."""


async def _started(source: PushedSource) -> asyncio.Task[None]:
    started = asyncio.Event()
    task = asyncio.create_task(source.run(started.set))
    await started.wait()
    return task


COMMAND = Command("look at events that became dead letters, take them again, or drop them", _configure, _run)
