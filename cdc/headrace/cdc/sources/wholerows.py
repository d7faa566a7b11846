"""Rows of a table without a key, as of one place in the stream: what one SELECT saw, less what went since, and what came. Pure but for a file.

Rows without a key are told apart by all their values, so only the count of each matters. New rows go into a file, which may be as large as it
must; the old images of rows that went are counted in memory.
"""

from __future__ import annotations

import pickle
import struct
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from headrace.cdc.event import Change, Row

_LENGTH = struct.Struct(">I")
BLOCK_ROWS = 500
PART_ROWS = 5000


class LineFile:
    """Byte strings, one behind the other, in a file without a name in its folder; nobody else can open it. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # lives as long as the copy

    def write(self, line: bytes) -> None:
        self._file.write(_LENGTH.pack(len(line)))
        self._file.write(line)

    def lines(self) -> Iterator[bytes]:
        self._file.seek(0)
        while head := self._file.read(_LENGTH.size):
            yield self._file.read(_LENGTH.unpack(head)[0])

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        """Closing twice is fine."""
        self._file.close()


class RowFile:
    """Rows in order, in blocks. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._file = LineFile(folder)
        self._block: list[Row] = []

    def add(self, row: Row) -> None:
        self._block.append(row)
        if len(self._block) >= BLOCK_ROWS:
            self._file.write(pickle.dumps(self._block, 5))
            self._block = []

    def blocks(self) -> Iterator[list[Row]]:
        for data in self._file.lines():
            yield pickle.loads(data)  # noqa: S301  # our own, from a file that nobody else can open
        yield self._block

    def clear(self) -> None:
        self._block = []
        self._file.clear()

    def close(self) -> None:
        """Closing twice is fine."""
        self._file.close()


class RowsSince:
    """What the stream did that the SELECT didn't see. is_emptied: by a truncate, so that nothing of the SELECT's is left.

    gone_count: different rows that went, all of them in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.is_emptied = False
        self._added = RowFile(folder)
        self._gone: Counter[Row] = Counter()

    @property
    def gone_count(self) -> int:
        return len(self._gone)

    def note(self, change: Change) -> None:
        if change.op == "truncate":
            self.is_emptied = True
            self._gone.clear()
            self._added.clear()
            return
        if change.before is not None:
            self._gone[change.before] += 1
        if change.after is not None:
            self._added.add(change.after)

    def parts(self, selected: Iterable[list[Row]]) -> Iterator[tuple[list[Row], bool]]:
        """All rows, some thousand at a time, and with the last of them True; an empty table gives one empty part. selected: the SELECT's."""
        held: list[Row] = []
        for rows in self._blocks(selected):
            kept = self._without_gone(rows)
            if held and len(held) + len(kept) > PART_ROWS:
                yield held, False
                held = []
            held += kept
        yield held, True

    def _blocks(self, selected: Iterable[list[Row]]) -> Iterator[list[Row]]:
        if not self.is_emptied:
            yield from selected
        yield from self._added.blocks()

    def _without_gone(self, rows: list[Row]) -> list[Row]:
        if not self._gone:
            return rows
        kept: list[Row] = []
        for row in rows:
            if self._gone.get(row, 0) > 0:  # equal rows are the same row
                self._gone[row] -= 1
                if self._gone[row] == 0:
                    del self._gone[row]
            else:
                kept.append(row)
        return kept

    def close(self) -> None:
        """Let go of the file; closing twice is fine."""
        self._added.close()


__all__ = ["LineFile", "RowFile", "RowsSince"]
