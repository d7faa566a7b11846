"""Compressed bodies are unpacked to a limit."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from headrace.cdc.sources.inflate import BrokenError, TooLargeError, inflate, is_gzip

BODY = b'{"batch":[]}' * 1000


def test_gzip_zlib_and_members_in_a_row_are_unpacked() -> None:
    assert inflate(gzip.compress(BODY), 1 << 20) == BODY
    assert inflate(zlib.compress(BODY), 1 << 20) == BODY
    assert inflate(gzip.compress(BODY) + gzip.compress(b"x"), 1 << 20) == BODY + b"x"
    assert inflate(gzip.compress(BODY) + b"\0" * 7, 1 << 20) == BODY
    assert inflate(gzip.compress(b""), 1) == b""


def test_the_limit_is_exact() -> None:
    assert inflate(gzip.compress(BODY), len(BODY)) == BODY
    with pytest.raises(TooLargeError):
        inflate(gzip.compress(BODY), len(BODY) - 1)
    with pytest.raises(TooLargeError):
        inflate(gzip.compress(BODY) + gzip.compress(BODY), 2 * len(BODY) - 1)


def test_a_bomb_costs_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(b" " * (200 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            inflate(bomb, 1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("cut", [1, 5, 12, -1])
def test_a_body_that_ends_too_early_is_broken(cut: int) -> None:
    with pytest.raises(BrokenError):
        inflate(gzip.compress(BODY)[:cut], 1 << 20)


def test_what_is_not_compressed_is_broken_and_told_by_its_first_bytes() -> None:
    with pytest.raises(BrokenError):
        inflate(BODY, 1 << 20)
    with pytest.raises(BrokenError):
        inflate(b"\x1f\x8b" + BODY, 1 << 20)
    assert is_gzip(gzip.compress(BODY))
    assert not is_gzip(BODY)
