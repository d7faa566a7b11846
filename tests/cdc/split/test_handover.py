"""Connections that change process: which ones do, that no byte is lost or read twice, and what happens when they can't."""

from __future__ import annotations

import asyncio
import itertools
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cdc.split.handover import FirstLine, Taking, give, pair, receive


class Inner(asyncio.Protocol):
    def __init__(self) -> None:
        self.got = b""
        self.made = 0
        self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made += 1

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost += 1


class Transport:
    def __init__(self) -> None:
        self.protocol: Any = None
        self.is_aborted = False
        self.is_paused = False
        self.sock, self.other = socket.socketpair()

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self.sock

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        self.is_aborted = True

    def close(self) -> None:
        self.sock.close()
        self.other.close()


REQUEST = b"POST /get-online-features?a=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"


@given(cuts=st.lists(st.integers(1, len(REQUEST) - 1), max_size=6), is_taken=st.booleans(), is_ours=st.booleans())
def test_however_it_is_cut_every_byte_reaches_one_side_once(cuts: list[int], is_taken: bool, is_ours: bool) -> None:
    transport, inner, given_away = Transport(), Inner(), b""
    asked: list[str] = []

    def take(number: int, data: bytes) -> bool:
        nonlocal given_away
        assert number == transport.sock.fileno() and transport.is_paused
        given_away = data if is_taken else b""
        return is_taken

    def find(path: str) -> Any:
        asked.append(path)
        return None if is_ours else take

    transport.protocol = FirstLine(inner, find)
    transport.protocol.connection_made(transport)
    places = [0, *sorted(set(cuts)), len(REQUEST)]
    left = b""
    for start, end in itertools.pairwise(places):
        if transport.is_aborted:
            left += REQUEST[start:end]  # in the kernel, for whoever has the connection now
        else:
            transport.protocol.data_received(REQUEST[start:end])
    assert asked == ["/get-online-features"]
    if is_taken and not is_ours:
        assert transport.is_aborted and inner.got == b"" and given_away + left == REQUEST
    else:
        assert not transport.is_aborted and not transport.is_paused
        assert inner.got == REQUEST and transport.protocol is inner
    transport.close()


def test_what_is_no_request_stays_here() -> None:
    for data in (b"\x16\x03\x01\r\n", b"GET\r\n", b"x" * 40_000):
        transport, inner = Transport(), Inner()
        first = FirstLine(inner, lambda path: pytest.fail(path))
        first.connection_made(transport)  # type: ignore[arg-type]  # what of a transport it uses
        first.data_received(data)
        assert inner.got == data
        transport.close()


def test_a_way_that_is_full_too_small_or_closed_takes_nothing() -> None:
    ours, theirs = pair()
    held, peer = socket.socketpair()
    number = held.fileno()
    try:
        assert not give(ours, number, b"")
        assert not give(ours, number, b"x" * (33 << 10))
        theirs.setblocking(False)
        assert receive(theirs) is None
        sent = 0
        while give(ours, number, b"x" * (16 << 10)):
            sent += 1
            assert sent < 10_000
        for _ in range(sent):
            found = receive(theirs)
            assert found is not None and found[1] == b"x" * (16 << 10)
            found[0].close()
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)
        ours, other = pair()
        other.close()
        assert not give(ours, number, b"x")
    finally:
        held.close()
        peer.close()
        ours.close()
        theirs.close()


async def test_a_taken_connection_is_served_with_what_was_read_of_it_first() -> None:
    ours, theirs = pair()
    served: list[Inner] = []

    class Echo(Inner):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport: Any = transport
            served.append(self)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(data.upper())

    taking = Taking(theirs, Echo)
    taking.start()
    client, connection = socket.socketpair()
    client.sendall(b"and the rest")
    assert give(ours, connection.fileno(), b"the first ")
    connection.close()
    reader, writer = await asyncio.open_connection(sock=client)
    async with asyncio.timeout(10):
        assert await reader.readexactly(22) == b"THE FIRST AND THE REST"
    assert served[0].got == b"the first and the rest"
    writer.close()
    ours.close()
    taking.stop()
