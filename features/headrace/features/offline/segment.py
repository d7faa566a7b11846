"""Parquet segments of the feature log: which columns, which types, how a file comes to be all at once.

Columns: the join keys, the features, then ``event_timestamp`` (log time at which the row took effect in the online store), ``created`` (this
machine's clock; grows with every flush of a view, so that it orders rows of the same event_timestamp), ``hr__event_time`` (time of the
entity's newest event, what ttl counts from), ``hr__offset`` (place in the event log), ``hr__deleted``. Times are microseconds in UTC.
Feast's FileSource reads the first two time columns (feast 0.67); headrace's own names hold two underscores, which no feature's may.

The only module that imports pyarrow, late: it costs a third of a second.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from headrace.cdc.errors import DefinitionError
from headrace.features.offline.journal import Flush
from headrace.features.spec import FeatureValue, ValueType, ViewSpec

EVENT_TIMESTAMP: Final = "event_timestamp"
CREATED: Final = "created"
EVENT_TIME: Final = "hr__event_time"
OFFSET: Final = "hr__offset"
DELETED: Final = "hr__deleted"

_TAKEN: Final = (EVENT_TIMESTAMP, CREATED)
_CHUNK_ROWS: Final = 20_000
_US_PER_S: Final = 1_000_000


def check_names(view: ViewSpec) -> None:
    """Raises DefinitionError when a feature or join key has the name of one of the log's own columns."""
    for field in (*view.join_keys, *view.fields):
        if field.name in _TAKEN:
            raise DefinitionError(
                f"view {view.name!r}: {field.name!r} is the name of a column of the feature log",
                advice=f'give the feature another name=, such as "{field.name}_value"',
            )


def libraries() -> tuple[Any, Any]:
    """(pyarrow, pyarrow.parquet). Raises DefinitionError when they aren't installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DefinitionError(
            "the feature log needs a Python package that isn't installed: pyarrow",
            advice='pip install "headrace[offline]"',
        ) from error


def schema_of(view: ViewSpec) -> Any:
    """The pyarrow schema of a view's segments. Raises DefinitionError for a type that the log can't hold."""
    pa, _ = libraries()
    time = pa.timestamp("us", tz="UTC")
    types = {
        ValueType.INT32: pa.int32(),
        ValueType.INT64: pa.int64(),
        ValueType.FLOAT32: pa.float32(),
        ValueType.FLOAT64: pa.float64(),
        ValueType.STRING: pa.string(),
        ValueType.BOOL: pa.bool_(),
        ValueType.BYTES: pa.binary(),
        ValueType.UNIX_TIMESTAMP: time,
        ValueType.INT64_LIST: pa.list_(pa.int64()),
        ValueType.FLOAT64_LIST: pa.list_(pa.float64()),
        ValueType.STRING_LIST: pa.list_(pa.string()),
    }
    columns: list[tuple[str, Any]] = []
    for field in (*view.join_keys, *view.fields):
        if field.dtype not in types:
            raise DefinitionError(
                f"view {view.name!r}: the feature log can't hold {field.name!r} of type {field.dtype.value}",
                advice="leave features.offline out, or the feature",
            )
        columns.append((field.name, types[field.dtype]))
    columns += [(EVENT_TIMESTAMP, time), (CREATED, time), (EVENT_TIME, time), (OFFSET, pa.int64())]
    columns.append((DELETED, pa.bool_()))
    return pa.schema([pa.field(name, kind) for name, kind in columns])


def table_of(view: ViewSpec, flushes: Iterable[Flush]) -> Any:
    """A pyarrow table of all rows, in order; everything in memory."""
    pa, _ = libraries()
    schema = schema_of(view)
    return pa.Table.from_batches(list(_batches(view, flushes, schema)), schema)


def write_segment(path: Path, view: ViewSpec, flushes: Iterable[Flush]) -> None:
    """Write a file that is there as a whole or not at all; memory: about 20,000 rows. Raises OSError."""
    schema = schema_of(view)
    with _whole(path, schema) as writer:
        for batch in _batches(view, flushes, schema):
            writer.write_batch(batch)


class SegmentWriter:
    """A context in which flushes are added one by one; the file is there as a whole afterwards, or after an error not at all."""

    def __init__(self, path: Path, view: ViewSpec) -> None:
        self._view = view
        self._schema = schema_of(view)
        self._file = _whole(path, self._schema)
        self._flushes: list[Flush] = []
        self._waiting = 0
        self.rows = 0

    def __enter__(self) -> Self:
        self._writer = self._file.__enter__()
        return self

    def add(self, flush: Flush) -> None:
        """Raises OSError."""
        self._flushes.append(flush)
        self._waiting += len(flush.rows)
        self.rows += len(flush.rows)
        if self._waiting >= _CHUNK_ROWS:
            self._put()

    def copy(self, path: Path) -> None:
        """Add the rows of another file of the same view. Raises OSError."""
        _, parquet = libraries()
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_CHUNK_ROWS):
                self._writer.write_batch(batch)
            self.rows += file.metadata.num_rows

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self._put()
        self._file.__exit__(kind)

    def _put(self) -> None:
        for batch in _batches(self._view, self._flushes, self._schema):
            self._writer.write_batch(batch)
        self._flushes = []
        self._waiting = 0


def rewrite(source: Path, target: Path, mask: Any) -> None:
    """Copy the rows of source for which ``mask(table)`` is true. Same path: replaced at once. Raises OSError."""
    _, parquet = libraries()
    with parquet.ParquetFile(source) as file:
        schema = file.schema_arrow
        with _whole(target, schema) as writer:
            for batch in file.iter_batches(_CHUNK_ROWS):
                writer.write_batch(batch.filter(mask(batch)))


def keep_until(source: Path, target: Path, offset: int) -> None:
    """Copy the rows up to an offset. Raises OSError."""
    compute = importlib.import_module("pyarrow.compute")

    def is_kept(batch: Any) -> Any:
        return compute.less_equal(batch.column(batch.schema.get_field_index(OFFSET)), offset)

    rewrite(source, target, is_kept)


def erase(path: Path, parts: Mapping[str, FeatureValue]) -> int:
    """Remove the rows with these values in these columns; how many. A file without such a row stays as it is. Raises OSError."""
    pa, parquet = libraries()
    compute = importlib.import_module("pyarrow.compute")
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        try:
            wanted = {name: _scalar(pa, value, schema.field(name).type) for name, value in parts.items()}
        except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            return 0  # of a former definition, whose entities can't be these

    def is_kept(batch: Any) -> Any:
        tests = [
            compute.equal(batch.column(batch.schema.get_field_index(name)), value) for name, value in wanted.items()
        ]
        return compute.invert(compute.fill_null(functools.reduce(compute.and_, tests), False))

    with parquet.ParquetFile(path) as file:
        batches = file.iter_batches(_CHUNK_ROWS, columns=list(parts))
        gone: int = sum(batch.num_rows - (compute.sum(is_kept(batch)).as_py() or 0) for batch in batches)
    if gone:
        rewrite(path, path, is_kept)
    return gone


def last_flush(path: Path) -> tuple[int, int]:
    """(offset, created_us) of a segment's last row, -1 and -1 for an empty one."""
    _, parquet = libraries()
    with parquet.ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            return -1, -1
        group = file.read_row_group(file.num_row_groups - 1, columns=[OFFSET, CREATED])
        pa, _ = libraries()
        return group[OFFSET][-1].as_py(), group[CREATED].cast(pa.int64())[-1].as_py()


def served(dtype: ValueType, value: FeatureValue) -> FeatureValue:
    """The value as the online store tells it: Feast's form of a time has whole seconds."""
    if dtype is ValueType.UNIX_TIMESTAMP and isinstance(value, int):
        return value // _US_PER_S * _US_PER_S
    return value


def _scalar(pa: Any, value: FeatureValue, kind: Any) -> Any:
    """The value as one of the column's, which may be of another type than the view's own by now."""
    try:
        return pa.scalar(value, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.scalar(str(value)).cast(kind)


def _batches(view: ViewSpec, flushes: Iterable[Flush], schema: Any) -> Iterator[Any]:
    pa, _ = libraries()
    lines = ((flush, row) for flush in flushes for row in flush.rows)
    empty = (None,) * len(view.fields)
    while chunk := list(itertools.islice(lines, _CHUNK_ROWS)):
        columns: list[Sequence[Any]] = list(zip(*[row.key for _, row in chunk], strict=True))
        columns += list(zip(*[empty if row.values is None else row.values for _, row in chunk], strict=True))
        columns.append([flush.log_time_us for flush, _ in chunk])
        columns.append([flush.created_us for flush, _ in chunk])
        columns.append([row.event_time_us for _, row in chunk])
        columns.append([flush.offset for flush, _ in chunk])
        columns.append([row.values is None for _, row in chunk])
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


class _whole:  # noqa: N801  # used as a function: with _whole(path, schema) as writer
    """A ParquetWriter whose file takes its name when it is complete and on the disk."""

    def __init__(self, path: Path, schema: Any) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.draft")
        _, parquet = libraries()
        self._writer = parquet.ParquetWriter(self._draft, schema, compression="zstd")

    def __enter__(self) -> Any:
        return self._writer

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        if kind is not None:
            self._draft.unlink()
            return
        sync(self._draft)
        self._draft.replace(self._path)
        sync(self._path.parent)


def sync(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
