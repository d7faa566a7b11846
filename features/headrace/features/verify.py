"""Do serving, the feature log and the events say the same? A sample of entities, compared bit by bit.

Each view is computed once more from the event log, by the same kernel but from nothing, up to the place and the log time that the online store says it is of.
Then a row as a reader gets it, the newest row of the feature log and the recomputed one are laid beside each other. Rows that are about to decay
(a window moved on, and nobody has written it yet) are told apart. What runs meanwhile moves the place: the comparison is then made again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cdc.errors import DefinitionError
from headrace.cdc.log.reader import LogReader
from headrace.features.compiled import CompiledView
from headrace.features.lane import Lane
from headrace.features.offline.reading import attach, connect, quoted
from headrace.features.offline.segment import CREATED, DELETED, EVENT_TIMESTAMP, OFFSET
from headrace.features.spec import EntityKey, FeatureValue, ValueType, ViewSpec
from headrace.features.store.base import Checkpoint, OnlineStore
from headrace.features.store.memory import MemoryStore
from headrace.features.worker import ViewWorker

_TRIES: Final = 5
_EXAMPLES: Final = 5
_READ_BYTES: Final = 1 << 20
_SLICE: Final = 5_000


class Verdict(msgspec.Struct):
    """Of one view. entities, values: compared with the recomputation, and with the feature log. note: why something wasn't."""

    view: str
    entities: int = 0
    values: int = 0
    differing_bits: int = 0
    logged_entities: int = 0
    logged_values: int = 0
    logged_differing_bits: int = 0
    pending: int = 0
    examples: list[str] = []
    note: str = ""


async def verify(
    view: CompiledView, store: OnlineStore, log: LogReader, folder: Path | None, *, sample: int
) -> Verdict:
    """folder: of the feature log, None without one. sample: entities at most, the same ones each time. Raises what store and log raise."""
    verdict = Verdict(view.spec.name)
    for _ in range(_TRIES):
        verdict = Verdict(view.spec.name, examples=[])
        before = await store.checkpoint(view.spec)
        if before is None or before.spec_hash != view.spec.spec_hash or before.generation != log.generation:
            verdict.note = "not built yet from this log by this definition"
            return verdict
        await _compare(view, store, log, folder, before, sample, verdict)
        if await store.checkpoint(view.spec) == before:
            return verdict
    verdict.note = "headrace wrote to the store meanwhile, each time; ask while it is stopped, or while little happens"
    return verdict


async def _compare(
    view: CompiledView,
    store: OnlineStore,
    log: LogReader,
    folder: Path | None,
    place: Checkpoint,
    sample: int,
    verdict: Verdict,
) -> None:
    spec = view.spec
    names = [field.name for field in spec.fields]
    pending = {key for _, key in await store.due(spec, place.log_time_us, 1 << 30)}
    verdict.pending = len(pending)
    keys = sorted((key for key in await store.keys(spec) if key not in pending), key=_spread)[:sample]
    online = dict(zip(keys, await store.read(spec, names, keys), strict=True))
    first = (await log.bounds(0)).first
    if first > 0 and view.events is None:
        verdict.note = f"not recomputed: the log begins at event {first}, and what was before is gone"
    else:
        again = await recomputed(view, log, place)
        wanted = sorted({*keys, *(key for key in await again.keys(spec) if key not in pending)}, key=_spread)[:sample]
        missing = [key for key in wanted if key not in online]
        online |= dict(zip(missing, await store.read(spec, names, missing), strict=True))
        rows = await again.read(spec, names, wanted)
        for key, row in zip(wanted, rows, strict=True):
            have = online[key]
            verdict.entities += 1
            verdict.values += len(names)
            verdict.differing_bits += _told(
                verdict,
                key,
                names,
                None if have is None else have.values,
                None if row is None else row.values,
                "the events",
            )
    if folder is not None:
        _compare_logged(spec, folder, online, verdict)


async def recomputed(view: CompiledView, log: LogReader, place: Checkpoint) -> MemoryStore:
    """The view from nothing, up to a place."""
    store = MemoryStore()
    await store.open()
    worker = ViewWorker(view, store, log.generation, most_states=100_000)
    stopped: list[DefinitionError] = []
    offset = (await log.bounds(0)).first
    await worker.begin(offset, 0)
    lane = Lane([worker], store, offset, 0, lambda _, error: stopped.append(error))
    end = place.offsets[0]
    while lane.offset < end:
        batch = await log.read(0, lane.offset, max_bytes=_READ_BYTES)
        if not batch.events:
            break
        await lane.apply(batch.events[: end - lane.offset])
        if stopped:
            raise stopped[0]
    lane.log_time_us = max(lane.log_time_us, place.log_time_us)
    while await lane.decay(_SLICE):
        pass
    return store


def _compare_logged(spec: ViewSpec, folder: Path, online: dict[EntityKey, Any], verdict: Verdict) -> None:
    names = [field.name for field in spec.fields]
    connection = connect()
    try:
        attach(connection, folder / spec.name, spec, "logged")
        keys = ", ".join(quoted(field.name) for field in spec.join_keys)
        columns = ", ".join(_column(field.name, field.dtype) for field in (*spec.join_keys, *spec.fields))
        found: dict[EntityKey, Any] = {}
        rows = connection.execute(
            f"select {columns}, {DELETED} from logged where {OFFSET} >= 0"  # others are a backfill's
            f" qualify row_number() over (partition by {keys} order by {EVENT_TIMESTAMP} desc, {CREATED} desc) = 1"
        ).fetchall()
        width = len(spec.join_keys)
        for row in rows:
            values = tuple([tuple(value) if isinstance(value, list) else value for value in row[width:-1]])  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            found[tuple(row[:width])] = None if row[-1] else values
    except DefinitionError as error:
        verdict.note = (verdict.note + "; " if verdict.note else "") + error.message
        return
    finally:
        connection.close()
    for key, have in online.items():
        verdict.logged_entities += 1
        verdict.logged_values += len(names)
        verdict.logged_differing_bits += _told(
            verdict, key, names, None if have is None else have.values, found.get(key), "the feature log"
        )


def _column(name: str, dtype: ValueType) -> str:
    column = quoted(name)
    return f"epoch_us({column})" if dtype is ValueType.UNIX_TIMESTAMP else column


def _told(
    verdict: Verdict,
    key: EntityKey,
    names: Sequence[str],
    have: Sequence[FeatureValue] | None,
    want: Sequence[FeatureValue] | None,
    of: str,
) -> int:
    """How many bits differ."""
    if have is None or want is None:
        bits = 0 if have is want else 64 * len(names)
        what = (
            [f"serving has {'no row' if have is None else 'a row'}, {of} {'none' if want is None else 'one'}"]
            if bits
            else []
        )
    else:
        parts = [differing_bits(one, other) for one, other in zip(have, want, strict=True)]
        bits = sum(parts)
        what = [
            f"{name} is served as {one!r}, {of} say {other!r}"
            for name, one, other, part in zip(names, have, want, parts, strict=True)
            if part
        ]
    if what and len(verdict.examples) < _EXAMPLES:
        verdict.examples.append(f"{key}: {what[0]}")
    return bits


def differing_bits(one: FeatureValue, other: FeatureValue) -> int:
    """0 for values of the same bits: -0.0 differs from 0.0, and one NaN from another."""
    a, b = _bytes(one), _bytes(other)
    if a == b:
        return 0
    length = max(len(a), len(b))
    return (
        sum((x ^ y).bit_count() for x, y in zip(a.ljust(length, b"\0"), b.ljust(length, b"\0"), strict=True))
        or 8 * length
    )


def _bytes(value: FeatureValue) -> bytes:
    match value:
        case None:
            return b"null"
        case float():
            return struct.pack("<d", value)
        case bool():
            return b"true" if value else b"false"
        case int():
            return value.to_bytes(16, "little", signed=True)
        case bytes():
            return b"b" + value
        case tuple():
            return b"[" + b",".join(_bytes(item) for item in value) + b"]"
        case _:
            return b"s" + str(value).encode()


def _spread(key: EntityKey) -> bytes:
    return blake2b(repr(key).encode(), digest_size=8).digest()


__all__ = ["Verdict", "differing_bits", "recomputed", "verify"]
