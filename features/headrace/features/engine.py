"""The feature engine: reads the log, keeps every view's rows in the online store fresh, and serves them.

One loop does all of it, so there is nothing to race: apply what the log has, write what falls due, let views that are behind catch up, and
now and then tell the log how far all views are. What decides where a view goes on is its checkpoint in the store, written in the same
step as its rows; the cursor in the log only holds the retention back. Time is log time: the newest commit time among the events
read, heartbeats included, never this machine's clock. So a replay writes the same bytes.

The log must have one partition: the changes of one source row may stand in different partitions (a delete under the default replica
identity doesn't carry the customer key), and only one partition keeps their order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry

from headrace.cdc.consumer import Health, Services
from headrace.cdc.errors import ConfigError, DefinitionError, HeadraceError, RequestRefused, StoreError, Trimmed
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import ConsumerLog
from headrace.features.compiled import CompiledView
from headrace.features.config import FeaturesConfig
from headrace.features.eraseroute import EraseRoute
from headrace.features.erasing import Erased, being_rebuilt, concerned, erase
from headrace.features.freshness import FeatureMetrics
from headrace.features.lane import Lane
from headrace.features.loading import load_definitions
from headrace.features.offline.logged import LoggedStore
from headrace.features.offline.segment import check_names, schema_of
from headrace.features.pageroutes import PageRoutes
from headrace.features.pushing import PushRoutes
from headrace.features.rebuilding import Promotions, find_start
from headrace.features.server import Applied, FeatureServer
from headrace.features.store.base import OnlineStore
from headrace.features.worker import StoppedView, ViewWorker

_GROUP = "features"
_READ_BYTES = 1 << 19
"""Some thousand events: what one round applies before the loop, and fresh events, get their turn again."""
_CATCH_UP_BYTES = 1 << 17
"""A lane that is behind works in slices of about this size: a fresh event waits for one of them at most."""

_DECAY_SLICE = 500
_LEAST_DECAY_SLICE = 64
"""A slice costs a question to the store as well, whatever its size."""
_DECAY_S = 0.008
"""What falls due is written in slices of about so long: a fresh event waits for one of them at most."""
_IDLE_S = 0.5
_SAVE_EVERY_S = 1.0
_COMMIT_EVERY_S = 5.0
_MOST_STATES = 20_000
_MOST_STATE_BYTES = 256 << 20
"""Of all views, about. A state of sums takes some 10 KiB, one with many bags some hundred."""
_BEHIND_EVENTS = 10_000
_OP_OF_SNAPSHOT = "read"

_SNAPSHOT_CURE = (
    "start a new log (another log.path), which begins with a fresh snapshot, or give log.retention more room next time"
)


class FeatureEngine:
    """Consumer of headrace.consumers; see the module.

    make_store: a store that isn't open yet; called for each run, since a failed run ends by closing its store. clock: seconds since 1970,
    only for measuring freshness and for readers' ttl; monotonic: for the pace of checkpoints. is_copying: a source isn't streaming yet.
    feature_log: its folder, for those who look; make_store's store writes it.
    """

    section: ClassVar[str | None] = "features"
    may_be_elsewhere: ClassVar[bool] = True
    config_type: ClassVar[type[msgspec.Struct] | None] = FeaturesConfig

    def __init__(
        self,
        views: Sequence[CompiledView],
        make_store: Callable[[], OnlineStore],
        log: ConsumerLog,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        most_states: int = _MOST_STATES,
        is_copying: Callable[[], bool] = lambda: False,
        feature_log: Path | None = None,
    ) -> None:
        if log.partitions != 1:
            raise ConfigError(
                f"features need a log of one partition, this one has {log.partitions}",
                problems=(
                    f"log.partitions: {log.partitions} partitions can't keep the changes of one row in order for features",
                ),
                advice="start a new log with partitions: 1",
            )
        self._views = tuple(views)
        self._make_store = make_store
        self._log = log
        self._clock = clock
        self._monotonic = monotonic
        self._most_states = most_states
        self._is_copying = is_copying
        self._metrics = FeatureMetrics(registry)
        self._server = FeatureServer(
            [view.spec for view in views], lambda: self._store, clock=clock, applied=self._applied
        )
        self._positions: dict[str, str] = {}
        self._erasing = EraseRoute(self.erase)
        self._to_erase: list[tuple[Mapping[str, str], asyncio.Future[list[Erased]]]] = []
        self._page = PageRoutes(views, self.status, feature_log, clock=clock)
        self._pushing = PushRoutes(views, log, self._server.until, clock=clock)
        self._store: OnlineStore | None = None
        self._main: Lane | None = None
        self._behind: list[Lane] = []
        self._promotions: Promotions | None = None
        self._of_other_log: set[str] = set()
        """Drafts whose former rows are of another log."""
        self._stopped: dict[str, StoppedView] = {}
        self._end = 0
        self._committed = -1
        self._saved_at = 0.0
        self._committed_at = 0.0
        self._has_due = False
        self._decay_slice = _DECAY_SLICE

    @classmethod
    def build(cls, section: Any, services: Services) -> FeatureEngine | None:
        """The engine, None without a ``features:`` section. Raises DefinitionError when the definitions are wrong."""
        if section is None:
            return None
        config: FeaturesConfig = section
        views = load_definitions(services.config.path(config.definitions))
        if config.offline is not None:
            for view in views:
                check_names(view.spec)
                schema_of(view.spec)
        return cls(
            views,
            lambda: make_store(config, services),
            services.log,
            services.registry,
            is_copying=services.is_copying,
            feature_log=None if config.offline is None else services.config.path(config.offline.path),
        )

    @property
    def name(self) -> str:
        return "features"

    def routes(self) -> Iterable[web.RouteDef]:
        return [*self._page.routes(), *self._server.routes(), *self._pushing.routes(), *self._erasing.routes()]

    async def run(self) -> None:
        """Work until cancelled. Raises StoreError (retry) when the store fails; the next run goes on from the checkpoints."""
        store = self._make_store()
        self._stopped.clear()
        try:
            await store.open()
            await self._begin(store)
            self._store = store
            # A store's client may swallow a cancellation: redis-py looks into its socket under asyncio.timeout(0), which turns one
            # that was asked for just before into its own time-out. Then nobody would cancel us again.
            task = asyncio.current_task()
            while task is None or not task.cancelling():
                await self.turn()
            raise asyncio.CancelledError
        finally:
            self._store = None
            self._main = None
            self._behind = []
            for _, done in self._to_erase:
                if not done.done():
                    done.set_exception(StoreError("the feature engine has stopped", advice="ask again when it runs"))
            self._to_erase = []
            if self._promotions is not None:
                await self._promotions.close()
                self._promotions = None
            await store.close()

    async def turn(self) -> None:
        """One round: fresh events first, then a slice of what falls due, then a slice of catching up."""
        assert self._main is not None
        await self._erase_asked()
        is_behind = any(lane.offset < self._main.offset for lane in self._behind)
        wait_s = 0.0 if self._has_due or is_behind else _IDLE_S
        await self._follow(self._main, wait_s)
        await self._decay()
        await self._catch_up()
        await self._take_promoted()
        self._count()
        await asyncio.sleep(0)  # a log and a store that answer at once would never let another task run
        now_s = self._monotonic()
        if now_s - self._saved_at >= _SAVE_EVERY_S:
            self._saved_at = now_s
            for lane in (self._main, *self._behind):
                await lane.save()
        if now_s - self._committed_at >= _COMMIT_EVERY_S:
            self._committed_at = now_s
            await self._hold_back_retention()

    async def erase(self, texts: Mapping[str, str]) -> list[Erased]:
        """Remove an entity from every view that has these join keys; see erasing.py.

        Raises DefinitionError when none has, RequestRefused while a view can't be written, StoreError (ask again).
        """
        if self._main is None:
            raise StoreError("the online store isn't open", advice="ask again when headrace is ready")
        done: asyncio.Future[list[Erased]] = asyncio.get_running_loop().create_future()
        self._to_erase.append((texts, done))
        return await done

    def health(self) -> Iterable[Health]:
        if self._main is None:
            return [Health("features", is_ready=False, reason="the online store isn't open")]
        result = [
            Health(f"features/{name}", is_ready=False, reason=f"{view.reason}; to mend it: {view.advice}")
            for name, view in self._stopped.items()
        ]
        for lane in self._behind:
            for worker in lane.workers:
                if not worker.view.spec.is_draft:  # of a draft the former rows are served
                    reason = f"catching up: {self._end - lane.offset} events of the log to go"
                    result.append(Health(f"features/{worker.view.spec.name}", is_ready=False, reason=reason))
        for lane in (self._main, *self._behind):
            for worker in lane.workers:
                if worker.kernel.counts.missing:
                    columns = ", ".join(sorted(worker.kernel.counts.missing))
                    reason = f"table {worker.view.table} has no column {columns}: correct the definition at {worker.view.defined_at}"
                    result.append(Health(f"features/{worker.view.spec.shown}", is_ready=False, reason=reason))
        lag = self._end - self._main.offset
        if lag > _BEHIND_EVENTS:
            result.append(Health("features", is_ready=False, reason=f"{lag} events behind the log"))
        return result or [Health("features", is_ready=True)]

    def status(self) -> dict[str, Any]:
        """offset: [next event to apply]; lag_events; log_time_us; freshness_ms: recent p50 and p99; views: by name."""
        main = self._main
        views: dict[str, Any] = {}
        for lane in self._lanes():
            for worker in lane.workers:
                phase = "rebuilding" if worker.view.spec.is_draft else "live" if lane is main else "catching up"
                views[worker.view.spec.shown] = {"phase": phase, **worker.status(), "offset": lane.offset}
        for name, view in self._stopped.items():
            views[name] = {"phase": "stopped", "reason": view.reason, "advice": view.advice}
        # The place of the view that is furthest behind: what everybody may rely on.
        offset = min([lane.offset for lane in self._lanes()], default=0)
        status: dict[str, Any] = {
            "offset": [offset],
            "lag_events": 0 if main is None else max(0, self._end - offset),
            "log_time_us": 0 if main is None else main.log_time_us,
            "freshness_ms": self._metrics.recent(),
            "views": views,
        }
        if isinstance(self._store, LoggedStore):
            status["feature_log"] = self._store.status()
        return status

    def _applied(self) -> Applied | None:
        """Of the view that is furthest behind."""
        if self._main is None:
            return None
        lanes = self._lanes()
        positions = self._positions if len(lanes) == 1 else {}
        return Applied(min(lane.offset for lane in lanes), self._main.log_time_us, positions)

    def _lanes(self) -> list[Lane]:
        """The main one first, when there is one."""
        promoting = [] if self._promotions is None else self._promotions.lanes
        return [*([] if self._main is None else [self._main]), *self._behind, *promoting]

    async def _begin(self, store: OnlineStore) -> None:
        """Find each view's place; views at the same place share a lane, the furthest is the main one."""
        bounds = await self._log.bounds(0)
        self._end = bounds.end
        places: dict[int, list[ViewWorker]] = {}
        drafts: dict[int, list[ViewWorker]] = {}
        self._of_other_log.clear()
        times: dict[int, int] = {}
        for view in self._views:
            start = await find_start(view, store, generation=self._log.generation, bounds=bounds)
            if start.offset < bounds.first:
                self._stop_trimmed(view, start.offset, bounds.first)
                continue
            if start.is_of_other_log:
                self._of_other_log.add(start.view.spec.name)
            worker = await self._worker(store, start.view, start.offset, start.log_time_us)
            kept = drafts if start.view.spec.is_draft else places
            kept.setdefault(start.offset, []).append(worker)
            times[start.offset] = start.log_time_us
        lanes = [Lane(places[offset], store, offset, times[offset], self._stop) for offset in sorted(places)]
        # Without any view that can go on, or with drafts alone, an empty lane keeps the loop, and the status, going.
        self._main = lanes.pop() if lanes else Lane([], store, bounds.end, 0, self._stop)
        self._behind = lanes
        self._behind += [Lane(drafts[offset], store, offset, times[offset], self._stop) for offset in sorted(drafts)]
        self._promotions = Promotions(store, {view.spec.name: view for view in self._views})
        self._has_due = False
        cursor = await self._log.committed(_GROUP, 0)
        self._committed = -1 if cursor is None else cursor.offset
        self._saved_at = self._committed_at = self._monotonic()
        await self._hold_back_retention()

    async def _follow(self, lane: Lane, wait_s: float) -> None:
        try:
            batch = await self._log.read(0, lane.offset, max_bytes=_READ_BYTES, wait_s=wait_s)
        except Trimmed:
            await self._drop_trimmed(lane)
            return
        if not batch.events:
            self._end = max(self._end, lane.offset)
            return
        self._end = max(batch.next_offset, (await self._log.bounds(0)).end)
        touching = await lane.apply(batch.events)
        for event in batch.events:
            self._positions[event.source] = event.position
        self._server.moved()
        self._measure(touching)

    async def _decay(self) -> None:
        assert self._main is not None
        began_s = self._monotonic()
        most = await self._main.decay(self._decay_slice)
        took_s = max(self._monotonic() - began_s, 0.001)
        self._has_due = most > 0
        if most == self._decay_slice or took_s > _DECAY_S:
            fitting = (self._decay_slice + int(self._decay_slice * _DECAY_S / took_s)) // 2
            self._decay_slice = min(max(fitting, _LEAST_DECAY_SLICE), _DECAY_SLICE)

    async def _catch_up(self) -> None:
        if not self._behind:
            return
        assert self._main is not None
        # It stays in its place meanwhile: whoever asks how far all views are asks between any two steps.
        lane = self._behind[0]
        try:
            batch = await self._log.read(0, lane.offset, max_bytes=_CATCH_UP_BYTES)
        except Trimmed:
            await self._drop_trimmed(lane)
        else:
            await lane.apply(batch.events[: self._main.offset - lane.offset])
            await lane.decay(_DECAY_SLICE)
            if lane.offset >= self._main.offset:
                await self._join(lane)
        self._behind.remove(lane)
        if lane.workers:
            self._behind.append(lane)

    async def _join(self, lane: Lane) -> None:
        """It has reached the main lane: its views become that one's, and its drafts may begin to take the former rows' place."""
        assert self._main is not None
        self._main.log_time_us = max(self._main.log_time_us, lane.log_time_us)
        drafts = [worker for worker in lane.workers if worker.view.spec.is_draft]
        if len(drafts) < len(lane.workers):
            self._main.workers.extend(worker for worker in lane.workers if worker not in drafts)
            self._has_due = True
        lane.workers = drafts
        if drafts and self._end - self._main.offset <= _BEHIND_EVENTS:
            await self._promote(lane)

    async def _promote(self, lane: Lane) -> None:
        assert self._promotions is not None and self._store is not None
        is_copying = bool(self._of_other_log) and self._is_copying()
        ready = [
            worker
            for worker in lane.workers
            if not worker.kernel.counts.missing and not (is_copying and worker.view.spec.name in self._of_other_log)
        ]
        if ready:
            await lane.save()
            self._promotions.start(Lane(ready, self._store, lane.offset, lane.log_time_us, self._stop))
            lane.workers = [worker for worker in lane.workers if worker not in ready]

    async def _take_promoted(self) -> None:
        assert self._promotions is not None and self._store is not None
        for lane in self._promotions.finished():
            workers: list[ViewWorker] = []
            for draft in lane.workers:
                view = self._promotions.view_of(draft)
                checkpoint = await self._store.checkpoint(view.spec)
                assert checkpoint is not None  # what was the draft's
                workers.append(await self._worker(self._store, view, lane.offset, checkpoint.log_time_us))
            self._promotions.forget(lane)
            self._behind.append(Lane(workers, self._store, lane.offset, lane.log_time_us, self._stop))

    async def _worker(self, store: OnlineStore, view: CompiledView, offset: int, log_time_us: int) -> ViewWorker:
        most_states = max(100, self._most_states // len(self._views))
        most_bytes = _MOST_STATE_BYTES // len(self._views)
        worker = ViewWorker(view, store, self._log.generation, most_states=most_states, most_bytes=most_bytes)
        await worker.begin(offset, log_time_us)
        return worker

    async def _erase_asked(self) -> None:
        while self._to_erase:
            texts, done = self._to_erase.pop(0)
            try:
                found = await self._erase(texts)
            except (DefinitionError, RequestRefused) as error:
                if not done.done():
                    done.set_exception(error)
            except BaseException as error:
                # What the store has of it is known at the next start only; whoever asked must not wait for that.
                if not done.done():
                    is_told = isinstance(error, HeadraceError)
                    done.set_exception(
                        error
                        if is_told
                        else StoreError("the feature engine has stopped", advice="ask again when it runs")
                    )
                raise
            else:
                if not done.done():
                    done.set_result(found)

    async def _erase(self, texts: Mapping[str, str]) -> list[Erased]:
        assert self._main is not None and self._store is not None
        found: list[Erased] = []
        wanted = concerned(self._views, texts)
        for view in wanted:
            if view.spec.name in self._stopped:
                raise RequestRefused(
                    f"view {view.spec.name!r} is stopped, and can't be erased from",
                    advice=self._stopped[view.spec.name].advice,
                )
        drafts = {
            worker.view.spec.shown for lane in self._lanes() for worker in lane.workers if worker.view.spec.is_draft
        }
        for view in wanted:
            if view.spec.name in drafts:
                raise being_rebuilt(view.spec.name)
        for lane in (self._main, *self._behind):
            for worker in lane.workers:
                if worker.view in wanted:
                    checkpoint = worker.checkpoint(lane.offset, lane.log_time_us)
                    erased, keys = await erase(worker.view.spec, texts, self._store, checkpoint.checkpoint)
                    worker.forget(keys)
                    worker.written(checkpoint)
                    found.append(erased)
        return found

    async def _hold_back_retention(self) -> None:
        assert self._main is not None
        workers = [worker for lane in self._lanes() for worker in lane.workers]
        if not workers:
            return
        offset = min(worker.stored_offset for worker in workers)
        if offset > self._committed:
            await self._log.commit(_GROUP, 0, offset)
            self._committed = offset

    def _measure(self, events: Sequence[CustomerEvent]) -> None:
        """Freshness of what has just been written; history and catching up say nothing about it."""
        if not events or self._main is None or self._end - self._main.offset > _BEHIND_EVENTS:
            return
        now_us = self._clock() * 1_000_000
        for event in events:
            if event.row is None or event.row.op != _OP_OF_SNAPSHOT:
                self._metrics.fresh((now_us - event.committed_us) / 1_000_000)

    def _count(self) -> None:
        assert self._main is not None
        self._metrics.lag(max(0, self._end - self._main.offset))
        for lane in (self._main, *self._behind):
            for worker in lane.workers:
                self._metrics.counted(worker.view.spec.shown, worker.news())

    def _stop(self, worker: ViewWorker, error: DefinitionError) -> None:
        self._stopped[worker.view.spec.shown] = StoppedView.of(worker.view, error)

    def _stop_trimmed(self, view: CompiledView, offset: int, first: int) -> None:
        error = DefinitionError(
            f"view {view.spec.shown!r} needs a rebuild from a snapshot: it would start at event {offset} of the log,"
            f" whose oldest kept event is {first}",
            advice=_SNAPSHOT_CURE,
        )
        self._stopped[view.spec.shown] = StoppedView.of(view, error)

    async def _drop_trimmed(self, lane: Lane) -> None:
        first = (await self._log.bounds(0)).first
        for worker in lane.workers:
            self._stop_trimmed(worker.view, lane.offset, first)
        lane.workers = []
        lane.offset = max(lane.offset, first)


def make_store(config: FeaturesConfig, services: Services) -> OnlineStore:
    """The store of the configuration, not open yet. Raises StoreError, ConfigError."""
    store: OnlineStore = config.store.kind.from_config(
        config.store.section, project=config.project, folder=services.config.folder
    )
    if config.offline is None:
        return store
    return LoggedStore(store, services.config.path(config.offline.path), roll_every_s=config.offline.roll_every.s)
