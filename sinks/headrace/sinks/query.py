"""What a reader of ``/v1/stream`` and ``/v1/events`` asks for: from where, which events, in which form.

Owns the query's grammar and the text of a cursor; refuses to know how events are read or written. A cursor is
``generation.offset-offset-...`` with the next offset of every partition, or ``generation.partition@offset`` for a reader of one
partition. It is text to hand back, not to take apart: only this file reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Self, TypeAlias, TypeVar, get_args

import msgspec
from multidict import MultiMapping

from headrace.cdc.config import TransformWhen
from headrace.cdc.errors import ServerError
from headrace.cdc.event import CustomerEvent, Kind
from headrace.cdc.eventfilter import EventFilter
from headrace.cdc.process.draft import Draft, Unfit
from headrace.cdc.process.transform import Problems, compile_when
from headrace.sinks.envelope import Envelope

_T = TypeVar("_T")

Slow: TypeAlias = Literal["block", "skip", "disconnect"]
"""What becomes of a reader that falls behind; see slow.py."""

_COMMON: Final = (
    "from",
    "partition",
    "name",
    "kind",
    "table",
    "key",
    "where",
    "share",
    "heartbeats",
    "envelope",
    "format",
    "subscription",
)
_PULL: Final = (*_COMMON, "limit", "wait")
_PUSH: Final = (*_COMMON, "slow", "behind")
_MAX_LIMIT = 10_000
_BEHIND = 10_000
_MOST_BEHIND = 1_000_000_000
_MAX_WAIT_S = 60.0
_MAX_FILTER_VALUES = 1_000
_MAX_CONDITIONS = 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class RequestError(ServerError):
    """A request that can't be answered as asked. status: the HTTP status that says so; parameter: the query's, or ""."""

    advice = "correct the request"

    def __init__(self, message: str, *, status: int = 400, parameter: str = "", advice: str | None = None) -> None:
        super().__init__(message, advice=advice)
        self.status = status
        self.parameter = parameter


class Place(msgspec.Struct):
    """Where a reader stands: the next offset of each partition it follows."""

    generation: str
    offsets: dict[int, int]
    is_partial: bool = False
    """One partition of several: the cursor names it."""

    def cursor(self) -> str:
        """The place as text."""
        partition, offset = next(iter(self.offsets.items()))
        before, after = self.split(partition)
        return f"{before}{offset}{after}"

    def split(self, partition: int) -> tuple[str, str]:
        """The cursor's text before and after the offset of one partition."""
        if self.is_partial:
            return f"{self.generation}.{partition}@", ""
        before = "".join(f"{offset}-" for index, offset in self.offsets.items() if index < partition)
        after = "".join(f"-{offset}" for index, offset in self.offsets.items() if index > partition)
        return f"{self.generation}.{before}", after


class Query(msgspec.Struct, frozen=True):
    """The checked query. start: ``earliest``, ``latest``, an offset or a cursor; "" when the reader didn't say."""

    start: str
    partition: int | None
    filter: EventFilter
    envelope: Envelope
    limit: int = 1_000
    wait_s: float = 0.0
    subscription: str | None = None
    """Name under which the place is kept, with the share in it."""
    slow: Slow = "block"
    behind: int = _BEHIND

    @classmethod
    def parse(cls, query: MultiMapping[str], *, partitions: int, is_pull: bool) -> Self:
        """Check every parameter. is_pull: ``limit`` and ``wait`` are known too. Raises RequestError that names the parameter."""
        known = _PULL if is_pull else _PUSH
        for name in query:
            if name not in known:
                raise _bad(name, f"is unknown here; known: {', '.join(known)}")
        filters = EventFilter(
            names=_values(query, "name"),
            kinds=_values(query, "kind", get_args(Kind)),
            tables=_values(query, "table"),
            keys=_values(query, "key"),
            has_heartbeats=_choice(query, "heartbeats", {"0": False, "1": True}, default="0"),
            share=_share(query),
            where=_where(query),
        )
        subscription = None
        if "subscription" in query:
            subscription = _single(query, "subscription")
            if _NAME.fullmatch(subscription) is None:
                raise _bad("subscription", "must be 1 to 64 letters, digits, - or _, beginning with a letter or digit")
            if filters.share is not None:
                subscription += f".{filters.share[0]}-{filters.share[1]}"
        partition = _number(query, "partition", 0, partitions - 1) if "partition" in query else None
        wait_s = 0.0
        if "wait" in query:
            text = _single(query, "wait")
            if re.fullmatch(r"\d{1,3}(\.\d{1,6})?", text) is None or float(text) > _MAX_WAIT_S:
                raise _bad("wait", f"must be seconds from 0 to {_MAX_WAIT_S:.0f}")
            wait_s = float(text)
        return cls(
            start=_single(query, "from") if "from" in query else "",
            partition=partition,
            filter=filters,
            envelope=_envelope(query),
            limit=_number(query, "limit", 1, _MAX_LIMIT) if "limit" in query else 1_000,
            wait_s=wait_s,
            subscription=subscription,
            slow=_choice(
                query, "slow", {"block": "block", "skip": "skip", "disconnect": "disconnect"}, default="block"
            ),
            behind=_number(query, "behind", 1, _MOST_BEHIND) if "behind" in query else _BEHIND,
        )


def parse_cursor(
    text: str, *, generation: str, partitions: int, partition: int | None, parameter: str
) -> dict[int, int]:
    """Offsets that a cursor holds, by partition.

    parameter: what it came in, for messages. Raises RequestError: 400 when it is no cursor or doesn't fit ``partition``; 409 when
    it is one of another log.
    """
    match = re.fullmatch(r"(.+)\.(?:(\d{1,18}(?:-\d{1,18})*)|(\d{1,9})@(\d{1,18}))", text)
    if match is None:
        raise _bad(parameter, "must be earliest, latest, an offset, or a cursor that an earlier answer gave")
    if match[1] != generation:
        raise RequestError(
            f"the cursor in {parameter} belongs to another log than this one: its offsets mean nothing here",
            status=409,
            parameter=parameter,
            advice="start again with from=earliest, or from=latest to leave out what was before",
        )
    if match[3] is not None:
        lane = int(match[3])
        if lane >= partitions or (partition is not None and partition != lane):
            raise _bad(parameter, f"is a cursor of partition {lane}, which isn't the one asked for")
        return {lane: int(match[4])}
    offsets = dict(enumerate(int(word) for word in match[2].split("-")))
    if len(offsets) != partitions:
        raise _bad(parameter, f"is a cursor of {len(offsets)} partitions; this log has {partitions}")
    return offsets if partition is None else {partition: offsets[partition]}


def _share(query: MultiMapping[str]) -> tuple[int, int] | None:
    if "share" not in query:
        return None
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", _single(query, "share"))
    if match is None or not int(match[1]) < int(match[2]):
        raise _bad("share", "must be I/N with I from 0 to N - 1, such as 0/4, 1/4, 2/4 and 3/4 for four subscribers")
    return int(match[1]), int(match[2])


def _where(query: MultiMapping[str]) -> Callable[[CustomerEvent], bool] | None:
    """The conditions of a pipeline's step, as a JSON object."""
    if "where" not in query:
        return None
    try:
        where = msgspec.json.decode(_single(query, "where"), type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise _bad("where", 'must be a JSON object, such as {"properties.total": {"above": 100}}') from None
    if len(where) > _MAX_CONDITIONS:
        raise _bad("where", f"has more than {_MAX_CONDITIONS} conditions")
    try:
        test = compile_when(TransformWhen(where=where))
    except Problems as problems:
        raise _bad("where", "; ".join(line.removeprefix("when.where.") for line in problems.lines)) from None
    if test is None:
        return None
    return _Where(msgspec.json.encode(where, order="sorted"), test)


class _Where:
    """Conditions, equal to others that say the same: what passes is then found once for both."""

    __slots__ = ("_test", "_text")

    def __init__(self, text: bytes, test: Callable[[Draft], bool]) -> None:
        self._text = text
        self._test = test

    def __call__(self, event: CustomerEvent) -> bool:
        try:
            return self._test(Draft(event))
        except (msgspec.DecodeError, Unfit):
            return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Where) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def _envelope(query: MultiMapping[str]) -> Envelope:
    """``format`` and ``envelope`` are two names of one parameter: the former is what readers of other streams look for."""
    if "format" in query and "envelope" in query:
        raise _bad("format", "is another name of envelope: give one of the two")
    known: dict[str, Envelope] = {form: form for form in get_args(Envelope)}
    return _choice(query, "format" if "format" in query else "envelope", known, default="headrace")


def _bad(parameter: str, reason: str) -> RequestError:
    return RequestError(
        f"parameter {parameter}: {reason}", parameter=parameter, advice=f"correct the parameter {parameter}"
    )


def _single(query: MultiMapping[str], name: str) -> str:
    values = query.getall(name)
    if len(values) > 1:
        raise _bad(name, "is given more than once")
    return values[0]


def _number(query: MultiMapping[str], name: str, low: int, high: int) -> int:
    text = _single(query, name)
    if re.fullmatch(r"[0-9]{1,18}", text) is None or not low <= int(text) <= high:
        raise _bad(name, f"must be a whole number from {low} to {high}")
    return int(text)


def _choice(query: MultiMapping[str], name: str, known: Mapping[str, _T], *, default: str) -> _T:
    text = _single(query, name) if name in query else default
    if text not in known:
        raise _bad(name, f"must be one of {', '.join(known)}")
    return known[text]


def _values(query: MultiMapping[str], name: str, known: tuple[str, ...] = ()) -> frozenset[str]:
    values = frozenset(query.getall(name, []))
    if len(values) > _MAX_FILTER_VALUES:
        raise _bad(name, f"is given more than {_MAX_FILTER_VALUES} times")
    for value in values:
        if not value:
            raise _bad(name, "is empty")
        if known and value not in known:
            raise _bad(name, f"must be one of {', '.join(known)}")
    return values
