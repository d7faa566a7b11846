"""The binlog of MySQL and MariaDB as whole transactions of row changes. Sans-I/O: events in, transactions out.

Follows the MySQL 9 source documentation, "Replication: binary log events", and MariaDB's "Binlog Event Types". The server logs a
transaction at its commit: an id, BEGIN, for each statement its table maps and rows, and XID or COMMIT. The only memory between events is the
transaction under way and where we are. A large one is given out in parts as it comes: it has committed. What can take rows back that were
given out is a rollback to a savepoint, logged where other engines took part; the reader then has to begin that transaction again (Undone).

Rows of an XA transaction are logged when it is prepared. They are passed over, and read again from there once the outcome is known.

What might be data and can't be read stops the reader with its place: statements in place of rows, an incident, an unknown event.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from uuid import UUID

from headrace.cdc.decode.binlogplace import BinlogPlace, Prepared, order_of, xa_key, xa_key_of
from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.decode.mysqlpayload import payload_events, tagged_gtid
from headrace.cdc.decode.mysqlstatement import Kind, read_statement
from headrace.cdc.decode.mysqlvalue import RowReader
from headrace.cdc.decode.tablemap import Lookup, TableMap, packed, parse_table_map
from headrace.cdc.decode.tableversion import SchemaNews, TableVersion, versioned
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import Change, Op, Row, TableSchema

_HEADER = struct.Struct("<IBIIIH")
_HEADER_BYTES = _HEADER.size
_U64, _U32, _U16 = struct.Struct("<Q"), struct.Struct("<I"), struct.Struct("<H")
_CRC_BYTES = 4
_ARTIFICIAL = 0x20
_IGNORABLE = 0x80
_LARGEST_EVENT_BYTES = 1 << 30

(_QUERY, _STOP, _ROTATE, _INTVAR, _RAND, _USER_VAR, _FORMAT, _XID, _TABLE_MAP) = (2, 3, 4, 5, 13, 14, 15, 16, 19)
(_INCIDENT, _HEARTBEAT, _ROWS_QUERY, _GTID, _ANONYMOUS, _PREVIOUS_GTIDS) = (26, 27, 29, 33, 34, 35)
(_TRANSACTION_CONTEXT, _VIEW_CHANGE, _XA_PREPARE, _PAYLOAD, _HEARTBEAT2, _GTID_TAGGED) = (36, 37, 38, 40, 41, 42)
(_ANNOTATE, _CHECKPOINT, _MARIADB_GTID, _GTID_LIST, _ENCRYPTION) = (160, 161, 162, 163, 164)
_QUERY_COMPRESSED = 165
_ROWS: dict[int, tuple[Op, int, bool]] = {
    23: ("insert", 1, False), 24: ("update", 1, False), 25: ("delete", 1, False),
    30: ("insert", 2, False), 31: ("update", 2, False), 32: ("delete", 2, False), 39: ("update", 2, False),
    166: ("insert", 1, True), 167: ("update", 1, True), 168: ("delete", 1, True),
    169: ("insert", 2, True), 170: ("update", 2, True), 171: ("delete", 2, True),
}  # fmt: skip
"""Code -> what happened, version of the post-header, compressed by MariaDB's log_bin_compress."""
_PARTIAL_UPDATE = 39
_SKIPPED = frozenset(
    (_STOP, _INTVAR, _RAND, _USER_VAR, _HEARTBEAT, _HEARTBEAT2, _ROWS_QUERY, _PREVIOUS_GTIDS, _TRANSACTION_CONTEXT)
    + (_VIEW_CHANGE, _CHECKPOINT, _GTID_LIST, _ENCRYPTION)
)
_STANDALONE, _PREPARED_XA = 1, 64
_HAS_COMMIT_TIMES = 2
_UNTOLD, _ABSENT, _PRESENT = 0, 1, 2
"""Checksums behind events."""


PART_BYTES = 1 << 18
"""So many bytes of rows of one transaction are given out together; decoded they take about eight times as much memory."""


class Undone(Exception):
    """Rows that were given out as parts have been rolled back: read the transaction again, with these left out.

    transaction: its id, or the place where it begins. rows: which of its rows, counted from 0 as they come.
    """

    def __init__(self, transaction: str, rows: range) -> None:
        super().__init__(transaction, rows)
        self.transaction = transaction
        self.rows = rows


class BinlogTransaction(Transaction):
    """place: behind it. gtid: its id, "" without. xid counts as the sequence number of the id. gtids: all up to and with it.

    rows_at: where the rows stand if it is an XA transaction, which then has none here. xa: its name.
    """

    __slots__ = ("gtid", "gtids", "place", "rows_at", "xa")

    def __init__(
        self,
        changes: list[Change],
        news: list[SchemaNews],
        *,
        xid: int,
        commit_us: int,
        size_bytes: int,
        gtid: str,
        gtids: MySQLGtidSet | MariaDBGtids,
        place: BinlogPlace,
        first_ordinal: int = 0,
        is_part: bool = False,
        rows_at: Prepared | None = None,
        xa: str = "",
    ) -> None:
        super().__init__(
            xid, place.pos, commit_us, changes, size_bytes, news, first_ordinal=first_ordinal, is_part=is_part
        )
        self.gtid = gtid
        self.gtids = gtids
        self.place = place
        self.rows_at = rows_at
        self.xa = xa


class _Mapped:
    """A table map as this reader uses it. table: with its version, once a row of it was met."""

    def __init__(self, table: TableMap, *, is_wanted: bool) -> None:
        self.is_wanted = is_wanted
        self.is_named = table.is_named
        self.reader = RowReader(table)
        self.schema = table.table_schema()
        self.version: TableVersion | None = None
        self.table: TableSchema = self.schema


_Raw = tuple[_Mapped, Op, "Row | None", "Row | None"]


class BinlogDecoder:
    """Feed it events in order; take what is in ``transactions``.

    id_prefix: of every change's id. versions: of tables by OID, kept by the caller over restarts, as for Postgres. place: where the reader
    begins. passed: everything before it was delivered. transactions: whole ones, in commit order. in_transaction: the newest events belong to one that isn't whole yet. gtids: the newest
    transactions that were delivered; for MySQL a set, for MariaDB one of each domain. wants: whether a table's rows are decoded at all.
    server_time_us: of the newest event. prepared: XA transactions without an outcome by name, kept by the caller over restarts, who also
    removes one that committed. undone: rows to leave out, as Undone said. stands_for: an XA transaction that has committed; the rows of the one
    that was prepared come out as this one's, and nothing else does. known: of tables whose columns the binlog doesn't name. altered: told of
    each statement that may have altered a table.
    """

    def __init__(
        self,
        id_prefix: str,
        versions: dict[int, TableVersion],
        *,
        place: BinlogPlace,
        gtids: MySQLGtidSet | MariaDBGtids,
        wants: Callable[[str, str], bool] = lambda schema, table: True,
        prepared: dict[str, Prepared] | None = None,
        undone: Mapping[str, Sequence[range]] | None = None,
        stands_for: BinlogTransaction | None = None,
        known: Lookup | None = None,
        altered: Callable[[str], None] | None = None,
    ) -> None:
        self.versions = versions
        self._file = place.file
        self._pos = place.pos
        self.passed = place
        self.gtids = gtids
        self.transactions: list[BinlogTransaction] = []
        self.in_transaction = False
        self.server_time_us = 0
        self._id_prefix = id_prefix
        self._wants = wants
        self._checksums = _UNTOLD
        self._maps: dict[bytes, _Mapped] = {}
        self._by_id: dict[int, _Mapped] = {}
        self._prepared = {} if prepared is None else prepared
        self._undone = undone or {}
        self._stands_for = stands_for
        self._known = known
        self._altered = altered
        self._unread: bytes | None = None  # the event that is being unpacked
        self._gtid: tuple[str, str, int] | None = None  # text; source or domain and server; number
        self._ends = False
        self._server = 0
        self._behind = (0, 0, 0, 0)  # the last event: kind, its end as it says, size, flags
        self._unpacking: Iterator[bytes] | None = None
        # Of the transaction under way:
        self._began = (place, gtids)
        self._rows: list[_Raw] = []
        self._size = 0
        self._given = 0  # rows that are in parts
        self._seen = 0  # rows that came, those left out included
        self._left_out: Sequence[range] = ()
        self._savepoints: list[tuple[str, int, int]] = []  # name, rows seen, rows kept
        self._has_begun = False
        self._is_passed_over = stands_for is not None
        self._commit_us = 0
        self._rows_at: tuple[str, Prepared] | None = None

    def feed(self, event: bytes) -> None:
        """One whole event, header and checksum included.

        Raises DecodeError, with the place before the event, Undone, or Unnamed: then bring what ``known`` lacks, and feed the same event again,
        or go on if ``is_unpacking``.
        """
        try:
            self._feed(event)
        except DecodeError as error:
            raise self._placed(error) from error

    def go_on(self) -> None:
        """Unpack more of the event that was fed last, while ``is_unpacking``. Raises as feed."""
        try:
            self._resume()
        except DecodeError as error:
            raise self._placed(error) from error

    @property
    def place(self) -> BinlogPlace:
        """Behind the last event."""
        return BinlogPlace(self._file, self._pos)

    @property
    def is_unpacking(self) -> bool:
        """The last event holds more, which comes with ``go_on``; until then none may be fed."""
        return self._unpacking is not None

    @property
    def began(self) -> tuple[BinlogPlace, MySQLGtidSet | MariaDBGtids]:
        """Where the transaction under way begins, or the next one: place and what is before it."""
        return self._began if self.in_transaction else (self.place, self.gtids)

    @property
    def has_given(self) -> bool:
        """Parts of the transaction under way were given out."""
        return self._given > 0

    def _placed(self, error: DecodeError) -> DecodeError:
        return error if error.position else DecodeError(error.args[0], position=str(self.place))

    def _feed(self, event: bytes) -> None:
        if len(event) < _HEADER_BYTES:
            raise DecodeError("an event shorter than its header", kind="event", index=len(event))
        seconds, kind, self._server, size, log_pos, flags = _HEADER.unpack_from(event)
        if size != len(event):
            raise DecodeError("an event of another length than it says", kind=f"event {kind}", index=9)
        body = self._checked(event, kind)
        if seconds:
            self.server_time_us = seconds * 1_000_000
        self._behind = (kind, log_pos, size, flags)
        self._event(kind, body, flags)
        if self._unpacking is None:
            self._end_of_event(body)

    def _end_of_event(self, body: bytes) -> None:
        """We are behind an event now, and what ends a transaction does so there."""
        kind, log_pos, size, flags = self._behind
        if log_pos and not flags & _ARTIFICIAL and kind not in (_ROTATE, _HEARTBEAT, _HEARTBEAT2):
            self._move(log_pos, size)
        elif kind == _HEARTBEAT and log_pos:
            self._pulse(body.rstrip(b"\x00").decode("utf-8", "replace"), log_pos)
        if kind == _XID or self._ends:
            self._ends = False
            self._commit()
        if not self.in_transaction:
            self._pass(self.place)

    def _pulse(self, file: str, log_pos: int) -> None:
        """An idle server says how far it has come: what it left out, being of transactions that we have, is behind us too."""
        near = self._pos if file == self._file else 0
        if not self.in_transaction:
            self._pass(BinlogPlace(file, (near >> 32 << 32) | log_pos))

    def _pass(self, place: BinlogPlace) -> None:
        passed = self.passed
        if place.pos > passed.pos if place.file == passed.file else order_of(place) > order_of(passed):
            self.passed = place

    def _checked(self, event: bytes, kind: int) -> bytes:
        """The body, without header and checksum."""
        end = len(event) - _CRC_BYTES
        if kind == _FORMAT:
            # The byte before its checksum, which it always has, says whether the others have one.
            self._checksums = _PRESENT if end > _HEADER_BYTES and event[end - 1] == 1 else _ABSENT
        elif self._checksums == _ABSENT:
            return event[_HEADER_BYTES:]
        fits = end >= _HEADER_BYTES and zlib.crc32(memoryview(event)[:end]) == _U32.unpack_from(event, end)[0]
        if self._checksums == _UNTOLD:
            return event[_HEADER_BYTES : end if fits else None]  # the first rotation comes before the format is told
        if not fits and self._checksums == _PRESENT:
            raise DecodeError("a checksum that doesn't fit", kind=f"event {kind}", index=end)
        return event[_HEADER_BYTES:end]

    def _move(self, log_pos: int, size: int) -> None:
        """log_pos has 32 bits, and files may be larger: what it lacks comes from counting."""
        counted = self._pos + size
        high = counted >> 32 << 32
        pos = high | log_pos
        if pos < counted and counted - pos > 1 << 31:
            pos += 1 << 32
        self._pos = pos

    def _event(self, kind: int, body: bytes, flags: int) -> None:
        try:
            if kind in _ROWS:
                self._take_rows(kind, body)
            elif kind == _TABLE_MAP:
                self._take_map(body)
            elif kind in (_XID, _ANNOTATE):
                pass
            elif kind == _QUERY:
                self._take_query(body)
            elif kind == _QUERY_COMPRESSED:
                self._take_query(body, is_compressed=True)
            elif kind == _MARIADB_GTID:
                self._begin_mariadb(body)
            elif kind == _GTID:
                self._begin_mysql(body)
            elif kind == _GTID_TAGGED:
                source, number = tagged_gtid(body)
                self._open((f"{source}:{number}", source, number))
            elif kind == _PAYLOAD:
                self._take_payload(body)
            elif kind == _ANONYMOUS:
                self._open(None)
                self._commit_us = _commit_time(body)
            elif kind == _ROTATE:
                self._file, self._pos = body[8:].decode(), _U64.unpack_from(body)[0]
                self._by_id = {}
            elif kind == _XA_PREPARE:
                self._prepare(body)
            elif kind == _FORMAT:
                self._by_id = {}
            elif kind == _INCIDENT:
                raise DecodeError(
                    "the server reports an incident: changes are missing from its binlog", kind="Incident"
                )
            elif kind not in _SKIPPED and not flags & _IGNORABLE:
                raise DecodeError("an event of an unknown kind, which may hold rows", kind=f"event {kind}")
        except (IndexError, struct.error, UnicodeDecodeError, zlib.error) as error:
            raise DecodeError("an event that ends too early, or makes no sense", kind=f"event {kind}") from error

    # identity

    def _begin_mariadb(self, body: bytes) -> None:
        (sequence,) = _U64.unpack_from(body)
        (domain,) = _U32.unpack_from(body, 8)
        flags = body[12]
        self._open((f"{domain}-{self._server}-{sequence}", str(domain), sequence))
        self._has_begun = not flags & _STANDALONE
        if flags & _PREPARED_XA:
            self._pass_over()

    def _begin_mysql(self, body: bytes) -> None:
        source = str(UUID(bytes=body[1:17]))
        (number,) = _U64.unpack_from(body, 17)
        self._open((f"{source}:{number}", source, number))
        self._commit_us = _commit_time(body)

    def _open(self, gtid: tuple[str, str, int] | None) -> None:
        if self._rows or self._given:
            raise DecodeError("a transaction begins inside another", kind="Gtid")
        if self.in_transaction:
            self._commit()  # of nothing that we know
        self.in_transaction = True
        self._gtid = gtid
        self._began = (self.place, self.gtids)
        self._left_out = self._undone.get(self._name_of_it(), ())
        self._has_begun = False
        if self._stands_for is not None:
            wanted = self._stands_for.rows_at
            self._is_passed_over = wanted is None or self._gtid_text() != wanted.gtid

    def _gtid_text(self) -> str:
        return "" if self._gtid is None else self._gtid[0]

    def _name_of_it(self) -> str:
        return self._gtid_text() or str(self._began[0])

    def _pass_over(self) -> None:
        """This is an XA transaction: its rows count when, and if, it commits."""
        self.in_transaction = self._has_begun = True
        if self._stands_for is None:
            self._is_passed_over = True

    def _take_payload(self, body: bytes) -> None:
        """What MySQL's binlog_transaction_compression put into one event; it ends behind that one's place."""
        self._unpacking = payload_events(body)
        if not self.transactions:
            self._unpack()

    def _resume(self) -> None:
        self._unpack()
        if self._unpacking is None:
            self._end_of_event(b"")

    def _unpack(self) -> None:
        """Goes on until there is a part to take, or the end."""
        assert self._unpacking is not None
        count = len(self.transactions)
        while True:
            event = next(self._unpacking, None) if self._unread is None else self._unread
            if event is None:
                break
            self._unread = event
            kind, flags = event[4], event[17] | event[18] << 8
            if kind == _PAYLOAD or self._ends:
                raise DecodeError("a compressed transaction that goes on behind its end", kind="Transaction_payload")
            self._event(kind, event[_HEADER_BYTES:], flags)
            self._unread = None
            self._ends = self._ends or kind == _XID
            if len(self.transactions) > count:
                return
        self._unpacking = None

    # statements

    def _take_query(self, body: bytes, *, is_compressed: bool = False) -> None:
        schema_length = body[8]
        (status_length,) = _U16.unpack_from(body, 11)
        start = 13 + status_length
        schema = body[start : start + schema_length].decode()
        raw = body[start + schema_length + 1 :]
        query = (_inflated(raw) if is_compressed else raw).decode("utf-8", "replace")
        statement = read_statement(query)
        if not self.in_transaction:
            self._open(None)
        match statement.kind:
            case Kind.BEGIN:
                self.in_transaction = self._has_begun = True
            case Kind.XA_START:
                self._pass_over()
            case Kind.XA_END:
                pass
            case Kind.COMMIT:
                self._ends = True
            case Kind.ROLLBACK:
                self._undo(0, 0)
                self._ends = True
            case Kind.SAVEPOINT:
                self._savepoints.append((statement.name, self._seen, self._given + len(self._rows)))
            case Kind.ROLLBACK_TO:
                self._roll_back_to(statement.name)
            case Kind.XA_COMMIT:
                self._outcome(statement.name)
            case Kind.XA_ROLLBACK:
                if self._stands_for is None:
                    self._prepared.pop(xa_key(statement.name), None)
                self._ends = True
            case Kind.TRUNCATE:
                self._truncate(statement.table[0] or schema, statement.table[1])
                self._ends = True
            case Kind.DATA:
                raise DecodeError(
                    "rows in a statement's form: the server, or the session that wrote them, doesn't log by row (binlog_format)",
                    kind="Query",
                )
            case Kind.OTHER:
                if self._altered is not None:
                    self._altered(query)
                    self._forget_names()
                # DDL is a transaction of its own; inside one (CREATE TABLE ... SELECT) it ends nothing.
                self._has_begun = self._has_begun or query.rstrip().upper().endswith("START TRANSACTION")
                self._ends = not self._has_begun

    def _forget_names(self) -> None:
        """Of tables whose maps have none; each statement of rows maps its tables anew."""
        self._maps = {body: mapped for body, mapped in self._maps.items() if mapped.is_named}
        self._by_id = {number: mapped for number, mapped in self._by_id.items() if mapped.is_named}

    def _outcome(self, name: str) -> None:
        """XA COMMIT: the rows are to be read from where they were prepared."""
        self._ends = True
        if self._stands_for is not None:
            return
        key = xa_key(name)
        prepared = self._prepared.get(key)
        if prepared is None and self._has_begun:  # in one phase: these are its rows
            if self._is_passed_over:
                self._rows_at = (key, self._place_of_it())
            return
        if prepared is None:
            raise DecodeError(
                f"XA transaction {name} commits, and it was prepared before this source began to read", kind="Query"
            )
        self._rows_at = (key, prepared)

    def _roll_back_to(self, name: str) -> None:
        for place in range(len(self._savepoints) - 1, -1, -1):
            known, seen, kept = self._savepoints[place]
            if known == name:
                self._undo(seen, kept)
                del self._savepoints[place + 1 :]
                return
        raise DecodeError(f'a rollback to the savepoint "{name}", which was never made', kind="Query")

    def _undo(self, seen: int, kept: int) -> None:
        if kept < self._given:
            raise Undone(self._name_of_it(), range(seen, self._seen))
        del self._rows[kept - self._given :]

    def _truncate(self, schema: str, table: str) -> None:
        if not self._wants(schema, table):
            return
        known = next(
            (
                each
                for each in reversed(self._maps.values())
                if (each.schema.schema, each.schema.table) == (schema, table)
            ),
            None,
        )
        mapped = known or _Mapped(TableMap(0, schema, table, (), ()), is_wanted=True)
        self._rows.append((mapped, "truncate", None, None))
        self._seen += 1

    def _prepare(self, body: bytes) -> None:
        """The end of an XA transaction's rows. Its outcome comes later, perhaps after others, or after a restart; or this is its commit."""
        self._ends = True
        if self._stands_for is not None:
            return
        is_committed = body[0]
        format_id, first, second = struct.unpack_from("<III", body, 1)
        name = body[13 : 13 + first + second]
        key = xa_key_of(format_id, name[:first], name[first:])
        if is_committed:
            self._rows_at = (key, self._place_of_it())
        else:
            self._prepared[key] = self._place_of_it()

    def _place_of_it(self) -> Prepared:
        place, gtids = self._began
        return Prepared(place.file, place.pos, str(gtids), self._gtid_text())

    # rows

    def _take_map(self, body: bytes) -> None:
        known = self._maps.get(body[8:])
        if known is None:
            if len(self._maps) > 10_000:
                self._maps.clear()
            table = parse_table_map(
                body, self._wants, is_mariadb=isinstance(self.gtids, MariaDBGtids), known=self._known
            )
            known = self._maps[body[8:]] = _Mapped(table, is_wanted=self._wants(table.schema, table.table))
        self._by_id[int.from_bytes(body[:6], "little")] = known

    def _take_rows(self, kind: int, body: bytes) -> None:
        if self._is_passed_over:
            return
        op, version, is_compressed = _ROWS[kind]
        table_id = int.from_bytes(body[:6], "little")
        if table_id == 0xFFFFFF:
            return  # a dummy that ends a statement
        mapped = self._by_id.get(table_id)
        if mapped is None:
            raise DecodeError("rows of a table that was not announced", kind=f"event {kind}")
        if not mapped.is_wanted:
            return
        if self._size >= PART_BYTES and (not self.transactions or self.transactions[-1].is_part):
            # Not before now: the last row of a transaction says that it is the last. And not behind whole transactions, with which the
            # caller stores the versions of tables as they were up to them.
            self._give(is_part=True)
        pos = 8
        if version == 2:
            pos += _U16.unpack_from(body, pos)[0]
        count, pos = packed(body, pos)
        if count != len(mapped.schema.columns):
            raise DecodeError("rows of another number of columns than announced", kind=f"event {kind}", index=pos)
        width = (count + 7) // 8
        first = body[pos : pos + width]
        pos += width
        second = first
        if op == "update":
            second = body[pos : pos + width]
            pos += width
        data = body
        if is_compressed:
            data, pos = _inflated(body[pos:]), 0
        rows = self._rows
        self._size += len(data)
        first_new = len(rows)
        mapped.reader.read_all(data, pos, op, first, second, mapped, rows, kind == _PARTIAL_UPDATE)
        if self._left_out:
            kept = [
                row
                for number, row in enumerate(rows[first_new:], self._seen)
                if not any(number in left_out for left_out in self._left_out)
            ]
            self._seen += len(rows) - first_new
            rows[first_new:] = kept
        else:
            self._seen += len(rows) - first_new

    def _commit(self) -> None:
        """The end of a transaction, behind its last event."""
        gtid = self._gtid
        if gtid is not None:
            name, source, number = gtid
            if isinstance(self.gtids, MySQLGtidSet):
                self.gtids = self.gtids.with_one(source, number)
            else:
                self.gtids = self.gtids.with_one(int(source), int(name.split("-")[1]), number)
        if self._stands_for is None or not self._is_passed_over:
            self._give(is_part=False)
        self.in_transaction = self._has_begun = False
        self._is_passed_over = self._stands_for is not None
        self._gtid = self._rows_at = None
        self._savepoints = []
        self._left_out = ()
        self._given = self._seen = self._commit_us = 0

    def _give(self, *, is_part: bool) -> None:
        rows, self._rows = self._rows, []
        size, self._size = self._size, 0
        if is_part and not self._commit_us:
            self._commit_us = self.server_time_us  # one for all parts
        name, number = ("", 0) if self._gtid is None else (self._gtid[0], self._gtid[2])
        place, gtids = self.place, self.gtids
        stable = name or str(self._began[0])
        commit_us = self._commit_us or self.server_time_us
        if self._stands_for is not None:
            name, place, gtids = self._stands_for.gtid, self._stands_for.place, self._stands_for.gtids
            stable = name or str(place)
            number, commit_us = self._stands_for.xid, self._stands_for.commit_us
        changes, news = self._changes(rows, stable, number & 0xFFFFFFFF, commit_us, is_part=is_part)
        xa, rows_at = self._rows_at or ("", None)
        self.transactions.append(
            BinlogTransaction(
                changes,
                news,
                xid=number & 0xFFFFFFFF,
                commit_us=commit_us,
                size_bytes=size,
                gtid=name,
                gtids=gtids,
                place=place,
                first_ordinal=self._given,
                is_part=is_part,
                rows_at=rows_at,
                xa=xa,
            )
        )
        self._given += len(rows)

    def _changes(
        self, rows: list[_Raw], name: str, xid: int, commit_us: int, *, is_part: bool
    ) -> tuple[list[Change], list[SchemaNews]]:
        position, identifier = f"{name}:", f"{self._id_prefix}{name}-"
        changes: list[Change] = []
        news: list[SchemaNews] = []
        ordinal = self._given
        last = -1 if is_part else ordinal + len(rows) - 1
        for mapped, op, before, after in rows:
            if mapped.version is None or self.versions.get(mapped.schema.oid) is not mapped.version:
                mapped.table, new = versioned(self.versions, mapped.schema, ordinal=ordinal)
                mapped.version = self.versions[mapped.schema.oid]
                if new is not None:
                    news.append(new)
            changes.append(
                Change(
                    mapped.table,
                    op,
                    before,
                    after,
                    f"{position}{ordinal}",
                    f"{identifier}{ordinal}",
                    xid,
                    ordinal,
                    ordinal == last,
                    commit_us,
                )
            )
            ordinal += 1
        return changes, news


def _inflated(data: bytes) -> bytes:
    """MariaDB's log_bin_compress: a byte with the size of the raw length, that length big-endian, zlib data."""
    size = data[0] & 7
    if data[0] & 0xF0 != 0x80 or not size:
        raise DecodeError("compressed data of an unknown method", kind="compressed", index=0)
    length = int.from_bytes(data[1 : 1 + size], "big")
    if length > _LARGEST_EVENT_BYTES:
        raise DecodeError("compressed data of more than a gigabyte", kind="compressed", index=1)
    unpacker = zlib.decompressobj()
    plain = unpacker.decompress(data[1 + size :], length)
    if len(plain) != length:
        raise DecodeError("compressed data of another length than told", kind="compressed", index=1)
    return plain


def _commit_time(body: bytes) -> int:
    """Microseconds since 1970 UTC of the commit at the server that was read, from MySQL's Gtid event; 0 when it doesn't say."""
    if len(body) < 49 or body[25] != _HAS_COMMIT_TIMES:
        return 0
    return int.from_bytes(body[42:49], "little") & ((1 << 55) - 1)


__all__ = ["PART_BYTES", "BinlogDecoder", "BinlogPlace", "BinlogTransaction", "Undone", "order_of"]
