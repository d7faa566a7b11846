"""The plot and the table of the README, from the JSON of two benchmarks in docs/figures: nothing in them is typed by hand.

python .ci/figures.py            draw docs/rivals.svg and write the table between README.md's markers
python .ci/figures.py --measure  run the benchmarks first (`make figures`); minutes
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
COMMANDS = {
    "postgres_drain": ["--rivals", "--rows", "200000", "--rounds", "2"],
    "feature_reads": ["--requests", "60", "--rounds", "2"],
}
BEGIN, END = "<!-- figures: written by .ci/figures.py -->", "<!-- end of figures -->"
NAMES = {
    "recv": "pg_recvlogical, to /dev/null",
    "decode": "headrace, typed values",
    "log": "headrace, in the durable log",
    "psycopg2": "psycopg2 and a small parser",
    "pg-logical-replication": "pg-logical-replication (Node)",
    "debezium": "Debezium Engine",
    "debezium-server": "Debezium Server, to Redis",
}
READERS = {"headrace": "headrace's server", "feast SDK": "Feast SDK, in the process", "feast serve": "feast serve"}
BESIDE = (("feast serve", "`feast serve`, over HTTP"), ("feast SDK", "Feast SDK, in the reader's process"))
WIDTH, HEIGHT, ROW = 960, 306, 34
DARK, SOFT, OURS, OTHERS = "#14242b", "#5c7079", "#0b6e8f", "#b9c6cc"


def measure() -> None:
    FIGURES.mkdir(exist_ok=True)
    for name, words in COMMANDS.items():
        command = [sys.executable, f"benchmarks/{name}.py", *words, "--json"]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        (FIGURES / f"{name}.json").write_bytes(done.stdout)


def bars(left: int, width: int, title: str, unit: str, lines: list[tuple[str, float]]) -> list[str]:
    """A panel of horizontal bars, each with its figure."""
    parts = [f'<text x="{left}" y="30" fill="{DARK}" font-weight="600">{title}</text>']
    label, most = 218, max(value for _, value in lines)
    room = width - label - 64
    for place, (name, value) in enumerate(lines):
        y = 50 + place * ROW
        size = max(2.0, value / most * room)
        color = OURS if name.startswith("headrace") else OTHERS
        parts += [
            f'<text x="{left + label - 10}" y="{y + 16}" fill="{SOFT}" text-anchor="end">{name}</text>',
            f'<rect x="{left + label}" y="{y}" width="{size:.1f}" height="22" rx="3" fill="{color}"/>',
            f'<text x="{left + label + size + 7:.1f}" y="{y + 16}" fill="{DARK}">{value:g} {unit}</text>',
        ]
    return parts


def draw(drain: dict[str, Any], reads: dict[str, Any]) -> str:
    clients = {each["client"]: each for each in drain["clients"]}
    left = [(name, round(clients[client]["cpu_us_per_row"], 1)) for client, name in NAMES.items() if client in clients]
    found = {line["reader"]: line for line in reads["lines"] if (line["entities"], line["features"]) == (100, 250)}
    right = [(name, round(found[reader]["p50_ms"], 1)) for reader, name in READERS.items()]
    words = "; ".join(f"{name} {value:g}" for name, value in (*left, *right))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="13" role="img" aria-label="{words}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
            *bars(16, 500, "A change of Postgres: CPU of the client", "us", left),
            *bars(528, 420, "100 entities x 250 features: p50 of a read", "ms", right),
            "</svg>",
            "",
        ]
    )


def table(drain: dict[str, Any], reads: dict[str, Any]) -> str:
    clients = {each["client"]: each for each in drain["clients"]}

    def rate(client: str) -> str:
        each = clients[client]
        return f"{each['rows_per_s']:,} rows/s, {each['cpu_us_per_row']:.1f} us, {each['peak_mib']} MiB"

    def read(reader: str, entities: int, features: int) -> str:
        for line in reads["lines"]:
            if (line["reader"], line["entities"], line["features"]) == (reader, entities, features):
                return f"{line['p50_ms']:.1f} and {line['p99_ms']:.0f} ms"
        raise LookupError(reader)

    others = [
        f"{what}: {rate(client)}"
        for client, what in (
            ("debezium", "Debezium Engine (JSON of each, kept nowhere)"),
            ("debezium-server", "Debezium Server, to a Redis stream synced each second"),
            ("pg-logical-replication", "`pg-logical-replication` on Node (kept nowhere)"),
            ("recv", "`pg_recvlogical` to `/dev/null`"),
        )
        if client in clients
    ]
    about = drain["machine"]
    lines = [
        "![CPU of a change of Postgres, and the time of a read of features, beside others](docs/rivals.svg)",
        "",
        "| | headrace | others in the same run |",
        "|---|---|---|",
        f"| changes of Postgres, typed, normalised, synced in the log: rate, CPU a row, peak memory | {rate('log')} | {'; '.join(others)} |",
    ]
    for entities, features in ((1, 50), (10, 250), (100, 250)):
        rivals = [f"{what}: {read(name, entities, features)}" for name, what in BESIDE]
        words = f"a read of {entities} x {features} features, over HTTP: p50 and p99"
        lines.append(f"| {words} | {read('headrace', entities, features)} | {'; '.join(rivals)} |")
    lines += [
        "",
        f"Measured by `make figures` on {about['cores']} shared virtual cores ({about['processor']}, commit {about['commit']}, PostgreSQL {about['postgres']};"
        f" the reads of features: {reads['about']['processor']}, commit {reads['about']['commit']}, Feast {reads['about']['feast']});"
        " what each of them does with a row, and all other figures, missed goals included: [benchmarks](docs/benchmarks.md).",
    ]
    return "\n".join(lines)


def main() -> None:
    if "--measure" in sys.argv:
        measure()
    drain, reads = (json.loads((FIGURES / f"{name}.json").read_text()) for name in COMMANDS)
    (ROOT / "docs" / "rivals.svg").write_text(draw(drain, reads), encoding="utf-8")
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{table(drain, reads)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
