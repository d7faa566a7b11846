"""AWS Personalize's records and their limits, as its service model has them (personalize-events, API version 2018-03-22).

botocore itself checks only what is required and minimal lengths; here every limit and pattern is held, so that an event which the service
would refuse is named before it takes nine others' request down. Builds the records as JSON bytes. Pure.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any, Final, cast

import msgspec

from headrace.sinks.base import Unfit

MAX_RECORDS: Final = 10
MAX_ID: Final = 256
MAX_RECOMMENDATION_ID: Final = 40
MAX_IMPRESSION: Final = 25
MAX_PROPERTIES: Final = {
    "events": 1_024,
    "users": 24_000,
    "items": 32_000,
    "actions": 32_000,
    "action_interactions": 1_024,
}
"""Of the properties' JSON text, by call."""
MAX_EVENT_BYTES: Final = 10_240
MAX_ATTRIBUTION: Final = 1_024
ARN: Final = re.compile(r"arn:([a-z\d-]+):personalize:.*:.*:.+")
_ATTRIBUTION: Final = re.compile(r"[\x20-\x7E]*[\x21-\x7E]+[\x20-\x7E]*")
ACTION_EVENTS: Final = frozenset({"Viewed", "Taken", "Not Taken"})

RESERVED: Final = frozenset({"userId", "sessionId", "eventType", "timestamp", "recommendationId", "impression"})
"""Names that a property can't have, in the service's own spelling."""

PATHS: Final = {
    "events": "/events",
    "users": "/users",
    "items": "/items",
    "actions": "/actions",
    "action_interactions": "/action-interactions",
}
_LISTS: Final = {
    "events": "eventList",
    "users": "users",
    "items": "items",
    "actions": "actions",
    "action_interactions": "actionInteractions",
}
_ID_FIELDS: Final = {"users": "userId", "items": "itemId", "actions": "actionId"}


def text(value: Any, field: str, longest: int = MAX_ID) -> str:
    """A needed text of 1 to ``longest`` characters; numbers and booleans are spelled. Raises Unfit."""
    if value is None:
        raise Unfit(f"it has no {field}")
    found = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if not 1 <= len(found) <= longest:
        raise Unfit(f"its {field} has {len(found)} characters; 1 to {longest} are allowed")
    return found


def number(value: Any, field: str) -> float:
    """A finite number; a numeric column comes as text. Raises Unfit."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise Unfit(f"its {field} is no number") from None
    if isinstance(value, bool) or not math.isfinite(found):
        raise Unfit(f"its {field} is no finite number")
    return found


def event_id(identity: str) -> str:
    """The event's id as the service's idempotency key: itself, or its digest where it is too long."""
    return identity if len(identity) <= MAX_ID else hashlib.sha256(identity.encode()).hexdigest()


def properties(value: Any, call: str) -> str | None:
    """The JSON text that the service wants in place of an object; None for nothing. Raises Unfit."""
    if not value:
        return None
    if not isinstance(value, dict):
        raise Unfit("its properties are no object")
    wrong = RESERVED & cast("dict[str, Any]", value).keys()
    if wrong:
        raise Unfit(f"its properties hold the reserved name {min(wrong)}")
    spelled = msgspec.json.encode(value).decode()
    if len(spelled) > MAX_PROPERTIES[call]:
        raise Unfit(f"its properties take {len(spelled)} characters; {MAX_PROPERTIES[call]} are allowed")
    return spelled


def impression(value: Any) -> list[str] | None:
    """1 to 25 item ids, None for nothing. Raises Unfit."""
    if not value:
        return None
    if not isinstance(value, list):
        raise Unfit("its impression is no list")
    found = cast("list[Any]", value)
    if len(found) > MAX_IMPRESSION:
        raise Unfit(f"its impression has {len(found)} items; {MAX_IMPRESSION} are allowed")
    return [text(item, "impression's item") for item in found]


def attribution(value: Any) -> str | None:
    """Printable ASCII that isn't blank, at most 1,024. Raises Unfit."""
    if value is None:
        return None
    found = text(value, "attribution source", MAX_ATTRIBUTION)
    if _ATTRIBUTION.fullmatch(found) is None:
        raise Unfit("its attribution source isn't printable ASCII")
    return found


def event_record(
    *,
    identity: str,
    event_type: Any,
    occurred_us: int,
    item_id: Any = None,
    value: Any = None,
    recommendation_id: Any = None,
    impressions: Any = None,
    attribution_source: Any = None,
    extra: Any = None,
) -> bytes:
    """One entry of PutEvents' eventList. occurred_us: on the wire it is whole seconds. Raises Unfit."""
    made: dict[str, Any] = {"eventId": event_id(identity), "eventType": text(event_type, "event type")}
    if value is not None:
        made["eventValue"] = number(value, "value")
    if item_id is not None:
        made["itemId"] = text(item_id, "item id")
    spelled = properties(extra, "events")
    if spelled is not None:
        made["properties"] = spelled
    made["sentAt"] = occurred_us // 1_000_000
    if recommendation_id is not None:
        made["recommendationId"] = text(recommendation_id, "recommendation id", MAX_RECOMMENDATION_ID)
    shown = impression(impressions)
    if shown is not None:
        made["impression"] = shown
    source = attribution(attribution_source)
    if source is not None:
        made["metricAttribution"] = {"eventAttributionSource": source}
    record = msgspec.json.encode(made)
    if len(record) > MAX_EVENT_BYTES:
        raise Unfit(f"it takes {len(record)} bytes; {MAX_EVENT_BYTES} are allowed")
    return record


def entity_record(call: str, *, identity: Any, extra: Any = None) -> bytes:
    """One user, item or action. Raises Unfit."""
    field = _ID_FIELDS[call]
    made: dict[str, Any] = {field: text(identity, field)}
    spelled = properties(extra, call)
    if spelled is not None:
        made["properties"] = spelled
    return msgspec.json.encode(made)


def interaction_record(
    *,
    identity: str,
    action_id: Any,
    user_id: Any,
    session_id: Any,
    event_type: Any,
    occurred_us: int,
    recommendation_id: Any = None,
    impressions: Any = None,
    extra: Any = None,
) -> bytes:
    """One entry of PutActionInteractions. Raises Unfit."""
    kind = text(event_type, "event type")
    if kind not in ACTION_EVENTS:
        raise Unfit(f"its event type is none of {', '.join(sorted(ACTION_EVENTS))}")
    made: dict[str, Any] = {"actionId": text(action_id, "action id")}
    if user_id is not None:
        made["userId"] = text(user_id, "user id")
    made |= {
        "sessionId": text(session_id, "session id"),
        "timestamp": occurred_us // 1_000_000,
        "eventType": kind,
        "eventId": event_id(identity),
    }
    if recommendation_id is not None:
        made["recommendationId"] = text(recommendation_id, "recommendation id", MAX_RECOMMENDATION_ID)
    shown = impression(impressions)
    if shown is not None:
        made["impression"] = shown
    spelled = properties(extra, "action_interactions")
    if spelled is not None:
        made["properties"] = spelled
    return msgspec.json.encode(made)


def request_body(call: str, head: bytes, records: list[bytes]) -> bytes:
    """A request. head: its fields but the list, as a JSON object that isn't empty."""
    return b'%b,"%b":[%b]}' % (head[:-1], _LISTS[call].encode(), b",".join(records))


__all__ = [
    "ARN", "MAX_RECORDS", "PATHS", "RESERVED", "entity_record", "event_record", "interaction_record", "request_body", "text",
]  # fmt: skip
