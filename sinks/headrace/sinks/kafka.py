"""Apache Kafka as a destination, over librdkafka's idempotent producer (``pip install headrace[kafka]``).

Message key = customer key, header ``id`` = event id. The broker drops what the producer itself repeats; what headrace sends again after
an outage of its own or of the cluster comes with the same id, for the reader to find. Within a partition a message never overtakes an earlier one: with
``enable.gapless.guarantee`` a message that fails takes all behind it with it, and the next request gets a new producer. Follows
librdkafka's INTRODUCTION ("Idempotent Producer") and CONFIGURATION, version 2.16.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import msgspec
from msgspec import Meta

from headrace.cdc.config import Config
from headrace.cdc.errors import SinkError
from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import CallSpec, Item, SinkFinding, SinkSection
from headrace.sinks.envelope import CONTENT_TYPES
from headrace.sinks.stream import StreamName, StreamSection, message, missing
from headrace.sinks.verdict import AGAIN, DELIVERED, Answer, Fault, FaultKind, Verdict, outage, refused

_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_TOPIC_WORDS: Final = "is no topic: 1 to 249 letters, digits, dots, underscores and dashes"
_POLL_S: Final = 0.1
_DENIED: Final = frozenset(
    {
        "TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "SASL_AUTHENTICATION_FAILED", "_AUTHENTICATION", "_SSL",
        "UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "TOPIC_EXCEPTION", "UNSUPPORTED_SASL_MECHANISM", "INVALID_REQUIRED_ACKS",
        "POLICY_VIOLATION",
    }
)  # fmt: skip
_REFUSED: Final = frozenset(
    {"MSG_SIZE_TOO_LARGE", "INVALID_MSG", "INVALID_RECORD", "RECORD_LIST_TOO_LARGE", "INVALID_TIMESTAMP"}
)
_OURS: Final = frozenset(
    {
        "bootstrap.servers", "enable.idempotence", "enable.gapless.guarantee", "acks", "max.in.flight", "message.timeout.ms",
        "max.in.flight.requests.per.connection", "request.required.acks", "delivery.timeout.ms", "transactional.id", "retries",
        "message.send.max.retries",
    }
)  # fmt: skip


class KafkaConfig(StreamSection, frozen=True, kw_only=True):
    """Apache Kafka: each event a message with the customer key as key, in order within its partition."""

    brokers: Annotated[
        tuple[str, ...], Meta(min_length=1, description="Addresses to begin with.", examples=[["kafka-1:9092"]])
    ]
    topic: Annotated[
        str, Meta(description="The topic; {fields} of the event may choose it.", examples=["shop.{table}"])
    ] = "headrace"
    compression: Annotated[
        Literal["none", "gzip", "snappy", "lz4", "zstd"], Meta(description="How batches are compressed.")
    ] = "lz4"
    properties: Annotated[
        dict[str, str],
        Meta(
            description="Further settings of librdkafka, such as those of TLS and SASL; secrets by ${VARIABLE}.",
            examples=[
                {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "p"}
            ],
        ),
    ] = msgspec.field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        super().__post_init__()
        StreamName(self.topic, _TOPIC, _TOPIC_WORDS)
        wrong = _OURS & self.properties.keys()
        if wrong:
            raise ValueError(f"properties.{min(wrong)}: is set by us, because the order of messages hangs on it")

    def __repr__(self) -> str:
        return f"KafkaConfig(topic={self.topic!r})"


class _Batch:
    """The messages of one request: counted down in the poll thread, told to the loop once."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.left = count
        self.errors: dict[int, str] = {}
        self.done: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._lock = threading.Lock()

    def settle(self, place: int, error: str | None) -> None:
        """From either thread."""
        with self._lock:
            if error is not None:
                self.errors[place] = error
            self.left -= 1
            is_last = self.left == 0
        if is_last:
            try:
                self._loop.call_soon_threadsafe(self._finish)
            except RuntimeError:
                pass  # the loop is gone, and with it who waits

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _Poller:
    """One producer and the thread that serves its callbacks and destroys it. producer: None once it has ended."""

    def __init__(self, producer: Any, error: type[Exception]) -> None:
        self.producer: Any = producer
        self._error = error
        self._ending = threading.Lock()
        self.is_broken = False
        self._is_open = True
        self._has_ended = threading.Event()
        threading.Thread(target=self._run, name="headrace-kafka", daemon=True).start()

    def _run(self) -> None:
        try:
            while self._is_open or len(self.producer):
                self._serve()
        finally:
            producer, self.producer = self.producer, None
            self._has_ended.set()
        # The last reference: librdkafka joins its threads now, which can hang for good (its issues 1640, 5476), so nobody waits for it.
        del producer

    def _serve(self) -> None:
        try:
            self.producer.poll(_POLL_S)
        except self._error:
            # A gap that can't be filled is fatal to the producer: the messages behind it are told one by one, all as failed.
            self.is_broken = True

    def end(self) -> None:
        """Drop what hasn't been sent; returns when no message of this producer will be sent any more. Idempotent, of any thread."""
        self.is_broken = True
        with self._ending:
            if self._is_open:
                self.producer.purge(in_queue=True, in_flight=True, blocking=True)
                self._is_open = False
                self._has_ended.wait()


class KafkaSink:
    """See the module."""

    config_type: ClassVar[type[SinkSection]] = KafkaConfig

    def __init__(self, config: KafkaConfig, *, is_replay: bool = False) -> None:
        self._config = config
        self._wants = config.when.wants
        self._topic = StreamName(config.topic, _TOPIC, _TOPIC_WORDS)
        self._host = ",".join(config.brokers)
        self._headers = [("content-type", CONTENT_TYPES[config.format].encode())]
        if is_replay:
            self._headers.append(("headrace-replay", b"true"))
        self._library: Any = None
        self._poller: _Poller | None = None
        self._trouble_now = ""
        self._renewing = asyncio.Lock()

    @classmethod
    def from_config(cls, name: str, section: KafkaConfig, config: Config, *, is_replay: bool) -> Self:
        """See SinkType."""
        return cls(section, is_replay=is_replay)

    @property
    def calls(self) -> Sequence[CallSpec]:
        return [CallSpec("produce", 1_000, 4 << 20, is_run=True)]

    async def open(self) -> None:
        """See Sink. Raises SinkError when the library is missing or takes no such property."""
        try:
            import confluent_kafka
        except ImportError:
            raise missing("confluent-kafka", "kafka") from None
        self._library = confluent_kafka
        self._poller = self._made()

    async def close(self) -> None:
        """See Sink."""
        poller, self._poller = self._poller, None
        if poller is not None:
            await asyncio.to_thread(poller.end)

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        """See Sink."""
        if not self._wants(event):
            return None
        topic = self._topic.value(event)
        value = message(self._config, event)
        return Item(offset, key, event, "produce", "", (topic, value), len(value) + len(event.id) + 100)

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        """See Sink."""
        poller = await self._unbroken()
        batch = _Batch(len(items), asyncio.get_running_loop())
        is_full = False
        for place, item in enumerate(items):
            if is_full:
                batch.settle(place, "_QUEUE_FULL")
                continue
            try:
                self._produce(poller.producer, batch, place, item)
            except BufferError:
                is_full = True  # and so for those behind it: a later one must not go first
                batch.settle(place, "_QUEUE_FULL")
            except self._library.KafkaException as error:
                name = error.args[0].name()
                batch.settle(place, name)
                if name not in _REFUSED:
                    is_full = True
        try:
            await batch.done
        except asyncio.CancelledError:
            # What is still queued must not be sent behind what will be sent again: the next request waits until it is dropped.
            poller.is_broken = True
            raise
        if not batch.errors:
            self._trouble_now = ""
            return [DELIVERED] * len(items)
        return self._read(poller, batch, items)

    async def check(self) -> Sequence[SinkFinding]:
        """See Sink: asks for the topic's partitions, where the topic is the same for every event."""
        assert self._poller is not None, "opened first"
        poller = await self._unbroken()
        topic = self._topic.constant
        try:
            # Named, or an automatic topic would be made by asking for it; so a topic by event isn't asked for.
            found = await asyncio.to_thread(poller.producer.list_topics, timeout=10)
        except self._library.KafkaException as error:
            why = self._trouble_now or error.args[0].name()
            return [SinkFinding(False, f"{self._host} doesn't answer ({why})", "check brokers, properties and network")]
        if topic is None:
            return [SinkFinding(True, f"{self._host} answers; the topic differs by event and wasn't tried")]
        if topic not in found.topics or not found.topics[topic].partitions:
            return [SinkFinding(False, f"{self._host} has no topic {topic}", "create it, or correct topic")]
        return [SinkFinding(True, f"topic {topic} has {len(found.topics[topic].partitions)} partitions")]

    def _made(self) -> _Poller:
        config = self._config
        settings: dict[str, Any] = {
            "linger.ms": "2",
            "client.id": "headrace",
            # How long a topic that isn't there is waited for; the default of 30 s outlasts our time limit, which says less.
            "topic.metadata.propagation.max.ms": "3000",
            **config.properties,
            "bootstrap.servers": ",".join(config.brokers),
            "compression.type": config.compression,
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            # Before the dispatcher's own limit, which would only know that it took too long.
            "message.timeout.ms": int(max(1.0, config.timeout.s * 0.8) * 1_000),
            "error_cb": self._told,
            "logger": _SILENT,
        }
        try:
            return _Poller(self._library.Producer(settings), self._library.KafkaException)
        except self._library.KafkaException as error:
            raise SinkError(
                f"librdkafka takes these properties not: {error.args[0].str()}", advice="correct properties"
            ) from None

    def _produce(self, producer: Any, batch: _Batch, place: int, item: Item) -> None:
        topic, value = item.payload
        event = item.event

        def settled(error: Any, _: Any) -> None:
            batch.settle(place, None if error is None else error.name())

        producer.produce(
            topic,
            value,
            None if event.key is None else item.key,
            timestamp=max(0, event.committed_us // 1_000),
            headers=[("id", event.id.encode()), *self._headers],
            on_delivery=settled,
        )

    def _read(self, poller: _Poller, batch: _Batch, items: Sequence[Item]) -> Answer:
        names: dict[int, str] = batch.errors
        faults = [name for name in names.values() if name not in _REFUSED]
        if len(items) > 1 and len(names) == len(items) and set(names.values()) == {"MSG_SIZE_TOO_LARGE"}:
            # The broker judges a batch as one: smaller requests find which it is.
            poller.is_broken = True
            return Fault(FaultKind.TOO_LARGE, f"{self._host} finds a batch too large")
        if faults:
            poller.is_broken = True
            if len(names) == len(items):
                return self._fault(faults[0])
        verdicts: list[Verdict] = []
        stopped: set[str] = set()
        for place, item in enumerate(items):
            name = names.get(place)
            if name is None:
                verdicts.append(DELIVERED)
            elif name in _REFUSED and item.key not in stopped:
                verdicts.append(refused(f"{self._host} answers {name}"))
            else:
                stopped.add(item.key)
                verdicts.append(AGAIN)
        return verdicts

    async def _unbroken(self) -> _Poller:
        """A new producer only once the former one sends nothing any more."""
        async with self._renewing:
            poller = self._poller
            if poller is None or poller.is_broken:
                if poller is not None:
                    await asyncio.to_thread(poller.end)
                poller = self._poller = self._made()
            return poller

    def _fault(self, name: str) -> Fault:
        why = (
            self._trouble_now
            if name in ("_MSG_TIMED_OUT", "_PURGE_QUEUE", "_PURGE_INFLIGHT") and self._trouble_now
            else name
        )
        if why in _DENIED:
            return Fault(FaultKind.DENIED, f"{self._host} answers {why}: correct topic, properties or rights")
        return outage(f"{self._host} answers {why}")

    def _told(self, error: Any) -> None:
        """From the poll thread: what is wrong with all brokers, for the reason of the messages that time out."""
        self._trouble_now = error.name()


class _Silent:
    """librdkafka's own log lines hold addresses only, but repeat each second of an outage; the breaker says it once."""

    def log(self, level: int, text: str, *args: object) -> None: ...


_SILENT: Final = _Silent()

__all__ = ["KafkaConfig", "KafkaSink"]
