"""P1 to P4 of the log under SIGKILL: whatever moment it comes at, the log is a prefix of what was appended, nothing acknowledged is
missing, and the source's state is exactly the one after the last event."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from pathlib import Path

from cdc.log.append_until_killed import PARTITIONS, batch, forked_writers
from contract.log_contract import DEADLINE_S, read_all
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.base import partition_of
from headrace.cdc.log.sqlite import SQLiteLog

_KILLS = 30


async def test_a_killed_writer_loses_nothing_acknowledged_and_leaves_no_half_batch(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    chosen = random.Random(seed)
    path = tmp_path / "log.db"
    acked = tmp_path / "log.db.acked"
    acked.touch()
    lanes: list[list[CustomerEvent]] = [[] for _ in range(PARTITIONS)]
    batches = acked_before = acked_and_checked = 0
    with forked_writers() as forker:
        assert forker.stdin is not None and forker.stdout is not None
        for kill in range(_KILLS):
            where = f"seed {seed}, kill {kill}"
            forker.stdin.write(f"{path} {seed}\n")
            forker.stdin.flush()
            pid = int(forker.stdout.readline())
            _wait_for_acks(acked, acked_before + chosen.randrange(1, 120), where)
            # Not at an acknowledgement but anywhere between two of them.
            moment = time.perf_counter() + chosen.random() * 0.003
            while time.perf_counter() < moment:
                pass
            os.kill(pid, signal.SIGKILL)
            assert forker.stdout.readline() == "gone\n", where
            newly_acked = acked.stat().st_size - acked_before
            acked_before += newly_acked

            log = await SQLiteLog.open(path, partitions=PARTITIONS)
            stored = int(await log.source_state("shop") or b"0")
            # Acknowledged in order since this process's start, and it started from what was stored then.
            assert stored >= batches + newly_acked, where
            acked_and_checked += newly_acked
            firsts = [len(lane) for lane in lanes]
            for number in range(batches, stored):
                for event in batch(seed, number):
                    lanes[partition_of(event.key, PARTITIONS)].append(event)
            batches = stored
            for partition, lane in enumerate(lanes):
                found = await read_all(log, partition, firsts[partition])
                assert found == lane[firsts[partition] :], where
                assert (await log.bounds(partition)).end == len(lane), where
            cursor = await log.committed("g", 0)
            if cursor is not None:
                assert cursor.state == b"%d" % cursor.offset and cursor.offset <= len(lanes[0]), where
            await log.close()
    assert acked_and_checked > _KILLS, f"seed {seed}: too little load to mean anything"
    log = await SQLiteLog.open(path, partitions=PARTITIONS)
    for partition, lane in enumerate(lanes):
        assert await read_all(log, partition) == lane, f"seed {seed}"
    assert log.epoch == _KILLS * 2 + 1
    await log.close()
    connection = sqlite3.connect(path)
    # What crashes left staged is gone, and nothing that a batch names.
    assert connection.execute("select count(*) from staging").fetchall() == [(0,)], f"seed {seed}"
    stored = "select events from batch where typeof(events) = 'integer' order by 1"
    kept = [row[0] for row in connection.execute("select id from staged order by 1")]
    assert kept == [row[0] for row in connection.execute(stored)] and kept, f"seed {seed}"
    assert connection.execute("pragma integrity_check").fetchall() == [("ok",)], f"seed {seed}"
    connection.close()


def _wait_for_acks(acked: Path, count: int, where: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while acked.stat().st_size < count:
        assert time.monotonic() < end, f"{where}: the writer doesn't get on"
        time.sleep(0.0005)  # a poll of another process's file, with a deadline
