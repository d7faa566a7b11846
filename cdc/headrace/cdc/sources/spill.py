"""Transactions too large for memory, on disk until their end is known; decoded a part at a time once they have committed.

The decoder gives their messages out undecoded (decode/pgoutput.py, "piece"). A file of its own holds each transaction's, without a name
in its folder: a crash, however hard, leaves nothing behind, and nobody else can open it. It holds rows as the server sent them,
columns that never reach the log included.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from headrace.cdc.decode.pgoutput import PgOutputDecoder
from headrace.cdc.decode.transaction import Abort, Piece, SpilledCommit, Transaction
from headrace.cdc.errors import SourceUnavailable

PART_BYTES = 256 << 10
"""A part of a replayed transaction holds about so many bytes of messages: some thousand rows."""


class Spills:
    """All open transactions of one source that left pieces. folder: where their files are, None for the system's choice.

    bytes_total: on disk now.
    """

    def __init__(self, folder: Path | None, *, source: str) -> None:
        self.folder = folder or default_folder()
        self._source = source
        self._open: dict[int, _Spill] = {}

    @property
    def bytes_total(self) -> int:
        return sum(spill.bytes for spill in self._open.values())

    @property
    def transactions(self) -> int:
        return len(self._open)

    def take(self, pieces: list[Piece | Abort]) -> None:
        """Keep pieces, and forget what was rolled back. Raises SourceUnavailable when the disk refuses."""
        for piece in pieces:
            spill = self._open.get(piece.xid)
            if isinstance(piece, Piece):
                try:
                    if spill is None:
                        spill = self._open[piece.xid] = _Spill(self.folder)
                    spill.write(piece.data)
                except OSError as error:
                    raise self.refused(error) from error
            elif piece.xid == piece.subxid:
                if spill is not None:
                    spill.close()
                    del self._open[piece.xid]
            elif spill is not None:
                spill.aborted.add(piece.subxid)

    def replay(self, decoder: PgOutputDecoder, commit: SpilledCommit) -> Replay:
        """Begin to decode a committed transaction from its pieces."""
        return Replay(decoder, commit, self._open.pop(commit.xid, None), self.refused)

    def close(self) -> None:
        """Forget everything; closing twice is fine."""
        for spill in self._open.values():
            spill.close()
        self._open = {}

    def refused(self, error: OSError) -> SourceUnavailable:
        """What the disk said, in a user's words."""
        return SourceUnavailable(
            f'source "{self._source}" can\'t keep a large open transaction in {self.folder}: {error.strerror}',
            source=self._source,
            advice=f"free space there, or name another folder under sources.{self._source}.spill_folder; the server sends the "
            "transaction again",
        )


class Replay:
    """A committed transaction's parts, in order; its file is gone after the last one."""

    def __init__(
        self,
        decoder: PgOutputDecoder,
        commit: SpilledCommit,
        spill: _Spill | None,
        refused: Callable[[OSError], SourceUnavailable],
    ) -> None:
        self._decoder = decoder
        self._is_known = commit.is_known
        self._spill = spill
        self._refused = refused
        self._aborted = frozenset[int]() if spill is None else frozenset(spill.aborted)
        self._number = 0
        self._piece = b""
        self._at = 0
        self._held: Transaction | None = None
        decoder.begin_replay(commit)

    async def next_part(self, look_up: Callable[[], Awaitable[None]]) -> Transaction | None:
        """The next part; the last one has ``is_part`` False, and may be empty. None: the log knows the transaction.

        look_up: answers the decoder's ``wants_key_of``. Cancelling loses nothing. Raises SourceUnavailable when the disk refuses.
        """
        decoder = self._decoder
        while self._has_piece():
            self._at = decoder.replay(self._piece, self._at, self._aborted, PART_BYTES)
            if decoder.wants_key_of:
                await look_up()
            elif decoder.held_bytes >= PART_BYTES:
                # Held back until more is known to follow: only then it isn't the last.
                former, self._held = self._held, decoder.take_part(is_last=False)
                if former is not None:
                    return former
        if decoder.held_bytes and self._held is not None:
            former, self._held = self._held, None
            return former
        self.close()
        last = decoder.take_part(is_last=True)
        if self._is_known:
            return None
        if self._held is not None:
            last = self._held
            last.is_part = False
            last.changes[-1].is_last = True
        return last

    def close(self) -> None:
        """Let go of the file; closing twice is fine."""
        if self._spill is not None:
            self._spill.close()
            self._spill = None

    def _has_piece(self) -> bool:
        """A piece is at hand that isn't decoded to its end."""
        spill = self._spill
        while self._at >= len(self._piece):
            if spill is None or self._number == len(spill.lengths):
                return False
            try:
                self._piece = spill.read(self._number)
            except OSError as error:
                raise self._refused(error) from error
            self._number += 1
            self._at = 0
        return True


class _Spill:
    """One transaction's pieces. aborted: its subtransactions that were rolled back."""

    def __init__(self, folder: Path) -> None:
        # Unbuffered: a piece is written at once, and none is small.
        self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  # lives as long as the transaction
        self.lengths: list[int] = []
        self._places: list[int] = []
        self.bytes = 0
        self.aborted: set[int] = set()

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.pwrite(self._file.fileno(), left, self.bytes + len(data) - len(left)) :]
        self.lengths.append(len(data))
        self._places.append(self.bytes)
        self.bytes += len(data)

    def read(self, number: int) -> bytes:
        place, length = self._places[number], self.lengths[number]
        found = b""
        while len(found) < length:
            more = os.pread(self._file.fileno(), length - len(found), place + len(found))
            if not more:
                raise OSError(0, "the file ends too early")
            found = found + more if found else more
        return found

    def close(self) -> None:
        self._file.close()


def default_folder() -> Path:
    """$TMPDIR, else /var/tmp where it can be written: /tmp is memory on many systems."""
    if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK | os.X_OK):  # noqa: S108  # files there have no name
        return Path("/var/tmp")  # noqa: S108
    return Path(tempfile.gettempdir())
