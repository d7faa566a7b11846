"""A shop's folder for commands: headrace.yaml, and a log on disk that tests fill."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from headrace.cdc import config
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.sqlite import SQLiteLog

YAML = """
log: {{type: sqlite, path: shop.log.db, partitions: {partitions}}}
sources:
  shop: {{type: postgres, dsn: "host=127.0.0.1 dbname=shop"}}
server: {{listen: "127.0.0.1:{port}", tokens: {tokens}}}
"""


class Shop(msgspec.Struct):
    folder: Path
    partitions: int = 1
    port: int = 1  # nobody listens there
    tokens: dict[str, str] = {}

    @property
    def file(self) -> str:
        path = self.folder / "headrace.yaml"
        tokens = msgspec.json.encode(self.tokens).decode()
        text = YAML.format(partitions=self.partitions, port=self.port, tokens=tokens)
        path.write_text(text)
        return str(path)

    async def open_log(self) -> SQLiteLog:
        loaded = config.load(Path(self.file))
        log: SQLiteLog = await SQLiteLog.from_config(loaded.log.section, loaded)
        return log

    def append(self, events: Sequence[CustomerEvent]) -> None:
        """One append an event, so that a trim can stop anywhere."""

        async def fill() -> None:
            log = await self.open_log()
            for event in events:
                await log.append([event], source="shop", state=b"")
            await log.close()

        asyncio.run(fill())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)
