"""Blobs of the log: whatever is packed comes back, however it was cut and joined."""

from __future__ import annotations

import msgspec
import pytest

from contract.log_contract import event, events
from headrace.cdc.log.codec import BLOB_BYTES, frame, pack, unframe


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 511, 512, 513, 65535, 65536])
def test_a_blob_is_a_plain_msgpack_array_of_its_events(count: int) -> None:
    stored = events(0, count)
    pieces = pack(stored)
    blob = frame(pieces)
    assert unframe(blob) == tuple(stored)
    assert blob == msgspec.msgpack.encode(stored)
    assert sum(piece.count for piece in pieces) == count
    assert max(piece.newest_us for piece in pieces) == count - 1


def test_appends_joined_into_one_blob_are_one_array() -> None:
    pieces = [*pack(events(0, 1)), *pack(events(1, 20)), *pack(events(21, 1))]
    assert unframe(frame(pieces)) == tuple(events(0, 22))


def test_no_piece_of_more_than_one_event_exceeds_the_bound() -> None:
    stored = [*events(0, 600, size=5000), event(600, size=2 * BLOB_BYTES), *events(601, 600, size=5000)]
    pieces = pack(stored)
    assert all(len(piece.array) <= BLOB_BYTES or piece.count == 1 for piece in pieces)
    assert unframe(frame(pieces)) == tuple(stored)


def test_an_event_stored_before_a_field_was_added_still_decodes() -> None:
    whole = msgspec.to_builtins(event(7), builtin_types=(bytes,))
    (found,) = unframe(msgspec.msgpack.encode([whole[:10]]))  # as if row, user_id and the rest had come later
    assert found.id == "e7" and found.row is None and found.context is None


def test_the_newest_commit_time_is_the_largest_not_the_last() -> None:
    (piece,) = pack([event(0, committed_us=5), event(1, committed_us=9), event(2, committed_us=7)])
    assert piece.newest_us == 9
