"""A log as another process shares it, without the process: every message goes through its bytes, both ways."""

from __future__ import annotations

import asyncio
from typing import Any

from headrace.cdc.errors import HeadraceError
from headrace.cdc.log.sqlite import SQLiteLog
from headrace.cdc.log.sqlite_threads import SQLiteBatches
from headrace.cdc.split.logshare import answer
from headrace.cdc.split.sharedlog import SharedLog
from headrace.cdc.split.wire import (
    Asked,
    Done,
    Failed,
    Moved,
    Question,
    Said,
    Told,
    done,
    failed,
    frame,
    raised,
    read_said,
    read_told,
    result,
)


async def told(message: Told) -> Told | None:
    """A message as the other side reads it."""
    return await read_told(_reader(frame(message)))


async def said(message: Said) -> Said | None:
    return await read_said(_reader(frame(message)))


def _reader(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def shared_with(log: SQLiteLog) -> SharedLog:
    """Moves when the log moves."""

    async def ask(question: Question) -> Any:
        heard = await said(Asked(7, question))
        assert isinstance(heard, Asked)
        try:
            answered = await told(done(heard.number, await answer(log, heard.question)))
        except (HeadraceError, ValueError) as error:
            answered = await told(failed(heard.number, error))
        assert isinstance(answered, Done | Failed) and answered.number == 7
        if isinstance(answered, Failed):
            raise raised(answered)
        return result(question, answered.value)

    firsts, ends = log.places
    shared = SharedLog(log.generation, SQLiteBatches(log.path), ask, firsts, ends)

    def moved() -> None:
        news = Moved(*log.places)
        shared.moved(news.firsts, news.ends)

    log.watch(moved)
    return shared
