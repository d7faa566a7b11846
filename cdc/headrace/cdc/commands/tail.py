"""``headrace tail``: the log's events on the terminal, read from the log itself, whether or not ``headrace run`` runs.

Exit codes: 0 done or Ctrl-C; 2 a bad option; 4 the log can't be read, or the asked offset is no longer kept.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TypeAlias, get_args

import msgspec

from headrace.cdc.command import Command, config_argument
from headrace.cdc.config import Config, load
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, Kind
from headrace.cdc.eventfilter import EventFilter
from headrace.cdc.eventline import event_line
from headrace.cdc.log.base import LogBatch
from headrace.cdc.log.reader import LogReader, open_reader
from headrace.cdc.readable import ReadableLines

_FOLLOW_WAIT_S = 60.0

_Show: TypeAlias = Callable[[CustomerEvent, int, int], None]


class _Options(msgspec.Struct, frozen=True):
    start: str
    partition: int | None
    is_following: bool
    limit: int | None
    is_json: bool
    filter: EventFilter


class _EnoughError(Exception):
    """The asked number of events has been shown."""


def _configure(parser: ArgumentParser) -> None:
    config_argument(parser)
    parser.description = "Show the log's events, one a line; times are the commit's, in UTC."
    parser.add_argument("--json", action="store_true", help="one JSON object a line, as GET /v1/events serves it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is appended, until Ctrl-C")
    parser.add_argument(
        "--from",
        dest="start",
        metavar="PLACE",
        help="earliest, latest or an offset (default: earliest; latest with --follow)",
    )
    parser.add_argument("-n", "--limit", type=int, metavar="N", help="stop after N events")
    parser.add_argument("--partition", type=int, metavar="P", help="only this partition of the log")
    parser.add_argument("--table", action="append", default=[], help="only rows of this table; may be repeated")
    parser.add_argument("--name", action="append", default=[], help="only events of this name; may be repeated")
    parser.add_argument("--key", action="append", default=[], help="only this customer's events; may be repeated")
    parser.add_argument("--kind", action="append", default=[], choices=get_args(Kind), help="only events of this kind")
    parser.add_argument("--heartbeats", action="store_true", help="show heartbeats too")


def _run(arguments: Namespace) -> int:
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError("--limit must be 1 or more", advice="leave it out to see everything")
    options = _Options(
        start=arguments.start or ("latest" if arguments.follow else "earliest"),
        partition=arguments.partition,
        is_following=arguments.follow,
        limit=arguments.limit,
        is_json=arguments.json,
        filter=EventFilter(
            names=frozenset(arguments.name),
            kinds=frozenset(arguments.kind),
            tables=frozenset(arguments.table),
            keys=frozenset(arguments.key),
            has_heartbeats=arguments.heartbeats or "heartbeat" in arguments.kind,
        ),
    )
    config = load(Path(arguments.config))
    # JSON is UTF-8 whatever the locale says; for people, a character the terminal lacks must not end the output.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8" if options.is_json else None, errors="replace")
    try:
        asyncio.run(_tail(config, options))
    except KeyboardInterrupt:
        # Ctrl-C is how a follower is meant to end.
        return 0
    return 0


async def _tail(config: Config, options: _Options) -> None:
    reader = await open_reader(config)
    try:
        offsets = await _places(reader, options)
        show = _shower(reader, options)
        try:
            async for batch in _stored(reader, offsets):
                for index, event in enumerate(batch.events):
                    show(event, batch.partition, batch.first_offset + index)
            sys.stdout.flush()
            if options.is_following:
                await _follow(reader, offsets, show)
        except _EnoughError:
            pass
        sys.stdout.flush()
    finally:
        await reader.close()


async def _places(reader: LogReader, options: _Options) -> dict[int, int]:
    """Where to begin in each partition. Raises ConfigError for an option that doesn't fit this log."""
    count = reader.partitions
    if options.partition is not None and not 0 <= options.partition < count:
        raise ConfigError(
            f"--partition {options.partition} doesn't exist: the log has {count}", advice="count partitions from 0"
        )
    partitions = range(count) if options.partition is None else [options.partition]
    bounds = {partition: await reader.bounds(partition) for partition in partitions}
    if options.start == "earliest":
        return {partition: each.first for partition, each in bounds.items()}
    if options.start == "latest":
        return {partition: each.end for partition, each in bounds.items()}
    if not (options.start.isascii() and options.start.isdigit()):
        raise ConfigError(f'--from "{options.start}" is no place', advice="give earliest, latest or an offset")
    if len(bounds) > 1:
        raise ConfigError(
            f"--from {options.start} needs --partition, as this log has {count}", advice="add --partition 0 or another"
        )
    ((partition, each),) = bounds.items()
    offset = int(options.start)
    if offset > each.end:
        raise ConfigError(f"--from {offset} is beyond the end of the log, {each.end}", advice="give an offset up to it")
    return {partition: offset}


async def _stored(reader: LogReader, offsets: dict[int, int]) -> AsyncGenerator[LogBatch, None]:
    """What the log holds now, the partitions merged by commit time as far as each one's own order allows; moves offsets."""
    ends = {partition: (await reader.bounds(partition)).end for partition in offsets}
    heads: list[tuple[int, int, int, LogBatch]] = []

    async def refill(partition: int) -> None:
        if offsets[partition] < ends[partition]:
            batch = await reader.read(partition, offsets[partition])
            offsets[partition] = batch.next_offset
            heapq.heappush(heads, (batch.events[0].committed_us, partition, 0, batch))

    for partition in offsets:
        await refill(partition)
    while heads:
        _, partition, index, batch = heapq.heappop(heads)
        stop = index
        # A run up to the next partition's time goes out in one piece.
        until_us = heads[0][0] if heads else None
        while stop < len(batch.events) and (
            until_us is None or stop == index or batch.events[stop].committed_us <= until_us
        ):
            stop += 1
        yield LogBatch(partition, batch.first_offset + index, batch.events[index:stop])
        if stop < len(batch.events):
            heapq.heappush(heads, (batch.events[stop].committed_us, partition, stop, batch))
        else:
            await refill(partition)


async def _follow(reader: LogReader, offsets: dict[int, int], show: _Show) -> None:
    def read(partition: int) -> asyncio.Task[LogBatch]:
        return asyncio.create_task(reader.read(partition, offsets[partition], wait_s=_FOLLOW_WAIT_S))

    reads = {read(partition): partition for partition in offsets}
    try:
        while True:
            done, _ = await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                partition = reads.pop(task)
                batch = task.result()
                offsets[partition] = batch.next_offset
                for index, event in enumerate(batch.events):
                    show(event, partition, batch.first_offset + index)
                reads[read(partition)] = partition
            sys.stdout.flush()
    finally:
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


def _shower(reader: LogReader, options: _Options) -> _Show:
    """Prints an event that passes; raises _EnoughError after the last one asked for."""
    left = options.limit
    passes = options.filter.passes
    out = sys.stdout
    if options.is_json:
        encode = msgspec.json.Encoder().encode

        def text(event: CustomerEvent, partition: int, offset: int) -> str:
            # Only the SDK's own JSON can be spread over lines, and inside strings line ends are always escaped.
            line = encode(event_line(event, partition=partition, offset=offset))
            return line.replace(b"\r", b" ").replace(b"\n", b" ").decode()
    else:
        is_terminal = out.isatty()
        lines = ReadableLines(
            has_colour=is_terminal and "NO_COLOR" not in os.environ,
            width=shutil.get_terminal_size().columns if is_terminal else None,
            partitions=reader.partitions,
        )

        def text(event: CustomerEvent, partition: int, offset: int) -> str:
            return lines.line(event, partition=partition, offset=offset)

    def show(event: CustomerEvent, partition: int, offset: int) -> None:
        nonlocal left
        if not passes(event):
            return
        out.write(text(event, partition, offset) + "\n")
        if left is not None:
            left -= 1
            if left == 0:
                raise _EnoughError

    return show


COMMAND = Command("show the log's events, one a line", _configure, _run)
