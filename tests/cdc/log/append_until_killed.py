"""A writer to be killed. Each line on stdin, ``path seed``, forks a process that appends until it is killed; its pid is printed, and
``gone`` once it is. Forked rather than started: thirty kills cost thirty times a few milliseconds.

What the process appends follows from seed and batch number alone (see ``batch``), so the test can say what the log must hold. Each
acknowledged batch adds one byte to ``<path>.acked``: bytes written to a file outlive the process that wrote them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from contract.log_contract import event
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log import sqlite_checkpoint
from headrace.cdc.log.sqlite import SQLiteLog

PARTITIONS = 2
_UNDER_WAY = 8


def batch(seed: int, number: int) -> list[CustomerEvent]:
    """The events of one batch: mostly few, at times many, rarely none; a key and a size each."""
    chosen = random.Random(f"{seed}/{number}")
    count = chosen.choice((0, 1, 1, 1, 2, 5, 30, 300))
    return [
        event(number * 1000 + index, key=str(chosen.randrange(50)), size=chosen.choice((10, 100, 2000)))
        for index in range(count)
    ]


async def _append(path: Path, seed: int) -> None:
    sqlite_checkpoint._PASS_BYTES = 1 << 18  # type: ignore[misc]  # so that kills also meet checkpoints
    log = await SQLiteLog.open(path, partitions=PARTITIONS)
    acked = os.open(path.with_name(path.name + ".acked"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = int(await log.source_state("shop") or b"0")
    under_way: list[asyncio.Task[tuple[int, ...]]] = []
    staging: set[asyncio.Task[None]] = set()
    while True:
        state = b"%d" % (number + 1)
        events = batch(seed, number)
        parts: list[list[CustomerEvent]] = []
        if number % 3 == 0:
            # A transaction in parts; at times one that is begun, given up and begun again.
            cut = len(events) // 3
            parts, events = [events[:cut], events[cut : 2 * cut]], events[2 * cut :]
            if number % 7 == 0:
                staging.add(asyncio.create_task(log.stage(parts[0], source="shop")))
                staging.add(asyncio.create_task(log.unstage("shop")))
        for part in parts:
            staging.add(asyncio.create_task(log.stage(part, source="shop")))
        staging = {task for task in staging if not task.done()}
        under_way.append(asyncio.create_task(log.append(events, source="shop", state=state)))
        number += 1
        if len(under_way) == _UNDER_WAY:
            ends = await under_way.pop(0)
            os.write(acked, b".")
            if number % 10 == 0:
                await log.commit("g", 0, ends[0], state=b"%d" % ends[0])


@contextlib.contextmanager
def forked_writers() -> Iterator[subprocess.Popen[str]]:
    """This file as a process; it ends, after the writer it still waits for, when the block does."""
    with subprocess.Popen(
        [sys.executable, "-m", "cdc.log.append_until_killed"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()


def main() -> None:
    for line in sys.stdin:
        path, seed = line.split()
        pid = os.fork()
        if pid == 0:
            asyncio.run(_append(Path(path), int(seed)))
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
