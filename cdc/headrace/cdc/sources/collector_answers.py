"""What the collector answers that is no "ok": the documents that browser and mobile SDKs ask for before they send, and the pixel.

Shapes as the SDKs check them (analytics-next 1.84, analytics-js 3.34): settings name one integration only, or the SDK loads code from
a CDN; metrics and error reports are switched off, or they would go to the makers' own hosts. ``httpConfig`` is how a server makes the
SDKs patient: it wins over the page's own options.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

import msgspec

GIF: Final = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""One transparent pixel, 43 bytes at most."""

_RETRIES: Final = {
    "rateLimitConfig": {"maxRetryCount": 1000, "maxRetryInterval": 300, "maxRateLimitDuration": 43_200},
    "backoffConfig": {
        "maxRetryCount": 1000,
        "baseBackoffInterval": 0.5,
        "maxBackoffInterval": 60,
        "maxTotalBackoffDuration": 43_200,
        "jitterPercent": 20,
        "default4xxBehavior": "drop",
        "statusCodeOverrides": {"408": "retry", "410": "retry", "429": "retry"},
    },
}


def settings(key: str, api_host: str) -> bytes:
    """``/v1/projects/KEY/settings`` of Segment's browser and mobile SDKs. api_host: host with path, without a scheme."""
    return msgspec.json.encode(
        {
            "integrations": {
                "Segment.io": {"apiKey": key, "apiHost": api_host, "retryQueue": True, "httpConfig": _RETRIES}
            },
            "plan": {"track": {}, "identify": {}, "group": {}},
            "edgeFunction": {},
            "metrics": {"sampleRate": 0},
        }
    )


def source_config(key: str, source: str, writer: str) -> bytes:
    """``/sourceConfig`` of RudderStack's SDKs."""
    off = {"enabled": False}
    return msgspec.json.encode(
        {
            "source": {
                "id": f"{source}-{writer}",
                "name": writer,
                "writeKey": key,
                "enabled": True,
                "workspaceId": "headrace",
                "config": {"statsCollection": {"errors": off, "metrics": off}},
                "destinations": [],
                "dataplanes": {},
                "connections": [],
            },
            "updatedAt": "2026-01-01T00:00:00.000Z",
            "consentManagementMetadata": {"providers": []},
        }
    )


def etag(body: bytes) -> str:
    return f'"{blake2b(body, digest_size=8).hexdigest()}"'


def pixel_call(kind: str, query: Mapping[str, str], now_us: int) -> bytes | None:
    """The call of a pixel as an SDK would have sent it; None when there is none in it.

    Segment's pixel has all of it in ``data``, JSON in base64. RudderStack's has a parameter for each field.
    """
    data = query.get("data")
    if data:
        return _from_base64(data)
    call: dict[str, Any] = {"channel": "web", "integrations": {"All": True}}
    for field in ("anonymousId", "userId", "event", "name", "category", "messageId"):
        value = query.get(field, "").strip().strip("'\"")
        if value:
            call[field] = value
    for field in ("properties", "context"):
        if query.get(field):
            try:
                call[field] = msgspec.json.decode(query[field], type=dict[str, Any])
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return None
    if kind == "page":
        call.setdefault("name", "Unknown Page")
    elif "event" not in call:
        return None
    now = datetime.fromtimestamp(now_us / 1_000_000, UTC).isoformat()
    return msgspec.json.encode(call | {"originalTimestamp": now, "sentAt": now})


def _from_base64(data: str) -> bytes | None:
    """Either alphabet, with or without the padding; a "+" that became a space in the URL is one again."""
    text = data.replace(" ", "+").replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def anonymous_id(header: str | None) -> str | None:
    """The header AnonymousId: analytics-js sends the id's base64, others send the id."""
    if not header:
        return None
    try:
        return base64.b64decode(header, validate=True).decode() or None
    except (binascii.Error, ValueError):
        return header


def basic_key(header: str | None) -> str | None:
    """Write key of an Authorization header: user name of Basic, with or without the colon. None when it has none."""
    scheme, _, rest = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[0] or None
    except (binascii.Error, ValueError):
        return None
