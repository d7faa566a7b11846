"""A small honest recommender, standing where Personalize or Gorse would: what customers looked at together.

A service of its own as far as headrace knows: it reads views from the log over HTTP, counts which products were looked at by the same customer one after
another, and posts for each view the three that went with it most. Headrace makes features of them, and later views name the recommendation they came from.
"""

from __future__ import annotations

import threading
import urllib.request
from collections import Counter, deque
from http.client import HTTPException
from typing import Any

import msgspec

_REMEMBERED = 10
_SHOWN = 3
_TIMEOUT_S = 10.0


class CoOccurrence:
    """Which products are looked at together."""

    def __init__(self) -> None:
        self._recent: dict[str, deque[int]] = {}
        self._together: dict[int, Counter[int]] = {}

    def saw(self, customer: str, product: int) -> list[int]:
        """Take a view into account; what goes with the product, best first."""
        recent = self._recent.setdefault(customer, deque(maxlen=_REMEMBERED))
        for other in set(recent) - {product}:
            self._together.setdefault(product, Counter())[other] += 1
            self._together.setdefault(other, Counter())[product] += 1
        recent.append(product)
        return [each for each, _ in self._together.get(product, Counter()).most_common(_SHOWN)]


class Recommender:
    """Works from a thread of its own until ``stop``. counts: recommendations of each customer that were taken."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._model = CoOccurrence()
        self._cursor = "earliest"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recommender", daemon=True)
        self.counts: dict[int, int] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Everything in the log is answered then. Stopping twice is fine."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.is_set()
            try:
                while self._page(wait_s=0 if is_last else 1):
                    pass
            except (OSError, HTTPException):
                self._stopping.wait(0.2)  # not there yet, or not any more

    def _page(self, *, wait_s: int) -> bool:
        """Read a page of views and answer each; False when there were none. A page that wasn't taken is read again."""
        address = f"{self._url}/v1/events?name=Product+Viewed&limit=1000&wait={wait_s}&from={self._cursor}"
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # our own loopback URL
            following = answer.headers["Headrace-Next"]
            views: list[dict[str, Any]] = [msgspec.json.decode(line) for line in answer.read().splitlines()]
        calls: list[dict[str, Any]] = []
        for view in views:
            items = self._model.saw(view["customer_key"], view["properties"]["product_id"])
            if items:
                # The same view has the same recommendation, however often it is posted.
                identifier = f"rec-{view['id']}"
                calls.append(
                    {
                        "type": "record",
                        "event": "Recommended",
                        "userId": view["customer_key"],
                        "messageId": identifier,
                        "properties": {"recommendationId": identifier, "items": items},
                    }
                )
        if calls:
            body = msgspec.json.encode({"batch": calls})
            request = urllib.request.Request(f"{self._url}/v1/batch?writeKey=recommender", data=body)  # noqa: S310  # as above
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310  # as above
                pass
            for call in calls:
                customer = int(call["userId"])
                self.counts[customer] = self.counts.get(customer, 0) + 1
        self._cursor = following
        return bool(views)


__all__ = ["CoOccurrence", "Recommender"]
