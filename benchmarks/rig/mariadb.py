"""A throwaway MariaDB of the distribution's for a benchmark."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql

from headrace.cdc.demo.embedded import as_server_user, free_port

_READY_S = 60.0
_OPTIONS = [
    "--log-bin=binlog",
    "--binlog-format=ROW",
    "--binlog-row-metadata=FULL",
    "--server-id=1",
    "--max-binlog-size=1G",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-buffer-pool-size=256M",
    "--innodb-log-file-size=256M",
    "--max-allowed-packet=64M",
    "--character-set-server=utf8mb4",
    "--skip-name-resolve",
    "--bind-address=127.0.0.1",
]


def program(name: str) -> str:
    """Path of one of MariaDB's programs."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        raise SystemExit(f"{name} is missing: install mariadb-server")
    return found


def connect(port: int, **more: Any) -> pymysql.connections.Connection[Any]:
    return pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True, charset="utf8mb4", **more)


@contextmanager
def throwaway(parent: Path) -> Iterator[int]:
    """Port of a running server, root without password; its data in a folder of its own under parent, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="maria-", dir=parent)).resolve()
    data = folder / "data"
    subprocess.run(
        [
            program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ],
        check=True,
        capture_output=True,
    )
    who = as_server_user()
    if "user" in who:
        for above in (parent, folder):
            above.chmod(0o755)  # temporary folders are their maker's alone
        for path in (folder, *folder.rglob("*")):
            os.chown(path, who["user"], who["group"])
    port = free_port()
    with (folder / "server.log").open("wb") as log, subprocess.Popen(
        [program("mariadbd"), "--no-defaults", f"--datadir={data}", f"--socket={folder / 's'}", f"--port={port}", *_OPTIONS],
        stdout=log,
        stderr=log,
        **who,
    ) as process:  # fmt: skip
        try:
            end = time.monotonic() + _READY_S
            while True:
                try:
                    connect(port).close()
                    break
                except pymysql.err.OperationalError:
                    if process.poll() is not None or time.monotonic() > end:
                        raise SystemExit((folder / "server.log").read_text(errors="replace")[-2000:]) from None
                    time.sleep(0.05)
            yield port
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)
