"""A promotion begins another history: a position behind the switch point is refused by name, one before it goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from source_reader import Reader

from fix_servers import postgres_bin
from fix_standby import ask, caught_up, make_standby, promote
from headrace.cdc.demo.embedded import PostgresServer
from headrace.cdc.errors import HistoryMismatch
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
        caught_up(primary, standby)
        if is_ahead:
            # The standby no longer follows: what comes now is on the primary, and in the log, alone.
            ask(standby.dsn, "alter system set primary_conninfo = ''")
            ask(standby.dsn, "select pg_reload_conf()")
            standby.stop()
            del standby.settings["primary_conninfo"]
            standby.start()
            ask(primary.dsn, "insert into t values (2)")
            await r.until_op("insert", 2)
    finally:
        await r.stop()
    primary.kill()
    promote(standby)
    # By hand, as somebody in a hurry would; and far more WAL than the position, so that its number alone says nothing.
    ask(standby.dsn, "select pg_create_logical_replication_slot(%s, 'pgoutput')", r.source._slot)
    ask(standby.dsn, "create table filler as select generate_series(1, 10000)")
    ask(standby.dsn, "update pg_description set description = description where false")
    moved = Reader(standby.dsn)
    moved.state, moved.fold = r.state, r.fold
    try:
        if is_ahead:
            with pytest.raises(HistoryMismatch, match="left timeline 1 at") as refused:
                await moved.start()
            assert "fresh snapshot" in refused.value.advice
        else:
            # A slot made after the position would be a gap of its own, and is refused as one; not by the timeline.
            with pytest.raises(HistoryMismatch, match="past the log's position"):
                await moved.start()
    finally:
        await moved.stop()
