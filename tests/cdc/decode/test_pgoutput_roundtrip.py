"""What the encoder writes from random tables and rows, the decoder gives back."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pgoutput_encoder as encode
from headrace.cdc.event import UNCHANGED, UNDECODABLE

ours = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

# (type OID, strategy of (bytes on the wire, value)).
_bigint = st.integers(-(2**63), 2**63 - 1).map(lambda number: (str(number).encode(), number))
_bool = st.booleans().map(lambda flag: (b"t" if flag else b"f", flag))
_float = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: (repr(number).encode(), number))
_float_word = st.sampled_from(["NaN", "Infinity", "-Infinity"]).map(lambda word: (word.encode(), word))
_text = st.text().map(lambda text: (text.encode(), text))
_broken = st.sampled_from([b"\xff", b"a\xc3", b"\xed\xa0\x80"]).map(lambda data: (data, UNDECODABLE))
KINDS: list[tuple[int, Any]] = [
    (20, _bigint), (16, _bool), (701, _float | _float_word), (25, _text | _broken), (1700, _text), (99999, _text)
]  # fmt: skip

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[tuple[str, int, int, bool]], list[Any]]:
    """(identity, columns as the encoder takes them, one value strategy a column)."""
    columns, values = [], []
    for name in draw(st.lists(names, min_size=1, max_size=6, unique=True)):
        oid, kind = draw(st.sampled_from(KINDS))
        columns.append((name, oid, draw(st.integers(-1, 1 << 30)), draw(st.booleans())))
        values.append(st.just((None, None)) | kind)
    return draw(st.sampled_from("dfni")), columns, values


@ours
@given(data=st.data())
def test_random_tables_and_rows_come_back(pgoutput: ModuleType, data: st.DataObject) -> None:
    draw = data.draw
    identity, columns, kinds = draw(tables())
    flags = [is_key for *_, is_key in columns]

    def image() -> list[tuple[Any, Any]]:
        return [draw(kind) for kind in kinds]

    frames = [encode.relation(7, "s", "t", identity, columns)]
    expected: list[list[tuple[str, Any, Any]]] = []
    commit_us = draw(st.integers(0, 1 << 60))
    for number in range(draw(st.integers(1, 3))):
        frames.append(encode.begin(100 * number, commit_us, number))
        changes: list[tuple[str, Any, Any]] = []
        for op in draw(st.lists(st.sampled_from(["insert", "update", "delete", "truncate"]), max_size=5)):
            new, old = image(), image()
            letter = draw(st.sampled_from("KO"))
            sent = [wire if letter == "O" or is_key else None for (wire, _), is_key in zip(old, flags, strict=True)]
            known = tuple(
                v if letter == "O" or is_key else UNCHANGED for (_, v), is_key in zip(old, flags, strict=True)
            )
            if op == "insert":
                frames.append(encode.insert(7, [wire for wire, _ in new]))
                changes.append((op, None, tuple(value for _, value in new)))
            elif op == "delete":
                frames.append(encode.delete(7, (letter, sent)))
                changes.append((op, known, None))
            elif op == "truncate":
                frames.append(encode.truncate([7]))
                changes.append((op, None, None))
            else:
                has_old = draw(st.booleans())
                unsent = [draw(st.booleans()) for _ in columns]
                wires = [UNCHANGED if left_out else wire for (wire, _), left_out in zip(new, unsent, strict=True)]
                frames.append(encode.update(7, (letter, sent) if has_old else None, wires))
                filled = [
                    (former if has_old and letter == "O" else UNCHANGED) if left_out else value
                    for (_, value), left_out, former in zip(new, unsent, known, strict=True)
                ]
                changes.append((op, known if has_old else None, tuple(filled)))
        frames.append(encode.commit(100 * number, 100 * number + 50, commit_us))
        expected.append(changes)
    decoder = pgoutput.PgOutputDecoder("t-", {}, {7: ()}, {})
    assert decoder.feed(frames) == len(frames)
    came = [[(c.op, c.before, c.after) for c in transaction.changes] for transaction in decoder.transactions]
    assert repr(came) == repr(expected)  # repr tells 1 from True and 0.0 from -0.0
    assert [transaction.commit_us for transaction in decoder.transactions] == [commit_us] * len(expected)
    for transaction in decoder.transactions:
        for change in transaction.changes:
            assert [(c.name, c.type_oid, c.modifier) for c in change.table.columns] == [
                column[:3] for column in columns
            ]
            keyed = identity in "di"
            assert change.table.key == tuple(index for index, is_key in enumerate(flags) if is_key and keyed)


@ours
@given(
    wal_end=st.integers(0, 2**64 - 1),
    time_us=st.integers(946_684_800_000_000 - 2**63, 2**63 - 1),
    wants_reply=st.booleans(),
)
def test_keepalives_come_back_over_the_whole_range_of_64_bits(
    pgoutput: ModuleType, wal_end: int, time_us: int, wants_reply: bool
) -> None:
    decoder = pgoutput.PgOutputDecoder("t-", {}, {}, {})
    decoder.feed([encode.keepalive(wal_end, time_us, wants_reply=wants_reply)])
    assert (decoder.wal_end, decoder.server_time_us, decoder.reply_requested) == (wal_end, time_us, wants_reply)
