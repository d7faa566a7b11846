"""The documented EventSource lines in a real browser, on this server's own page: events arrive, and a reconnect goes on where it was."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from serving import serving
from shop_log import ShopLog, order_event

LINES = re.search(r"```js\n(.*?)```", (Path(__file__).parents[2] / "docs" / "subscriptions.md").read_text(), re.DOTALL)
COLLECT = """
new Promise((resolve) => {
  const seen = []
  const console = { log: (id, event) => { seen.push([id, event.offset]); if (seen.length === COUNT) { events.close(); resolve(JSON.stringify(seen)) } } }
  LINES
})
"""


class Page:
    """One tab, by Chromium's own protocol."""

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


@pytest.mark.matrix("chromium")
async def test_the_documented_lines_receive_events_and_resume(tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is missing: apt-get install -y --no-install-recommends chromium")
    assert LINES is not None
    log = ShopLog()
    async with serving(log) as served:
        process = await asyncio.create_subprocess_exec(
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
            "--remote-debugging-port=0", served.url + "/", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(60):
                assert process.stderr is not None
                while not (line := (await process.stderr.readline()).decode()).startswith("DevTools listening"):
                    assert process.returncode is None
                port = line.split("/")[2].rpartition(":")[2]
                async with aiohttp.ClientSession() as http:
                    tabs: list[dict[str, Any]] = []
                    while not any(tab["type"] == "page" and tab["url"].startswith(served.url) for tab in tabs):
                        async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                            tabs = await answer.json()
                    tab = next(tab for tab in tabs if tab["type"] == "page" and tab["url"].startswith(served.url))
                    async with http.ws_connect(tab["webSocketDebuggerUrl"]) as socket:
                        page = Page(socket)
                        # A tab is "complete" before it goes anywhere, too.
                        loaded = "document.readyState === 'complete' && location.href.startsWith('http')"
                        while not (await page.call("Runtime.evaluate", expression=loaded))["result"]["value"]:
                            await asyncio.sleep(0.01)
                        lines = LINES[1].replace("name=Order+Completed", "from=earliest")
                        script = COLLECT.replace("LINES", lines).replace("COUNT", "6")

                        async def write() -> None:
                            await log.append([order_event(number) for number in range(3)])
                            while not served.subscriptions.status()["readers"]:
                                await asyncio.sleep(0.005)
                            # Cut every connection of the browser: EventSource comes again with Last-Event-ID.
                            for reader in list(served.subscriptions._readers):
                                transport = reader.request.transport
                                if transport is not None:
                                    transport.abort()
                            await log.append([order_event(number) for number in range(3, 6)])

                        writing = asyncio.create_task(write())
                        found = await page.call("Runtime.evaluate", expression=script, awaitPromise=True)
                        assert "exceptionDetails" not in found, found
                        await writing
                        seen = json.loads(found["result"]["value"])
            assert seen == [[f"g1.{offset + 1}", offset] for offset in range(6)]
        finally:
            process.kill()
            await process.wait()
