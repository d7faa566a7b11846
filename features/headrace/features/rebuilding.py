"""Where a view begins, and how a changed one is built beside its former rows and then takes their place.

A view whose stored rows are of another definition, or of another log, is built as a draft: under a name of its own in the same store, by the same
lanes as any view that is behind. Readers go on with the former rows, which nothing updates any more, since their definition is gone. When the draft
has caught up, the store puts it in their place (``OnlineStore.promote``), beside the engine's loop. Going back to the former definition in between
costs nothing but catching up: its rows and its place are still there.

Rows of another log are only replaced once every source streams: a new log begins with a copy of the tables, and half of one is worse than
what was served before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from headrace.cdc.log.base import Bounds
from headrace.features.compiled import CompiledView
from headrace.features.lane import Lane
from headrace.features.spec import ViewSpec
from headrace.features.store.base import Checkpoint, OnlineStore, is_half_promoted
from headrace.features.worker import ViewWorker


class Start(msgspec.Struct, frozen=True):
    """What is to be built of a view (itself or its draft), and from which place. is_of_other_log: so are the former rows."""

    view: CompiledView
    offset: int
    log_time_us: int
    is_of_other_log: bool = False


async def find_start(view: CompiledView, store: OnlineStore, *, generation: str, bounds: Bounds) -> Start:
    """Decide it by the stored checkpoints; finish what was cut short, and remove what means nothing any more.

    An offset before bounds.first tells that the log has lost what the view needs; nothing was removed then.
    """
    spec, draft = view.spec, view.spec.draft
    stored = await store.checkpoint(spec)
    if stored is not None and is_half_promoted(stored, spec):
        await store.promote(spec)
        stored = await store.checkpoint(spec)
    drafted = await store.checkpoint(draft)
    # What was trimmed of events is nowhere else: a view over them begins with what is kept.
    first = bounds.first if view.events is not None else 0
    if _is_usable(stored, spec, generation, bounds):
        assert stored is not None
        if drafted is not None:
            await store.drop(draft)
        return Start(view, stored.offsets[0] or first, stored.log_time_us)
    if stored is None or is_half_promoted(stored):
        if first >= bounds.first:
            for each, checkpoint in ((spec, stored), (draft, drafted)):
                if checkpoint is not None:
                    await store.drop(each)
        return Start(view, first, 0)
    is_of_other_log = stored.generation != generation
    view = msgspec.structs.replace(view, spec=draft)
    if _is_usable(drafted, draft, generation, bounds):
        assert drafted is not None
        return Start(view, drafted.offsets[0] or first, drafted.log_time_us, is_of_other_log)
    if drafted is not None:
        await store.drop(draft)
    return Start(view, first, 0, is_of_other_log)


def _is_usable(checkpoint: Checkpoint | None, spec: ViewSpec, generation: str, bounds: Bounds) -> bool:
    """False as well for a log of an older backup: its offsets mean other events."""
    return (
        checkpoint is not None
        and checkpoint.spec_hash == spec.spec_hash
        and checkpoint.generation == generation
        and len(checkpoint.offsets) == 1
        and checkpoint.offsets[0] <= bounds.end
    )


class Promotions:
    """Drafts that have caught up and are taking the place of the former rows, while the engine goes on with the others."""

    def __init__(self, store: OnlineStore, views: Mapping[str, CompiledView]) -> None:
        """views: by name, as defined."""
        self._store = store
        self._views = views
        self._tasks: list[tuple[Lane, asyncio.Task[None]]] = []

    @property
    def lanes(self) -> list[Lane]:
        """Of drafts under way, at the place where they stopped."""
        return [lane for lane, _ in self._tasks]

    def start(self, lane: Lane) -> None:
        """lane: only drafts, everything of them saved; nobody writes them any more."""
        specs = [self.view_of(worker).spec for worker in lane.workers]
        self._tasks.append((lane, asyncio.create_task(self._promote(specs))))

    def finished(self) -> list[Lane]:
        """Those whose views have their new rows now, until they are forgotten. Raises what the store raised."""
        done = [(lane, task) for lane, task in self._tasks if task.done()]
        for _, task in done:
            task.result()
        return [lane for lane, _ in done]

    def forget(self, lane: Lane) -> None:
        self._tasks = [pair for pair in self._tasks if pair[0] is not lane]

    def view_of(self, draft: ViewWorker) -> CompiledView:
        """As defined."""
        return self._views[draft.view.spec.shown]

    async def close(self) -> None:
        """Stop in the middle, if need be: the next start finishes it."""
        tasks = [task for _, task in self._tasks]
        self._tasks = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _promote(self, specs: list[ViewSpec]) -> None:
        for spec in specs:
            await self._store.promote(spec)


__all__ = ["Promotions", "Start", "find_start"]
