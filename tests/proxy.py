"""A real TCP proxy between headrace and a server, which can do to a link what networks do.

``cut`` and ``reset`` end all connections, with FIN or RST. ``hold`` is the black hole: connections stay open, new ones are accepted, and
no byte moves in the directions named: both, or one (half-open). ``one_byte`` hands over every byte alone, ``delay_s`` each piece late.
"""

from __future__ import annotations

import asyncio
import socket
import struct

_AT_ONCE = struct.pack("ii", 1, 0)


class Proxy:
    """Listens on ``port`` of loopback once started and forwards to the server's port."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.port = 0
        self.one_byte = False
        self.delay_s = 0.0
        self._flows = {"to_server": asyncio.Event(), "to_client": asyncio.Event()}
        self.release()
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    def hold(self, *directions: str) -> None:
        """Move no byte any more in these directions: to_server, to_client."""
        for direction in directions:
            self._flows[direction].clear()

    def release(self) -> None:
        for flow in self._flows.values():
            flow.set()

    def cut(self) -> None:
        """Close every connection in an orderly way."""
        for writer in list(self._writers):
            writer.close()

    def reset(self) -> None:
        """Every connection ends by RST; what was under way is lost."""
        for writer in list(self._writers):
            ours: socket.socket = writer.get_extra_info("socket")
            if ours.fileno() < 0:
                continue  # it ended just now by itself
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        self._writers.add(writer)
        far_writer: asyncio.StreamWriter | None = None
        try:
            await self._flows["to_server"].wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            self._writers.add(far_writer)
            pumps = [
                asyncio.create_task(self._pump(reader, far_writer, "to_server")),
                asyncio.create_task(self._pump(far_reader, writer, "to_client")),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            return  # the server is down: the client sees its connection close
        finally:
            self._links.discard(link)
            for each in (writer, far_writer):
                if each is not None:
                    self._writers.discard(each)
                    each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        ours: socket.socket = writer.get_extra_info("socket")
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := await reader.read(1 << 16):
                await self._flows[direction].wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                for piece in [data[i : i + 1] for i in range(len(data))] if self.one_byte else [data]:
                    writer.write(piece)
                    await writer.drain()
                    if self.one_byte:
                        await asyncio.sleep(0)
        except OSError:
            return  # one side has gone; so has the link


__all__ = ["Proxy"]
