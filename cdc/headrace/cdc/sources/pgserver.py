"""The Postgres server as one source sees it: which slot and publication, which tables, and connections to ask it by.

Every connection has its settings pinned (postgres_config.py) and notices a dead link (link.py). The first one, ``admin``, stays open
for short questions, and answers for the others whether the server is still at work on what they wait for.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from headrace.cdc.config import EventConfig
from headrace.cdc.errors import SourceError
from headrace.cdc.sources import preflight
from headrace.cdc.sources.catalogue import Catalogue, Table, read_catalogue
from headrace.cdc.sources.link import WatchedConnection, is_backend_at_work
from headrace.cdc.sources.postgres_config import PostgresConfig, connect_error, conninfo, safe_name

SILENCE_S = 30.0
"""No answer for so long: the link is dead though open."""


class PostgresServer:
    """One source's server. tables: what is captured, by OID, as of the last reading of the catalogue. events: the configuration's, by table."""

    def __init__(self, name: str, config: PostgresConfig, events: Mapping[str, EventConfig]) -> None:
        self.name = name
        self.config = config
        self.slot = config.slot or f"headrace_{name}"
        self.publication = config.publication or f"headrace_{name}"
        self.tables: dict[int, Table] = {}
        self.events = events
        self._admin: WatchedConnection | None = None

    def __str__(self) -> str:
        return safe_name(self.config.dsn)

    @property
    def admin(self) -> WatchedConnection:
        """For short questions, between ``open`` and ``close``."""
        assert self._admin is not None
        return self._admin

    async def open(self) -> None:
        """Connect. Raises psycopg's errors, and ConfigError for a DSN that libpq can't read."""
        self._admin = await self.connect()

    async def close(self) -> None:
        """Close ``admin``; closing twice is fine."""
        if self._admin is not None:
            await self._admin.close()
            self._admin = None

    async def connect(
        self, *, replication: bool = False, encoding: str = "UTF8", decoding_memory: str | None = None
    ) -> WatchedConnection:
        """One more connection, which the caller closes. Raises as ``open``; see conninfo."""
        words = conninfo(
            self.config,
            replication=replication,
            encoding=encoding,
            decoding_memory=decoding_memory,
            source=self.name,
        )
        connection = await WatchedConnection.connect(words, autocommit=True)
        admin = self._admin
        try:
            if admin is None:
                await connection.watch(SILENCE_S)
            else:
                pid = connection.info.backend_pid
                await connection.watch(SILENCE_S, is_working=lambda: is_backend_at_work(admin, pid))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def catalogue(self) -> Catalogue:
        """Read the catalogue, and keep its tables."""
        catalogue = await read_catalogue(self.admin, self.config, slot=self.slot, publication=self.publication)
        self.tables = {table.oid: table for table in catalogue.tables}
        return catalogue

    def findings(self, catalogue: Catalogue, *, is_first: bool) -> list[preflight.Finding]:
        """See preflight.findings."""
        return preflight.findings(
            catalogue,
            self.config,
            source=self.name,
            slot=self.slot,
            publication=self.publication,
            events=self.events,
            is_first=is_first,
        )

    def hold(self, catalogue: Catalogue, *, is_first: bool) -> None:
        """Raise SourceRefused when something found is an error."""
        preflight.raise_for(self.findings(catalogue, is_first=is_first), source=self.name)

    def error(self, error: psycopg.Error) -> SourceError:
        """See postgres_config.connect_error."""
        return connect_error(error, config=self.config, source=self.name)
