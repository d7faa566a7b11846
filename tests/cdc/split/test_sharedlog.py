"""The log as another process sees it, beyond what every log must do (contract/test_log.py holds it to that too)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.log_contract import events
from headrace.cdc.errors import ConfigError, LogUnavailable, SourceRefused, Trimmed
from headrace.cdc.log.base import LogBatch
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.log.sqlite_threads import SQLiteBatches
from headrace.cdc.split.logshare import shareable
from headrace.cdc.split.sharedlog import SharedLog
from headrace.cdc.split.wire import Question, failed, raised
from sharing import shared_with


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[SQLiteLog]:
    made = await SQLiteLog.open(tmp_path / "log.db")
    yield made
    await made.close()


async def test_a_waiting_read_hears_of_an_append_and_asks_the_file_once(
    log: SQLiteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = shared_with(log)
    asked = 0
    batches = SQLiteBatches(log.path)

    class Counted:
        async def read(self, partition: int, offset: int, max_bytes: int, end: int) -> LogBatch:
            nonlocal asked
            asked += 1
            return await batches.read(partition, offset, max_bytes, end)

        async def close(self) -> None:
            await batches.close()

    monkeypatch.setattr(shared, "_batches", Counted())
    async with asyncio.timeout(10):
        reading = asyncio.create_task(shared.read(0, 0, wait_s=3600))
        await asyncio.sleep(0)
        assert not reading.done() and asked == 0
        await log.append(events(0, 3), source="shop", state=b"")
        assert [event.id for event in (await reading).events] == ["e0", "e1", "e2"]
    assert asked == 1
    await shared.close()


async def test_what_the_keeper_hasnt_told_yet_isnt_read(log: SQLiteLog, tmp_path: Path) -> None:
    async def ask(question: Question) -> None:
        raise AssertionError(question)

    await log.append(events(0, 2), source="shop", state=b"")
    shared = SharedLog(log.generation, SQLiteBatches(log.path), ask, [0], [2])
    await log.append(events(2, 2), source="shop", state=b"")
    assert len((await shared.read(0, 0)).events) == 2
    assert (await shared.read(0, 2)).events == ()
    with pytest.raises(ValueError, match="outside 0 to 2"):
        await shared.read(0, 3)
    shared.moved([0], [4])
    assert [event.id for event in (await shared.read(0, 2)).events] == ["e2", "e3"]
    await shared.close()
    with pytest.raises(LogUnavailable):
        await shared.read(0, 0)


async def test_questions_keep_their_order(log: SQLiteLog) -> None:
    shared = shared_with(log)
    async with asyncio.timeout(20):
        ends = await asyncio.gather(
            *(shared.append(events(number, 1), source="shop", state=b"%d" % number) for number in range(50))
        )
    assert ends == [(number + 1,) for number in range(50)]
    assert [event.id for event in (await shared.read(0, 0)).events] == [f"e{number}" for number in range(50)]
    assert await shared.source_state("shop") == b"49"
    await shared.close()


def test_an_error_is_the_same_on_the_other_side() -> None:
    trimmed = raised(failed(1, Trimmed("gone", first_offset=7)))
    assert isinstance(trimmed, Trimmed) and trimmed.first_offset == 7
    wrong = raised(failed(1, ConfigError("two problems", problems=("a: b", "c: d"), advice="mend")))
    assert isinstance(wrong, ConfigError) and (wrong.problems, wrong.advice) == (("a: b", "c: d"), "mend")
    other = raised(failed(1, SourceRefused("no", source="shop", advice="ask")))
    assert (type(other).__name__, str(other)) == ("HeadraceError", "no")
    back = raised(failed(1, ValueError("back")))
    assert type(back) is ValueError and str(back) == "back"


async def test_a_log_of_one_process_cant_be_shared() -> None:
    with pytest.raises(ConfigError, match="type memory can't be shared") as told:
        shareable(MemoryLog(), "memory")
    assert "processes: 1" in told.value.advice
