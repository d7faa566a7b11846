"""One logical replication connection: frames in, confirmations out. Bytes only; decode/pgoutput.py knows what they mean.

psycopg's ``pq`` layer does TLS, SCRAM and the framing; there is no replication API above it. The server sends one message per
send(), so a reader that is woken for each pays for 130,000 wakes in 500,000 messages and slows the server down: while we are behind,
a nap of a few milliseconds between reads costs nothing and lets messages gather. Caught up, no nap is taken: it would be pure latency.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable

import psycopg
from psycopg import pq

from headrace.cdc.errors import SourceRefused, SourceUnavailable
from headrace.cdc.position import format_lsn

_STATUS = struct.Struct(">cQQQqB")
_EPOCH_2000_US = 946_684_800_000_000
_NAP_S = 0.002
_BEHIND_FRAMES = 256
"""A read of at least so many frames means that more are coming: nap before the next one."""
_GULP_FRAMES = 4096
"""At most so many frames a read, so that the event loop gets its turn; about 1 MiB of ordinary rows."""
_GULP_BYTES = 4 << 20
_ANSWER_S = 30.0
"""A server that takes no byte, or doesn't answer START_REPLICATION, for so long is behind a dead link."""


class ReplicationStream:
    """Reads ``START_REPLICATION`` of one slot.

    connection: an open psycopg connection made with ``replication=database``; this object owns it from now on.
    """

    def __init__(
        self,
        connection: psycopg.AsyncConnection[tuple[object, ...]],
        *,
        source: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._source = source
        self._clock = clock
        self._was_behind = False
        self._confirmed = 0
        self._waiting: asyncio.Future[bool] | None = None
        self._watched: int | None = None
        """The socket, while the loop watches it for input: from one wait to the next, since arming it anew costs two system calls."""
        self.heard_at = 0.0
        """Monotonic time when bytes last came, be it only a part of a long message."""

    @property
    def backend_pid(self) -> int:
        """Of the walsender at the other end."""
        return self._connection.info.backend_pid

    async def start(
        self, slot: str, lsn: int, publication: str, *, has_messages: bool = False, has_open: bool = False
    ) -> None:
        """Begin to stream after ``lsn``.

        has_messages: logical messages too; has_open: large transactions before their end, by protocol 2. Both from 14 on.

        Raises psycopg's error when the server refuses.
        """
        options = ", messages 'true'" if has_messages else ""
        if has_open:
            options += ", streaming 'on'"
        quoted = publication.replace('"', '""').replace("'", "''")
        query = (
            f'START_REPLICATION SLOT "{slot}" LOGICAL {format_lsn(lsn)} '
            f"(proto_version '{2 if has_open else 1}', publication_names '\"{quoted}\"'{options})"
        )
        self._confirmed = lsn
        self._pg.send_query(query.encode())
        await self._flush()
        while self._pg.is_busy():
            if not await self._readable(_ANSWER_S):
                raise SourceUnavailable("the server doesn't answer on the replication connection", source=self._source)
            self._pg.consume_input()
        result = self._pg.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            if result is None:
                raise SourceUnavailable("the server closed the replication connection", source=self._source)
            raise psycopg.errors.error_from_result(result, encoding="utf-8")

    async def frames(self, timeout_s: float) -> list[bytes]:
        """What has arrived; waits at most timeout_s for something, and may then be empty.

        Raises SourceUnavailable when the link is gone.
        """
        if self._was_behind:
            await asyncio.sleep(_NAP_S)
        frames = self._gulp()
        if not frames:
            await self._readable(timeout_s)
            frames = self._gulp()
        if frames:
            self.heard_at = time.monotonic()
        self._was_behind = len(frames) >= _BEHIND_FRAMES
        return frames

    def _gulp(self) -> list[bytes]:
        frames: list[bytes] = []
        pg = self._pg
        size = 0
        try:
            while len(frames) < _GULP_FRAMES and size < _GULP_BYTES:
                pg.consume_input()
                before = len(frames)
                while len(frames) < _GULP_FRAMES and size < _GULP_BYTES:
                    length, data = pg.get_copy_data(1)
                    if length <= 0:
                        if length < 0:
                            self._unwatch()
                            raise self._ended()
                        break
                    frames.append(bytes(data))
                    size += length
                if len(frames) - before < 8:
                    break
        except psycopg.OperationalError as error:
            self._unwatch()  # libpq has closed the socket: its number may soon be another file's
            if frames:
                return frames  # what came before the break is whole; the next read reports the break
            raise SourceUnavailable(
                f"the replication connection broke: {_first_line(error)}", source=self._source
            ) from error
        return frames

    def _ended(self) -> SourceUnavailable | SourceRefused:
        """The server ended the stream: say with which words.

        One error stays however often it is tried: the server made the slot while a table was created or rewritten in a
        transaction that its first snapshot missed, and finds no table for the changes (seen with PostgreSQL 16.14).
        """
        result = self._pg.get_result()
        said = ""
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            said = result.error_message.decode(errors="replace").strip().splitlines()[0]
        if "could not map file" in said:
            return SourceRefused(
                f"the server can't decode its WAL for this slot: {said}",
                source=self._source,
                advice="drop the slot (select pg_drop_replication_slot(...)), and start with a new log (another log.path) "
                "while no schema change is under way",
            )
        return SourceUnavailable(
            f"the server ended the replication stream{': ' + said if said else ''}", source=self._source
        )

    async def confirm(self, lsn: int, *, reply: bool = False) -> None:
        """Tell the server that everything before lsn is durable here. reply: ask it for a keepalive.

        Never goes back; a lower lsn repeats the last one.
        """
        self._confirmed = max(self._confirmed, lsn)
        message = _STATUS.pack(
            b"r",
            self._confirmed,
            self._confirmed,
            self._confirmed,
            int(self._clock() * 1_000_000) - _EPOCH_2000_US,
            1 if reply else 0,
        )
        try:
            self._pg.put_copy_data(message)
            await self._flush()
        except psycopg.OperationalError as error:
            raise SourceUnavailable(
                f"the replication connection broke: {_first_line(error)}", source=self._source
            ) from error

    def wake(self) -> None:
        """Make a waiting ``frames`` return now, with nothing."""
        if self._waiting is not None:
            _settle(self._waiting, True)

    async def close(self) -> None:
        """End the stream and the connection; closing twice is fine."""
        self._unwatch()
        await self._connection.close()

    async def _flush(self) -> None:
        while self._pg.flush():
            loop, socket = asyncio.get_running_loop(), self._pg.socket
            ready: asyncio.Future[bool] = loop.create_future()
            timer = loop.call_later(_ANSWER_S, _settle, ready, False)
            loop.add_writer(socket, _settle, ready, True)
            try:
                is_writable = await ready
            finally:
                timer.cancel()
                loop.remove_writer(socket)
            if not is_writable:
                raise SourceUnavailable("the server takes nothing on the replication connection", source=self._source)

    async def _readable(self, timeout_s: float) -> bool:
        """Wait for input or for a wake; False when timeout_s was over first."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[bool] = loop.create_future()
        self._waiting = ready
        if self._watched is None:
            self._watched = self._pg.socket
            loop.add_reader(self._watched, self._on_input)
        timer = loop.call_later(timeout_s, _settle, ready, False)
        try:
            return await ready
        finally:
            self._waiting = None
            timer.cancel()

    def _on_input(self) -> None:
        self.heard_at = time.monotonic()
        if self._waiting is None:
            self._unwatch()  # nobody reads just now: the loop would tell us again and again
        else:
            self.wake()

    def _unwatch(self) -> None:
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None


def _settle(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
