"""The packets of a binlog dump, joined to events. Sans-I/O: bytes in, events out.

Follows the MySQL 9 source documentation, "MySQL Packets" and "COM_BINLOG_DUMP". A packet is a 3-byte length, a 1-byte sequence number and
that many bytes; one of 0xFFFFFF bytes goes on in the next. The first payload byte says what it is: 0x00 an event, 0xFE (in a short
packet) the end, 0xFF an error.
"""

from __future__ import annotations

import struct

from headrace.cdc.errors import DecodeError

_HEAD = 4
_LONGEST = 0xFFFFFF
_MAX_EVENT_BYTES = (1 << 30) + (1 << 20)
"""max_allowed_packet is 1 GiB at most."""
_CODE = struct.Struct("<H")


class EventPackets:
    """events: whole ones since the last look, without the leading zero; the caller takes them. is_over: the server sent an end.

    error: (code, words) of an error packet, the last thing that comes.
    """

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.is_over = False
        self.error: tuple[int, str] | None = None
        self._buffer = bytearray()
        self._needed = 0  # bytes until the packet that has begun is whole
        self._joined = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes as they came from the socket. Raises DecodeError for what is no packet of a dump."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        at, size, events = 0, len(data), self.events
        self._needed = _HEAD
        while size - at >= _HEAD:
            length = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            end = at + _HEAD + length
            if size < end:
                self._needed = end - at
                break
            if length == _LONGEST or self._joined:
                self._join(data[at + _HEAD : end], is_last=length < _LONGEST)
            elif length and data[at + _HEAD] == 0:
                events.append(data[at + _HEAD + 1 : end])
            else:
                self._take(data[at + _HEAD : end])
            at = end
        self._buffer += memoryview(data)[at:]

    def _join(self, piece: bytes, *, is_last: bool) -> None:
        self._joined += piece
        if len(self._joined) > _MAX_EVENT_BYTES:
            raise DecodeError("an event larger than a gigabyte", kind="packet")
        if is_last:
            whole, self._joined = bytes(self._joined), bytearray()
            self._take(whole)

    def _take(self, payload: bytes) -> None:
        kind = payload[0] if payload else -1
        if kind == 0x00:
            self.events.append(payload[1:])
        elif kind == 0xFE and len(payload) < 9:
            self.is_over = True
        elif kind == 0xFF and len(payload) >= 3:
            words = payload[3:].decode("utf-8", "replace")
            self.error = (_CODE.unpack_from(payload, 1)[0], words[6:] if words.startswith("#") else words)
        else:
            raise DecodeError("a packet that is neither event, end nor error", kind="packet", index=0)


__all__ = ["EventPackets"]
