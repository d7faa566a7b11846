"""What Debezium's engine and its server are told of the same slot. Imports nothing of headrace: it runs in the rivals' environment."""

from __future__ import annotations

from pathlib import Path


def source(host: str, port: str, slot: str, publication: str) -> dict[str, str]:
    """Properties of the Postgres connector; offsets are kept in the folder where it runs."""
    return {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": str(Path.cwd() / "offsets.dat"),
        "database.hostname": host,
        "database.port": port,
        "database.user": "postgres",
        "database.password": "none",
        "database.dbname": "postgres",
        "plugin.name": "pgoutput",
        "slot.name": slot,
        "publication.name": publication,
        "publication.autocreate.mode": "disabled",
        "snapshot.mode": "no_data",
        "topic.prefix": "bench",
        "table.include.list": "public.orders",
        "tombstones.on.delete": "false",
        "poll.interval.ms": "1",
    }
