"""The document of ``GET /v1/status`` as a page on the terminal (rich)."""

from __future__ import annotations

import sys
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 240
_PHASE_STYLES = {"streaming": "green", "snapshot": "cyan", "connecting": "yellow", "stopped": "red"}


def show(document: dict[str, Any], *, now: float) -> None:
    """Print it on standard output. now: seconds since 1970 UTC."""
    # A pipe has no width of its own: nothing is cut there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    if not document["is_running"]:
        console.print(Text("not running", "bold yellow") + Text(f" (nothing answers at {document['listen']})"))
        if document["log"] is None:
            console.print(Text(f"  {document['reason']}"))
        else:
            _log(console, document["log"])
            for group, cursor in document["cursors"].items():
                console.print(Text(f"  {group} is {_count(cursor['lag_events'])} events behind"))
        return
    console.print(
        Text("running", "bold green")
        + Text(
            f" headrace {document['version']}, up {_span(now - document['started_us'] / 1e6)}, {_compiled(document)}"
        )
    )
    _sources(console, document["sources"])
    _log(console, document["log"])
    _consumers(console, document["consumers"])
    for each in document.get("processes", ()):
        kept = ", ".join(each["consumers"])
        console.print(
            Text(f"  process {each['process']}, pid {each['pid']}: {kept}; {_bytes(each['peak_bytes'])} at most", "dim")
        )
    for part, reason in document["troubles"].items():
        console.print(Text(f"trouble  {part}: {reason}", "red"))


def _compiled(document: dict[str, Any]) -> str:
    plain = [name for name, is_compiled in document["compiled"].items() if not is_compiled]
    if plain:
        return f"hot modules uncompiled: {', '.join(name.removeprefix('headrace.') for name in plain)}"
    return "hot modules compiled"


def _sources(console: Console, sources: dict[str, Any]) -> None:
    table = _table("source", "phase", "position", "behind", "kept", "rows", "p50 / p99")
    for name, source in sources.items():
        table.add_row(
            Text(name),
            Text(source["phase"], _PHASE_STYLES.get(source["phase"], "")),
            Text(source["position"]),
            _bytes(source.get("lag_bytes")),
            _bytes(source.get("retained_bytes")),
            _count(source.get("appended_rows")),
            _latency(source.get("commit_to_log_p50_ms"), source.get("commit_to_log_p99_ms")),
        )
    console.print(table)
    for name, source in sources.items():
        if source["reason"]:
            console.print(Text(f"  {name}: {source['reason']}", "yellow"))
        for warning in source.get("warnings", ()):
            console.print(Text(f"  {name}: {warning}", "yellow"))
        is_safe = source.get("is_failover_safe")
        if is_safe is not None:
            said = (
                "failover-safe" if is_safe else "not failover-safe: a promotion of the standby now would lose the slot"
            )
            console.print(Text(f"  {name}: {said}", "" if is_safe else "yellow"))
        snapshot = source.get("snapshot")
        if snapshot:
            console.print(
                Text(
                    f"  {name}: copying, {snapshot.get('tables_done')} of {snapshot.get('tables')} tables, "
                    f"{_count(snapshot.get('rows'))} of about {_count(snapshot.get('estimated_rows'))} rows, "
                    f"now {snapshot.get('table')}{_rate(snapshot)}",
                    "cyan",
                )
            )


def _log(console: Console, log: dict[str, Any]) -> None:
    table = _table("log", "events", "from", "to")
    for each in log["partitions"]:
        table.add_row(
            f"partition {each['partition']}",
            _count(each["end"] - each["first"]),
            str(each["first"]),
            str(each["end"]),
        )
    console.print(table)
    if "disk_bytes" in log:
        console.print(f"  {_bytes(log['disk_bytes'])} on disk")
    if log.get("dead_letters"):
        console.print(Text(f"  {_count(log['dead_letters'])} dead letters: headrace deadletter ls says why", "yellow"))


def _rate(snapshot: dict[str, Any]) -> str:
    rate, left_s = snapshot.get("rows_per_s"), snapshot.get("left_s")
    if not rate:
        return ""
    return f", {_count(rate)} rows a second" + ("" if left_s is None else f", about {_span(left_s)} left")


def _consumers(console: Console, consumers: dict[str, Any]) -> None:
    table = _table("consumer", "state", "events behind")
    notes: list[Text] = []
    for name, consumer in consumers.items():
        is_ready = consumer["is_ready"]
        shown = ("is_ready", "reason", "lag_events", "offset", "log_time_us")
        rest = ", ".join(_words(key, value) for key, value in consumer.items() if key not in shown)
        table.add_row(
            Text(name),
            Text("ready", "green") if is_ready else Text(consumer["reason"] or "not ready", "yellow"),
            _count(consumer["lag_events"]),
        )
        if rest:
            notes.append(Text(f"  {name}: {rest}", "dim"))
    console.print(table)
    for note in notes:
        console.print(note)


def _words(key: str, value: Any) -> str:
    """One of a consumer's own numbers; of parts that are described by more than a number only the names."""
    name = key.replace("_", " ")
    if not isinstance(value, dict):
        return f"{name} {value}"
    parts = cast(dict[str, Any], value)
    if any(isinstance(each, dict) for each in parts.values()):
        return f"{name} {' '.join(parts)}"
    return f"{name} {' '.join(f'{part} {each}' for part, each in parts.items())}"


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _bytes(number: int | None) -> str:
    if number is None:
        return "-"
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}".replace(",", " ")


def _latency(p50_ms: float | None, p99_ms: float | None) -> str:
    """Upper bounds of commit to log since the start."""
    return "-" if p50_ms is None or p99_ms is None else f"≤ {p50_ms:g} / {p99_ms:g} ms"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
