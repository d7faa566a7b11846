"""A throwaway MariaDB: its data folder copied from a template that is made once a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pymysql
import pytest

from headrace.cdc.demo.embedded import as_server_user, free_port

_NOBODY = 65534
_READY_S = 60.0
_SETTINGS = {
    "log-bin": "binlog",
    "binlog-format": "ROW",
    "binlog-row-image": "FULL",
    "binlog-row-metadata": "FULL",
    "server-id": "1",
    "gtid-domain-id": "0",
    "innodb-buffer-pool-size": "32M",
    "innodb-log-file-size": "8M",
    "innodb-flush-log-at-trx-commit": "0",
    "skip-name-resolve": "",
}


def mariadbd() -> list[str | Path]:
    """The command of the system's server, or of the packages that are unpacked in HEADRACE_MARIADB: by their own loader."""
    if folder := unpacked():
        return [
            folder / "usr" / "lib64" / "ld-linux-x86-64.so.2",
            "--library-path",
            folder / "usr" / "lib" / "x86_64-linux-gnu",
            folder / "usr" / "sbin" / "mariadbd",
            "--no-defaults",
            f"--basedir={folder / 'usr'}",
            f"--lc-messages-dir={folder / 'usr' / 'share' / 'mariadb'}",
            f"--plugin-dir={folder / 'usr' / 'lib' / 'mysql' / 'plugin'}",
        ]
    found = shutil.which("mariadbd") or "/usr/sbin/mariadbd"
    if not Path(found).exists():
        pytest.fail("MariaDB is needed by the default suite: apt-get install -y --no-install-recommends mariadb-server")
    return [found, "--no-defaults"]


def unpacked() -> Path | None:
    return Path(os.environ["HEADRACE_MARIADB"]) if "HEADRACE_MARIADB" in os.environ else None


class MariaDBServer:
    """settings: of the server, by option name. ``connect`` as root without password."""

    def __init__(self, template: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-maria-"))
        self.folder.chmod(0o755)
        self.port = free_port()
        self.settings = {**_SETTINGS, **(settings or {})}
        shutil.copytree(template, self.folder / "data")
        give(self.folder)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = [f"--{name}={value}" if value else f"--{name}" for name, value in self.settings.items()]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *mariadbd(),
                    f"--datadir={self.folder / 'data'}",
                    f"--socket={self.folder / 's'}",
                    f"--tmpdir={self.folder}",  # a server that starts empties its own of tables: others' were gone
                    f"--port={self.port}",
                    "--bind-address=127.0.0.1",
                    *options,
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

    def connect(self, database: str | None = None, **more: Any) -> pymysql.connections.Connection[Any]:
        more.setdefault("charset", "utf8mb4")
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=database, autocommit=True, **more
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it in an orderly way."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_READY_S)
            self._process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def give(folder: Path) -> None:
    """The server's user must own it, where that isn't us."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)


def bootstrap(scripts: Path, data: Path) -> None:
    """What mariadb-install-db does, which finds only the programs of the system."""
    data.mkdir()
    give(data.parent)
    parts = ["create database mysql;\nuse mysql;\nset @auth_root_socket = null, @skip_auth_anonymous = 1;\n"]
    names = ("mariadb_system_tables.sql", "mariadb_performance_tables.sql", "mariadb_system_tables_data.sql")
    parts += [(scripts / name).read_text() for name in names]
    subprocess.run(
        [
            *mariadbd(),
            f"--datadir={data}",
            f"--tmpdir={data.parent}",
            "--bootstrap",
            "--skip-grant-tables",
            "--innodb-log-file-size=8M",
        ],
        input="\n".join(parts).encode(),
        check=True,
        capture_output=True,
        **as_server_user(),
    )


@pytest.fixture(scope="session")
def mariadb_template() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="headrace-maria-template-"))
    folder.chmod(0o755)
    give(folder)
    if other := unpacked():
        bootstrap(other / "usr" / "share" / "mariadb", folder / "data")
    else:
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                f"--datadir={folder / 'data'}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                f"--tmpdir={folder}",
            ],
            check=True,
            capture_output=True,
            **as_server_user(),
        )
    yield folder / "data"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mariadb(mariadb_template: Path) -> Iterator[MariaDBServer]:
    """One server for all tests that leave its settings alone."""
    made = MariaDBServer(mariadb_template)
    made.start()
    yield made
    made.remove()
