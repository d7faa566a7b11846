"""Which process keeps which consumer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cdc.config import Config, load, plugins
from headrace.cdc.split.allot import Part, allot, movable, section_of

FEATURES = Part("features")
SINKS = [Part("sinks", name) for name in "abc"]


@pytest.mark.parametrize(
    ("parts", "processes", "kept"),
    [
        ([FEATURES, *SINKS], 1, []),
        ([FEATURES, *SINKS], 2, [[FEATURES, *SINKS]]),
        ([FEATURES, *SINKS], 3, [[FEATURES], SINKS]),
        ([FEATURES, *SINKS], 4, [[FEATURES], [SINKS[0], SINKS[2]], [SINKS[1]]]),
        ([FEATURES, *SINKS], 64, [[FEATURES], [SINKS[0]], [SINKS[1]], [SINKS[2]]]),
        (SINKS, 3, [[SINKS[0], SINKS[2]], [SINKS[1]]]),
        ([FEATURES], 8, [[FEATURES]]),
        ([], 8, []),
    ],
)
def test_features_have_a_process_and_sinks_are_dealt_out(
    parts: list[Part], processes: int, kept: list[list[Part]]
) -> None:
    assert allot(parts, processes) == kept


@given(whole=st.integers(0, 3), named=st.integers(0, 9), processes=st.integers(1, 9))
def test_each_part_is_kept_once_and_no_process_is_idle(whole: int, named: int, processes: int) -> None:
    parts = [Part(f"k{number}") for number in range(whole)] + [Part("sinks", f"s{number}") for number in range(named)]
    kept = allot(parts, processes)
    assert sorted(part for each in kept for part in each) == (sorted(parts) if kept else [])
    assert all(kept) and len(kept) == min(processes - 1, len(parts))


def test_what_isnt_elsewhere_is_here(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text(
        """
sources: {web: {type: http}}
features: {definitions: f.py}
subscribe: {}
sinks:
  a: {type: http, destination: {url: "http://127.0.0.1:9/"}}
  b: {type: http, destination: {url: "http://127.0.0.1:9/"}}
processes: 2
"""
    )
    config: Config = load(tmp_path / "headrace.yaml", {})
    kinds = plugins("headrace.consumers")
    parts = movable(config, kinds)
    assert parts == [FEATURES, *SINKS[:2]]

    def shown(kept: list[Part], *, is_ours: bool) -> dict[str, Any]:
        found = {name: section_of(config, kind, kept, name, is_ours=is_ours) for name, kind in kinds.items()}
        return {name: sorted(each) if isinstance(each, dict) else each is not None for name, each in found.items()}

    assert shown(parts, is_ours=False) == {"features": False, "subscribe": True, "sinks": [], "checks": False}
    assert shown(parts[2:], is_ours=False) == {"features": True, "subscribe": True, "sinks": ["a"], "checks": False}
    assert shown(parts[2:], is_ours=True) == {"features": False, "subscribe": False, "sinks": ["b"], "checks": False}
