"""WAL on the server's disk: idle and busy neighbours cost next to nothing, a budget is kept, and a gap is stopped at or healed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from capture_rig import CaptureRig
from fix_servers import Database, postgres_bin
from headrace.cdc.config import Duration, Size
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.errors import ConfigError, HistoryMismatch, SourceRefused
from headrace.cdc.sources.ending import end
from headrace.cdc.sources.postgres_config import PostgresConfig, WalBudget

MakeRig = Callable[..., Awaitable[CaptureRig]]
MIB = 1 << 20
SEGMENT = 16 * MIB


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cdc.sources.pgmonitor._ASK_EVERY_S", 0.1)
    monkeypatch.setattr("headrace.cdc.sources.pgmonitor._ASK_WHO_ABOVE_BYTES", 8 * MIB)
    monkeypatch.setattr("headrace.cdc.sources.pgmonitor._OLD_S", 0)
    monkeypatch.setattr("headrace.cdc.capture._FIRST_PAUSE_S", 0.02)


@pytest.fixture(params=[15, 18])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server of one test: what neighbours do to it counts."""
    made = PostgresServer(postgres_bin(request.param), settings={"max_prepared_transactions": "10"})
    made.start()
    yield made
    made.remove()


@pytest.fixture
def own(server: PostgresServer) -> Iterator[Database]:
    made = Database(server)
    made.execute("create table a (id int primary key, v text)")
    made.execute("insert into a select n, 'old' from generate_series(1, 50) n")
    made.execute("create table bag (v int)")
    made.execute("alter table bag replica identity full")
    made.execute("insert into bag values (1), (1), (2)")
    yield made
    made.connection.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[MakeRig]:
    made: list[CaptureRig] = []

    async def make(database: Database, **fields: Any) -> CaptureRig:
        fields.setdefault("heartbeat", Duration.parse("100ms"))
        fields.setdefault("tables", ["public.a", "public.bag"])
        new = CaptureRig(database, tmp_path, **fields)
        made.append(new)
        await new.start()
        return new

    yield make
    for each in made:
        await each.stop()


def write_wal(database: Database, mib: int, table: str = "other") -> None:
    database.execute(f"create table if not exists {table} (v text)")
    for _ in range(mib):
        database.execute(f"insert into {table} select repeat(md5(n::text), 30) from generate_series(1, 1000) n")


def retained(database: Database) -> int:
    [(kept,)] = database.execute(
        "select (pg_current_wal_lsn() - restart_lsn)::bigint from pg_replication_slots where slot_type = 'logical'"
    )
    return int(str(kept))


async def until_retained(r: CaptureRig, database: Database, limit: int) -> None:
    def is_below() -> bool:
        # A checkpoint logs the running transactions, from which the server sees what it may forget; it makes one every few minutes.
        database.execute("checkpoint")
        return retained(database) <= limit

    async with asyncio.timeout(30):
        while not await asyncio.to_thread(is_below):
            assert not r.capture.trouble
            await asyncio.sleep(0.1)  # the capture confirms in the same loop


@pytest.mark.parametrize("where", ["another database", "a table that isn't captured"])
async def test_an_idle_source_keeps_no_wal_of_busy_neighbours(
    server: PostgresServer, own: Database, rig: MakeRig, where: str
) -> None:
    r = await rig(own)
    await r.until_caught_up()
    busy = Database(server) if where == "another database" else own
    await asyncio.to_thread(write_wal, busy, 60)
    await until_retained(r, own, SEGMENT)
    await r.until(lambda: (r.status().wal or {})["retained_bytes"] <= SEGMENT, "the status")
    assert not r.status().warnings
    if busy is not own:
        busy.connection.close()


async def test_who_holds_wal_back_is_named(own: Database, rig: MakeRig) -> None:
    r = await rig(own, wal_budget=WalBudget(warn=Size.parse("16MiB")))
    await r.until_caught_up()
    with psycopg.connect(own.dsn, application_name="nightly report") as holder:
        holder.execute("insert into a values (1000, 'held')")
        await asyncio.to_thread(write_wal, own, 40)
        await r.until(lambda: any("nightly report" in warning for warning in r.status().warnings), "the warning")
        [warning] = r.status().warnings
        assert f"backend {holder.info.backend_pid} (postgres, nightly report, idle in transaction)" in warning
        assert r.status().phase == "streaming"
        holder.execute("prepare transaction 'forgotten'")
    await r.until(lambda: any("forgotten" in warning for warning in r.status().warnings), "the prepared one")
    own.execute("rollback prepared 'forgotten'")
    await until_retained(r, own, SEGMENT)
    await r.until(lambda: not r.status().warnings, "the end of it")
    assert r.status().lag_s is not None
    assert (r.status().lag_s or 0) < 30


async def test_above_the_budget_the_slot_goes_and_the_tables_are_copied_anew(own: Database, rig: MakeRig) -> None:
    r = await rig(own, on_gap="snapshot", wal_budget=WalBudget(warn=Size.parse("16MiB"), drop=Size.parse("48MiB")))
    await r.until_caught_up()
    with psycopg.connect(own.dsn) as holder:
        holder.execute("delete from a where id <= 10")
        own.execute("delete from bag where v = 2")
        own.execute("insert into a values (2000, 'before the gap')")
        await asyncio.to_thread(write_wal, own, 60)
        # The new slot waits for the transaction; the old one, and with it the WAL, is gone meanwhile.
        await r.until(lambda: "waits for transactions" in r.status().reason, "the new slot")
        assert not own.execute("select 1 from pg_replication_slots where restart_lsn < pg_current_wal_lsn() - 40000000")
        own.execute("delete from a where id = 2000")
    await r.until_caught_up()
    assert r.source._state is not None
    assert r.source._state.incarnation == 1
    own.execute("insert into a values (2001, 'behind the gap')")
    own.execute("insert into bag values (3)")
    await r.until_caught_up()
    await r.judge("public.a", "public.bag")


@pytest.mark.parametrize("server", [18], indirect=True)
@pytest.mark.parametrize(
    "gap", ["slot dropped", "slot lost", "slot read by another", "publication altered", "table altered too"]
)
async def test_a_gap_is_stopped_at_or_healed(own: Database, rig: MakeRig, gap: str) -> None:
    r = await rig(own, on_gap="snapshot")
    await r.until_caught_up()
    assert r.task is not None
    await end(r.task)
    assert r.log is not None
    slot, publication = r.source._server.slot, r.source._server.publication
    async with asyncio.timeout(20):
        while own.execute("select 1 from pg_replication_slots where active"):
            await asyncio.sleep(0.01)  # its backend notices the end of the link by itself
    own.execute("delete from a where id <= 10")
    own.execute("insert into a values (2000, 'in the gap')")
    if gap == "slot dropped":
        own.execute("select pg_drop_replication_slot(%s)", slot)
    elif gap == "slot lost":
        own.execute("alter system set max_slot_wal_keep_size = '1MB'")
        own.execute("select pg_reload_conf()")
        for _ in range(50):
            own.execute("insert into bag values (4)")
            own.execute("select pg_switch_wal()")
            own.execute("checkpoint")
            if own.execute("select wal_status from pg_replication_slots") == [("lost",)]:
                break
        own.execute("alter system reset max_slot_wal_keep_size")
        own.execute("select pg_reload_conf()")
    elif gap == "slot read by another":
        own.execute("select pg_replication_slot_advance(%s, pg_current_wal_lsn())", slot)
    else:
        own.execute(f"alter publication {publication} drop table bag")
        own.execute("delete from bag")
        if gap == "table altered too":
            own.execute("alter table a add w int default 7")
        own.execute(f"alter publication {publication} add table bag")
    state = await r.log.source_state(r.source.name)
    strict = PostgresConfig(dsn=own.dsn, slot=slot, publication=publication)
    stops = type(r.source)(r.source.name, strict, {})
    with pytest.raises((HistoryMismatch, SourceRefused)):
        await stops.start(state)
    r.task = asyncio.create_task(r.capture.run())
    await r.until_caught_up()
    own.execute("update a set v = 'after' where id = 20")
    await r.until_caught_up()
    await r.judge("public.a", "public.bag")


@pytest.mark.parametrize("server", [18], indirect=True)
async def test_a_gap_that_opens_while_it_streams_is_healed(own: Database, rig: MakeRig) -> None:
    r = await rig(own, on_gap="snapshot")
    await r.until_caught_up()
    publication = r.source._server.publication
    own.execute(f"alter publication {publication} drop table a")
    own.execute("delete from a where id < 20")
    own.execute(f"alter publication {publication} add table a")
    await r.until(lambda: "1-" in str(r.source._state and r.source._state.incarnation) + "-", "a new history")
    await r.until_caught_up()
    await r.judge("public.a", "public.bag")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"on_gap": "snapshot", "snapshot": "never"}, "on_gap"),
        ({"wal_budget": WalBudget(drop=Size.parse("20GiB"))}, "on_gap: snapshot"),
        (
            {"on_gap": "snapshot", "wal_budget": WalBudget(warn=Size.parse("2GiB"), drop=Size.parse("1GiB"))},
            "less than",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=words):
        PostgresConfig(dsn="host=x", **fields)
