"""Places in a binlog, and what is known of XA transactions between their two phases."""

from __future__ import annotations

import msgspec


class BinlogPlace(msgspec.Struct, frozen=True):
    """Where a file goes on: its name, and the offset behind an event, 64 bits also where the server's own have wrapped."""

    file: str
    pos: int

    def __str__(self) -> str:
        return f"{self.file}:{self.pos}"


def order_of(place: BinlogPlace) -> tuple[int, int]:
    """For comparing places of one server: files are numbered, and their names get longer behind 999999."""
    number = place.file.rpartition(".")[2]
    return int(number) if number.isdigit() else 0, place.pos


class Prepared(msgspec.Struct, frozen=True, array_like=True):
    """Where the rows of a prepared XA transaction stand: they are read when its outcome is known, perhaps after a restart.

    file, pos: before its first event. gtids: of everything before it, for another server than the one it was read from. gtid: its own;
    both "" where the server has none.
    """

    file: str
    pos: int
    gtids: str
    gtid: str

    @property
    def place(self) -> BinlogPlace:
        return BinlogPlace(self.file, self.pos)


def xa_key(text: str) -> str:
    """One name for the XA id in ``XA COMMIT X'6162',X'',1``, and for that of an XA_prepare event (``xa_key_of``)."""
    parts = [part.strip() for part in text.split(",")]
    words = [part[2:-1] if part[:2].upper() == "X'" else part.strip("'").encode().hex() for part in parts[:2]]
    words += [""] * (2 - len(words))
    return f"{words[0].lower()}.{words[1].lower()}.{parts[2] if len(parts) > 2 else 1}"


def xa_key_of(format_id: int, transaction: bytes, branch: bytes) -> str:
    return f"{transaction.hex()}.{branch.hex()}.{format_id}"


__all__ = ["BinlogPlace", "Prepared", "order_of", "xa_key", "xa_key_of"]
