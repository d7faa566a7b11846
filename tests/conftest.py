"""Fixtures of the whole suite."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator

import pytest

from hot_twins import install, pytest_collection_modifyitems, pytest_report_header

install()  # first: from here on an import of headrace may bring a hot module

pytest_plugins = ["fix_servers", "fix_features", "fix_mariadb", "fix_mysql", "fix_streams", "fix_wire"]

_LAST_RESORT_S = 720.0
"""Above the time limit of pyproject.toml, which a call into C that never returns doesn't hear."""

_stderr = pytest.StashKey[int]()

__all__ = ["pytest_collection_modifyitems", "pytest_plugins", "pytest_report_header"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """A campaign takes as long as it takes."""
    if item.get_closest_marker("campaign") is not None:
        item.add_marker(pytest.mark.timeout(0))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # before the output of tests is captured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """End the process, with every stack printed, where nothing else ends a test; behind the last one until it has gone."""
    if item.get_closest_marker("campaign") is not None:
        return (yield)
    faulthandler.dump_traceback_later(_LAST_RESORT_S, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        if nextitem is not None:
            faulthandler.cancel_dump_traceback_later()
