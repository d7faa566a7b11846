"""What a figure was measured on: machine, versions, commit, load; and what /proc says of a process. Linux only."""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
import runpy
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_HOT = runpy.run_path(str(ROOT / ".ci" / "hot.py"))
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def machine(**more: object) -> dict[str, Any]:
    """JSON types. more: versions of the servers used."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "system": platform.platform(),
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
        "load_before": round(os.getloadavg()[0], 2),
        **more,
    }


def about(machine: dict[str, Any]) -> str:
    """One line for people."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())


def cpu_s(pid: int) -> float:
    """CPU of all the process's threads so far, in seconds; steps of a clock tick (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def memory_mib(pid: int, field: str = "VmHWM") -> float:
    """VmHWM: peak resident memory; VmRSS: present. The peak of getrusage would be at least that of the process that forked it."""
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def family(pid: int) -> list[int]:
    """The process and those that it started and that run now."""
    found = [pid]
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in tasks.read_text().split():
            found += family(int(child))
    return found


def family_cpu_s(pid: int) -> float:
    """As cpu_s, of the whole family; what a member that has ended used isn't in it."""
    return sum(cpu_s(each) for each in family(pid))


def family_mib(pid: int, field: str = "VmHWM") -> float:
    """As memory_mib, of the whole family. Pages that its members share count once for each."""
    return round(sum(memory_mib(each, field) for each in family(pid)), 1)


def collect_as_the_program() -> None:
    """Set the cycle collector as `headrace` does at its start, and as `headrace run` does once its sources stream."""
    from headrace.cdc.cli import COLLECT_EVERY  # late: use_uncompiled comes before anything of headrace

    gc.set_threshold(*COLLECT_EVERY)
    gc.collect()
    gc.freeze()


def use_uncompiled() -> None:
    """Run the hot modules' .py files although compiled ones stand beside them. Before anything imports headrace."""
    names = {".".join(Path(module).with_suffix("").parts[1:]): ROOT / module for module in _HOT["hot_modules"]()}

    class Finder:
        @staticmethod
        def find_spec(
            name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            return importlib.util.spec_from_file_location(name, names[name]) if name in names else None

    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]  # a static method serves as well as an instance's


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
