"""A start costs what its command needs. Modules are counted, not seconds: a busy machine can't fail this."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"feast", "pandas", "numpy", "pyarrow", "duckdb", "dask", "grpc"}
SERVER = {"aiohttp", "psycopg", "redis", "prometheus_client", "uvloop", "yaml"}


def _loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running code."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nsys.stderr.write('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    ["import headrace.cdc.cli", "from headrace.cdc.cli import main; main(['--version'])", "import headrace.sinks"],
)
def test_the_program_starts_without_any_servers_library(code: str) -> None:
    assert not _loaded(code) & (HEAVY | SERVER)


@pytest.mark.parametrize(
    "code",
    [
        "from headrace.cdc.cli import main; main(['--help'])",
        "import headrace.cdc.app",
        "from headrace.cdc.config import plugins; plugins('headrace.consumers'); plugins('headrace.stores')",
    ],
)
def test_the_server_starts_without_feast(code: str) -> None:
    assert not _loaded(code) & HEAVY


def test_definitions_are_importable_without_feast_or_a_server() -> None:
    assert not _loaded("import headrace.features") & (HEAVY | SERVER - {"yaml"})
