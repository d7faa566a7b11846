"""pgoutput, protocol version 1, text mode: replication frames in, whole transactions out.

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

The file runs as plain Python; pgoutput.pxd beside it adds the C types with which the build compiles it. Lengths and indexes are
checked here, not left to the compiler's bounds checks: a short frame must become a DecodeError and never a row.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import isfinite

from headrace.cdc.decode.pgtypes import KINDS
from headrace.cdc.decode.tableversion import SchemaNews, TableVersion, versioned
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNCHANGED, UNDECODABLE, Absent, Change, Column, Op, Row, TableSchema, Value
from headrace.cdc.position import format_lsn

_EPOCH_2000_US = 946_684_800_000_000

# How a column's text becomes a value: text as it is, or the Python type that says the same without loss.
# The same numbers as in pgtypes.py, which says which type has which; names of this file compile to plain comparisons.
_TEXT, _INT, _BOOL, _FLOAT = 0, 1, 2, 3

MESSAGES = "pg_message"
"""Schema of the made-up tables that logical messages come from, one a prefix. No schema of a user begins with pg_."""
_MESSAGE_COLUMNS = (Column("prefix", 25, "text"), Column("content", 25, "text"), Column("content_hex", 25, "text"))
_OWN_PREFIX = "headrace"


class Transaction:
    """A committed transaction: its changes in order, and the LSN after which a restart goes on.

    news: versions of tables that begin in it, in order; what an event says of each is made by tableversion.changes_of. A logical
    message outside transactions is one of its own, with xid 0.
    """

    __slots__ = ("changes", "commit_us", "end_lsn", "news", "size_bytes", "xid")

    def __init__(
        self, xid: int, end_lsn: int, commit_us: int, changes: list[Change], size_bytes: int, news: list[SchemaNews]
    ) -> None:
        self.xid = xid
        self.end_lsn = end_lsn
        self.commit_us = commit_us
        self.changes = changes
        self.size_bytes = size_bytes
        self.news = news


def row_kinds(type_oids: list[int]) -> bytes:
    """One byte a column: how ``text_value`` reads it."""
    return bytes([KINDS.get(oid, _TEXT) for oid in type_oids])


def text_value(data: bytes, kind: int) -> Value | Absent:
    """One column's text as its value; the stream and the snapshot share it.

    Exact by construction: integers and booleans have one spelling; a float is the shortest text that reads back as the
    same number (extra_float_digits is pinned), NaN and the infinities stay text because JSON has no number for them.
    Raises DecodeError for text that the type never prints.
    """
    if kind == _INT:
        return _integer(data)
    if kind == _BOOL:
        if data != b"t" and data != b"f":
            raise DecodeError("a value that is no boolean", kind="value")
        return data == b"t"
    if kind == _FLOAT and data not in (b"NaN", b"Infinity", b"-Infinity"):
        try:
            number = float(data)
        except ValueError:  # its text quotes the value
            number = float("nan")
        if not isfinite(number):
            raise DecodeError("a value that is no float", kind="value")
        return number
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return UNDECODABLE


def _integer(data: bytes) -> int:
    """Text of an integer type of at most 64 bits. Raises DecodeError."""
    try:
        number = int(data)
    except ValueError:  # its text quotes the value
        raise DecodeError("a value that is no integer", kind="value") from None
    if not -0x8000000000000000 <= number <= 0x7FFFFFFFFFFFFFFF:
        raise DecodeError("an integer of more than 64 bits", kind="value")
    return number


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


class PgOutputDecoder:
    """Feed it frames; take whole transactions out of ``transactions`` and keepalives out of the three fields.

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
        self.skip_until = 0
        """Transactions whose end LSN is at most this were logged before and are dropped whole."""
        self._rows: list[tuple[_Relation, Op, Row | None, Row | None]] = []
        self._size = 0
        self._xid = 0
        self._commit_lsn = 0
        self._commit_us = 0
        self._pos = 0

    def feed(self, frames: list[bytes], start: int = 0) -> int:
        """Decode frames[start:]; the result is the index of the first frame not consumed.

        That is len(frames) unless ``wants_key_of`` was set. Raises DecodeError on anything that doesn't follow the
        protocol; the decoder must then be thrown away.
        """
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
                    if not self._message(data, size):
                        return index
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

    def forget_connection(self) -> None:
        """Drop what belongs to one connection: relations and the transaction under way."""
        self.relations = {}
        self._rows = []
        self._size = 0
        self.in_transaction = False
        self.transactions = []
        self.reply_requested = False

    def _keepalive(self, data: bytes) -> None:
        wal_end = _u64(data, 1)
        self.wal_end = max(self.wal_end, wal_end)
        self.server_time_us = _time_us(data, 9, "k")
        if data[17] == 1:
            self.reply_requested = True

    def _message(self, data: bytes, size: int) -> bool:
        kind = data[25]
        if kind == 73:  # I
            self._insert(data, size)
        elif kind == 85:  # U
            self._update(data, size)
        elif kind == 68:  # D
            self._delete(data, size)
        elif kind == 66:  # B
            self._begin(data, size)
        elif kind == 67:  # C
            self._commit(data, size)
        elif kind == 82:  # R
            return self._announce(data, size)
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
        else:
            raise DecodeError("unknown message", kind=chr(kind), index=25)
        return True

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
        self.in_transaction = True

    def _commit(self, data: bytes, size: int) -> None:
        if size != 51:
            raise DecodeError("a commit that is not 26 bytes long", kind="C", index=size)
        if not self.in_transaction or _u64(data, 27) != self._commit_lsn:
            raise DecodeError("a commit without its begin", kind="C", index=25)
        end_lsn = _u64(data, 35)
        self.in_transaction = False
        rows = self._rows
        self._rows = []
        if end_lsn <= self.skip_until:
            return
        xid = self._xid
        commit_us = self._commit_us
        position = format_lsn(end_lsn) + ":"
        identifier = f"{self.id_prefix}{end_lsn:X}-"
        last = len(rows) - 1
        changes: list[Change] = []
        news: list[SchemaNews] = []
        ordinal = 0
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
        self.transactions.append(Transaction(xid, end_lsn, commit_us, changes, self._size, news))

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
                return _Relation(TableSchema(MESSAGES, prefix, _MESSAGE_COLUMNS, ()), bytes(3), bytes(3), True)
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
