"""A throwaway MySQL 9, of the matrix: Debian has it in sid only, so its packages are unpacked beside the system, and run by their own loader."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from fix_mariadb import MariaDBServer, give
from headrace.cdc.demo.embedded import as_server_user

_READY_S = 60.0
_OPTIONS = {
    "mysqlx": "OFF",
    "secure-file-priv": "NULL",
    "gtid-mode": "ON",
    "enforce-gtid-consistency": "ON",
    "log-bin": "binlog",
    "binlog-row-metadata": "FULL",
    "server-id": "1",
    "performance-schema": "OFF",
    "innodb-redo-log-capacity": "8M",
    "innodb-buffer-pool-size": "64M",
}


def unpacked() -> Path:
    """The folder of the unpacked packages, HEADRACE_MYSQL9 or the cache; skips with what is missing."""
    folder = Path(os.environ.get("HEADRACE_MYSQL9", Path.home() / ".cache" / "headrace-servers" / "mysql-9"))
    if not (folder / "usr" / "sbin" / "mysqld").exists():
        pytest.skip(
            f"MySQL 9 is missing: apt-get download mysql-server-core of Debian sid with what it depends on, dpkg-deb -x each into {folder}"
        )
    try:
        subprocess.run(
            [folder / "usr" / "lib64" / "ld-linux-x86-64.so.2", "--version"],
            check=True,
            capture_output=True,
            **as_server_user(),
        )
    except PermissionError:
        pytest.skip(
            f"MySQL 9 in {folder} can't be run by the user that servers run as here: put it where others may read"
        )
    return folder


class MySQLServer(MariaDBServer):
    """The same face as MariaDB's."""

    def __init__(self, template: Path) -> None:
        super().__init__(template)
        self.settings = dict(_OPTIONS)

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *command(),
                    f"--datadir={self.folder / 'data'}",
                    f"--socket={self.folder / 's'}",
                    f"--tmpdir={self.folder}",
                    f"--port={self.port}",
                    "--bind-address=127.0.0.1",
                    *[f"--{name}={value}" for name, value in self.settings.items()],
                ],
                stdout=log,
                stderr=log,
                **as_server_user(),
            )
        end = time.monotonic() + _READY_S
        while True:
            try:
                self.connect().close()
            except pymysql.err.OperationalError:
                said = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < end, said
                time.sleep(0.05)  # a foreign process gets ready: there is no event to wait on
            else:
                return


def command() -> list[str | Path]:
    folder = unpacked()
    return [
        folder / "usr" / "lib64" / "ld-linux-x86-64.so.2",
        "--library-path",
        folder / "usr" / "lib" / "x86_64-linux-gnu",
        folder / "usr" / "sbin" / "mysqld",
        "--no-defaults",
        f"--basedir={folder / 'usr'}",
        f"--lc-messages-dir={folder / 'usr' / 'share' / 'mysql'}",
        f"--plugin-dir={folder / 'usr' / 'lib' / 'mysql' / 'plugin'}",
    ]


@pytest.fixture(scope="session")
def mysql9_template() -> Iterator[Path]:
    template = Path(tempfile.mkdtemp(prefix="headrace-mysql-template-"))
    template.chmod(0o755)
    give(template)
    try:
        subprocess.run(
            [*command(), f"--datadir={template / 'data'}", "--initialize-insecure", "--innodb-redo-log-capacity=8M"],
            check=True,
            capture_output=True,
            **as_server_user(),
        )
        yield template / "data"
    finally:
        shutil.rmtree(template, ignore_errors=True)


@pytest.fixture(scope="session")
def mysql9(mysql9_template: Path) -> Iterator[MySQLServer]:
    made = MySQLServer(mysql9_template)
    try:
        made.start()
        yield made
    finally:
        made.remove()
