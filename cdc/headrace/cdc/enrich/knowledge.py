"""What the steps of one pipeline share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.cdc.enrich.fetch import Fetcher
    from headrace.cdc.enrich.mirror import TableMirror
    from headrace.cdc.enrich.records import RecentRecords


class Knowledge:
    """mirror: rows of captured tables, records: what customers were told lately, both to be fed; fetcher: answers of services, for which steps may wait. None where no step asks it."""

    def __init__(self) -> None:
        self.mirror: TableMirror | None = None
        self.records: RecentRecords | None = None
        self.fetcher: Fetcher | None = None

    @property
    def waits(self) -> bool:
        return self.fetcher is not None

    def begin(self) -> None:
        if self.fetcher is not None:
            self.fetcher.begin()

    def close(self) -> None:
        if self.fetcher is not None:
            self.fetcher.close()
        for part in (self.mirror, self.records):
            if part is not None:
                part.close()


__all__ = ["Knowledge"]
