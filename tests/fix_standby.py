"""A physical standby of a throwaway Postgres: base backup, start, promotion."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

import psycopg

from headrace.cdc.demo.embedded import PostgresServer, as_server_user, embedded_bin

_NOBODY = 65534


def make_standby(primary: PostgresServer, *, slot: str, settings: Mapping[str, str] | None = None) -> PostgresServer:
    """A started standby that streams by the physical slot ``slot``, which is made."""
    standby = PostgresServer(
        primary.binaries, settings={"fsync": "off", "wal_sender_timeout": "10s", **(settings or {})}
    )
    standby.folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(standby.folder, _NOBODY, _NOBODY)
    # The npm builds of the matrix have none, and a newer one can copy an older server; theirs is the library path.
    own = primary.binaries / "pg_basebackup"
    program = own if own.exists() else embedded_bin(18) / "pg_basebackup"
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    backup = [program, "-D", standby.data, "-R", "-X", "stream", "-c", "fast", "--no-sync"]
    subprocess.run([*backup, "-C", "-S", slot, "-d", primary.dsn], check=True, env=environment, **as_server_user())
    # -R writes no dbname, which the copying of slots asks for.
    standby.settings["primary_conninfo"] = f"host=127.0.0.1 port={primary.port} user=postgres dbname=postgres"
    standby.start()
    return standby


def ask(dsn: str, query: str, *args: object) -> list[tuple[object, ...]]:
    """Run one statement on a connection of its own, autocommitted."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), args or None)
        return cursor.fetchall() if cursor.description else []


def wait_until(done: Callable[[], bool], what: str, *, deadline_s: float = 30.0) -> None:
    """Poll another process's state."""
    end = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)  # a state of foreign processes: there is no event to wait on


def caught_up(primary: PostgresServer, standby: PostgresServer) -> None:
    """Wait until the standby has replayed all that the primary has written."""
    lsn = ask(primary.dsn, "select pg_current_wal_lsn()::text")[0][0]
    wait_until(
        lambda: bool(ask(standby.dsn, "select pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn)[0][0]),
        "the standby's replay",
    )


def promote(standby: PostgresServer) -> None:
    """Promote, and wait until it takes writes."""
    ask(standby.dsn, "select pg_promote()")
    wait_until(lambda: not ask(standby.dsn, "select pg_is_in_recovery()")[0][0], "the promotion")


def slot_on_standby(primary: PostgresServer, standby: PostgresServer, slot: str) -> None:
    """Make a logical slot on a standby, by hand."""
    query = "select pg_create_logical_replication_slot(%s, 'pgoutput')"
    making = threading.Thread(target=ask, args=(standby.dsn, query, slot))
    making.start()
    while making.is_alive():
        ask(primary.dsn, "select pg_log_standby_snapshot()")
        making.join(timeout=0.1)
