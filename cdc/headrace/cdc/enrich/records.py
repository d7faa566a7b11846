"""What was said to each customer lately (recommendations, scores), so that what they do then can be told whose doing it was.

Events of kind ``record`` from the log, the newest few of each customer and name, in one SQLite file with the place in the log, fed like the mirror of tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cdc.enrich.derived import DerivedFile
from headrace.cdc.event import CustomerEvent

KEPT: Final = 5
"""Records of one name and customer; older ones are forgotten."""

_SCHEMA: Final = """
create table if not exists meta (key text primary key, value) without rowid;
create table if not exists said (name text not null, customer text not null, at_us int not null, id text not null, body blob not null,
    primary key (name, customer, at_us, id)) without rowid;
"""

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class Said(msgspec.Struct, frozen=True):
    """at_us: when. body: its properties."""

    at_us: int
    body: dict[str, Any]


class RecentRecords(DerivedFile):
    """Records by name and customer, newest first. Any thread may ask; one feeds."""

    schema = _SCHEMA

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        """To be called before anything is asked or fed."""
        self._names.add(name)

    def of(self, name: str, customer: str) -> list[Said]:
        with self._lock:
            rows = (
                self._open()
                .execute(
                    "select at_us, body from said where name = ? and customer = ? order by at_us desc, id desc",
                    (name, customer),
                )
                .fetchall()
            )
        return [Said(at_us, _decode(body)) for at_us, body in rows]

    def place(self, generation: str) -> int:
        """The offset that comes next. A file that was fed from another log, or for other names, begins anew."""
        names = msgspec.json.encode(sorted(self._names)).decode()
        with self._lock:
            database = self._open()
            stored = dict(database.execute("select key, value from meta").fetchall())
            if stored.get("generation") == generation and stored.get("names") == names:
                return int(stored["offset"])
            with database:
                database.execute("delete from said")
                database.execute("delete from meta")
                database.executemany(
                    "insert into meta values (?, ?)", [("generation", generation), ("names", names), ("offset", 0)]
                )
            return 0

    def feed(self, events: Iterable[CustomerEvent], next_offset: int) -> None:
        """Events of the log up to next_offset, in one transaction."""
        with self._lock, self._open() as database:
            for event in events:
                if (
                    event.kind != "record"
                    or event.row is not None
                    or event.name not in self._names
                    or event.key is None
                ):
                    continue
                place = (event.name, event.key)
                database.execute(
                    "insert or replace into said values (?, ?, ?, ?, ?)",
                    (*place, event.occurred_us, event.id, event.properties),
                )
                database.execute(
                    "delete from said where name = ? and customer = ? and (at_us, id) not in"
                    " (select at_us, id from said where name = ? and customer = ? order by at_us desc, id desc limit ?)",
                    (*place, *place, KEPT),
                )
            database.execute("update meta set value = ? where key = 'offset'", (next_offset,))


__all__ = ["KEPT", "RecentRecords", "Said"]
