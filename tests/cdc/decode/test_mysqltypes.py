"""The type table holds every type that a table map can name."""

from __future__ import annotations

from headrace.cdc.decode import tablemap as t
from headrace.cdc.decode.mysqltypes import TYPES


def test_the_table_holds_every_type_of_a_table_map() -> None:
    kinds = {*t._NAMES, t.BLOB, t.VARCHAR, t.STRING, t.BLOB_COMPRESSED, t.VARCHAR_COMPRESSED} - {t.NULL}
    names = {
        t.type_name(t.MappedColumn("c", kind, 0, is_unsigned=False, collation=collation))
        for kind in kinds
        for collation in (t.BINARY, 45)
    }
    assert names == TYPES.keys()
