"""Reads the log, has the addresses in it checked, and appends a verdict for each as an event of the same customer.

Nothing waits for it: an event flows on, the verdict comes later. Verdicts and the place up to which they go are one append, so each is there once, over any crash.
A verdict names the field and the event, never the address.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec

from headrace.cdc.checks.config import ChecksConfig, EmailCheckConfig
from headrace.cdc.checks.email import Answer, EmailCheck
from headrace.cdc.consumer import Health, Services
from headrace.cdc.errors import ConfigError, Trimmed
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import ConsumerLog
from headrace.cdc.process.draft import TREES, Draft
from headrace.cdc.process.fieldpath import FieldPath, parse_path

SOURCE = "checks"
_WAIT_S = 30.0
_READ_BYTES = 1 << 17
_AT_ONCE = 64
_KNOWN = 200_000
_COMMIT_EVERY_S = 5.0


class Checks:
    """Consumer of headrace.consumers. One partition after the other has its own place."""

    section: ClassVar[str | None] = "checks"
    config_type: ClassVar[Any] = ChecksConfig

    def __init__(self, config: EmailCheckConfig, log: ConsumerLog, *, clock: Callable[[], float] = time.time) -> None:
        """Raises ConfigError for a path that is none."""
        self._config = config
        self._log = log
        self._clock = clock
        self._check = EmailCheck(config)
        self._paths = _paths(config.fields)
        self._known: OrderedDict[bytes, tuple[float, Answer]] = OrderedDict()
        self._told: OrderedDict[bytes, float] = OrderedDict()
        self._offsets: dict[int, int] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._counts = {"valid": 0, "invalid": 0, "unknown": 0}

    @classmethod
    def build(cls, section: Any, services: Services) -> Checks | None:
        config: ChecksConfig | None = section
        return None if config is None or config.email is None else cls(config.email, services.log)

    @property
    def name(self) -> str:
        return SOURCE

    def routes(self) -> Iterable[Any]:
        return ()

    def health(self) -> Iterable[Health]:
        return ()

    def status(self) -> dict[str, Any]:
        return {
            "offset": [self._offsets.get(partition, 0) for partition in range(self._log.partitions)],
            **self._counts,
        }

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for partition in range(self._log.partitions):
                    group.create_task(self._follow(partition))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            await self._check.close()

    async def _follow(self, partition: int) -> None:
        source = f"{SOURCE}-{partition}"
        state = await self._log.source_state(source)
        stored = None if not state else msgspec.msgpack.decode(state, type=tuple[str, int])
        offset = stored[1] if stored is not None and stored[0] == self._log.generation else 0
        committed_at = 0.0
        while True:
            self._offsets[partition] = offset
            try:
                batch = await self._log.read(partition, offset, max_bytes=_READ_BYTES, wait_s=_WAIT_S)
            except Trimmed:
                offset = (await self._log.bounds(partition)).first
                continue
            if batch.next_offset == offset:
                continue
            verdicts = await self._verdicts(batch.events)
            offset = batch.next_offset
            if verdicts or time.monotonic() - committed_at > _COMMIT_EVERY_S:
                committed_at = time.monotonic()
                await self._log.append(
                    verdicts, source=source, state=msgspec.msgpack.encode((self._log.generation, offset))
                )
                await self._log.commit(SOURCE, partition, offset)

    async def _verdicts(self, events: Iterable[CustomerEvent]) -> list[CustomerEvent]:
        asked: list[tuple[CustomerEvent, FieldPath, asyncio.Task[Answer]]] = []
        running: dict[bytes, asyncio.Task[Answer]] = {}
        for event in events:
            if event.source.startswith(SOURCE) or event.kind in ("heartbeat", "schema", "record"):
                continue
            if event.row is not None and event.row.op not in ("insert", "update", "read"):
                continue
            draft = Draft(event)
            for path in self._paths:
                address = draft.read(path)
                if not isinstance(address, str) or not address:
                    continue
                hashed = blake2b(address.encode(), digest_size=16).digest()
                if self._is_told(blake2b(f"{event.key}\0{path.text}\0".encode() + hashed, digest_size=16).digest()):
                    continue
                task = running.get(hashed)
                if task is None:
                    task = running[hashed] = asyncio.create_task(self._answer(hashed, address))
                asked.append((event, path, task))
        try:
            return [self._event(event, path, await task) for event, path, task in asked]
        finally:
            for task in running.values():
                task.cancel()

    def _is_told(self, what: bytes) -> bool:
        """Whether this customer has been told of this value lately; it counts as told from now on."""
        now = self._clock()
        if self._told.get(what, 0.0) > now:
            return True
        self._told[what] = now + self._config.ttl.s
        while len(self._told) > _KNOWN:
            self._told.popitem(last=False)
        return False

    async def _answer(self, hashed: bytes, address: str) -> Answer:
        now = self._clock()
        known = self._known.get(hashed)
        if known is not None and known[0] > now:
            return known[1]
        async with self._slots:
            answer = await self._check.of(address)
        if answer.verdict != "unknown":
            self._known[hashed] = (now + self._config.ttl.s, answer)
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return answer

    def _event(self, event: CustomerEvent, path: FieldPath, answer: Answer) -> CustomerEvent:
        self._counts[answer.verdict] += 1
        now_us = int(self._clock() * 1_000_000)
        properties = {"field": path.text, "verdict": answer.verdict, "reason": answer.reason, "of": event.id}
        return CustomerEvent(
            f"{SOURCE}-{event.id}-{path.text}", "record", self._config.name, event.key, now_us, event.committed_us, now_us,
            SOURCE, "", msgspec.json.encode(properties), None, event.user_id, event.anonymous_id,
        )  # fmt: skip


def _paths(texts: Iterable[str]) -> list[FieldPath]:
    paths: list[FieldPath] = []
    problems: list[str] = []
    for number, text in enumerate(texts):
        try:
            path = parse_path(text, TREES, frozenset())
        except ValueError as error:
            problems.append(f"checks.email.fields[{number}]: {error}")
            continue
        if not path.is_one:
            problems.append(f"checks.email.fields[{number}]: * can't stand here, since it must be one place")
        paths.append(path)
    if problems:
        raise ConfigError("checks can't be used", problems=tuple(problems), advice="write paths as in properties.email")
    return paths


__all__ = ["SOURCE", "Checks"]
