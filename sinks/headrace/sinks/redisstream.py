"""Redis Streams as a destination: XADD, each event id once within ``remember``.

One script call a stream and request adds its events in order and notes their ids, both or neither; it stops at the first that can't be
added, so that a customer's events never change places. A repetition within ``remember`` is answered as delivered and adds nothing. An id note is a
key ``{stream}:headrace:<event id>``, in the stream's own cluster slot. Follows the Redis 7 command reference (XADD, SET, EVAL).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Self, cast
from urllib.parse import urlsplit

import msgspec
import redis.asyncio as redis_asyncio
from msgspec import Meta
from redis import exceptions

from headrace.cdc.config import Config, Duration
from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import CallSpec, Item, SinkFinding, SinkSection
from headrace.sinks.stream import StreamName, StreamSection, message, names_of
from headrace.sinks.verdict import AGAIN, DELIVERED, Answer, Fault, FaultKind, Verdict, outage, refused

_NAME: Final = re.compile(r"[^\x00-\x20{}]{1,512}")
_NAME_WORDS: Final = "is no name of a stream here: 1 to 512 characters without spaces and braces"

# ARGV: length to trim to (0 = never), how long ids are noted (ms), "1" for a replay, then id, key, value of each event.
_SCRIPT: Final = b"""
local name, most, keep, replay = KEYS[1], tonumber(ARGV[1]), ARGV[2], ARGV[3]
local said = {}
for i = 4, #ARGV, 3 do
  local note = KEYS[2 + (i - 4) / 3]
  if redis.call('EXISTS', note) == 1 then
    said[#said + 1] = 0
  else
    local words = {'XADD', name}
    if most > 0 then words[3], words[4], words[5] = 'MAXLEN', '~', most end
    for _, word in ipairs({'*', 'id', ARGV[i], 'key', ARGV[i + 1], 'value', ARGV[i + 2]}) do words[#words + 1] = word end
    if replay == '1' then words[#words + 1] = 'replay'; words[#words + 1] = 'true' end
    local done = redis.pcall(unpack(words))
    if type(done) == 'table' and done.err then
      said[#said + 1] = done.err
      return said
    end
    redis.call('SET', note, done, 'PX', keep)
    said[#said + 1] = 1
  end
end
return said
"""
_DENIED: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "WRONGTYPE", "MOVED", "CROSSSLOT")
_TROUBLE: Final = (
    "OOM",
    "READONLY",
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "MISCONF",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
)


class RedisStreamConfig(StreamSection, frozen=True, kw_only=True):
    """Redis Streams: each event an entry with fields id, key and value."""

    url: Annotated[
        str,
        Meta(
            description="redis://, rediss:// (TLS) or unix:// address; a password by ${VARIABLE}.",
            examples=["redis://127.0.0.1:6379/0"],
        ),
    ]
    stream: Annotated[
        str, Meta(description="The stream; {fields} of the event may choose it.", examples=["shop.{table}"])
    ] = "headrace"
    max_length: Annotated[
        int, Meta(ge=0, description="About how many entries a stream keeps; 0 = all.", examples=[1_000_000])
    ] = 0
    remember: Annotated[
        Duration, Meta(description="How long an event's id is noted, so that a repetition adds nothing.")
    ] = msgspec.field(default_factory=lambda: Duration(600_000_000))

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path.strip("/")):
            raise ValueError("url must be redis://host:port/db, rediss://host:port/db or unix:///path/of/socket")
        if self.remember.s < 1:
            raise ValueError("remember: less than a second would note no id for long enough to find a repetition")
        StreamName(self.stream, _NAME, _NAME_WORDS)

    def __repr__(self) -> str:
        return f"RedisStreamConfig(stream={self.stream!r})"


class RedisStreamSink:
    """See the module."""

    config_type: ClassVar[type[SinkSection]] = RedisStreamConfig

    def __init__(self, config: RedisStreamConfig, *, is_replay: bool = False) -> None:
        self._config = config
        self._wants = config.when.wants
        self._name = StreamName(config.stream, _NAME, _NAME_WORDS)
        self._host = urlsplit(config.url).hostname or "the socket"
        self._head = (config.max_length, int(config.remember.s * 1_000), "1" if is_replay else "")
        self._client: Any = None

    @classmethod
    def from_config(cls, name: str, section: RedisStreamConfig, config: Config, *, is_replay: bool) -> Self:
        """See SinkType."""
        return cls(section, is_replay=is_replay)

    @property
    def calls(self) -> Sequence[CallSpec]:
        return [CallSpec("xadd", 500, 1 << 20, is_run=True)]

    async def open(self) -> None:
        """See Sink."""
        make = cast("Any", redis_asyncio.Redis).from_url
        self._client = make(
            self._config.url,
            max_connections=self._config.concurrency,
            socket_connect_timeout=5,
            # A dead link is found by the dispatcher's time limit; a try of the client's own would hide it from the breaker.
            retry=None,
            retry_on_error=[],
        )

    async def close(self) -> None:
        """See Sink."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose(close_connection_pool=True)

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        """See Sink."""
        if not self._wants(event):
            return None
        name = self._name.value(event)
        value = message(self._config, event)
        return Item(offset, key, event, "xadd", "", (name, value), len(value) + len(event.id) + 64)

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        """See Sink."""
        verdicts: dict[int, Verdict] = {}
        names = names_of(items)
        try:
            for name in names:
                part = [item for item in items if item.payload[0] == name]
                said = await self._add(name, part)
                for place, item in enumerate(part):
                    word = said[place] if place < len(said) else None
                    if isinstance(word, int):
                        verdicts[item.offset] = DELIVERED
                    elif word is not None:
                        text = word.decode() if isinstance(word, bytes) else str(word)
                        fault = self._fault(text)
                        if fault is not None:
                            if not verdicts:
                                return fault
                            break
                        verdicts[item.offset] = refused(f"{self._host} answers {_code(text)}")
        except exceptions.RedisError as error:
            if not verdicts:
                return self._trouble(error)
        except (OSError, TimeoutError) as error:
            if not verdicts:
                return outage(f"{self._host} can't be reached ({type(error).__name__})")
        return [verdicts.get(item.offset, AGAIN) for item in items]

    async def check(self) -> Sequence[SinkFinding]:
        """See Sink: PING, and the type of the stream where its name is the same for every event."""
        try:
            async with asyncio.timeout(10):
                await self._client.ping()
                kind = await self._client.type(self._name.constant) if self._name.constant is not None else b"none"
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            return [SinkFinding(False, self._trouble(error).reason, "check url, password and rights")]
        if kind not in (b"none", b"stream"):
            return [
                SinkFinding(False, f"{self._name.constant} on {self._host} is a {kind.decode()}", "name another stream")
            ]
        return [SinkFinding(True, f"{self._host} takes our commands")]

    async def _add(self, name: str, items: Sequence[Item]) -> list[Any]:
        keys: list[Any] = [name, *(f"{{{name}}}:headrace:{item.event.id}" for item in items)]
        words: list[Any] = [*self._head]
        for item in items:
            words += (item.event.id, item.event.key or "", item.payload[1])
        return cast("list[Any]", await self._client.eval(_SCRIPT, len(keys), *keys, *words))

    def _trouble(self, error: Exception) -> Fault:
        if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
            return Fault(FaultKind.DENIED, f"{self._host} refuses our credentials: correct them, or their rights there")
        if isinstance(error, exceptions.ResponseError):
            return self._fault(str(error)) or Fault(FaultKind.BAD_BATCH, f"{self._host} answers {_code(str(error))}")
        return outage(f"{self._host} can't be reached ({type(error).__name__})")

    def _fault(self, text: str) -> Fault | None:
        code = _code(text)
        if code == "WRONGTYPE":
            return Fault(
                FaultKind.DENIED, f"{self._host} has something else under the stream's name: name another stream"
            )
        if code in _DENIED:
            return Fault(FaultKind.DENIED, f"{self._host} refuses us ({code}): correct url, credentials or rights")
        if code in _TROUBLE or "out of memory" in text.lower():
            return outage(f"{self._host} answers {code}")
        return None


def _code(text: str) -> str:
    """The code word only: the rest may repeat what was sent."""
    word = text.split(" ", 1)[0].strip("-")
    return word if word.isupper() and word.isalnum() and len(word) <= 32 else "ERR"


__all__ = ["RedisStreamConfig", "RedisStreamSink"]
