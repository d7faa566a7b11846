"""The source of type webhook: what another service posts in, durable events out. What HTTP says is webhook_http.py's.

A source that is pushed to, as the collector is: it appends by an intake of its own and answers only when all of a body is durable, as
events or as dead letters. A request that isn't signed is counted and kept nowhere, since anybody can send it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector as MetricCollector

from headrace.cdc.auth import is_local_host
from headrace.cdc.config import EventConfig
from headrace.cdc.decode.sdkpayload import Refusal
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import DeadLetter, EventLog, StoredLetter
from headrace.cdc.process.eventprivacy import withheld
from headrace.cdc.process.sdkcall import Identified
from headrace.cdc.process.signature import Verifier
from headrace.cdc.process.webhook import Came, WebhookMap
from headrace.cdc.setaside import EventContext, event_of, letter_of
from headrace.cdc.sources.base import SourceStatus
from headrace.cdc.sources.intake import BusyError, Intake, Post, Taken
from headrace.cdc.sources.preflight import Finding
from headrace.cdc.sources.webhook_config import WebhookConfig

if TYPE_CHECKING:
    from headrace.cdc.customers import Suppression
    from headrace.cdc.process.pipeline import Pipeline
    from headrace.cdc.process.validate import Plan

HOLD_S: Final = 5.0
"""A request waits so long for room before it is refused: senders give up after 5 to 10 s, and come again."""
BODY_S: Final = 30.0
"""A body that takes longer is given up."""
READING_BYTES: Final = 64 << 20
"""Of all bodies of the source that have begun to come."""
_SMALL_BYTES: Final = 256 << 10
"""Bodies from here on are read in a thread."""

_CHALLENGE_CHARS = 1024


class UnsignedError(Exception):
    """The request isn't to be trusted. reason: a code, for us; the sender isn't told more than that."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.reason = refusal.reason
        self.detail = refusal.detail


class WebhookSource:
    """See sources/base.py, PushedSource."""

    config_type: ClassVar[type[WebhookConfig]] = WebhookConfig

    def __init__(
        self,
        name: str,
        config: WebhookConfig,
        events: Mapping[str, EventConfig] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.config = config
        self.path = config.path or f"/webhooks/{name}"
        self._clock = clock
        self._max_event = config.max_event.bytes
        signing = config.signing()
        self._verifier = Verifier(signing, config.secrets) if config.secrets and signing is not None else None
        self._map = WebhookMap(
            name,
            config.rules(),
            each=config.each,
            form_field=config.field_of_form(),
            ignores_others=config.others == "ignore",
        )
        self._intake: Intake | None = None
        self._phase = "stopped"
        self._durable_us = 0
        self._plan: Plan | None = None
        self._pipeline: Pipeline | None = None
        self._suppression: Suppression | None = None
        self._last_refused = ""
        self.reading_bytes = 0
        self.refused = 0
        self.ignored = 0

    @property
    def needs_local_clients(self) -> bool:
        """Without a secret anybody who can reach the server could write: only this machine may."""
        return not self.config.secrets

    @property
    def needs(self) -> str:
        """See PushedSource."""
        return 'secrets: ["${SECRET}"]'

    @property
    def claims(self) -> str:
        """See PushedSource."""
        return self.path

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
        _numbers_of(registry).sources.append(self)

    @property
    def intake(self) -> Intake:
        """Raises RuntimeError before attach."""
        if self._intake is None:
            raise RuntimeError("the source isn't attached to a log")
        return self._intake

    def protocol(self, otherwise: Callable[[], asyncio.Protocol]) -> Any:
        """See PushedSource."""
        return _Passing(otherwise)

    def routes(self) -> Sequence[Any]:
        """The HTTP routes, as aiohttp knows them."""
        from headrace.cdc.sources.webhook_http import routes  # "headrace check" needs no HTTP server

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
        position = ""
        if self._durable_us:
            position = f"received {datetime.fromtimestamp(self._durable_us / 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"
        warnings = (
            [f"{self.refused} requests were refused, the last one since {self._last_refused}"] if self.refused else []
        )
        held = 0 if self._intake is None else self._intake.held_bytes
        return SourceStatus(self._phase, "", position, lag_bytes=held, warnings=warnings)

    async def check(self) -> list[Finding]:
        """What would go wrong; nothing outside this machine is asked."""
        if self.config.secrets:
            return []
        return [
            Finding(
                "no_secrets",
                "warning",
                "secrets",
                "no secret is configured: every program on this machine may send webhooks, and no other machine",
                'give the secret that the service signs with, such as secrets: ["${SECRET}"]',
            )
        ]

    def may_send(self, host: str, origin: str | None) -> bool:
        """Whether a request to this host (of its header) is looked at. origin: of a page; None: no browser."""
        return not self.needs_local_clients or (is_local_host(host) and origin is None)

    def challenged(self, query: Mapping[str, str]) -> str | None:
        """What to answer to a GET; None when it isn't the challenge that was agreed on."""
        asked = self.config.challenge
        if asked is None or not asked.query:
            return None
        if asked.token_query and not hmac.compare_digest(
            query.get(asked.token_query, "").encode(), asked.token.encode()
        ):
            return None
        text = query.get(asked.query)
        return text if text is not None and len(text) <= _CHALLENGE_CHARS and text.isprintable() else None

    def _posted_challenge(self, body: bytes) -> str | None:
        asked = self.config.challenge
        if asked is None or not asked.body or len(body) > _SMALL_BYTES:
            return None
        try:
            found = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        text: Any = found.get(asked.body) if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return text if isinstance(text, str) and len(text) <= _CHALLENGE_CHARS and text.isprintable() else None

    async def take(self, headers: Mapping[str, str], body: bytes) -> str | None:
        """Returns when all of it is durable; with the text to answer when it is a challenge, and no event. headers: names in lower case. Raises UnsignedError, BusyError, ClosingError."""
        now_us = int(self._clock() * 1_000_000)
        if self._verifier is not None:
            refusal = self._verifier.refusal(headers, body, now_us)
            if refusal is not None:
                self.refused += 1
                self._last_refused = refusal.detail
                raise UnsignedError(refusal)
        answer = self._posted_challenge(body)
        if answer is not None:
            return answer
        kept = {name: headers[name] for name in self._map.header_names if name in headers}
        came = Came(now_us, kept)
        waits = self._pipeline is not None and self._pipeline.waits
        is_quick = len(body) < _SMALL_BYTES and not waits
        post = self._post(body, came) if is_quick else await asyncio.to_thread(self._post, body, came)
        await self._stored(post)
        return None

    async def retry(self, stored: StoredLetter) -> bool:
        """See PushedSource. Raises BusyError, ClosingError."""
        letter = stored.letter
        if letter.source != self.name:
            return False
        kept = event_of(letter)
        if kept is not None:
            post = self._passed_again(stored, *kept)
        else:
            try:
                came = msgspec.json.decode(letter.context, type=Came)
            except msgspec.MsgspecError:
                return False
            post = self._post(letter.body, came)
        if post is None or post.letters:
            return False
        post.retried = (stored.id,)
        await self._stored(post)
        return not post.is_kept

    def _passed_again(self, stored: StoredLetter, event: CustomerEvent, context: EventContext) -> Post | None:
        """An event of which parts are hidden, through the plan and the pipeline of today."""
        passed: CustomerEvent | Refusal | None = event if self._plan is None else self._plan.judge(event)
        if self._pipeline is not None and isinstance(passed, CustomerEvent):
            passed = self._pipeline.one(passed)
        if isinstance(passed, Refusal):
            return None
        taken: list[Taken] = []
        if passed is not None:
            made = Identified(passed, bytes.fromhex(context.key), bytes.fromhex(context.body))
            taken.append(Taken(made, stored.letter.body, Came(event.received_us, {})))
        return Post(taken, [], len(stored.letter.body) + 512, (stored.id,))

    async def _stored(self, post: Post) -> None:
        """A sender that goes away takes nothing back: what was taken is appended all the same."""
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

    def _post(self, body: bytes, came: Came) -> Post:
        taken: list[Taken] = []
        letters: list[DeadLetter] = []
        if self._pipeline is not None:
            self._pipeline.begin()
        found = self._map.read(body, came, _unique())
        privacy = None if self._pipeline is None else self._pipeline.privacy
        for raw, each, outcome in found:
            judged = outcome
            if judged is None:
                self.ignored += 1
                continue
            if len(raw) > self._max_event:
                judged = Refusal("too_large", f"the event has more than {self._max_event} bytes (max_event)")
            if (
                self._suppression is not None
                and isinstance(judged, Identified)
                and self._suppression.refuses(judged.event)
            ):
                continue
            if privacy is not None and isinstance(judged, Identified):
                hidden = privacy.hidden(judged.event)
                if hidden is None:
                    continue
                judged.event = hidden
            event = judged
            if self._plan is not None and isinstance(judged, Identified):
                verdict = self._plan.judge(judged.event)
                if isinstance(verdict, Refusal):
                    judged = verdict
                else:
                    judged.event = verdict
            if self._pipeline is not None and isinstance(judged, Identified):
                passed = self._pipeline.one(judged.event)
                if passed is None:
                    continue
                if isinstance(passed, Refusal):
                    judged = passed  # kept as it came, and mapped again on a retry
                else:
                    judged.event = passed
            if privacy is not None:
                raw, each = withheld(raw), Came(each.received_us, {}, each.is_element)
            if isinstance(judged, Identified):
                taken.append(Taken(judged, raw, each))
            elif privacy is not None and isinstance(event, Identified):
                letters.append(letter_of(event.event, judged, key=event.key, body=event.body))
            else:
                context = msgspec.json.encode(each)
                letters.append(DeadLetter(self.name, judged.reason, judged.detail, each.received_us, raw, context))
        return Post(taken, letters, len(body) + 512 * len(found))


def _unique() -> Iterator[str]:
    while True:
        yield secrets.token_hex(16)


class _Passing:
    """Every connection is the HTTP server's own from its first byte on."""

    def __init__(self, otherwise: Callable[[], asyncio.Protocol]) -> None:
        self._otherwise = otherwise

    def __call__(self) -> asyncio.Protocol:
        return self._otherwise()

    async def stop(self, wait_s: float) -> None:
        """Nothing is held here."""


class _Numbers(MetricCollector):
    """One for all webhook sources of a registry: a family stands once in what Prometheus reads."""

    def __init__(self) -> None:
        self.sources: list[WebhookSource] = []

    def collect(self) -> list[Metric]:
        counts = [(one.name, one.intake.counts) for one in self.sources]
        return [
            _family("requests", "Signed requests.", [(name, of.requests) for name, of in counts]),
            _family("events", "Events of them, without repetitions.", [(name, of.events) for name, of in counts]),
            _family("duplicate_events", "Repeated deliveries.", [(name, of.duplicates) for name, of in counts]),
            _family("quarantined_events", "Dead letters of them.", [(name, of.letters) for name, of in counts]),
            _family("ignored_events", "Left out by a rule.", [(one.name, one.ignored) for one in self.sources]),
            _family(
                "refused_requests",
                "Not, wrongly or too long ago signed.",
                [(one.name, one.refused) for one in self.sources],
            ),
        ]


def _family(name: str, text: str, values: list[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(f"headrace_webhook_{name}", text, labels=["source"])
    for source, value in values:
        family.add_metric([source], value)
    return family


_numbers: WeakKeyDictionary[CollectorRegistry, _Numbers] = WeakKeyDictionary()


def _numbers_of(registry: CollectorRegistry) -> _Numbers:
    if registry not in _numbers:
        _numbers[registry] = _Numbers()
        registry.register(_numbers[registry])
    return _numbers[registry]


__all__ = ["UnsignedError", "WebhookSource"]
