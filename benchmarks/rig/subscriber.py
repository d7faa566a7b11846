"""Reads GET /v1/stream and notes when each event came: a process of its own that does nothing else until the end.

    python -m rig.subscriber HOST PORT FROM FILE

Waits until the server listens, writes FILE.ready once the answer has begun, ends when its stdin is closed, and writes to FILE a JSON
array: for each event of a row, [id of the row, the server's commit time, when its last byte was read] in microseconds since 1970.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from array import array
from pathlib import Path

import msgspec


def connect(host: str, port: int, deadline_s: float = 30.0) -> socket.socket:
    end = time.monotonic() + deadline_s
    while True:
        try:
            return socket.create_connection((host, port))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.001)


def ask(link: socket.socket, host: str, port: int, start: str) -> None:
    # HTTP/1.0 on purpose: the body comes without chunk sizes in between.
    link.sendall(f"GET /v1/stream?from={start} HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())


class _Row(msgspec.Struct):
    id: int


class _Event(msgspec.Struct):
    committed_us: int = 0
    after: _Row | None = None


_decode = msgspec.json.Decoder(_Event).decode


class Seen:
    """Takes what was read, and keeps of each row's event three numbers: an hour's events themselves would fill the memory."""

    def __init__(self) -> None:
        self._rest = b""
        self._numbers = array("q")

    def add(self, piece: bytes, seen_us: int) -> None:
        """seen_us: when the piece was read, and with it the last byte of each event that it ends."""
        whole = self._rest + piece
        at = 0
        while (end := whole.find(b"\n\n", at)) >= 0:
            for line in whole[at:end].split(b"\n"):
                if line.startswith(b"data: "):
                    event = _decode(line[6:])
                    if event.after is not None:
                        self._numbers.extend((event.after.id, event.committed_us, seen_us))
            at = end + 2
        self._rest = whole[at:]

    def rows(self) -> list[list[int]]:
        """[id, committed_us, seen_us] of each row's event."""
        numbers = self._numbers
        return [numbers[place : place + 3].tolist() for place in range(0, len(numbers), 3)]


def main() -> None:
    host, port, start, file = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    link = connect(host, port)
    ask(link, host, port, start)
    seen = Seen()
    link.setblocking(False)
    is_ready = False
    while True:
        readable, _, _ = select.select([link, sys.stdin], [], [])
        if sys.stdin in readable:
            break
        piece = link.recv(1 << 20)
        seen_us = time.time_ns() // 1000
        if not piece:
            break
        seen.add(piece, seen_us)
        if not is_ready:
            is_ready = True
            file.with_suffix(".ready").touch()
    file.write_text(json.dumps(seen.rows()))


if __name__ == "__main__":
    main()
