"""What the steps of one pipeline share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.cdc.enrich.fetch import Fetcher
    from headrace.cdc.enrich.mirror import TableMirror


class Knowledge:
    """mirror: rows of captured tables, to be fed; fetcher: answers of services, for which steps may wait. None where no step asks it."""

    def __init__(self) -> None:
        self.mirror: TableMirror | None = None
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
        if self.mirror is not None:
            self.mirror.close()


__all__ = ["Knowledge"]
