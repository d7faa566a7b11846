"""What every part of headrace.yaml is made of: sections that refuse unknown keys, and quantities that carry their unit."""

from __future__ import annotations

import re

from msgspec import Struct

_DURATION_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Duration:
    """A time span; written as text with a unit in the file: ``500ms``, ``5s``, ``10m``, ``1h``, ``7d``."""

    __slots__ = ("us",)

    def __init__(self, us: int) -> None:
        self.us = us

    def __repr__(self) -> str:
        return f"Duration(us={self.us})"

    @property
    def s(self) -> float:
        return self.us / 1_000_000

    @classmethod
    def parse(cls, text: str) -> Duration:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|m|h|d)", text.strip())
        if match is None:
            raise ValueError(f'{text!r} is no duration; write a number with a unit, such as "500ms", "5s" or "7d"')
        return cls(round(float(match[1]) * _DURATION_UNITS_S[match[2]] * 1_000_000))


class Size:
    """A number of bytes; written as text with a unit in the file: ``64MiB``, ``10GiB``."""

    __slots__ = ("bytes",)

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes

    def __repr__(self) -> str:
        return f"Size(bytes={self.bytes})"

    @classmethod
    def parse(cls, text: str) -> Size:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(B|KiB|MiB|GiB|TiB)", text.strip())
        if match is None:
            raise ValueError(f'{text!r} is no size; write a number with a unit, such as "64MiB" or "10GiB"')
        return cls(round(float(match[1]) * _SIZE_UNITS[match[2]]))


class Section(Struct, forbid_unknown_fields=True, frozen=True):
    """Base of every section of the file: unknown keys are refused."""


__all__ = ["Duration", "Section", "Size"]
