"""The binlog of MySQL and MariaDB as whole transactions of row changes. Sans-I/O: events in, transactions out.

Follows the MySQL 9 source documentation, "Replication: binary log events", and MariaDB's "Binlog Event Types". The server logs a
transaction at its commit: an id, BEGIN, for each statement its table maps and rows, and XID or COMMIT. The only memory between events is the
transaction under way, the prepared ones (XA), and where we are.

What might be data and can't be read stops the reader with its place: statements in place of rows, an incident, an unknown event.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from uuid import UUID

import msgspec

from headrace.cdc.decode.gtid import MariaDBGtids, MySQLGtidSet
from headrace.cdc.decode.mysqlpayload import payload_events, tagged_gtid
from headrace.cdc.decode.mysqlstatement import Kind, read_statement
from headrace.cdc.decode.mysqlvalue import RowReader
from headrace.cdc.decode.tablemap import TableMap, packed, parse_table_map
from headrace.cdc.decode.tableversion import SchemaNews, TableVersion, versioned
from headrace.cdc.decode.transaction import Transaction
from headrace.cdc.errors import DecodeError
from headrace.cdc.event import UNCHANGED, Change, Op, Row, TableSchema

_HEADER = struct.Struct("<IBIIIH")
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
    30: ("insert", 2, False), 31: ("update", 2, False), 32: ("delete", 2, False),
    166: ("insert", 1, True), 167: ("update", 1, True), 168: ("delete", 1, True),
    169: ("insert", 2, True), 170: ("update", 2, True), 171: ("delete", 2, True),
}  # fmt: skip
"""Code -> what happened, version of the post-header, compressed by MariaDB's log_bin_compress."""
_SKIPPED = frozenset(
    (_STOP, _INTVAR, _RAND, _USER_VAR, _HEARTBEAT, _HEARTBEAT2, _ROWS_QUERY, _PREVIOUS_GTIDS, _TRANSACTION_CONTEXT)
    + (_VIEW_CHANGE, _ANNOTATE, _CHECKPOINT, _GTID_LIST, _ENCRYPTION)
)
_STANDALONE = 1


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


class BinlogTransaction(Transaction):
    """place: behind it. gtid: its id, "" without. xid counts as the sequence number of the id."""

    __slots__ = ("gtid", "place")

    def __init__(
        self,
        changes: list[Change],
        news: list[SchemaNews],
        *,
        xid: int,
        commit_us: int,
        size_bytes: int,
        gtid: str,
        place: BinlogPlace,
    ) -> None:
        super().__init__(xid, place.pos, commit_us, changes, size_bytes, news)
        self.gtid = gtid
        self.place = place


class _Mapped:
    """A table map as this reader uses it. table: with its version, once a row of it was met."""

    def __init__(self, table: TableMap, *, is_wanted: bool) -> None:
        self.is_wanted = is_wanted
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
    server_time_us: of the newest event.
    """

    def __init__(
        self,
        id_prefix: str,
        versions: dict[int, TableVersion],
        *,
        place: BinlogPlace,
        gtids: MySQLGtidSet | MariaDBGtids,
        wants: Callable[[str, str], bool] = lambda schema, table: True,
    ) -> None:
        self.versions = versions
        self.place = place
        self.passed = place
        self.gtids = gtids
        self.transactions: list[BinlogTransaction] = []
        self.in_transaction = False
        self.server_time_us = 0
        self._id_prefix = id_prefix
        self._wants = wants
        self._has_checksums: bool | None = None
        self._maps: dict[bytes, _Mapped] = {}
        self._by_id: dict[int, _Mapped] = {}
        self._rows: list[_Raw] = []
        self._size = 0
        self._savepoints: list[tuple[str, int]] = []
        self._prepared: dict[str, list[_Raw]] = {}
        self._gtid: tuple[str, str, int] | None = None  # text; source or domain and server; number
        self._is_standalone = False
        self._ends = False
        self._server = 0

    def feed(self, event: bytes) -> None:
        """One whole event, header and checksum included. Raises DecodeError, with the place before the event."""
        try:
            self._feed(event)
        except DecodeError as error:
            if error.position:
                raise
            raise DecodeError(error.args[0], position=str(self.place)) from error

    def _feed(self, event: bytes) -> None:
        if len(event) < _HEADER.size:
            raise DecodeError("an event shorter than its header", kind="event", index=len(event))
        seconds, kind, self._server, size, log_pos, flags = _HEADER.unpack_from(event)
        if size != len(event):
            raise DecodeError("an event of another length than it says", kind=f"event {kind}", index=9)
        body = self._checked(event, kind)
        if seconds:
            self.server_time_us = seconds * 1_000_000
        self._event(kind, body, flags)
        if log_pos and not flags & _ARTIFICIAL and kind not in (_ROTATE, _HEARTBEAT, _HEARTBEAT2):
            self._move(log_pos, size)
        elif kind == _HEARTBEAT and log_pos:
            self._pulse(body.rstrip(b"\x00").decode("utf-8", "replace"), log_pos)
        self._end_of_event(kind)
        if not self.in_transaction and order_of(self.place) > order_of(self.passed):
            self.passed = self.place

    def _pulse(self, file: str, log_pos: int) -> None:
        """An idle server says how far it has come: what it left out, being of transactions that we have, is behind us too."""
        near = self.place.pos if file == self.place.file else 0
        told = BinlogPlace(file, (near >> 32 << 32) | log_pos)
        if not self.in_transaction and order_of(told) > order_of(self.passed):
            self.passed = told

    def _checked(self, event: bytes, kind: int) -> bytes:
        """The body, without header and checksum."""
        end = len(event) - _CRC_BYTES
        if kind == _FORMAT:
            # The byte before its checksum, which it always has, says whether the others have one.
            self._has_checksums = end > _HEADER.size and event[end - 1] == 1
        fits = end >= _HEADER.size and zlib.crc32(event[:end]) == _U32.unpack_from(event, end)[0]
        if self._has_checksums is None:
            return event[_HEADER.size : end if fits else None]  # the first rotation comes before the format is told
        if not self._has_checksums:
            return event[_HEADER.size :] if kind != _FORMAT else event[_HEADER.size : end]
        if not fits:
            raise DecodeError("a checksum that doesn't fit", kind=f"event {kind}", index=end)
        return event[_HEADER.size : end]

    def _move(self, log_pos: int, size: int) -> None:
        """log_pos has 32 bits, and files may be larger: what it lacks comes from counting."""
        counted = self.place.pos + size
        high = counted >> 32 << 32
        pos = high | log_pos
        if pos < counted and counted - pos > 1 << 31:
            pos += 1 << 32
        self.place = BinlogPlace(self.place.file, pos)

    def _event(self, kind: int, body: bytes, flags: int) -> None:
        try:
            if kind in _ROWS:
                self._take_rows(kind, body)
            elif kind == _TABLE_MAP:
                self._take_map(body)
            elif kind == _QUERY:
                self._take_query(body)
            elif kind == _QUERY_COMPRESSED:
                self._take_query(body, is_compressed=True)
            elif kind == _MARIADB_GTID:
                self._begin_mariadb(body)
            elif kind == _GTID:
                self._begin_mysql(body)
            elif kind == _GTID_TAGGED:
                self._open()
                source, number = tagged_gtid(body)
                self._gtid = (f"{source}:{number}", source, number)
            elif kind == _PAYLOAD:
                self._take_payload(body)
            elif kind == _ANONYMOUS:
                self._gtid = None
            elif kind == _ROTATE:
                self.place = BinlogPlace(body[8:].decode(), _U64.unpack_from(body)[0])
                self._by_id = {}
            elif kind == _XA_PREPARE:
                self._prepare(body)
            elif kind == _FORMAT:
                self._by_id = {}
            elif kind == _INCIDENT:
                raise DecodeError(
                    "the server reports an incident: changes are missing from its binlog", kind="Incident"
                )
            elif kind not in _SKIPPED and kind != _XID and not flags & _IGNORABLE:
                raise DecodeError("an event of an unknown kind, which may hold rows", kind=f"event {kind}")
        except (IndexError, struct.error, UnicodeDecodeError, zlib.error) as error:
            raise DecodeError("an event that ends too early, or makes no sense", kind=f"event {kind}") from error

    def _end_of_event(self, kind: int) -> None:
        """What ends a transaction does so behind its own place."""
        if kind == _XID:
            self._commit()
        elif self._ends:
            self._ends = False
            self._commit()

    # identity

    def _begin_mariadb(self, body: bytes) -> None:
        (sequence,) = _U64.unpack_from(body)
        (domain,) = _U32.unpack_from(body, 8)
        flags = body[12]
        self._open()
        self._gtid = (f"{domain}-{self._server}-{sequence}", str(domain), sequence)
        self._is_standalone = bool(flags & _STANDALONE)

    def _begin_mysql(self, body: bytes) -> None:
        source = str(UUID(bytes=body[1:17]))
        (number,) = _U64.unpack_from(body, 17)
        self._open()
        self._gtid = (f"{source}:{number}", source, number)

    def _open(self) -> None:
        if self._rows:
            raise DecodeError("a transaction begins inside another", kind="Gtid")
        self.in_transaction = True
        self._savepoints = []
        self._size = 0
        self._is_standalone = False

    def _take_payload(self, body: bytes) -> None:
        """What MySQL's binlog_transaction_compression put into one event; it ends behind that one's place."""
        for event in payload_events(body):
            kind, flags = event[4], event[17] | event[18] << 8
            if kind == _PAYLOAD or self._ends:
                raise DecodeError("a compressed transaction that goes on behind its end", kind="Transaction_payload")
            self._event(kind, event[_HEADER.size :], flags)
            self._ends = self._ends or kind == _XID

    # statements

    def _take_query(self, body: bytes, *, is_compressed: bool = False) -> None:
        schema_length = body[8]
        (status_length,) = _U16.unpack_from(body, 11)
        start = 13 + status_length
        schema = body[start : start + schema_length].decode()
        raw = body[start + schema_length + 1 :]
        query = (_inflated(raw) if is_compressed else raw).decode("utf-8", "replace")
        statement = read_statement(query)
        match statement.kind:
            case Kind.BEGIN:
                self.in_transaction = True
            case Kind.COMMIT:
                self._ends = True
            case Kind.ROLLBACK:
                self._rows = []
                self._ends = True
            case Kind.SAVEPOINT:
                self._savepoints.append((statement.name, len(self._rows)))
            case Kind.ROLLBACK_TO:
                self._roll_back_to(statement.name)
            case Kind.XA_COMMIT | Kind.XA_ROLLBACK:
                rows = self._prepared.pop(_xa_name(statement.name), None)
                if rows is None and statement.kind is Kind.XA_COMMIT:
                    raise DecodeError(
                        f"XA transaction {statement.name} commits, and its rows were read before this process started",
                        kind="Query",
                    )
                self._rows = rows if rows is not None and statement.kind is Kind.XA_COMMIT else []
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
                # DDL is a transaction of its own; inside one (CREATE TABLE ... SELECT) it ends nothing.
                self._ends = self._is_standalone or not self._rows

    def _roll_back_to(self, name: str) -> None:
        for place in range(len(self._savepoints) - 1, -1, -1):
            if self._savepoints[place][0] == name:
                del self._rows[self._savepoints[place][1] :]
                del self._savepoints[place + 1 :]
                return
        raise DecodeError(f'a rollback to the savepoint "{name}", which was never made', kind="Query")

    def _truncate(self, schema: str, table: str) -> None:
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

    def _prepare(self, body: bytes) -> None:
        """Rows of an XA transaction whose outcome comes later, perhaps after others, or after a restart."""
        one_phase = body[0]
        format_id, first, second = struct.unpack_from("<III", body, 1)
        name = body[13 : 13 + first + second]
        if one_phase:
            self._ends = True
            return
        self._prepared[f"{name[:first].hex()}.{name[first:].hex()}.{format_id}"] = self._rows
        self._rows = []
        self._ends = True

    # rows

    def _take_map(self, body: bytes) -> None:
        known = self._maps.get(body[8:])
        if known is None:
            if len(self._maps) > 10_000:
                self._maps.clear()
            table = parse_table_map(body, self._wants, is_mariadb=isinstance(self.gtids, MariaDBGtids))
            known = self._maps[body[8:]] = _Mapped(table, is_wanted=self._wants(table.schema, table.table))
        self._by_id[int.from_bytes(body[:6], "little")] = known

    def _take_rows(self, kind: int, body: bytes) -> None:
        op, version, is_compressed = _ROWS[kind]
        table_id = int.from_bytes(body[:6], "little")
        if table_id == 0xFFFFFF:
            return  # a dummy that ends a statement
        mapped = self._by_id.get(table_id)
        if mapped is None:
            raise DecodeError("rows of a table that was not announced", kind=f"event {kind}")
        if not mapped.is_wanted:
            return
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
        read, rows, end = mapped.reader.read, self._rows, len(data)
        self._size += end
        while pos < end:
            image, pos = read(data, pos, first)
            if op == "insert":
                rows.append((mapped, op, None, image))
            elif op == "delete":
                rows.append((mapped, op, image, None))
            else:
                after, pos = read(data, pos, second)
                rows.append((mapped, op, image, _filled(after, image)))

    def _commit(self) -> None:
        rows, self._rows = self._rows, []
        self.in_transaction = False
        gtid, self._gtid = self._gtid, None
        name, source, number = gtid or ("", "", 0)
        if gtid is not None:
            if isinstance(self.gtids, MySQLGtidSet):
                self.gtids = self.gtids.with_one(source, number)
            else:
                self.gtids = self.gtids.with_one(int(source), int(name.split("-")[1]), number)
        place, commit_us = self.place, self.server_time_us
        position = f"{name or place}:"
        identifier = f"{self._id_prefix}{name or place}-"
        xid = number & 0xFFFFFFFF
        changes: list[Change] = []
        news: list[SchemaNews] = []
        last = len(rows) - 1
        for ordinal, (mapped, op, before, after) in enumerate(rows):
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
        self.transactions.append(
            BinlogTransaction(
                changes, news, xid=xid, commit_us=commit_us, size_bytes=self._size, gtid=name, place=place
            )
        )
        self._size = 0


def _filled(after: Row, before: Row) -> Row:
    """What an image leaves out because it didn't change, from the old one where that has it."""
    if UNCHANGED not in after:
        return after
    return tuple([old if new is UNCHANGED else new for new, old in zip(after, before, strict=True)])


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


def _xa_name(text: str) -> str:
    """The name in ``XA COMMIT X'6162',X'',1`` as XA_prepare has it."""
    parts = [part.strip() for part in text.split(",")]
    words = [part[2:-1] if part[:2].upper() == "X'" else part.strip("'").encode().hex() for part in parts[:2]]
    words += [""] * (2 - len(words))
    return f"{words[0].lower()}.{words[1].lower()}.{parts[2] if len(parts) > 2 else 1}"


__all__ = ["BinlogDecoder", "BinlogPlace", "BinlogTransaction", "order_of"]
