"""Dead letters in the embedded log: rows of their own, written and replaced in the transaction of an append."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.cdc.log.base import LETTERS_BYTES, DeadLetter, StoredLetter
from headrace.cdc.log.sqlite_file import explained

_STEP_LETTERS: Final = 256

_READ: Final = """
select id, source, reason, detail, received_us, body, context from letter where id > ? order by id limit ?
"""


def read_letters(connection: sqlite3.Connection, path: Path, after: int, limit: int) -> list[StoredLetter]:
    """EventLog.letters. None in a log of a former format, which nobody has opened for writing since."""
    found: list[StoredLetter] = []
    held = 0
    try:
        if connection.execute("select not exists (select 1 from sqlite_schema where name = 'letter')").fetchone()[0]:
            return found
        rows = connection.execute(_READ, (after, limit))
        try:
            for number, *fields in rows:
                letter = DeadLetter(*fields)
                found.append(StoredLetter(number, letter))
                held += len(letter.body)
                if held >= LETTERS_BYTES:
                    break
        finally:
            rows.close()
    except sqlite3.Error as error:
        raise explained(path, error) from error
    return found


def count_letters(connection: sqlite3.Connection, path: Path) -> int:
    """How many are kept."""
    try:
        return int(connection.execute("select count(*) from letter").fetchone()[0])
    except sqlite3.Error as error:
        raise explained(path, error) from error


def write_letters(connection: sqlite3.Connection, letters: Sequence[DeadLetter]) -> int:
    """Store them, in the writer's transaction; about how many bytes that is."""
    connection.executemany(
        "insert into letter (source, reason, detail, received_us, body, context) values (?, ?, ?, ?, ?, ?)",
        [
            (letter.source, letter.reason, letter.detail, letter.received_us, letter.body, letter.context)
            for letter in letters
        ],
    )
    return sum(len(letter.body) + len(letter.context) + 128 for letter in letters)


def remove_letters(connection: sqlite3.Connection, ids: Sequence[int]) -> int:
    """Forget them, in the writer's transaction; how many there were."""
    return sum(connection.execute("delete from letter where id = ?", (number,)).rowcount for number in ids)


def forget_letters_step(connection: sqlite3.Connection, before_us: int) -> int:
    """Forget some received before; how many. Fewer than a whole step: none is left."""
    return connection.execute(
        "delete from letter where id in (select id from letter where received_us < ? order by id limit ?)",
        (before_us, _STEP_LETTERS),
    ).rowcount


def is_whole_step(count: int) -> bool:
    return count == _STEP_LETTERS
