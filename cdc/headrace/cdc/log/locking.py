"""One writing process for a log: an advisory lock on ``<path>.lock``, which also names the holder.

The operating system releases the lock when the holder dies, however it dies; so there is no stale lock to clear by hand. The file
itself stays: removing it would let a third process lock another file of the same name. Only within one machine (flock(2)); what else
guards against a second writer is the epoch in the log.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from headrace.cdc.errors import LogLocked, LogUnavailable


class WriterLock:
    """Held from construction to release.

    Raises LogLocked when another open of the log holds it; LogUnavailable when the lock file can't be made.
    """

    def __init__(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        try:
            # 0600 like the log itself; not inherited by child programs (PEP 446), which would keep the log locked.
            self._file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LogUnavailable(
                f"log {path} can't be written: lock file {lock}: {error.strerror}",
                advice=f"give this user the right to write files in {lock.parent}, or set log.path to a folder where it has it",
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise LogUnavailable(
                    f"log {path} can't be locked: {lock}: {error.strerror}",
                    advice="keep the log on a local file system, one that knows flock",
                ) from error
            raise LogLocked(f"log {path} is written by another process, pid {holder or 'unknown'}") from error
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode("ascii"), 0)
        except OSError:
            pass  # a full disk: the lock itself holds, only its label is missing

    def release(self) -> None:
        """Idempotent."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)
