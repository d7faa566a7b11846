"""Pulls: real dlt resources over a REST API and over SQL, their cursor in the log; exactly once over failures and kill -9."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from headrace.cdc.config import Duration
from headrace.cdc.errors import ConfigError, RequestRefused, SourceUnavailable
from headrace.cdc.event import Change
from headrace.cdc.sources.pull import PullSource, PullState, exact
from headrace.cdc.sources.pull_config import PullConfig
from running import RunningHeadrace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

SIMPLE = """
import dlt, json, pathlib
FILE = pathlib.Path(__file__).with_name("rows.json")

@dlt.resource(primary_key="id")
def orders(cursor=dlt.sources.incremental("at", initial_value=0)):
    rows = json.loads(FILE.read_text())
    for row in rows:
        if row.get("fails"):
            raise ValueError(f"token-in-a-url {row}")
        if row["at"] >= cursor.last_value:
            yield row
"""


class Pull:
    """Drives one source as capture does, without a log."""

    def __init__(self, folder: Path, resource: str = "pulls.py:orders", every: str = "1s") -> None:
        self.now = 1_000_000.0
        self.source = PullSource("crm", PullConfig(resource, Duration.parse(every)), {}, clock=lambda: self.now)
        self.source.folder = folder
        self.state: bytes | None = None

    async def restart(self) -> None:
        await self.source.start(self.state)

    async def pull(self) -> list[Change]:
        """One whole pull, when it is due."""
        changes: list[Change] = []
        while True:
            batch = await self.source.read()
            changes += batch.changes
            if not batch.is_part:
                self.state = batch.state
                self.source.durable(batch.mark)
                self.now += 1
                return changes


@pytest.fixture
async def pull(tmp_path: Path) -> AsyncIterator[Pull]:
    (tmp_path / "pulls.py").write_text(SIMPLE)
    made = Pull(tmp_path)
    yield made
    await made.source.stop()


def put(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.json").write_text(json.dumps(rows))


def said(changes: list[Change]) -> list[dict[str, Any]]:
    return [
        dict(zip([column.name for column in change.table.columns], change.after or (), strict=True))
        for change in changes
        if change.op == "read"
    ]


async def test_each_pull_goes_on_where_the_last_one_ended_also_over_restarts(pull: Pull, tmp_path: Path) -> None:
    put(tmp_path, [{"id": 1, "at": 5, "name": "a"}, {"id": 2, "at": 6, "name": None}])
    await pull.restart()
    first = await pull.pull()
    assert said(first) == [{"id": 1, "at": 5, "name": "a"}, {"id": 2, "at": 6, "name": None}]
    assert [change.is_last for change in first] == [False, True]
    table = first[0].table
    assert (table.name, [table.columns[index].name for index in table.key]) == ("pull.orders", ["id"])
    assert await pull.pull() == [], "the newest row is known"
    put(tmp_path, [{"id": 2, "at": 6, "name": None}, {"id": 3, "at": 7, "name": "c"}])
    await pull.restart()
    assert [row["id"] for row in said(await pull.pull())] == [3]
    assert pull.source.status().position.startswith("pull 3")


async def test_a_new_field_is_a_new_version_of_the_table(pull: Pull, tmp_path: Path) -> None:
    put(tmp_path, [{"id": 1, "at": 5}])
    await pull.restart()
    await pull.pull()
    put(tmp_path, [{"id": 2, "at": 6, "tags": ["x", 1], "price": 1.5}, {"id": 3, "at": 7}])
    changes = await pull.pull()
    assert [change.op for change in changes].count("schema") == 1
    assert said(changes)[-2:] == [
        {"id": 2, "at": 6, "tags": '["x",1]', "price": 1.5},
        {"id": 3, "at": 7, "tags": None, "price": None},
    ]
    assert len({change.id for change in changes}) == len(changes)


async def test_many_items_come_in_parts_and_end_with_a_mark(pull: Pull, tmp_path: Path) -> None:
    put(tmp_path, [{"id": number, "at": number} for number in range(1, 1202)])
    await pull.restart()
    changes = await pull.pull()
    assert [change.is_last for change in changes] == [False] * 1200 + [True]
    assert [change.ordinal for change in changes] == list(range(1201))


async def test_a_failed_pull_is_made_again_from_the_former_cursor(pull: Pull, tmp_path: Path) -> None:
    put(tmp_path, [{"id": 1, "at": 1}])
    await pull.restart()
    await pull.pull()
    put(tmp_path, [{"id": 2, "at": 2}, {"fails": True}])
    with pytest.raises(SourceUnavailable, match=r"pulls\.py:\d+: .*ValueError") as told:
        await pull.pull()
    assert "token-in-a-url" not in str(told.value)
    put(tmp_path, [{"id": 2, "at": 2}, {"id": 3, "at": 3}])
    await pull.restart()
    assert [row["id"] for row in said(await pull.pull())] == [2, 3]


async def test_it_waits_until_it_is_due_and_may_be_asked_for_everything(pull: Pull, tmp_path: Path) -> None:
    put(tmp_path, [{"id": 1, "at": 1}])
    pull.source._config = PullConfig("pulls.py:orders", Duration.parse("1h"))
    await pull.restart()
    await pull.pull()
    waiting = asyncio.create_task(pull.pull())
    await asyncio.sleep(0)
    assert not waiting.done()
    with pytest.raises(RequestRefused, match="no condition"):
        await pull.source.snapshot([], "id = 1")
    assert (await pull.source.snapshot(["*"], "")).tables == ["orders"]
    assert [row["id"] for row in said(await waiting)] == [1], "again, from the beginning"
    await pull.source.stop()
    with pytest.raises(RequestRefused, match="stopped"):
        await pull.source.snapshot([], "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is no file"),
        ("def orders(:", "pulls.py:1"),
        ("raise ValueError('secret')", "pulls.py:1: ValueError"),
        ("x = 1", 'has no "orders"'),
    ],
)
async def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "pulls.py").write_text(text)
    made = Pull(tmp_path)
    with pytest.raises(ConfigError) as told:
        await made.restart()
    assert said in told.value.problems[0] and "secret" not in told.value.problems[0]
    (finding,) = await made.source.check()
    assert said in finding.message and finding.severity == "error"


async def test_something_else_than_a_resource_fails_when_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "pulls.py").write_text("def orders():\n    return 5\n")
    made = Pull(tmp_path)
    await made.restart()
    with pytest.raises(SourceUnavailable, match="TypeError"):
        await made.pull()
    await made.source.stop()


def test_values_are_exact() -> None:
    import datetime as dt
    from decimal import Decimal
    from uuid import UUID

    assert exact(Decimal("1.10")) == "1.10"
    assert exact(1 << 80) == str(1 << 80) and exact(7) == 7 and exact(True) is True
    assert exact(float("nan")) == "nan" and exact(0.1) == 0.1
    assert exact(dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)) == "2026-01-02T03:04:05+00:00"
    assert exact(b"\x00\xff") == "0x00ff"
    assert exact({"a": [1, {"b": UUID(int=1)}]}) == '{"a":[1,{"b":"00000000-0000-0000-0000-000000000001"}]}'


class Api:
    """Pages of two, with a link to the next; filters by ``since``."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                since, at = int(asked.get("since", ["0"])[0]), int(asked.get("page", ["0"])[0])
                rows = [row for row in api.rows if row["updated"] >= since]
                more = f"http://127.0.0.1:{api.port}/orders?since={since}&page={at + 1}" if rows[at * 2 + 2 :] else None
                body = json.dumps({"items": rows[at * 2 : at * 2 + 2], "next": more}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.server.shutdown()
    made.server.server_close()


REST = """
from dlt.sources.rest_api import rest_api_source

def shop():
    return rest_api_source({
        "client": {"base_url": "http://127.0.0.1:PORT/", "paginator": {"type": "json_link", "next_url_path": "next"}},
        "resources": [{
            "name": "orders", "primary_key": "id",
            "endpoint": {"path": "orders", "data_selector": "items",
                         "params": {"since": "{incremental.start_value}"},
                         "incremental": {"cursor_path": "updated", "initial_value": 0}},
        }],
    })
"""


async def test_a_rest_api_is_pulled_page_by_page_and_by_its_cursor(api: Api, tmp_path: Path) -> None:
    (tmp_path / "pulls.py").write_text(REST.replace("PORT", str(api.port)))
    made = Pull(tmp_path, "pulls.py:shop")
    api.rows = [{"id": number, "updated": number, "total": "9.90"} for number in range(1, 6)]
    await made.restart()
    assert [row["id"] for row in said(await made.pull())] == [1, 2, 3, 4, 5]
    api.rows.append({"id": 2, "updated": 9, "total": "1.00"})
    await made.restart()
    assert said(await made.pull()) == [{"id": 2, "updated": 9, "total": "1.00"}]
    assert await made.pull() == []
    await made.source.stop()


SQL = """
import dlt
from dlt.sources.sql_database import sql_table

def orders():
    return sql_table("sqlite:///FILE", table="orders", incremental=dlt.sources.incremental("updated"))
"""


async def test_a_sql_query_is_pulled(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute(
            "create table orders (id integer primary key, updated integer, total numeric(10, 2), note text)"
        )
        database.executemany("insert into orders values (?, ?, ?, ?)", [(1, 1, "9.90", "x"), (2, 2, "0.10", None)])
    (tmp_path / "pulls.py").write_text(SQL.replace("FILE", str(tmp_path / "shop.db")))
    made = Pull(tmp_path)
    await made.restart()
    first = await made.pull()
    assert said(first) == [
        {"id": 1, "updated": 1, "total": "9.90", "note": "x"},
        {"id": 2, "updated": 2, "total": "0.10", "note": None},
    ]
    assert [first[0].table.columns[index].name for index in first[0].table.key] == ["id"]
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("insert into orders values (3, 3, 5, 'y')")
    assert [row["id"] for row in said(await made.pull())] == [3]
    await made.source.stop()


def test_each_item_comes_once_over_kill_9(api: Api, tmp_path: Path) -> None:
    (tmp_path / "pulls.py").write_text(REST.replace("PORT", str(api.port)))
    running = RunningHeadrace(
        tmp_path,
        "log: {path: pull.log.db}\n"
        "sources: {crm: {type: pull, resource: 'pulls.py:shop', every: 1s}}\n"
        "events: {pull.orders: {key: customer, insert: Order Seen}}\n",
    )

    def count() -> int:
        status = running.client.status()
        return -1 if status is None else sum(status["log"]["ends"])

    try:
        total = 0
        for life in range(4):
            api.rows = [{"id": total + each, "updated": total + each, "customer": f"c{each}"} for each in range(1, 8)]
            running.start()
            if life % 2:
                running.wait_until(running.client.is_ready, "starting")
                running.kill()
                running.start()
            total += 7
            running.wait_until(lambda: count() >= total, "the pull")  # noqa: B023  # called within this round
            running.kill()
        with sqlite3.connect(tmp_path / "pull.log.db") as database:
            database.execute("select 1")
        import contextlib
        import io

        from headrace.cdc.cli import main  # the program itself reads what it wrote

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["tail", str(running.config), "--json"]) == 0
        events = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [event["after"]["id"] for event in events] == list(range(1, total + 1))
        assert {event["name"] for event in events} == {"Order Seen"} and events[0]["customer_key"] == "c1"
        assert len({event["id"] for event in events}) == len(events)
    finally:
        running.end()


def test_a_stored_state_without_later_fields_can_be_read() -> None:
    import msgspec

    assert msgspec.msgpack.decode(msgspec.msgpack.encode({"number": 3}), type=PullState).columns == {}
