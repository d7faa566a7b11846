"""``headrace features erase``: an entity is removed from all that was computed of it, and looked for again afterwards.

What goes, view by view: the row that readers get, the state behind it, what each source row contributed, and every row of the feature log, in
Parquet files that another definition has left too. What stays is the event log: ``headrace customer erase`` is for that, and comes first, since a view
that is built anew takes all the log has. An entity of a view with several join keys is erased by any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.cdc.errors import DefinitionError, RequestRefused
from headrace.features.answer import key_part
from headrace.features.compiled import CompiledView
from headrace.features.spec import EntityKey, FeatureValue, ViewSpec
from headrace.features.store.base import Checkpoint, EntityWrite, OnlineStore, ViewWrite

_SLICE = 256
"""Entities in one write."""


class EraseAsked(msgspec.Struct, frozen=True):
    """entity: values by join key, as text."""

    entity: dict[str, str]


class Erased(msgspec.Struct, frozen=True):
    """What went of one view: entities with a row, rows of its source that counted for them, rows of the feature log.

    left: what a look afterwards still found, of all three; 0 unless something else writes to the store.
    """

    view: str
    entities: int
    source_rows: int
    logged_rows: int
    left: int


def parts_of(view: ViewSpec, texts: Mapping[str, str]) -> dict[str, FeatureValue] | None:
    """The named join keys' values; None when the view doesn't have all of them. Raises DefinitionError for one of another type."""
    types = {field.name: field.dtype for field in view.join_keys}
    if not texts or not set(texts) <= set(types):
        return None
    try:
        return {name: key_part(name, types[name], text) for name, text in texts.items()}
    except ValueError as error:
        raise DefinitionError(f"view {view.name!r}: {error}", advice="write it as KEY=VALUE") from None


def concerned(views: Sequence[CompiledView], texts: Mapping[str, str]) -> list[CompiledView]:
    """Views with these join keys, their values checked. Raises DefinitionError: none has them, or a value is of another type."""
    found = [view for view in views if parts_of(view.spec, texts) is not None]
    if not found:
        known = sorted({field.name for view in views for field in view.spec.join_keys})
        raise DefinitionError(
            f"no view has the join key {', '.join(sorted(texts)) or 'that is missing'}",
            advice=f"name join keys of your views as KEY=VALUE: {', '.join(known)}",
        )
    return found


async def erase(
    view: ViewSpec, texts: Mapping[str, str], store: OnlineStore, checkpoint: Checkpoint
) -> tuple[Erased, list[EntityKey]]:
    """From one view, as of a checkpoint at or behind the stored one; and whose states nobody may keep in memory any more.

    Durable on return. Raises StoreError as the store does; asked again it goes on.
    """
    parts = parts_of(view, texts)
    assert parts is not None  # concerned() said so
    keys = await _keys(view, parts, store)
    gone: set[EntityKey] = set()
    source_rows = 0
    for start in range(0, max(len(keys), 1), _SLICE):
        some = keys[start : start + _SLICE]
        gone |= {key for key, state in zip(some, await store.states(view, some), strict=True) if state is not None}
        rows = [row_key for key in some for row_key, _ in await store.contributions_of(view, key)]
        source_rows += len(rows)
        removed = [EntityWrite(key, None, checkpoint.log_time_us, b"") for key in some]
        await store.write([ViewWrite(view, removed, dict.fromkeys(rows), checkpoint)])
    logged_rows, left = await store.scrub(view, parts)
    left += len([state for state in await store.states(view, keys) if state is not None])
    left += sum([len(await store.contributions_of(view, key)) for key in keys])
    left += len([row for row in await store.read(view, [], keys) if row is not None])
    return Erased(view.name, len(gone), source_rows, logged_rows, left), keys


async def erase_alone(views: Sequence[CompiledView], texts: Mapping[str, str], store: OnlineStore) -> list[Erased]:
    """While no engine runs, from an open store. Raises DefinitionError as ``concerned`` does, RequestRefused, StoreError."""
    found: list[Erased] = []
    wanted = concerned(views, texts)
    stored = [await store.checkpoint(view.spec) for view in wanted]
    for view, checkpoint in zip(wanted, stored, strict=True):
        is_former = checkpoint is not None and checkpoint.spec_hash != view.spec.spec_hash
        if is_former or await store.checkpoint(view.spec.draft) is not None:
            raise being_rebuilt(view.spec.name)
    for view, checkpoint in zip(wanted, stored, strict=True):
        if checkpoint is not None:
            found.append((await erase(view.spec, texts, store, checkpoint))[0])
    return found


def being_rebuilt(view: str) -> RequestRefused:
    """There are rows of two definitions: both would have to be looked through, and one is about to go."""
    return RequestRefused(
        f"view {view!r} has rows of a former definition, beside which it is built anew",
        advice='let headrace run, and ask again when "headrace status" says that the view is live',
    )


def answer(views: Sequence[Erased]) -> dict[str, Any]:
    """JSON types."""
    return {"views": msgspec.to_builtins(views), "left": sum(view.left for view in views)}


async def _keys(view: ViewSpec, parts: Mapping[str, FeatureValue], store: OnlineStore) -> list[EntityKey]:
    """Whom it concerns. With all join keys named that one, whether or not it has a row: its source rows may count without one."""
    names = [field.name for field in view.join_keys]
    if len(parts) == len(names):
        return [tuple(parts[name] for name in names)]
    places = [(names.index(name), value) for name, value in parts.items()]
    return [key for key in await store.keys(view) if all(key[place] == value for place, value in places)]


__all__ = ["EraseAsked", "Erased", "answer", "being_rebuilt", "concerned", "erase", "erase_alone"]
