"""The documented EventSource lines in a real browser, on this server's own page: events arrive, and a reconnect goes on where it was."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from browser import page_at
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


@pytest.mark.matrix("chromium")
async def test_the_documented_lines_receive_events_and_resume(tmp_path: Path) -> None:
    assert LINES is not None
    log = ShopLog()
    async with serving(log) as served, page_at(served.url + "/", tmp_path) as page:
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
        seen = json.loads(await page.value(script))
        await writing
    assert seen == [[f"g1.{offset + 1}", offset] for offset in range(6)]
