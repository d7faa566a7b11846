"""The server's character sets as Python codecs, by collation id.

Names and ids follow ``information_schema.collations``. Where Python has no codec a value stays bytes, marked as undecodable: never guessed.
"""

from __future__ import annotations

from headrace.cdc.event import UNDECODABLE, Absent

BINARY = 63

# First and last id of each run; information_schema.collations of MySQL 9 and MariaDB 10.11 and 11.8 agree on them.
_RUNS: dict[str, tuple[tuple[int, int], ...]] = {
    "armscii8": ((32, 32), (64, 64)),
    "ascii": ((11, 11), (65, 65)),
    "big5": ((1, 1), (84, 84)),
    "binary": ((63, 63),),
    "cp1250": ((26, 26), (34, 34), (44, 44), (66, 66), (99, 99)),
    "cp1251": ((14, 14), (23, 23), (50, 52)),
    "cp1256": ((57, 57), (67, 67)),
    "cp1257": ((29, 29), (58, 59)),
    "cp850": ((4, 4), (80, 80)),
    "cp852": ((40, 40), (81, 81)),
    "cp866": ((36, 36), (68, 68)),
    "cp932": ((95, 96),),
    "dec8": ((3, 3), (69, 69)),
    "eucjpms": ((97, 98),),
    "euckr": ((19, 19), (85, 85)),
    "gb18030": ((248, 250),),
    "gb2312": ((24, 24), (86, 86)),
    "gbk": ((28, 28), (87, 87)),
    "geostd8": ((92, 93),),
    "greek": ((25, 25), (70, 70)),
    "hebrew": ((16, 16), (71, 71)),
    "hp8": ((6, 6), (72, 72)),
    "keybcs2": ((37, 37), (73, 73)),
    "koi8r": ((7, 7), (74, 74)),
    "koi8u": ((22, 22), (75, 75)),
    "latin1": ((5, 5), (8, 8), (15, 15), (31, 31), (47, 49), (94, 94)),
    "latin2": ((2, 2), (9, 9), (21, 21), (27, 27), (77, 77)),
    "latin5": ((30, 30), (78, 78)),
    "latin7": ((20, 20), (41, 42), (79, 79)),
    "macce": ((38, 38), (43, 43)),
    "macroman": ((39, 39), (53, 53)),
    "sjis": ((13, 13), (88, 88)),
    "swe7": ((10, 10), (82, 82)),
    "tis620": ((18, 18), (89, 89)),
    "ucs2": ((35, 35), (90, 90), (128, 151), (159, 159), (640, 643), (2560, 2815)),
    "ujis": ((12, 12), (91, 91)),
    "utf16": ((54, 55), (101, 124), (672, 675), (2816, 3071)),
    "utf16le": ((56, 56), (62, 62)),
    "utf32": ((60, 61), (160, 183), (736, 739), (3072, 3327)),
    "utf8mb3": ((33, 33), (76, 76), (83, 83), (192, 215), (223, 223), (576, 579), (2048, 2303)),
    "utf8mb4": ((45, 46), (224, 247), (255, 323), (608, 611), (2304, 2559)),
}
_NOPAD = 1024
"""MariaDB's collations without padding: this more than the one with."""

_CODECS = {
    "ascii": "ascii",
    "big5": "big5",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1256": "cp1256",
    "cp1257": "cp1257",
    "cp850": "cp850",
    "cp852": "cp852",
    "cp866": "cp866",
    "cp932": "cp932",
    "euckr": "euc_kr",
    "gb18030": "gb18030",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "greek": "iso8859-7",
    "hebrew": "iso8859-8",
    "koi8r": "koi8_r",
    "koi8u": "koi8_u",
    "latin1": "cp1252",
    "latin2": "iso8859-2",
    "latin5": "iso8859-9",
    "latin7": "iso8859-13",
    "macroman": "mac_roman",
    "sjis": "shift_jis",
    "tis620": "tis_620",
    "ucs2": "utf-16-be",
    "ujis": "euc_jp",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
    "utf8mb3": "utf-8",
    "utf8mb4": "utf-8",
}


_CONTROLS = frozenset((0x81, 0x8D, 0x8F, 0x90, 0x9D))
"""Bytes of MySQL's latin1 that cp1252 leaves out."""


_NAMES = {number: name for name, runs in _RUNS.items() for first, last in runs for number in range(first, last + 1)}


def charset_name(collation: int) -> str:
    """Of a collation id; "" for one that isn't known here."""
    name = _NAMES.get(collation)
    if name is None and _NOPAD <= collation < 2 * _NOPAD:
        name = _NAMES.get(collation - _NOPAD)
    return name or ""


def codec_of(collation: int) -> str:
    """Python's codec; "" for bytes (collation ``binary``), "?" where there is none."""
    return "" if collation == BINARY else _CODECS.get(charset_name(collation), "?")


def unreadable_charsets() -> list[str]:
    """The server's names of those without a codec."""
    return sorted(name for name in _RUNS if name != "binary" and name not in _CODECS)


def text_of(data: bytes, codec: str) -> str | Absent:
    """The text, or UNDECODABLE. codec: of ``codec_of``, not ""."""
    if codec == "cp1252":
        return _latin1(data)
    try:
        return data.decode(codec)
    except (UnicodeDecodeError, LookupError):
        return UNDECODABLE


def _latin1(data: bytes) -> str:
    """MySQL's latin1 is cp1252, with the five bytes that that leaves out as the control characters of their number."""
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return "".join(chr(byte) if byte in _CONTROLS else bytes([byte]).decode("cp1252") for byte in data)


def bytes_of(text: str, codec: str) -> bytes:
    """The other way. What the character set lacks comes as UTF-8."""
    if codec == "cp1252":
        return b"".join([bytes([ord(each)]) if ord(each) in _CONTROLS else each.encode("cp1252") for each in text])
    try:
        return text.encode(codec or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return text.encode()


__all__ = ["BINARY", "bytes_of", "charset_name", "codec_of", "text_of", "unreadable_charsets"]
