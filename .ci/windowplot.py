"""docs/window.svg: a window moving through time, drawn from what the kernel emits for a dozen rows."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import duckdb

from headrace.features.loading import load_definitions
from headrace.features.offline.backfill import backfill

ROWS_S = (4.3, 11.2, 12.8, 20.1, 33.7, 41.5, 44.2, 47.9, 63.4, 78.6)
SPAN_S, WINDOW_S, HOP_S = 130, 30, 5
DEFINITION = f"""
from headrace.features import *
shop = Entity("shop", join_keys={{"shop": Int64}})
FeatureView("sales", entity=shop, source=Table("public.sales"), event_time="sold_at", features=[count(over="{WINDOW_S}s", hop="{HOP_S}s", name="n")])
"""
WIDTH, LEFT, RIGHT, TOP, HEIGHT, BASE = 900, 46, 16, 66, 150, 284
DARK, SOFT, LINE, TINT, WARM = "#14242b", "#5c7079", "#dde4e7", "#d6ecf3", "#a15c00"


def emitted() -> list[tuple[float, int]]:
    """(second, value) of every row that the feature log would have."""
    with tempfile.TemporaryDirectory() as folder:
        definitions = Path(folder) / "f.py"
        definitions.write_text(DEFINITION.replace('FeatureView("sales"', 'v = FeatureView("sales"'))
        rows = ", ".join(f"(1, make_timestamp({int(second * 1e6)}))" for second in ROWS_S)
        out = Path(folder) / "out.parquet"
        (view,) = load_definitions(definitions)
        backfill(view, f"select * from (values {rows}) _(shop, sold_at)", folder=None, out=out)
        query = f"select epoch_us(event_timestamp) / 1e6, n from '{out}' order by event_timestamp, created"
        return [(float(second), int(n)) for second, n in duckdb.sql(query).fetchall()]


def x(second: float) -> float:
    return LEFT + second / SPAN_S * (WIDTH - LEFT - RIGHT)


def main(path: Path) -> None:
    steps = emitted()
    top = max(n for _, n in steps)

    def y(n: float) -> float:
        return TOP + HEIGHT - n / top * HEIGHT

    def text(at_x: float, at_y: float, words: str, fill: str = SOFT, anchor: str = "start") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" fill="{fill}" text-anchor="{anchor}">{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 340" font-family="system-ui, sans-serif" font-size="13" role="img"'
        f' aria-label="count over {WINDOW_S} s with hops of {HOP_S} s: it rises with each row, and falls by itself when rows leave the window">',
        f'<rect width="{WIDTH}" height="340" fill="#fff"/>',
        text(
            LEFT,
            22,
            f'count(over="{WINDOW_S}s", hop="{HOP_S}s"): every value the online store was given, and when',
            DARK,
        ),
    ]
    for second in range(0, SPAN_S + 1, HOP_S):
        parts.append(
            f'<path d="M{x(second):.1f} {TOP}V{BASE + 8}" stroke="{LINE}" stroke-width="{1 if second % 30 else 2}"/>'
        )
    for second in range(0, SPAN_S + 1, 30):
        parts.append(text(x(second), BASE + 26, f"{second} s", SOFT, "middle"))
    for n in range(top + 1):
        parts.append(text(LEFT - 12, y(n) + 4, str(n), SOFT, "end"))
    now = 52.0
    hop = int(now // HOP_S) * HOP_S
    begin, end = hop + HOP_S - WINDOW_S, hop + HOP_S
    parts.append(
        f'<rect x="{x(begin):.1f}" y="{BASE - 20}" width="{x(end) - x(begin):.1f}" height="28" fill="{TINT}"/>'
    )
    parts.append(f'<path d="M{x(now):.1f} {TOP - 8}V{BASE + 8}" stroke="{WARM}" stroke-dasharray="4 3"/>')
    inside = len([second for second in ROWS_S if begin <= second < end and second <= now])
    parts.append(text(x(now) + 6, TOP - 12, f"at {now:.0f} s the window is {begin} to {end} s: {inside} rows", WARM))
    circles: list[str] = []
    line, former = f"M{x(0):.1f} {y(0):.1f}", 0
    for second, n in steps:
        line += f"H{x(second):.1f}V{y(n):.1f}"
        falls = n < former
        circles.append(f'<circle cx="{x(second):.1f}" cy="{y(n):.1f}" r="3.5" fill="{WARM if falls else "#0b6e8f"}"/>')
        former = n
    parts.append(f'<path d="{line}H{x(SPAN_S):.1f}" fill="none" stroke="#0b6e8f" stroke-width="2"/>')
    parts += circles
    for second in ROWS_S:
        parts.append(f'<circle cx="{x(second):.1f}" cy="{BASE - 6}" r="5" fill="{DARK}"/>')
    parts.append(
        text(
            LEFT,
            BASE + 50,
            "black: rows by their event time; blue: written with a row; brown: written by time alone, at the hop at which a row has left",
            SOFT,
        )
    )
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
