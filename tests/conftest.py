"""Fixtures of the whole suite."""

from __future__ import annotations

import pytest

from hot_twins import install, pytest_collection_modifyitems, pytest_report_header

install()  # first: from here on an import of headrace may bring a hot module

pytest_plugins = ["fix_servers", "fix_features", "fix_mariadb", "fix_mysql", "fix_streams", "fix_wire"]

__all__ = ["pytest_collection_modifyitems", "pytest_plugins", "pytest_report_header"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """A campaign takes as long as it takes."""
    if item.get_closest_marker("campaign") is not None:
        item.add_marker(pytest.mark.timeout(0))
