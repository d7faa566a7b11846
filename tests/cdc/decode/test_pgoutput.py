"""Real streams of Postgres 15 and 18 (tests/wire/) decode to exactly what was done on the server."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from fix_wire import MAJORS, Decoded, corpus, decode, feed_all
from headrace.cdc.decode.tableversion import TableVersion
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNCHANGED, Change, Column
from headrace.cdc.position import PostgresPosition

LONG, FULL, KEY = "long " * 500, "full " * 500, "key " * 600
ITEM_1 = (
    1, -32768, True, 0.1, "12.50", LONG, "2024-02-29 11:00:00.000001+00", "sad", "7", '{"a": "ä", "b": [1.10, null]}',
    "\\x00ff", '{a,NULL,"NULL"}', '(1,"x y")', "ab  ",
)  # fmt: skip
ITEM_2 = (
    2, None, False, "NaN", "NaN", 'tab\t nl\n \\N "q" 🙂', "-infinity", "it's fine", None, None, "\\x", "{}", None, "    "
)  # fmt: skip
ITEM_MAX = (
    9223372036854775807, 0, None, "-Infinity", "-0.01", "", "0044-03-15 00:00:00+00 BC", None, "1", "null", None, None, "(,)", None,
)  # fmt: skip
ONLY_KEY = (UNCHANGED,) * 13
ODD = 'Odd.Schema.Table "q"'

# The workload of tests/wire/capture.py, one list a transaction: (op, table, before, after).
EXPECTED: list[list[tuple[str, str, Any, Any]]] = [
    [("insert", "public.item", None, row) for row in (ITEM_1, ITEM_2, ITEM_MAX)],
    [("update", "public.item", None, (1, 5, *ITEM_1[2:5], UNCHANGED, *ITEM_1[6:]))],
    [("update", "public.item", (2, *ONLY_KEY), (3, *ITEM_2[1:]))],
    [
        ("delete", "public.item", (3, *ONLY_KEY), None),
        ("delete", "public.item", (9223372036854775807, *ONLY_KEY), None),
    ],
    [
        ("insert", "public.whole", None, (1, FULL)),
        ("insert", "public.whole", None, (1, None)),
        ("insert", "public.whole", None, (1, None)),
        ("update", "public.whole", (1, FULL), (2, FULL)),  # the stream says "unchanged"; the old row has it
        ("delete", "public.whole", (1, None), None),
    ],
    [("insert", "public.mute", None, (None,))],
    [
        ("insert", "public.indexed", None, (1, "one", None)),
        ("update", "public.indexed", None, (1, "one", "x")),
        ("update", "public.indexed", (UNCHANGED, "one", UNCHANGED), (1, "uno", "x")),
        ("delete", "public.indexed", (UNCHANGED, "uno", UNCHANGED), None),
    ],
    [("insert", "public.wordy", None, (KEY, 1)), ("update", "public.wordy", (KEY, UNCHANGED), (UNCHANGED, 2))],
    [("insert", ODD, None, (-1, "from"))],
    [
        ("insert", "public.parent", None, (1, "n")),
        ("insert", "public.parent", None, (2, "s")),
        ("delete", "public.parent", (1, "n"), None),  # a row that moves to another partition
        ("insert", "public.parent", None, (1, "s")),
    ],
    [("insert", "public.growing", None, (1,))],
    [("insert", "public.growing", None, (2, "new"))],
    [("insert", "public.growing", None, (3,))],
    [("insert", "public.growing", None, (4,)), ("insert", "public.growing", None, (6,))],
    [
        ("insert", "public.growing", None, (7,)),
        ("truncate", "public.growing", None, None),
        ("insert", "public.growing", None, (8,)),
    ],
    [("truncate", "public.item", None, None), ("truncate", "public.whole", None, None)],
    [("insert", "public.growing", None, (9,))],
    [("insert", "public.growing", None, (number,)) for number in range(10, 15)],
]

versions = pytest.mark.parametrize("major", MAJORS)


def _plain(change: Change) -> tuple[str, str, Any, Any]:
    return change.op, change.table.name, change.before, change.after


@versions
@pytest.mark.parametrize("gulp", [1, 7, 1000])
def test_the_stream_decodes_to_what_was_done_however_it_is_cut_into_reads(
    pgoutput: ModuleType, major: int, gulp: int
) -> None:
    source = corpus(major)
    decoded = decode(pgoutput, source, source.frames, gulp=gulp)
    assert decoded.error == ""
    transactions = [[_plain(change) for change in changes] for *_, changes in decoded.transactions]
    assert transactions == EXPECTED
    # bool is an int and 0.0 equals False: equality alone would hide a value of another type.
    assert repr(transactions) == repr(EXPECTED)


@versions
def test_positions_ids_and_flags_name_each_change_once_in_commit_order(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    decoded = decode(pgoutput, source, source.frames)
    positions = [PostgresPosition.parse(change.position) for change in decoded.changes]
    assert positions == sorted(set(positions))
    for xid, end_lsn, commit_us, _, changes in decoded.transactions:
        assert [change.ordinal for change in changes] == list(range(len(changes)))
        assert [change.is_last for change in changes] == [False] * (len(changes) - 1) + [True]
        assert {change.xid for change in changes} == {xid}
        assert {change.committed_us for change in changes} == {commit_us}
        for change in changes:
            assert PostgresPosition.parse(change.position) == PostgresPosition(end_lsn, change.ordinal)
            assert change.id == f"t-{end_lsn:X}-{change.ordinal}"
    times = [commit_us for _, _, commit_us, _, _ in decoded.transactions]
    assert min(times) > 1_700_000_000_000_000 and max(times) <= decoded.seen["server_time_us"] < 2_000_000_000_000_000
    assert decoded.seen["wal_end"] >= decoded.transactions[-1][1]


@versions
def test_tables_are_announced_with_keys_types_and_versions(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    decoded = decode(pgoutput, source, source.frames)
    tables = {change.table.name: change.table for change in decoded.changes}
    described = {
        name: (table.identity, tuple(table.columns[index].name for index in table.key), table.version)
        for name, table in tables.items()
    }
    assert described == {
        "public.item": ("d", ("id",), 1),
        "public.whole": ("f", (), 1),
        "public.mute": ("n", (), 1),
        "public.indexed": ("i", ("code",), 1),
        "public.wordy": ("d", ("name",), 1),
        ODD: ("d", ("Käse",), 1),
        "public.parent": ("d", ("id", "region"), 1),
        "public.growing": ("d", ("id",), 3),
    }
    columns = {column.name: column for column in tables["public.item"].columns}
    assert "gone" not in columns  # a dropped column is absent, not NULL
    assert columns["price"] == Column("price", 1700, "numeric", (10 << 16 | 2) + 4)
    assert columns["id"] == Column("id", 20, "int8", -1)
    assert {name: columns[name].type_name for name in ("amount", "mood", "pair", "tags", "code")} == {
        "amount": "positive",
        "mood": "mood",
        "pair": "pair",
        "tags": "_text",
        "code": "bpchar",
    }


@versions
def test_a_type_the_catalogue_did_not_name_is_named_by_the_stream(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    mood = next(oid for oid, name in source.type_names.items() if name == "mood")
    del source.type_names[mood]
    item = decode(pgoutput, source, source.frames).changes[0].table
    assert [column.type_name for column in item.columns if column.type_oid == mood] == ["mood"]


@versions
def test_a_primary_key_is_asked_for_before_anything_of_its_table_is_kept(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    decoder = pgoutput.PgOutputDecoder("t-", dict(source.type_names), {}, {})
    at = decoder.feed(source.frames)
    oid = decoder.wants_key_of
    assert oid and source.frames[at][25:30] == b"R" + oid.to_bytes(4, "big")
    assert oid not in decoder.relations and oid not in decoder.versions
    feed_all(decoder, source.frames[at:], source)
    done = [_plain(change) for transaction in decoder.transactions for change in transaction.changes]
    assert done == [change for transaction in EXPECTED for change in transaction]


def test_a_primary_key_makes_the_key_of_a_table_with_full_identity(pgoutput: ModuleType) -> None:
    source = corpus(18)
    probe = decode(pgoutput, source, source.frames)
    oid = next(change.table.oid for change in probe.changes if change.table.name == "public.whole")
    source.primary_keys[oid] = ("note", "a")
    tables = {change.table.name: change.table for change in decode(pgoutput, source, source.frames).changes}
    assert tables["public.whole"].key == (1, 0)


@versions
def test_transactions_up_to_skip_until_are_dropped_whole(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    whole = decode(pgoutput, source, source.frames)
    for kept in range(len(whole.transactions)):
        decoder = pgoutput.PgOutputDecoder("t-", dict(source.type_names), dict(source.primary_keys), {})
        decoder.skip_until = whole.transactions[kept][1]
        feed_all(decoder, source.frames, source)
        assert [t.end_lsn for t in decoder.transactions] == [end for _, end, *_ in whole.transactions[kept + 1 :]]


@versions
def test_a_cut_connection_leaves_nothing_of_its_open_transaction(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    whole = decode(pgoutput, source, source.frames)
    for cut in range(0, len(source.frames), 5):
        decoder = pgoutput.PgOutputDecoder("t-", dict(source.type_names), {}, {})
        feed_all(decoder, source.frames[:cut], source)
        done = list(decoder.transactions)
        decoder.forget_connection()
        assert (decoder.transactions, decoder.relations, decoder.in_transaction) == ([], {}, False)
        decoder.skip_until = done[-1].end_lsn if done else 0
        feed_all(decoder, source.frames, source)  # the server begins again with the first unconfirmed transaction
        changes = [change for transaction in done + decoder.transactions for change in transaction.changes]
        assert [_whole(change) for change in changes] == [_whole(change) for change in whole.changes]


def _whole(change: Change) -> tuple[Any, ...]:
    return (change.id, change.table, change.op, change.before, change.after)


@versions
def test_a_version_belongs_to_what_the_log_lacks_and_to_nothing_else(pgoutput: ModuleType, major: int) -> None:
    """Stop anywhere, keep what was committed by then, read again from any earlier place: the same versions and news."""
    source = corpus(major)
    whole = decode(pgoutput, source, source.frames)
    expected = [
        (news.table.version, change.id)
        for transaction in _transactions(pgoutput, source, source.frames, {}, 0)
        for news in transaction.news
        for change in [transaction.changes[news.ordinal]]
    ]
    assert [version for version, _ in expected].count(3) == 1  # public.growing has three
    for cut in range(0, len(source.frames), 3):
        known: dict[int, Any] = {}
        done = _transactions(pgoutput, source, source.frames[:cut], known, 0)
        done += _transactions(pgoutput, source, source.frames, known, done[-1].end_lsn if done else 0)
        assert [t.end_lsn for t in done] == [end for _, end, *_ in whole.transactions]
        found = [(news.table.version, t.changes[news.ordinal].id) for t in done for news in t.news]
        assert found == expected, f"cut at frame {cut}"


def _transactions(
    pgoutput: ModuleType, source: Any, frames: list[bytes], known: dict[int, Any], skip_until: int
) -> list[Any]:
    decoder = pgoutput.PgOutputDecoder("t-", dict(source.type_names), dict(source.primary_keys), known)
    decoder.skip_until = skip_until
    feed_all(decoder, frames, source)
    return list(decoder.transactions)


def test_versions_survive_a_restart(pgoutput: ModuleType) -> None:
    source = corpus(18)
    versions: dict[int, TableVersion] = {}
    tables = []
    for _ in range(2):
        decoder = pgoutput.PgOutputDecoder("t-", dict(source.type_names), dict(source.primary_keys), versions)
        feed_all(decoder, source.frames[:14], source)
        tables += [change.table for transaction in decoder.transactions for change in transaction.changes]
    assert tables and {table.version for table in tables} == {1}


def test_the_keepalive_that_wants_a_reply_is_told_from_one_that_does_not(pgoutput: ModuleType) -> None:
    decoder = pgoutput.PgOutputDecoder("t-", {}, {}, {})
    quiet = b"k" + (7).to_bytes(8, "big") + (-1).to_bytes(8, "big", signed=True) + b"\0"
    decoder.feed([quiet])
    assert (decoder.wal_end, decoder.reply_requested) == (7, False)
    assert decoder.server_time_us == 946_684_800_000_000 - 1  # times before 2000 are negative on the wire
    decoder.feed([quiet[:-1] + b"\1"])
    assert decoder.reply_requested is True


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"", "empty frame (message 'frame', byte 0)"),
        (b"x", "unknown frame (message 'x', byte 0)"),
        (b"w" + bytes(23), "frame is shorter than its head (message 'w', byte 24)"),
        (
            b"k" + bytes(22),
            "keepalive is not 18 bytes long (message 'k', byte 23)",
        ),  # once read as a row by compiled code
        (b"w" + bytes(24) + b"Z" + bytes(9), "unknown message (message 'Z', byte 25)"),
        (b"w" + bytes(24) + b"M" + bytes(3), "message ends too early (message 'M', byte 29)"),
        (
            b"w" + bytes(24) + b"M\1" + bytes(8) + b"p\0" + bytes(4),
            "a logical message on the wrong side of a commit (message 'M', byte 26)",
        ),
        (
            b"w" + bytes(24) + b"M\0" + bytes(8) + b"p\0" + bytes(5),
            "a logical message of another length than said (message 'M', byte 37)",
        ),
        (b"w" + bytes(24) + b"B" + bytes(19), "a begin that is not 21 bytes long (message 'B', byte 45)"),
        (b"w" + bytes(24) + b"C" + bytes(25), "a commit without its begin (message 'C', byte 25)"),
        (b"w" + bytes(24) + b"I" + bytes(9), "a row outside a transaction (message 'I', byte 25)"),
        (b"w" + bytes(24) + b"T" + bytes(9), "a truncate outside a transaction (message 'T', byte 25)"),
        (b"w" + bytes(24) + b"R" + bytes(3), "message ends too early (message 'R', byte 29)"),
        (b"w" + bytes(24) + b"R" + bytes(4) + b"name", "a name without its end (message 'name', byte 34)"),
    ],
)
def test_a_broken_frame_is_named_by_kind_and_byte(pgoutput: ModuleType, frame: bytes, said: str) -> None:
    with pytest.raises(DecodeError) as raised:
        pgoutput.PgOutputDecoder("t-", {}, {}, {}).feed([frame])
    assert str(raised.value) == said


def test_row_data_never_stands_in_an_error(pgoutput: ModuleType) -> None:
    source = corpus(18)
    insert = next(index for index, frame in enumerate(source.frames) if frame[:1] == b"w" and frame[25:26] == b"I")
    frames = list(source.frames)
    frames[insert] = frames[insert].replace(b"-32768", b"secret")
    with pytest.raises(DecodeError) as raised:
        feed_all(pgoutput.PgOutputDecoder("t-", {}, dict(source.primary_keys), {}), frames, source)
    assert str(raised.value) == "a value that is no integer (message 'value')"
    chain = raised.value
    assert chain.__cause__ is None and chain.__suppress_context__


@pytest.mark.parametrize(
    ("data", "oid", "value"),
    [
        (b"-9223372036854775808", 20, -(2**63)),
        (b"9223372036854775808", 20, None),
        (b"9" * 5000, 20, None),
        (b"", 23, None),
        (b"t", 16, True),
        (b"true", 16, None),
        (b"0.1", 701, 0.1),
        (b"-0", 701, -0.0),
        (b"5e-324", 701, 5e-324),
        (b"-Infinity", 700, "-Infinity"),
        (b"nan", 700, None),
        (b"1e999", 701, None),
        (b"x", 700, None),
        (b"1.10", 1700, "1.10"),
    ],
)
def test_a_value_is_exact_or_refused(pgoutput: ModuleType, data: bytes, oid: int, value: object) -> None:
    (kind,) = pgoutput.row_kinds([oid])
    if value is None:
        with pytest.raises(DecodeError):
            pgoutput.text_value(data, kind)
    else:
        assert repr(pgoutput.text_value(data, kind)) == repr(value)


def test_both_builds_agree_on_the_corpus() -> None:
    from fix_wire import compiled, pure

    if compiled is None:
        pytest.skip("pgoutput isn't compiled here: install with a C compiler and without HEADRACE_COMPILE=0")
    for major in MAJORS:
        source = corpus(major)
        results: list[Decoded] = [decode(module, source, source.frames) for module in (compiled, pure)]
        assert results[0] == results[1]
