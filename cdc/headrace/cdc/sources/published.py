"""What the publication has sent without a break: a table taken out of it, even for a moment, leaves a gap in the stream.

The server doesn't tell: the changes of those moments just aren't sent (and from PostgreSQL 18 on that holds for a publication that was
dropped, too). But each membership is a catalogue row with an OID of its own, and putting a table back makes a new one. So the OIDs
are kept with the stored state and compared at each start and while streaming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import psycopg

from headrace.cdc.errors import HistoryMismatch

Membership: TypeAlias = tuple[int, int]
"""OIDs of the publication, and of the table's entry in it; 0 when it is in by its schema or as one of all tables."""

_MEMBERSHIPS = """
select c.oid::int8, p.oid::int8, coalesce(r.oid, 0)::int8,
       r.oid is not null or exists (
           select from pg_catalog.pg_publication_tables t join pg_catalog.pg_namespace n on n.nspname = t.schemaname
            where t.pubname = p.pubname and n.oid = c.relnamespace and t.tablename = c.relname),
       p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate
  from pg_catalog.pg_class c
  left join pg_catalog.pg_publication p on p.pubname = %s
  left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
 where c.oid = any(%s::oid[]) and not c.relispartition
"""


async def memberships(
    connection: psycopg.AsyncConnection[tuple[object, ...]], publication: str, tables: Sequence[int]
) -> dict[int, Membership | None]:
    """Table OID -> its membership, None for a table that isn't published whole. Tables that were dropped are absent."""
    cursor = await connection.execute(_MEMBERSHIPS.encode(), [publication, list(tables)])
    found: dict[int, Membership | None] = {}
    for table, oid, entry, is_in, sends_all in await cursor.fetchall():
        assert isinstance(table, int)
        found[table] = (int(str(oid)), int(str(entry))) if is_in and sends_all else None
    return found


def hold_memberships(
    known: Mapping[int, Membership],
    now: Mapping[int, Membership | None],
    names: Mapping[int, str],
    *,
    publication: str,
    source: str,
) -> None:
    """Raise HistoryMismatch when a table's membership isn't the one it had. known, now, names: by table OID."""
    lost = [names[oid] for oid, former in known.items() if oid in names and oid in now and now[oid] != former]
    if not lost:
        return
    listed = ", ".join(sorted(lost)[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    raise HistoryMismatch(
        f'publication "{publication}" of source "{source}" was dropped or altered: it stopped sending changes of '
        f"{listed}, so the log may lack some",
        source=source,
        advice=f"put the tables under sources.{source}.exclude if they are no longer wanted; else let the publication send "
        "them again and start a new log (another log.path) for a fresh snapshot",
    )


__all__ = ["Membership", "hold_memberships", "memberships"]
