"""The pipeline on the way of real sources' events: what is set aside stands in the same append, and comes back in order and once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from collecting import collecting
from headrace.cdc.capture import Capture
from headrace.cdc.config import parse
from headrace.cdc.deadletters import DeadLetters, Retried, Selection
from headrace.cdc.event import CustomerEvent
from headrace.cdc.log.memory import MemoryLog
from headrace.cdc.metrics import CaptureMetrics
from headrace.cdc.pipeline import build_pipeline
from headrace.cdc.process.normalise import Normaliser
from headrace.cdc.process.pipeline import Pipeline
from headrace.cdc.sources.base import ChangeBatch
from scripted_source import ScriptedSource, batch


def pipeline(*transforms: Any, folder: Path = Path()) -> Pipeline:
    tree = {"sources": {"web": {"type": "http"}}, "pipeline": {"transforms": list(transforms)}}
    made = build_pipeline(parse(tree, folder=folder))
    assert made is not None
    return made


async def captured(script: list[ChangeBatch], steps: Pipeline) -> MemoryLog:
    log = MemoryLog()
    source = ScriptedSource(script)
    capture = Capture(source, Normaliser("shop", {}), log, CaptureMetrics(CollectorRegistry()), steps)
    task = asyncio.create_task(capture.run())
    last = script[-1].state
    async with asyncio.timeout(5):
        while await log.source_state("shop") != last:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return log


async def events(log: MemoryLog) -> list[CustomerEvent]:
    return list((await log.read(0, 0)).events) if (await log.bounds(0)).end else []


BLOCKS = {"set": {"properties.id.x": 1}, "when": {"where": {"properties.id": [3, 4]}}}
"""Sets the rows 3 and 4 aside."""


async def test_rows_set_aside_stand_beside_the_others_and_come_back_in_order_once() -> None:
    log = await captured([batch(number) for number in range(1, 6)], pipeline(BLOCKS))
    assert [event.id for event in await events(log)] == ["c1-0", "c2-0", "c5-0"]
    letters = await log.letters()
    assert [msgspec.json.decode(stored.letter.body)["properties"] for stored in letters] == [{"id": 3}, {"id": 4}]
    assert {stored.letter.reason for stored in letters} == {"transform_failed"}
    state = await log.source_state("shop")
    assert await DeadLetters(log, [], pipeline(BLOCKS)).retry(Selection()) == Retried(0, 2), "nothing was mended yet"
    mended = DeadLetters(log, [], pipeline({"set": {"properties.ok": True}}))
    assert await mended.retry(Selection()) == Retried(2, 0)
    assert await mended.retry(Selection()) == Retried(0, 0)
    assert [event.id for event in (await events(log))[3:]] == ["c3-0", "c4-0"]
    assert (await events(log))[3].properties == b'{"id":3,"ok":true}'
    assert await log.letters() == []
    assert await log.source_state("shop") == state, "the source's place is its own"


async def test_a_retry_is_narrowed_by_event_and_time() -> None:
    log = await captured([batch(3), batch(4)], pipeline(BLOCKS))
    received = (await log.letters())[0].letter.received_us
    mended = DeadLetters(log, [], pipeline({"name": "x"}))
    assert await mended.retry(Selection(event="other")) == Retried(0, 0)
    assert await mended.retry(Selection(until_us=received)) == Retried(0, 0)
    assert await mended.retry(Selection(since_us=received, event="orders inserted")) == Retried(2, 0)


async def test_of_a_transaction_in_parts_the_last_event_that_goes_on_has_the_mark() -> None:
    parts = [batch(1, is_part=True), batch(2, is_part=True), batch(3)]
    for part in parts[:2]:
        part.changes[0].is_last = False
    for part in parts:
        part.changes[0].xid = 1
    log = await captured(parts, pipeline(BLOCKS))
    assert [(event.id, event.row.is_last) for event in await events(log) if event.row] == [
        ("c1-0", False),
        ("c2-0", True),
    ]
    assert len(await log.letters()) == 1


def call(number: int) -> dict[str, Any]:
    return {"type": "track", "event": "Bought", "userId": "u", "messageId": f"m{number}", "properties": {"id": number}}


async def test_an_sdk_event_set_aside_comes_back_once_and_its_repetition_is_known() -> None:
    log = MemoryLog()
    async with collecting(log, pipeline=pipeline(BLOCKS)) as here:
        assert (await here.post("/v1/batch", {"batch": [call(2), call(3), call(5)]}))[0] == 200
        assert [msgspec.json.decode(event.properties)["id"] for event in await here.events()] == [2, 5]
        assert await here.post("/v1/deadletters/retry", {}) == (200, '{"retried":0,"kept":1}\n')
    async with collecting(log, pipeline=pipeline({"set": {"properties.ok": 1}})) as here:
        assert await here.post("/v1/deadletters/retry", {"event": "Bought"}) == (200, '{"retried":1,"kept":0}\n')
        assert (await here.events())[2].properties == b'{"id":3,"ok":1}'
        assert (await here.post("/v1/batch", {"batch": [call(3)]}))[0] == 200
        assert len(await here.events()) == 3, "sent again it is a repetition"
        assert await here.letters() == []


async def test_what_a_step_drops_is_answered_and_leaves_nothing() -> None:
    async with collecting(pipeline=pipeline({"drop": True, "when": {"names": ["Bought"]}})) as here:
        assert await here.post("/v1/batch", {"batch": [call(1)]}) == (200, "ok")
        assert (await here.events(), await here.letters()) == ([], [])
