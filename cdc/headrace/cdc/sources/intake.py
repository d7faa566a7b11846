"""Between the requests of a collector and the log: what came at the same time shares one append, and each message counts once.

A request is a Post; its future is done when the append that holds it is durable. While appends are under way the next Posts gather, so
the disk's time sets the size of a group. Repetitions are found by the log's own ids, which the same append makes known: a crash can't
part an event from its id.

What is held is bounded in bytes. Beyond that a Post is refused with BusyError, and whoever brought it waits for room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypedDict

import msgspec

from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import DeadLetter, EventLog, SeenIds
from headrace.cdc.process.sdkcall import Delivery, Identified
from headrace.cdc.process.webhook import Came

HELD_BYTES: Final = 32 << 20
_GROUP_BYTES: Final = 4 << 20
_UNDER_WAY: Final = 2


class BusyError(Exception):
    """There is no room now."""


class ClosingError(Exception):
    """The process stops, or the log has failed: nothing is taken any more."""


class Taken(msgspec.Struct, gc=False):
    """A readable call: its event, and what is needed to make a dead letter of it."""

    identified: Identified
    raw: msgspec.Raw | bytes
    delivery: Delivery | Came


class Post(msgspec.Struct, gc=False):
    """One request. size: about how many bytes it takes here. done: made by ``submit``.

    retried: ids of the dead letters it was made of; a conflict then makes no further one, and is_kept says that they stay.
    """

    taken: list[Taken]
    letters: list[DeadLetter]
    size: int
    retried: tuple[int, ...] = ()
    is_kept: bool = False
    done: asyncio.Future[None] | None = None


class IntakeCounts(msgspec.Struct):
    """Since the start. duplicates: repetitions that were left out; unnamed: events without a messageId."""

    requests: int = 0
    events: int = 0
    duplicates: int = 0
    letters: int = 0
    unnamed: int = 0
    appends: int = 0


class _Sorted(TypedDict):
    events: list[CustomerEvent]
    ids: SeenIds | None
    letters: list[DeadLetter]
    retried: list[int]


class Intake:
    """submit from anywhere on the loop; run appends until cancelled, and takes nothing more from then on."""

    def __init__(
        self, source: str, log: EventLog, on_durable: Callable[[int, int], None] = lambda events, us: None
    ) -> None:
        """on_durable: told of each append: how many events, when the first of them was received."""
        self._source = source
        self._log = log
        self._on_durable = on_durable
        self._gathered: list[Post] = []
        self._news = asyncio.Event()
        self._room: set[asyncio.Future[None]] = set()
        self._held = 0
        self._is_open = False
        self._under_way: set[asyncio.Task[None]] = set()
        self._failure: Exception | None = None
        self.counts = IntakeCounts()

    @property
    def held_bytes(self) -> int:
        return self._held

    def submit(self, post: Post) -> asyncio.Future[None]:
        """Queue it; the future is done once it is durable, and holds ClosingError if it won't be. Raises BusyError, ClosingError: then it wasn't taken.

        A Post that is alone is taken whatever its size.
        """
        if not self._is_open:
            raise ClosingError
        if self._held and self._held + post.size > HELD_BYTES:
            raise BusyError
        self._held += post.size
        self.counts.requests += 1
        self._gathered.append(post)
        self._news.set()
        post.done = asyncio.get_running_loop().create_future()
        return post.done

    async def room(self, wait_s: float) -> bool:
        """Wait until something was let go; False when nothing was within wait_s."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.add(waiter)
        try:
            await asyncio.wait_for(waiter, wait_s)
        except TimeoutError:
            return False
        finally:
            self._room.discard(waiter)
        return True

    async def run(self) -> None:
        """Append what gathers. Cancelled, it finishes what was taken. Raises what the log raises."""
        self._is_open = True
        slots = asyncio.Semaphore(_UNDER_WAY)
        try:
            while True:
                await self._news.wait()
                await slots.acquire()
                if self._failure is not None:
                    raise self._failure
                await self._append_group(slots)
        finally:
            self._is_open = False
            await self._finish(slots)

    async def _finish(self, slots: asyncio.Semaphore) -> None:
        while self._gathered and self._failure is None:
            await slots.acquire()
            await self._append_group(slots)
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._settle(self._gathered, ClosingError())
        self._gathered.clear()

    async def _append_group(self, slots: asyncio.Semaphore) -> None:
        """Start one append; on return the log has been asked for it, so that the next group's look-up sees its ids."""
        group = self._cut_group()
        try:
            found = await self._sorted(group)
            append = self._log.append(**found, source=self._source, state=b"")
        except BaseException as error:
            self._settle(group, error)
            slots.release()
            if isinstance(error, Exception):
                self._failure = error
            raise

        async def appended() -> None:
            failure: Exception | None = None
            try:
                await append
                if found["events"] and not found["retried"]:
                    self._on_durable(len(found["events"]), found["events"][0].received_us)
            except Exception as error:  # noqa: BLE001  # a defect too: run raises it, as what came behind must not overtake
                failure = self._failure = error
                self._news.set()
            finally:
                self._settle(group, failure)
                slots.release()

        task = asyncio.get_running_loop().create_task(appended())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.sleep(0)

    def _cut_group(self) -> list[Post]:
        size = count = 0
        for post in self._gathered:
            if count and size + post.size > _GROUP_BYTES:
                break
            size += post.size
            count += 1
        group = self._gathered[:count]
        del self._gathered[:count]
        if not self._gathered:
            self._news.clear()
        return group

    async def _sorted(self, group: list[Post]) -> _Sorted:
        keys = [taken.identified.key for post in group for taken in post.taken if taken.identified.key]
        known = await self._log.seen(keys) if keys else {}
        events: list[CustomerEvent] = []
        letters: list[DeadLetter] = []
        retried: list[int] = []
        bodies: dict[bytes, bytes] = {}
        counts = self.counts
        for post in group:
            letters += post.letters
            for taken in post.taken:
                identified = taken.identified
                key = identified.key
                if not key:
                    counts.unnamed += 1
                    events.append(identified.event)
                    continue
                body = known.get(key) or bodies.get(key)
                if body is None:
                    bodies[key] = identified.body
                    events.append(identified.event)
                elif body == identified.body:
                    counts.duplicates += 1
                elif post.retried:
                    post.is_kept = True
                else:
                    letters.append(_conflict(taken))
            if not post.is_kept:
                retried += post.retried
        counts.events += len(events)
        counts.letters += len(letters)
        counts.appends += 1
        at_us = group[0].taken[0].identified.event.received_us if group[0].taken else 0
        if events:
            at_us = events[0].received_us
        return {
            "events": events,
            "ids": SeenIds(at_us, bodies) if bodies else None,
            "letters": letters,
            "retried": retried,
        }

    def _settle(self, group: list[Post], failure: BaseException | None) -> None:
        size = 0
        for post in group:
            size += post.size
            if post.done is not None and not post.done.done():
                if failure is None:
                    post.done.set_result(None)
                else:
                    post.done.set_exception(ClosingError())
        self._let_go(size)

    def _let_go(self, size: int) -> None:
        self._held -= size
        for waiter in self._room:
            if not waiter.done():
                waiter.set_result(None)


def _conflict(taken: Taken) -> DeadLetter:
    event = taken.identified.event
    return DeadLetter(
        event.source,
        "conflict",
        "another event with the same messageId came before and says something else",
        event.received_us,
        bytes(taken.raw),
        msgspec.json.encode(taken.delivery),
    )
