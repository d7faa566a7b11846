"""Times as Postgres prints them: the same moment as Python's datetime, and right where datetime ends."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fix_servers import Database
from headrace.cdc.decode.pgtime import timestamp_us

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def _printed(moment: datetime, zone: str = "") -> str:
    """As DateStyle ISO prints it: the fraction without its zeros at the end."""
    fraction = f".{moment.microsecond:06}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%d %H:%M:%S}".zfill(19) + fraction + zone


@given(moment=st.datetimes(), offset=st.integers(-15 * 60 - 59, 15 * 60 + 59))
def test_any_time_of_datetime_is_the_same_moment(moment: datetime, offset: int) -> None:
    expected = (moment.replace(tzinfo=UTC) - EPOCH) // MICROSECOND
    assert timestamp_us(_printed(moment)) == expected
    assert timestamp_us(_printed(moment, "+00")) == expected
    assert timestamp_us(_printed(moment).replace(" ", "T") + "Z") == expected
    sign, minutes = ("-", -offset) if offset < 0 else ("+", offset)
    zone = f"{sign}{minutes // 60:02}" + (f":{minutes % 60:02}" if minutes % 60 else "")
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    assert timestamp_us(_printed(moment, zone)) == (zoned - EPOCH) // MICROSECOND


@given(moment=st.datetimes(), zone=st.sampled_from(["", "+00", "Z", "+01", "-00:30"]), data=st.data())
def test_the_quick_path_and_the_thorough_one_agree_on_what_is_nearly_a_time(
    moment: datetime, zone: str, data: st.DataObject
) -> None:
    text = _printed(moment, zone)
    place = data.draw(st.integers(0, len(text) - 1))
    text = (
        text[:place] + data.draw(st.sampled_from("0123456789-:. T+Z٣")) + text[place + data.draw(st.integers(0, 1)) :]
    )
    # With a fifth digit of the year, the same moment isn't a usual text any more.
    assert timestamp_us(text) == timestamp_us("0" + text)


@given(day=st.dates())
def test_a_date_is_its_midnight(day: date) -> None:
    assert timestamp_us(f"{day.year:04}-{day:%m-%d}") == (day - date(1970, 1, 1)).days * 86_400_000_000


@pytest.mark.parametrize(
    "text",
    [
        "infinity",
        "-infinity",
        "",
        "2024-02-30",
        "2023-02-29",
        "1900-02-29",
        "2024-13-01",
        "2024-00-10",
        "2024-01-00",
        "0000-01-01",
        "2024-01-01 24:00:00",
        "2024-01-01 12:60:00",
        "2024-01-01 12:00:60",
        "2024-01-01 12:00",
        "2024-01-01 12:00:00.1234567",
        "12:00:00",
        " 2024-01-01",
        "2024-01-01\n",
        "٢٠٢٤-01-01",
        "294276-12-31 23:59:59.999999",
        "5874897-12-31",
        "01/02/2024",
    ],
)
def test_what_is_no_moment_or_beyond_64_bits_is_none(text: str) -> None:
    assert timestamp_us(text) is None


def test_the_last_microsecond_of_64_bits() -> None:
    assert timestamp_us("294247-01-10 04:00:54.775807") == 2**63 - 1
    assert timestamp_us("294247-01-10 04:00:54.775808") is None


def test_the_server_says_the_same_of_every_calendar(database: Database) -> None:
    rows = database.execute(
        """select t::text, (extract(epoch from t) * 1000000)::numeric(30)::text
           from (select timestamptz '4713-01-01 00:00:00+00 BC' + g * interval '1 year 1 month 1 day 1 hour 1.000001 second' as t
                 from generate_series(0, 270000, 97) g) s
           union all
           select d::text, (extract(epoch from d::timestamp) * 1000000)::numeric(30)::text
           from unnest(array['0001-12-31 BC', '0001-01-01', '0005-02-28 BC', '0005-02-29 BC', '10000-01-01', '294246-12-31']::date[]) d"""
    )
    assert len(rows) > 2000
    for text, expected in rows:
        assert timestamp_us(str(text)) == int(str(expected)), text
