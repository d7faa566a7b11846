"""The throwaway Postgres starts wherever headrace was installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from headrace.cdc.demo.embedded import EmbeddedServerError, PostgresServer, embedded_bin


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that only its owner can enter, as root's home is."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-closed-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_root_may_have_installed_it_in_a_home_closed_to_others(closed_folder: Path) -> None:
    binaries = embedded_bin(18)
    package = binaries.parents[1]
    shutil.copytree(binaries.parent, closed_folder / package.name / "pginstall18", symlinks=True)
    shutil.copytree(package.with_name(f"{package.name}.libs"), closed_folder / f"{package.name}.libs")
    server = PostgresServer(closed_folder / package.name / "pginstall18" / "bin")
    try:
        server.start()
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    finally:
        server.remove()
    assert not server.folder.exists()


def test_a_server_that_does_not_start_says_why_in_its_own_words() -> None:
    server = PostgresServer(embedded_bin(18), settings={"wal_level": "imaginary"})
    try:
        with pytest.raises(EmbeddedServerError, match="did not start"):
            server.start()
    finally:
        server.remove()
