"""NATS JetStream as a destination: one acknowledged publish an event, with its id as ``Nats-Msg-Id``.

The server drops a repetition within the stream's duplicate window (two minutes unless the stream says otherwise) and says so. A request holds
one event a customer, all under way at once: JetStream judges each message alone, so a later one could overtake a refused one. Follows the
JetStream developer's guide of docs.nats.io and ADR-1, over nats-py (``pip install headrace[nats]``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Self
from urllib.parse import urlsplit

from msgspec import Meta

from headrace.cdc.config import Config
from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import CallSpec, Item, SinkFinding, SinkSection
from headrace.sinks.envelope import CONTENT_TYPES
from headrace.sinks.stream import StreamName, StreamSection, message, missing
from headrace.sinks.verdict import AGAIN, DELIVERED, Answer, Fault, FaultKind, Verdict, outage, refused

_SUBJECT: Final = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
_SUBJECT_WORDS: Final = "is no subject to publish to: words with dots between, without spaces, * and >"
_FULL: Final = frozenset({10023, 10047, 10077, 10122})
"""Error codes of the server: resources, storage or memory are short, or the stream is full and set to refuse what is new."""


class NatsConfig(StreamSection, frozen=True, kw_only=True):
    """NATS JetStream: each event an acknowledged message of a subject."""

    url: Annotated[
        str, Meta(description="nats:// or tls:// addresses, separated by commas.", examples=["nats://127.0.0.1:4222"])
    ]
    subject: Annotated[
        str,
        Meta(
            description="The subject; {fields} of the event may choose it. A stream must take it.",
            examples=["shop.{table}"],
        ),
    ] = "headrace.events"
    user: Annotated[str, Meta(description="User, where the server asks for one.")] = ""
    password: Annotated[str, Meta(description="Its password; give it by ${VARIABLE}.")] = ""
    token: Annotated[str, Meta(description="Token, where the server asks for one; give it by ${VARIABLE}.")] = ""
    credentials: Annotated[
        str, Meta(description="File with JWT and seed, as `nsc` writes it; relative to the configuration's folder.")
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for url in self.url.split(","):
            parts = urlsplit(url.strip())
            if parts.scheme not in ("nats", "tls") or not parts.hostname:
                raise ValueError(f"url must be nats://host:port or tls://host:port, not one of scheme {parts.scheme!r}")
            if parts.username is not None or parts.password is not None:
                raise ValueError("url holds a user or password: set user and password, or token")
        StreamName(self.subject, _SUBJECT, _SUBJECT_WORDS)

    def __repr__(self) -> str:
        return f"NatsConfig(subject={self.subject!r})"


class NatsSink:
    """See the module. It connects at its first request and again after a failure; the dispatcher's breaker paces that."""

    config_type: ClassVar[type[SinkSection]] = NatsConfig

    def __init__(self, config: NatsConfig, *, credentials: str = "", is_replay: bool = False) -> None:
        self._config = config
        self._wants = config.when.wants
        self._subject = StreamName(config.subject, _SUBJECT, _SUBJECT_WORDS)
        self._host = urlsplit(config.url.split(",")[0]).hostname or ""
        self._credentials = credentials
        self._headers = {"Content-Type": CONTENT_TYPES[config.format]} | (
            {"Headrace-Replay": "true"} if is_replay else {}
        )
        self._nats: Any = None
        self._client: Any = None
        self._lock = asyncio.Lock()

    @classmethod
    def from_config(cls, name: str, section: NatsConfig, config: Config, *, is_replay: bool) -> Self:
        """See SinkType."""
        path = str(config.path(section.credentials)) if section.credentials else ""
        return cls(section, credentials=path, is_replay=is_replay)

    @property
    def calls(self) -> Sequence[CallSpec]:
        return [CallSpec("publish", 256, 4 << 20)]

    async def open(self) -> None:
        """See Sink."""
        try:
            import nats
        except ImportError:
            raise missing("nats-py", "nats") from None
        self._nats = nats

    async def close(self) -> None:
        """See Sink."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        """See Sink."""
        if not self._wants(event):
            return None
        subject = self._subject.value(event)
        value = message(self._config, event)
        return Item(offset, key, event, "publish", "", (subject, value), len(value) + len(subject) + 128)

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        """See Sink."""
        try:
            client = await self._connected()
        except Exception as error:  # noqa: BLE001 - the client raises errors of many families; each is the destination's trouble
            return self._trouble(error)
        stream = client.jetstream(timeout=max(1.0, self._config.timeout.s * 0.8))
        # With `order.mode: run` a request has several events of a key: those go one after another.
        lanes: dict[str, list[int]] = {}
        for place, item in enumerate(items):
            lanes.setdefault(item.key, []).append(place)
        verdicts: list[Verdict | Fault] = [AGAIN] * len(items)

        async def publish(places: list[int]) -> None:
            for place in places:
                verdicts[place] = await self._publish(stream, items[place])
                if isinstance(verdicts[place], Fault):
                    return

        await asyncio.gather(*(publish(places) for places in lanes.values()))
        faults = [each for each in verdicts if isinstance(each, Fault)]
        if faults and not any(each is DELIVERED for each in verdicts):
            return faults[0]
        return [AGAIN if isinstance(each, Fault) else each for each in verdicts]

    async def check(self) -> Sequence[SinkFinding]:
        """See Sink: asks which stream takes the subject, where that is the same for every event."""
        try:
            client = await self._connected()
            stream = client.jetstream(timeout=10)
            if self._subject.constant is None:
                await stream.account_info()
                return [SinkFinding(True, f"{self._host} has JetStream; the subject differs by event and wasn't tried")]
            name = await stream.find_stream_name_by_subject(self._subject.constant)
        except Exception as error:  # noqa: BLE001 - as above
            if isinstance(error, self._nats.js.errors.NotFoundError):
                return [
                    SinkFinding(
                        False, f"no stream of {self._host} takes {self._subject.constant}", "add a stream for it"
                    )
                ]
            return [SinkFinding(False, self._trouble(error).reason, "check url, credentials and JetStream")]
        return [SinkFinding(True, f"stream {name} of {self._host} takes {self._subject.constant}")]

    async def _publish(self, stream: Any, item: Item) -> Verdict | Fault:
        subject, value = item.payload
        headers = self._headers | {"Nats-Msg-Id": item.event.id}
        if item.event.key is not None and item.event.key.isprintable() and item.event.key.isascii():
            headers["Headrace-Key"] = item.event.key
        try:
            await stream.publish(subject, value, headers=headers)
        except self._nats.errors.MaxPayloadError:
            return refused("it is larger than the server's max_payload")
        except Exception as error:  # noqa: BLE001 - as above
            return self._trouble(error)
        return DELIVERED

    async def _connected(self) -> Any:
        async with self._lock:
            if self._client is None or not self._client.is_connected:
                former, self._client = self._client, None
                if former is not None:
                    await former.close()
                config = self._config
                options: dict[str, Any] = {"user_credentials": self._credentials} if self._credentials else {}
                options |= {"user": config.user, "password": config.password} if config.user else {}
                options |= {"token": config.token} if config.token else {}
                client = self._nats.NATS()
                try:
                    await client.connect(
                        [url.strip() for url in config.url.split(",")],
                        # What was handed to a connection that is gone must be answered for, not sent again by somebody else.
                        allow_reconnect=False,
                        # Without these two the first connection is tried for two minutes.
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        connect_timeout=5,
                        error_cb=_quiet,
                        name="headrace",
                        **options,
                    )
                except BaseException:
                    await client.close()
                    # A server that refuses us closes its end; the client leaves ours open.
                    transport = getattr(client, "_transport", None)
                    if transport is not None:
                        transport.close()
                    raise
                self._client = client
            return self._client

    def _trouble(self, error: Exception) -> Fault:
        errors, js = self._nats.errors, self._nats.js.errors
        if isinstance(error, js.NoStreamResponseError | errors.NoRespondersError):
            return Fault(FaultKind.DENIED, f"no stream of {self._host} takes the subject: add one, or correct subject")
        if isinstance(error, errors.AuthorizationError) or "authorization" in str(error).lower():
            return Fault(FaultKind.DENIED, f"{self._host} refuses our credentials: correct them, or their rights there")
        if isinstance(error, js.APIError):
            said_by: Any = error
            code, number = said_by.code or 500, said_by.err_code
            said = f"{self._host} answers {code}, error {number}"
            if number in _FULL:
                return outage(f"{said}: the stream or the server is full")
            return outage(said) if code >= 500 else Fault(FaultKind.BAD_BATCH, said)
        return outage(f"{self._host} can't be reached ({type(error).__name__})")


async def _quiet(error: Exception) -> None:
    """The client's own trouble comes with the next publish too."""


__all__ = ["NatsConfig", "NatsSink"]
