"""``headrace plan``: a tracking plan learned from the log, taken over from another system, or tried on the log.

Reads the log and files only. Exit codes: 0 done; 2 a bad option, plan or configuration; 4 the log.
"""

from __future__ import annotations

import asyncio
import sys
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import AsyncIterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from headrace.cdc.command import Command
from headrace.cdc.config import Config, Duration, load
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.reader import open_reader
from headrace.cdc.plan import read_plan_file
from headrace.cdc.yamltext import block


def _configure(parser: ArgumentParser) -> None:
    parser.description = (
        "Tracking plans: learned from the log, taken over from Segment or RudderStack, tried on the log."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("learn", "write a plan of what the log's events have in common, with what was seen as comments"),
        ("check", "say what a plan would do with the events that the log holds"),
        ("import", "turn a tracking plan's JSON of Segment or RudderStack into one of ours"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        if name == "import":
            action.add_argument("file", metavar="JSON", help="what their API or export gives")
        else:
            action.add_argument("--source", help="only events of this source")
            action.add_argument("--last", metavar="TIME", help="only events received in the last 12h, 7d, ...")
            action.add_argument(
                "--sample", type=float, default=1.0, metavar="SHARE", help="only a share of the events, such as 0.05"
            )
            action.add_argument(
                "--config", default="headrace.yaml", metavar="FILE", help="configuration (default: %(default)s)"
            )
        if name == "check":
            action.add_argument("--plan", metavar="FILE", help="the plan (default: the configuration's pipeline.plan)")
            action.add_argument("--json", action="store_true", help="one JSON object, for machines")
        else:
            action.add_argument("--out", metavar="FILE", help="where to write it (default: standard output)")


def _run(arguments: Namespace) -> int:
    if arguments.action == "import":
        return _import(Path(arguments.file), arguments.out)
    if not 0 < arguments.sample <= 1:
        raise ConfigError("--sample must be above 0 and at most 1")
    config = load(Path(arguments.config))
    since_us = 0
    if arguments.last is not None:
        try:
            since_us = round((time.time() - Duration.parse(arguments.last).s) * 1_000_000)
        except ValueError as error:
            raise ConfigError(f"--last {arguments.last}: {error}") from error
    events = _events(config, arguments.source, since_us, arguments.sample)
    if arguments.action == "learn":
        return asyncio.run(_learn(events, arguments.out))
    return asyncio.run(_check(config, events, arguments.plan, is_json=arguments.json))


async def _events(config: Config, source: str | None, since_us: int, share: float) -> AsyncIterator[CustomerEvent]:
    """Events of SDKs and webhooks, partition after partition. The same ones are in a sample each time."""
    limit = int(share * (1 << 64))
    reader = await open_reader(config)
    try:
        for partition in range(reader.partitions):
            offset = (await reader.bounds(partition)).first
            while True:
                batch = await reader.read(partition, offset)
                if not batch.events:
                    break
                offset = batch.next_offset
                for event in batch.events:
                    if event.row is not None or event.kind in ("heartbeat", "schema") or event.received_us < since_us:
                        continue
                    if source is not None and event.source != source:
                        continue
                    if share < 1 and int.from_bytes(blake2b(event.id.encode(), digest_size=8).digest()) >= limit:
                        continue
                    yield event
    finally:
        await reader.close()


async def _learn(events: AsyncIterator[CustomerEvent], out: str | None) -> int:
    from headrace.cdc.plantext import plan_text
    from headrace.cdc.process.profile import LogProfile

    profile = LogProfile()
    async for event in events:
        profile.add(event)
    if not profile.count:
        raise ConfigError(
            "the log holds no event of an SDK or webhook that fits", advice="learn once some have come, or widen --last"
        )
    _write(plan_text(profile), out)
    left = f"; {profile.left_out} events of further names were left out" if profile.left_out else ""
    sys.stderr.write(f"{profile.count:,} events of {len(profile.events)} names read{left}\n")
    return 0


class _Judged(msgspec.Struct):
    seen: int = 0
    fits: int = 0
    passes: int = 0
    stripped: int = 0
    quarantined: int = 0
    places: Counter[str] = msgspec.field(default_factory=Counter[str])


async def _check(config: Config, events: AsyncIterator[CustomerEvent], file: str | None, *, is_json: bool) -> int:
    if file is None and config.pipeline.plan is None:
        raise ConfigError("there is no plan to check", advice="give --plan FILE, or name one under pipeline.plan")
    plan = read_plan_file(Path(file) if file is not None else config.path(config.pipeline.plan or ""))
    judged: dict[str, _Judged] = {}
    async for event in events:
        name = f"{event.kind} {event.name}" if event.kind == "track" else event.kind
        of_name = judged.setdefault(name, _Judged())
        verdict = plan.verdict(event)
        of_name.seen += 1
        match verdict.violation:
            case None:
                of_name.fits += 1
            case "pass":
                of_name.passes += 1
            case "strip":
                of_name.stripped += 1
            case "quarantine":
                of_name.quarantined += 1
        of_name.places.update(set(verdict.places))
    if is_json:
        document = {name: _document(found) for name, found in sorted(judged.items())}
        sys.stdout.write(msgspec.json.encode({"events": document}).decode() + "\n")
        return 0
    for name, found in sorted(judged.items(), key=lambda pair: (-pair[1].quarantined, pair[0])):
        share = found.quarantined / found.seen
        sys.stdout.write(
            f"{name}: {found.seen:,} seen, {found.quarantined:,} would be set aside ({share:.1%}), {found.stripped:,} stripped\n"
        )
        for place, count in found.places.most_common(5):
            sys.stdout.write(f"    {count:>9,}  {place}\n")
    total = sum(found.seen for found in judged.values())
    blocked = sum(found.quarantined for found in judged.values())
    sys.stdout.write(f"of {total:,} events {blocked:,} would be set aside\n")
    return 0


def _document(judged: _Judged) -> dict[str, Any]:
    return {
        "seen": judged.seen,
        "fits": judged.fits,
        "passes": judged.passes,
        "stripped": judged.stripped,
        "quarantined": judged.quarantined,
        "places": dict(judged.places.most_common(100)),
    }


def _import(path: Path, out: str | None) -> int:
    from headrace.cdc.process.planimport import imported
    from headrace.cdc.process.validate import Plan, PlanFile

    try:
        document = msgspec.json.decode(path.read_bytes())
        plan, left = imported(document)
        Plan(msgspec.convert(plan, PlanFile))
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise ConfigError(
            f"{path} can't be taken over",
            problems=tuple(str(error).splitlines()),
            advice="give the JSON of one tracking plan with its rules, as Segment's or RudderStack's API answers it",
        ) from error
    _write(block(plan), out)
    for line in left:
        sys.stderr.write(f"left out: {line}\n")
    return 0


def _write(text: str, out: str | None) -> None:
    if out is None:
        sys.stdout.write(text)
        return
    try:
        with Path(out).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{out} is there already", advice="move it away, or name another file") from None
    except OSError as error:
        raise ConfigError(f"{out} can't be written: {error.strerror or error}") from error


COMMAND = Command(
    help="tracking plans: learn one from the log, try one on it, import one", configure=_configure, run=_run
)
