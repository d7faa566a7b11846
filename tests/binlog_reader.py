"""Reads a binlog as the tests need it: everything from a place to now, blocking, over PyMySQL's connection. The product's reader is another."""

from __future__ import annotations

import struct
from typing import Any

import pymysql

from fix_mariadb import MariaDBServer
from headrace.cdc.decode.mysqlpacket import EventPackets

_BINLOG_DUMP = 0x12
_NON_BLOCKING = 1


def place(server: MariaDBServer) -> tuple[str, int]:
    """File and offset of the end of the binlog."""
    with server.connect() as connection, connection.cursor() as cursor:
        try:
            cursor.execute("show binary log status")
        except pymysql.err.ProgrammingError:
            cursor.execute("show master status")
        file, offset, *_ = cursor.fetchone()
        return str(file), int(offset)


def read_events(server: MariaDBServer, file: str, offset: int, *, has_checksums: bool = True) -> list[bytes]:
    """All events from there to the end."""
    connection: Any = server.connect()
    with connection.cursor() as cursor:
        cursor.execute("set @mariadb_slave_capability = 4")
        cursor.execute("set @master_binlog_checksum = " + ("@@global.binlog_checksum" if has_checksums else "'NONE'"))
    command = struct.pack("<IHI", offset, _NON_BLOCKING, 4711) + file.encode()
    connection._execute_command(_BINLOG_DUMP, command)
    packets = EventPackets()
    events: list[bytes] = []
    while not packets.is_over:
        head = connection._rfile.read(4)
        payload = connection._rfile.read(int.from_bytes(head[:3], "little"))
        # One byte at a time for the head, whole for the rest: joining is the framer's work.
        for byte in head:
            packets.feed(bytes([byte]))
        packets.feed(payload)
        assert packets.error is None, packets.error
        events += packets.events
        packets.events = []
    connection._force_close()
    return events
