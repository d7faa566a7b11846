"""``headrace run`` in a process of its own, with a configuration made for a benchmark, and what its server says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.cdc.demo.embedded import free_port

_DEADLINE_S = 1800.0
_POLL_S = 0.02


class Headrace:
    """A running process, from ``with`` to its end. folder: of its files; configuration: its YAML without ``server``."""

    def __init__(self, folder: Path, configuration: str) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "headrace.yaml").write_text(f'{configuration}\nserver: {{listen: "127.0.0.1:{self._port}"}}\n')

    def __enter__(self) -> Self:
        with (self._folder / "run.log").open("wb") as log:
            self._process = subprocess.Popen(
                [Path(sys.executable).with_name("headrace"), "run", "headrace.yaml"],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def kill(self, number: int) -> None:
        """End it by a signal, and wait for that."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)
        self._process = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def source(self) -> dict[str, Any]:
        """What the process says of its only source."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/v1/status", timeout=60) as answer:
            [found] = json.load(answer)["sources"].values()
            return dict(found)

    def rows(self) -> int:
        """Appended to the log so far."""
        return int(self.source().get("appended_rows") or 0)

    def is_up(self) -> bool:
        """Its server answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/healthz", timeout=5):
                return True
        except OSError:
            return False

    def is_ready(self) -> bool:
        """Every part is: the source streams."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + _DEADLINE_S
        while not done():
            if time.monotonic() > end or (self._process is not None and self._process.poll() is not None):
                raise SystemExit(f"it didn't happen\n{(self._folder / 'run.log').read_text(errors='replace')[-2000:]}")
            time.sleep(_POLL_S)
