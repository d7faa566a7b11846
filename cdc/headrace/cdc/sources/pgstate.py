"""What the log keeps of a Postgres source, written in one transaction with the events: a restart goes on from exactly here."""

from __future__ import annotations

import msgspec

from headrace.cdc.decode.tableversion import TableVersion
from headrace.cdc.sources.pgsnapshot import SnapshotState
from headrace.cdc.sources.published import Membership


class PostgresState(msgspec.Struct):
    """Fields are only ever appended, with a default.

    lsn: everything that committed before it is in the log. versions: of each table, by OID.
    incarnation: part of every change's id; counts histories that one log has taken from this source.
    published: table OID -> its membership in the publication, which must never have changed.
    """

    system_identifier: str
    timeline: int
    database: str
    slot: str
    incarnation: int
    lsn: int
    versions: dict[int, TableVersion]
    snapshot: SnapshotState | None
    published: dict[int, Membership] = {}
