"""Compressed bodies, unpacked to a limit: a bomb costs what the limit says, whatever it claims to be."""

from __future__ import annotations

import zlib
from typing import Final

_GZIP: Final = b"\x1f\x8b"
_EITHER: Final = 47
"""zlib's wbits for "gzip or zlib, by the header"."""


class TooLargeError(ValueError):
    """More bytes than the limit come out."""


class BrokenError(ValueError):
    """What stands there isn't compressed as it says, or ends too early."""


def is_gzip(body: bytes) -> bool:
    """By the first bytes, as a proxy may have unpacked the body and left the header: no JSON begins so."""
    return body.startswith(_GZIP)


def inflate(body: bytes, limit: int) -> bytes:
    """Unpack gzip (also several members in a row) or zlib. Raises TooLargeError, BrokenError."""
    pieces: list[bytes] = []
    held = 0
    rest = body
    while rest:
        stream = zlib.decompressobj(_EITHER)
        try:
            piece = stream.decompress(rest, limit - held + 1)
        except zlib.error as error:
            if pieces and not is_gzip(rest):
                break  # padding behind the last member
            raise BrokenError("the body is no valid gzip") from error
        held += len(piece)
        if held > limit:
            raise TooLargeError(f"the body unpacks to more than {limit} bytes")
        if not stream.eof:
            raise BrokenError("the gzip ends too early")
        pieces.append(piece)
        rest = stream.unused_data
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
