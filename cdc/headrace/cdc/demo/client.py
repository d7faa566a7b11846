"""What the demo asks a running headrace over HTTP, as any client would."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any

import msgspec

from headrace.cdc.demo.proof import FEATURES, Rows
from headrace.cdc.errors import HeadraceError

_NOT_READY = 503
_TIMEOUT_S = 10.0
_ENTITIES_A_REQUEST = 1_000


class Client:
    """Blocking calls to one server; None when it doesn't answer (yet). Raises HeadraceError for an answer that is a defect."""

    def __init__(self, url: str) -> None:
        self.url = url

    def is_ready(self) -> bool:
        return self._ask("/readyz") is not None

    def status(self) -> dict[str, Any] | None:
        return self._ask("/v1/status")

    def rows(self, view: str, ids: Sequence[int]) -> Rows | None:
        """The view's features of these entities; one without a row is left out."""
        join_key, features = FEATURES[view]
        found: Rows = {}
        for first in range(0, len(ids), _ENTITIES_A_REQUEST):
            asked = list(ids[first : first + _ENTITIES_A_REQUEST])
            answer = self._ask(
                "/get-online-features",
                {"features": [f"{view}:{feature}" for feature in features], "entities": {join_key: asked}},
            )
            if answer is None:
                return None
            columns = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
            for place, entity in enumerate(asked):
                if columns[features[0]]["statuses"][place] != "NOT_FOUND":
                    found[entity] = tuple(columns[feature]["values"][place] for feature in features)
        return found

    def first(self, customer: int) -> int | None:
        """What is recommended to a customer first, now."""
        answer = self._ask(
            "/get-online-features",
            {"features": ["customer_recommendations:first"], "entities": {"customer_id": [customer]}},
        )
        found: int | None = None if answer is None else answer["results"][1]["values"][0]
        return found

    def _ask(self, path: str, body: object = None) -> dict[str, Any] | None:
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})  # noqa: S310  # our own loopback URL
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310  # as above
                return msgspec.json.decode(answer.read(), type=dict[str, Any])
        except urllib.error.HTTPError as error:
            if error.code != _NOT_READY:
                raise HeadraceError(f"headrace answered {path} with {error.code} {error.reason}") from error
            return None
        except (urllib.error.URLError, HTTPException, OSError):
            return None
