"""Steps that add to an event what is known beside it. Pure: what knows it is a function that they are given.

A field that the event brought stays as it is; what isn't known adds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import parse_qsl, quote, urlsplit

from headrace.cdc.config import CreditConfig, FetchConfig, LookupConfig
from headrace.cdc.event import key_text
from headrace.cdc.process.draft import READ_WORDS, TREES, Draft, Unfit
from headrace.cdc.process.fieldpath import GONE, FieldPath, find, parse_path, plain, put
from headrace.cdc.process.transform import Problems, Step

_UTM: Final = {
    "utm_source": "source",
    "utm_medium": "medium",
    "utm_campaign": "name",
    "utm_term": "term",
    "utm_content": "content",
    "utm_id": "id",
}
_CLICKS: Final = frozenset({"gclid", "gbraid", "wbraid", "fbclid", "msclkid", "ttclid", "dclid", "twclid", "li_fat_id"})
_MOST_CHARS: Final = 8192
_IN_URL: Final = re.compile(r"\{([^{}]+)\}")


def campaign_step() -> Step:
    """context.campaign from the utm parameters of the page's address (context.page, else properties.url), and context.clickIds."""

    def campaign(draft: Draft) -> Draft:
        query = _query(draft)
        if query:
            pairs = parse_qsl(query[:_MOST_CHARS], errors="replace", max_num_fields=200)
            found = {_UTM[name]: value for name, value in pairs if name in _UTM and value}
            clicks = {name: value for name, value in pairs if name in _CLICKS and value}
            _fill(draft, "campaign", found)
            _fill(draft, "clickIds", clicks)
        return draft

    return campaign


def _query(draft: Draft) -> str:
    context, properties = draft.tree("context"), draft.tree("properties")
    for tree, parts in ((context, ("page", "search")), (context, ("page", "url")), (properties, ("url",))):
        value = GONE if tree is None else plain(find(tree, parts))
        if isinstance(value, str) and value:
            if parts[-1] == "search":
                return value.removeprefix("?")
            try:
                return urlsplit(value[:_MOST_CHARS]).query
            except ValueError:
                return ""
    return ""


def agent_step(agent: Callable[[str], Mapping[str, Mapping[str, Any]]]) -> Step:
    """context.browser, os and device from context.userAgent."""

    def user_agent(draft: Draft) -> Draft:
        context = draft.tree("context")
        text = GONE if context is None else plain(find(context, ("userAgent",)))
        if isinstance(text, str) and text:
            for name, known in agent(text).items():
                _fill(draft, name, known)
        return draft

    return user_agent


def location_step(locate: Callable[[str], Mapping[str, Any]]) -> Step:
    """context.location from context.ip."""

    def location(draft: Draft) -> Draft:
        context = draft.tree("context")
        address = GONE if context is None else plain(find(context, ("ip",)))
        if isinstance(address, str):
            _fill(draft, "location", locate(address))
        return draft

    return location


def _fill(draft: Draft, name: str, known: Mapping[str, Any]) -> None:
    """Fields of ``context.NAME`` that the event doesn't have itself."""
    if not known:
        return
    context = draft.tree("context", is_made=True)
    assert context is not None
    there = find(context, (name,))
    if there is not GONE and not isinstance(there, dict) and plain(there) is not None:
        return
    for field, value in known.items():
        if find(context, (name, field)) is GONE and put(context, (name, field), value):
            draft.changed.add("context")


def lookup_step(config: LookupConfig, get: Callable[[Sequence[Any]], Mapping[str, Any] | None]) -> Step:
    """A captured table's row at ``into``. get: the row with these values of ``by``. Raises Problems."""
    problems: list[str] = []
    paths = [_read_path(text, f"lookup.by.{column}", problems) for column, text in config.by.items()]
    into = _into(config.into, "lookup.into", problems)
    if problems:
        raise Problems(problems)

    def lookup(draft: Draft) -> Draft:
        values = [draft.read(path) for path in paths if path is not None]
        if any(value is GONE or value is None or isinstance(value, dict | list) for value in values):
            return draft
        found = get(values)
        if found is not None:
            kept = found if not config.columns else {name: found[name] for name in config.columns if name in found}
            _put(draft, into, dict(kept))
        return draft

    return lookup


def fetch_step(config: FetchConfig, get: Callable[[str], Any]) -> Step:
    """The answer of a service at ``into``. get: what it answers at an address; LookupError: not known. Raises Problems."""
    problems: list[str] = []
    texts = _IN_URL.findall(config.url)
    paths = {text: _read_path(text, f"fetch.url: {{{text}}}", problems) for text in texts}
    into = _into(config.into, "fetch.into", problems)
    if problems:
        raise Problems(problems)

    def fetch(draft: Draft) -> Draft:
        values: dict[str, str] = {}
        for text, path in paths.items():
            value = GONE if path is None else draft.read(path)
            if value is GONE or value is None or isinstance(value, dict | list) or value == "":
                return draft
            values[text] = quote(str(value), safe="")
        try:
            found = get(_IN_URL.sub(lambda match: values[match[1]], config.url))
        except LookupError:
            return draft
        if found is not None:
            _put(draft, into, found)
        return draft

    return fetch


def credit_step(config: CreditConfig, of: Callable[[str], Sequence[tuple[int, Mapping[str, Any]]]]) -> Step:
    """The recommendation that held the item, into the event. of: a customer's records, newest first, as (time in microseconds, properties).

    Raises Problems.
    """
    problems: list[str] = []
    item = _read_path(config.item, "credit.item", problems)
    into = _into(config.into, "credit.into", problems)
    shown = None if config.impression is None else _into(config.impression, "credit.impression", problems)
    if problems:
        raise Problems(problems)
    within_us = config.within.us

    def credit(draft: Draft) -> Draft:
        customer = draft.word("key")
        assert item is not None and into is not None
        wanted = draft.read(item)
        if customer is None or wanted is GONE or wanted is None or isinstance(wanted, dict | list):
            return draft
        if draft.read(into) is not GONE:
            return draft
        now_us = draft.event.occurred_us
        for at_us, record in of(customer):
            if not 0 <= now_us - at_us <= within_us:
                continue
            items = [_item_id(each) for each in record.get(config.items) or ()]
            if key_text(wanted) in items and record.get(config.id) is not None:
                _put(draft, into, record[config.id])
                if shown is not None:
                    _put(draft, shown, items)
                return draft
        return draft

    return credit


def _item_id(item: Any) -> str | None:
    found: Any = item
    if isinstance(item, dict):
        fields = cast("dict[str, Any]", item)
        found = next((fields[name] for name in ("id", "itemId", "item_id") if name in fields), None)
    return key_text(found) if isinstance(found, str | int | float | bool) else None


def _put(draft: Draft, path: FieldPath | None, value: Any) -> None:
    assert path is not None
    tree = draft.tree(path.root, is_made=True)
    assert tree is not None
    if find(tree, path.parts) is not GONE:
        return
    if not put(tree, path.parts, value):
        raise Unfit("transform_failed", f"{path.text} lies in something that is no object")
    draft.changed.add(path.root)


def _read_path(text: str, place: str, problems: list[str]) -> FieldPath | None:
    try:
        path = parse_path(text, TREES, READ_WORDS)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None
    if not path.is_one:
        problems.append(f"{place}: * can't stand here, since it must be one place")
    return path


def _into(text: str, place: str, problems: list[str]) -> FieldPath | None:
    try:
        path = parse_path(text, TREES, frozenset())
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None
    if not path.is_one:
        problems.append(f"{place}: * can't stand here, since it must be one place")
    return path


__all__ = ["agent_step", "campaign_step", "credit_step", "fetch_step", "location_step", "lookup_step"]
