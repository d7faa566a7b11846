"""Polls one feature of one entity where a reader finds it, and notes when each new value is first seen: a process of its own.

    python -m rig.prober sqlite FILE TABLE FEATURE ENTITY_KEY_HEX PAUSE_US OUT
    python -m rig.prober redis HOST:PORT HASH_HEX FIELD_HEX - PAUSE_US OUT
    python -m rig.prober feast FOLDER VIEW:FEATURE JOIN_KEY ENTITY PAUSE_US OUT

The value is an Int64 in Feast's bytes; with ``feast`` the stock Feast SDK reads it, by get_online_features of the project in FOLDER. Ends when its stdin is closed, and writes to OUT a JSON array: [value, seen] with microseconds
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

Read = Callable[[], "int | None"]


def sqlite_reader(file: str, table: str, feature: str, key: str) -> Read:
    connection: sqlite3.Connection | None = None
    query = f'select value from "{table}" where entity_key = ? and feature_name = ?'
    arguments = (bytes.fromhex(key), feature)

    def read() -> int | None:
        nonlocal connection
        try:
            connection = connection or sqlite3.connect(f"file:{file}?mode=ro", uri=True, isolation_level=None)
            row = connection.execute(query, arguments).fetchone()
        except sqlite3.OperationalError:
            return None  # no such file or table yet
        return None if row is None else _number(row[0])

    return read


def redis_reader(place: str, hash_hex: str, field_hex: str) -> Read:
    host, _, port = place.rpartition(":")
    link = socket.create_connection((host, int(port)))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    parts = (b"HGET", bytes.fromhex(hash_hex), bytes.fromhex(field_hex))
    command = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)

    def read() -> int | None:
        link.sendall(command)
        reply = link.recv(4096)
        while not reply.endswith(b"\r\n") or (
            reply.startswith(b"$") and reply.count(b"\r\n") < 2 and reply != b"$-1\r\n"
        ):
            reply += link.recv(4096)
        return None if reply.startswith((b"$-1", b"-")) else _number(reply.partition(b"\r\n")[2][:-2])

    return read


def feast_reader(folder: str, feature: str, join_key: str, entity: str) -> Read:
    from feast import FeatureStore  # takes seconds, and only this reader needs it

    store = FeatureStore(repo_path=folder)
    name = feature.partition(":")[2]
    row = {join_key: int(entity)}

    def read() -> int | None:
        value = store.get_online_features(features=[feature], entity_rows=[row]).to_dict()[name][0]
        return None if value is None else int(value)

    return read


def _number(value: bytes) -> int | None:
    number = decode_value(ValueType.INT64, value)
    assert number is None or isinstance(number, int)
    return number


def main() -> None:
    kind, place, name, field, key, pause_us, out = sys.argv[1:8]
    if kind == "sqlite":
        read = sqlite_reader(place, name, field, key)
    elif kind == "feast":
        read = feast_reader(place, name, field, key)
    else:
        read = redis_reader(place, name, field)
    pause_s = int(pause_us) / 1e6
    seen: list[tuple[int, int]] = []
    last: int | None = None
    read()  # a reader's first read opens what it needs
    began, polls = time.perf_counter(), 0
    Path(out).with_suffix(".ready").touch()
    while not select.select([sys.stdin], [], [], 0)[0]:
        value = read()
        polls += 1
        if value is not None and value != last:
            seen.append((value, time.time_ns() // 1000))
            last = value
        if pause_s:
            time.sleep(pause_s)
    poll_us = (time.perf_counter() - began) / max(1, polls) * 1e6
    with contextlib.suppress(BrokenPipeError):
        Path(out).write_text(json.dumps({"poll_us": round(poll_us, 1), "seen": seen}))


if __name__ == "__main__":
    main()
