"""COPY text: every escape comes back, what COPY never writes is refused, and a real server's COPY agrees with a SELECT."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fix_servers import Database
from fold import PINNED
from headrace.cdc.decode.copytext import copy_row
from headrace.cdc.decode.pgvalue import row_kinds, text_value
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNDECODABLE

TEXT = row_kinds([25])
ESCAPES = {"\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def _written(value: str | None) -> str:
    """A value as COPY TO writes it (PostgreSQL 18 manual, COPY, "Text Format")."""
    return "\\N" if value is None else "".join(ESCAPES.get(letter, letter) for letter in value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (rb"\N", None),
        (rb"\\N", r"\N"),
        (rb"a\\Nb", r"a\Nb"),
        (rb"\\", "\\"),
        (rb"\\\\n", r"\\n"),
        (rb"\b\f\n\r\t\v\\", "\b\f\n\r\t\v\\"),
        (b"", ""),
        (rb"\\.", r"\."),
        ("Käse 🙂".encode(), "Käse 🙂"),
        (b"a\xffb", UNDECODABLE),
        (b"\\\\\xff", UNDECODABLE),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_each_escape_means_what_the_manual_says(line: bytes, value: object, end: bytes) -> None:
    assert copy_row(line + end, TEXT) == (value,)


_letters = st.text(st.sampled_from("\\\b\f\n\r\t\vNnabx.0é🙂 ") | st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(rows=st.lists(st.none() | _letters | st.integers(-(2**63), 2**63 - 1) | st.booleans(), min_size=1, max_size=6))
def test_what_copy_writes_comes_back(rows: list[Any]) -> None:
    oids = [16 if isinstance(value, bool) else 20 if isinstance(value, int) else 25 for value in rows]
    texts = [("t" if value else "f") if isinstance(value, bool) else value for value in rows]
    line = "\t".join(_written(text if text is None else str(text)) for text in texts).encode() + b"\n"
    assert repr(copy_row(line, row_kinds(oids))) == repr(tuple(rows))


@pytest.mark.parametrize(
    ("line", "oids", "said"),
    [
        (b"a\tb", [25], "a row with another number of columns than asked for (message 'COPY')"),
        (b"a", [25, 25], "a row with another number of columns than asked for (message 'COPY')"),
        (b"a", [], "a row with another number of columns than asked for (message 'COPY')"),
        (rb"a\q", [25], "an escape that COPY never writes (message 'COPY')"),
        (rb"\101", [25], "an escape that COPY never writes (message 'COPY')"),
        (rb"\x41", [25], "an escape that COPY never writes (message 'COPY')"),
        (rb"a\N", [25], "an escape that COPY never writes (message 'COPY')"),
        (rb"\.", [25], "an escape that COPY never writes (message 'COPY')"),
        (b"cut\\", [25], "an escape that COPY never writes (message 'COPY')"),
        (b"secret", [23], "a value that is no integer (message 'value')"),
        (b"", [16], "a value that is no boolean (message 'value')"),
    ],
)
def test_what_copy_never_writes_is_refused_without_quoting_it(line: bytes, oids: list[int], said: str) -> None:
    with pytest.raises(DecodeError) as raised:
        copy_row(line, row_kinds(oids))
    assert str(raised.value) == said
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_table_without_columns_has_empty_rows() -> None:
    assert copy_row(b"\n", b"") == ()


@settings(deadline=None)
@given(line=st.binary(max_size=40), oids=st.lists(st.sampled_from([16, 20, 23, 25, 700, 701, 1700]), max_size=4))
def test_arbitrary_bytes_give_a_row_of_the_asked_width_or_a_decode_error(line: bytes, oids: list[int]) -> None:
    try:
        row = copy_row(line, row_kinds(oids))
    except DecodeError:
        return
    assert len(row) == len(oids)


def test_copy_and_select_of_a_server_agree(database: Database) -> None:
    database.execute("create table t (n bigint, note text, ratio float8, flag bool, raw bytea, tags text[])")
    # Every character of the Basic Multilingual Plane's start alone and doubled, and those that COPY escapes in all pairs.
    database.execute(
        "insert into t select g, chr(g), g / 3.0, g % 2 = 0, null, array[chr(g), null] from generate_series(1, 300) g"
    )
    database.execute(
        "insert into t select null, chr(a) || chr(b) || '\\N', 'NaN', null, convert_to(chr(b), 'UTF8'), '{}' "
        "from unnest(array[8, 9, 10, 11, 12, 13, 92, 78, 110, 46]) a, unnest(array[8, 9, 10, 11, 12, 13, 92, 78, 110, 46]) b"
    )
    with psycopg.connect(database.dsn, options=PINNED) as connection:
        cursor = connection.execute("select * from t limit 0")
        assert cursor.description is not None
        kinds = row_kinds([column.type_code for column in cursor.description])
        with cursor.copy("copy t to stdout") as copy:
            copied = [copy_row(bytes(line), kinds) for line in copy]
        texts = connection.execute(
            "select n::text, note, ratio::text, left(flag::text, 1), raw::text, tags::text from t"
        )
        selected = [
            tuple(
                None if text is None else text_value(text.encode(), kind) for text, kind in zip(row, kinds, strict=True)
            )
            for row in texts.fetchall()
        ]
    assert len(copied) == 400
    assert repr(copied) == repr(selected)
