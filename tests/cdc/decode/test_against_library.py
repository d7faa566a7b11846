"""The same binlog read by headrace and by the PyPI library mysql-replication: equal, or different for a reason that stands here by name."""

from __future__ import annotations

import datetime
import json
import logging
import struct
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

import binlog_reader
from cdc.decode.test_binlog import TYPES, Watched, db, texts

__all__ = ["db", "texts"]  # fixtures

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ZERO_DATE = "it has no zero dates, nor dates with a zero part: they become None"
ZERO_STAMP = "it takes the zero TIMESTAMP for 1970"
YEAR_ZERO = "it takes YEAR 0 for 1900"
NEGATIVE_TIME = "it adds the fraction of a negative TIME in place of taking it away"
PADDING = "it leaves out the zeros at the end of BINARY"
LATIN1 = "it fails on the five bytes of latin1 that cp1252 lacks"
WIDE = "it takes UCS-2, UTF-16 and UTF-32 for bytes or for the other byte order, or fails on them"
EMPTY_SET = "it takes an empty SET for None"
COMPRESSED = "it has no COMPRESSED columns of MariaDB's"
SPATIAL = "it decodes spatial values as text where their bytes allow it"
JSON_NUMBERS = "it makes Python's numbers and its own objects of JSON"
KNOWN = {
    ZERO_DATE, ZERO_STAMP, YEAR_ZERO, NEGATIVE_TIME, PADDING, LATIN1, WIDE, EMPTY_SET, COMPRESSED, SPATIAL, JSON_NUMBERS,
}  # fmt: skip


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def library_rows(db: Watched, count: int) -> list[Any]:
    """The values of column v of so many inserted rows; behind what it fails on, the exception."""
    from pymysqlreplication import BinLogStreamReader
    from pymysqlreplication.row_event import WriteRowsEvent

    stream: Any = BinLogStreamReader(
        connection_settings={"host": "127.0.0.1", "port": db.server.port, "user": "root"},
        server_id=4712,
        log_file=db.start[0],
        log_pos=db.start[1],
        resume_stream=True,
        only_events=[WriteRowsEvent],
        only_schemas=[db.name],
    )
    found: list[Any] = []
    try:
        while len(found) < count:
            event = stream.fetchone()
            if event is None:
                break
            found += [row["values"].get("v") for row in event.rows]
    except Exception as error:  # noqa: BLE001 - what it fails with is what is compared
        found.append(error)
    finally:
        stream.close()
    return found


def text_of(value: Any, kind: str) -> Any:
    """Its value in our words."""
    digits = (
        int(kind.partition("(")[2].partition(")")[0]) if kind.startswith(("time", "datetime")) and "(" in kind else 0
    )
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.datetime):
        return f"{value:%H:%M:%S.%f}"[: 9 + digits if digits else 8].join([f"{value.date().isoformat()} ", ""])
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        sign, value = ("-", -value) if value < datetime.timedelta(0) else ("", value)
        seconds = value.days * 86400 + value.seconds
        clock = f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        return clock + (f".{value.microseconds:06d}"[: digits + 1] if digits else "")
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, set):
        return ",".join(sorted(value))
    if kind.startswith("bit") and isinstance(value, str):
        return int(value, 2)
    if kind == "float" and isinstance(value, float):
        return struct.unpack("<f", struct.pack("<f", value))[0]
    return value


def reason(kind: str, ours: Any, theirs: Any) -> str:
    """Why they differ; "" when they don't. Raises AssertionError when nobody knows."""
    said = text_of(theirs, kind)
    mine = struct.unpack("<f", struct.pack("<f", ours))[0] if kind == "float" and ours is not None else ours
    if said == mine or (mine == "0x" and said == ""):
        return ""
    is_date = kind.startswith(("date", "timestamp"))
    if is_date and theirs is None and ("0000-" in ours or "-00" in ours):
        return ZERO_DATE
    if kind.startswith("timestamp") and ours.startswith("0000"):
        return ZERO_STAMP
    if kind == "year" and (ours, theirs) == (0, 1900):
        return YEAR_ZERO
    if kind.startswith("time(") and ours.startswith("-") and abs(theirs).microseconds:
        return NEGATIVE_TIME
    if kind.startswith(("binary", "uuid", "inet")) and ours.rstrip("0") == (said or "0x").rstrip("0"):
        return PADDING
    if "latin1" in kind and "compressed" not in kind and isinstance(theirs, UnicodeDecodeError):
        return LATIN1
    if any(each in kind for each in ("ucs2", "utf16", "utf32")):
        return WIDE
    if kind.startswith("set") and (ours, theirs) == ("", None):
        return EMPTY_SET
    if "compressed" in kind:
        return COMPRESSED
    if kind in ("point", "geometry"):
        return SPATIAL
    if kind == "json" and (not isinstance(theirs, str) or json.loads(ours) == json.loads(theirs)):
        return JSON_NUMBERS
    raise AssertionError(f"{kind}: {ours!r} for us, {theirs!r} for the library")


def test_every_difference_has_a_name(db: Watched) -> None:
    reasons: Counter[str] = Counter()
    equal = 0
    for number, (kind, (literals, _)) in enumerate(TYPES.items()):
        if db.is_mysql and (kind in ("uuid", "inet4", "inet6") or "compressed" in kind):
            continue
        db.run("flush binary logs")  # the library begins at a file, and stops for good at what it can't read
        db.start = binlog_reader.place(db.server)
        db.run(f"create table t{number} (id int primary key auto_increment, v {kind})")
        for literal in [*literals, "null"]:
            db.run(f"insert into t{number} (v) values ({literal})")
        ours = [change.after[1] for change in db.changes() if change.op == "insert" and change.after is not None]
        assert len(ours) == len(literals) + 1
        theirs = library_rows(db, len(ours))
        assert len(theirs) == len(ours) or isinstance(theirs[-1], Exception), f"{kind}: the library lost rows"
        for mine, other in zip(ours, theirs, strict=False):
            why = reason(kind, mine, other)
            reasons[why] += bool(why)
            equal += not why
    print(f"{equal} values equal, differences: {dict(reasons)}")
    assert equal > 100
    assert {why for why, count in reasons.items() if count} <= KNOWN
    assert {ZERO_DATE, YEAR_ZERO, NEGATIVE_TIME, WIDE} <= set(reasons), "the library has been mended: say so here"
