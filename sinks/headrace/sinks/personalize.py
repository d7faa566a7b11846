"""AWS Personalize as a destination: interactions, users, items, actions and action interactions, from declared mappings.

Follows personalize-events 2018-03-22: PutEvents holds up to ten events of one user and session, so a request is one customer's run; the
others hold ten records of anybody. Interactions carry our event id as ``eventId``, so that a repeated request counts once; users, items
and actions replace what was there by id. A visitor's session id stays the same when they log in: that is what joins the history from before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Final, Self, cast
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from headrace.cdc.config import Config, Section
from headrace.cdc.errors import SinkError
from headrace.cdc.event import CustomerEvent
from headrace.sinks.awscredentials import CredentialSource
from headrace.sinks.base import CallSpec, Item, SinkFinding, SinkSection, WhenConfig
from headrace.sinks.personalizemodel import (
    ARN,
    MAX_RECORDS,
    PATHS,
    RESERVED,
    entity_record,
    event_record,
    interaction_record,
    request_body,
    text,
)
from headrace.sinks.sigv4 import Credentials, Signer
from headrace.sinks.template import Subject, Template
from headrace.sinks.transport import HttpClient, NoReply, Reply, retry_after_s
from headrace.sinks.verdict import DELIVERED, Answer, Fault, FaultKind, outage

_CALLS: Final = {
    # One user and session a request; the rates are the service's default quotas (of the two action calls none is published).
    "events": CallSpec("events", MAX_RECORDS, is_run=True, joins_keys=False, rate=1_000.0),
    "users": CallSpec("users", MAX_RECORDS, rate=10.0),
    "items": CallSpec("items", MAX_RECORDS, rate=10.0),
    "actions": CallSpec("actions", MAX_RECORDS, rate=10.0),
    "action_interactions": CallSpec("action_interactions", MAX_RECORDS, is_run=True, rate=100.0),
}
_THROTTLED: Final = frozenset(
    {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "LimitExceededException"}
)
_OUTDATED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_DENIED: Final = frozenset(
    {
        "AccessDeniedException",
        "AccessDenied",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
        "ResourceNotFoundException",
    }
)
"""ResourceNotFound among them: a data set or tracker that isn't there is the configuration's fault, and no event's."""


class _Mapping(Section, frozen=True, kw_only=True):
    """What every mapping has."""

    when: WhenConfig = msgspec.field(default_factory=WhenConfig)
    properties: Annotated[
        dict[str, Any],
        Meta(
            description="Metadata by the schema's field names in camelCase, with {fields} of the event.",
            examples=[{"price": "{properties.price:number}"}],
        ),
    ] = msgspec.field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        wrong = RESERVED & self.properties.keys()
        if wrong:
            raise ValueError(f"properties.{min(wrong)}: the name is reserved by the service")
        for name in msgspec.structs.fields(type(self)):
            if name.name not in ("when", "dataset"):
                Template(getattr(self, name.name))


class InteractionMapping(_Mapping, frozen=True, kw_only=True):
    """Events that become interactions (PutEvents)."""

    event_type: Annotated[str, Meta(description="Template of the interaction's type.")] = "{name}"
    item_id: Annotated[str, Meta(description="Template of the item's id.")] = "{properties.item_id}"
    value: Annotated[str, Meta(description="Template of its value, a number.")] = "{properties.value}"
    recommendation_id: Annotated[str, Meta(description="The recommendation that led to it.")] = (
        "{properties.recommendation_id}"
    )
    impression: Annotated[str, Meta(description="List of the items that were shown.")] = "{properties.impression}"
    attribution: Annotated[str, Meta(description="Source that metrics are attributed to.")] = "{properties.attribution}"


class EntityMapping(_Mapping, frozen=True, kw_only=True):
    """Events that become users, items or actions, which replace those of the same id."""

    dataset: Annotated[
        str,
        Meta(
            description="ARN of the data set.",
            examples=["arn:aws:personalize:eu-west-1:123456789012:dataset/shop/USERS"],
        ),
    ]
    id: Annotated[
        str, Meta(description="The id of the user, item or action. Default: the customer, or the row's key id.")
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.dataset) > 256 or ARN.fullmatch(self.dataset) is None:
            raise ValueError("dataset is no ARN of Personalize")


class ActionInteractionMapping(_Mapping, frozen=True, kw_only=True):
    """Events that become action interactions."""

    action_id: Annotated[str, Meta(description="Template of the action's id.")] = "{properties.action_id!}"
    event_type: Annotated[str, Meta(description="Template that gives Viewed, Taken or Not Taken.")] = (
        "{properties.event_type!}"
    )
    recommendation_id: Annotated[str, Meta(description="The recommendation that led to it.")] = (
        "{properties.recommendation_id}"
    )
    impression: Annotated[str, Meta(description="List of the actions that were shown.")] = "{properties.impression}"


class PersonalizeConfig(SinkSection, frozen=True, kw_only=True):
    """AWS Personalize: interactions as they happen, users, items and actions as they change."""

    region: Annotated[
        str, Meta(pattern="^[a-z0-9-]{1,40}$", description="AWS region of the data set group.", examples=["eu-west-1"])
    ]
    tracking_id: Annotated[
        str, Meta(max_length=256, description="The event tracker's id; needed for interactions.")
    ] = ""
    events: Annotated[
        tuple[InteractionMapping, ...], Meta(description="The first whose `when` fits takes the event.")
    ] = ()
    users: EntityMapping | None = None
    items: EntityMapping | None = None
    actions: EntityMapping | None = None
    action_interactions: Annotated[
        tuple[ActionInteractionMapping, ...], Meta(description="The first whose `when` fits takes the event.")
    ] = ()
    user_id: Annotated[
        str,
        Meta(
            description="Template of the user. Default: the event's user, or its customer key unless that is the anonymous id."
        ),
    ] = ""
    session_id: Annotated[
        str, Meta(description="Template of the session. Default: context.sessionId, the anonymous id, or the user.")
    ] = ""
    access_key: Annotated[str, Meta(description="AWS access key; default: environment, profile, role.")] = ""
    secret_key: Annotated[str, Meta(description="AWS secret key; give it by ${VARIABLE}.")] = ""
    session_token: Annotated[str, Meta(description="Session token of temporary credentials.")] = ""
    profile: Annotated[str, Meta(description="Name of a profile in ~/.aws/credentials.")] = ""
    endpoint: Annotated[
        str,
        Meta(
            description="Another address than the region's, such as a VPC endpoint's.",
            examples=["https://vpce-1.example"],
        ),
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.events or self.action_interactions) and not self.tracking_id:
            raise ValueError("events and action_interactions need tracking_id")
        if not (self.events or self.action_interactions or self.users or self.items or self.actions):
            raise ValueError("nothing is mapped: give events, users, items, actions or action_interactions")
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("access_key and secret_key belong together")
        for template in (self.user_id, self.session_id):
            Template(template)

    def __repr__(self) -> str:
        return f"PersonalizeConfig(region={self.region!r})"


class _Map:
    """One mapping, compiled: its templates by field name."""

    def __init__(self, call: str, config: _Mapping) -> None:
        self.call = call
        self.wants = config.when.wants
        self.templates = {
            field.name: Template(getattr(config, field.name))
            for field in msgspec.structs.fields(type(config))
            if field.name not in ("when", "dataset")
        }
        self.has_id = bool(getattr(config, "id", "") or call in ("events", "action_interactions"))


class PersonalizeSink:
    """See the module. credentials: asked before each request. wall: seconds since 1970."""

    config_type: ClassVar[type[SinkSection]] = PersonalizeConfig

    def __init__(
        self, config: PersonalizeConfig, credentials: CredentialSource, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._wall = wall
        self._endpoint = (config.endpoint or f"https://personalize-events.{config.region}.amazonaws.com").rstrip("/")
        self._host = urlsplit(self._endpoint).netloc
        self._signer = Signer(self._host, config.region, "personalize")
        self._client = HttpClient(config.concurrency)
        self._maps = [_Map("events", each) for each in config.events]
        self._maps += [_Map("action_interactions", each) for each in config.action_interactions]
        self._heads: dict[str, bytes] = {"action_interactions": msgspec.json.encode({"trackingId": config.tracking_id})}
        for call, mapping in (("users", config.users), ("items", config.items), ("actions", config.actions)):
            if mapping is not None:
                self._maps.append(_Map(call, mapping))
                self._heads[call] = msgspec.json.encode({"datasetArn": mapping.dataset})
        self._user = Template(config.user_id) if config.user_id else None
        self._session = Template(config.session_id) if config.session_id else None

    @classmethod
    def from_config(cls, name: str, section: PersonalizeConfig, config: Config, *, is_replay: bool) -> Self:
        """See SinkType. A replay is nothing special here: eventId and ids make it harmless."""
        static = (
            Credentials(section.access_key, section.secret_key, section.session_token) if section.access_key else None
        )
        return cls(section, CredentialSource(static, section.profile))

    @property
    def calls(self) -> Sequence[CallSpec]:
        used = {each.call for each in self._maps}
        return [spec for name, spec in _CALLS.items() if name in used]

    async def open(self) -> None:
        """See Sink."""
        await self._client.open()

    async def close(self) -> None:
        """See Sink."""
        await self._client.close()

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        """See Sink. Of several mappings the first that fits takes the event."""
        mapping = next((each for each in self._maps if each.wants(event)), None)
        if mapping is None:
            return None
        subject = Subject(event)
        values = {name: template.value(subject) for name, template in mapping.templates.items()}
        call, group, head = mapping.call, "", b""
        if call == "events":
            user, session = self._who(subject)
            record = event_record(
                identity=event.id,
                event_type=values["event_type"],
                occurred_us=event.occurred_us,
                item_id=values["item_id"],
                value=values["value"],
                recommendation_id=values["recommendation_id"],
                impressions=values["impression"],
                attribution_source=values["attribution"],
                extra=values["properties"],
            )
            head = _events_head(self._config.tracking_id, user, session)
            group = head.decode()
        elif call == "action_interactions":
            user, session = self._who(subject)
            record = interaction_record(
                identity=event.id,
                action_id=values["action_id"],
                user_id=user,
                session_id=session,
                event_type=values["event_type"],
                occurred_us=event.occurred_us,
                recommendation_id=values["recommendation_id"],
                impressions=values["impression"],
                extra=values["properties"],
            )
        else:
            if event.row is not None and event.row.op in ("delete", "truncate"):
                return None  # the service has no call that takes one away
            identity = values["id"] if mapping.has_id else self._identity(call, subject)
            record = entity_record(call, identity=identity, extra=values["properties"])
        return Item(offset, key, event, call, group, (head, record), len(record) + 1)

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        """See Sink."""
        head = items[0].payload[0] or self._heads[call]
        body = request_body(call, head, [item.payload[1] for item in items])
        try:
            reply = await self._ask(call, body)
        except NoReply as error:
            return outage(str(error))
        except SinkError as error:
            return Fault(FaultKind.DENIED, error.message)
        return self._read(reply, len(items))

    async def check(self) -> Sequence[SinkFinding]:
        """See Sink. Each used call is asked with an empty list: who we are is judged first, and an empty list changes nothing."""
        found: list[SinkFinding] = []
        for call in (spec.name for spec in self.calls):
            head = (
                self._heads[call]
                if call != "events"
                else _events_head(self._config.tracking_id, None, "headrace-check")
            )
            try:
                answer = self._read(await self._ask(call, request_body(call, head, [])), 0)
            except NoReply as error:
                found.append(SinkFinding(False, f"{call}: {error}", "check region, endpoint and network"))
                continue
            except SinkError as error:
                found.append(SinkFinding(False, f"{call}: {error.message}", error.advice))
                continue
            if isinstance(answer, Fault) and answer.kind is not FaultKind.BAD_BATCH:
                cure = "correct credentials, rights or names" if answer.kind is FaultKind.DENIED else "try again later"
                found.append(SinkFinding(False, f"{call}: {answer.reason}", cure))
            else:
                found.append(SinkFinding(True, f"{call}: {self._host} knows us"))
        return found

    def _who(self, subject: Subject) -> tuple[str | None, str]:
        event = subject.event
        if self._user is not None:
            user = self._user.value(subject)
        else:
            user = event.user_id
            if user is None and event.key != event.anonymous_id:
                user = event.key
        session = self._session.value(subject) if self._session is not None else None
        if session is None:
            session = _field(subject.part("context"), "sessionId")
        if session is None:
            session = event.anonymous_id or user
        return None if user is None else text(user, "user id"), text(session, "session id")

    def _identity(self, call: str, subject: Subject) -> Any:
        if call == "users":
            return self._who(subject)[0]
        return _field(subject.part("row_key"), "id")

    async def _ask(self, call: str, body: bytes) -> Reply:
        credentials = await self._credentials.current()
        path = PATHS[call]
        headers = self._signer.headers(credentials, path, body, self._wall())
        return await self._client.ask("POST", self._endpoint + path, headers, body)

    def _read(self, reply: Reply, count: int) -> Answer:
        status = reply.status
        if status == 200:
            return [DELIVERED] * count
        name = _error_name(reply)
        said = f"{self._host} answers {status} {name}".rstrip()
        after_s = retry_after_s(reply.headers.get("retry-after"), self._wall())
        if status == 429 or name in _THROTTLED:
            return Fault(FaultKind.THROTTLED, said, after_s)
        if name in _OUTDATED:
            self._credentials.forget()
            return outage(f"{said}: the credentials are outdated and are looked for again")
        if status in (401, 403, 404) or name in _DENIED:
            return Fault(FaultKind.DENIED, f"{said}: correct credentials, rights, tracking_id or dataset")
        if status >= 500 or status in (408, 409) or name == "ResourceInUseException":
            return outage(said, after_s)
        if status == 413:
            return Fault(FaultKind.TOO_LARGE, said)
        return Fault(FaultKind.BAD_BATCH, said)


def _field(part: Any, name: str) -> Any:
    return cast("dict[str, Any]", part).get(name) if isinstance(part, dict) else None


def _events_head(tracking_id: str, user: str | None, session: str) -> bytes:
    fields = {"trackingId": tracking_id} | ({} if user is None else {"userId": user}) | {"sessionId": session}
    return msgspec.json.encode(fields)


def _error_name(reply: Reply) -> str:
    """Of a header as ``ThrottlingException:http://...``, or of the body."""
    found = reply.headers.get("x-amzn-errortype", "")
    if not found:
        try:
            tree: Any = msgspec.json.decode(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""
        found = str(_field(tree, "__type") or _field(tree, "code") or "")
    name = found.partition(":")[0].rpartition("#")[2].strip()
    return name if name.isalnum() and len(name) <= 64 else ""


__all__ = ["PersonalizeConfig", "PersonalizeSink"]
