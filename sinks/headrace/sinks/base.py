"""The contract of a destination: what it makes of an event, and what it says to a request. One file per destination.

Found by the entry point group ``headrace.sinks``. A sink knows its destination's protocol and nothing of order, retries, pauses,
cursors or dead letters: those are the dispatcher's. ``tests/contract/sink_contract.py`` holds what is promised here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, Self

import msgspec
from msgspec import Meta

from headrace.cdc.config import Choice, Config, Duration, Section, Size
from headrace.cdc.event import CustomerEvent
from headrace.cdc.eventfilter import EventFilter
from headrace.sinks.verdict import Answer

RETURNED_SOURCE: Final = "sink:"
"""What the source of an event begins with that is a destination's answer; the sink's name follows."""

OrderKey = Literal["customer", "user_id", "anonymous_id"]


class Item(msgspec.Struct, gc=False):
    """One event on its way to the destination.

    key: its lane. call: which of the sink's calls takes it ("" = none, it goes to the dead letters for ``fault``). group: consecutive
    events of a lane share a request only while call and group stay the same. payload: the sink's own. size: about the bytes it adds to
    a request. attempts: verdicts RETRY so far. is_held: nothing is wrong with it, but with an earlier event of its key.
    """

    offset: int
    key: str
    event: CustomerEvent
    call: str
    group: str
    payload: Any
    size: int
    attempts: int = 0
    fault: str = ""
    is_held: bool = False


class CallSpec(msgspec.Struct, frozen=True):
    """One kind of request.

    max_events, max_bytes: of one request. is_run: consecutive events of a key may share it, because the destination applies it as a
    whole, or in order up to the first it can't. joins_keys: several keys may share it. rate: requests a second, None = no limit known.
    linger_s: how long to wait for a fuller request.
    """

    name: str
    max_events: int = 1
    max_bytes: int = 1 << 20
    is_run: bool = False
    joins_keys: bool = True
    rate: float | None = None
    linger_s: float = 0.0


class Unfit(Exception):
    """The event can't be told to this destination, ever. The text is the reason, without row data."""


class WhenConfig(Section, frozen=True):
    """Which events the sink gets; values of one field are alternatives, different fields must all hold."""

    name: Annotated[
        tuple[str, ...], Meta(description="Names of the wanted events.", examples=[["Order Completed"]])
    ] = ()
    kind: Annotated[
        tuple[str, ...], Meta(description="Kinds of events; heartbeats and schema events only when named.")
    ] = ()
    table: Annotated[tuple[str, ...], Meta(description="Tables, as `table` in any schema or `schema.table`.")] = ()

    @property
    def wants(self) -> Callable[[CustomerEvent], bool]:
        """The conditions as a function, made once and called for each event."""
        conditions = EventFilter(
            frozenset(self.name), frozenset(self.kind), frozenset(self.table), has_heartbeats="heartbeat" in self.kind
        )
        ours = frozenset({"heartbeat", "schema"} - set(self.kind))
        if conditions.is_open:
            return lambda event: event.kind not in ours
        return lambda event: event.kind not in ours and conditions.passes(event)


class OrderConfig(Section, frozen=True):
    """What must stay in order."""

    key: Annotated[
        OrderKey,
        Meta(
            description="Events with the same value keep their order. customer: the event's customer key, which also stands in where another is missing."
        ),
    ] = "customer"
    mode: Annotated[
        Literal["auto", "one", "run", "none"],
        Meta(
            description="one: one event of a key in a request at a time. run: consecutive events of a key share a request. none: no "
            "order at all. auto: run where the destination applies a request as a whole, else one."
        ),
    ] = "auto"


class SinkSection(Section, frozen=True, kw_only=True):
    """What every destination has. A sink type's config_type inherits it."""

    when: WhenConfig = msgspec.field(default_factory=WhenConfig)
    order: OrderConfig = msgspec.field(default_factory=OrderConfig)
    start: Annotated[
        Literal["earliest", "latest"],
        Meta(
            description="Where a sink without a cursor begins: with everything the log keeps, or with what comes next."
        ),
    ] = "earliest"
    concurrency: Annotated[int, Meta(ge=1, le=1_000, description="Requests that are under way at most.")] = 16
    timeout: Annotated[Duration, Meta(description="How long a request may take; then it is sent again.")] = (
        msgspec.field(default_factory=lambda: Duration(10_000_000))
    )
    attempts: Annotated[
        int,
        Meta(
            ge=1,
            description='After so many answers "not now" about one event it becomes a dead letter; outages don\'t count.',
        ),
    ] = 10
    poison: Annotated[
        Literal["park", "hold"],
        Meta(
            description="What follows a refused event. park: it becomes a dead letter and its key goes on. hold: the key's later events "
            "become dead letters too, until they are replayed."
        ),
    ] = "park"
    rate: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Requests a second at most, of each call, in place of the limit known of the destination."),
    ] = None
    window: Annotated[int, Meta(ge=16, le=200_000, description="Events that are held in memory at once.")] = 20_000
    window_bytes: Annotated[Size, Meta(description="Bytes of events that are held at once.")] = msgspec.field(
        default_factory=lambda: Size(32 << 20)
    )

    def __post_init__(self) -> None:
        if self.poison == "hold" and self.order.mode in ("run", "none"):
            raise ValueError(
                f"poison: hold can't keep back what has been sent already in a request of order.mode {self.order.mode}; use one"
            )


class SinkFinding(msgspec.Struct, frozen=True):
    """One line of ``headrace sink check``. is_fine False: the sink would not deliver."""

    is_fine: bool
    message: str
    cure: str = ""


class Sink(Protocol):
    """A destination. All methods are called from the event loop; send up to ``concurrency`` times at once, never twice at once for a key.

    calls: its kinds of request, fixed at creation.
    """

    @property
    def calls(self) -> Sequence[CallSpec]: ...

    async def open(self) -> None:
        """Make clients; touches no network. Raises SinkError when it can't ever work."""
        ...

    async def close(self) -> None:
        """Idempotent; ``open`` may follow."""
        ...

    def prepare(self, event: CustomerEvent, offset: int, key: str) -> Item | None:
        """What it makes of an event, None when that is nothing. Called once an event, again after a restart. Raises Unfit.

        Pure and quick: no I/O, no clock. The payload must carry an idempotency key made of ``event.id`` where the destination has one.
        """
        ...

    async def send(self, call: str, items: Sequence[Item]) -> Answer:
        """One request, once. A destination's trouble is a Fault, not an exception; anything raised is a defect and stops the sink.

        It may be cancelled at any time, by the dispatcher's time limit too.
        """
        ...

    async def check(self) -> Sequence[SinkFinding]:
        """One harmless real request that proves address, credentials and rights; called between open and close."""
        ...


class SinkType(Protocol):
    """What an entry point of ``headrace.sinks`` names."""

    config_type: ClassVar[type[SinkSection]]

    @classmethod
    def from_config(cls, name: str, section: Any, config: Config, *, is_replay: bool) -> Self:
        """name: the user's. is_replay: the destination is told, where its protocol has a place for it. Raises ConfigError."""
        ...


class SinkChoice(Choice):
    """A destination that events are delivered to, in order per customer, at least once, exactly once in effect where it knows event ids."""

    group = "headrace.sinks"


__all__ = [
    "RETURNED_SOURCE",
    "CallSpec",
    "Item",
    "OrderConfig",
    "Sink",
    "SinkChoice",
    "SinkFinding",
    "SinkSection",
    "SinkType",
    "Unfit",
    "WhenConfig",
]
