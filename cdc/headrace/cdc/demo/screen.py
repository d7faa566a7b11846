"""What the demo shows while it runs: a live picture in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from headrace.cdc.demo.proof import FEATURES, Rows

_SHOWN = ("orders_1m", "spent_1m", "orders_10m", "spent_10m", "orders_ever", "last_status", "views_ever")
_PLAIN_EVERY_S = 2.0
_FLASH_S = 0.8


class Reading(msgspec.Struct):
    """One look at the running system; rates are per second since the last one."""

    elapsed_s: float
    commits: int
    commit_rate: float
    log_end: int
    event_rate: float
    p50_ms: float | None
    p99_ms: float | None
    lag_bytes: int | None
    lag_events: int | None
    log_bytes: int | None
    orders: Rows
    views: Rows


class Screen:
    """Shows readings. how: the lines to copy, in the order shown."""

    def __init__(self, how: list[tuple[str, str]], *, customers: list[int]) -> None:
        self._how = how
        self._customers = customers
        self._console = Console(highlight=False)
        self._last: Rows = {}
        self._changed: dict[tuple[int, str], float] = {}
        self._printed_at = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=False)
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def show(self, reading: Reading) -> None:
        if self._live is not None:
            self._live.update(self._picture(reading))
        elif time.monotonic() - self._printed_at >= _PLAIN_EVERY_S:
            self._printed_at = time.monotonic()
            sys.stdout.write(
                f"{reading.elapsed_s:5.0f} s  {reading.commit_rate:6.0f} commits/s  {reading.event_rate:6.0f} events/s  "
                f"commit to feature p50 {_ms(reading.p50_ms)}, p99 {_ms(reading.p99_ms)}\n"
            )
            sys.stdout.flush()

    def _picture(self, reading: Reading) -> Group:
        numbers = Table.grid(padding=(0, 3))
        for _ in range(5):
            numbers.add_column(justify="center")
        numbers.add_row(
            Text(f"{reading.commit_rate:,.0f}", "bold cyan"),
            Text(f"{reading.event_rate:,.0f}", "bold cyan"),
            Text(_ms(reading.p50_ms), "bold green"),
            Text(_ms(reading.p99_ms), "bold green"),
            Text(f"{reading.log_end:,}", "bold"),
        )
        numbers.add_row(
            *(
                Text(word, "dim")
                for word in ("commits/s", "events/s", "commit to feature p50", "p99", "events in the log")
            )
        )
        how = Table.grid(padding=(0, 1))
        for title, line in self._how:
            how.add_row(Text(title, "dim"))
            how.add_row(Syntax(line, "bash", background_color="default", word_wrap=True))
        return Group(
            Panel(
                numbers,
                title=f"headrace demo · {reading.elapsed_s:.0f} s · Ctrl-C ends it with a proof",
                border_style="cyan",
            ),
            Panel(
                self._features(reading.orders, reading.views),
                title="customer_orders and customer_views, read back over HTTP",
                border_style="cyan",
            ),
            Panel(how, title="in another terminal", border_style="dim"),
        )

    def _features(self, orders: Rows, views: Rows) -> Table:
        """Orders come from the database, views from the pages' SDK: one customer."""
        rows = {
            customer: (
                *orders.get(customer, (None,) * len(FEATURES["customer_orders"][1])),
                *views.get(customer, (None,)),
            )
            for customer in self._customers
        }
        table = Table(box=None, expand=False, padding=(0, 2))
        table.add_column("customer_id", justify="right", style="bold")
        names = (*FEATURES["customer_orders"][1], *FEATURES["customer_views"][1])
        for name in _SHOWN:
            table.add_column(name, justify="right")
        now = time.monotonic()
        for customer in self._customers:
            row = rows.get(customer)
            before = self._last.get(customer)
            cells: list[Text] = []
            for name in _SHOWN:
                place = names.index(name)
                value = None if row is None else row[place]
                if before is not None and before[place] != value:
                    self._changed[customer, name] = now
                is_new = now - self._changed.get((customer, name), -_FLASH_S) < _FLASH_S
                cells.append(Text(_cell(value), "bold green" if is_new else ""))
            table.add_row(str(customer), *cells)
        self._last = rows
        return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
