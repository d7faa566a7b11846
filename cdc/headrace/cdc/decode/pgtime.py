"""PostgreSQL's text of times, under DateStyle ISO and TimeZone UTC, as microseconds since 1970 UTC.

Follows the PostgreSQL 18 manual, "Date/Time Types": years run from 4713 BC to 294276 AD (dates: 5874897 AD), far beyond Python's
datetime, so days are counted here, in the proleptic Gregorian calendar. A hot module: Cython compiles it with the types of pgtime.pxd.
"""

from __future__ import annotations

import re

_TIMESTAMP = re.compile(
    r"(\d{4,7})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?|Z)?)?( BC)?",
    re.ASCII,
)
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_INT64_MAX = (1 << 63) - 1
_UNUSUAL = -1 << 63


def timestamp_us(text: str) -> int | None:
    """Microseconds since 1970 UTC of a date, timestamp or timestamptz; a date is its midnight, no zone means UTC.

    None for the infinities, for text that is no such time, and for the years from 294247 AD on, whose microseconds 64 bits
    can't hold.
    """
    size = len(text)
    if 19 <= size <= 29 and text[4] == "-":
        moment = _usual(text, size)
        if moment != _UNUSUAL:
            return moment
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    if year == 0 or not 1 <= month <= 12:
        return None
    if match[12]:
        year = 1 - year
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= day <= _MONTH_DAYS[month - 1] or (month == 2 and day == 29 and not is_leap):
        return None
    total = _days(year, month, day) * 86_400
    if match[4]:
        hour, minute, second = int(match[4]), int(match[5]), int(match[6])
        if hour > 23 or minute > 59 or second > 59:
            return None
        total += hour * 3600 + minute * 60 + second
    if match[8]:
        offset = int(match[9]) * 3600 + int(match[10] or 0) * 60 + int(match[11] or 0)
        total += -offset if match[8] == "+" else offset
    fraction = match[7]
    result = total * 1_000_000 + (int(fraction.ljust(6, "0")) if fraction else 0)
    return result if result <= _INT64_MAX else None


def _usual(text: str, size: int) -> int:
    """Of ``YYYY-MM-DD HH:MM:SS``, also with a fraction, with ``+00`` or ``Z``; _UNUSUAL for anything else, be it a time or not."""
    if text[7] != "-" or text[13] != ":" or text[16] != ":" or text[10] not in " T":
        return _UNUSUAL
    year = _number(text, 0, 4)
    month = _number(text, 5, 2)
    day = _number(text, 8, 2)
    hour = _number(text, 11, 2)
    minute = _number(text, 14, 2)
    second = _number(text, 17, 2)
    # 28: what is left of a month is for the other path, which knows how long each one is. A part that is no number is negative.
    if year < 1 or month < 1 or month > 12 or day < 1 or day > 28:
        return _UNUSUAL
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return _UNUSUAL
    end = 19
    fraction = 0
    if size > 19 and text[19] == ".":
        end = 20
        unit = 100_000
        while end < size and "0" <= text[end] <= "9":
            fraction += (ord(text[end]) - 48) * unit
            unit //= 10
            end += 1
        if end == 20 or end > 26:
            return _UNUSUAL
    if end != size and text[end:] not in ("+00", "Z"):
        return _UNUSUAL
    return (_days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1_000_000 + fraction


def _number(text: str, at: int, digits: int) -> int:
    """Of so many ASCII digits; -1 when one isn't."""
    number = 0
    for place in range(at, at + digits):
        digit = ord(text[place]) - 48
        if digit < 0 or digit > 9:
            return -1
        number = number * 10 + digit
    return number


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01. Years are counted from March, so that the leap day ends one."""
    if month <= 2:
        year -= 1
        month += 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719_469
