"""From log events to row changes of one view: only the columns it reads, which row, and what is known of the old image.

Pure. Follows RowPart (headrace.cdc.event): the after image is the event's properties; a delete or an update carries as much of the old
image as the server sent, under the default replica identity no more than a key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from headrace.cdc.errors import DefinitionError
from headrace.cdc.event import CustomerEvent, Op, RowPart
from headrace.features.compiled import CompiledView

Image = tuple[Any, ...]
"""Values in the order of CompiledView.columns; msgspec.UNSET where the image doesn't say."""

UNSET: Final = msgspec.UNSET

_encode = msgspec.json.Encoder().encode
_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


class RowChange(msgspec.Struct, gc=False):
    """One change of one source row. key: which row after it; old_key: which row before it, when that was another.

    offset: place in the log. now_us: log time there. unchanged: columns the server
    didn't send; undecodable: columns whose bytes were no text.
    """

    offset: int
    now_us: int
    committed_us: int
    op: Op
    key: bytes
    old_key: bytes | None
    after: Image | None
    before: Image | None
    unchanged: tuple[str, ...] = ()
    undecodable: tuple[str, ...] = ()


class RowReader:
    """Reads the events of one view's table."""

    def __init__(self, view: CompiledView) -> None:
        self._view = view
        fields = [(f"c{place}", Any, UNSET) for place in range(len(view.columns))]
        rename = {f"c{place}": column for place, column in enumerate(view.columns)}
        try:
            image = msgspec.defstruct("Image", fields, rename=rename, gc=False)
        except ValueError as error:  # msgspec takes no quotes, backslashes or control characters in a name
            raise DefinitionError(
                f"view {view.spec.name!r} at {view.defined_at} uses a column whose name holds a quote, a backslash or a control character",
                advice="rename the column, or take it out of the view",
            ) from error
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(image).decode
        self._tuple = msgspec.structs.astuple

    def read(self, event: CustomerEvent, row: RowPart, offset: int, now_us: int) -> RowChange | None:
        """The change, None for one that concerns no single row (truncate, message, schema).

        Raises DefinitionError when a row can't be told from others: an update or delete in a table without a primary key.
        """
        op = row.op
        if op in ("truncate", "message", "schema"):
            return None
        after = None if op == "delete" else self._tuple(self._decode(event.properties))
        before = None if row.before is None else self._tuple(self._decode(row.before))
        if self._view.row_key:
            key, old_key = self._declared_keys(event, after, before)
        else:
            key, old_key = self._own_keys(event, row)
        return RowChange(
            offset, now_us, event.committed_us, op, key, old_key, after, before, row.unchanged, row.undecodable
        )

    def _own_keys(self, event: CustomerEvent, row: RowPart) -> tuple[bytes, bytes | None]:
        prefix = source_prefix(event.source)
        key = row.key
        if key is None:
            if row.op in ("insert", "read"):
                # Nothing will ever name this row again, except a truncate.
                return prefix + event.id.encode(), None
            raise DefinitionError(
                f"view {self._view.spec.name!r}: table {self._view.table} has no primary key, so its {row.op}s can't be applied",
                advice=f'add a primary key, or name unique columns as Table("{self._view.table}", key=...) under REPLICA IDENTITY FULL',
            )
        if row.op != "update" or row.before is None:
            return prefix + key, None
        names = list(_decode_object(key))
        before = _decode_object(row.before)
        if not all(name in before for name in names):
            return prefix + key, None
        old = _encode({name: before[name] for name in names})
        return prefix + key, None if old == key else prefix + old

    def _declared_keys(
        self, event: CustomerEvent, after: Image | None, before: Image | None
    ) -> tuple[bytes, bytes | None]:
        prefix = source_prefix(event.source)
        old = self._key_of(before)
        new = self._key_of(after) or old
        if new is None:
            raise DefinitionError(
                f"view {self._view.spec.name!r}: the old images of table {self._view.table} don't hold the key that Table(key=...) names",
                advice="make those columns the table's replica identity (ALTER TABLE ... REPLICA IDENTITY), or name its primary key",
            )
        return prefix + new, None if old is None or old == new else prefix + old

    def _key_of(self, image: Image | None) -> bytes | None:
        if image is None:
            return None
        values: list[Any] = [image[index] for index in self._view.row_key]
        return None if UNSET in values else _encode(values)


def source_prefix(source: str) -> bytes:
    """What the row keys of one source begin with; a source's name holds no colon."""
    return source.encode() + b":"
