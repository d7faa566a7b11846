"""Any HTTP service as a destination, from its definition: URL, auth, bodies, batches, and what its answers mean.

Made of template.py (bodies), httpdefinition.py (the file), httpanswer.py (verdicts) and transport.py (the wire). Follows the fields of
the Standard Webhooks specification where a definition asks for it (``auth`` of type hmac). A request with one event carries its id as
``Idempotency-Key``.
"""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Self
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from headrace.cdc.config import Config, load_part
from headrace.cdc.errors import ConfigError
from headrace.cdc.event import CustomerEvent
from headrace.sinks.base import RETURNED_SOURCE, CallSpec, Item, SinkFinding, SinkSection
from headrace.sinks.httpanswer import read_answer, with_returned
from headrace.sinks.httpdefinition import ActionConfig, AuthConfig, Destination, HttpConfig
from headrace.sinks.shipped import shipped
from headrace.sinks.template import Subject, Template, Text
from headrace.sinks.transport import HttpClient, NoReply
from headrace.sinks.verdict import Answer, outage

_REPLAY: Final = "Headrace-Replay"


class _Request(msgspec.Struct, frozen=True, gc=False):
    """What one event adds: its body, and what of the request depends on it."""

    body: bytes
    url: str
    headers: dict[str, str]


class _Action:
    """An action of the definition, compiled."""

    def __init__(self, number: int, config: ActionConfig, destination: Destination) -> None:
        self.name = str(number)
        self.wants = config.when.wants
        self.body = Template(config.body)
        url = urljoin(destination.url, config.url) if config.url.startswith("/") else config.url or destination.url
        self.url = Text(url, is_quoted=True)
        self.fixed_url = self.url.constant
        self.method = config.method or destination.method
        self.headers = {name: Text(value) for name, value in destination.headers.items()}
        constants = {name: text.constant for name, text in self.headers.items()}
        self.fixed_headers = {name: text for name, text in constants.items() if text is not None}
        self.other_headers = {name: text for name, text in self.headers.items() if text.constant is None}

    def request(self, subject: Subject) -> _Request:
        """What an event adds. Raises Unfit."""
        body = self.body.json(subject)
        url = self.url.value(subject) if self.fixed_url is None else self.fixed_url
        headers = self.fixed_headers
        if self.other_headers:
            headers = headers | {name: text.value(subject) for name, text in self.other_headers.items()}
        return _Request(body, url, headers)


class HttpSink:
    """See the module. wall: seconds since 1970, for signatures and dates."""

    config_type: ClassVar[type[SinkSection]] = HttpConfig

    def __init__(
        self,
        destination: Destination,
        *,
        concurrency: int = 16,
        is_replay: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._destination = destination
        self._wall = wall
        self._host = urlsplit(destination.url).hostname or ""
        self._client = HttpClient(concurrency)
        self._fixed = {"Content-Type": "application/json"} | _auth_headers(destination.auth)
        if is_replay:
            self._fixed[_REPLAY] = "true"
        batch = destination.batch
        self._is_single = batch.max_events == 1 and batch.body is None
        around = b'"{events}"' if batch.body is None else msgspec.json.encode(batch.body)
        self._before, _, self._after = around.partition(b'"{events}"')
        self._actions = [
            _Action(number, action, destination)
            for number, action in enumerate(destination.actions or (ActionConfig(),))
        ]
        self._by_name = {action.name: action for action in self._actions}
        self._calls = [
            CallSpec(
                action.name,
                batch.max_events,
                batch.max_bytes.bytes,
                is_run=batch.is_atomic,
                rate=destination.rate,
                linger_s=batch.linger.s,
            )
            for action in self._actions
        ]

    @classmethod
    def from_config(cls, name: str, section: HttpConfig, config: Config, *, is_replay: bool) -> Self:
        """See SinkType. Raises ConfigError when the definition file has problems."""
        if section.destination is not None:
            destination = section.destination
        else:
            assert section.definition is not None
            try:
                path = shipped(section.definition) or config.path(section.definition)
                destination = load_part(path, Destination)
            except ConfigError as error:
                raise ConfigError(
                    f"sinks.{name}.definition: {error.message}", problems=error.problems, advice=error.advice
                ) from None
        return cls(destination, concurrency=section.concurrency, is_replay=is_replay)

    @property
    def calls(self) -> Sequence[CallSpec]:
        return self._calls

    async def open(self) -> None:
        """See Sink."""
        await self._client.open()

    async def close(self) -> None:
        """See Sink."""
        await self._client.close()

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        """See Sink."""
        if self._destination.returns is not None and event.source.startswith(RETURNED_SOURCE):
            return None  # or an answer would be asked about for ever
        for action in self._actions:
            if action.wants(event):
                request = action.request(Subject(event))
                return Item(offset, key, event, action.name, "", request, len(request.body) + 1)
        return None

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        """See Sink."""
        action = self._by_name[call]
        first: _Request = items[0].payload
        bodies = [item.payload.body for item in items]
        body = first.body if self._is_single else b"%b[%b]%b" % (self._before, b",".join(bodies), self._after)
        event_id = items[0].event.id if len(items) == 1 else ""
        headers = self._fixed | first.headers
        if event_id:
            headers.setdefault("Idempotency-Key", event_id)
        url = first.url
        if self._destination.auth.type == "hmac":
            signed_id = event_id or items[0].event.id
            url, more = sign(self._destination.auth, action.method, url, body, signed_id, int(self._wall()))
            headers |= more
        try:
            reply = await self._client.ask(action.method, url, headers, body)
        except NoReply as error:
            return outage(str(error))
        answer = read_answer(self._destination.answer, reply, items, host=self._host, now_s=self._wall())
        returns = self._destination.returns
        return answer if returns is None else with_returned(returns, answer, reply.body)

    async def check(self) -> Sequence[SinkFinding]:
        """See Sink: GET of check_url with our credentials; without one, whether the host answers at all."""
        destination = self._destination
        url = urljoin(destination.url, destination.check_url) if destination.check_url else destination.url
        root = urlsplit(url)._replace(path="/", query="", fragment="").geturl()
        target = url if destination.check_url else root
        headers = dict(self._fixed)
        if destination.auth.type == "hmac":
            target, more = sign(destination.auth, "GET", target, b"", "check", int(self._wall()))
            headers |= more
        try:
            reply = await self._client.ask("GET", target, headers, None)
        except NoReply as error:
            return [SinkFinding(is_fine=False, message=str(error), cure="check the URL and the network")]
        if not destination.check_url:
            return [
                SinkFinding(is_fine=True, message=f"{self._host} answers; credentials weren't tried (no check_url)")
            ]
        if reply.status in destination.answer.denied:
            message = f"{self._host} refuses our credentials ({reply.status})"
            return [SinkFinding(is_fine=False, message=message, cure="correct auth, or its rights there")]
        is_fine = 200 <= reply.status < 300
        return [SinkFinding(is_fine, f"{self._host} answers {reply.status}", "" if is_fine else "look at check_url")]


def _auth_headers(auth: AuthConfig) -> dict[str, str]:
    if auth.type == "bearer":
        return {"Authorization": f"Bearer {auth.token}"}
    if auth.type == "basic":
        words = base64.b64encode(f"{auth.user}:{auth.password}".encode()).decode()
        return {"Authorization": f"Basic {words}"}
    if auth.type == "header":
        return {auth.header: auth.prefix + auth.token}
    return {}


def sign(auth: AuthConfig, method: str, url: str, body: bytes, event_id: str, now_s: int) -> tuple[str, dict[str, str]]:
    """The URL and the headers of a signed request. now_s: seconds since 1970."""
    if auth.timestamp_query:
        url = _with(url, auth.timestamp_query, str(now_s))
    split = urlsplit(url)
    values = {
        b"timestamp": str(now_s).encode(),
        b"id": event_id.encode(),
        b"method": method.encode(),
        b"url": url.encode(),
        b"path": f"{split.path}?{split.query}".removesuffix("?").encode(),
    }
    over = auth.over.encode()
    for name, value in values.items():
        over = over.replace(b"{" + name + b"}", value)
    # The body last: it may hold braces of its own.
    digest = hmac.digest(auth.key(), over.replace(b"{body}", body), auth.algorithm)
    spelled = auth.prefix + (digest.hex() if auth.encoding == "hex" else base64.b64encode(digest).decode())
    headers: dict[str, str] = {}
    if auth.query:
        url = _with(url, auth.query, quote(spelled, safe=""))
    else:
        headers[auth.header] = spelled
    if auth.timestamp_header:
        headers[auth.timestamp_header] = str(now_s)
    if auth.id_header:
        headers[auth.id_header] = event_id
    return url, headers


def _with(url: str, parameter: str, value: str) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{parameter}={value}"


__all__ = ["HttpSink", "sign"]
