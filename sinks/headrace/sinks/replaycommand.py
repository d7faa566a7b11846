"""``headrace replay``: a stretch of the log, or the dead letters, to one sink once more.

Works while ``headrace run`` runs and without it. Exit codes: 0 all delivered; 2 configuration or a bad place; 4 the log; 7 some events
became, or stay, dead letters; 8 the destination or the sinks' file; 130 interrupted, with the offset to go on from.
"""

from __future__ import annotations

import asyncio
import re
import sys
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.cdc.command import Command, config_argument
from headrace.cdc.config import Config, load
from headrace.cdc.errors import ConfigError
from headrace.cdc.log.reader import LogReader, open_reader
from headrace.sinks.base import SinkChoice
from headrace.sinks.command import choice_of, durable_store
from headrace.sinks.deadletter import DeadLetter
from headrace.sinks.delivery import make_sink
from headrace.sinks.dispatcher import Dispatcher, Range
from headrace.sinks.replay import offset_at, replay_letters, replay_range
from headrace.sinks.sinkfile import SinkFile

_LEFT_OVER = 7
_INTERRUPTED = 130
_SHOW_S = 0.2
_ROUND = 10_000
"""Dead letters delivered in one go."""


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("sink", metavar="SINK", help="name of the sink")
    config_argument(parser)
    parser.add_argument(
        "--from",
        dest="start",
        metavar="PLACE",
        help="earliest, an offset, or a commit time such as 2026-11-01T00:00:00Z",
    )
    parser.add_argument(
        "--to",
        dest="end",
        default="latest",
        metavar="PLACE",
        help="latest, an offset, or a commit time; exclusive (default: %(default)s)",
    )
    parser.add_argument("--partition", type=int, metavar="P", help="only this partition of the log")
    parser.add_argument(
        "--dead-letters", action="store_true", help="deliver the sink's dead letters, and remove what it takes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")


def _run(arguments: Namespace) -> int:
    config = load(Path(arguments.config))
    choice = choice_of(config, arguments.sink)
    if arguments.dead_letters == (arguments.start is not None):
        raise ConfigError("replay needs a place to begin", advice="give --from, or --dead-letters, one of the two")
    store = durable_store(config)
    work = (
        _letters(config, choice, arguments, store)
        if arguments.dead_letters
        else _range(config, choice, arguments, store)
    )
    return asyncio.run(work)


async def _range(config: Config, choice: SinkChoice, arguments: Namespace, store: SinkFile) -> int:
    reader = await open_reader(config)
    try:
        ranges = await _ranges(reader, arguments)
        sink = make_sink(arguments.sink, choice, config, is_replay=True)
        work = replay_range(arguments.sink, sink, choice.section, log=reader, ranges=ranges, letters=store)
        total = sum(each.end - each.first for each in ranges.values())
        is_whole = await _watched(work, total, f"replay to {arguments.sink}", is_quiet=arguments.json)
        places = {partition: work.offsets[partition] for partition in ranges} if work.offsets else {}
        return _tell(arguments, work, is_whole=is_whole, places=places)
    finally:
        await reader.close()
        await store.close()


async def _letters(config: Config, choice: SinkChoice, arguments: Namespace, store: SinkFile) -> int:
    """Round after round, since a held key's later events become dead letters while the earlier ones are delivered."""
    try:
        after: tuple[int, int] | None = None
        code = 0
        while True:
            letters: list[DeadLetter] = await store.letters(arguments.sink, after=after, limit=_ROUND)
            if not letters:
                if after is None:
                    print(f"sink {arguments.sink} has no dead letters", file=sys.stderr)
                return code
            after = (letters[-1].partition, letters[-1].offset)
            sink = make_sink(arguments.sink, choice, config, is_replay=True)
            work = replay_letters(arguments.sink, sink, choice.section, letters=letters, store=store)
            is_whole = await _watched(work, len(letters), f"dead letters of {arguments.sink}", is_quiet=arguments.json)
            code = max(code, _tell(arguments, work, is_whole=is_whole, places={}))
            if not is_whole:
                return code
    finally:
        await store.close()


async def _watched(work: Dispatcher, total: int, title: str, *, is_quiet: bool) -> bool:
    """Run it under a progress bar. False: interrupted."""
    running = asyncio.create_task(work.run())
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}"),
        console=Console(stderr=True), disable=is_quiet or not sys.stderr.isatty(), transient=True,
    )  # fmt: skip
    try:
        with bar:
            shown = bar.add_task(title, total=total, state="")
            while not running.done():
                await asyncio.wait([running], timeout=_SHOW_S)
                numbers, health = work.numbers, work.health()
                done = numbers.delivered + numbers.dead + numbers.skipped
                bar.update(shown, completed=done, state="" if health.is_ready else health.reason)
        await running
    except asyncio.CancelledError:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return False
    return True


def _tell(arguments: Namespace, work: Dispatcher, *, is_whole: bool, places: dict[int, int]) -> int:
    numbers = work.numbers
    if arguments.json:
        line: dict[str, Any] = {
            "sink": arguments.sink, "is_whole": is_whole, "delivered": numbers.delivered, "dead": numbers.dead,
            "skipped": numbers.skipped, "offsets": places,
        }  # fmt: skip
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    else:
        said = f"{numbers.delivered} events delivered, {numbers.skipped} not for this sink, {numbers.dead} dead letters"
        where = ", ".join(f"--partition {partition} --from {offset}" for partition, offset in places.items())
        print(said if is_whole else f"{said}; interrupted{f', go on with {where}' if where else ''}")
    if not is_whole:
        return _INTERRUPTED
    return _LEFT_OVER if numbers.dead else 0


async def _ranges(reader: LogReader, arguments: Namespace) -> dict[int, Range]:
    count = reader.partitions
    if arguments.partition is not None and not 0 <= arguments.partition < count:
        raise ConfigError(f"--partition {arguments.partition}: the log has {count}", advice=f"give 0 to {count - 1}")
    found: dict[int, Range] = {}
    for partition in range(count) if arguments.partition is None else [arguments.partition]:
        first = await _place(
            reader, partition, arguments.start, "--from", is_one=arguments.partition is not None or count == 1
        )
        end = await _place(
            reader, partition, arguments.end, "--to", is_one=arguments.partition is not None or count == 1
        )
        if first < end:
            found[partition] = Range(first, end)
    if not found:
        raise ConfigError(
            "there is no event between --from and --to", advice='"headrace tail" shows what the log keeps'
        )
    return found


async def _place(reader: LogReader, partition: int, text: str, option: str, *, is_one: bool) -> int:
    bounds = await reader.bounds(partition)
    if text in ("earliest", "latest"):
        return bounds.first if text == "earliest" else bounds.end
    if re.fullmatch(r"\d{1,18}", text):
        if not is_one:
            raise ConfigError(
                f"{option} {text}: an offset is one of a partition", advice="add --partition, or give a time"
            )
        if not bounds.first <= int(text) <= bounds.end:
            raise ConfigError(
                f"{option} {text}: partition {partition} keeps {bounds.first} to {bounds.end}",
                advice="give an offset between",
            )
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is no place",
            advice="give earliest, latest, an offset, or a time such as 2026-11-01T00:00:00Z",
        ) from None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return await offset_at(reader, partition, round(when.timestamp() * 1_000_000))


COMMAND = Command("deliver a stretch of the log, or dead letters, to a sink once more", _configure, _run)
