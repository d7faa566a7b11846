"""What a rival's client counts and tells. Imports nothing of headrace: it runs in the rivals' environment."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_DEADLINE_S = 280.0


class Count:
    """Row changes as they come. The clock and the CPU begin with the first ones, so that a start-up costs nothing.

    cpu: CPU seconds up to now of whatever reads; by default of all threads of this process.
    """

    def __init__(self, rows: int, cpu: Callable[[], float] = time.process_time) -> None:
        self._rows = rows
        self._cpu = cpu
        self._begun_s = time.perf_counter()
        self._first = (0.0, 0.0)
        self._first_rows = 0
        self._half = (0.0, 0)
        self._end = (0.0, 0.0)
        self._seen = 0
        self._is_over = threading.Event()

    def add(self, rows: int) -> None:
        now = time.perf_counter()
        if self._seen == 0:
            self._first, self._first_rows = (now, self._cpu()), rows
        self._seen += rows
        if self._half[1] == 0 and self._seen >= self._rows // 2:
            self._half = (now, self._seen)
        if self._seen >= self._rows and not self._is_over.is_set():
            self._end = (now, self._cpu())
            self._is_over.set()

    @property
    def is_over(self) -> bool:
        return self._is_over.is_set()

    def wait(self) -> None:
        if not self._is_over.wait(_DEADLINE_S):
            raise SystemExit(f"only {self._seen} of {self._rows} rows came in {_DEADLINE_S:.0f} s")

    def tell(self, **more: Any) -> None:
        """JSON on stdout, and the process ends at once: what a client does at its end is not measured.

        rows: those that wall_s and cpu_s are about, from the first delivery to the last; later_rows_per_s: of the second half, when a JIT is
        warm; start_s: from the process's first line to its first row.
        """
        (first_s, first_cpu_s), (end_s, end_cpu_s), (half_s, half_seen) = self._first, self._end, self._half
        figures = {
            "rows": self._seen - self._first_rows,
            "wall_s": end_s - first_s,
            "cpu_s": end_cpu_s - first_cpu_s,
            "later_rows_per_s": round((self._seen - half_seen) / max(end_s - half_s, 1e-9)),
            "start_s": round(first_s - self._begun_s, 2),
            **more,
        }
        sys.stdout.write("\n" + json.dumps(figures) + "\n")
        sys.stdout.flush()
        os._exit(0)
