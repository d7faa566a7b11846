"""Global transaction ids: MySQL's sets and MariaDB's positions are different things and share no class.

Follows the MySQL 9 manual, "GTID Format and Storage" (tags included, 8.3 and later), and the MariaDB documentation, "Global Transaction ID".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from uuid import UUID

from headrace.cdc.errors import DecodeError

_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
_INTERVAL = re.compile(r"([1-9][0-9]{0,18})(?:-([1-9][0-9]{0,18}))?")
_TAG = re.compile(r"[a-z_][a-z0-9_]{0,31}", re.IGNORECASE)
_MARIADB = re.compile(r"([0-9]{1,10})-([0-9]{1,10})-([0-9]{1,20})")

Interval = tuple[int, int]
"""First and last transaction number, both in it."""


class MySQLGtidSet:
    """Which transactions of which servers: intervals by ``uuid`` or ``uuid:tag``. Immutable; equal when they hold the same ones."""

    __slots__ = ("_intervals",)

    def __init__(self, intervals: Mapping[str, Iterable[Interval]] | None = None) -> None:
        found = {source: _merged(each) for source, each in (intervals or {}).items()}
        self._intervals = {source: found[source] for source in sorted(found) if found[source]}

    @classmethod
    def parse(cls, text: str) -> MySQLGtidSet:
        """From the server's own text, such as ``@@gtid_executed``; empty for "". Raises DecodeError."""
        intervals: dict[str, list[Interval]] = {}
        for part in text.replace("\n", "").split(","):
            if not part.strip():
                continue
            uuid, *rest = part.strip().split(":")
            if _UUID.fullmatch(uuid) is None or not rest:
                raise DecodeError(f"{part.strip()!r} is no GTID set of MySQL")
            source = str(UUID(uuid))
            for word in rest:
                match = _INTERVAL.fullmatch(word.strip())
                if match is not None:
                    first, last = int(match[1]), int(match[2] or match[1])
                    if last < first:
                        raise DecodeError(f"{word.strip()!r} is no interval of transactions")
                    intervals.setdefault(source, []).append((first, last))
                elif _TAG.fullmatch(word.strip()):
                    source = f"{UUID(uuid)}:{word.strip().lower()}"
                else:
                    raise DecodeError(f"{part.strip()!r} is no GTID set of MySQL")
        return cls(intervals)

    def __str__(self) -> str:
        """As the server prints it; tags of one server each for themselves."""
        return ",".join(
            f"{source}:" + ":".join(f"{first}" if first == last else f"{first}-{last}" for first, last in each)
            for source, each in self._intervals.items()
        )

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MySQLGtidSet) and self._intervals == other._intervals

    def __hash__(self) -> int:
        return hash(str(self))

    def __bool__(self) -> bool:
        return bool(self._intervals)

    def __or__(self, other: MySQLGtidSet) -> MySQLGtidSet:
        sources = self._intervals.keys() | other._intervals.keys()
        return MySQLGtidSet({s: [*self._intervals.get(s, ()), *other._intervals.get(s, ())] for s in sources})

    def __sub__(self, other: MySQLGtidSet) -> MySQLGtidSet:
        return MySQLGtidSet({s: _without(each, other._intervals.get(s, ())) for s, each in self._intervals.items()})

    def __le__(self, other: MySQLGtidSet) -> bool:
        """Every transaction of this one is in the other."""
        return not self - other

    def with_one(self, source: str, number: int) -> MySQLGtidSet:
        """With one transaction more; the usual one, right behind the last, costs little."""
        known = self._intervals.get(source)
        if known is not None and known[-1][1] + 1 == number:
            new = MySQLGtidSet()
            new._intervals = {**self._intervals, source: (*known[:-1], (known[-1][0], number))}
            return new
        return self | MySQLGtidSet({source: [(number, number)]})

    def has(self, source: str, number: int) -> bool:
        return any(first <= number <= last for first, last in self._intervals.get(source, ()))

    def intervals(self) -> Mapping[str, tuple[Interval, ...]]:
        """By source, in order."""
        return self._intervals


def _merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for first, last in sorted(intervals):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _without(intervals: Iterable[Interval], others: Iterable[Interval]) -> list[Interval]:
    left = list(intervals)
    for first, last in others:
        kept: list[Interval] = []
        for a, b in left:
            if a < first:
                kept.append((a, min(b, first - 1)))
            if b > last:
                kept.append((max(a, last + 1), b))
        left = [(a, b) for a, b in kept if a <= b] if any(a <= last and b >= first for a, b in left) else left
    return left


class MariaDBGtids:
    """The newest transaction of each replication domain: domain -> (server, sequence). Immutable.

    The server id changes with each new primary and says nothing about order: positions are compared by sequence inside a domain.
    """

    __slots__ = ("_domains",)

    def __init__(self, domains: Mapping[int, tuple[int, int]] | None = None) -> None:
        self._domains = dict(sorted((domains or {}).items()))

    @classmethod
    def parse(cls, text: str) -> MariaDBGtids:
        """From the server's own text, such as ``@@gtid_binlog_pos``; empty for "". Raises DecodeError."""
        domains: dict[int, tuple[int, int]] = {}
        for part in text.split(","):
            if not part.strip():
                continue
            match = _MARIADB.fullmatch(part.strip())
            if match is None:
                raise DecodeError(f"{part.strip()!r} is no GTID of MariaDB")
            domain, server, sequence = int(match[1]), int(match[2]), int(match[3])
            if domain not in domains or sequence > domains[domain][1]:
                domains[domain] = (server, sequence)
        return cls(domains)

    def __str__(self) -> str:
        return ",".join(f"{domain}-{server}-{sequence}" for domain, (server, sequence) in self._domains.items())

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MariaDBGtids) and self._domains == other._domains

    def __hash__(self) -> int:
        return hash(str(self))

    def __bool__(self) -> bool:
        return bool(self._domains)

    def __le__(self, other: MariaDBGtids) -> bool:
        """In every domain of this one the other is as far or further."""
        return all(
            domain in other._domains and sequence <= other._domains[domain][1]
            for domain, (_, sequence) in self._domains.items()
        )

    def with_one(self, domain: int, server: int, sequence: int) -> MariaDBGtids:
        """With one transaction more, which is the newest of its domain."""
        domains = {**self._domains, domain: (server, sequence)}
        if domain not in self._domains:
            return MariaDBGtids(domains)
        new = MariaDBGtids.__new__(MariaDBGtids)
        new._domains = domains  # in order as they were
        return new

    def sequence(self, domain: int) -> int:
        """Of the newest transaction; 0 for none."""
        return self._domains.get(domain, (0, 0))[1]


__all__ = ["MariaDBGtids", "MySQLGtidSet"]
