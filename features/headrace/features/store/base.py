"""The contract of an online store, held by tests/contract over every engine.

What it keeps of a view: for each entity Feast's own row (byte for byte what a stock Feast SDK reads) and, private, the
engine's state blob and the next log time at which the row changes by itself (``due_us``); for each live source row its
contribution (which entity it counts for, and with what values); and one checkpoint. ``write`` makes all of it durable in one
atomic step, so that after any crash the state, the features and the applied offset tell the same story.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from headrace.features.spec import EntityKey, FeatureValue, ViewSpec


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """How far a view has applied the log.

    generation: the log's; offsets of another one mean nothing. offsets: next offset to apply, one a partition.
    log_time_us: the log's time as of which every stored row of the view stands.
    """

    spec_hash: str
    generation: str
    offsets: tuple[int, ...]
    log_time_us: int


_PROMOTING: Final = "promoting:"


def half_promoted(view: ViewSpec, step: int) -> Checkpoint:
    """Stored for the view while step by step its draft takes its place."""
    return Checkpoint(_PROMOTING + view.spec_hash, "", (step,), 0)


def is_half_promoted(checkpoint: Checkpoint, view: ViewSpec | None = None) -> bool:
    """A promote was cut short: of this definition, or (None) of any."""
    if view is None:
        return checkpoint.spec_hash.startswith(_PROMOTING)
    return checkpoint.spec_hash == _PROMOTING + view.spec_hash


class EntityWrite(msgspec.Struct, gc=False):
    """One entity's new row. values None deletes the row, Feast's fields and the private ones."""

    key: EntityKey
    values: tuple[FeatureValue, ...] | None
    event_time_us: int
    state: bytes
    due_us: int | None = None


class Contribution(msgspec.Struct, gc=False):
    """What one source row adds to one entity: blob is the engine's own encoding of time and values."""

    entity: EntityKey
    blob: bytes


class ViewWrite(msgspec.Struct, gc=False):
    """All that one flush changes in one view.

    entities: each key at most once. contributions: by source row key, None removes.
    """

    view: ViewSpec
    entities: Sequence[EntityWrite]
    contributions: Mapping[bytes, Contribution | None]
    checkpoint: Checkpoint


class FeatureRow(msgspec.Struct, gc=False):
    """What a reader gets: values in the order asked, None for null; event_time_us of the row."""

    values: tuple[FeatureValue, ...]
    event_time_us: int


class OnlineStore(Protocol):
    """One store of one Feast project. Called from the event loop only.

    What an entry point of ``headrace.stores`` names also has ``config_type`` (the struct of ``features.store``) and the class
    method ``from_config(section, *, project, folder)``, which opens nothing yet; relative paths start at folder.

    Raises StoreError (retry) when the server doesn't answer; a failed write has changed nothing or everything, and writing
    the same thing again is harmless.
    """

    async def open(self) -> None:
        """Connect, create what is missing. Opening twice is an error."""
        ...

    async def checkpoint(self, view: ViewSpec) -> Checkpoint | None:
        """The stored checkpoint, also one with another spec_hash; None when the view was never written."""
        ...

    async def states(self, view: ViewSpec, keys: Sequence[EntityKey]) -> list[bytes | None]:
        """State blobs in the order asked; None for an unknown entity."""
        ...

    async def contributions(self, view: ViewSpec, row_keys: Sequence[bytes]) -> list[Contribution | None]:
        """Contributions of source rows in the order asked."""
        ...

    async def contributions_of(self, view: ViewSpec, key: EntityKey) -> list[tuple[bytes, bytes]]:
        """All (row key, blob) of one entity, in no order; for rebuilding what can't be retracted arithmetically."""
        ...

    async def due(self, view: ViewSpec, until_us: int, limit: int) -> list[tuple[int, EntityKey]]:
        """(due_us, key) of entities whose due_us <= until_us, earliest first, at most limit."""
        ...

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        """Everything or nothing, durable on return. writes: each view at most once.

        Raises StoreConflict (retry: start from the stored checkpoint) when a view's stored checkpoint is neither the one this
        object last read or wrote nor the new one, or when offsets of the same spec and log would go back; StoreRefused
        (stop) when a value or key doesn't fit its declared type.
        """
        ...

    async def read(self, view: ViewSpec, features: Sequence[str], keys: Sequence[EntityKey]) -> list[FeatureRow | None]:
        """Newest rows in the order asked; None for an entity without a row. Raises KeyError for an unknown feature."""
        ...

    async def keys(self, view: ViewSpec) -> list[EntityKey]:
        """Every entity that has a row, in no order; for proofs and rebuilds, not for the hot path."""
        ...

    async def drop(self, view: ViewSpec) -> None:
        """Remove rows, states, contributions and checkpoint of the view."""
        ...

    async def promote(self, view: ViewSpec) -> None:
        """Put what ``view.draft`` has in the place of all that view has; then there is no draft. Other views may be written meanwhile.

        Readers see each entity's former row or its new one, whole, never none of an entity that has both. Cut short it may leave a
        checkpoint that ``is_half_promoted``: the same call again finishes it, and drop removes both. After a crash elsewhere the
        stored checkpoints tell whether it was done. Raises as write does.
        """
        ...

    async def scrub(self, view: ViewSpec, parts: Mapping[str, FeatureValue]) -> tuple[int, int]:
        """Of entities with these join keys' values, which writes have removed, remove what is held of their past too.

        Result: how many rows of the past went, and how many a look afterwards still found. Deleted bytes are overwritten as far as the store can: SQLite's file is rebuilt; a Redis
        server keeps them in its own files until it writes these anew.
        """
        ...

    async def close(self) -> None: ...
