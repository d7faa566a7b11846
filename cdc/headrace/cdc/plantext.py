"""A learned plan as a file that a person reads and edits: what is asked for as YAML, what was seen as comments beside it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from headrace.cdc.process.profile import SECTIONS, EventProfile, LogProfile
from headrace.cdc.yamltext import flow


def plan_text(profile: LogProfile) -> str:
    """A plan that judges in shadow."""
    first = min((of_name.first_us for of_name in profile.events.values()), default=0)
    last = max((of_name.last_us for of_name in profile.events.values()), default=0)
    lines = [
        f"# Learned from {profile.count:,} events, received {_time(first)} to {_time(last)}.",
        "# Read it, correct it, see what it would have done (headrace plan check), then take shadow out.",
        "shadow: true",
        "violation: quarantine",
        "unplanned: pass",
    ]
    tracks = sorted((name, of_name) for (kind, name), of_name in profile.events.items() if kind == "track")
    if tracks:
        lines.append("track:")
    for name, of_name in tracks:
        lines += [f"  {flow(name)}:  # {of_name.rate()}", *_lines(of_name, "    ")]
    for kind in SECTIONS:
        of_kind = profile.events.get((kind, ""))
        if of_kind is not None:
            lines += [f"{kind}:  # {of_kind.rate()}", *_lines(of_kind, "  ")]
    return "\n".join(lines) + "\n"


def _lines(profile: EventProfile, blank: str) -> Iterator[str]:
    schema = profile.fields.of_fields(profile.count)
    yield f"{blank}schema:"
    yield f"{blank}  type: object"
    if "required" in schema:
        yield f"{blank}  required: {flow(schema['required'])}"
    yield f"{blank}  properties:" + ("" if schema["properties"] else " {}")
    for name, of_field in schema["properties"].items():
        yield f"{blank}    {flow(name)}: {flow(of_field)}  # {profile.fields.fields[name].note(profile.count)}"


def _time(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


__all__ = ["plan_text"]
