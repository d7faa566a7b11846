"""Which write may replace which checkpoint: the rule that keeps one feeder per view, whatever the engine.

A store remembers the checkpoint that it last wrote or gave out for a view. A write is let through when the stored one is
still that, or is already the new one (the same write again, after an answer that got lost). Otherwise another process
writes the view, or the server lost its newest writes (a failover, an AOF tail): going on would leave a gap between what
the engine holds in memory and what is stored, so the write raises StoreConflict and the engine starts from the stored
checkpoint. Besides, offsets of the same spec and log never go back: dropping the view is how a rebuild starts.

Every engine compares inside its own atomic step; the Redis one does it in Lua (redis.py), with this file's words.
"""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.cdc.errors import StoreConflict, StoreRefused
from headrace.features.spec import ViewSpec
from headrace.features.store.base import Checkpoint

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Checkpoint)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """JSON array ``[spec_hash, generation, [offset, ...], log_time_us]``: equal checkpoints give equal bytes."""
    return _encoder.encode(checkpoint)


def decode_checkpoint(view: ViewSpec, data: bytes) -> Checkpoint:
    """Inverse of encode_checkpoint. Raises StoreRefused when the bytes are no checkpoint."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise StoreRefused(
            f"view {view.name!r}: the stored checkpoint can't be read",
            advice="somebody changed headrace's own data in the store: drop the view there and let it be rebuilt",
        ) from error


def goes_back(stored: Checkpoint, new: Checkpoint) -> bool:
    """Whether new has applied less of the same log than stored, in any partition."""
    if stored.spec_hash != new.spec_hash or stored.generation != new.generation:
        return False
    return len(new.offsets) < len(stored.offsets) or any(
        now < then for now, then in zip(new.offsets, stored.offsets, strict=False)
    )


class Fence:
    """What one store object last knew of each view's checkpoint, as encoded bytes; None for no checkpoint."""

    def __init__(self) -> None:
        self._known: dict[str, bytes | None] = {}

    def note(self, view: ViewSpec, stored: bytes | None) -> None:
        """The store holds this now: read, written or (None) dropped by this process."""
        self._known[view.name] = stored

    def knows(self, view: ViewSpec) -> bool:
        return view.name in self._known

    def expected(self, view: ViewSpec) -> bytes | None:
        """The checkpoint that must be there. Raises KeyError when this process never looked."""
        return self._known[view.name]

    def check(self, view: ViewSpec, stored: bytes | None, new: Checkpoint) -> None:
        """Let a write through or raise StoreConflict. Call it inside the atomic step, with what is stored in it."""
        if stored is None or stored != encode_checkpoint(new):
            if self.knows(view) and self.expected(view) != stored:
                raise moved(view)
            if stored is not None and goes_back(decode_checkpoint(view, stored), new):
                raise went_back(view)


def moved(view: ViewSpec) -> StoreConflict:
    """The error for a checkpoint that isn't the one last seen."""
    return StoreConflict(
        f"view {view.name!r}: the checkpoint in the online store isn't the one this process left there;"
        " another process feeds the view, or the store lost its newest writes"
    )


def went_back(view: ViewSpec) -> StoreConflict:
    """The error for a write that has applied less of the log than what is stored."""
    return StoreConflict(f"view {view.name!r}: a write older than the checkpoint in the online store was refused")
