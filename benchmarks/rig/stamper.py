"""An HTTP destination in a process of its own: notes when each event came, and whether every customer's come in order, once.

    python -m rig.stamper PORT FILE

FILE: what it knew at its end, from which it goes on.
Takes JSON lists of {"n": number, "key": customer, "at": committed, us}. GET /lap answers {"ms": [from commit to here, of each event since the last lap], "doubled": of all,
"disordered": of all, "events": of all} and begins the next lap. Nothing is kept but that.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from array import array
from pathlib import Path

import msgspec
import uvloop
from aiohttp import web


class _Event(msgspec.Struct):
    n: int
    key: str
    at: int


class Stamper:
    def __init__(self) -> None:
        self.ms = array("d")
        self.last: dict[str, int] = {}
        self.doubled = self.disordered = self.events = 0
        self._decode = msgspec.json.Decoder(list[_Event]).decode

    async def take(self, request: web.Request) -> web.Response:
        events = self._decode(await request.read())
        now_us = time.time_ns() / 1000
        for event in events:
            former = self.last.get(event.key, -1)
            if event.n == former:
                self.doubled += 1
            elif event.n < former:
                self.disordered += 1
            self.last[event.key] = max(former, event.n)
            self.ms.append((now_us - event.at) / 1000)
        self.events += len(events)
        return web.Response()

    async def lap(self, request: web.Request) -> web.Response:
        told = {
            "ms": list(self.ms),
            "doubled": self.doubled,
            "disordered": self.disordered,
            "events": self.events,
        }
        self.ms = array("d")
        return web.Response(body=msgspec.json.encode(told))

    def load(self, path: Path) -> None:
        if path.exists():
            known = msgspec.json.decode(path.read_bytes())
            self.last, self.doubled, self.disordered, self.events = (
                known[name] for name in ("last", "doubled", "disordered", "events")
            )

    def save(self, path: Path) -> None:
        known = {name: getattr(self, name) for name in ("last", "doubled", "disordered", "events")}
        path.write_bytes(msgspec.json.encode(known))


async def main(port: int, path: Path) -> None:
    stamper = Stamper()
    stamper.load(path)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    application = web.Application(client_max_size=16 << 20)
    application.add_routes([web.post("/", stamper.take), web.get("/lap", stamper.lap)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await stop.wait()
    await runner.cleanup()
    stamper.save(path)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), Path(sys.argv[2])))
