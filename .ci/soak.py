"""An hour of steady load, drawn: latencies and memory of each twentieth of the run.

python .ci/soak.py                            draw docs/soak.svg from docs/figures/soak.json
python .ci/soak.py --measure [--seconds 3600] run benchmarks/latency.py first (`make soak`); other options go to it
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures" / "soak.json"
PICTURE = ROOT / "docs" / "soak.svg"
COMMAND = [
    "--line",
    "redis",
    "--rate",
    "400",
    "--rows",
    "5",
    "--idle",
    "10",
    "--starts",
    "1",
    "--processes",
    "2",
    "--json",
]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, PANEL = 960, 400, 64, 20, 46, 190
MEMORY_TOP, MEMORY = 300, 64
DARK, SOFT, LINE = "#14242b", "#5c7079", "#dde4e7"
SHADES = {"p50": "#0b6e8f", "p99": "#a15c00", "p99.9": "#b9332b"}


def measure(words: list[str]) -> None:
    seconds = [] if "--seconds" in words else ["--seconds", "3600"]
    (ROOT / "build").mkdir(exist_ok=True)
    command = [sys.executable, "benchmarks/latency.py", *COMMAND, "--folder", "build", *seconds, *words]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_bytes(done.stdout)


def path(points: list[tuple[float, float]], color: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="2"/>'


def draw(report: dict[str, Any]) -> str:
    [line] = report["lines"]
    parts: list[dict[str, float]] = line["over_time"]
    end_s = parts[-1]["second"]
    lowest, highest = 1.0, max(10.0, *(part["p99.9"] for part in parts))
    decades = math.ceil(math.log10(highest / lowest))

    def x(second: float) -> float:
        return LEFT + second / end_s * (WIDTH - LEFT - RIGHT)

    def y(ms: float) -> float:
        return TOP + PANEL * (1 - math.log10(max(ms, lowest) / lowest) / decades)

    most_mib = max(part["rss_mib"] for part in parts) * 1.15
    rate = report["rate"] * report["rows_a_transaction"]
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13" role="img"'
        f' aria-label="commit to event over {end_s:.0f} seconds: p99 {min(p["p99"] for p in parts):g} to {max(p["p99"] for p in parts):g} ms">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="26" fill="{DARK}" font-weight="600">Commit to event, ms ({rate:,} rows/s, {report["processes"]} processes)</text>',
    ]
    for place, (name, color) in enumerate(SHADES.items()):
        drawn.append(
            f'<text x="{WIDTH - RIGHT - 170 + place * 60}" y="26" fill="{color}" font-weight="600">{name}</text>'
        )
    for decade in range(decades + 1):
        ms = lowest * 10**decade
        drawn += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(ms):.1f}" y2="{y(ms):.1f}" stroke="{LINE}"/>',
            f'<text x="{LEFT - 8}" y="{y(ms) + 4:.1f}" fill="{SOFT}" text-anchor="end">{ms:g}</text>',
        ]
    drawn += [path([(x(part["second"]), y(part[name])) for part in parts], color) for name, color in SHADES.items()]
    drawn += [
        f'<text x="{LEFT}" y="{MEMORY_TOP - 14}" fill="{DARK}" font-weight="600">Memory of all processes, MiB</text>',
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{MEMORY_TOP + MEMORY}" y2="{MEMORY_TOP + MEMORY}" stroke="{LINE}"/>',
        f'<text x="{LEFT - 8}" y="{MEMORY_TOP + MEMORY + 4}" fill="{SOFT}" text-anchor="end">0</text>',
        f'<text x="{LEFT - 8}" y="{MEMORY_TOP + 10}" fill="{SOFT}" text-anchor="end">{most_mib:.0f}</text>',
        path([(x(p["second"]), MEMORY_TOP + MEMORY * (1 - p["rss_mib"] / most_mib)) for p in parts], SHADES["p50"]),
    ]
    for share in (0.25, 0.5, 0.75, 1.0):
        drawn.append(
            f'<text x="{x(end_s * share):.1f}" y="{HEIGHT - 12}" fill="{SOFT}" text-anchor="{"end" if share == 1 else "middle"}">{end_s * share / 60:.0f} min</text>'
        )
    return "\n".join([*drawn, "</svg>", ""])


def main() -> None:
    words = sys.argv[1:]
    if "--measure" in words:
        measure([word for word in words if word != "--measure"])
    PICTURE.write_text(draw(json.loads(FIGURES.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
