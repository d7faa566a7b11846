"""Amazon Kinesis Data Streams as a destination: PutRecords, with the customer key as partition key.

Follows the Kinesis API of 2013-12-02 (PutRecords): a request is judged record by record and keeps no order, so it holds one event a
customer. Kinesis knows no ids: a request whose answer was lost is put again, and the reader finds the repetition by the event id in the data.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Final, Self, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from headrace.cdc.config import Config
from headrace.cdc.errors import SinkError
from headrace.cdc.event import CustomerEvent
from headrace.sinks.awscredentials import CredentialSource
from headrace.sinks.base import CallSpec, Item, SinkFinding, SinkSection, Unfit
from headrace.sinks.sigv4 import Credentials, Signer
from headrace.sinks.stream import StreamSection, message
from headrace.sinks.transport import HttpClient, NoReply, Reply, retry_after_s
from headrace.sinks.verdict import AGAIN, DELIVERED, Answer, Fault, FaultKind, Verdict, outage, refused

_MAX_RECORDS: Final = 500
_MAX_RECORD_BYTES: Final = 1 << 20
_MAX_REQUEST_BYTES: Final = 4 << 20
"""Of data and keys; the service takes 5 MiB before base64."""
_JSON: Final = "application/x-amz-json-1.1"
_THROTTLED: Final = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "LimitExceededException",
        "ThrottlingException",
        "KMSThrottlingException",
    }
)
_OUTDATED: Final = frozenset({"ExpiredTokenException", "ExpiredToken", "RequestExpired"})
_TROUBLE: Final = frozenset(
    {"InternalFailure", "InternalFailureException", "ServiceUnavailable", "ResourceInUseException"}
)


class KinesisConfig(StreamSection, frozen=True, kw_only=True):
    """Amazon Kinesis Data Streams: each event a record, with the customer key as partition key."""

    region: Annotated[
        str, Meta(pattern="^[a-z0-9-]{1,40}$", description="AWS region of the stream.", examples=["eu-west-1"])
    ]
    stream: Annotated[
        str, Meta(pattern="^[a-zA-Z0-9_.-]{1,128}$", description="Name of the stream.", examples=["shop-events"])
    ]
    access_key: Annotated[str, Meta(description="AWS access key; default: environment, profile, role.")] = ""
    secret_key: Annotated[str, Meta(description="AWS secret key; give it by ${VARIABLE}.")] = ""
    session_token: Annotated[str, Meta(description="Session token of temporary credentials.")] = ""
    profile: Annotated[str, Meta(description="Name of a profile in ~/.aws/credentials.")] = ""
    endpoint: Annotated[
        str, Meta(description="Another address than the region's.", examples=["https://vpce-1.example"])
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("access_key and secret_key belong together")
        if self.order.mode == "run":
            raise ValueError(
                "order.mode: run can't hold: Kinesis takes the records of a request one by one, in no order"
            )

    def __repr__(self) -> str:
        return f"KinesisConfig(stream={self.stream!r})"


class KinesisSink:
    """See the module. credentials: asked before each request. wall: seconds since 1970."""

    config_type: ClassVar[type[SinkSection]] = KinesisConfig

    def __init__(
        self, config: KinesisConfig, credentials: CredentialSource, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._wants = config.when.wants
        self._credentials = credentials
        self._wall = wall
        self._endpoint = (config.endpoint or f"https://kinesis.{config.region}.amazonaws.com").rstrip("/")
        self._host = urlsplit(self._endpoint).netloc
        self._signer = Signer(self._host, config.region, "kinesis", content_type=_JSON)
        self._client = HttpClient(config.concurrency)
        self._tail = b'],"StreamName":%b}' % msgspec.json.encode(config.stream)

    @classmethod
    def from_config(cls, name: str, section: KinesisConfig, config: Config, *, is_replay: bool) -> Self:
        """See SinkType. A record has no place that says it is a replay."""
        static = (
            Credentials(section.access_key, section.secret_key, section.session_token) if section.access_key else None
        )
        return cls(section, CredentialSource(static, section.profile))

    @property
    def calls(self) -> Sequence[CallSpec]:
        return [CallSpec("put_records", _MAX_RECORDS, _MAX_REQUEST_BYTES)]

    async def open(self) -> None:
        """See Sink."""
        await self._client.open()

    async def close(self) -> None:
        """See Sink."""
        await self._client.close()

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        """See Sink. A key longer than the service's 256 characters is told by its SHA-256."""
        if not self._wants(event):
            return None
        data = message(self._config, event)
        # By the lane: what must keep its order must be in one shard. An event of no lane goes by its id, evenly over all.
        name = key if event.key is not None else event.id
        if not 0 < len(name) <= 256:
            name = hashlib.sha256(name.encode()).hexdigest()
        size = len(data) + len(name.encode())
        if size > _MAX_RECORD_BYTES:
            raise Unfit(f"it takes {size} bytes; a record may have {_MAX_RECORD_BYTES}")
        record = b'{"Data":"%b","PartitionKey":%b}' % (base64.b64encode(data), msgspec.json.encode(name))
        return Item(offset, key, event, "put_records", "", record, size)

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        """See Sink."""
        body = b'{"Records":[%b%b' % (b",".join([item.payload for item in items]), self._tail)
        try:
            reply = await self._ask("PutRecords", body)
        except NoReply as error:
            return outage(str(error))
        except SinkError as error:
            return Fault(FaultKind.DENIED, error.message)
        return self._read(reply, len(items))

    async def check(self) -> Sequence[SinkFinding]:
        """See Sink: DescribeStreamSummary, which needs the right of that name."""
        body = msgspec.json.encode({"StreamName": self._config.stream})
        try:
            reply = await self._ask("DescribeStreamSummary", body)
        except NoReply as error:
            return [SinkFinding(False, str(error), "check region, endpoint and network")]
        except SinkError as error:
            return [SinkFinding(False, error.message, error.advice)]
        if reply.status == 200:
            return [SinkFinding(True, f"stream {self._config.stream} of {self._host} is there")]
        said = f"{self._host} answers {reply.status} {error_name(reply)}".rstrip()
        return [
            SinkFinding(
                False, said, "correct credentials, the stream's name, or the right kinesis:DescribeStreamSummary"
            )
        ]

    async def _ask(self, target: str, body: bytes) -> Reply:
        credentials = await self._credentials.current()
        headers = self._signer.headers(credentials, "/", body, self._wall(), target=f"Kinesis_20131202.{target}")
        return await self._client.ask("POST", self._endpoint + "/", headers, body)

    def _read(self, reply: Reply, count: int) -> Answer:
        status = reply.status
        if status == 200:
            return self._by_record(reply, count)
        name = error_name(reply)
        said = f"{self._host} answers {status} {name}".rstrip()
        after_s = retry_after_s(reply.headers.get("retry-after"), self._wall())
        if status == 429 or name in _THROTTLED:
            return Fault(FaultKind.THROTTLED, said, after_s)
        if name in _OUTDATED:
            self._credentials.forget()
            return outage(f"{said}: the credentials are outdated and are looked for again")
        if status >= 500 or status == 408 or name in _TROUBLE:
            return outage(said, after_s)
        if status == 413:
            return Fault(FaultKind.TOO_LARGE, said)
        if status == 400 and name in ("", "InvalidArgumentException", "ValidationException", "SerializationException"):
            return Fault(FaultKind.BAD_BATCH, said)
        return Fault(FaultKind.DENIED, f"{said}: correct credentials, rights, or the stream's name")

    def _by_record(self, reply: Reply, count: int) -> Answer:
        try:
            tree: Any = msgspec.json.decode(reply.body)
            entries = cast("list[dict[str, Any]]", tree["Records"])
            codes = [entry.get("ErrorCode") for entry in entries]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            codes = []
        if len(codes) != count:
            return outage(f"{self._host} answers 200, but not about each record")
        if all(code in _THROTTLED for code in codes):
            return Fault(FaultKind.THROTTLED, f"{self._host} answers {codes[0]} for every record")
        return [self._verdict(code) for code in codes]

    def _verdict(self, code: object) -> Verdict:
        if code is None:
            return DELIVERED
        # A shard that is full, or in trouble, says nothing of the event: that must not count as an attempt.
        if code in _THROTTLED or code in _TROUBLE:
            return AGAIN
        return refused(f"{self._host} answers {code if isinstance(code, str) and code.isalnum() else 'an error'}")


def error_name(reply: Reply) -> str:
    """Of ``__type`` in the body, as ``com.amazonaws.kinesis#ResourceNotFoundException``; "" when there is none."""
    try:
        tree: Any = msgspec.json.decode(reply.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    found = cast("dict[str, Any]", tree).get("__type") if isinstance(tree, dict) else None
    name = found.rpartition("#")[2] if isinstance(found, str) else ""
    return name if name.isalnum() and len(name) <= 64 else ""


__all__ = ["KinesisConfig", "KinesisSink"]
