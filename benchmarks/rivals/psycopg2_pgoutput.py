"""psycopg2's replication cursor with a plain parser of pgoutput in Python: what a team writes by itself in an afternoon.

    python psycopg2_pgoutput.py HOST PORT SLOT PUBLICATION ROWS

Every column of a row becomes text in a dict; no type is decoded. Runs in the rivals' environment. Prints JSON: see ``Count``.
"""

from __future__ import annotations

import struct
import sys
from typing import Any

import psycopg2
from count import Count
from psycopg2.extras import LogicalReplicationConnection, StopReplication


class Parser:
    """Message by message, as the protocol's page of the Postgres manual describes them (version 1)."""

    def __init__(self) -> None:
        self._columns: dict[int, tuple[str, list[str]]] = {}

    def parse(self, body: bytes) -> tuple[str, str, dict[str, str | None]] | None:
        """(kind, table, row) for a row's change, None for anything else."""
        kind = body[:1]
        if kind == b"R":
            self._relation(body)
            return None
        if kind not in (b"I", b"U", b"D"):
            return None
        (relation,) = struct.unpack_from(">I", body, 1)
        at = 5
        tag = body[at : at + 1]
        row, at = self._tuple(relation, body, at + 1)
        if kind == b"U" and tag in (b"K", b"O"):
            row, at = self._tuple(relation, body, at + 1)
        return kind.decode(), self._columns[relation][0], row

    def _relation(self, body: bytes) -> None:
        (relation,) = struct.unpack_from(">I", body, 1)
        schema, name, rest = body[5:].split(b"\0", 2)
        (count,) = struct.unpack_from(">H", rest, 1)
        at, columns = 3, []
        for _ in range(count):
            end = rest.index(b"\0", at + 1)
            columns.append(rest[at + 1 : end].decode())
            at = end + 9
        self._columns[relation] = (f"{schema.decode()}.{name.decode()}", columns)

    def _tuple(self, relation: int, body: bytes, at: int) -> tuple[dict[str, str | None], int]:
        (count,) = struct.unpack_from(">H", body, at)
        at += 2
        row: dict[str, str | None] = {}
        for name in self._columns[relation][1][:count]:
            form = body[at : at + 1]
            at += 1
            if form == b"t":
                (size,) = struct.unpack_from(">I", body, at)
                row[name] = body[at + 4 : at + 4 + size].decode()
                at += 4 + size
            elif form == b"n":
                row[name] = None
        return row, at


def main() -> None:
    host, port, slot, publication, rows = sys.argv[1:]
    count = Count(int(rows))
    parser = Parser()
    connection = psycopg2.connect(
        host=host, port=port, user="postgres", dbname="postgres", connection_factory=LogicalReplicationConnection
    )
    cursor = connection.cursor()
    cursor.start_replication(
        slot, decode=False, options={"proto_version": "1", "publication_names": publication}, status_interval=10
    )

    def consume(message: Any) -> None:
        if parser.parse(message.payload) is not None:
            count.add(1)
            if count.is_over:
                raise StopReplication
        message.cursor.send_feedback(flush_lsn=message.data_start)

    try:
        cursor.consume_stream(consume)
    except StopReplication:
        count.tell()


if __name__ == "__main__":
    main()
