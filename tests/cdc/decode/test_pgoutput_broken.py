"""Broken streams: a DecodeError or a result, the same from both builds; never another exception, never a row from a short frame."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fix_wire
from fix_wire import Corpus, corpus, decode, feed_all
from headrace.cdc.errors import DecodeError

SEEDS = range(8)
CAMPAIGN_SEEDS = range(100, 200)


def _context(frames: list[bytes], index: int) -> list[bytes]:
    """What a frame needs before it: the tables announced so far, and its own transaction."""
    begin = max((at for at in range(index) if frames[at][25:26] == b"B"), default=0)
    return [frame for frame in frames[:begin] if frame[25:26] in (b"R", b"Y")] + frames[begin:index]


def _is_refused(decoder: Any, frame: bytes, source: Corpus) -> bool:
    try:
        feed_all(decoder, [frame], source)
    except DecodeError:
        return True
    return False


def _cuts(size: int) -> list[int]:
    """Every place to cut a frame; of the inside of long values only some."""
    return sorted({*range(min(size, 180)), *range(0, size, 97), *range(max(0, size - 30), size)})


@pytest.mark.parametrize("major", fix_wire.MAJORS)
def test_a_frame_cut_at_any_byte_is_an_error_and_never_a_row(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    for index, frame in enumerate(source.frames):
        context = _context(source.frames, index)
        for cut in _cuts(len(frame)):
            decoder = pgoutput.PgOutputDecoder("t-", {}, dict(source.primary_keys), {})
            feed_all(decoder, context, source)
            done = len(decoder.transactions)
            told = f"frame {index} of Postgres {major}, cut to {cut} of {len(frame)} bytes"
            assert _is_refused(decoder, frame[:cut], source), told
            assert len(decoder.transactions) == done


@pytest.mark.parametrize("major", fix_wire.MAJORS)
def test_bytes_behind_a_message_are_an_error(pgoutput: ModuleType, major: int) -> None:
    source = corpus(major)
    for index, frame in enumerate(source.frames):
        for extra in (b"\0", b"n", b"\xff" * 9):
            decoder = pgoutput.PgOutputDecoder("t-", {}, dict(source.primary_keys), {})
            feed_all(decoder, _context(source.frames, index), source)
            told = f"frame {index} of Postgres {major}, with {len(extra)} more bytes"
            assert _is_refused(decoder, frame + extra, source), told


def _mutated(frames: list[bytes], chance: random.Random) -> list[bytes]:
    """One to three faults somewhere in the stream: in bytes, or whole frames lost, doubled, exchanged, glued."""
    frames = list(frames)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(frames))
        frame = bytearray(frames[at])
        where = chance.randrange(len(frame)) if chance.random() < 0.3 else min(len(frame) - 1, chance.randrange(1, 90))
        fault = chance.randrange(9)
        if fault == 0:
            frame[where] ^= 1 << chance.randrange(8)
        elif fault == 1:
            frame[where] = chance.choice(b"\0\1\x7f\x80\xffNKOtnuIUDBCRYTw0-.")
        elif fault == 2:
            frame[where:where] = chance.randbytes(chance.randint(1, 9))
        elif fault == 3:
            del frame[where : where + chance.randint(1, 9)]
        elif fault == 4:
            del frame[where:]
        frames[at] = bytes(frame)
        if fault == 5:
            frames.insert(at, frames[chance.randrange(len(frames))])
        elif fault == 6 and len(frames) > 1:
            del frames[at]
        elif fault == 7:
            other = chance.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        elif fault == 8:
            frames[at] += frames[chance.randrange(len(frames))]
    return frames


def _both(source: Corpus, frames: list[bytes], told: str) -> str:
    """Decode with both builds, hold them equal, return the error's text; any exception but DecodeError passes through."""
    pure = decode(fix_wire.pure, source, frames)
    if fix_wire.compiled is not None:
        assert decode(fix_wire.compiled, source, frames) == pure, told
    return pure.error


def _mutate_many(seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    sources = [corpus(major) for major in fix_wire.MAJORS]
    errors = 0
    source = corpus(fix_wire.MAJORS[0])
    for number in range(rounds):
        source = chance.choice(sources)
        told = f"seed {seed}, round {number}"
        try:
            errors += bool(_both(source, _mutated(source.frames, chance), told))
        except Exception as error:
            error.add_note(told)
            raise
    assert rounds // 4 < errors < rounds, f"seed {seed}: {errors} of {rounds} broken streams were refused"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mutated_stream_is_refused_or_read_the_same_by_both_builds(seed: int) -> None:
    _mutate_many(seed, 100)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", CAMPAIGN_SEEDS)
def test_campaign_of_mutated_streams(seed: int) -> None:
    _mutate_many(seed, 2000)


_frames = st.lists(
    st.binary(max_size=64)
    | st.tuples(st.sampled_from(b"BCRYIUDTOM"), st.binary(max_size=60)).map(
        lambda parts: b"w" + bytes(24) + bytes([parts[0]]) + parts[1]
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefix=st.integers(0, 100), frames=_frames)
def test_arbitrary_bytes_are_refused_or_read_the_same_by_both_builds(prefix: int, frames: list[bytes]) -> None:
    source = _SOURCE
    _both(source, source.frames[:prefix] + frames, "hypothesis")


_SOURCE = corpus(18)
