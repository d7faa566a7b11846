"""How far a source is behind its server, and whether the server still keeps what it needs: from the list of its binlog files. Pure."""

from __future__ import annotations

import msgspec

from headrace.cdc.decode.binlog import BinlogPlace, order_of


class BinlogFiles(msgspec.Struct, frozen=True):
    """The server's binlog at one moment: files by name and size in bytes, oldest first; empty when the user may not ask."""

    files: tuple[tuple[str, int], ...] = ()

    @property
    def total_bytes(self) -> int | None:
        return sum(size for _, size in self.files) if self.files else None

    def lag_bytes(self, durable: BinlogPlace, end: BinlogPlace) -> int | None:
        """What stands between a place and the end; None where the place isn't of these files."""
        if not durable.file or not end.file:
            return None
        if order_of(durable) >= order_of(end):
            return 0
        if durable.file == end.file:
            return end.pos - durable.pos
        sizes = dict(self.files)
        if durable.file not in sizes:
            return None
        between = sum(
            size for name, size in self.files if _number(durable) < _number(BinlogPlace(name, 0)) < _number(end)
        )
        return max(0, sizes[durable.file] - durable.pos) + between + end.pos

    def warnings(self, durable: BinlogPlace, end: BinlogPlace) -> list[str]:
        """In a DBA's words; empty when all is well."""
        if len(self.files) > 1 and durable.file == self.files[0][0] and order_of(durable) < order_of(end):
            behind = self.lag_bytes(durable, end) or 0
            return [
                f"the oldest binlog that the server keeps, {durable.file}, is the one that headrace still reads ({behind >> 20} MiB behind): "
                "once it's purged there is a gap (binlog_expire_logs_seconds)"
            ]
        return []


def _number(place: BinlogPlace) -> int:
    return order_of(place)[0]


__all__ = ["BinlogFiles"]
