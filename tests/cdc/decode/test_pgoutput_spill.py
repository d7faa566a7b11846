"""Transactions that leave pieces: streamed before their end or spilled, they decode to what they are when they come at once."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pgoutput_encoder as encode
from headrace.cdc.decode.tableversion import changes_of
from headrace.cdc.decode.transaction import Abort, Transaction
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import Change

ours = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
TIME_US = 1_700_000_000_000_000


class Keeper:
    """What a caller does: keeps pieces by transaction, replays at commits."""

    def __init__(self, pgoutput: ModuleType, *, spill_at: int | None = None, part_bytes: int = 1) -> None:
        self.decoder = pgoutput.PgOutputDecoder("s-", {}, {}, {})
        self.spill_at = spill_at
        self.part_bytes = part_bytes
        self.pieces: dict[int, list[bytes]] = {}
        self.aborted: dict[int, set[int]] = {}
        self.changes: list[Change] = []
        self.parts: list[int] = []
        self.since_begin: list[bytes] = []

    def feed(self, frames: list[bytes]) -> None:
        decoder, rest = self.decoder, frames
        while rest:
            done = decoder.feed(rest)
            fed, rest = rest[:done], rest[done:]
            self.changes += changes_of(decoder.transactions)
            decoder.transactions = []
            if not decoder.is_holding:
                self.since_begin = []
            else:
                if decoder.begin_index >= 0:
                    self.since_begin = []
                self.since_begin += fed[max(0, decoder.begin_index) :]
                if self.spill_at is not None and decoder.held_bytes >= self.spill_at:
                    decoder.spill_open(self.since_begin)
                    self.since_begin = []
            for piece in decoder.pieces:
                if isinstance(piece, Abort):
                    if piece.subxid == piece.xid:
                        self.pieces.pop(piece.xid, None)
                    else:
                        self.aborted.setdefault(piece.xid, set()).add(piece.subxid)
                else:
                    self.pieces.setdefault(piece.xid, []).append(piece.data)
            decoder.pieces = []
            if decoder.spilled_commit is not None:
                self._replay()

    def _replay(self) -> None:
        decoder = self.decoder
        commit, decoder.spilled_commit = decoder.spilled_commit, None
        decoder.begin_replay(commit)
        found: list[Transaction] = []
        for piece in self.pieces.pop(commit.xid, []):
            at = 0
            while at < len(piece):
                at = decoder.replay(piece, at, frozenset(self.aborted.get(commit.xid, ())), self.part_bytes)
                if decoder.held_bytes >= self.part_bytes:
                    found.append(decoder.take_part(is_last=False))
        found.append(decoder.take_part(is_last=True))
        if not commit.is_known:
            self.changes += changes_of(found)
            self.parts.append(len(found))


def told(changes: list[Change]) -> list[Any]:
    """All of them but is_last, which is the caller's to set when nothing follows a held part."""
    return [
        (c.table, c.op, c.before, c.after, c.position, c.id, c.xid, c.ordinal, c.committed_us, c.detail)
        for c in changes
    ]


def columns(version: int) -> list[tuple[str, int, int, bool]]:
    return [("id", 20, -1, True), *[(f"c{number}", 25, -1, False) for number in range(version)]]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, bytes]], set[int], bool]]:
    """Transactions in commit order: (xid, [(subxid, message)], aborted subtransactions, is it rolled back whole)."""
    found: list[tuple[int, list[tuple[int, bytes]], set[int], bool]] = []
    version = {7: 1, 8: 1}
    for number in range(draw(st.integers(1, 4))):
        xid = 100 * (number + 1)
        is_aborted = draw(st.booleans()) and draw(st.booleans())
        subxids = [xid, xid + 1, xid + 2]
        aborted = set(draw(st.sets(st.sampled_from(subxids[1:]))))
        messages: list[tuple[int, bytes]] = []
        announced = dict[int, int]()
        for place in range(draw(st.integers(1, 12))):
            subxid = draw(st.sampled_from(subxids))
            oid = draw(st.sampled_from([7, 8]))
            if draw(st.integers(0, 5)) == 0 and subxid not in aborted and not is_aborted:
                version[oid] += 1
            if announced.get(oid) != version[oid]:
                announced[oid] = version[oid]
                messages.append((subxid, encode.relation(oid, "s", f"t{oid}", "d", columns(version[oid]))))
            values = [str(place).encode(), *[f"v{xid}.{place}".encode()] * version[oid]]
            op = draw(st.sampled_from(["insert", "update", "delete", "truncate"]))
            message = {
                "insert": encode.insert(oid, values),
                "update": encode.update(oid, None, values),
                "delete": encode.delete(oid, ("K", [values[0], *[None] * version[oid]])),
                "truncate": encode.truncate([oid]),
            }[op]
            messages.append((subxid, message))
        found.append((xid, messages, aborted, is_aborted))
    return found


@ours
@given(history=histories(), seed=st.integers(0, 1 << 32))
def test_streamed_spilled_and_plain_transactions_decode_to_the_same(
    pgoutput: ModuleType, history: list[tuple[int, list[tuple[int, bytes]], set[int], bool]], seed: int
) -> None:
    rng = random.Random(seed)
    plain: list[bytes] = []
    for number, (xid, messages, aborted, is_aborted) in enumerate(history):
        if is_aborted:
            continue
        lsn = 1000 * (number + 1)
        # Relations of a rolled-back part count: a plain stream wouldn't hold them there, but says the same.
        kept = [message for subxid, message in messages if subxid not in aborted or message[25:26] == b"R"]
        plain += [encode.begin(lsn, TIME_US, xid), *kept, encode.commit(lsn, lsn + 8, TIME_US)]
    expected = Keeper(pgoutput)
    expected.feed(plain)

    # The same streamed: blocks of all transactions take turns, each ends in commit order.
    frames: list[bytes] = []
    left = {xid: list(messages) for xid, messages, _, _ in history}
    started: set[int] = set()

    def block(xid: int, count: int) -> None:
        frames.append(encode.stream_start(xid, is_first=xid not in started))
        started.add(xid)
        for _ in range(min(count, len(left[xid]))):
            subxid, message = left[xid].pop(0)
            frames.append(encode.streamed(message, subxid))
            if rng.random() < 0.2:
                frames.append(encode.keepalive(5, TIME_US, wants_reply=False))
        frames.append(encode.stream_stop())

    for number, (xid, _, aborted, is_aborted) in enumerate(history):
        for _ in range(rng.randrange(3)):
            block(rng.choice([other for other, *_ in history[number:]]), rng.randrange(1, 6))
        while left[xid] or xid not in started:
            block(xid, rng.randrange(1, 6))
        frames += [encode.stream_abort(xid, subxid) for subxid in sorted(aborted)]
        lsn = 1000 * (number + 1)
        frames.append(encode.stream_abort(xid, xid) if is_aborted else encode.stream_commit(xid, lsn, lsn + 8, TIME_US))
    streamed = Keeper(pgoutput, part_bytes=rng.choice([1, 60, 10_000]))
    while frames:  # in gulps of any size: a block may be cut
        size = rng.randrange(1, 8)
        streamed.feed(frames[:size])
        frames = frames[size:]
    assert told(streamed.changes) == told(expected.changes)
    assert not streamed.pieces, "a transaction that ended left pieces"

    spilled = Keeper(pgoutput, spill_at=1, part_bytes=rng.choice([1, 60, 10_000]))
    while plain:
        size = rng.randrange(1, 8)
        spilled.feed(plain[:size])
        plain = plain[size:]
    assert told(spilled.changes) == told(expected.changes)


def one_streamed(pgoutput: ModuleType, *, skip_until: int) -> Keeper:
    keeper = Keeper(pgoutput)
    keeper.decoder.skip_until = skip_until
    keeper.feed(
        [
            encode.stream_start(5, is_first=True),
            encode.streamed(encode.relation(7, "s", "t", "d", columns(1)), 5),
            encode.streamed(encode.insert(7, [b"1", b"a"]), 5),
            encode.stream_stop(),
            encode.stream_commit(5, 100, 108, TIME_US),
            encode.begin(200, TIME_US, 6),
            encode.insert(7, [b"2", b"b"]),
            encode.commit(200, 208, TIME_US),
        ]
    )
    return keeper


def test_a_known_transaction_is_replayed_for_its_relations_only(pgoutput: ModuleType) -> None:
    """The server doesn't announce a table again that it announced in a transaction which committed."""
    assert [change.after for change in one_streamed(pgoutput, skip_until=0).changes] == [(1, "a"), (2, "b")]
    assert [change.after for change in one_streamed(pgoutput, skip_until=108).changes] == [(2, "b")]


@pytest.mark.parametrize(
    "frames",
    [
        [encode.stream_stop()],
        [encode.stream_start(0, is_first=True)],
        [encode.stream_start(5, is_first=True), encode.stream_start(5, is_first=False)],
        [encode.stream_start(5, is_first=True), encode.begin(1, TIME_US, 5)],
        [encode.stream_start(5, is_first=True), encode.stream_commit(5, 1, 2, TIME_US)],
        [encode.begin(1, TIME_US, 5), encode.stream_start(6, is_first=True)],
        [encode.stream_commit(5, 1, 2, TIME_US)[:-1]],
        [encode.stream_abort(5, 5) + b"x"],
        [encode.stream_start(5, is_first=True), encode.frame(b"I\0\0")],
    ],
)
def test_what_the_protocol_does_not_have_is_refused(pgoutput: ModuleType, frames: list[bytes]) -> None:
    with pytest.raises(DecodeError):
        Keeper(pgoutput).feed(frames)


def test_a_torn_piece_is_refused(pgoutput: ModuleType) -> None:
    keeper = Keeper(pgoutput)
    keeper.feed(
        [
            encode.stream_start(5, is_first=True),
            encode.streamed(encode.relation(7, "s", "t", "d", columns(1)), 5),
            encode.streamed(encode.insert(7, [b"1", b"abc"]), 5),
            encode.stream_stop(),
        ]
    )
    [piece] = keeper.pieces[5]
    for end in range(18, len(piece)):
        decoder = pgoutput.PgOutputDecoder("s-", {}, {}, {})
        decoder.feed([encode.stream_commit(5, 1, 2, TIME_US)])
        decoder.begin_replay(decoder.spilled_commit)
        try:
            decoder.replay(piece[:end], 0, frozenset(), 1 << 20)
        except DecodeError:
            continue
        # Cut between two messages: nothing but the second one is missing.
        assert end == 17 + 8 + len(encode.relation(7, "s", "t", "d", columns(1))) - 25
