"""GTIDs: set algebra against plain sets, and the servers' own texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.errors import DecodeError

A, B = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4350f323-7565-4e59-8763-4b1b83a0ce0e"

_numbers = st.dictionaries(st.sampled_from([A, B, f"{A}:tag"]), st.sets(st.integers(1, 40)), max_size=3)
Plain = dict[str, set[int]]


def as_set(plain: Plain) -> MySQLGtidSet:
    return MySQLGtidSet({source: [(n, n) for n in numbers] for source, numbers in plain.items()})


def as_plain(gtids: MySQLGtidSet) -> Plain:
    return {
        source: {n for first, last in each for n in range(first, last + 1)}
        for source, each in gtids.intervals().items()
    }


def tidy(plain: Plain) -> Plain:
    return {source: numbers for source, numbers in plain.items() if numbers}


@given(_numbers, _numbers)
def test_a_set_behaves_as_a_set(one: Plain, other: Plain) -> None:
    a, b = as_set(one), as_set(other)
    keys = one.keys() | other.keys()
    assert as_plain(a | b) == tidy({key: one.get(key, set()) | other.get(key, set()) for key in keys})
    assert as_plain(a - b) == tidy({key: one.get(key, set()) - other.get(key, set()) for key in keys})
    assert (a <= b) == all(numbers <= other.get(key, set()) for key, numbers in one.items())
    assert MySQLGtidSet.parse(str(a)) == a
    assert bool(a) == bool(tidy(one))
    with_one = a.with_one(B, 41)
    assert as_plain(with_one) == tidy({**one, B: one.get(B, set()) | {41}})
    assert with_one.has(B, 41) and not a.has(B, 41)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", {}),
        (f"{A}:1-3:11:47-49", f"{A}:1-3:11:47-49"),
        (f"{A.upper()}:23,\n{B}:3-9:1-2", f"{A}:23,{B}:1-9"),
        (f"{A}:5-6:Tag:1-2:7", f"{A}:5-6,{A}:tag:1-2:7"),
        (A.replace("-", "") + ":7", f"{A}:7"),
    ],
)
def test_what_a_server_prints_is_read(text: str, plain: str | dict[str, str]) -> None:
    assert str(MySQLGtidSet.parse(text)) == (plain or "")


@pytest.mark.parametrize("text", [A, f"{A}:0", f"{A}:3-2", f"{A}:x y", "0-1-2", f"{A}:1-2-3", "\x00"])
def test_what_is_no_set_of_mysql_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        MySQLGtidSet.parse(text)


def test_mariadbs_positions_go_by_domain_and_number() -> None:
    here = MariaDBGtids.parse("0-1-100,5-2-7")
    assert str(here) == "0-1-100,5-2-7"
    assert here <= MariaDBGtids.parse("5-9-7,0-2-101"), "another server took over"
    assert not here <= MariaDBGtids.parse("0-1-200")
    assert not here <= MariaDBGtids.parse("0-1-99,5-2-7")
    assert MariaDBGtids() <= here
    assert here.with_one(0, 3, 102).sequence(0) == 102
    assert str(MariaDBGtids.parse("0-1-5,0-2-9,0-1-7")) == "0-2-9"
    for text in ("0-1", "a-b-c", A + ":1", "0-1-2;"):
        with pytest.raises(DecodeError):
            MariaDBGtids.parse(text)
