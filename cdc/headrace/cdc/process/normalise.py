"""A row change becomes a customer event: which name, which customer, when. Pure: no I/O, no clock.

Without an entry under ``events`` a row of ``public.orders`` becomes the track event ``orders inserted`` (``updated``, ``deleted``,
``truncated``) keyed by its primary key. The after image becomes the properties.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from headrace.cdc.config import EventConfig
from headrace.cdc.decode.pgtime import timestamp_us
from headrace.cdc.event import (
    UNCHANGED,
    UNDECODABLE,
    Absent,
    Change,
    CustomerEvent,
    Kind,
    Row,
    RowPart,
    SchemaColumn,
    SchemaEvent,
    TableSchema,
    Value,
    customer_key,
)

_encode = msgspec.json.Encoder().encode
_EMPTY: Final = b"{}"
_PAST = {
    "insert": "inserted",
    "read": "inserted",
    "update": "updated",
    "delete": "deleted",
    "truncate": "truncated",
    "message": "sent",
    "schema": "altered",
}


class _Plan:
    """What normalising needs of one version of one table, worked out once."""

    __slots__ = ("columns", "customer", "is_person", "key", "key_names", "kind", "names", "occurred")

    def __init__(self, table: TableSchema, config: EventConfig | None) -> None:
        config = config or EventConfig()
        self.columns = tuple([column.name for column in table.columns])
        where = {name: index for index, name in enumerate(self.columns)}
        self.key = table.key
        self.key_names = tuple([self.columns[index] for index in table.key])
        asked = [config.key] if isinstance(config.key, str) else config.key
        if asked is None:
            self.customer: tuple[int, ...] | None = table.key or None
        else:
            self.customer = tuple([where[name] for name in asked]) if all(name in where for name in asked) else None
        # Rows of a table without an entry are keyed by their own primary key: that is a thing, not a person.
        self.is_person = asked is not None or config.kind == "identify"
        self.kind: Kind = config.kind  # type: ignore[assignment]  # the config's pattern allows only kinds
        given = {"insert": config.insert, "read": config.insert, "update": config.update, "delete": config.delete}
        self.names = {op: given.get(op) or f"{table.table} {past}" for op, past in _PAST.items()}
        self.occurred = where.get(config.occurred_at) if config.occurred_at else None


class Normaliser:
    """Turns the changes of one source into events.

    events: the configuration's section, by ``schema.table``.
    """

    def __init__(self, source: str, events: Mapping[str, EventConfig]) -> None:
        self._source = source
        self._events = events
        # By the schema object itself: a decoder makes one per announced version, so identity is version.
        self._plans: dict[int, tuple[TableSchema, _Plan]] = {}

    def events(self, changes: Iterable[Change], received_us: int) -> list[CustomerEvent]:
        """One event a change, in the same order."""
        source = self._source
        plans = self._plans
        result: list[CustomerEvent] = []
        for change in changes:
            table = change.table
            found = plans.get(id(table))
            if found is None or found[0] is not table:
                found = self._plan(table)
            plan = found[1]
            after = change.after
            before = change.before
            image = after if after is not None else before
            unchanged: tuple[str, ...] = ()
            undecodable: tuple[str, ...] = ()
            if after is None:
                if change.op == "schema":
                    result.append(self._schema_event(change, received_us))
                    continue
                properties = _EMPTY
            elif UNCHANGED in after or UNDECODABLE in after:
                unchanged = _named(plan.columns, after, UNCHANGED)
                undecodable = _named(plan.columns, after, UNDECODABLE)
                properties = _known(plan.columns, after)
            else:
                properties = _encode(dict(zip(plan.columns, after)))  # noqa: B905  # the decoder held the lengths equal
            key: bytes | None = None
            customer: str | None = None
            if image is not None:
                if plan.key:
                    values = [image[index] for index in plan.key]
                    if UNCHANGED in values and before is not None:
                        values = _filled(values, before, plan.key)
                    key = _known(plan.key_names, tuple(values))
                if plan.customer is not None:
                    parts = [image[index] for index in plan.customer]
                    if UNCHANGED in parts and before is not None:
                        parts = _filled(parts, before, plan.customer)
                    customer = _customer(parts)
            op = change.op
            occurred = change.committed_us
            if plan.occurred is not None and image is not None:
                text = image[plan.occurred]
                moment = timestamp_us(text) if isinstance(text, str) else None
                if moment is not None:
                    occurred = moment
            result.append(
                CustomerEvent(
                    change.id,
                    plan.kind,
                    plan.names[op],
                    customer,
                    occurred,
                    change.committed_us,
                    received_us,
                    source,
                    change.position,
                    properties,
                    RowPart(
                        table.schema,
                        table.table,
                        op,
                        key,
                        None if before is None else _known(plan.columns, before),
                        unchanged,
                        change.xid,
                        change.ordinal,
                        change.is_last,
                        table.version,
                        undecodable,
                    ),
                    customer if plan.is_person else None,
                )
            )
        return result

    def _schema_event(self, change: Change, received_us: int) -> CustomerEvent:
        """Whatever ``events`` says of the table's rows, this is no customer's."""
        table = change.table
        columns = tuple([SchemaColumn(column.name, column.type_name, column.modifier) for column in table.columns])
        key = tuple([table.columns[index].name for index in table.key])
        said: dict[str, Any] = change.detail or {}
        return CustomerEvent(
            change.id,
            "schema",
            f"{table.table} altered",
            None,
            change.committed_us,
            change.committed_us,
            received_us,
            self._source,
            change.position,
            _encode(SchemaEvent(table.version, table.oid, columns, key, **said)),
            RowPart(
                table.schema,
                table.table,
                "schema",
                None,
                None,
                (),
                change.xid,
                change.ordinal,
                False,
                table.version,
            ),
        )

    def heartbeat(self, source_time_us: int, received_us: int, position: str) -> CustomerEvent:
        """The internal event that moves log time while the source is idle."""
        return CustomerEvent(
            f"{self._source}-hb-{source_time_us}",
            "heartbeat",
            "heartbeat",
            None,
            source_time_us,
            source_time_us,
            received_us,
            self._source,
            position,
            _EMPTY,
        )

    def _plan(self, table: TableSchema) -> tuple[TableSchema, _Plan]:
        if len(self._plans) > 10_000:
            self._plans.clear()  # reconnects announce tables anew; old schema objects must not pile up
        found = (table, _Plan(table, self._events.get(table.name)))
        self._plans[id(table)] = found
        return found


def _filled(values: list[Value | Absent], before: Row, indexes: tuple[int, ...]) -> list[Value | Absent]:
    """A key value stored out of line isn't sent again; the old image then holds it."""
    return [before[index] if value is UNCHANGED else value for index, value in zip(indexes, values, strict=True)]


def _named(columns: tuple[str, ...], row: Row, why: Absent) -> tuple[str, ...]:
    return tuple([name for name, value in zip(columns, row, strict=True) if value is why])


def _known(columns: tuple[str, ...], row: Row) -> bytes:
    """JSON object of the columns that have a value."""
    return _encode({name: value for name, value in zip(columns, row, strict=True) if not isinstance(value, Absent)})


def _customer(values: list[Value | Absent]) -> str | None:
    """Canonical customer key, None when a part is NULL or was not sent."""
    known: list[Value] = []
    for value in values:
        if isinstance(value, Absent):
            return None
        known.append(value)
    return customer_key(tuple(known))
