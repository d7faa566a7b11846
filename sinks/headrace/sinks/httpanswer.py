"""What an HTTP destination's answer means for each event of the request, by its definition. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from headrace.sinks.base import Item
from headrace.sinks.httpdefinition import AnswerConfig, CodesConfig, ItemsConfig, ReturnsConfig
from headrace.sinks.transport import Reply, retry_after_s
from headrace.sinks.verdict import (
    AGAIN,
    DELIVERED,
    Answer,
    Fault,
    FaultKind,
    Outcome,
    Returned,
    Verdict,
    outage,
    refused,
    retry,
)

_LONGEST_REASON = 200
_MOST_RETURNED_BYTES = 256 << 10


def read_answer(rules: AnswerConfig, reply: Reply, items: Sequence[Item], *, host: str, now_s: float) -> Answer:
    """now_s: seconds since 1970, for dates in headers."""
    status = reply.status
    after_s = _after(rules, reply, now_s)
    fault = None if rules.codes is None else _by_code(rules.codes, reply, host, after_s)
    fault = fault or _fault(rules, status, str(status), host, after_s)
    if fault is not None:
        return fault
    if 300 <= status < 400 and status not in rules.done:
        return Fault(FaultKind.DENIED, f"{host} redirects ({status}): give the URL that it means")
    if status in rules.partly:
        return Fault(FaultKind.BAD_BATCH, f"{host} refuses events of a request ({status})")
    is_fine = 200 <= status < 300 or status in rules.done
    if rules.items is not None and status in rules.items.statuses:
        found = _by_item(rules, rules.items, reply, items, is_fine=is_fine)
        if found is not None:
            return found
    if is_fine:
        return [DELIVERED] * len(items)
    return Fault(FaultKind.BAD_BATCH, f"{host} answers {status}")


def _fault(
    rules: AnswerConfig | CodesConfig, code: int | str, shown: str, host: str, after_s: float | None
) -> Fault | None:
    """What a code that is listed means for the whole request; shown: how a reason names it."""
    if code in rules.slow_down:
        return Fault(FaultKind.THROTTLED, f"{host} asks to slow down ({shown})", after_s)
    if code in rules.retry:
        return outage(f"{host} answers {shown}", after_s)
    if code in rules.denied:
        return Fault(FaultKind.DENIED, f"{host} refuses our credentials ({shown}): correct them, or their rights there")
    if code in rules.split:
        return Fault(FaultKind.TOO_LARGE, f"{host} finds a request too large ({shown})")
    return None


def _by_code(codes: CodesConfig, reply: Reply, host: str, after_s: float | None) -> Fault | None:
    """By the first code of the body that is listed; it is in the reason, since the definition knows it: never the body's own words."""
    try:
        found = _at(msgspec.json.decode(reply.body), codes.path)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    for code in cast("list[Any]", found) if isinstance(found, list) else (found,):
        if isinstance(code, int | str):
            fault = _fault(codes, code, f"{reply.status}, {code}", host, after_s)
            if fault is not None:
                return fault
    return None


def with_returned(rules: ReturnsConfig, answer: Answer, body: bytes) -> Answer:
    """The verdict on a request of one event, with what comes back of its answer."""
    if isinstance(answer, Fault) or answer[0].outcome is not Outcome.DELIVERED:
        return answer
    return [Verdict(Outcome.DELIVERED, returned=returned_part(rules, body))]


def returned_part(rules: ReturnsConfig, body: bytes) -> Returned | None:
    """What of an answer comes back; None when it has no object and no list there, or more than 256 KiB."""
    part = msgspec.Raw(body)
    try:
        for key in rules.path.split(".") if rules.path else ():
            part = msgspec.json.decode(part, type=dict[str, msgspec.Raw])[key]
        # Its own spelling is kept: a number may have more digits than a float.
        found = bytes(part).strip()
        tree = msgspec.json.decode(found, type=dict[str, msgspec.Raw] | list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return None
    if len(found) > _MOST_RETURNED_BYTES:
        return None
    return Returned(rules.name, b'{"items":%b}' % found if isinstance(tree, list) else found)


def _by_item(
    rules: AnswerConfig, where: ItemsConfig, reply: Reply, items: Sequence[Item], *, is_fine: bool
) -> list[Verdict] | None:
    """None when the answer has no such list. Events that a list of failures doesn't name are delivered, or come again as ``others`` says."""
    try:
        tree = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    verdicts: list[Verdict] = [DELIVERED if is_fine or where.others == "delivered" else AGAIN] * len(items)
    if where.places:
        named = {place for path in where.places for place in _places(tree, path.split(".")) if place < len(items)}
        named_or_not = [refused("refused") if place in named else verdict for place, verdict in enumerate(verdicts)]
        return named_or_not if is_fine or named else None
    tree = _at(tree, where.path)
    if not isinstance(tree, list):
        return None
    entries = cast("list[Any]", tree)
    if not where.index and not where.id:
        # One entry an event, in order.
        return [_verdict(rules, where, entry) for entry in entries] if len(entries) == len(items) else None
    places = {item.event.id: place for place, item in enumerate(items)} if where.id else {}
    is_known = False
    for entry in entries:
        fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        place = places.get(str(fields.get(where.id))) if where.id else fields.get(where.index)
        if isinstance(place, int) and 0 <= place < len(items):
            verdicts[place] = _verdict(rules, where, entry)
            is_known = True
    # A refusal that names none of our events says nothing of the others either.
    return verdicts if is_fine or is_known else None


def _verdict(rules: AnswerConfig, where: ItemsConfig, entry: Any) -> Verdict:
    fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    code = fields.get(where.code) if where.code else None
    if isinstance(code, str) and code.isdigit():
        code = int(code)
    if isinstance(code, int):
        if 200 <= code < 300 or code in rules.done:
            return DELIVERED
        if code in rules.retry or code in rules.slow_down:
            return retry(f"it answers {code}")
    reason = _at(entry, where.reason) if where.reason else None
    words = f"it answers {code}" if code is not None else "refused"
    return refused(f"{words}: {reason}"[:_LONGEST_REASON] if isinstance(reason, str) and reason else words)


def _places(tree: Any, path: list[str]) -> Iterator[int]:
    """The whole numbers of every list at a path."""
    if not path:
        if isinstance(tree, list):
            # bool is an int, and no place.
            yield from (place for place in cast("list[Any]", tree) if type(place) is int and place >= 0)
    elif isinstance(tree, dict):
        fields = cast("dict[str, Any]", tree)
        for part in fields.values() if path[0] == "*" else (fields.get(path[0]),):
            yield from _places(part, path[1:])


def _at(tree: Any, path: str) -> Any:
    """What stands at a dotted path, None for nothing."""
    for key in path.split(".") if path else ():
        tree = cast("dict[str, Any]", tree).get(key) if isinstance(tree, dict) else None
    return tree


def _after(rules: AnswerConfig, reply: Reply, now_s: float) -> float | None:
    found = (retry_after_s(reply.headers.get(name.lower()), now_s) for name in rules.retry_after)
    return next((after_s for after_s in found if after_s is not None), None)


__all__ = ["read_answer", "returned_part", "with_returned"]
