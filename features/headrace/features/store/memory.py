"""The online store in memory: a fake that keeps the whole contract, for tests and for trying definitions out.

Holds the same encoded bytes as the real stores, so that a value which doesn't fit its type, a Float32's rounding and a
timestamp's whole seconds show here too. Knows nothing of durability: the rows live as long as the object, and survive
close and open, so that a test can restart an engine on them.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from headrace.cdc.config import Section
from headrace.features.encoding import codec_of
from headrace.features.spec import EntityKey, FeatureValue, ViewSpec
from headrace.features.store.base import Checkpoint, Contribution, FeatureRow, ViewWrite
from headrace.features.store.fence import Fence, decode_checkpoint, encode_checkpoint


class MemoryStoreConfig(Section, frozen=True):
    """Rows in this process's memory only: no Feast SDK can read them, and they are gone with the process."""


class _Row(msgspec.Struct, gc=False):
    values: dict[str, bytes]
    event_time_us: int
    state: bytes
    due_us: int | None


class _View(msgspec.Struct):
    rows: dict[bytes, _Row] = {}
    contributions: dict[bytes, tuple[bytes, bytes]] = {}
    """Source row key -> (entity key, blob)."""
    row_keys: dict[bytes, set[bytes]] = {}
    """Entity key -> the source rows that count for it."""
    due: list[tuple[int, bytes]] = []
    """A heap of (due_us, entity key), those that have changed since included."""
    checkpoint: bytes | None = None


class MemoryStore:
    """See OnlineStore for every method."""

    config_type: ClassVar[type[MemoryStoreConfig]] = MemoryStoreConfig

    def __init__(self, rows_of: MemoryStore | None = None) -> None:
        """rows_of: another store whose rows this one shares, as two processes share a server."""
        self._views: dict[str, _View] = {} if rows_of is None else rows_of._views
        self._fence = Fence()
        self._is_open = False

    @classmethod
    def from_config(cls, section: MemoryStoreConfig, *, project: str, folder: Path) -> Self:
        return cls()

    async def open(self) -> None:
        if self._is_open:
            raise RuntimeError("the store is open already")
        self._is_open = True
        self._fence = Fence()

    async def checkpoint(self, view: ViewSpec) -> Checkpoint | None:
        stored = self._of(view).checkpoint
        self._fence.note(view, stored)
        return None if stored is None else decode_checkpoint(view, stored)

    async def states(self, view: ViewSpec, keys: Sequence[EntityKey]) -> list[bytes | None]:
        rows, codec = self._of(view).rows, codec_of(view)
        found = [rows.get(codec.encode_key(key)) for key in keys]
        return [None if row is None else row.state for row in found]

    async def contributions(self, view: ViewSpec, row_keys: Sequence[bytes]) -> list[Contribution | None]:
        kept, codec = self._of(view).contributions, codec_of(view)
        found = [kept.get(row_key) for row_key in row_keys]
        return [None if pair is None else Contribution(codec.decode_key(pair[0]), pair[1]) for pair in found]

    async def contributions_of(self, view: ViewSpec, key: EntityKey) -> list[tuple[bytes, bytes]]:
        kept = self._of(view)
        return [
            (row_key, kept.contributions[row_key][1])
            for row_key in kept.row_keys.get(codec_of(view).encode_key(key), ())
        ]

    async def due(self, view: ViewSpec, until_us: int, limit: int) -> list[tuple[int, EntityKey]]:
        codec, kept = codec_of(view), self._of(view)
        found: dict[bytes, int] = {}
        while kept.due and kept.due[0][0] <= until_us and len(found) < limit:
            due_us, key = heapq.heappop(kept.due)
            row = kept.rows.get(key)
            if row is not None and row.due_us == due_us:
                found[key] = due_us
        for key, due_us in found.items():
            heapq.heappush(kept.due, (due_us, key))
        return [(due_us, codec.decode_key(key)) for key, due_us in found.items()]

    async def write(self, writes: Sequence[ViewWrite]) -> None:
        # Everything that can fail comes first, so that a refused write changes nothing.
        prepared: list[tuple[ViewWrite, dict[bytes, _Row | None], dict[bytes, tuple[bytes, bytes] | None]]] = []
        for write in writes:
            codec = codec_of(write.view)
            self._fence.check(write.view, self._of(write.view).checkpoint, write.checkpoint)
            rows: dict[bytes, _Row | None] = {}
            for entity in write.entities:
                row = None
                if entity.values is not None:
                    encoded = codec.encode_values(entity.values)
                    named = {field.name: data for field, data in zip(write.view.fields, encoded, strict=True)}
                    row = _Row(named, entity.event_time_us, entity.state, entity.due_us)
                rows[codec.encode_key(entity.key)] = row
            contributions = {
                row_key: None if given is None else (codec.encode_key(given.entity), given.blob)
                for row_key, given in write.contributions.items()
            }
            prepared.append((write, rows, contributions))
        for write, rows, contributions in prepared:
            kept = self._of(write.view)
            for key, row in rows.items():
                if row is None:
                    kept.rows.pop(key, None)
                else:
                    kept.rows[key] = row
                    if row.due_us is not None:
                        heapq.heappush(kept.due, (row.due_us, key))
            for row_key, pair in contributions.items():
                former = kept.contributions.pop(row_key, None)
                if former is not None:
                    kept.row_keys[former[0]].discard(row_key)
                if pair is not None:
                    kept.contributions[row_key] = pair
                    kept.row_keys.setdefault(pair[0], set()).add(row_key)
            kept.checkpoint = encode_checkpoint(write.checkpoint)
            self._fence.note(write.view, kept.checkpoint)

    async def read(self, view: ViewSpec, features: Sequence[str], keys: Sequence[EntityKey]) -> list[FeatureRow | None]:
        rows, codec = self._of(view).rows, codec_of(view)
        decoder = codec.decoder(features)
        found: list[FeatureRow | None] = []
        for key in keys:
            row = rows.get(codec.encode_key(key))
            if row is None:
                found.append(None)
                continue
            values = decoder.decode([row.values.get(field.name) for field in decoder.fields])
            found.append(FeatureRow(values, row.event_time_us))
        return found

    async def scrub(self, view: ViewSpec, parts: Mapping[str, FeatureValue]) -> tuple[int, int]:
        return 0, 0

    async def keys(self, view: ViewSpec) -> list[EntityKey]:
        codec = codec_of(view)
        return [codec.decode_key(key) for key in self._of(view).rows]

    async def drop(self, view: ViewSpec) -> None:
        self._of(view)
        del self._views[view.name]
        self._fence.note(view, None)

    async def promote(self, view: ViewSpec) -> None:
        self._of(view)
        draft = self._views.pop(view.draft.name, None)
        if draft is not None and draft.checkpoint is not None:
            self._views[view.name] = draft
            self._fence.note(view, draft.checkpoint)
        self._fence.note(view.draft, None)

    async def close(self) -> None:
        self._is_open = False

    def _of(self, view: ViewSpec) -> _View:
        if not self._is_open:
            raise RuntimeError("the store isn't open")
        return self._views.setdefault(view.name, _View())
