"""``headrace run`` in a process of its own, in one folder, started again after each kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from headrace.cdc.demo.client import Client
from headrace.cdc.demo.embedded import free_port

DEADLINE_S = 60.0


class RunningHeadrace:
    """configuration: the file's text without ``server``, which is added with a free port."""

    def __init__(self, folder: Path, configuration: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.process: subprocess.Popen[bytes] | None = None
        self.config = folder / "headrace.yaml"
        self.config.write_text(f'{configuration}\nserver: {{listen: "127.0.0.1:{self.port}"}}\n')

    def start(self) -> None:
        with (self.folder / "run.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import sys; from headrace.cdc.cli import main; sys.exit(main())",
                    "run",
                    "headrace.yaml",
                ],
                cwd=self.folder,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, self.said()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(20) == 0, self.said()

    def end(self) -> None:
        """However it is, it is over afterwards; for a test that failed."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def appended(self) -> int:
        """Log transactions of this process so far."""
        status = self.client.status()
        return 0 if status is None else int(status["log"]["appends_total"])

    def said(self) -> str:
        return (self.folder / "run.log").read_text(errors="replace")[-3000:]

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not done():
            assert self.process is not None
            assert self.process.poll() is None, f"{what}: headrace stopped\n{self.said()}"
            assert time.monotonic() < end, f"{what} took too long\n{self.client.status()}\n{self.said()}"
            time.sleep(0.02)  # a poll of another process over HTTP: there is no event to wait on
