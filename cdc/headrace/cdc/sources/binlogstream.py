"""One binlog dump: events in. Bytes only; decode/binlog.py knows what they mean.

PyMySQL does handshake, authentication and TLS, and its socket is then read by a thread of its own: asyncio takes no socket that is TLS
already. What the loop hasn't taken is bounded; when that is full the thread waits, the socket fills, and the server waits.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections import deque
from typing import Any

import pymysql

from headrace.cdc.decode.binlog import BinlogPlace
from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.decode.mysqlpacket import EventPackets
from headrace.cdc.decode.mysqlpayload import varying
from headrace.cdc.errors import HistoryMismatch, SourceRefused, SourceUnavailable
from headrace.cdc.sources.mysqlserver import shut_down

_REGISTER, _DUMP, _DUMP_GTID = 0x15, 0x12, 0x1E
_GULP_BYTES = 1 << 18
_HELD_BYTES = 8 << 20
_HEARTBEAT_S = 0.5
_UUID_LETTERS = 36
_FATAL = 1236
"""ER_MASTER_FATAL_ERROR_READING_BINLOG: the place isn't in the binlog any more, or another reader took our server id."""
_PASSING = (1053, 1317, 1927)
"""ER_SERVER_SHUTDOWN, ER_QUERY_INTERRUPTED, MariaDB's ER_CONNECTION_KILLED: the server ends, or somebody ended this connection."""


class BinlogStream:
    """Reads from ``start`` until ``close``. heard_at: monotonic time of the last bytes; the server sends a heartbeat when it is idle."""

    def __init__(self, arguments: dict[str, Any], *, server_id: int, source: str) -> None:
        self._arguments = arguments
        self._server_id = server_id
        self._source = source
        self._packets = EventPackets()
        self._connection: Any = None
        self._thread: threading.Thread | None = None
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._room = threading.Condition()
        self._news = asyncio.Event()
        self._failure: BaseException | None = None
        self._is_closed = False
        self.heard_at = 0.0

    async def start(self, place: BinlogPlace, gtids: MySQLGtidSet | MariaDBGtids) -> None:
        """Begin behind gtids where there are any, else behind place. Raises PyMySQL's errors."""
        await asyncio.to_thread(self._open, place, gtids)
        self.heard_at = time.monotonic()
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, args=[loop], name=f"binlog {self._source}", daemon=True)
        self._thread.start()

    def _open(self, place: BinlogPlace, gtids: MySQLGtidSet | MariaDBGtids) -> None:
        connection: Any = pymysql.connect(**self._arguments)
        self._connection = connection
        is_mariadb = isinstance(gtids, MariaDBGtids)
        with connection.cursor() as cursor:
            cursor.execute("set @master_binlog_checksum = @@global.binlog_checksum")
            cursor.execute("set @source_binlog_checksum = @@global.binlog_checksum")
            cursor.execute("set @master_heartbeat_period = %s", (int(_HEARTBEAT_S * 1e9),))
            cursor.execute("set @source_heartbeat_period = %s", (int(_HEARTBEAT_S * 1e9),))
            if is_mariadb:
                cursor.execute("set @mariadb_slave_capability = 4")
                if gtids:
                    cursor.execute("set @slave_connect_state = %s", (str(gtids),))
                    cursor.execute("set @slave_gtid_strict_mode = 1")
        host = b"headrace"
        self._command(
            _REGISTER, struct.pack("<IB", self._server_id, len(host)) + host + b"\0\0" + struct.pack("<HII", 0, 0, 0)
        )
        connection._read_ok_packet()
        if is_mariadb and gtids:
            self._command(_DUMP, struct.pack("<IHI", 4, 0, self._server_id))
        elif isinstance(gtids, MySQLGtidSet) and gtids:
            wanted = _encoded(gtids)
            head = struct.pack("<HII", 4, self._server_id, 0) + struct.pack("<QI", 4, len(wanted))
            self._command(_DUMP_GTID, head + wanted)
        else:
            self._command(_DUMP, struct.pack("<IHI", place.pos & 0xFFFFFFFF, 0, self._server_id) + place.file.encode())
        connection._sock.settimeout(None)

    def _command(self, number: int, body: bytes) -> None:
        self._connection._execute_command(number, body)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: what comes goes into chunks, until the socket ends."""
        failure: BaseException | None = None
        file = self._connection._rfile
        try:
            while not self._is_closed:
                data = file.read1(_GULP_BYTES)
                if not data:
                    break
                with self._room:
                    while self._held > _HELD_BYTES and not self._is_closed:
                        self._room.wait(1.0)
                    self._held += len(data)
                    self._chunks.append(data)
                loop.call_soon_threadsafe(self._tell)
        except (OSError, ValueError) as error:
            failure = error
        self._failure = failure or EOFError()
        if not self._is_closed:
            try:
                loop.call_soon_threadsafe(self._tell)
            except RuntimeError:
                return  # the loop is gone, and nobody waits

    def _tell(self) -> None:
        self.heard_at = time.monotonic()
        self._news.set()

    async def events(self, timeout_s: float) -> list[bytes]:
        """What has arrived; waits at most timeout_s for something, and may then be empty.

        Raises SourceUnavailable when the link is gone, HistoryMismatch when the place is, SourceRefused for the server's other words.
        """
        if not self._chunks and self._failure is None:
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        taken = 0
        while self._chunks and taken < _GULP_BYTES:
            data = self._chunks.popleft()
            taken += len(data)
            self._packets.feed(data)
        if taken:
            with self._room:
                self._held -= taken
                self._room.notify()
        events, self._packets.events = self._packets.events, []
        if not events and not taken:
            if self._packets.error is not None:
                raise self._refused(*self._packets.error)
            if self._failure is not None:
                raise SourceUnavailable("the server closed the binlog connection", source=self._source)
        return events

    def wake(self) -> None:
        """Make a waiting ``events`` return now, with nothing."""
        self._news.set()

    def _refused(self, number: int, said: str) -> Exception:
        if number == _FATAL and "same server" in said:
            return SourceUnavailable(
                f"another reader has taken the server id {self._server_id}: {said}",
                source=self._source,
                advice="give each reader a server_id of its own, or leave it out",
            )
        if number == _FATAL:
            return HistoryMismatch(
                f"the server hasn't got the binlog from the log's position on: {said}", source=self._source
            )
        if number in _PASSING:
            return SourceUnavailable(f"the server ended the binlog connection ({number}): {said}", source=self._source)
        return SourceRefused(f"the server refuses the binlog ({number}): {said}", source=self._source)

    async def close(self) -> None:
        """End the dump; closing twice is fine."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is None:
            return
        # Closed alone, the thread would go on waiting for bytes of it. There is no socket any more where the link went while the dump began.
        shut_down(connection)
        thread, self._thread = self._thread, None
        if thread is not None:
            with self._room:
                self._room.notify()
            await asyncio.to_thread(thread.join)
        connection._force_close()


def _encoded(gtids: MySQLGtidSet) -> bytes:
    """As COM_BINLOG_DUMP_GTID has it: intervals end behind their last number. Tags need the newer form, which older servers don't know."""
    sources = gtids.intervals()
    has_tags = any(len(source) > _UUID_LETTERS for source in sources)
    found = struct.pack("<Q", len(sources))
    if has_tags:
        found = b"\x01" + len(sources).to_bytes(6, "little") + b"\x01"
    for source, intervals in sources.items():
        found += bytes.fromhex(source[:_UUID_LETTERS].replace("-", ""))
        if has_tags:
            tag = source[_UUID_LETTERS + 1 :].encode()
            found += varying(len(tag)) + tag
        found += struct.pack("<Q", len(intervals))
        for first, last in intervals:
            found += struct.pack("<QQ", first, last + 1)
    return found


__all__ = ["BinlogStream"]
