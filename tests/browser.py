"""A real Chromium, one tab, by its own protocol."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_READY_S = 60


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            answer = (await self._socket.receive()).json()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    async def value(self, expression: str) -> Any:
        """What the expression, or its promise, gives; an exception in the page fails the test."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until the expression is true in the page."""
        while not await self.value(expression):
            await asyncio.sleep(0.02)  # a poll of another process: its page has no event for us to wait on


@contextlib.asynccontextmanager
async def page_at(url: str, folder: Path, *, width: int = 1280, height: int = 1100) -> AsyncGenerator[Page]:
    """A loaded page; all within a minute. folder: for the browser's profile. Skips where Chromium is missing."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is missing: apt-get install -y --no-install-recommends chromium")
    process = await asyncio.create_subprocess_exec(
        chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},{height}", "--remote-debugging-port=0", url, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_READY_S), aiohttp.ClientSession() as http:
            assert process.stderr is not None
            while not (line := (await process.stderr.readline()).decode()).startswith("DevTools listening"):
                assert process.returncode is None
            port = line.split("/")[2].rpartition(":")[2]
            origin = "/".join(url.split("/")[:3])
            tabs: list[dict[str, Any]] = []
            while not any(tab["type"] == "page" and tab["url"].startswith(origin) for tab in tabs):
                async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                    tabs = await answer.json()
            tab = next(tab for tab in tabs if tab["type"] == "page" and tab["url"].startswith(origin))
            async with http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=1 << 26) as socket:
                page = Page(socket)
                # A tab is "complete" before it goes anywhere, too.
                await page.until("document.readyState === 'complete' && location.href.startsWith('http')")
                yield page
    finally:
        process.kill()
        await process.wait()
