"""The rows of an XA transaction that has committed, read from where it was prepared.

Between the two phases anything may lie: other transactions, a restart of either side, another server. So nothing is kept of the rows but their
place, and a second reader of the binlog fetches them when they count.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from headrace.cdc.decode.binlog import BinlogDecoder, BinlogTransaction
from headrace.cdc.decode.binlogplace import Prepared, order_of
from headrace.cdc.decode.tablemap import Unnamed
from headrace.cdc.errors import HistoryMismatch, SourceUnavailable
from headrace.cdc.sources.binlogstream import BinlogStream

_SILENCE_S = 30.0


class PreparedRows:
    """Begins to read at the first ``parts``. outcome: the transaction whose rows these are."""

    def __init__(
        self,
        arguments: dict[str, Any],
        outcome: BinlogTransaction,
        *,
        decoder: Callable[[Prepared, BinlogTransaction], BinlogDecoder],
        source: str,
        has_gtids: bool,
    ) -> None:
        assert outcome.rows_at is not None
        self.outcome = outcome
        self._rows = outcome.rows_at
        self._decoder = decoder(self._rows, outcome)
        self._arguments = arguments
        self._source = source
        self._has_gtids = has_gtids
        self._stream: BinlogStream | None = None
        self._events: deque[bytes] = deque()

    async def parts(self, timeout_s: float) -> list[BinlogTransaction]:
        """What could be read in that time, perhaps nothing; the last part has ``is_part`` False.

        Raises HistoryMismatch when the binlog hasn't got them any more; else as BinlogStream.events and BinlogDecoder.feed do. After
        Unnamed it goes on where it was.
        """
        decoder = self._decoder
        if self._stream is None:
            gtids = decoder.gtids if self._has_gtids else type(decoder.gtids)()
            # A server id of its own: under that of the stream one of the two would be thrown out.
            self._stream = BinlogStream(
                self._arguments, server_id=random.randrange(1 << 31, (1 << 32) - 1), source=self._source
            )
            await self._stream.start(self._rows.place, gtids)
        if not self._events and not decoder.is_unpacking:
            self._events.extend(await self._stream.events(timeout_s))
        if decoder.is_unpacking:
            decoder.go_on()
        while self._events and not decoder.is_unpacking:
            event = self._events.popleft()
            try:
                decoder.feed(event)
            except Unnamed:
                if not decoder.is_unpacking:
                    self._events.appendleft(event)
                raise
            if decoder.transactions and not decoder.transactions[-1].is_part:
                break
        parts, decoder.transactions = decoder.transactions, []
        if not parts:
            self._hold(self._stream)
        return parts

    def _hold(self, stream: BinlogStream) -> None:
        if order_of(self._decoder.passed) >= order_of(self.outcome.place):
            raise HistoryMismatch(
                f'source "{self._source}": XA transaction {self.outcome.xa} has committed, and its rows, prepared at {self._rows.place}, '
                "are not in the server's binlog",
                source=self._source,
            )
        if time.monotonic() - stream.heard_at > _SILENCE_S:
            raise SourceUnavailable(
                f'the server of source "{self._source}" has not answered for {_SILENCE_S:.0f} s', source=self._source
            )

    async def close(self) -> None:
        """Closing twice is fine."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()


__all__ = ["PreparedRows"]
