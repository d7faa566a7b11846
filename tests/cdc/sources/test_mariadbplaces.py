"""Which places of MariaDB's snapshots are believed."""

from __future__ import annotations

from headrace.cdc.decode.binlog import BinlogPlace
from headrace.cdc.sources import mariadbplaces
from headrace.cdc.sources.mariadbplaces import NOTHING, QUIET_S, MariaDBPlaces

IDLE = (0, 5, 0)


def at(pos: int, file: int = 1) -> BinlogPlace:
    return BinlogPlace(f"binlog.{file:06}", pos)


def test_the_end_of_a_transaction_is_exact() -> None:
    places = MariaDBPlaces()
    places.delivered(at(100))
    places.open()
    places.delivered(at(200))
    assert places.visible(at(200), 1.0, (3, 5, 0)) == (1, 200), "whatever waits, waits behind it"
    assert places.visible(at(100), 1.0, IDLE) == (1, 200), "an older one was visible already"


def test_elsewhere_only_what_was_told_long_ago_is_certain() -> None:
    places = MariaDBPlaces()
    places.delivered(at(200))
    places.open()
    assert places.visible(at(4, 2), 1.0, IDLE) == NOTHING
    assert places.visible(at(90, 2), 1.0 + QUIET_S / 2, IDLE) == NOTHING
    assert places.visible(at(90, 2), 1.0 + QUIET_S, IDLE) == (2, 4)
    assert places.visible(at(90, 2), 1.1 + 2 * QUIET_S, IDLE) == (2, 90)


def test_what_semi_synchronous_replication_holds_up_is_not_certain() -> None:
    places = MariaDBPlaces()
    assert places.visible(at(4, 2), 1.0, IDLE) == NOTHING
    assert places.visible(at(4, 2), 9.0, (1, 5, 0)) == NOTHING, "a session waits"
    assert places.visible(at(4, 2), 19.0, (0, 6, 0)) == NOTHING, "one has waited since"
    assert places.visible(at(4, 2), 29.0, (0, 6, 0)) == (2, 4)


def test_a_long_window_keeps_its_first_ends_and_its_last() -> None:
    places = MariaDBPlaces()
    places.open()
    ends = 3 * mariadbplaces._ENDS
    for pos in range(ends):
        places.delivered(at(pos))
    assert places.visible(at(7), 1.0, IDLE) == (1, 7)
    assert places.visible(at(ends - 7), 1.0, IDLE) == (1, ends - 7)
