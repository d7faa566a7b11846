"""The pipeline that ``pipeline`` configures, compiled: its steps checked, its Python files loaded."""

from __future__ import annotations

import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cdc.config import Config, EventConfig, TransformConfig
from headrace.cdc.enrich.knowledge import Knowledge
from headrace.cdc.errors import ConfigError
from headrace.cdc.pipeline_config import PYTHON_PATTERN
from headrace.cdc.userfile import run_file

if TYPE_CHECKING:
    from headrace.cdc.process.pipeline import Pipeline
    from headrace.cdc.process.transform import Step


def build_pipeline(config: Config, knowledge: Knowledge | None = None) -> Pipeline | None:
    """None when nothing is configured. knowledge: gets what the steps share, for whoever feeds and closes it. Raises ConfigError with every mistake, each with its path."""
    pipeline = config.pipeline
    if not pipeline.transforms and not config.privacy.events and config.privacy.consent is None:
        return None
    from headrace.cdc.process.eventprivacy import compile_privacy
    from headrace.cdc.process.pipeline import Pipeline
    from headrace.cdc.process.transform import Problems

    problems: list[str] = []
    privacy = None
    try:
        privacy = compile_privacy(config.privacy)
    except Problems as found:
        problems += [f"privacy.{line}" for line in found.lines]
    steps: list[Step] = []
    knowledge = knowledge or Knowledge()
    for number, transform in enumerate(pipeline.transforms):
        step = _step(config, transform, f"pipeline.transforms[{number}]", problems, knowledge)
        if step is not None:
            steps.append(step)
    if problems:
        count = len(problems)
        raise ConfigError(
            f"the pipeline has {count} problem{'s' if count > 1 else ''}",
            problems=tuple(problems),
            advice="correct the named steps; docs/pipeline.md shows each",
        )
    return Pipeline(steps, privacy, knowledge)


def _step(
    config: Config, transform: TransformConfig | str, place: str, problems: list[str], knowledge: Knowledge
) -> Step | None:
    from headrace.cdc.process.transform import Problems, compile_step, compile_when, only
    from headrace.cdc.process.transform_python import python_step

    if isinstance(transform, str):
        if re.fullmatch(PYTHON_PATTERN, transform) is None:
            problems.append(f'{place}: "{transform}" is neither a mapping nor FILE.py:FUNCTION')
            return None
        transform = TransformConfig(python=transform)
    try:
        when = compile_when(transform.when)
        if transform.parse or transform.locate or transform.lookup or transform.fetch or transform.credit:
            return only(when, _enriching(config, transform, knowledge))
        if transform.python is None:
            return compile_step(transform)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None
    except Problems as found:
        problems += [f"{place}.{line}" for line in found.lines]
        return None
    file, _, name = transform.python.rpartition(":")
    try:
        function = load_function(config.path(file), name)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None
    return python_step(function, file=str(config.path(file)), name=name, when=when)


def _enriching(config: Config, transform: TransformConfig, knowledge: Knowledge) -> Step:
    """Raises Problems; ValueError for a file or a library that isn't there."""
    from headrace.cdc.process import enrich
    from headrace.cdc.process.transform import Problems, in_turn

    if transform.parse:
        steps: list[Step] = []
        if "campaign" in transform.parse:
            steps.append(enrich.campaign_step())
        if "user_agent" in transform.parse:
            if importlib.util.find_spec("ua_parser") is None:
                raise ValueError("user_agent needs the extra: pip install 'headrace[enrich]'")
            from headrace.cdc.enrich.agents import agent

            steps.append(enrich.agent_step(agent))
        return in_turn(steps)
    if transform.locate is not None:
        from headrace.cdc.enrich.geo import locator

        return enrich.location_step(locator(config.path(transform.locate)))
    if transform.lookup is not None:
        from headrace.cdc.enrich.mirror import Lookup, TableMirror

        mirror = knowledge.mirror = knowledge.mirror or TableMirror(config.path(config.pipeline.lookups))
        lookup = Lookup(transform.lookup.table, tuple(transform.lookup.by), tuple(transform.lookup.columns))
        schema, _, table = lookup.table.partition(".")
        hidden = config.events.get(lookup.table, EventConfig()).columns
        lost = [
            column for column in (*lookup.by, *lookup.columns) if hidden.hides(column) and column not in hidden.hash
        ]
        if lost:
            raise Problems([f"lookup: {schema}.{table} is captured without {', '.join(lost)}"])
        mirror.add(lookup)
        return enrich.lookup_step(transform.lookup, lambda values: mirror.get(lookup, values))
    if transform.credit is not None:
        from headrace.cdc.enrich.records import RecentRecords

        credit = transform.credit
        records = knowledge.records = knowledge.records or RecentRecords(config.path(config.pipeline.records))
        records.add(credit.record)
        return enrich.credit_step(
            credit, lambda customer: [(said.at_us, said.body) for said in records.of(credit.record, customer)]
        )
    from headrace.cdc.enrich.fetch import Fetcher

    fetch = transform.fetch
    assert fetch is not None
    fetcher = knowledge.fetcher = knowledge.fetcher or Fetcher()
    service = fetch.url.partition("{")[0]

    def get(url: str) -> Any:
        return fetcher.get(url, headers=fetch.headers, service=service, timeout_s=fetch.timeout.s, ttl_s=fetch.ttl.s)

    return enrich.fetch_step(fetch, get)


def load_function(path: Path, name: str) -> Callable[[Any], Any]:
    """A function of a user's file, which is run once for it. Raises ValueError with what is wrong, file and line."""
    module = run_file(path, "transform", _told)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f'{path} has no function "{name}"')
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"{name} of {path} is async; a transform can't wait for anything")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise ValueError(f"{name} of {path} doesn't take one argument, the event") from None
    found: Callable[[Any], Any] = function
    return found


def _told(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{where}: {type(error).__name__}: {error}"


__all__ = ["build_pipeline", "load_function"]
