"""The source of type http: bodies of the Segment and RudderStack SDKs in, durable events out. What HTTP says is collector_http.py's.

A source that is pushed to: nobody reads it, so it has no capture; it appends by its intake and answers a body only when all of it is
durable, as events or as dead letters. Each bad event costs itself alone.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as MetricCollector

from headrace.cdc.auth import is_local_host
from headrace.cdc.config import EventConfig
from headrace.cdc.decode.sdkpayload import (
    MAX_CALLS,
    Payload,
    Refusal,
    Scalar,
    SdkCall,
    TooManyError,
    UnreadableError,
    read_batch,
    read_calls,
    read_single,
)
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import DeadLetter, EventLog, StoredLetter
from headrace.cdc.process.eventprivacy import withheld
from headrace.cdc.process.sdkcall import Delivery, Identified, identified
from headrace.cdc.setaside import EventContext, event_of, letter_of
from headrace.cdc.sources.base import SourceStatus
from headrace.cdc.sources.collector_config import CollectorConfig
from headrace.cdc.sources.inflate import inflate, is_gzip
from headrace.cdc.sources.intake import BusyError, Intake, Post, Taken
from headrace.cdc.sources.preflight import Finding

if TYPE_CHECKING:
    from headrace.cdc.customers import Suppression
    from headrace.cdc.process.pipeline import Pipeline
    from headrace.cdc.process.validate import Plan

ANY_WRITER: Final = "any"
"""Name of the writer where the configuration has no write keys."""

HOLD_S: Final = 8.0
"""A request waits so long for room before it is refused: the most impatient SDK waits 10 s."""

BODY_S: Final = 30.0
"""A body that takes longer is given up."""
BUSY_RETRY_S: Final = 5
CLOSING_RETRY_S: Final = 1
SMALL_BYTES: Final = 256 << 10
"""Bodies from here on are read in a thread: the loop goes on answering."""
READING_BYTES: Final = 64 << 20
"""Of all bodies that have begun to come."""

KINDS: Final = {
    "identify": "identify", "i": "identify",
    "track": "track", "t": "track",
    "page": "page", "p": "page",
    "screen": "screen", "s": "screen",
    "group": "group", "g": "group",
    "alias": "alias", "a": "alias",
    "record": "record",
    "batch": "", "b": "", "import": "",
}  # fmt: skip
"""Last part of the path -> kind of the call; "" for a batch."""

_EVENT_PATH: Final = re.compile(rb"(?:/[!-~]*)?/v1/+([a-z]+)/*")
_UNREADABLE: Final = "unreadable"


class Asked(msgspec.Struct, gc=False):
    """A request's body and what beside it decides what becomes of it.

    kind: what the path says, "" for a batch. key: write key of header or query; None: look into the body. body: unpacked.
    """

    kind: str
    key: str | None
    body: bytes
    received_us: int
    anonymous_id: str | None = None
    is_history: bool = False


class Reading:
    """A body on its way. held: bytes of it so far."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._pieces: list[bytes] = []
        self.held = 0

    def add(self, piece: bytes) -> None:
        """Raises BusyError when all the bodies on their way together are too much."""
        self.held += len(piece)
        self._collector.reading_bytes += len(piece)
        self._pieces.append(piece)
        if self._collector.reading_bytes > READING_BYTES:
            raise BusyError

    def end(self) -> bytes:
        """The bytes, which nobody counts any more. Ending twice is fine."""
        self._collector.reading_bytes -= self.held
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self.held = [], 0
        return body


class Refused(Exception):
    """The body isn't taken. status: 400 or 401. words: what the SDKs' own server says."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Collector:
    """See sources/base.py, PushedSource."""

    config_type: ClassVar[type[CollectorConfig]] = CollectorConfig

    def __init__(
        self,
        name: str,
        config: CollectorConfig,
        events: Mapping[str, EventConfig] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.config = config
        self._clock = clock
        self._max_event = config.max_event.bytes
        self._intake: Intake | None = None
        self._phase = "stopped"
        self._durable_us = 0
        self._plan: Plan | None = None
        self._pipeline: Pipeline | None = None
        self._suppression: Suppression | None = None
        self.reading_bytes = 0

    @property
    def needs_local_clients(self) -> bool:
        """Without write keys anybody who can reach the server could write: only this machine may."""
        return not self.config.write_keys

    @property
    def needs(self) -> str:
        """See PushedSource."""
        return 'write_keys: {"${WEB_KEY}": website}'

    @property
    def claims(self) -> str:
        """See PushedSource."""
        return "the paths of the SDKs"

    def attach(
        self,
        log: EventLog,
        registry: CollectorRegistry,
        durable: Callable[[str, int, int], None],
        plan: Plan | None = None,
        pipeline: Pipeline | None = None,
        suppression: Suppression | None = None,
    ) -> None:
        """See PushedSource."""

        def on_durable(events: int, first_us: int) -> None:
            durable(self.name, events, first_us)
            self._durable_us = max(self._durable_us, first_us)

        self._plan = plan
        self._pipeline = pipeline
        self._suppression = suppression
        self._intake = Intake(self.name, log, on_durable)
        registry.register(_Numbers(self.name, self._intake, plan))

    def may_send(self, host: str, origin: str | None) -> bool:
        """Whether a page of this origin (None: no browser) may send to this host (of the header)."""
        if self.needs_local_clients and not is_local_host(host):
            return False
        if origin is None or origin in self.config.origins:
            return True
        if self.needs_local_clients:
            return is_local_host(urlsplit(origin).netloc)
        return not self.config.origins

    @staticmethod
    def event_path(path: bytes) -> tuple[str, bool] | None:
        """Kind of the calls of an event route, and whether they are history; None for another path, and for one with a query."""
        found = _EVENT_PATH.fullmatch(path)
        call = "" if found is None else found[1].decode()
        if call not in KINDS or b"?" in path or b"%" in path or b"#" in path:
            return None
        return KINDS[call], call == "import"

    def is_small(self, body: bytes) -> bool:
        """Whether it may be read on the loop."""
        return len(body) < SMALL_BYTES and not is_gzip(body) and not self.waits

    @property
    def waits(self) -> bool:
        """A step of the pipeline may wait for somebody: not on the loop."""
        return self._pipeline is not None and self._pipeline.waits

    @property
    def intake(self) -> Intake:
        """Raises RuntimeError before attach."""
        if self._intake is None:
            raise RuntimeError("the collector isn't attached to a log")
        return self._intake

    def protocol(self, otherwise: Callable[[], Any]) -> Any:
        """See PushedSource."""
        from headrace.cdc.sources.collector_quick import QuickWay

        return QuickWay(self, otherwise)

    def routes(self) -> Sequence[Any]:
        """The HTTP routes, as aiohttp knows them."""
        from headrace.cdc.sources.collector_http import routes  # "headrace check" needs no HTTP server

        return routes(self)

    async def run(self, on_started: Callable[[], None] | None = None) -> None:
        """Take events until cancelled; what was taken is durable on return. Raises what the log raises."""
        running = asyncio.create_task(self.intake.run())
        try:
            await asyncio.sleep(0)  # open from here on
            self._phase = "streaming"
            if on_started is not None:
                on_started()
            await asyncio.shield(running)
        finally:
            self._phase = "stopped"
            running.cancel()
            await asyncio.wait([running])

    def status(self) -> SourceStatus:
        intake = self._intake
        position = ""
        if self._durable_us:
            position = f"received {datetime.fromtimestamp(self._durable_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"
        return SourceStatus(self._phase, "", position, lag_bytes=0 if intake is None else intake.held_bytes)

    async def check(self) -> list[Finding]:
        """What would go wrong; nothing outside this machine is asked."""
        if self.config.write_keys:
            return []
        return [
            Finding(
                "no_write_keys",
                "warning",
                "write_keys",
                "no write key is configured: every program on this machine may send events, and no other machine",
                'give keys by name, such as write_keys: {"${WEB_KEY}": website}',
            )
        ]

    def writer(self, key: str | None) -> str | None:
        """Name of what writes with this key; None: unknown."""
        if not self.config.write_keys:
            return ANY_WRITER
        return None if key is None else self.config.write_keys.get(key)

    def post(self, asked: Asked) -> Post:
        """What a body comes to, not submitted yet. Raises Refused.

        A body of a known writer that can't be read is refused as well, and its Post, in ``refused.post``, holds it as a dead letter.
        """
        try:
            payload = read_single(asked.body) if asked.kind else read_batch(asked.body)
            calls = list(read_calls(payload))
        except TooManyError:
            raise Refused(413, f"more than {MAX_CALLS} events in one body") from None
        except UnreadableError as error:
            writer = self._known(asked, Payload([]))
            raise UnreadableRefused(self._unreadable(asked, writer, str(error))) from error
        if asked.key is None:
            # The browser SDK and older mobile ones name the key in each event.
            payload.write_key = payload.write_key or next(
                (call.write_key for _, call in calls if isinstance(call, SdkCall) and call.write_key), None
            )
        delivery = self._delivery(asked, payload, self._known(asked, payload))
        if asked.kind and isinstance(calls[0][1], Refusal) and calls[0][1].reason == "not_json":
            raise UnreadableRefused(self._unreadable(asked, delivery.writer, calls[0][1].detail))
        return self._made(calls, delivery, len(asked.body))

    def _again(self, stored: StoredLetter) -> Post | None:
        """A dead letter as a Post that replaces it; None when it would become one again, or isn't of this source."""
        letter = stored.letter
        if letter.source != self.name:
            return None
        kept = event_of(letter)
        if kept is not None:
            return self._passed_again(stored, *kept)
        try:
            delivery = msgspec.json.decode(letter.context, type=Delivery)
        except msgspec.MsgspecError:
            return None
        if letter.reason == _UNREADABLE:
            try:
                payload = read_single(letter.body) if delivery.kind else read_batch(letter.body)
            except (UnreadableError, TooManyError):
                return None
            delivery = self._with_batch(delivery, payload)
        else:
            payload = Payload([letter.body])
        post = self._made(list(read_calls(payload)), delivery, len(letter.body))
        if post.letters:
            return None
        post.retried = (stored.id,)
        return post

    def _passed_again(self, stored: StoredLetter, event: CustomerEvent, context: EventContext) -> Post | None:
        """An event that the pipeline had set aside, through the pipeline of today."""
        passed: CustomerEvent | Refusal | None = event if self._plan is None else self._plan.judge(event)
        if self._pipeline is not None and isinstance(passed, CustomerEvent):
            passed = self._pipeline.one(passed)
        if isinstance(passed, Refusal):
            return None
        taken: list[Taken] = []
        if passed is not None:
            made = Identified(passed, bytes.fromhex(context.key), bytes.fromhex(context.body))
            writer = "" if event.sdk is None else event.sdk.writer
            taken.append(Taken(made, stored.letter.body, Delivery(self.name, writer, event.received_us)))
        return Post(taken, [], len(stored.letter.body) + 512, (stored.id,))

    async def take(self, asked: Asked) -> None:
        """Returns when all of it is durable; the body may be packed. Raises Refused, TooLargeError, BrokenError, BusyError, ClosingError."""
        is_packed = is_gzip(asked.body)
        is_small = len(asked.body) < SMALL_BYTES
        limit = self.config.max_body.bytes
        if is_packed:
            asked.body = inflate(asked.body, limit) if is_small else await asyncio.to_thread(inflate, asked.body, limit)
            is_small = len(asked.body) < SMALL_BYTES
        try:
            post = self.post(asked) if is_small and not self.waits else await asyncio.to_thread(self.post, asked)
        except UnreadableRefused as refused:
            await self.stored(refused.post)
            raise
        await self.stored(post)

    async def stored(self, post: Post) -> None:
        """Returns when all of it is durable; waits for room. Raises BusyError when there is none for HOLD_S, ClosingError.

        A client that goes away takes nothing back: what was taken is appended all the same.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + HOLD_S
        while True:
            try:
                done = self.intake.submit(post)
                break
            except BusyError:
                left_s = until - loop.time()
                if left_s <= 0 or not await self.intake.room(left_s):
                    raise
        await asyncio.shield(done)

    async def retry(self, stored: StoredLetter) -> bool:
        """See PushedSource. Raises BusyError, ClosingError."""
        post = self._again(stored)
        if post is None:
            return False
        await self.stored(post)
        return not post.is_kept

    def _known(self, asked: Asked, payload: Payload) -> str:
        key = asked.key if asked.key is not None else _key_text(payload.write_key)
        writer = self.writer(key)
        if writer is None:
            raise Refused(401, "failed to read writekey from header" if key is None else "invalid write key")
        return writer

    def _delivery(self, asked: Asked, payload: Payload, writer: str) -> Delivery:
        delivery = Delivery(
            self.name,
            writer,
            asked.received_us,
            asked.kind,
            asked.anonymous_id,
            is_history=asked.is_history,
        )
        return self._with_batch(delivery, payload)

    @staticmethod
    def _with_batch(delivery: Delivery, payload: Payload) -> Delivery:
        if payload.sent_at is None and not payload.context and not payload.integrations:
            return delivery
        return msgspec.structs.replace(
            delivery,
            sent_at=payload.sent_at,
            context=_object(payload.context),
            integrations=_object(payload.integrations),
        )

    def _made(
        self, calls: Sequence[tuple[msgspec.Raw | bytes, SdkCall | Refusal]], delivery: Delivery, size: int
    ) -> Post:
        taken: list[Taken] = []
        letters: list[DeadLetter] = []
        privacy = None if self._pipeline is None else self._pipeline.privacy
        if self._pipeline is not None:
            self._pipeline.begin()
        for raw, call in calls:
            if len(raw) > self._max_event:
                found: Identified | Refusal = Refusal(
                    "too_large", f"the event has more than {self._max_event} bytes (max_event)"
                )
            elif isinstance(call, Refusal):
                found = call
            else:
                found = identified(call, delivery, "" if call.message_id else secrets.token_hex(16))
            if (
                self._suppression is not None
                and isinstance(found, Identified)
                and self._suppression.refuses(found.event)
            ):
                continue
            if privacy is not None and isinstance(found, Identified):
                hidden = privacy.hidden(found.event)
                if hidden is None:
                    continue
                found.event = hidden
            if self._plan is not None and isinstance(found, Identified):
                judged = self._plan.judge(found.event)
                if isinstance(judged, Refusal):
                    if privacy is not None:
                        letters.append(letter_of(found.event, judged, key=found.key, body=found.body))
                        continue
                    found = judged
                else:
                    found.event = judged
            if self._pipeline is not None and isinstance(found, Identified):
                passed = self._pipeline.one(found.event)
                if isinstance(passed, Refusal):
                    letters.append(letter_of(found.event, passed, key=found.key, body=found.body))
                    continue
                if passed is None:
                    continue
                found.event = passed
            if privacy is not None:
                raw, delivery = withheld(raw), _bare(delivery)
            if isinstance(found, Identified):
                taken.append(Taken(found, raw, delivery))
            else:
                context = msgspec.json.encode(delivery)
                letters.append(
                    DeadLetter(self.name, found.reason, found.detail, delivery.received_us, bytes(raw), context)
                )
        return Post(taken, letters, size + 512 * len(calls))

    def _unreadable(self, asked: Asked, writer: str, detail: str) -> Post:
        delivery, body = self._delivery(asked, Payload([]), writer), asked.body
        if self._pipeline is not None and self._pipeline.privacy is not None:
            delivery, body = _bare(delivery), withheld(body)
        letter = DeadLetter(self.name, _UNREADABLE, detail, asked.received_us, body, msgspec.json.encode(delivery))
        return Post([], [letter], len(asked.body) + 512)

    def now_us(self) -> int:
        return int(self._clock() * 1_000_000)


def _bare(delivery: Delivery) -> Delivery:
    """Without what the sender said of the customer."""
    return msgspec.structs.replace(delivery, anonymous_id=None, context=b"", integrations=b"")


class UnreadableRefused(Refused):
    """post: the body as a dead letter, to be submitted before the answer."""

    def __init__(self, post: Post) -> None:
        super().__init__(400, "invalid json")
        self.post = post


class _Numbers(MetricCollector):
    def __init__(self, source: str, intake: Intake, plan: Plan | None) -> None:
        self._source = source
        self._intake = intake
        self._plan = plan

    def collect(self) -> list[Metric]:
        counts = self._intake.counts
        families: list[Metric] = []
        for name, text, value in (
            ("headrace_collector_requests", "Requests whose events were taken.", counts.requests),
            ("headrace_collector_events", "Events of them, without repetitions.", counts.events),
            ("headrace_collector_duplicate_events", "Events left out because they had come before.", counts.duplicates),
            ("headrace_collector_quarantined_events", "Events that became dead letters.", counts.letters),
            (
                "headrace_collector_unnamed_events",
                "Events without messageId, whose repetitions count twice.",
                counts.unnamed,
            ),
        ):
            counter = CounterMetricFamily(name, text, labels=["source"])
            counter.add_metric([self._source], value)
            families.append(counter)
        if self._plan is not None:
            for verdict, value in self._plan.violations.items():
                counter = CounterMetricFamily(
                    f"headrace_collector_plan_{verdict}_events",
                    f"Events that didn't fit the plan, verdict {verdict}.",
                    labels=["source"],
                )
                counter.add_metric([self._source], value)
                families.append(counter)
        held = GaugeMetricFamily("headrace_collector_held_bytes", "Bytes that wait for the log.", labels=["source"])
        held.add_metric([self._source], self._intake.held_bytes)
        families.append(held)
        return families


def _key_text(key: Scalar) -> str | None:
    return key if isinstance(key, str) and key else None


def _object(raw: bytes) -> bytes:
    """A batch's own context, when it is an object that can be decoded."""
    if not raw:
        return b""
    try:
        msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return b""
    return bytes(raw)
