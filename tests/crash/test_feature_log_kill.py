"""After kill -9 at any moment the feature log holds what the online store took: nothing lost, nothing twice, in order for each entity."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crash import feature_writer
from features.test_feature_log import bits, logged
from headrace.features.encoding import codec_of
from headrace.features.loading import load_definitions
from headrace.features.state import EntityState, Layout

KILLS = 6


def run(folder: Path, seed: int, lines_until_kill: int | None) -> int:
    """Run the writer, kill it at that line; its exit code."""
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    writer = subprocess.Popen(
        [sys.executable, feature_writer.__file__, str(folder), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert writer.stdout is not None
    with writer.stdout as lines:
        for count, _ in enumerate(lines, 1):
            if count == lines_until_kill:
                writer.kill()
                break
        for _ in lines:
            pass
    return writer.wait()


@pytest.mark.parametrize("seed", [81])
def test_kills_lose_and_double_no_row_of_the_feature_log(definitions: Path, tmp_path: Path, seed: int) -> None:
    check(definitions, tmp_path, seed, KILLS)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_kills_lose_and_double_no_row_of_the_feature_log(definitions: Path, tmp_path: Path, seed: int) -> None:
    check(definitions, tmp_path, seed, 15)


def check(definitions: Path, folder: Path, seed: int, kills: int) -> None:
    draw = random.Random(seed)
    codes = [run(folder, seed, draw.randint(1, 40)) for _ in range(kills)]
    assert codes.count(-9) > kills // 2, f"seed {seed}: {codes}"
    assert run(folder, seed, None) == 0
    (view,) = load_definitions(definitions)
    layout, codec = Layout(view), codec_of(view.spec)
    found: dict[Any, list[Any]] = {}
    for _, log_time_us, key, values, event_time_us in logged(folder / "log", view.spec):
        rows = found.setdefault(key, [])
        if values is not None or (rows and rows[-1][1] is not None):
            # An entity that came and went within one batch is logged as gone; the store had nothing to delete.
            rows.append((log_time_us, values, event_time_us))
    wanted: dict[Any, list[Any]] = {}
    with contextlib.closing(sqlite3.connect(folder / "online.db")) as connection:
        for key, event_time_us, state in connection.execute(
            "select entity_key, event_time_us, state from witness order by n"
        ):
            wanted.setdefault(codec.decode_key(key), []).append((state, event_time_us))
    assert {key: len(rows) for key, rows in found.items() if rows} == {
        key: len(rows) for key, rows in wanted.items()
    }, f"seed {seed}"
    for key, rows in wanted.items():
        for (log_time_us, values, logged_time_us), (state, event_time_us) in zip(found[key], rows, strict=True):
            if state is None:
                assert values is None
                continue
            told = EntityState.decode(layout, state, log_time_us).values()
            assert (values, logged_time_us) == (bits(told), event_time_us), f"seed {seed}, entity {key}"
