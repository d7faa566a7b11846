"""What a decoder of a server's log gives out: whole transactions, and pieces of those that are too large to hold."""

from __future__ import annotations

import msgspec

from headrace.cdc.decode.tableversion import SchemaNews
from headrace.cdc.event import Change


class Transaction:
    """A committed transaction: its changes in order, and the LSN after which a restart goes on.

    news: versions of tables that begin in it, in order; what an event says of each is made by tableversion.changes_of. A logical
    message outside transactions is one of its own, with xid 0. is_part: more of it follows; first_ordinal: of its first change.
    """

    __slots__ = ("changes", "commit_us", "end_lsn", "first_ordinal", "is_part", "news", "size_bytes", "xid")

    def __init__(
        self,
        xid: int,
        end_lsn: int,
        commit_us: int,
        changes: list[Change],
        size_bytes: int,
        news: list[SchemaNews],
        *,
        first_ordinal: int = 0,
        is_part: bool = False,
    ) -> None:
        self.xid = xid
        self.end_lsn = end_lsn
        self.commit_us = commit_us
        self.changes = changes
        self.size_bytes = size_bytes
        self.news = news
        self.first_ordinal = first_ordinal
        self.is_part = is_part


class Piece(msgspec.Struct, frozen=True):
    """Undecoded messages of an open transaction, in order, to be kept until its end."""

    xid: int
    data: bytes


class Abort(msgspec.Struct, frozen=True):
    """A transaction that left pieces is rolled back (subxid == xid), or only a subtransaction of it."""

    xid: int
    subxid: int


class SpilledCommit(msgspec.Struct, frozen=True):
    """A transaction that left pieces has committed. is_known: the log had it before; it must only be replayed for its relations."""

    xid: int
    end_lsn: int
    commit_us: int
    is_known: bool
