"""Columns' names from the server's catalogue, for a binlog that doesn't have them (binlog_row_metadata MINIMAL or NO_LOG).

The catalogue says how a table is now; the rows to be read may be older. So what it says counts from the place of the reader on only if no
statement between that place and the end of the binlog names the table: those statements are looked for, by a second reader that passes over
all rows. From then on each statement that names the table makes it be asked again. Where a table was altered and altered again before its
rows were read, nobody can say what its columns were called in between, and the source stops.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Collection
from typing import Any

from headrace.cdc.decode.binlog import BinlogDecoder
from headrace.cdc.decode.binlogplace import BinlogPlace, Prepared, order_of
from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.decode.tablemap import KnownTable
from headrace.cdc.errors import SourceRefused, SourceUnavailable
from headrace.cdc.sources.binlogstream import BinlogStream
from headrace.cdc.sources.mysqlserver import MySQLServer
from headrace.cdc.sources.mysqltable import read_collations, read_table

_SILENCE_S = 30.0
_WAIT_S = 1.0


class Catalogue:
    """known: by ``schema.table``, kept by the caller over restarts; what stands there holds from the caller's place on."""

    def __init__(
        self, known: dict[str, KnownTable], arguments: dict[str, Any], *, has_gtids: bool, source: str
    ) -> None:
        self._known = known
        self._arguments = arguments
        self._has_gtids = has_gtids
        self._source = source

    def find(self, schema: str, table: str) -> KnownTable | None:
        return self._known.get(f"{schema}.{table}")

    def altered(self, statement: str) -> None:
        """A statement that isn't of rows has been read: what it may have altered is not known any more."""
        for name in [name for name in self._known if names_table(statement, name.partition(".")[2])]:
            del self._known[name]

    async def read(
        self,
        server: MySQLServer,
        tables: Collection[tuple[str, str]],
        place: BinlogPlace,
        gtids: MySQLGtidSet | MariaDBGtids,
        prepared: dict[str, Prepared],
    ) -> None:
        """Know these tables, for rows from place on; one that was altered behind it stays unknown. Raises as the server's queries do."""
        collations = await read_collations(server.query)
        found: dict[str, KnownTable] = {}
        for schema, table in tables:
            read = await read_table(server.query, schema, table, collations)
            if read is not None:
                found[f"{schema}.{table}"] = read.known
        end = await server.end()

        def seen(statement: str) -> None:
            for name in [name for name in found if names_table(statement, name.partition(".")[2])]:
                del found[name]

        await self._statements(seen, place, gtids, end, prepared)
        self._known.update(found)

    async def read_one(
        self,
        server: MySQLServer,
        schema: str,
        table: str,
        place: BinlogPlace,
        gtids: MySQLGtidSet | MariaDBGtids,
        prepared: dict[str, Prepared],
    ) -> None:
        """As ``read``, of a table whose rows wait. Raises SourceRefused when it stays unknown."""
        await self.read(server, [(schema, table)], place, gtids, prepared)
        if self.find(schema, table) is None:
            name = f"{schema}.{table}"
            raise SourceRefused(
                f"rows of {name} at {place} can't be read: the binlog has no names of columns (binlog_row_metadata isn't FULL), and the table was "
                "altered, renamed or dropped behind that place (or the user has no right to see it), so that the catalogue doesn't say what they were",
                source=self._source,
                advice=f"set global binlog_row_metadata = 'FULL'; then put {name} under the source's exclude until these rows are passed, take it "
                f"out again, and copy it: headrace snapshot {self._source} {name}",
            )

    async def _statements(
        self,
        seen: Callable[[str], None],
        place: BinlogPlace,
        gtids: MySQLGtidSet | MariaDBGtids,
        end: BinlogPlace,
        prepared: dict[str, Prepared],
    ) -> None:
        """Tell each statement that isn't of rows, from place to end."""
        decoder = BinlogDecoder(
            "",
            {},
            place=BinlogPlace("", 0) if self._has_gtids and gtids else place,
            gtids=gtids,
            wants=lambda schema, table: False,
            prepared=dict(prepared),
            altered=seen,
        )
        # A server id of its own: under that of the stream one of the two would be thrown out.
        stream = BinlogStream(self._arguments, server_id=random.randrange(1 << 31, (1 << 32) - 1), source=self._source)
        await stream.start(place, gtids if self._has_gtids else type(gtids)())
        try:
            while order_of(max(decoder.place, decoder.passed, key=order_of)) < order_of(end):
                events = await stream.events(_WAIT_S)
                for event in events:
                    decoder.feed(event)
                    while decoder.is_unpacking:
                        decoder.go_on()
                        decoder.transactions.clear()
                decoder.transactions.clear()
                if not events and time.monotonic() - stream.heard_at > _SILENCE_S:
                    raise SourceUnavailable(
                        f'the server of source "{self._source}" has not answered for {_SILENCE_S:.0f} s',
                        source=self._source,
                    )
        finally:
            await stream.close()


def names_table(statement: str, table: str) -> bool:
    """Whether it may be about a table of that name, in whatever schema: the name stands somewhere in it."""
    if "\ufffd" in statement:
        return True  # in another character set than UTF-8
    name = table.lower()
    spellings = "|".join(re.escape(each) for each in {name, name.replace("`", "``"), name.replace('"', '""')})
    return re.search(rf"(?<![\w$])(?:{spellings})(?![\w$])", statement.lower()) is not None


__all__ = ["Catalogue", "names_table"]
