"""Which offsets of one partition are done: a contiguous cursor, and flags for what lies between it and the scan.

::

    offsets   ... done done | 0 1 1 0 0 1 0 | not looked at yet ...
                            next            scan

``next`` only ever passes an offset that is done, which is why nothing is lost; what is done beyond it is kept as flags, so that a
restart sends it no second time. One byte an offset in memory, one bit in the checkpoint. Pure: no loop, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_COMPACT: Final = 8_192
_TO_DIGITS: Final = bytes.maketrans(b"\x00\x01", b"01")
_VERSION: Final = b"\x01"


class Ledger:
    """next: the first offset that isn't done. scan: the first offset nobody has looked at. next <= scan."""

    __slots__ = ("_base", "_flags", "next", "scan")

    def __init__(self, offset: int, state: bytes = b"") -> None:
        """offset and state: of a checkpoint (see ``state``). Raises ValueError for a state this version doesn't know."""
        self.next = offset
        self.scan = offset
        self._base = offset
        self._flags = bytearray()
        if state:
            if state[:1] != _VERSION:
                raise ValueError("the sink's checkpoint was written by a newer version of headrace")
            digits = bin(int.from_bytes(state[1:], "big"))[3:]  # the leading 1 keeps the zeros behind it
            self._flags = bytearray(digits.encode().translate(bytes.maketrans(b"01", b"\x00\x01")))
            self._advance()

    @property
    def span(self) -> int:
        """Offsets between the cursor and the scan: what the flags take."""
        return self.scan - self.next

    def is_done(self, offset: int) -> bool:
        """Also True for what a former run has finished."""
        if offset < self.next:
            return True
        index = offset - self._base
        return index < len(self._flags) and self._flags[index] == 1

    def look(self, offset: int) -> bool:
        """The scan passes offset; offsets come one after another. False: it is done already, from before a restart."""
        self.scan = offset + 1
        index = offset - self._base
        if index < 0:
            return False
        if index < len(self._flags):
            return self._flags[index] == 0
        self._flags.append(0)
        return True

    def done(self, offset: int) -> None:
        """offset has been looked at, and nothing is left to do about it. Idempotent."""
        if offset < self.next:
            return
        self._flags[offset - self._base] = 1
        if offset == self.next:
            self._advance()

    def known(self, offsets: Iterable[int]) -> None:
        """Before the scan begins: these are done as well, whatever the checkpoint says. Those before the cursor are left alone."""
        for offset in offsets:
            index = offset - self._base
            if index >= 0:
                if index >= len(self._flags):
                    self._flags.extend(bytes(index + 1 - len(self._flags)))
                self._flags[index] = 1
        self._advance()

    def state(self) -> bytes:
        """The flags beyond the cursor for a checkpoint; b"" when nothing beyond it is done."""
        flags = self._flags[self.next - self._base :].rstrip(b"\x00")
        if not flags:
            return b""
        number = int(b"1" + flags.translate(_TO_DIGITS), 2)
        return _VERSION + number.to_bytes((number.bit_length() + 7) // 8, "big")

    def _advance(self) -> None:
        at = self._flags.find(0, self.next - self._base)
        self.next = self._base + (len(self._flags) if at < 0 else at)
        self.scan = max(self.scan, self.next)
        if self.next - self._base >= _COMPACT:
            del self._flags[: self.next - self._base]
            self._base = self.next


__all__ = ["Ledger"]
