"""Two forms that MySQL's binlog took on later: a whole transaction in one compressed event, and an id with a tag.

Follows the MySQL 9 source documentation, "Transaction_payload_event" and "Library: serialization".
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from uuid import UUID

import zstandard

from headrace.cdc.decode.tablemap import packed
from headrace.cdc.errors import DecodeError

_HEADER_BYTES = 19
_LARGEST_EVENT_BYTES = 1 << 30
_END, _SIZE, _METHOD, _RAW_SIZE = 0, 1, 2, 3
_ZSTD, _PLAIN = 0, 255
_SOURCE, _NUMBER, _TAG = 1, 2, 3


def payload_events(body: bytes) -> Iterator[bytes]:
    """The events of a Transaction_payload, headers included, without checksums. No more than one of them is unpacked at a time.

    Raises DecodeError for a method that isn't known, and for data that doesn't unpack to what it says.
    """
    fields: dict[int, int] = {}
    pos = 0
    while True:
        kind, pos = packed(body, pos)
        if kind == _END:
            break
        length, pos = packed(body, pos)
        fields[kind] = packed(body[pos : pos + length], 0)[0]
        pos += length
    method = fields.get(_METHOD, _PLAIN)
    if method not in (_ZSTD, _PLAIN):
        raise DecodeError("a transaction compressed by an unknown method", kind="Transaction_payload", index=pos)
    if fields.get(_SIZE, len(body) - pos) != len(body) - pos:
        raise DecodeError("a compressed transaction of another size than told", kind="Transaction_payload", index=pos)
    packed_bytes = io.BytesIO(body[pos:])
    plain = zstandard.ZstdDecompressor().stream_reader(packed_bytes) if method == _ZSTD else packed_bytes
    left = fields.get(_RAW_SIZE, len(body) - pos)
    try:
        while left:
            head = _exactly(plain, _HEADER_BYTES)
            size = int.from_bytes(head[9:13], "little")
            if not _HEADER_BYTES <= size <= min(left, _LARGEST_EVENT_BYTES):
                raise DecodeError("an event of an impossible length in a compressed transaction", index=9)
            yield head + _exactly(plain, size - _HEADER_BYTES)
            left -= size
        if plain.read(1):
            raise DecodeError("a compressed transaction that is longer than told", kind="Transaction_payload")
    except zstandard.ZstdError as error:
        raise DecodeError("a compressed transaction that can't be unpacked", kind="Transaction_payload") from error


def _exactly(stream: zstandard.ZstdDecompressionReader | io.BytesIO, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = stream.read(size)
        if not part:
            raise DecodeError("a compressed transaction that ends too early", kind="Transaction_payload")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def tagged_gtid(body: bytes) -> tuple[str, int]:
    """Source (``uuid`` or ``uuid:tag``) and number of a Gtid_tagged event. Raises IndexError when it ends too early, DecodeError for another form."""
    version, pos = _varying(body, 0)
    if version != 1:
        raise DecodeError("a transaction id of an unknown form", kind="Gtid_tagged", index=0)
    _, pos = _varying(body, pos)  # its size
    _, pos = _varying(body, pos)  # the last field that must be understood
    source, number, tag = b"", 0, ""
    while True:
        field, pos = _varying(body, pos)
        if field == _SOURCE:
            octets: list[int] = []
            for _ in range(16):
                octet, pos = _varying(body, pos)
                octets.append(octet)
            source = bytes(octets)
        elif field == _NUMBER:
            # Signed: the lowest bit is the sign.
            zigzag, pos = _varying(body, pos)
            number = zigzag >> 1
        elif field == _TAG:
            length, pos = _varying(body, pos)
            tag = body[pos : pos + length].decode("ascii")
            break
        else:
            _, pos = _varying(body, pos)
    if len(source) != 16 or number < 1:
        raise DecodeError("a transaction id that lacks its server or number", kind="Gtid_tagged", index=0)
    uuid = str(UUID(bytes=source))
    return f"{uuid}:{tag}" if tag else uuid, number


def _varying(body: bytes, pos: int) -> tuple[int, int]:
    """An integer of 1 to 9 bytes, and the index behind it: the first byte has as many ones at its low end as bytes follow."""
    first = body[pos]
    more = 0
    while more < 8 and first >> more & 1:
        more += 1
    end = pos + 1 + more
    if end > len(body):
        raise IndexError
    if more == 8:
        return int.from_bytes(body[pos + 1 : end], "little"), end
    return int.from_bytes(body[pos:end], "little") >> (more + 1), end


def varying(number: int) -> bytes:
    """A non-negative integer in that form."""
    for more in range(8):
        if number < 1 << (7 * (more + 1)):
            return (number << (more + 1) | (1 << more) - 1).to_bytes(more + 1, "little")
    return b"\xff" + number.to_bytes(8, "little")


__all__ = ["payload_events", "tagged_gtid", "varying"]
