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
from pathlib import Path
from typing import Any


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


def rows(pieces: list[tuple[int, bytes]]) -> list[list[int]]:
    """[id, committed_us, seen_us] of each row's event in what was read."""
    found: list[list[int]] = []
    ends: list[tuple[int, int]] = []
    size = 0
    for seen_us, piece in pieces:
        size += len(piece)
        ends.append((size, seen_us))
    whole = b"".join(piece for _, piece in pieces)
    at = place = 0
    while (end := whole.find(b"\n\n", at)) >= 0:
        data = next((line for line in whole[at:end].split(b"\n") if line.startswith(b"data: ")), None)
        at = end + 2
        while ends[place][0] < at:
            place += 1
        if data is not None:
            event: dict[str, Any] = json.loads(data[6:])
            if event.get("after"):
                found.append([event["after"]["id"], event["committed_us"], ends[place][1]])
    return found


def main() -> None:
    host, port, start, file = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    link = connect(host, port)
    ask(link, host, port, start)
    pieces: list[tuple[int, bytes]] = []
    link.setblocking(False)
    is_ready = False
    while True:
        readable, _, _ = select.select([link, sys.stdin], [], [])
        if sys.stdin in readable:
            break
        piece = link.recv(1 << 20)
        pieces.append((time.time_ns() // 1000, piece))
        if not piece:
            break
        if not is_ready:
            is_ready = True
            file.with_suffix(".ready").touch()
    file.write_text(json.dumps(rows(pieces)))


if __name__ == "__main__":
    main()
