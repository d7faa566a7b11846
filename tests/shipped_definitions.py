"""The shipped definitions as tests load them: with made-up credentials, and an event that each of them wants."""

from __future__ import annotations

import msgspec

from headrace.cdc.config import load_part
from headrace.cdc.event import CustomerEvent, Kind
from headrace.sinks.httpdefinition import Destination
from headrace.sinks.shipped import FOLDER

ENVIRON = {
    "AMPLITUDE_API_KEY": "k", "CIO_SITE_ID": "site", "CIO_API_KEY": "key", "MIXPANEL_API_SECRET": "s", "SEGMENT_WRITE_KEY": "w",
    "POSTHOG_API_KEY": "k", "SLACK_WEBHOOK_URL": "https://hooks.example/services/T/B/x", "GA4_MEASUREMENT_ID": "G-1",
    "GA4_API_SECRET": "s", "FACEBOOK_PIXEL_ID": "42", "FACEBOOK_TOKEN": "tok", "BRAZE_HOST": "rest.example", "BRAZE_API_KEY": "k",
    "KLAVIYO_API_KEY": "k", "INTERCOM_TOKEN": "t", "HUBSPOT_TOKEN": "t", "GORSE_URL": "https://gorse.example", "GORSE_API_KEY": "k",
    "RECOMBEE_HOST": "rapi.recombee.com", "RECOMBEE_DATABASE": "db", "RECOMBEE_TOKEN": "tok", "RECOMMENDER_URL": "https://rec.example/v1/events", "RECOMMENDER_TOKEN": "t",
}  # fmt: skip
SAID = {"item_id": "i1", "email": "Ann@Example.com"}
AT = "2023-11-14T22:13:20.123Z"
AT_S, AT_MS, AT_US = 1_700_000_000, 1_700_000_000_123, 1_700_000_000_123_456


def event(number: int = 7, kind: Kind = "track") -> CustomerEvent:
    context = b'{"ip":"192.0.2.1","userAgent":"UA","traits":{"email":" Ann@Example.com "}}'
    return CustomerEvent(
        f"web-{number}",
        kind,
        "Item Viewed",
        "u1",
        AT_US,
        AT_US,
        AT_US,
        "web",
        "",
        msgspec.json.encode(SAID),
        None,
        "u1",
        "v1",
        context,
    )


def kind_of(name: str) -> Kind:
    return "identify" if name == "hubspot" else "track"


def loaded(name: str) -> Destination:
    return load_part(FOLDER / f"{name}.yaml", Destination, ENVIRON)
