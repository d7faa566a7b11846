"""What of the events of SDKs and webhooks may be known at all: hidden before the plan, the steps, the dead letters and the log. Pure.

Rows have ``events.TABLE.columns`` for this (privacy.py). Rules apply in their order: a path is removed, masked or hashed, and texts are searched for
what looks like an e-mail address, a payment card (with a right check digit) or a telephone number. A hash is that of a table's hashed column, so
a hashed ``user_id`` and a hashed customer column are the same customer. Without the consent that is asked for an event goes nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias, cast

import msgspec

from headrace.cdc.config import ConsentConfig, EventPrivacyConfig, PrivacyConfig
from headrace.cdc.event import CustomerEvent, SdkPart, key_text
from headrace.cdc.process.draft import TREES, Draft
from headrace.cdc.process.fieldpath import GONE, FieldPath, Gone, Node, find, keys_of, opened, parse_path, plain, visit
from headrace.cdc.process.privacy import Hasher
from headrace.cdc.process.transform import Problems, compile_when

_Rule: TypeAlias = Callable[[Draft], None]
_SDK_WORDS: Final = frozenset({"group_id", "previous_id"})
_HASHED_WORDS: Final = frozenset({"user_id", "anonymous_id"}) | _SDK_WORDS

_EMAIL: Final = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[\w-]+(?:\.[\w-]+)+")
_CARD: Final = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.]*\d)")
_PHONE: Final = re.compile(r"(?<![\w+])\+\d(?:[ ().\/-]{0,2}\d){7,14}(?!\d)")
_HINT: Final = re.compile(rb"@|\+\d|\d(?:[ -]?\d){12}")
"""No byte of what is looked for can stand in JSON without one of these, escapes in it aside."""


class EventPrivacy:
    """The rules of one configuration. Holds no event."""

    def __init__(self, rules: Sequence[_Rule], consent: Callable[[Draft], bool] | None) -> None:
        self._rules = tuple(rules)
        self._consent = consent
        self.refused = 0
        """Events without the consent that is asked for, since the start."""

    def hidden(self, event: CustomerEvent) -> CustomerEvent | None:
        """The event as it may be known; None without consent."""
        draft = Draft(event)
        if self._consent is not None and not self._consent(draft):
            self.refused += 1
            return None
        for rule in self._rules:
            rule(draft)
        return draft.done()


def compile_privacy(config: PrivacyConfig) -> EventPrivacy | None:
    """None when nothing of events is hidden. Raises Problems, each line with its path below ``privacy``."""
    if not config.events and config.consent is None:
        return None
    problems: list[str] = []
    hasher = Hasher(config.salt, config.key_id) if config.salt else None
    rules: list[_Rule] = []
    for number, rule in enumerate(config.events):
        rules += _compiled(rule, f"events[{number}]", hasher, problems)
    if problems:
        raise Problems(problems)
    return EventPrivacy(rules, None if config.consent is None else _consent(config.consent))


def withheld(body: bytes) -> bytes:
    """In place of a body that was refused before anything of it could be hidden."""
    return msgspec.json.encode({"withheld": len(body), "why": "privacy hides parts of events, and this was none yet"})


def _compiled(config: EventPrivacyConfig, place: str, hasher: Hasher | None, problems: list[str]) -> Iterator[_Rule]:
    try:
        when = compile_when(config.when)
    except Problems as found:
        problems += [f"{place}.{line}" for line in found.lines]
        return
    if config.when.tables:
        problems.append(f"{place}.when.tables: rows have events.TABLE.columns for what is hidden")
    rules: list[_Rule] = []
    for at, text in enumerate(config.remove):
        path = _path(text, f"{place}.remove[{at}]", problems, frozenset({"user_id", "anonymous_id"}))
        if path is not None:
            rules.append(_changed(path, lambda node: GONE))
    for text, mask in config.mask.items():
        path = _path(text, f"{place}.mask.{text}", problems, frozenset())
        if path is not None:
            rules.append(_changed(path, _masking(mask)))
    for at, text in enumerate(config.hash):
        path = _path(text, f"{place}.hash[{at}]", problems, _HASHED_WORDS)
        if hasher is None:
            problems.append(f'{place}.hash: needs a secret under privacy.salt, such as "${{SALT}}"')
            break
        if path is not None:
            rules.append(_changed(path, _hashing(hasher)))
    if config.detect:
        rules.append(_detecting(config.detect))
    for rule in rules:
        yield rule if when is None else _only(when, rule)


def _only(when: Callable[[Draft], bool], rule: _Rule) -> _Rule:
    def only(draft: Draft) -> None:
        if when(draft):
            rule(draft)

    return only


def _path(text: str, place: str, problems: list[str], words: frozenset[str]) -> FieldPath | None:
    try:
        return parse_path(text, TREES, words)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None


def _changed(path: FieldPath, act: Callable[[Node], Node | Gone]) -> _Rule:
    """Every value at the path, whatever it is, becomes what act answers."""

    def change(draft: Draft) -> None:
        if path.root in _SDK_WORDS:
            draft.event = _with_sdk_word(draft.event, path.root, act)
        elif not path.parts:
            # A webhook's customer is a key and no more.
            is_key = path.root == "user_id" and draft.word("user_id") is None and draft.word("anonymous_id") is None
            name = "key" if is_key else path.root
            word = draft.word(name)
            if word is not None:
                value = act(word)
                draft.write_word(name, None if value is GONE else value)
        else:
            tree = draft.tree(path.root)
            if tree is not None and visit(tree, path.parts, act):
                draft.changed.add(path.root)

    return change


def _with_sdk_word(event: CustomerEvent, name: str, act: Callable[[Node], Node | Gone]) -> CustomerEvent:
    sdk: SdkPart | None = event.sdk
    word: str | None = None if sdk is None else getattr(sdk, name)
    if sdk is None or word is None:
        return event
    value = act(word)
    fields: dict[str, Any] = {name: None if value is GONE else value}
    return msgspec.structs.replace(event, sdk=msgspec.structs.replace(sdk, **fields))


def _masking(mask: str) -> Callable[[Node], Node | Gone]:
    return lambda node: node if plain(node) is None else mask


def _hashing(hasher: Hasher) -> Callable[[Node], Node | Gone]:
    def hashed(node: Node) -> Node:
        value = plain(node)
        if value is None:
            return node
        if isinstance(value, str | int | float | bool):
            return hasher(key_text(value))
        # An object or array, or a number that Python can't say: its bytes.
        return hasher(msgspec.json.encode(node).decode())

    return hashed


def _detecting(kinds: Sequence[str]) -> _Rule:
    patterns = [(pattern, mask) for kind, pattern, mask in _DETECTORS if kind in kinds]

    def act(text: str) -> str:
        for pattern, mask in patterns:
            text = pattern(text, mask)
        return text

    def detect(draft: Draft) -> None:
        for root in TREES:
            raw = getattr(draft.event, root)
            # A backslash may hide a sign of what is looked for.
            if root not in draft.changed and (raw is None or (b"\\" not in raw and _HINT.search(raw) is None)):
                continue
            tree = draft.tree(root)
            if tree is not None and _searched(tree, act):
                draft.changed.add(root)

    return detect


def _searched(node: Any, act: Callable[[str], str]) -> bool:
    """Every text and every name below an object or array, whole numbers too."""
    is_changed = False
    for key in keys_of(node):
        child = node[key] = opened(node[key])
        if isinstance(child, dict | list):
            is_changed |= _searched(child, act)
        else:
            value = plain(child)
            text = value if isinstance(value, str) else str(value) if type(value) is int else ""
            found = act(text)
            if found != text:
                node[key] = found
                is_changed = True
        if isinstance(key, str) and (name := act(key)) != key:
            node[name] = node.pop(key)
            is_changed = True
    return is_changed


def _by_pattern(pattern: re.Pattern[str]) -> Callable[[str, str], str]:
    return lambda text, mask: pattern.sub(mask, text)


def _cards(text: str, mask: str) -> str:
    return _CARD.sub(lambda found: mask if _is_card(found.group()) else found.group(), text)


def _is_card(text: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1)."""
    digits = [int(sign) for sign in text if sign.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


_DETECTORS: Final[tuple[tuple[str, Callable[[str, str], str], str], ...]] = (
    ("email", _by_pattern(_EMAIL), "<email>"),
    ("phone", _by_pattern(_PHONE), "<phone>"),
    ("card", _cards, "<card>"),
)


def _consent(config: ConsentConfig) -> Callable[[Draft], bool]:
    """Segment's context.consent.categoryPreferences, and RudderStack's context.consentManagement."""
    needs = config.needs

    def is_given(draft: Draft) -> bool:
        context = draft.tree("context")
        if context is None:
            return config.missing == "keep"
        preferences = _plain_dict(find(context, ("consent", "categoryPreferences")))
        if preferences is not None:
            return all(preferences.get(need) is True for need in needs)
        management = _plain_dict(find(context, ("consentManagement",)))
        if management is not None:
            denied: Any = management.get("deniedConsentIds") or []
            allowed: Any = management.get("allowedConsentIds")
            return all(need not in denied and (allowed is None or need in allowed) for need in needs)
        return config.missing == "keep"

    return is_given


def _plain_dict(node: Any) -> dict[str, Any] | None:
    if node is GONE:
        return None
    value = msgspec.json.decode(msgspec.json.encode(node))
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


__all__ = ["EventPrivacy", "compile_privacy", "withheld"]
