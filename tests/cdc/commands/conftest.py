"""Fixtures of the commands' tests."""

from __future__ import annotations

from shop_folder import shop

__all__ = ["shop"]
