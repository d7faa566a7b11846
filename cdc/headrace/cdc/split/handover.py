"""A connection whose first request is for another process goes there itself, with what was read of it; nothing of it is copied any more.

Only the request line is looked at. What comes later on the same connection is answered there too, or asked of the first process again.
A descriptor travels over a socket pair that keeps messages apart, as unix(7) says (SCM_RIGHTS).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

_MOST_BYTES: Final = 32 << 10
"""A first piece that is larger stays here, and is forwarded."""
_KIND: Final = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM

Take = Callable[[int, bytes], bool]
"""Give a descriptor and the bytes that were read away; False: it wasn't taken, and stays."""


def pair() -> tuple[socket.socket, socket.socket]:
    """The way of the descriptors: ours, which never blocks, and the other process's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, _KIND)
    ours.setblocking(False)
    return ours, theirs


def give(way: socket.socket, number: int, data: bytes) -> bool:
    """Send an open descriptor; the caller's own may be closed then. False when the other side doesn't keep up, or is gone."""
    if not data or len(data) > _MOST_BYTES:
        return False
    try:
        socket.send_fds(way, [data], [number])
    except OSError:
        return False
    return True


def receive(way: socket.socket) -> tuple[socket.socket, bytes] | None:
    """The next connection; None when there is none now. Raises EOFError when the other side is gone."""
    try:
        data, numbers, _, _ = socket.recv_fds(way, _MOST_BYTES, 1)
    except BlockingIOError:
        return None
    except OSError as error:
        raise EOFError from error
    if not data:
        raise EOFError
    return (socket.socket(fileno=numbers[0]), data) if numbers else None


class FirstLine(asyncio.Protocol):
    """Looks at a connection's first request line. find: who takes a path; None = it is ours, which ``inner`` answers."""

    def __init__(self, inner: asyncio.Protocol, find: Callable[[str], Take | None]) -> None:
        self._inner = inner
        self._find = find
        self._seen = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        line, end, _ = self._seen.partition(b"\r\n")
        if not end and len(line) < _MOST_BYTES:
            return
        words = line.split(b" ")
        take = self._find(words[1].partition(b"?")[0].decode("ascii", "replace")) if len(words) == 3 else None
        if take is not None:
            self._transport.pause_reading()
            if take(self._transport.get_extra_info("socket").fileno(), self._seen):
                # Closes this process's descriptor only: the connection itself lives on with the other one.
                self._transport.abort()
                return
            self._transport.resume_reading()
        self._transport.set_protocol(self._inner)
        self._inner.data_received(self._seen)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class Taken(asyncio.Protocol):
    """A connection that came from another process: what was read there comes first."""

    def __init__(self, inner: asyncio.Protocol, data: bytes) -> None:
        self._inner = inner
        self._data = data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)
        transport.set_protocol(self._inner)
        self._inner.data_received(self._data)


class Taking:
    """Serves the connections that come over a way. maker: of protocols, as a server has it."""

    def __init__(self, way: socket.socket, maker: Callable[[], asyncio.Protocol]) -> None:
        self._way = way
        self._maker = maker
        self._serving: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._way.setblocking(False)
        asyncio.get_running_loop().add_reader(self._way.fileno(), self._take)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._way.fileno())
        self._way.close()

    def _take(self) -> None:
        try:
            while (found := receive(self._way)) is not None:
                task = asyncio.get_running_loop().create_task(self._serve(*found))
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
        except EOFError:
            asyncio.get_running_loop().remove_reader(self._way.fileno())

    async def _serve(self, connection: socket.socket, data: bytes) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # gone already
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Taken(self._maker(), data), connection)


__all__ = ["FirstLine", "Take", "Taking", "give", "pair", "receive"]
