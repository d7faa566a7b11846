"""Keeps consumers running: one that fails is started again, or stays stopped and is shown, and never disturbs another."""

from __future__ import annotations

import asyncio
import logging
import time

from headrace.cdc.consumer import Consumer
from headrace.cdc.errors import Action, HeadraceError

_log = logging.getLogger("headrace.app")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 30.0


class Keeper:
    """troubles: why a consumer doesn't run now, by its name."""

    def __init__(self) -> None:
        self.troubles: dict[str, str] = {}

    async def keep_running(self, consumer: Consumer) -> None:
        """Returns only when the consumer has ended for good; until cancelled otherwise."""
        pauses = Pauses()
        while True:
            pauses.begin()
            try:
                await consumer.run()
                return
            except HeadraceError as error:
                if error.action is not Action.RETRY:
                    # One consumer's final fault is shown in /readyz; the log goes on filling for it.
                    self.troubles[consumer.name] = error.message
                    _log.error("consumer %s stopped: %s", consumer.name, error.paragraph())
                    return
                reason = error.message
            except Exception as error:  # noqa: BLE001 - a consumer's defect is its own: capture and the others go on
                self.troubles[consumer.name] = f"stopped by a defect ({type(error).__name__}); see the process's log"
                _log.exception("consumer %s stopped by a defect: please report it", consumer.name)
                return
            pause_s = pauses.next_s()
            self.troubles[consumer.name] = reason
            _log.warning("consumer %s: %s; starting it again in %.1f s", consumer.name, reason, pause_s)
            await asyncio.sleep(pause_s)
            self.troubles.pop(consumer.name, None)


class Pauses:
    """How long to wait before something is started again: longer each time, until it has run for a while."""

    def __init__(self) -> None:
        self._attempt = 0
        self._began = 0.0

    def begin(self) -> None:
        """It starts now."""
        self._began = time.monotonic()

    def next_s(self) -> float:
        """It has failed: seconds to wait."""
        if time.monotonic() - self._began > _LONGEST_PAUSE_S:
            self._attempt = 0
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**self._attempt)
        self._attempt += 1
        return pause_s


__all__ = ["Keeper", "Pauses"]
