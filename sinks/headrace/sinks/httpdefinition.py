"""A destination that speaks HTTP, declared: the structs of a definition file, and what is wrong with one.

A definition is at most some forty lines of YAML for a usual service; see docs/sinks.md for one from beginning to end.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from headrace.cdc.config import Duration, Section, Size
from headrace.sinks.base import SinkSection, WhenConfig
from headrace.sinks.template import Template, Text

Code = Annotated[int, Meta(ge=100, le=599)]


class AuthConfig(Section, frozen=True):
    """Who we are to the destination."""

    type: Annotated[
        Literal["none", "bearer", "basic", "header", "hmac"],
        Meta(
            description="bearer: token. basic: user and password. header: token in a header of its own. hmac: secret signs each request."
        ),
    ] = "none"
    token: Annotated[str, Meta(description="For bearer and header; give it by ${VARIABLE}.")] = ""
    user: Annotated[str, Meta(description="For basic: the user.")] = ""
    password: Annotated[str, Meta(description="For basic; give it by ${VARIABLE}.")] = ""
    secret: Annotated[str, Meta(description="For hmac; give it by ${VARIABLE}.")] = ""
    secret_encoding: Annotated[
        Literal["text", "base64", "hex"], Meta(description="How the secret is spelled here.")
    ] = "text"
    header: Annotated[str, Meta(description="The header that holds token or signature.")] = ""
    prefix: Annotated[str, Meta(description="What stands before the signature, such as `sha256=` or `v1,`.")] = ""
    algorithm: Annotated[Literal["sha1", "sha256", "sha512"], Meta(description="What the signature is made by.")] = (
        "sha256"
    )
    encoding: Annotated[Literal["hex", "base64"], Meta(description="What the signature is made by.")] = "hex"
    over: Annotated[
        str,
        Meta(
            description="What is signed: a text with {body}, {timestamp}, {id}, {method}, {url} and {path} (the URL behind the host, with its query)."
        ),
    ] = "{body}"
    query: Annotated[
        str, Meta(description="The parameter of the URL that holds the signature, in place of a header.")
    ] = ""
    timestamp_query: Annotated[
        str, Meta(description="The parameter of the URL that holds the signature's time; {url} and {path} have it too.")
    ] = ""
    timestamp_header: Annotated[
        str, Meta(description="Header that holds the signature's time, in seconds since 1970.")
    ] = ""
    id_header: Annotated[str, Meta(description="Header that holds the event's id, as webhooks do that sign it.")] = ""

    def __post_init__(self) -> None:
        needed = {"bearer": ("token",), "basic": ("user",), "header": ("token", "header"), "hmac": ("secret",)}
        for field in needed.get(self.type, ()):
            if not getattr(self, field):
                raise ValueError(f"auth of type {self.type} needs {field}")
        if self.type == "hmac" and bool(self.header) == bool(self.query):
            raise ValueError("auth of type hmac needs header or query, one of the two")
        if "{timestamp}" in self.over and not (self.timestamp_header or self.timestamp_query):
            raise ValueError("over signs {timestamp}, so the destination needs it: set timestamp_header")
        if self.type == "hmac":
            self.key()

    def key(self) -> bytes:
        """The secret's bytes. Raises ValueError when it isn't spelled as secret_encoding says."""
        try:
            if self.secret_encoding == "base64":
                return base64.b64decode(self.secret, validate=True)
            return bytes.fromhex(self.secret) if self.secret_encoding == "hex" else self.secret.encode()
        except (binascii.Error, ValueError):
            raise ValueError(f"secret is no {self.secret_encoding} text") from None

    def __repr__(self) -> str:
        return f"AuthConfig(type={self.type!r})"


class BatchConfig(Section, frozen=True):
    """Several events in one request."""

    max_events: Annotated[int, Meta(ge=1, le=100_000, description="Events in a request at most.")] = 1
    max_bytes: Annotated[Size, Meta(description="Bytes of events in a request at most.")] = msgspec.field(
        default_factory=lambda: Size(1 << 20)
    )
    linger: Annotated[Duration, Meta(description="How long a request waits for more events.")] = msgspec.field(
        default_factory=lambda: Duration(0)
    )
    body: Annotated[
        Any,
        Meta(
            description='The request\'s JSON, with the text "{events}" where the list of events goes. Default: the list alone.'
        ),
    ] = None
    is_atomic: Annotated[
        bool,
        Meta(
            description="The destination applies a request as a whole or not at all, or in order up to the first event it can't: then "
            "several events of a key may share one."
        ),
    ] = False


class ActionConfig(Section, frozen=True):
    """What some events become. The first action whose ``when`` fits takes the event."""

    when: WhenConfig = msgspec.field(default_factory=WhenConfig)
    body: Annotated[
        Any, Meta(description="JSON with {fields} of the event, as docs/sinks.md says. Default: the whole event.")
    ] = "{event}"
    url: Annotated[
        str, Meta(description="Another URL than the destination's; relative to it when it begins with /.")
    ] = ""
    method: Annotated[
        Literal["", "POST", "PUT", "PATCH", "DELETE", "GET"], Meta(description="Another method than the destination's.")
    ] = ""


class ItemsConfig(Section, frozen=True):
    """Where an answer says which events it is about."""

    path: Annotated[str, Meta(description="Dotted path of the list in the answer; empty = the answer itself.")] = ""
    index: Annotated[
        str, Meta(description="Field of an entry that holds the event's place in the request, from 0.")
    ] = ""
    id: Annotated[str, Meta(description="Field of an entry that holds the event's id.")] = ""
    code: Annotated[str, Meta(description="Field of an entry that holds a status code, read as the request's.")] = ""
    reason: Annotated[
        str, Meta(description="Field of an entry, or dotted path in it, that says why, shown with the dead letter.")
    ] = ""
    statuses: Annotated[tuple[Code, ...], Meta(description="Statuses whose answers have the list.")] = (
        200,
        207,
        400,
        422,
    )
    places: Annotated[
        tuple[str, ...],
        Meta(
            description="In place of path: dotted paths of lists of bare places, from 0; `*` stands for every key.",
            examples=[["events_with_invalid_fields.*"]],
        ),
    ] = ()
    others: Annotated[
        Literal["delivered", "again"],
        Meta(description="What a refused request (not 2xx) means for the events that it doesn't name."),
    ] = "delivered"

    def __post_init__(self) -> None:
        if self.places and (self.path or self.index or self.id or self.code or self.reason):
            raise ValueError("items needs places, or path and its fields, one of the two")


class CodesConfig(Section, frozen=True):
    """What a code in the answer's body means, whatever its HTTP status; one that isn't listed leaves it to the status."""

    path: Annotated[
        str,
        Meta(
            min_length=1,
            description="Dotted path of the code in the answer, or of a list of codes.",
            examples=["error.code"],
        ),
    ]
    retry: Annotated[tuple[int | str, ...], Meta(description="The destination's own trouble.")] = ()
    slow_down: Annotated[tuple[int | str, ...], Meta(description="Too many requests, or a quota that is used up.")] = ()
    denied: Annotated[tuple[int | str, ...], Meta(description="It doesn't accept who we are, or what we may do.")] = ()
    split: Annotated[tuple[int | str, ...], Meta(description="The request is too large.")] = ()


class AnswerConfig(Section, frozen=True):
    """What statuses mean. Those not named: 2xx is delivered, everything else is refused."""

    done: Annotated[
        tuple[Code, ...], Meta(description="Delivered beside 2xx, such as 409 for what it has already.")
    ] = ()
    retry: Annotated[tuple[Code, ...], Meta(description="The destination's own trouble.")] = (
        408,
        425,
        500,
        502,
        503,
        504,
    )
    slow_down: Annotated[tuple[Code, ...], Meta(description="Too many requests.")] = (429,)
    denied: Annotated[tuple[Code, ...], Meta(description="It doesn't accept who we are.")] = (401, 403)
    split: Annotated[tuple[Code, ...], Meta(description="The request is too large.")] = (413,)
    retry_after: Annotated[tuple[str, ...], Meta(description="Headers that say when to come again.")] = ("Retry-After",)
    items: ItemsConfig | None = None
    partly: Annotated[
        tuple[Code, ...],
        Meta(
            description="Some of the request's events were refused, and it isn't read which: they are asked again in halves."
        ),
    ] = ()
    codes: CodesConfig | None = None


class ReturnsConfig(Section, frozen=True):
    """What the destination answers comes back: an event of kind ``record`` of the same customer."""

    name: Annotated[str, Meta(min_length=1, description="Name of that event.", examples=["Recommended"])]
    path: Annotated[
        str,
        Meta(
            description="Dotted path of the object in the answer; empty = the answer itself. A list becomes the property `items`."
        ),
    ] = ""


class Destination(Section, frozen=True, kw_only=True):
    """One HTTP service."""

    url: Annotated[
        str,
        Meta(description="Where events go; {fields} are percent-encoded.", examples=["https://crm.example/v1/events"]),
    ]
    method: Annotated[
        Literal["POST", "PUT", "PATCH", "DELETE", "GET"], Meta(description="HTTP method of every request.")
    ] = "POST"
    headers: Annotated[
        dict[str, str], Meta(description="Sent with every request; {fields} where a request has one event.")
    ] = msgspec.field(default_factory=dict[str, str])
    auth: AuthConfig = msgspec.field(default_factory=AuthConfig)
    batch: BatchConfig = msgspec.field(default_factory=BatchConfig)
    rate: Annotated[Annotated[float, Meta(gt=0)] | None, Meta(description="Requests a second at most.")] = None
    actions: Annotated[tuple[ActionConfig, ...], Meta(description="None: every event, whole.")] = ()
    answer: AnswerConfig = msgspec.field(default_factory=AnswerConfig)
    returns: ReturnsConfig | None = None
    check_url: Annotated[
        str, Meta(description='What "headrace sink check" asks by GET; empty = it only looks whether the host answers.')
    ] = ""

    def __post_init__(self) -> None:
        """Compile everything once, so that a mistake is told with the file and not at the first event."""
        is_single = self.batch.max_events == 1
        for url in (self.url, *(action.url for action in self.actions)):
            text = Text(url, is_quoted=True)
            if text.constant is None and not is_single:
                raise ValueError(
                    f"url {url!r} differs by event, so a request can't hold several: set batch.max_events to 1"
                )
        split = urlsplit(self.url)
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ValueError(f"url {self.url!r} is no http:// or https:// URL")
        if split.username is not None or split.password is not None:
            raise ValueError("url holds a user or password: put them under auth")
        for name, value in self.headers.items():
            if Text(value).constant is None and not is_single:
                raise ValueError(
                    f"header {name} differs by event, so a request can't hold several: set batch.max_events to 1"
                )
        for action in self.actions:
            Template(action.body)
        if self.returns is not None and not is_single:
            raise ValueError("returns needs an answer to each event: set batch.max_events to 1")
        if self.batch.body is not None and msgspec.json.encode(self.batch.body).count(b'"{events}"') != 1:
            raise ValueError('batch.body needs the text "{events}" once, where the list of events goes')


class HttpConfig(SinkSection, frozen=True, kw_only=True):
    """Any service with an HTTP API: a webhook, or one that a definition file describes.

    Exactly one of definition and destination.
    """

    definition: Annotated[
        str | None,
        Meta(
            description="A shipped definition by its name (`headrace sink definitions`), or a file such as `crm.yaml`.",
            examples=["amplitude", "crm.yaml"],
        ),
    ] = None
    destination: Annotated[
        Destination | None, Meta(description="The destination itself, where a file of its own isn't worth it.")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.definition is None) == (self.destination is None):
            raise ValueError("give definition (a file) or destination, one of the two")


__all__ = [
    "ActionConfig",
    "AnswerConfig",
    "AuthConfig",
    "CodesConfig",
    "Destination",
    "HttpConfig",
    "ItemsConfig",
    "ReturnsConfig",
]
