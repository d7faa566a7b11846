"""Fixtures of the commands' tests."""

from __future__ import annotations

from shop_folder import only_subscriptions, shop

__all__ = ["only_subscriptions", "shop"]
