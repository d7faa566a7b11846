"""PostgreSQL's text of times, under DateStyle ISO and TimeZone UTC, as microseconds since 1970 UTC.

Follows the PostgreSQL 18 manual, "Date/Time Types": years run from 4713 BC to 294276 AD, far beyond Python's datetime, so days
are counted here, in the proleptic Gregorian calendar.
"""

from __future__ import annotations

import re

_TIMESTAMP = re.compile(
    r"(\d{4,6})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?|Z)?)?( BC)?"
)


def timestamp_us(text: str) -> int | None:
    """Microseconds since 1970 UTC of a date, timestamp or timestamptz; a date is its midnight, no zone means UTC.

    None for the infinities and for text that is no such time.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    if match[12]:
        year = 1 - year
    total = _days(year, month, day) * 86_400
    if match[4]:
        total += int(match[4]) * 3600 + int(match[5]) * 60 + int(match[6])
    if match[8]:
        offset = int(match[9]) * 3600 + int(match[10] or 0) * 60 + int(match[11] or 0)
        total += -offset if match[8] == "+" else offset
    fraction = match[7]
    return total * 1_000_000 + (int(fraction.ljust(6, "0")) if fraction else 0)


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01. Years are counted from March, so that the leap day ends one."""
    if month <= 2:
        year -= 1
        month += 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719_469
