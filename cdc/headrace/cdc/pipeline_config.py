"""The part of headrace.yaml that says what becomes of records before the log: of each table's rows, and of all events."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from headrace.cdc.section import Duration, Section

_SHORTEST_SALT = 16
PYTHON_PATTERN: Final = r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$"
_ACTIONS: Final = (
    "name",
    "rename",
    "set",
    "remove",
    "keep",
    "drop",
    "sample",
    "python",
    "parse",
    "locate",
    "lookup",
    "fetch",
    "credit",
)


class ColumnsConfig(Section, frozen=True):
    """Which columns of the table reach the log, and as what."""

    include: Annotated[
        list[str],
        Meta(description="Only these columns; others, also ones added later, never reach the log."),
    ] = msgspec.field(default_factory=list[str])
    exclude: Annotated[
        list[str],
        Meta(description="All columns but these, which never reach the log; not together with include."),
    ] = msgspec.field(default_factory=list[str])
    hash: Annotated[
        list[str],
        Meta(
            description="Columns logged as 64 hexadecimal digits, HMAC-SHA-256 of the value's text under privacy.salt: equal "
            "values stay joinable. NULL stays NULL."
        ),
    ] = msgspec.field(default_factory=list[str])
    mask: Annotated[
        dict[str, str],
        Meta(
            description="Column -> text that is logged in place of every value. NULL stays NULL.",
            examples=[{"phone": "***"}],
        ),
    ] = msgspec.field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if self.include and self.exclude:
            raise ValueError("give include or exclude, not both")
        for name in [*self.hash, *self.mask]:
            if name in self.exclude or (self.include and name not in self.include):
                raise ValueError(f'"{name}" is hashed or masked, and left out as well')
        for name in self.hash:
            if name in self.mask:
                raise ValueError(f'"{name}" is hashed and masked')

    def hides(self, name: str) -> bool:
        """Whether a column's plain value must not reach the log."""
        left_out = name not in self.include if self.include else name in self.exclude
        return left_out or name in self.hash or name in self.mask


class TransformWhen(Section, frozen=True):
    """Which events a step concerns: all that every given field fits; none given, every event."""

    names: Annotated[list[str], Meta(description="Names of events.")] = msgspec.field(default_factory=list[str])
    kinds: Annotated[list[str], Meta(description="Kinds of events.", examples=[["track"]])] = msgspec.field(
        default_factory=list[str]
    )
    tables: Annotated[
        list[str], Meta(description="Tables of rows, as TABLE in any schema or SCHEMA.TABLE; SDK events have none.")
    ] = msgspec.field(default_factory=list[str])
    where: Annotated[
        dict[str, Any],
        Meta(
            description="Path -> value, list of values, or tests: is, not, exists, matches, above, below, at_least, at_most. All must hold.",
            examples=[{"properties.total": {"above": 100}}],
        ),
    ] = msgspec.field(default_factory=dict[str, Any])


class EventPrivacyConfig(Section, frozen=True):
    """What is hidden of the events of SDKs and webhooks, before anything else looks at them. A path that isn't there is nothing."""

    when: TransformWhen = msgspec.field(default_factory=TransformWhen)
    remove: Annotated[
        list[str],
        Meta(
            description="Paths, * for every field or item, ** for any depth.",
            examples=[["context.ip", "context.traits.**.email"]],
        ),
    ] = msgspec.field(default_factory=list[str])
    mask: Annotated[
        dict[str, str],
        Meta(description="Path -> text in place of every value. null stays.", examples=[{"properties.phone": "***"}]),
    ] = msgspec.field(default_factory=dict[str, str])
    hash: Annotated[
        list[str],
        Meta(
            description="Paths, also user_id, anonymous_id, group_id and previous_id, hashed as a table's columns are: equal values stay joinable.",
            examples=[["user_id", "properties.email"]],
        ),
    ] = msgspec.field(default_factory=list[str])
    detect: Annotated[
        list[Literal["email", "card", "phone"]],
        Meta(
            description="Wherever a text in properties or context holds one of these, it becomes <email>, <card> or <phone>."
            " card: 13 to 19 digits with a right check digit; phone: written with + and the country.",
        ),
    ] = msgspec.field(default_factory=list[Literal["email", "card", "phone"]])

    def __post_init__(self) -> None:
        if not (self.remove or self.mask or self.hash or self.detect):
            raise ValueError("a rule has at least one of remove, mask, hash and detect")


class ConsentConfig(Section, frozen=True):
    """Whose events are taken: those of customers who gave these consents, as the event says (Segment's and RudderStack's forms)."""

    needs: Annotated[
        list[str], Meta(min_length=1, description="Categories, all of which must be given.", examples=[["analytics"]])
    ]
    missing: Annotated[
        Literal["drop", "keep"], Meta(description="What becomes of an event that says nothing of consent.")
    ] = "drop"


class PrivacyConfig(Section, frozen=True):
    """What hashes need, and what of events of SDKs and webhooks is hidden."""

    salt: Annotated[
        str,
        Meta(
            description="Secret key of the hashes, at least 16 characters; give it by ${VARIABLE}. Another salt makes other hashes.",
            examples=["${SALT}"],
        ),
    ] = ""
    key_id: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9_-]{0,16}$",
            description="Name of the salt: hashes then are key_id:DIGITS. Give another salt another one, and name the old one under former.",
        ),
    ] = ""
    former: Annotated[
        dict[str, str],
        Meta(
            description='key_id -> salt of former times ("" for one without), by which "headrace customer" finds older hashes.',
            examples=[{"2025": "${OLD_SALT}"}],
        ),
    ] = msgspec.field(default_factory=dict[str, str])
    events: Annotated[
        list[EventPrivacyConfig],
        Meta(
            description="Rules for events of SDKs and webhooks, in their order, before the plan: docs/pipeline.md.",
            examples=[[{"remove": ["context.ip"], "hash": ["user_id"], "detect": ["email"]}]],
        ),
    ] = msgspec.field(default_factory=list[EventPrivacyConfig])
    consent: ConsentConfig | None = None

    def __post_init__(self) -> None:
        if self.salt and len(self.salt) < _SHORTEST_SALT:
            raise ValueError(f"salt needs at least {_SHORTEST_SALT} characters: short ones are guessed")
        if self.key_id in self.former and self.salt:
            raise ValueError(f'former has the key_id "{self.key_id}" that salt has now; give the new salt another one')

    def salts(self) -> list[tuple[str, str]]:
        """key_id and salt, the one of today first."""
        return [*([(self.key_id, self.salt)] if self.salt else []), *self.former.items()]

    def __repr__(self) -> str:
        return "PrivacyConfig()"


class LookupConfig(Section, frozen=True):
    """A captured table's row, as it was when the event passed, put into the event. The source's server isn't asked."""

    table: Annotated[
        str, Meta(pattern=r"^[^.]+\..+$", description="SCHEMA.TABLE of a captured table with a primary key.")
    ]
    by: Annotated[
        dict[str, str],
        Meta(
            min_length=1,
            description="Column -> path of the value that it must have.",
            examples=[{"sku": "properties.sku"}],
        ),
    ]
    into: Annotated[
        str, Meta(description="Path for the row; one that the event brought stays.", examples=["properties.product"])
    ]
    columns: Annotated[list[str], Meta(description="Only these columns of it.")] = msgspec.field(
        default_factory=list[str]
    )


class FetchConfig(Section, frozen=True):
    """The JSON that a service answers to GET, put into the event. Whoever is late or fails adds nothing."""

    url: Annotated[
        str,
        Meta(
            pattern=r"^https?://",
            description="Address; {PATH} in it is the event's value there.",
            examples=["https://scores.example/v1/{user_id}"],
        ),
    ]
    into: Annotated[
        str, Meta(description="Path for the answer; one that the event brought stays.", examples=["context.score"])
    ]
    headers: Annotated[dict[str, str], Meta(description="Headers of the request, secrets by ${VARIABLE}.")] = (
        msgspec.field(default_factory=dict[str, str])
    )
    timeout: Annotated[
        Duration, Meta(description="An event waits so long for it; one append's events at most a second.")
    ] = msgspec.field(default_factory=lambda: Duration.parse("150ms"))
    ttl: Annotated[Duration, Meta(description="How long an answer is good.")] = msgspec.field(
        default_factory=lambda: Duration.parse("10m")
    )

    def __repr__(self) -> str:
        return "FetchConfig()"


class CreditConfig(Section, frozen=True):
    """Which recommendation a customer acted on: the newest record of theirs that held the item is named in the event, unless it names one itself."""

    record: Annotated[str, Meta(min_length=1, description="Name of the record events.", examples=["Recommended"])]
    item: Annotated[str, Meta(description="Path of the item in the event.", examples=["properties.product_id"])]
    into: Annotated[
        str, Meta(description="Path for the recommendation's id.", examples=["properties.recommendationId"])
    ]
    items: Annotated[
        str, Meta(description="Property of the record that lists items, as texts, numbers, or objects with an id.")
    ] = "items"
    id: Annotated[str, Meta(description="Property of the record that is its id.")] = "recommendationId"
    impression: Annotated[
        str | None, Meta(description="Path for the list of items that were shown.", examples=["properties.impression"])
    ] = None
    within: Annotated[Duration, Meta(description="A record older than that is no reason any more. Default: 24h.")] = (
        msgspec.field(default_factory=lambda: Duration.parse("24h"))
    )


class TransformConfig(Section, frozen=True):
    """One step: exactly one thing to do, and to which events. A text in its place is ``python``."""

    when: TransformWhen = msgspec.field(default_factory=TransformWhen)
    name: Annotated[Annotated[str, Meta(min_length=1)] | None, Meta(description="The event's new name.")] = None
    rename: Annotated[
        dict[str, str],
        Meta(description="Path -> path: fields that move.", examples=[{"properties.mail": "properties.email"}]),
    ] = msgspec.field(default_factory=dict[str, str])
    set: Annotated[
        dict[str, Any],
        Meta(
            description="Path -> value, or {from: PATH} to copy.",
            examples=[{"properties.channel": "web", "user_id": {"from": "properties.customer"}}],
        ),
    ] = msgspec.field(default_factory=dict[str, Any])
    remove: Annotated[
        list[str], Meta(description="Paths, * for every field or item.", examples=[["properties.note"]])
    ] = msgspec.field(default_factory=list[str])
    keep: Annotated[
        list[str], Meta(description="Paths: all other fields of the same part go.", examples=[["properties.total"]])
    ] = msgspec.field(default_factory=list[str])
    drop: Annotated[bool, Meta(description="The event ends here.")] = False
    sample: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="Share of the customers whose events go on, always the same ones.", examples=[0.1]),
    ] = None
    python: Annotated[
        Annotated[str, Meta(pattern=PYTHON_PATTERN)] | None,
        Meta(
            description="FILE.py:FUNCTION that is given the event and returns it, or None to drop it. An exception sets the event aside.",
            examples=["transforms.py:enrich"],
        ),
    ] = None

    parse: Annotated[
        list[Literal["campaign", "user_agent"]],
        Meta(
            description="campaign: context.campaign from the page's utm parameters; user_agent: context.browser, os and device from"
            " context.userAgent. What the event says itself stays."
        ),
    ] = msgspec.field(default_factory=list[Literal["campaign", "user_agent"]])
    locate: Annotated[
        str | None,
        Meta(
            description="File in MaxMind's format: context.location from context.ip.", examples=["GeoLite2-City.mmdb"]
        ),
    ] = None
    lookup: LookupConfig | None = None
    fetch: FetchConfig | None = None
    credit: CreditConfig | None = None

    def __post_init__(self) -> None:
        values = {word: getattr(self, word) for word in _ACTIONS}
        given = [word for word, value in values.items() if not (value is None or value is False or value in ([], {}))]
        if len(given) != 1:
            said = f"it has {' and '.join(given)}" if given else "it has none"
            raise ValueError(f"a step does one thing of {', '.join(_ACTIONS)}; {said}")


class PipelineConfig(Section, frozen=True):
    """What happens to events before the log."""

    plan: Annotated[
        str | None,
        Meta(
            description="File of a tracking plan: JSON Schemas that the events of a source of type http must fit.",
            examples=["plan.yaml"],
        ),
    ] = None
    transforms: Annotated[
        list[TransformConfig | str],
        Meta(
            description="Steps that every event goes through, in this order, after the plan: docs/pipeline.md.",
            examples=[[{"rename": {"properties.mail": "properties.email"}}, "transforms.py:enrich"]],
        ),
    ] = msgspec.field(default_factory=list[TransformConfig | str])
    lookups: Annotated[str, Meta(description="File that holds the rows which steps look up.")] = "headrace.lookups.db"
    records: Annotated[
        str, Meta(description="File that holds what customers were told lately, for steps that give credit.")
    ] = "headrace.records.db"


class EventConfig(Section, frozen=True):
    """What a table's rows become. Without an entry, rows become track events named ``<table> <op>ed``, keyed by primary key."""

    kind: Annotated[str, Meta(pattern="^(identify|track|group|record)$", description="Kind of the event.")] = "track"
    key: Annotated[
        str | list[str] | None,
        Meta(description="Column or columns that hold the customer key; default: the primary key."),
    ] = None
    insert: Annotated[str | None, Meta(description="Name of the event that an insert (or snapshot row) becomes.")] = (
        None
    )
    update: Annotated[str | None, Meta(description="Name of the event that an update becomes.")] = None
    delete: Annotated[str | None, Meta(description="Name of the event that a delete becomes.")] = None
    occurred_at: Annotated[
        str | None,
        Meta(description="Timestamp column that says when it happened; default: the commit time."),
    ] = None
    columns: ColumnsConfig = msgspec.field(default_factory=ColumnsConfig)
    where: Annotated[
        str | None,
        Meta(
            description="SQL condition: only rows for which it holds are captured. PostgreSQL 15 and later, as the row filter of the publication"
            " that headrace makes: it may name columns of the replica identity only."
        ),
    ] = None
    content: Annotated[
        Literal["text", "json"],
        Meta(
            description="Of logical messages (the entry pg_message.PREFIX). json: a content that is a JSON object becomes the event's"
            " properties, and key, name and occurred_at name fields of it (an outbox); any other content stays exact text."
        ),
    ] = "text"
    name: Annotated[
        str | None, Meta(description="With content: json, the field that holds the event's name; default: insert.")
    ] = None

    def __post_init__(self) -> None:
        if self.content == "text" and self.name is not None:
            raise ValueError("name is a field of a message's content; say content: json too, or take it out")
        if self.content == "json" and self.columns != ColumnsConfig():
            raise ValueError(
                "columns can't be used with content: json; leave the values out where the message is written"
            )
        keys = [self.key] if isinstance(self.key, str) else self.key or []
        for name in keys:
            left_out = self.columns.hides(name) and name not in self.columns.hash
            if left_out:
                raise ValueError(
                    f'columns leaves out or masks "{name}", which is the customer key; put it under columns.hash '
                    "(a hash stays joinable), or choose another key"
                )
        if self.occurred_at is not None and self.columns.hides(self.occurred_at):
            raise ValueError(f'columns hides "{self.occurred_at}", which occurred_at needs; choose another column')


__all__ = [
    "PYTHON_PATTERN",
    "ColumnsConfig",
    "ConsentConfig",
    "CreditConfig",
    "EventConfig",
    "EventPrivacyConfig",
    "FetchConfig",
    "LookupConfig",
    "PipelineConfig",
    "PrivacyConfig",
    "TransformConfig",
    "TransformWhen",
]
