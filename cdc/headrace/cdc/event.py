"""The records that travel: a Change leaves a decoder, a CustomerEvent stands in the log.

Values of columns are exact. What a decoder can say without loss as a Python int, bool, finite float or str is that;
everything else (numeric, times, json, bytea, arrays, ...) is the server's own text under pinned session settings, so that
the text given back as a literal of the column's type is the same value. SQL NULL is None. A column that was not sent
(unchanged TOAST, partial row image) is UNCHANGED: absent from the image and listed by name, never None.

JSON inside events is bytes: nobody decodes a property before somebody asks for it.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias

import msgspec

Op: TypeAlias = Literal["insert", "update", "delete", "truncate", "read", "message", "schema"]
Kind: TypeAlias = Literal["identify", "track", "page", "screen", "group", "alias", "record", "heartbeat", "schema"]
Value: TypeAlias = int | float | bool | str | None


class Absent(enum.Enum):
    """Why a row image has no value for a column; an enum so that type checkers can tell these from values."""

    UNCHANGED = "unchanged"
    UNDECODABLE = "undecodable"

    def __repr__(self) -> str:
        return self.name


UNCHANGED: Final = Absent.UNCHANGED
"""The value was not sent. Not NULL: the old value still holds."""

UNDECODABLE: Final = Absent.UNDECODABLE
"""The bytes sent are no valid text (a SQL_ASCII database may hold such): marked, never guessed."""

MESSAGE_SCHEMA: Final = "pg_message"
"""Logical messages are rows of a table of this schema, named after their prefix: columns prefix, content, content_hex. No
schema of a user begins with pg_."""

Row: TypeAlias = tuple[Value | Absent, ...]
"""One row image in the order of TableSchema.columns."""


class Column(msgspec.Struct, frozen=True, array_like=True):
    """A column as the stream names it. type_name is the server's name without modifiers, e.g. ``int8``, ``numeric``."""

    name: str
    type_oid: int
    type_name: str
    modifier: int = -1


class TableSchema(msgspec.Struct, frozen=True):
    """One version of a table, as needed to read its rows.

    columns: in the order of the row images. key: indexes into columns of the primary key (or of the index that is the
    replica identity); empty when the table has neither. identity: PostgreSQL's letter d, n, f or i.
    version: counts from 1 for each table name of a source; a new one whenever the stream announces another name, other columns or
    another key, or another table takes the name.
    """

    schema: str
    table: str
    columns: tuple[Column, ...]
    key: tuple[int, ...]
    identity: str = "d"
    oid: int = 0
    version: int = 1

    @property
    def name(self) -> str:
        """``schema.table``, unquoted."""
        return f"{self.schema}.{self.table}"


class Change(msgspec.Struct, gc=False):
    """One row change as decoded.

    before: the old image. None when not sent; with a key-only image every other column is UNCHANGED (unknown).
    after: the new image; None for delete, truncate and schema.
    position: text of the source's position. ordinal counts from 0 in the transaction; is_last marks its last change. A schema
    change has position and ordinal of the row it stands before. detail: what it says beside its table's columns.
    """

    table: TableSchema
    op: Op
    before: Row | None
    after: Row | None
    position: str
    id: str
    xid: int
    ordinal: int
    is_last: bool
    committed_us: int
    detail: dict[str, str | int] | None = None


class RowPart(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a CustomerEvent keeps of the row it came from. Fields are only ever appended.

    key: JSON object of the primary key columns (the new key after a key change), or None when the table has none.
    before: JSON object of the known old columns; for a delete under the default identity only the key columns, and after
    an update only what the server sent (the old key if it changed, everything under REPLICA IDENTITY FULL).
    unchanged: names of columns of the after image that were not sent. undecodable: names whose bytes are no valid text.
    op schema: the event is of kind ``schema``, and tells of the table what SchemaEvent lists; it is no row.
    """

    schema: str
    table: str
    op: Op
    key: bytes | None
    before: bytes | None
    unchanged: tuple[str, ...]
    xid: int
    ordinal: int
    is_last: bool
    schema_version: int
    undecodable: tuple[str, ...] = ()


class SdkPart(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What a CustomerEvent keeps of the SDK call it came from. Fields are only ever appended.

    writer: name of the write key. message_id: as sent; None when the call had none, and then nothing finds its repetitions.
    group_id: of a group call; previous_id: of an alias call, the customer's former id. category: of a page or screen.
    original_timestamp, sent_at: the client's clock, as sent; the event's occurred_us is corrected by them. integrations: JSON object.
    """

    writer: str
    message_id: str | None
    group_id: str | None = None
    previous_id: str | None = None
    category: str | None = None
    channel: str | None = None
    original_timestamp: str | None = None
    sent_at: str | None = None
    integrations: bytes | None = None


class CustomerEvent(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What every consumer reads. Fields are only ever appended; build it positionally in hot code.

    id: the same change has the same id after any crash or replay; every sink's idempotency key.
    key: the customer key in canonical text (see customer_key), which decides the partition and the order; None when the
    event names no customer.
    properties: JSON object, for a row the after image ({} when there is none), for kind ``schema`` a SchemaEvent.
    occurred_us, committed_us, received_us: microseconds since 1970 UTC: when it happened for the customer, when the
    source made it durable, when headrace read it. Neighbours may have commit times out of order by a little: a server takes the
    time just before it orders the commit.
    """

    id: str
    kind: Kind
    name: str
    key: str | None
    occurred_us: int
    committed_us: int
    received_us: int
    source: str
    position: str
    properties: bytes
    row: RowPart | None = None
    user_id: str | None = None
    anonymous_id: str | None = None
    context: bytes | None = None
    sdk: SdkPart | None = None


class SchemaColumn(msgspec.Struct, frozen=True):
    """A column in a schema event. modifier: the server's atttypmod, -1 = none (the length of a varchar, the scale of a numeric)."""

    name: str
    type: str
    modifier: int


class SchemaEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Properties of an event of kind ``schema``: from here on the table's rows are of this version.

    It stands in the log before the first row of the version, in the same append; RowPart.schema_version of each row says which it
    is of, also where the log has several partitions. The first version of a table has no event. columns: in the order of the rows.
    key: names of the primary key. renamed_from: the table's former ``schema.table``; rows that came under it are the table's.
    replaced_oid: this is another table than the one that had the name before (dropped, or renamed away); a truncate of that one stands just before.
    """

    version: int
    oid: int
    columns: tuple[SchemaColumn, ...]
    key: tuple[str, ...]
    renamed_from: str = ""
    replaced_oid: int = 0


def customer_key(values: tuple[Value, ...]) -> str | None:
    """Canonical text of a customer key: the value itself for one column, a JSON array for several.

    None when any part is NULL. An int and the same digits as text are the same customer on purpose: an SDK sends "42"
    where the table holds 42.
    """
    if any(value is None for value in values):
        return None
    if len(values) == 1:
        return key_text(values[0])
    return msgspec.json.encode([key_text(value) for value in values]).decode()


def key_text(value: Value) -> str:
    """One part of a key as text: JSON's spelling for bool, digits for int, repr for float."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    return value if isinstance(value, str) else str(value)
