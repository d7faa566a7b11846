"""pgoutput, protocol versions 1 and 2, text mode: replication frames in, whole transactions out.

Follows the PostgreSQL 18 manual, chapters "Streaming Replication Protocol" and "Logical Replication Message Formats". Sans-I/O:
the whole memory of a decoder is its relations, their versions and the transaction under way. All integers are big-endian,
times are microseconds since 2000-01-01 UTC on the wire and since 1970 outside this file::

    frame      w  int64 start  int64 end  int64 time  message        a message: byte 25 on
               k  int64 wal_end  int64 time  byte reply_now           18 bytes
    message    B  int64 commit_lsn  int64 time  int32 xid
               C  byte 0  int64 commit_lsn  int64 end_lsn  int64 time
               R  int32 oid  cstring schema  cstring name  byte identity  int16 n  n x (byte flags, cstring, int32 oid, int32 mod)
               Y  int32 oid  cstring schema  cstring name
               I  int32 oid  N tuple
               U  int32 oid  [K|O tuple]  N tuple
               D  int32 oid  K|O tuple
               T  int32 n  byte flags  n x int32 oid
               O  int64 lsn  cstring name
               M  byte transactional  int64 lsn  cstring prefix  int32 length  bytes
    tuple      int16 n  n x ( n | u | t int32 length bytes )
    streaming  S  int32 xid  byte first                               inside S..E: int32 xid behind the kind of each message but O
               E
               c  int32 xid  byte 0  int64 commit_lsn  int64 end_lsn  int64 time
               A  int32 xid  int32 subxid

A transaction too large for memory is not decoded as it comes: its messages leave as ``pieces``, undecoded, for the caller to keep on disk,
and are decoded a part at a time once it is known to have committed (``begin_replay``, ``replay``, ``take_part``). So are all that the server
streams before their end (protocol 2), and what ``spill_open`` was called for. A piece is self-contained::

    piece      17 bytes of padding  n x ( int32 subxid  int32 length  message )

The padding makes every message of a piece have 25 bytes before it, as in a frame.

The file runs as plain Python; pgoutput.pxd beside it adds the C types with which the build compiles it. Lengths and indexes are
checked here, not left to the compiler's bounds checks: a short frame must become a DecodeError and never a row.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TypeAlias

from headrace.cdc.decode.pgvalue import row_kinds, text_value
from headrace.cdc.decode.tableversion import SchemaNews, TableVersion, versioned
from headrace.cdc.decode.transaction import Abort, Piece, SpilledCommit, Transaction
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import (
    MESSAGE_SCHEMA,
    UNCHANGED,
    UNDECODABLE,
    Absent,
    Change,
    Column,
    Op,
    Row,
    TableSchema,
    Value,
)
from headrace.cdc.position import format_lsn

_EPOCH_2000_US = 946_684_800_000_000

_MESSAGE_COLUMNS = (Column("prefix", 25, "text"), Column("content", 25, "text"), Column("content_hex", 25, "text"))
_OWN_PREFIX = "headrace"


class _Relation:
    """A table as the stream announced it: the schema for consumers, and what reading its tuples needs.

    is_versioned: schema has its version; that waits for the first row that is new for the log.
    """

    def __init__(self, schema: TableSchema, kinds: bytes, identity: bytes, is_versioned: bool) -> None:
        self.schema = schema
        self.is_versioned = is_versioned
        self.kinds = kinds
        self.identity = identity  # one byte a column: 1 = part of the replica identity
        self.count = len(kinds)


_RowChange: TypeAlias = tuple[_Relation, Op, Row | None, Row | None]

# What comes after a message: go on, or give the caller its turn, with this message again at the next feed or behind it.
_STOP_BEFORE, _STOP_AFTER, _GO_ON = 0, 1, 2
_PADDING = bytes(17)


class PgOutputDecoder:
    """Feed it frames; take whole transactions out of ``transactions``, what must be spilled out of ``pieces``, keepalives out of the three fields.

    id_prefix: begins every change id; with the end LSN and the ordinal behind it the id is the same after any restart.
    type_names: type OID -> name, also fed by Y messages. primary_keys: table OID -> column names, needed only for tables whose
    replica identity isn't their primary key. versions: by table OID, kept by the caller over restarts.
    """

    def __init__(
        self,
        id_prefix: str,
        type_names: dict[int, str],
        primary_keys: dict[int, tuple[str, ...]],
        versions: dict[int, TableVersion],
    ) -> None:
        self.id_prefix = id_prefix
        self.type_names = type_names
        self.primary_keys = primary_keys
        self.versions = versions
        self.transactions: list[Transaction] = []
        self.relations: dict[int, _Relation] = {}
        self.message_patterns: tuple[str, ...] = ("*",)
        """Prefixes of logical messages that are wanted, with * and ?; our own is never."""
        self.messages: dict[str, _Relation | None] = {}
        self.wal_end = 0
        """Highest LSN that a keepalive named: all before it has been sent."""
        self.server_time_us = 0
        self.reply_requested = False
        self.wants_key_of = 0
        """OID of a table whose primary key the caller must put into primary_keys before feeding on; 0 = none."""
        self.in_transaction = False
        """Inside B..C or S..E, or in a replay."""
        self.skip_until = 0
        """Transactions whose end LSN is at most this were logged before and are dropped whole."""
        self.pieces: list[Piece | Abort] = []
        self.spilled_commit: SpilledCommit | None = None
        """Set by ``feed``, which then returns early: replay this transaction before feeding on. The caller takes it out."""
        self.begin_index = -1
        """In the frames last fed, the B of the transaction under way; -1: it came before, or none is."""
        self._stream_xid = 0
        self._is_spilling = False
        self._spill = bytearray()
        self._announced: list[tuple[int, _Relation | None]] = []
        self._replay_commit: SpilledCommit | None = None
        self._first_ordinal = 0
        self._rows: list[_RowChange] = []
        self._size = 0
        self._xid = 0
        self._commit_lsn = 0
        self._commit_us = 0
        self._pos = 0

    @property
    def is_holding(self) -> bool:
        """A transaction is under way whose rows are held here, decoded."""
        return self.in_transaction and not self._is_spilling and self._stream_xid == 0

    @property
    def held_bytes(self) -> int:
        """Size of the messages whose rows are held."""
        return self._size if self.is_holding else 0

    def feed(self, frames: list[bytes], start: int = 0) -> int:
        """Decode frames[start:]; the result is the index of the first frame not consumed.

        That is len(frames) unless ``wants_key_of`` or ``spilled_commit`` was set. Raises DecodeError on anything that doesn't follow
        the protocol; the decoder must then be thrown away.
        """
        self.begin_index = -1
        index = self._feed(frames, start)
        if len(self._spill) > 0:
            self._cut_piece()
        return index

    def _feed(self, frames: list[bytes], start: int) -> int:
        index = start
        count = len(frames)
        while index < count:
            data = frames[index]
            size = len(data)
            try:
                if size == 0:
                    raise DecodeError("empty frame", kind="frame", index=0)
                kind = data[0]
                if kind == 119:  # w
                    if size < 26:
                        raise DecodeError("frame is shorter than its head", kind="w", index=size)
                    if data[25] == 66:  # B
                        self.begin_index = index
                    outcome = self._message(data, size)
                    if outcome != _GO_ON:
                        return index + outcome
                elif kind == 107:  # k
                    if size != 18:
                        raise DecodeError("keepalive is not 18 bytes long", kind="k", index=size)
                    self._keepalive(data)
                else:
                    raise DecodeError("unknown frame", kind=chr(kind), index=0)
            except IndexError as error:
                raise DecodeError(
                    "message ends too early", kind=chr(data[25]) if size > 25 else "frame", index=size
                ) from error
            index += 1
        return index

    def spill_open(self, frames: list[bytes]) -> None:
        """Turn the transaction under way into one that leaves pieces.

        frames: all frames since its B, which is the first of them; each was fed before.
        """
        for oid, former in reversed(self._announced):
            # The replay announces them again, each in its place.
            if former is None:
                del self.relations[oid]
            else:
                self.relations[oid] = former
        self._announced = []
        self._rows = []
        self._size = 0
        self._is_spilling = True
        for data in frames[1:]:
            if data[0] == 119:
                self._spill_message(data, 0, 26)
        self._cut_piece()

    def begin_replay(self, commit: SpilledCommit) -> None:
        """Begin to decode a transaction that left pieces; ``replay`` gets them in order, ``take_part`` gives what they hold."""
        self._replay_commit = commit
        self._first_ordinal = 0
        self._rows = []
        self._size = 0
        self._xid = commit.xid
        self._announced = []
        self.in_transaction = True

    def replay(self, piece: bytes, start: int, aborted: frozenset[int], max_bytes: int) -> int:
        """Decode messages of a piece from index start (0 at first) until about max_bytes are held; the index after them.

        aborted: subtransactions that were rolled back. The result is len(piece) at the piece's end; less also when ``wants_key_of``
        was set. Raises DecodeError.
        """
        commit = self._replay_commit
        if commit is None:
            raise DecodeError("a replay that was not begun", kind="piece", index=0)
        pos = 17 if start == 0 else start
        end = len(piece)
        while pos < end and self._size < max_bytes:
            if pos + 9 > end:
                raise DecodeError("a piece ends too early", kind="piece", index=pos)
            subxid = _u32(piece, pos)
            after = pos + 8 + _u32(piece, pos + 4)
            if after > end:
                raise DecodeError("a piece ends too early", kind="piece", index=pos)
            kind = piece[pos + 8]
            # A relation counts whoever announced it: the server sends it once for the whole transaction.
            if kind == 82 or kind == 89 or not (commit.is_known or (len(aborted) > 0 and subxid in aborted)):
                data = piece[pos - 17 : after]
                try:
                    if self._message(data, len(data)) == _STOP_BEFORE:
                        return pos
                except IndexError as error:
                    raise DecodeError("message ends too early", kind=chr(kind), index=after - pos) from error
            pos = after
        return pos

    def take_part(self, *, is_last: bool) -> Transaction:
        """What the replay has decoded since the last part. is_last: the transaction ends with it."""
        commit = self._replay_commit
        if commit is None:
            raise DecodeError("a replay that was not begun", kind="piece", index=0)
        rows = self._rows
        self._rows = []
        part = self._transaction(rows, commit.end_lsn, commit.commit_us, self._first_ordinal, is_last)
        self._first_ordinal += len(rows)
        self._size = 0
        if is_last:
            self._replay_commit = None
            self.in_transaction = False
        return part

    def forget_connection(self) -> None:
        """Drop what belongs to one connection: relations and the transactions under way."""
        self.relations = {}
        self._rows = []
        self._size = 0
        self.in_transaction = False
        self.transactions = []
        self.reply_requested = False
        self.pieces = []
        self.spilled_commit = None
        self._stream_xid = 0
        self._is_spilling = False
        self._spill = bytearray()
        self._announced = []
        self._replay_commit = None

    def _keepalive(self, data: bytes) -> None:
        wal_end = _u64(data, 1)
        self.wal_end = max(self.wal_end, wal_end)
        self.server_time_us = _time_us(data, 9, "k")
        if data[17] == 1:
            self.reply_requested = True

    def _message(self, data: bytes, size: int) -> int:
        """_GO_ON, or where to stop."""
        kind = data[25]
        if self._stream_xid != 0:
            self._streamed(data, size, kind)
            return _GO_ON
        if self._is_spilling and kind != 67:
            self._spill_message(data, 0, 26)
            return _GO_ON
        if kind == 73:  # I
            self._insert(data, size)
        elif kind == 85:  # U
            self._update(data, size)
        elif kind == 68:  # D
            self._delete(data, size)
        elif kind == 66:  # B
            self._begin(data, size)
        elif kind == 67:  # C
            return self._commit(data, size)
        elif kind == 82:  # R
            return _GO_ON if self._announce(data, size) else _STOP_BEFORE
        elif kind == 89:  # Y
            oid = _u32(data, 26)
            self._cstring(data, 30, size)
            # Only for a type the catalogue didn't name: of a domain this message gives the base type's name.
            name = self._cstring(data, self._pos, size)
            if self._pos != size:
                raise DecodeError("bytes after the type", kind="Y", index=self._pos)
            self.type_names.setdefault(oid, name)
        elif kind == 84:  # T
            self._truncate(data, size)
        elif kind == 79:  # O: where a change came from first is of no use here
            self._cstring(data, 34, size)
            if self._pos != size:
                raise DecodeError("bytes after the origin", kind="O", index=self._pos)
        elif kind == 77:  # M
            self._logical_message(data, size)
        elif kind == 83 or kind == 99 or kind == 65:  # S, c, A
            return self._stream_control(data, size, kind)
        else:
            raise DecodeError("unknown message", kind=chr(kind), index=25)
        return _GO_ON

    def _stream_control(self, data: bytes, size: int, kind: int) -> int:
        """Begin of a block of an open transaction, or the end of such a transaction."""
        if self.in_transaction:
            raise DecodeError("a streamed transaction inside another", kind=chr(kind), index=25)
        xid = _u32(data, 26)
        if kind == 83:  # S
            if size != 31 or xid == 0:
                raise DecodeError("a stream start that is not 6 bytes long", kind="S", index=size)
            self._stream_xid = xid
            self.in_transaction = True
            return _GO_ON
        if kind == 65:  # A
            if size != 34:
                raise DecodeError("a stream abort that is not 9 bytes long", kind="A", index=size)
            self.pieces.append(Abort(xid, _u32(data, 30)))
            return _GO_ON
        if size != 55:
            raise DecodeError("a stream commit that is not 30 bytes long", kind="c", index=size)
        end_lsn = _u64(data, 39)
        self.spilled_commit = SpilledCommit(xid, end_lsn, _time_us(data, 47, "c"), end_lsn <= self.skip_until)
        return _STOP_AFTER

    def _streamed(self, data: bytes, size: int, kind: int) -> None:
        """A message inside S..E."""
        if kind == 69:  # E
            if size != 26:
                raise DecodeError("bytes after the stream stop", kind="E", index=26)
            self._cut_piece()
            self._stream_xid = 0
            self.in_transaction = False
        elif kind in b"IUDTRYM":
            if size < 30:
                raise DecodeError("message ends too early", kind=chr(kind), index=size)
            self._spill_message(data, _u32(data, 26), 30)
        elif kind != 79:
            raise DecodeError("unknown message inside a stream", kind=chr(kind), index=25)

    def _spill_message(self, data: bytes, subxid: int, body: int) -> None:
        """Put a message into the piece under way. body: index behind the kind, and behind the xid where one follows it."""
        spill = self._spill
        if len(spill) == 0:
            spill += _PADDING
        length = len(data) - body + 1
        spill += subxid.to_bytes(4, "big")
        spill += length.to_bytes(4, "big")
        spill.append(data[25])
        spill += data[body:]

    def _cut_piece(self) -> None:
        if len(self._spill) > 0:
            self.pieces.append(Piece(self._stream_xid or self._xid, bytes(self._spill)))
            self._spill = bytearray()

    def _begin(self, data: bytes, size: int) -> None:
        if size != 46:
            raise DecodeError("a begin that is not 21 bytes long", kind="B", index=size)
        if self.in_transaction:
            raise DecodeError("a transaction begins inside another", kind="B", index=25)
        self._commit_lsn = _u64(data, 26)
        self._commit_us = _time_us(data, 34, "B")
        self._xid = _u32(data, 42)
        self._rows = []
        self._size = 0
        if self._announced:
            self._announced = []
        self.in_transaction = True

    def _commit(self, data: bytes, size: int) -> int:
        if size != 51:
            raise DecodeError("a commit that is not 26 bytes long", kind="C", index=size)
        if not self.in_transaction or _u64(data, 27) != self._commit_lsn:
            raise DecodeError("a commit without its begin", kind="C", index=25)
        end_lsn = _u64(data, 35)
        self.in_transaction = False
        if self._is_spilling:
            self._cut_piece()
            self._is_spilling = False
            self.spilled_commit = SpilledCommit(self._xid, end_lsn, self._commit_us, end_lsn <= self.skip_until)
            return _STOP_AFTER
        rows = self._rows
        self._rows = []
        if end_lsn > self.skip_until:
            self.transactions.append(self._transaction(rows, end_lsn, self._commit_us, 0, True))
        return _GO_ON

    def _transaction(
        self, rows: list[_RowChange], end_lsn: int, commit_us: int, first_ordinal: int, is_last: bool
    ) -> Transaction:
        xid = self._xid
        position = format_lsn(end_lsn) + ":"
        identifier = f"{self.id_prefix}{end_lsn:X}-"
        last = first_ordinal + len(rows) - 1 if is_last else -1
        changes: list[Change] = []
        news: list[SchemaNews] = []
        ordinal = first_ordinal
        for relation, op, before, after in rows:
            if not relation.is_versioned:
                # Not before: of a transaction that is skipped, or never ends, nothing may be remembered.
                relation.schema, first = versioned(self.versions, relation.schema, ordinal=ordinal)
                relation.is_versioned = True
                if first is not None:
                    news.append(first)
            text = str(ordinal)
            changes.append(
                Change(
                    relation.schema,
                    op,
                    before,
                    after,
                    position + text,
                    identifier + text,
                    xid,
                    ordinal,
                    ordinal == last,
                    commit_us,
                )
            )
            ordinal += 1
        return Transaction(
            xid, end_lsn, commit_us, changes, self._size, news, first_ordinal=first_ordinal, is_part=not is_last
        )

    def _logical_message(self, data: bytes, size: int) -> None:
        """pg_logical_emit_message: a change among others, or with its own place outside transactions."""
        is_transactional = data[26] == 1
        lsn = _u64(data, 27)
        prefix = self._cstring(data, 35, size)
        start = self._pos + 4
        if start + _u32(data, self._pos) != size:
            raise DecodeError("a logical message of another length than said", kind="M", index=self._pos)
        if is_transactional != self.in_transaction:
            raise DecodeError("a logical message on the wrong side of a commit", kind="M", index=26)
        if prefix not in self.messages:
            if len(self.messages) >= 1000:  # prefixes may be made up without end
                self.messages.clear()
            self.messages[prefix] = self._message_relation(prefix)
        relation = self.messages[prefix]
        if relation is None:
            return
        content = data[start:]
        row: Row
        try:
            row = (prefix, content.decode("utf-8"), None)
        except UnicodeDecodeError:
            row = (prefix, UNDECODABLE, "\\x" + content.hex())
        if is_transactional:
            self._size += size
            self._rows.append((relation, "message", None, row))
            return
        if lsn <= self.skip_until:
            return
        # It has no commit time: the server's clock when it was sent is the nearest.
        time_us = _time_us(data, 17, "M")
        change = Change(
            relation.schema,
            "message",
            None,
            row,
            format_lsn(lsn) + ":0",
            f"{self.id_prefix}{lsn:X}-0",
            0,
            0,
            True,
            time_us,
        )
        self.transactions.append(Transaction(0, lsn, time_us, [change], size, []))

    def _message_relation(self, prefix: str) -> _Relation | None:
        """None when nobody wants such messages."""
        if prefix == _OWN_PREFIX:
            return None
        for pattern in self.message_patterns:
            if fnmatchcase(prefix, pattern):
                return _Relation(TableSchema(MESSAGE_SCHEMA, prefix, _MESSAGE_COLUMNS, ()), bytes(3), bytes(3), True)
        return None

    def _relation(self, data: bytes, kind: str) -> _Relation:
        if not self.in_transaction:
            raise DecodeError("a row outside a transaction", kind=kind, index=25)
        relation = self.relations.get(_u32(data, 26))
        if relation is None:
            raise DecodeError("a row of a table that was not announced", kind=kind, index=26)
        return relation

    def _insert(self, data: bytes, size: int) -> None:
        relation = self._relation(data, "I")
        if data[30] != 78:  # N
            raise DecodeError("an insert without a new row", kind="I", index=30)
        row = self._tuple(data, 31, size, relation, False)
        if self._pos != size:
            raise DecodeError("bytes after the row", kind="I", index=self._pos)
        self._size += size
        self._rows.append((relation, "insert", None, row))

    def _update(self, data: bytes, size: int) -> None:
        relation = self._relation(data, "U")
        before = None
        pos = 30
        part = data[30]
        if part == 75 or part == 79:  # K, O
            before = self._tuple(data, 31, size, relation, part == 75)
            pos = self._pos
        if data[pos] != 78:
            raise DecodeError("an update without a new row", kind="U", index=pos)
        after = self._tuple(data, pos + 1, size, relation, False)
        if self._pos != size:
            raise DecodeError("bytes after the row", kind="U", index=self._pos)
        if part == 79 and UNCHANGED in after and before is not None:
            # Under REPLICA IDENTITY FULL the old row is whole: what wasn't sent again stands there.
            after = tuple([old if new is UNCHANGED else new for old, new in zip(before, after, strict=True)])
        self._size += size
        self._rows.append((relation, "update", before, after))

    def _delete(self, data: bytes, size: int) -> None:
        relation = self._relation(data, "D")
        part = data[30]
        if part != 75 and part != 79:
            raise DecodeError("a delete without an old row", kind="D", index=30)
        before = self._tuple(data, 31, size, relation, part == 75)
        if self._pos != size:
            raise DecodeError("bytes after the row", kind="D", index=self._pos)
        self._size += size
        self._rows.append((relation, "delete", before, None))

    def _truncate(self, data: bytes, size: int) -> None:
        if not self.in_transaction:
            raise DecodeError("a truncate outside a transaction", kind="T", index=25)
        count = _u32(data, 26)
        pos = 31
        if size != pos + 4 * count:
            raise DecodeError("a truncate of another length than its tables", kind="T", index=size)
        for _ in range(count):
            relation = self.relations.get(_u32(data, pos))
            if relation is None:
                raise DecodeError("a truncate of a table that was not announced", kind="T", index=pos)
            self._rows.append((relation, "truncate", None, None))
            self._size += 64
            pos += 4

    def _tuple(self, data: bytes, pos: int, size: int, relation: _Relation, only_key: bool) -> Row:
        """The tuple at pos; leaves the index behind it in self._pos.

        only_key: a K tuple fills the columns outside the identity with NULLs that mean "unknown", hence UNCHANGED.
        """
        count = (data[pos] << 8) | data[pos + 1]
        pos += 2
        if count != relation.count:
            raise DecodeError("a row with another number of columns than announced", kind="tuple", index=pos)
        kinds = relation.kinds
        identity = relation.identity
        values: list[Value | Absent] = []
        for column in range(count):
            form = data[pos]
            pos += 1
            if form == 116:  # t
                length = _u32(data, pos)
                pos += 4
                end = pos + length
                if end > size:
                    raise DecodeError("a value longer than its message", kind="tuple", index=pos)
                kind = kinds[column]
                if kind == 0:
                    try:
                        values.append(data[pos:end].decode("utf-8"))
                    except UnicodeDecodeError:
                        values.append(UNDECODABLE)
                elif kind == 1 and length < 19:
                    try:
                        values.append(int(data[pos:end]))
                    except ValueError:  # its text quotes the value
                        raise DecodeError("a value that is no integer", kind="value") from None
                else:
                    values.append(text_value(data[pos:end], kind))
                pos = end
            elif form == 110:  # n
                values.append(UNCHANGED if only_key and identity[column] == 0 else None)
            elif form == 117:  # u
                values.append(UNCHANGED)
            else:
                raise DecodeError("unknown form of a value", kind="tuple", index=pos - 1)
        self._pos = pos
        return tuple(values)

    def _announce(self, data: bytes, size: int) -> bool:
        """An R message. False: the primary key is needed first, nothing was changed."""
        oid = _u32(data, 26)
        schema = self._cstring(data, 30, size) or "pg_catalog"
        table = self._cstring(data, self._pos, size)
        pos = self._pos
        replica = chr(data[pos])
        if replica not in "dnfi":
            raise DecodeError("unknown replica identity", kind="R", index=pos)
        count = (data[pos + 1] << 8) | data[pos + 2]
        pos += 3
        columns: list[Column] = []
        flags: list[int] = []
        oids: list[int] = []
        for _ in range(count):
            flags.append(data[pos] & 1)
            name = self._cstring(data, pos + 1, size)
            pos = self._pos
            type_oid = _u32(data, pos)
            modifier = _u32(data, pos + 4)
            if modifier >= 0x80000000:
                modifier -= 0x100000000
            pos += 8
            oids.append(type_oid)
            columns.append(Column(name, type_oid, self.type_names.get(type_oid, f"oid:{type_oid}"), modifier))
        if pos != size:
            raise DecodeError("bytes after the relation", kind="R", index=pos)
        if replica in "fn":
            names = self.primary_keys.get(oid)
            if names is None:
                self.wants_key_of = oid
                return False
            positions = {column.name: index for index, column in enumerate(columns)}
            key = tuple([positions[name] for name in names]) if all(name in positions for name in names) else ()
        else:
            key = tuple([index for index, flag in enumerate(flags) if flag])
        if self.in_transaction:
            self._announced.append((oid, self.relations.get(oid)))
        self.relations[oid] = _Relation(
            TableSchema(schema, table, tuple(columns), key, replica, oid), row_kinds(oids), bytes(flags), False
        )
        return True

    def _cstring(self, data: bytes, pos: int, size: int) -> str:
        """The zero-terminated text at pos; leaves the index behind it in self._pos."""
        end = data.find(b"\0", pos)
        if end < 0:
            raise DecodeError("a name without its end", kind="name", index=size)
        self._pos = end + 1
        try:
            return data[pos:end].decode("utf-8")
        except UnicodeDecodeError:
            raise DecodeError("a name that is not UTF-8", kind="name", index=pos) from None


def _u32(data: bytes, pos: int) -> int:
    first = data[pos]  # a name of its own: shifted as C's int, a byte of 128 or more would become a negative number
    return (first << 24) | (data[pos + 1] << 16) | (data[pos + 2] << 8) | data[pos + 3]


def _u64(data: bytes, pos: int) -> int:
    return (_u32(data, pos) << 32) | _u32(data, pos + 4)


def _time_us(data: bytes, pos: int, kind: str) -> int:
    """A time of the wire, signed and since 2000, as microseconds since 1970; DecodeError when 64 bits can't hold it."""
    value = _u64(data, pos)
    if value >= 0x8000000000000000:
        below = 0xFFFFFFFFFFFFFFFF - value  # a name of its own, so that the .pxd can make it signed
        return _EPOCH_2000_US - 1 - below
    if value > 0x7FFFFFFFFFFFFFFF - _EPOCH_2000_US:
        raise DecodeError("a time beyond 64 bits", kind=kind, index=pos)
    return value + _EPOCH_2000_US
