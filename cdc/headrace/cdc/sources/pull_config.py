"""What ``sources.NAME`` of type pull may say."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.cdc.config import Duration, Section


class PullConfig(Section, frozen=True):
    """Rows that a dlt resource yields, asked for on a schedule; needs the extra headrace[pull]."""

    resource: Annotated[
        str,
        Meta(
            pattern=r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$",
            description="FILE.py:NAME of a dlt resource or source, or of a function without arguments that makes one.",
            examples=["pulls.py:orders"],
        ),
    ]
    every: Annotated[Duration, Meta(description="From the beginning of one pull to the next. Default: 5m.")] = (
        msgspec.field(default_factory=lambda: Duration.parse("5m"))
    )

    def __post_init__(self) -> None:
        if self.every.s < 1:
            raise ValueError("every must be 1s or more")


__all__ = ["PullConfig"]
