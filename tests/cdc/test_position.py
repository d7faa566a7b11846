"""Positions: their text goes both ways, their order is commit order, and other text is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cdc.errors import DecodeError
from headrace.cdc.position import PostgresPosition, format_lsn, parse_lsn

lsns = st.integers(0, 2**64 - 1)
positions = st.builds(PostgresPosition, lsns, st.integers(0, 2**63 - 1))


def test_an_lsn_reads_as_postgres_prints_it() -> None:
    assert format_lsn(0x16_B374D848) == "16/B374D848"
    assert format_lsn(0x1_0000000A) == "1/A"
    assert parse_lsn("16/b374d848") == 0x16_B374D848
    assert parse_lsn("16/0B374D8") == 0x16_00B374D8


@given(lsn=lsns)
def test_any_lsn_comes_back_from_its_text(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


@pytest.mark.parametrize(
    "text",
    ["", "/", "16", "16/", "/16", "0x1/0", "1_0/0", "-1/0", " 1/0", "1/0 ", "1/0\n", "1/2/3", "g/0", "1/123456789", "123456789/0", "٣/0"],
)  # fmt: skip
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(DecodeError, match="is not an LSN"):
        parse_lsn(text)


@given(position=positions)
def test_any_position_comes_back_from_its_text_and_its_bytes(position: PostgresPosition) -> None:
    assert PostgresPosition.parse(str(position)) == position
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(position), type=PostgresPosition) == position


@given(first=positions, second=positions)
def test_order_is_by_commit_then_by_place_in_the_transaction(first: PostgresPosition, second: PostgresPosition) -> None:
    def place(position: PostgresPosition) -> tuple[int, int]:
        return position.commit_end_lsn, position.ordinal

    assert (first < second) == (place(first) < place(second))
    assert (first == second) == (place(first) == place(second))


@pytest.mark.parametrize(
    "text", ["", "1/0", "1/0:", ":1", "1/0:-1", "1/0:²", "1/0:1_0", "1/0:1:2", "1/0:x", "1/0: 1", "1/0:1\n"]
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        PostgresPosition.parse(text)


@given(text=st.text(max_size=20) | st.text("0123456789abcdefABCDEF/:-+_x ", max_size=20))
def test_arbitrary_text_is_a_position_or_a_decode_error(text: str) -> None:
    try:
        position = PostgresPosition.parse(text)
    except DecodeError:
        return
    assert PostgresPosition.parse(str(position)) == position
