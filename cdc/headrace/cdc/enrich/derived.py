"""A SQLite file of what was read out of the log: lost, it is read again."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import ClassVar


class DerivedFile:
    """Opened when first used, under the lock."""

    schema: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = sqlite3.connect(self._path, check_same_thread=False, isolation_level="IMMEDIATE")
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = normal")  # the log has it all
            self._database.executescript(self.schema)
        return self._database

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None


__all__ = ["DerivedFile"]
