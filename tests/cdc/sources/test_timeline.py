"""A promotion begins another history: a position behind the switch point is refused by name, one before it goes on."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from source_reader import Reader

from fix_servers import postgres_bin
from fix_standby import ask, caught_up, make_standby, promote, slot_on_standby
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.errors import HistoryMismatch
from headrace.cdc.sources.pgstate import PostgresState
from headrace.cdc.sources.timeline import Timelines, parse_history

HISTORY = "1\t0/3000148\tno recovery target specified\n\n# by hand\n2\t0/5000000\tno recovery target specified\n"


def test_a_history_file_is_read() -> None:
    assert parse_history(HISTORY) == {1: 0x3000148, 2: 0x5000000}


def test_the_switch_point_itself_belongs_to_both_timelines() -> None:
    timelines = Timelines("7", 3, parse_history(HISTORY))
    timelines.hold(1, 0x3000148, source="shop")
    timelines.hold(3, 0x9000000, source="shop")
    with pytest.raises(HistoryMismatch, match="left timeline 1 at 0/3000148"):
        timelines.hold(1, 0x3000149, source="shop")
    with pytest.raises(HistoryMismatch, match="has no timeline 4"):
        timelines.hold(4, 0x1, source="shop")


@pytest.fixture
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    primary = PostgresServer(postgres_bin(16), settings={"fsync": "off", "wal_sender_timeout": "10s"})
    primary.start()
    standby = None
    try:
        standby = make_standby(primary, slot="phys")
        yield primary, standby
    finally:
        if standby is not None:
            standby.remove()
        primary.remove()


@pytest.mark.parametrize("is_ahead", [True, False])
async def test_a_promoted_server_is_held_to_the_switch_point(
    pair: tuple[PostgresServer, PostgresServer], is_ahead: bool
) -> None:
    primary, standby = pair
    ask(primary.dsn, "create table t (id int primary key)")
    r = Reader(primary.dsn)
    await r.start()
    try:
        await r.until_streaming()
        ask(primary.dsn, "insert into t values (1)")
        await r.until_op("insert")
        # By hand, as somebody who prepares a failover would.
        slot_on_standby(primary, standby, r.source._server.slot)
        ask(primary.dsn, "insert into t values (2)")
        await r.until_op("insert", 2)
        caught_up(primary, standby)
        if is_ahead:
            # The standby no longer follows: what comes now is on the primary, and in the log, alone.
            ask(standby.dsn, "alter system set primary_conninfo = ''")
            ask(standby.dsn, "select pg_reload_conf()")
            standby.stop()
            del standby.settings["primary_conninfo"]
            standby.start()
            ask(primary.dsn, "insert into t values (3)")
            await r.until_op("insert", 3)
    finally:
        await r.stop()
    primary.kill()
    promote(standby)
    # More WAL than the position, so that its number alone says nothing.
    ask(standby.dsn, "create temporary table filler as select generate_series(1, 10000); select pg_switch_wal()")
    ask(standby.dsn, "insert into t values (4)")
    moved = Reader(standby.dsn)
    moved.state, moved.fold = r.state, r.fold
    try:
        if is_ahead:
            with pytest.raises(HistoryMismatch, match="left timeline 1 at") as refused:
                await moved.start()
            assert "fresh snapshot" in refused.value.advice
        else:
            await moved.start()
            assert [change.after for change in await moved.until_op("insert")] == [(4,)], "each once"
            # The new timeline is stored: another start asks for no history.
            assert msgspec.msgpack.decode(moved.state or b"", type=PostgresState).timeline == 2
            ask(standby.dsn, "insert into t values (5)")
            await moved.restart()
            assert (await moved.until_op("insert", 2))[-1].after == (5,)
    finally:
        await moved.stop()
