"""A backfill's parts on several cores: processes that share the rows, by a DuckDB file, and nothing else.

Entities of one part are of no other, so a part's rows come out the same wherever it runs; the files are put together afterwards.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cdc.errors import DefinitionError, HeadraceError, StoreRefused

_TELL_S: Final = 0.2

Work = Callable[["Share", Callable[[int], None]], "Counted"]


class Share(msgspec.Struct, frozen=True):
    """What one process does: parts ``first``, ``first + step``, ... of ``parts``. kept: the rows, as PastRows.keep left them."""

    definitions: Path
    view: str
    kept: Path
    at: str
    key: tuple[str, ...]
    until_us: int
    parts: int
    first: int
    step: int
    out: Path


class Counted(msgspec.Struct):
    """See Backfilled."""

    unreadable: int = 0
    late: int = 0


class _Refused(msgspec.Struct, frozen=True):
    """An error raised on purpose: it has more than an exception carries from one process to another."""

    is_of_disk: bool
    message: str
    advice: str


_done: Any = None
"""Rows done, one number a process; set in each of them."""


def run(work: Work, shares: list[Share], tell: Callable[[int], None]) -> Iterator[tuple[Path, Counted]]:
    """The shares' files as they get ready. tell: rows done so far by all. Raises DefinitionError, StoreRefused."""
    context = multiprocessing.get_context("spawn")  # threads of DuckDB and Arrow don't survive a fork
    done: Any = context.Array("q", len(shares))
    with concurrent.futures.ProcessPoolExecutor(
        len(shares), mp_context=context, initializer=_begin, initargs=(done,)
    ) as pool:
        waiting = {pool.submit(_carry_out, work, share) for share in shares}
        by_out = {share.first: share.out for share in shares}
        while waiting:
            ready, waiting = concurrent.futures.wait(waiting, _TELL_S, concurrent.futures.FIRST_COMPLETED)
            tell(sum(done))
            for future in ready:
                try:
                    first, result = future.result()
                except BrokenProcessPool as error:
                    raise StoreRefused(
                        "a process of the backfill was ended from outside",
                        advice="see whether memory ran out: fewer --cores take less",
                    ) from error
                if isinstance(result, _Refused):
                    for other in waiting:
                        other.cancel()
                    kind = StoreRefused if result.is_of_disk else DefinitionError
                    raise kind(result.message, advice=result.advice)
                yield by_out[first], result


def _begin(done: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends all of them, and the parent says so
    global _done  # noqa: PLW0603  # an initializer has nowhere else to leave what its process shall have
    _done = done


def _carry_out(work: Work, share: Share) -> tuple[int, Counted | _Refused]:
    def tell(rows: int) -> None:
        _done[share.first] = rows

    try:
        return share.first, work(share, tell)
    except HeadraceError as error:
        return share.first, _Refused(isinstance(error, StoreRefused), error.message, error.advice)


__all__ = ["Counted", "Share", "run"]
