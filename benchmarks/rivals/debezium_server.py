"""Debezium Server reading a slot into a stream of a Redis server of its own, whose append-only file is synced every second.

    python debezium_server.py HOST PORT SLOT PUBLICATION ROWS

Runs in the rivals' environment (.ci/rivals.sh), so it imports nothing of headrace, and leaves its files where it runs. Prints JSON: see ``Count``;
CPU and memory are those of the Java process, redis_us_per_row that of the server which keeps what it delivers.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from count import Count
from debezium import source

_SERVER = Path(sys.prefix).parent / "debezium-server"
_STREAM = "bench.public.orders"
_POLL_S = 0.005
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Redis:
    """As much of a client as asks for the length of a stream."""

    def __init__(self, port: int) -> None:
        end_s = time.monotonic() + 10
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.02)  # the server is another process: its start has no event for us to wait on

    def length(self) -> int:
        self._socket.sendall(f"XLEN {_STREAM}\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += self._socket.recv(100)
        return int(answer[1:]) if answer.startswith(b":") else 0


def properties(host: str, port: str, slot: str, publication: str, redis_port: int) -> dict[str, str]:
    return {
        **{f"debezium.source.{name}": value for name, value in source(host, port, slot, publication).items()},
        "debezium.sink.type": "redis",
        "debezium.sink.redis.address": f"127.0.0.1:{redis_port}",
        "debezium.format.key": "json",
        "debezium.format.value": "json",
        "debezium.format.key.schemas.enable": "false",
        "debezium.format.value.schemas.enable": "false",
        "quarkus.http.port": "0",
        "quarkus.log.level": "WARN",
        "quarkus.log.console.json": "false",
    }


def main() -> None:
    host, port, slot, publication, rows = sys.argv[1:]
    redis_port = free_port()
    folder = Path.cwd()
    (folder / "config").mkdir()
    lines = [f"{name}={value}" for name, value in properties(host, port, slot, publication, redis_port).items()]
    (folder / "config" / "application.properties").write_text("\n".join([*lines, ""]))
    binary = shutil.which("redis-server")
    assert binary is not None  # rig/rivals.py has looked
    kept = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    redis = subprocess.Popen(
        [binary, "--port", str(redis_port), "--bind", "127.0.0.1", *kept], stdout=subprocess.DEVNULL
    )
    java_path = (_SERVER / "java").read_text().strip()
    runner = next(_SERVER.glob("debezium-server-*runner.jar"))
    classes = os.pathsep.join([str(runner), str(folder / "config"), f"{_SERVER}/lib/*"])
    java = None
    try:
        stream = Redis(redis_port)
        with (folder / "said.txt").open("wb") as said:
            java = subprocess.Popen([java_path, "-cp", classes, "io.debezium.server.Main"], stdout=said, stderr=said)
        count = Count(int(rows), cpu=lambda: cpu_s(java.pid))
        seen, first_redis_s, end_s = 0, 0.0, time.monotonic() + 270
        while not count.is_over:
            length = stream.length()
            if length > seen:
                if seen == 0:
                    first_redis_s = cpu_s(redis.pid)
                count.add(length - seen)
                seen = length
            elif java.poll() is not None or time.monotonic() > end_s:
                raise SystemExit(f"{seen} of {rows} rows came\n" + (folder / "said.txt").read_text()[-3000:])
            time.sleep(_POLL_S)  # as above: the stream's length is looked at, not told
        redis_us = (cpu_s(redis.pid) - first_redis_s) / seen * 1e6
        most = peak_mib(java.pid)
    finally:
        for process in (java, redis):
            if process is not None:
                process.kill()
                process.wait()
    count.tell(peak_mib=most, redis_us_per_row=round(redis_us, 2))


if __name__ == "__main__":
    main()
