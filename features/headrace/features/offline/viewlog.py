"""The feature log of one view: a folder with a growing journal and sealed Parquet segments, and how both come back after a crash.

Blocking file work; knows no store and no loop. The folder::

    view.json                        whose rows these are (spec hash, log generation), where they begin, known gaps
    00000007.journal                 flushes since the last segment
    00000006-00000000000000004711.parquet    a segment: its number, and the highest offset in it
    retired/<spec hash>-<generation>/        what belonged to another definition or another event log; Feast's glob doesn't see it

A changed view is logged in the folder of its draft until the draft has taken its place in the store.

What was emitted is written here before the online store has it, so nothing is lost; what the store doesn't have is cut off when the view
goes on, so nothing is there twice. That is told by the store's checkpoint, and among the flushes of that very checkpoint (a storm of decay goes in
slices that share one) by the states: a flush is in the store when the states of its entities are there.
"""

from __future__ import annotations

import contextlib
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.features.offline import segment
from headrace.features.offline.journal import (
    Flush,
    Header,
    JournalWriter,
    LoggedRow,
    cut,
    extent,
    flushes_at,
    read_flushes,
    read_header,
)
from headrace.features.spec import FeatureValue, ValueType, ViewSpec
from headrace.features.store.base import EntityWrite

DESCRIPTION: Final = "view.json"
RETIRED: Final = "retired"


class Description(msgspec.Struct, kw_only=True):
    """view.json. from_offset: rows before that offset were never logged. gaps: [after, until] offsets lost in a power cut."""

    spec_hash: str
    generation: str
    from_offset: int
    gaps: list[tuple[int, int]] = []


class ViewLog:
    """See the module. clock: seconds since 1970. Raises OSError as the file system does."""

    def __init__(self, folder: Path, view: ViewSpec, *, clock: Callable[[], float]) -> None:
        self.folder = folder
        self.view = view
        self.rows = 0
        """Logged since begin."""
        self.gaps: list[tuple[int, int]] = []
        self._clock = clock
        self._generation = ""
        self._created_us = -1
        self._doubtful: list[tuple[Path, int, tuple[LoggedRow, ...]]] = []
        self._writer: JournalWriter | None = None
        self._number = 0
        self._has_rows = False
        self.opened_s = 0.0
        self._times = [place for place, field in enumerate(view.fields) if field.dtype is ValueType.UNIX_TIMESTAMP]

    @property
    def is_begun(self) -> bool:
        return self._writer is not None

    @property
    def size_bytes(self) -> int:
        """Of the growing journal; 0 while it holds no row."""
        return self._writer.size_bytes if self._writer is not None and self._has_rows else 0

    def begin(self, offset: int, generation: str, *, is_new: bool) -> list[tuple[LoggedRow, ...]]:
        """Bring the folder to where the store's checkpoint stands; ``start`` comes next.

        is_new: the store holds nothing of this definition and event log. Result: the rows of each flush of that very checkpoint, newest
        first; only the store can tell whether it has the first ones.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._generation = generation
        for draft in self.folder.glob(".*.draft"):
            draft.unlink()
        description = read_description(self.folder)
        is_other = description is not None and (description.spec_hash, description.generation) != (
            self.view.spec_hash,
            generation,
        )
        if description is None or is_other or is_new:
            self._retire(description)
            description = Description(spec_hash=self.view.spec_hash, generation=generation, from_offset=offset)
            self._describe(description)
        self._settle()
        self._rewind(offset)
        last_offset, _ = self._last()
        if 0 <= last_offset < offset:
            description.gaps.append((last_offset, offset))
            self._describe(description)
        self.gaps = description.gaps
        doubtful = [
            (journal, start, flush.rows)
            for journal in sorted(self.folder.glob("*.journal"))
            for start, flush in flushes_at(journal, offset)
            if flush.rows
        ]
        self._doubtful = doubtful
        return [rows for _, _, rows in reversed(doubtful)]

    def adopt(self, draft: Path) -> None:
        """Take over what a draft of this very definition has logged, in place of what is here; nothing without one. Before ``begin``.

        Cut short it goes on where it was: once the description is the draft's, what is here isn't retired again.
        """
        theirs = read_description(draft)
        if theirs is None or theirs.spec_hash != self.view.spec_hash:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        mine = read_description(self.folder)
        if mine is None or (mine.spec_hash, mine.generation) != (theirs.spec_hash, theirs.generation):
            self._retire(mine)
            self._describe(theirs)
        for path in sorted([*draft.glob("*.journal"), *segments(draft)]):
            path.replace(self.folder / path.name)
        shutil.rmtree(draft)

    def start(self, not_stored: int) -> None:
        """Begin to log, after taking back so many of the newest flushes that ``begin`` named."""
        if not_stored:
            journal, start, _ = self._doubtful[-not_stored]
            cut(journal, start)
            for later in sorted(self.folder.glob("*.journal")):
                if later > journal:
                    later.unlink()
        self._doubtful = []
        self._created_us = self._last()[1]
        self._number = max([0, *(number_of(path) for path in self._files())]) + 1
        self._open()

    def append(self, entities: Sequence[EntityWrite], offset: int, log_time_us: int) -> None:
        """Log one flush, which the store must not have yet. In the system's hands on return."""
        assert self._writer is not None
        rows = tuple(
            [
                LoggedRow(entity.key, self._served(entity.values), entity.event_time_us, zlib.crc32(entity.state))
                for entity in entities
            ]
        )
        self._created_us = max(int(self._clock() * 1_000_000), self._created_us + 1)
        self._writer.append(Flush(offset, log_time_us, self._created_us, rows))
        self.rows += len(rows)
        self._has_rows = self._has_rows or bool(rows)

    def rotate(self) -> None:
        """Begin another journal; the old one is ready to be sealed. Only between two writes of the store."""
        assert self._writer is not None
        self._writer.sync()
        self._writer.close()
        self._number += 1
        self._open()

    def sync(self) -> None:
        if self._writer is not None:
            self._writer.sync()

    def unsealed(self) -> list[Path]:
        """Journals that nothing is appended to any more, oldest first."""
        # By number, since another thread may look while the next journal is being made.
        return [path for path in sorted(self.folder.glob("*.journal")) if number_of(path) < self._number]

    def seal(self) -> None:
        """Make Parquet of every journal that is ready; callable from one other thread."""
        for journal in self.unsealed():
            seal(journal, self.folder)

    def erase(self, parts: Mapping[str, FeatureValue]) -> int:
        """Remove every sealed row with these join keys' values, retired ones too; how many. Callable from one other thread."""
        gone = 0
        for path in sorted(self.folder.rglob("*.parquet")):
            gone += segment.erase(path, parts)
        return gone

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._number += 1

    def _open(self) -> None:
        stored = msgspec.structs.replace(
            self.view, on_demand=()
        )  # nothing of these is logged, and functions have no JSON
        self._writer = JournalWriter(self.folder / f"{self._number:08d}.journal", Header(stored, self._generation))
        self._has_rows = False
        self.opened_s = self._clock()

    def _served(self, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is None or not self._times:
            return values
        served = list(values)
        for place in self._times:
            served[place] = segment.served(ValueType.UNIX_TIMESTAMP, served[place])
        return tuple(served)

    def _describe(self, description: Description) -> None:
        path = self.folder / DESCRIPTION
        draft = path.with_name(f".{path.name}.draft")
        draft.write_bytes(msgspec.json.encode(description))
        segment.sync(draft)
        draft.replace(path)
        segment.sync(self.folder)

    def _files(self) -> list[Path]:
        return sorted([*self.folder.glob("*.journal"), *segments(self.folder)])

    def _retire(self, description: Description | None) -> None:
        """Move all there is out of readers' sight, and leave an empty segment, so that there is always one to read."""
        files = self._files()
        if files:
            name = "unknown" if description is None else f"{description.spec_hash}-{description.generation}"
            place = self.folder / RETIRED / name
            turn = 0
            while place.exists():
                turn += 1
                place = self.folder / RETIRED / f"{name}-{turn}"
            place.mkdir(parents=True)
            for path in files:
                path.replace(place / path.name)
            for journal in sorted(place.glob("*.journal")):
                seal(journal, place)
        segment.write_segment(self.folder / FIRST_SEGMENT, self.view, ())

    def _settle(self) -> None:
        """Finish what a crash left between two steps: a journal beside its segment, a segment beside its shorter self."""
        numbers: dict[int, Path] = {}
        for path in segments(self.folder):
            other = numbers.setdefault(number_of(path), path)
            if other != path:  # sorted: the shorter one came first
                self._set_aside(path)
        for journal in self.folder.glob("*.journal"):
            if number_of(journal) in numbers:
                journal.unlink()

    def _rewind(self, offset: int) -> None:
        """Take away what was emitted after the store's checkpoint: the store doesn't have it, and it comes again."""
        for journal in sorted(self.folder.glob("*.journal")):
            kept = extent(journal, offset)
            if kept.offset < 0:
                journal.unlink()
            else:
                cut(journal, kept.size_bytes)
        for path in segments(self.folder):
            if last_offset_of(path) <= offset:
                continue
            # The store lost writes that it had told of, as Redis may with the tail of its append-only file.
            shorter = self.folder / _segment_name(number_of(path), offset)
            segment.keep_until(path, shorter, offset)
            self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        place = self.folder / RETIRED / "rewound"
        place.mkdir(parents=True, exist_ok=True)
        path.replace(place / path.name)

    def _last(self) -> tuple[int, int]:
        """(offset, created_us) of the newest flush, -1 and -1 for none."""
        found = (-1, -1)
        for journal in sorted(self.folder.glob("*.journal"), reverse=True):
            kept = extent(journal)
            if kept.offset >= 0:
                found = (kept.offset, kept.created_us)
                break
        for path in reversed(segments(self.folder)):
            _, created_us = segment.last_flush(path)
            found = (max(found[0], last_offset_of(path)), max(found[1], created_us))
            if created_us >= 0:
                break
        return found


def segments(folder: Path) -> list[Path]:
    """Sealed segments, oldest first."""
    return sorted(folder.glob("*.parquet"))


def read_description(folder: Path) -> Description | None:
    with contextlib.suppress(FileNotFoundError):
        return msgspec.json.decode((folder / DESCRIPTION).read_bytes(), type=Description)
    return None


def number_of(path: Path) -> int:
    return int(path.name[:8])


def last_offset_of(path: Path) -> int:
    """What a segment's name says: no row of it has a higher offset."""
    return int(path.stem[9:])


def seal(journal: Path, folder: Path) -> None:
    """Make a segment of a journal and remove the journal; a crash between the two is mended by the next start."""
    header = read_header(journal)
    kept = extent(journal)
    if header is not None and kept.offset >= 0:
        path = folder / _segment_name(number_of(journal), kept.offset)
        segment.write_segment(path, header.spec, read_flushes(journal))
    journal.unlink()


def _segment_name(number: int, last_offset: int) -> str:
    return f"{number:08d}-{last_offset:020d}.parquet"


FIRST_SEGMENT: Final = _segment_name(0, 0)
"""Empty, or a backfill: before all that was logged, and never taken back with it."""
