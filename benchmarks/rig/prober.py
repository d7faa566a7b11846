"""Polls one feature of one entity where a reader finds it, and notes when each new value is first seen: a process of its own.

    python -m rig.prober sqlite FILE TABLE FEATURE ENTITY_KEY_HEX PAUSE_US OUT
    python -m rig.prober redis HOST:PORT HASH_HEX FIELD_HEX - PAUSE_US OUT

The value is an Int64 in Feast's bytes. Ends when its stdin is closed, and writes to OUT a JSON array: [value, seen] with microseconds
since 1970. What is seen was readable at most one poll earlier: pause, timer slack and the read itself, told as ``poll_us``.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

from headrace.features.encoding import decode_value
from headrace.features.spec import ValueType

Read = Callable[[], "bytes | None"]


def sqlite_reader(file: str, table: str, feature: str, key: str) -> Read:
    connection: sqlite3.Connection | None = None
    query = f'select value from "{table}" where entity_key = ? and feature_name = ?'
    arguments = (bytes.fromhex(key), feature)

    def read() -> bytes | None:
        nonlocal connection
        try:
            connection = connection or sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None)
            row = connection.execute(query, arguments).fetchone()
        except sqlite3.OperationalError:
            return None  # no such file or table yet
        return None if row is None else row[0]

    return read


def redis_reader(place: str, hash_hex: str, field_hex: str) -> Read:
    host, _, port = place.rpartition(":")
    link = socket.create_connection((host, int(port)))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    parts = (b"HGET", bytes.fromhex(hash_hex), bytes.fromhex(field_hex))
    command = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)

    def read() -> bytes | None:
        link.sendall(command)
        reply = link.recv(4096)
        while not reply.endswith(b"\r\n") or (
            reply.startswith(b"$") and reply.count(b"\r\n") < 2 and reply != b"$-1\r\n"
        ):
            reply += link.recv(4096)
        return None if reply.startswith((b"$-1", b"-")) else reply.partition(b"\r\n")[2][:-2]

    return read


def main() -> None:
    kind, place, name, field, key, pause_us, out = sys.argv[1:8]
    read = sqlite_reader(place, name, field, key) if kind == "sqlite" else redis_reader(place, name, field)
    pause_s = int(pause_us) / 1e6
    seen: list[tuple[int, int]] = []
    last: bytes | None = None
    began, polls = time.perf_counter(), 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        value = read()
        polls += 1
        if value != last and value:
            number = decode_value(ValueType.INT64, value)
            assert isinstance(number, int)
            seen.append((number, time.time_ns() // 1000))
            last = value
        if pause_s:
            time.sleep(pause_s)
    poll_us = (time.perf_counter() - began) / max(1, polls) * 1e6
    with contextlib.suppress(BrokenPipeError):
        Path(out).write_text(json.dumps({"poll_us": round(poll_us, 1), "seen": seen}))


if __name__ == "__main__":
    main()
