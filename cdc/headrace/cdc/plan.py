"""The tracking plan that ``pipeline.plan`` names, read and checked. Its library is only for those who have one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.cdc.config import Config, read_mapping
from headrace.cdc.errors import ConfigError

if TYPE_CHECKING:
    from headrace.cdc.process.validate import Plan


def read_plan(config: Config) -> Plan | None:
    """None when none is configured. Raises ConfigError with every schema that is none."""
    if config.pipeline.plan is None:
        return None
    return read_plan_file(config.path(config.pipeline.plan))


def read_plan_file(path: Path) -> Plan:
    """Raises ConfigError with every schema that is none."""
    from headrace.cdc.process.validate import Plan, PlanFile

    try:
        return Plan(msgspec.convert(read_mapping(path), PlanFile))
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(
            f"tracking plan {path} can't be used",
            problems=tuple(str(error).splitlines()),
            advice="correct the plan; docs/collector.md shows one",
        ) from error


__all__ = ["read_plan", "read_plan_file"]
