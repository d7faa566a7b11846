"""Fixtures of the whole suite."""

from __future__ import annotations

pytest_plugins = ["fix_servers", "fix_wire"]
