"""Fixtures of the Postgres source's tests."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fix_servers import Database

sys.path.insert(0, str(Path(__file__).parent))

from source_reader import Reader

MakeReader = Callable[..., Awaitable[Reader]]


@pytest.fixture
async def reader(database: Database) -> AsyncIterator[MakeReader]:
    """Make a started Reader of the test's database; stopped at the end."""
    made: list[Reader] = []

    async def make(**fields: Any) -> Reader:
        new = Reader(fields.pop("dsn", database.dsn), **fields)
        made.append(new)
        await new.start()
        return new

    yield make
    for each in made:
        await each.stop()
