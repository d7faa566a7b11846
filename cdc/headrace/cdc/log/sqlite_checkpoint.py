"""Moves committed pages from the write-ahead log into the file, beside the writer and not in its way.

SQLite starts its WAL over only when a commit finds every frame of it moved. A writer that never rests would never see that, and the WAL
would grow for ever. So: a thread of its own makes passive passes, which block nobody, while the writer goes on; once a pass has left
only little, the writer's own thread moves that rest between two transactions. The next commit then reuses the WAL from its beginning,
which is also faster than growing it (benchmarks/log_append.py).

Why a pass never starts on a WAL that is already wholly moved: SQLite before 3.51.3 (and 3.44.6, 3.50.7) has a race between such a
checkpoint and the commit that starts the WAL over, which can lose pages (sqlite.org/wal.html, "The WAL-Reset Bug"). While a pass has
frames left to move, no commit can start the WAL over, for only the pass itself marks them as moved; so the writer asks for a pass only
when something was committed after the last move ended. For the same reason nobody else may checkpoint the file while a log runs: our
readers open it read-only, which can't.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Final

_PASS_BYTES: Final = 16 << 20
_REST_BYTES: Final = 2 << 20
_MOST_BYTES: Final = 64 << 20
"""Above this the writer moves the rest whatever its size: under a load that outruns the passes, a pause is better than no bound."""


class Checkpointer:
    """start, wrote and stop come from the writer's side: wrote and stop from its thread only.

    passes_total: passes made so far, by either thread.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        self._writer = writer
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=0.0, check_same_thread=False)
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._ended: SimpleQueue[bool] = SimpleQueue()
        self._is_under_way = False
        self._since_reset = 0
        self._since_pass = 0
        self._moved_version = self._data_version()
        self.passes_total = 0
        self._thread = Thread(target=self._run, name="headrace-log-checkpoint", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wrote(self, count: int) -> None:
        """About count bytes were committed just now. Raises sqlite3.Error when moving the rest fails."""
        self._since_reset += count
        self._since_pass += count
        if self._is_under_way:
            if not self._ended.qsize():
                return
            self._ended.get()
            self._is_under_way = False
            if self._since_pass <= _REST_BYTES or self._since_reset > _MOST_BYTES:
                self._move_rest()
                return
        elif self._since_pass < _PASS_BYTES:
            return
        # Between passes the connection belongs to this thread. A commit that changed no page doesn't move the version.
        if self._data_version() == self._moved_version:
            return
        self._since_pass = 0
        self._is_under_way = True
        self._asked.put(True)

    def stop(self) -> None:
        """End the pass under way, the thread and its connection."""
        self._asked.put(False)
        self._thread.join()
        self._connection.close()

    def empty(self) -> None:
        """Move everything and cut the WAL off, as far as no reader is in the way."""
        if self._is_under_way:
            self._ended.get()
            self._is_under_way = False
        if self._data_version() != self._moved_version:
            self._writer.execute("pragma busy_timeout = 1000").fetchall()
            self._writer.execute("pragma wal_checkpoint(truncate)").fetchall()
            self.passes_total += 1
            self._moved_version = self._data_version()
            self._since_pass = self._since_reset = 0

    def truncate(self) -> None:
        """Leave the log as one file. With a reader in the way the WAL stays, which is as good."""
        try:
            self._writer.execute("pragma busy_timeout = 100").fetchall()
            self._writer.execute("pragma wal_checkpoint(truncate)").fetchall()
        except sqlite3.Error:
            pass  # everything is durable in the WAL; the next open moves it

    def _data_version(self) -> int:
        return int(self._connection.execute("pragma data_version").fetchone()[0])

    def _move_rest(self) -> None:
        busy, in_wal, moved = self._writer.execute("pragma wal_checkpoint(passive)").fetchone()
        self.passes_total += 1
        self._moved_version = self._data_version()
        self._since_pass = 0
        # A reader may hold an old snapshot: then the WAL goes on growing until a later round finds none.
        if not busy and in_wal == moved:
            self._since_reset = 0

    def _run(self) -> None:
        while self._asked.get():
            try:
                self._connection.execute("pragma wal_checkpoint(passive)").fetchall()
                self._moved_version = self._data_version()
            except sqlite3.Error:
                pass  # a full disk shows itself to the writer, whose error reaches a person
            self.passes_total += 1
            self._ended.put(True)
