"""``headrace features``: what the definitions would change (apply), what the store holds (get), and what offline/commands.py adds.

Both open the store themselves: no headrace need be running.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.cdc.command import Command
from headrace.cdc.config import Config, load
from headrace.cdc.errors import ConfigError, DefinitionError
from headrace.cdc.log.reader import open_reader
from headrace.cdc.running import ask
from headrace.features.answer import entity_answer, key_of, readable
from headrace.features.compiled import CompiledView
from headrace.features.config import FeaturesConfig
from headrace.features.erasing import EraseAsked, Erased, concerned, erase_alone
from headrace.features.erasing import answer as erased_answer
from headrace.features.loading import load_definitions
from headrace.features.offline import commands as offline
from headrace.features.offline.logged import LoggedStore
from headrace.features.ondemand import computed_rows, fields_of, stored_names
from headrace.features.store.base import OnlineStore
from headrace.features.verify import Verdict, verify

_DIFFERS = 7
_ERASE_S = 3600.0
_STYLES = {"added": "green", "changed": "yellow", "unchanged": "dim"}
_MEANING = {
    "added": "filled from the log when headrace starts next",
    "changed": "built anew from the log when headrace starts next; until that has caught up, the rows of the former definition are served",
    "unchanged": "",
}


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    apply = actions.add_parser(
        "apply",
        help="check the definitions, show what they change, register the views in Feast when features.feast is set",
    )
    apply.add_argument(
        "config", metavar="FILE", nargs="?", default="headrace.yaml", help="configuration (default: %(default)s)"
    )
    apply.add_argument("--dry-run", action="store_true", help="show the plan only; register nothing")
    apply.add_argument("--json", action="store_true", help="one JSON object, for machines")
    get = actions.add_parser("get", help="print an entity's row of a view")
    get.add_argument("config", metavar="FILE", help="configuration")
    get.add_argument("view", metavar="VIEW", help="name of the feature view")
    get.add_argument("keys", metavar="KEY=VALUE", nargs="+", help="the entity: each join key and its value")
    get.add_argument("--json", action="store_true", help="one JSON object, for machines")
    forget = actions.add_parser("erase", help="remove an entity from every view, and from the feature log, for ever")
    forget.add_argument("config", metavar="FILE", help="configuration")
    forget.add_argument("keys", metavar="KEY=VALUE", nargs="+", help="the entity: join keys and their values")
    forget.add_argument("--json", action="store_true", help="one JSON object, for machines")
    check = actions.add_parser(
        "verify", help="compare serving, the feature log and a recomputation from the events, bit by bit"
    )
    check.add_argument(
        "config", metavar="FILE", nargs="?", default="headrace.yaml", help="configuration (default: %(default)s)"
    )
    check.add_argument("--view", action="append", default=[], help="only this view; may be repeated")
    check.add_argument(
        "--sample", type=int, default=1000, metavar="N", help="entities of each view at most (default: %(default)s)"
    )
    check.add_argument("--json", action="store_true", help="one JSON object, for machines")
    offline.configure(actions)


def _run(arguments: Namespace) -> int:
    config = load(Path(arguments.config))
    section: FeaturesConfig | None = config.sections.get("features")
    if section is None:
        raise ConfigError(
            f"{arguments.config} has no features section",
            problems=("features: is missing",),
            advice='add "features: {definitions: shop_features.py}" with the path of your definitions',
        )
    views = load_definitions(config.path(section.definitions))
    if arguments.action == "apply":
        return _apply(config, section, views, is_dry=arguments.dry_run, is_json=arguments.json)
    if arguments.action == "get":
        return _get(config, section, views, arguments)
    if arguments.action == "erase":
        return _erase(config, section, views, arguments)
    if arguments.action == "verify":
        return _verify(config, section, views, arguments)
    return offline.run(config, section, views, arguments)


def _verify(config: Config, section: FeaturesConfig, views: Sequence[CompiledView], arguments: Namespace) -> int:
    """0 when no bit differs, 7 when one does."""
    known = {view.spec.name: view for view in views}
    for name in arguments.view:
        if name not in known:
            raise DefinitionError(f"view {name!r} is not defined", advice=f"ask for one of: {', '.join(known)}")
    folder = None if section.offline is None else config.path(section.offline.path)

    async def compare() -> list[Verdict]:
        reader = await open_reader(config)
        try:
            async with _opened(config, section) as store:
                return [
                    await verify(known[name], store, reader, folder, sample=arguments.sample)
                    for name in arguments.view or known
                ]
        finally:
            await reader.close()

    verdicts = asyncio.run(compare())
    differing = sum(verdict.differing_bits + verdict.logged_differing_bits for verdict in verdicts)
    if arguments.json:
        _write_json({"differing_bits": differing, "views": msgspec.to_builtins(verdicts)})
        return _DIFFERS if differing else 0
    console = Console(highlight=False, soft_wrap=True)
    for verdict in verdicts:
        line = Text(verdict.view, "bold")
        line.append(f"  {verdict.values:,} values of {verdict.entities:,} entities recomputed: ", "")
        line.append(f"{verdict.differing_bits:,} bits differ", "green" if not verdict.differing_bits else "bold red")
        if verdict.logged_entities:
            line.append(f"; {verdict.logged_values:,} against the feature log: ")
            bad = verdict.logged_differing_bits
            line.append(f"{bad:,} bits differ", "green" if not bad else "bold red")
        console.print(line)
        if verdict.pending:
            console.print(Text(f"  {verdict.pending:,} entities are about to decay and were left out", "dim"))
        if verdict.note:
            console.print(Text(f"  {verdict.note}", "yellow"))
        for example in verdict.examples:
            console.print(f"  {example}", markup=False)
    return _DIFFERS if differing else 0


def _apply(
    config: Config, section: FeaturesConfig, views: Sequence[CompiledView], *, is_dry: bool, is_json: bool
) -> int:
    plan = asyncio.run(_plan(config, section, views))
    registered: str | None = None
    if section.feast is not None and not is_dry:
        registered = str(_register(config, section, section.feast, views))
    if is_json:
        _write_json({"views": plan, "feast": registered, "dry_run": is_dry})
        return 0
    console = Console(highlight=False, soft_wrap=True)
    for line in plan:
        change: str = line["change"]
        text = Text(f"{change:9} ", _STYLES[change]) + Text(line["view"], "bold")
        names = ", ".join(line["features"])
        console.print(text + Text(f"  ({names})"))
        if _MEANING[change]:
            console.print(Text(f"          {_MEANING[change]}", "dim"))
    if registered is not None:
        console.print(f"registered in Feast: {registered}")
    elif section.feast is not None:
        console.print("a dry run: nothing was registered in Feast")
    return 0


async def _plan(config: Config, section: FeaturesConfig, views: Sequence[CompiledView]) -> list[dict[str, Any]]:
    """One line a view, by comparing with the checkpoint that the store has of it."""
    lines: list[dict[str, Any]] = []
    async with _opened(config, section) as store:
        for view in views:
            checkpoint = await store.checkpoint(view.spec)
            if checkpoint is None:
                change = "added"
            else:
                change = "unchanged" if checkpoint.spec_hash == view.spec.spec_hash else "changed"
            lines.append(
                {
                    "view": view.spec.name,
                    "change": change,
                    "table": view.table,
                    "join_keys": [field.name for field in view.spec.join_keys],
                    "features": {field.name: field.dtype.value for field in view.spec.fields},
                    "spec_hash": view.spec.spec_hash,
                    "defined_at": view.defined_at,
                }
            )
    return lines


def _register(config: Config, section: FeaturesConfig, feast: str, views: Sequence[CompiledView]) -> Path:
    """Through the adapter, which imports Feast: only here, and only now. Writes feature_store.yaml where there is none."""
    from headrace.features import feast as adapter

    path = config.path(feast)
    if not path.exists():
        text = adapter.feature_store_yaml(
            section.store.section,
            project=section.project,
            folder=config.folder,
            repo=path.parent,
            has_log=section.offline is not None,
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DefinitionError(
                f"Feast's configuration {path} can't be written: {error.strerror}",
                advice="correct features.feast, or the folder's rights",
            ) from error
    adapter.apply(
        [view.spec for view in views],
        project=section.project,
        feature_store_yaml=path,
        store=section.store.section,
        folder=config.folder,
        feature_log=None if section.offline is None else config.path(section.offline.path),
    )
    return path


def _get(config: Config, section: FeaturesConfig, views: Sequence[CompiledView], arguments: Namespace) -> int:
    view = next((view for view in views if view.spec.name == arguments.view), None)
    if view is None:
        known = ", ".join(view.spec.name for view in views)
        raise DefinitionError(f"view {arguments.view!r} is not defined", advice=f"ask for one of: {known}")
    texts = _texts(arguments.keys, view.spec.join_keys[0].name)
    try:
        key = key_of(view.spec, texts)
    except ValueError as error:
        raise DefinitionError(f"join key {error}", advice="write each join key once, as KEY=VALUE") from None

    async def read() -> dict[str, Any]:
        async with _opened(config, section) as store:
            names = [field.name for field in fields_of(view.spec)]
            stored = stored_names(view.spec, names)
            rows = computed_rows(view.spec, names, stored, await store.read(view.spec, stored, [key]))
        return entity_answer(view.spec, key, rows[0], time.time_ns() // 1000)

    answer = asyncio.run(read())
    if arguments.json:
        _write_json(answer)
    else:
        _print_answer(answer)
    return 0


def _erase(config: Config, section: FeaturesConfig, views: Sequence[CompiledView], arguments: Namespace) -> int:
    """0 when a look afterwards finds nothing, 7 when it does."""
    texts = _texts(arguments.keys, views[0].spec.join_keys[0].name)
    concerned(views, texts)
    told: Any = ask(config, "/v1/features/erase", EraseAsked(texts), timeout_s=_ERASE_S)
    if told is None:

        async def alone() -> list[Erased]:
            async with _opened(config, section, is_logged=True) as store:
                return await erase_alone(views, texts, store)

        told = erased_answer(asyncio.run(alone()))
    if arguments.json:
        _write_json(told)
        return _DIFFERS if told["left"] else 0
    console = Console(highlight=False, soft_wrap=True)
    for line in told["views"]:
        text = f"{line['entities']:,} entities, {line['source_rows']:,} source rows, {line['logged_rows']:,} logged rows erased"
        console.print(Text(line["view"], "bold") + Text(f"  {text}"))
    if told["left"]:
        console.print(
            Text(f"{told['left']:,} rows are still there: does another program write to the store?", "bold red")
        )
        return _DIFFERS
    console.print(
        "looked again: nothing of it is left in these views; the event log is headrace customer erase's", style="dim"
    )
    return 0


def _texts(words: Sequence[str], example: str) -> dict[str, str]:
    """KEY=VALUE words. Raises DefinitionError."""
    pairs = [word.partition("=") for word in words]
    for name, equals, _ in pairs:
        if not equals:
            raise DefinitionError(f"{name!r} is no KEY=VALUE", advice=f"write {example}=...")
    return {name: value for name, _, value in pairs}


def _print_answer(answer: dict[str, Any]) -> None:
    console = Console(highlight=False)
    entity = ", ".join(f"{name}={value}" for name, value in answer["entity"].items())
    if answer["status"] == "NOT_FOUND":
        console.print(f"{answer['view']} has no row for {entity}", markup=False)
        return
    table = Table(title=Text(f"{answer['view']}  {entity}"), title_justify="left", box=None, pad_edge=False)
    table.add_column("feature")
    table.add_column("value")
    table.add_column("status", style="dim")
    for name, value in answer["features"].items():
        table.add_row(
            name, Text("null", "dim") if value is None else Text(str(readable(value))), answer["statuses"][name]
        )
    console.print(table)
    console.print(f"event time {answer['event_timestamp']}, {_age(answer['freshness_ms'])} ago", markup=False)


def _age(age_ms: float) -> str:
    for unit, length_ms in (("d", 86_400_000.0), ("h", 3_600_000.0), ("min", 60_000.0), ("s", 1_000.0)):
        if age_ms >= length_ms:
            return f"{age_ms / length_ms:.1f} {unit}"
    return f"{age_ms:.1f} ms"


@contextlib.asynccontextmanager
async def _opened(config: Config, section: FeaturesConfig, *, is_logged: bool = False) -> AsyncGenerator[OnlineStore]:
    """is_logged: what is written goes to the feature log too."""
    store: OnlineStore = section.store.kind.from_config(
        section.store.section, project=section.project, folder=config.folder
    )
    if is_logged and section.offline is not None:
        store = LoggedStore(store, config.path(section.offline.path), roll_every_s=section.offline.roll_every.s)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def _write_json(line: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")


COMMAND = Command("feature views: apply definitions, get an entity's row", _configure, _run)
