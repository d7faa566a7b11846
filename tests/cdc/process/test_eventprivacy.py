"""What is hidden of SDK events and webhooks: each rule by itself; that nothing leaks is tests/scenario/test_leak.py."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cdc.config import PrivacyConfig, parse
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent, SdkPart
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.process.eventprivacy import EventPrivacy, compile_privacy, withheld
from headrace.cdc.process.privacy import Hasher

SALT = "a salt of sixteen"


def rules(*events: dict[str, Any], consent: dict[str, Any] | None = None, salt: str = SALT) -> EventPrivacy:
    tree = {"salt": salt, "events": list(events)} | ({} if consent is None else {"consent": consent})
    made = compile_privacy(msgspec.convert(tree, PrivacyConfig))
    assert made is not None
    return made


def event(properties: Any = None, context: Any = None, **fields: Any) -> CustomerEvent:
    encode = msgspec.json.encode
    made = CustomerEvent(
        "i", "track", "Bought", "u1", 1, 1, 1, "web", "", encode(properties or {}), None, "u1", "a1",
        None if context is None else encode(context), SdkPart("site", "m1", "g1", "p1"),
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def hidden(privacy: EventPrivacy, given: CustomerEvent) -> tuple[Any, Any]:
    found = privacy.hidden(given)
    assert found is not None
    return msgspec.json.decode(found.properties), None if found.context is None else msgspec.json.decode(found.context)


def test_paths_are_removed_masked_and_hashed() -> None:
    privacy = rules(
        {
            "remove": ["context.ip", "context.traits.**.email"],
            "mask": {"properties.card": "***"},
            "hash": ["properties.mail"],
        }
    )
    properties, context = hidden(
        privacy,
        event(
            {"card": 4111, "mail": "a@b.de", "total": 1.5, "none": None},
            {"ip": "1.2.3.4", "traits": {"email": "x", "deep": [{"email": "y", "age": 3}]}, "page": "p"},
        ),
    )
    assert properties == {"card": "***", "mail": Hasher(SALT)("a@b.de"), "total": 1.5, "none": None}
    assert context == {"traits": {"deep": [{"age": 3}]}, "page": "p"}


def test_hashed_ids_are_those_of_a_tables_hashed_column_and_carry_the_key_along() -> None:
    found = rules({"hash": ["user_id", "anonymous_id", "group_id", "previous_id"]}).hidden(event())
    assert found is not None
    assert found.sdk is not None
    hasher = Hasher(SALT)
    assert (found.user_id, found.anonymous_id, found.key) == (hasher("u1"), hasher("a1"), hasher("u1"))
    assert (found.sdk.group_id, found.sdk.previous_id) == (hasher("g1"), hasher("p1"))
    assert (found.sdk.message_id, found.sdk.writer) == ("m1", "site")
    assert hasher(17) == hasher("17"), "a row's number and an SDK's text are one customer"


def test_a_webhooks_customer_is_its_key() -> None:
    found = rules({"hash": ["user_id"]}).hidden(event(user_id=None, anonymous_id=None, sdk=None, key="c1"))
    assert found is not None
    assert (found.key, found.user_id) == (Hasher(SALT)("c1"), None)


def test_removed_ids_are_gone() -> None:
    found = rules({"remove": ["user_id"]}).hidden(event())
    assert found is not None
    assert (found.user_id, found.anonymous_id, found.key) == (None, "a1", "a1")


def test_null_stays_null_and_an_object_is_hashed_whole() -> None:
    properties, _ = hidden(
        rules({"hash": ["properties.a", "properties.b"], "mask": {"properties.c": "x"}}),
        event({"a": None, "b": {"x": [1]}, "c": None}),
    )
    assert properties == {"a": None, "b": Hasher(SALT)('{"x":[1]}'), "c": None}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("write to jane.doe+x@mail.example.org, please", "write to <email>, please"),
        ("card 4111 1111 1111 1111 ok", "card <card> ok"),
        ("5500-0000-0000-0004", "<card>"),
        ("378282246310005", "<card>"),
        ("4111 1111 1111 1112 is none", "4111 1111 1111 1112 is none"),
        ("order 1234567890123456 of 2024", "order 1234567890123456 of 2024"),
        ("call +49 (30) 123-4567 89 now", "call <phone> now"),
        ("+15551234567", "<phone>"),
        ("2024-01-31T12:00:00.123456Z", "2024-01-31T12:00:00.123456Z"),
        ("1 + 2 = 3, 10.50 EUR", "1 + 2 = 3, 10.50 EUR"),
        ("a@b", "a@b"),
    ],
)
def test_what_looks_like_a_persons_is_found_in_any_text(text: str, wanted: str) -> None:
    privacy = rules({"detect": ["email", "card", "phone"]})
    properties, context = hidden(privacy, event({"deep": [{"note": text}]}, {"page": {"title": text}}))
    assert properties == {"deep": [{"note": wanted}]}
    assert context == {"page": {"title": wanted}}


def test_numbers_names_and_escapes_are_searched_too() -> None:
    privacy = rules({"detect": ["email", "card"]})
    raw = (
        rb'{"n": 4111111111111111, "me@x.de": 1, "e": "me\u0040x.de", "kept": 1.10, "big": 41111111111111112345678901}'
    )
    found = privacy.hidden(msgspec.structs.replace(event(), properties=raw))
    assert found is not None
    assert msgspec.json.decode(found.properties) == {
        "n": "<card>", "<email>": 1, "e": "<email>", "kept": 1.1, "big": 41111111111111112345678901,
    }  # fmt: skip
    assert b"1.10" in found.properties


def test_cards_of_every_length_with_a_right_digit_are_found_and_others_are_not() -> None:
    rng = random.Random(5)
    privacy = rules({"detect": ["card"]})
    wrong = 0
    for length in range(13, 20):
        for _ in range(30):
            digits = "".join(str(rng.randrange(10)) for _ in range(length - 1))
            right = next(str(last) for last in range(10) if luhn(digits + str(last)))
            for last in "0123456789":
                properties, _ = hidden(privacy, event({"t": f"x {digits}{last} y"}))
                assert properties == {"t": "x <card> y" if last == right else f"x {digits}{last} y"}, "seed 5"
                wrong += last != right
    assert wrong


def luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        number = int(digit) * (1 + place % 2)
        total += number // 10 + number % 10
    return total % 10 == 0


@pytest.mark.parametrize(
    ("context", "missing", "is_taken"),
    [
        ({"consent": {"categoryPreferences": {"analytics": True, "ads": False}}}, "drop", True),
        ({"consent": {"categoryPreferences": {"analytics": False}}}, "keep", False),
        ({"consent": {"categoryPreferences": {"ads": True}}}, "keep", False),
        ({"consent": {"categoryPreferences": {"analytics": "yes"}}}, "keep", False),
        ({"consentManagement": {"deniedConsentIds": ["ads"]}}, "drop", True),
        ({"consentManagement": {"deniedConsentIds": ["analytics"]}}, "keep", False),
        ({"consentManagement": {"allowedConsentIds": ["ads"]}}, "keep", False),
        ({"consentManagement": {"allowedConsentIds": ["analytics"]}}, "drop", True),
        ({}, "drop", False),
        ({}, "keep", True),
        (None, "drop", False),
        ({"consent": "yes"}, "drop", False),
    ],
)
def test_without_consent_an_event_goes_nowhere(context: Any, missing: str, is_taken: bool) -> None:
    privacy = rules(consent={"needs": ["analytics"], "missing": missing})
    assert (privacy.hidden(event({}, context)) is not None) is is_taken
    assert privacy.refused == (not is_taken)


def test_a_rule_concerns_only_what_its_when_says() -> None:
    privacy = rules({"when": {"kinds": ["identify"]}, "remove": ["properties.a"]})
    assert hidden(privacy, event({"a": 1}))[0] == {"a": 1}
    assert hidden(privacy, event({"a": 1}, kind="identify"))[0] == {}


@pytest.mark.parametrize(
    ("privacy", "words"),
    [
        ({"events": [{}]}, r"privacy\.events\[0\].*at least one of remove, mask, hash and detect"),
        ({"events": [{"remove": ["email"]}]}, r"privacy\.events\[0\]\.remove\[0\]: \"email\" begins with nothing of an event"),
        ({"events": [{"hash": ["properties.a"]}]}, r"privacy\.events\[0\]\.hash: needs a secret under privacy\.salt"),
        ({"events": [{"mask": {"user_id": "x"}}]}, r"privacy\.events\[0\]\.mask\.user_id"),
        ({"events": [{"when": {"tables": ["t"]}, "remove": ["context.ip"]}]}, r"events\.TABLE\.columns"),
        ({"events": [{"detect": ["names"]}]}, r"privacy\.events\[0\]\.detect\[0\]"),
        ({"consent": {"needs": []}}, r"privacy\.consent\.needs"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_with_its_path(privacy: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_pipeline(parse({"sources": {"web": {"type": "http"}}, "privacy": privacy}, folder=Path()))
    assert any(re.search(words, problem) for problem in refused.value.problems), refused.value.problems


def test_a_withheld_body_says_its_size_and_nothing_else() -> None:
    assert msgspec.json.decode(withheld(b"secret")) == {
        "withheld": 6,
        "why": "privacy hides parts of events, and this was none yet",
    }
