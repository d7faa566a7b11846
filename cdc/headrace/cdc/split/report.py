"""What a further process says of itself when the first one asks."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from headrace.cdc.consumer import Health

REPORT_PATH: Final = "/-/report"


class ConsumerReport(msgspec.Struct):
    """What one consumer says of itself, as the first process shows it."""

    status: dict[str, Any]
    health: list[Health]


class Report(msgspec.Struct):
    """metrics: Prometheus text. compiled: see state.compiled_modules. cpu_s: of all its threads so far. peak_bytes: resident, at most so far."""

    consumers: dict[str, ConsumerReport]
    metrics: str
    compiled: dict[str, bool]
    cpu_s: float = 0.0
    peak_bytes: int = 0


__all__ = ["REPORT_PATH", "ConsumerReport", "Report"]
