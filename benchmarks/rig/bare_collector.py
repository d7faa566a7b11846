"""What a collector can't do without, and no more: aiohttp on uvloop, the body read and its JSON decoded, "ok". Nothing is kept.

python -m rig.bare_collector PORT
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop
from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    msgspec.json.decode(await request.read())
    return web.Response(text="ok")


async def main(port: int) -> None:
    application = web.Application(client_max_size=16 << 20)
    application.add_routes([web.post("/v1/track", answer), web.post("/v1/batch", answer)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
