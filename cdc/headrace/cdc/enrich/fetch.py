"""Answers of an HTTP service that a step puts into events: cached, asked for once at a time, and given up in time.

The step waits for an answer, in a thread of its own: at most ``timeout`` for one event and BATCH_S for all that came together. What comes later is
for the next event that asks the same. A service that fails isn't asked for a while.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import msgspec

BATCH_S = 1.0
_CACHED = 50_000
_LARGEST_BYTES = 256 << 10
_AT_ONCE = 32
_FAILURES = 5
_REST_S = 5.0
_LONGEST_S = 10.0


class Fetcher:
    """All steps of one pipeline share it. Any thread but its own may ask; closing twice is fine."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self._asked: dict[str, Future[Any]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._session: Any = None
        self._until: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._batch = threading.local()
        self.asked = 0
        self.late = 0
        self.failed = 0

    def begin(self) -> None:
        """What this thread asks from here on came together."""
        self._batch.until = time.monotonic() + BATCH_S

    def get(self, url: str, *, headers: Mapping[str, str], service: str, timeout_s: float, ttl_s: float) -> Any:
        """The JSON that the service answers, None for 404; raises LookupError when it isn't known in time. service: whose failures count together."""
        now = time.monotonic()
        with self._lock:
            stored = self._answers.get(url)
            if stored is not None and stored[0] > now:
                self._answers.move_to_end(url)
                return stored[1]
            if self._until.get(service, 0.0) > now:
                raise LookupError
            asked = self._asked.get(url)
            if asked is None:
                self.asked += 1
                asked = self._asked[url] = asyncio.run_coroutine_threadsafe(
                    self._fetch(url, dict(headers), service, ttl_s), self._running()
                )
        wait_s = min(timeout_s, getattr(self._batch, "until", now + timeout_s) - now)
        try:
            return asked.result(max(0.0, wait_s))
        except TimeoutError:
            with self._lock:
                self.late += 1
            raise LookupError from None
        except Exception as error:
            raise LookupError from error

    async def _fetch(self, url: str, headers: dict[str, str], service: str, ttl_s: float) -> Any:
        try:
            answer = await self._ask(url, headers)
        except Exception:
            with self._lock:
                self.failed += 1
                self._failures[service] = self._failures.get(service, 0) + 1
                if self._failures[service] >= _FAILURES:
                    self._until[service] = time.monotonic() + _REST_S
                self._asked.pop(url, None)
            raise
        with self._lock:
            self._failures[service] = 0
            self._answers[url] = (time.monotonic() + ttl_s, answer)
            while len(self._answers) > _CACHED:
                self._answers.popitem(last=False)
            self._asked.pop(url, None)
        return answer

    async def _ask(self, url: str, headers: dict[str, str]) -> Any:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_LONGEST_S), connector=aiohttp.TCPConnector(limit=_AT_ONCE)
            )
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            if response.status == 404:
                return None
            if response.status != 200:
                raise LookupError(f"status {response.status}")
            body = await response.content.read(_LARGEST_BYTES + 1)
            while len(body) <= _LARGEST_BYTES and (more := await response.content.read(_LARGEST_BYTES + 1)):
                body += more
            if len(body) > _LARGEST_BYTES:
                raise LookupError("too large")
            return msgspec.json.decode(body)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-fetch", daemon=True)
            self._thread.start()
        return self._loop

    def close(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return

        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._session is not None:
                await self._session.close()

        asyncio.run_coroutine_threadsafe(end(), loop).result(_LONGEST_S)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()


__all__ = ["BATCH_S", "Fetcher"]
