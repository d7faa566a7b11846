"""Says whether the compiled hot modules belong to the present source. Standard library only: it runs before any install.

    python .ci/hot.py stale    exit 0 when an install is needed to bring compiled modules up to date, with the reason
    python .ci/hot.py state    one line: what runs compiled
    python .ci/hot.py any      exit 0 when at least one hot module is compiled for this Python

The stamp it reads is written by hatch_build.py. A module without any compiled library is never stale: its .py file runs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def hot_modules(root: Path = ROOT) -> list[str]:
    """HOT_MODULES of hatch_build.py, read without importing it (hatchling lives in the build's own environment)."""
    for statement in ast.parse((root / "hatch_build.py").read_text()).body:
        if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "HOT_MODULES":
            return list(ast.literal_eval(statement.value))
    raise LookupError("hatch_build.py names no HOT_MODULES")


def libraries(module: str, root: Path = ROOT) -> list[Path]:
    """Compiled libraries of a module for the running Python: one, or none."""
    path = root / module
    return sorted(path.parent.glob(f"{path.stem}.{sys.implementation.cache_tag}*.so"))


def stale(root: Path = ROOT) -> list[str]:
    """One sentence for each compiled module that wasn't made of its present source."""
    stamp = root / f"build/compiled-{sys.implementation.cache_tag}.json"
    made: dict[str, Any] = json.loads(stamp.read_text()) if stamp.exists() else {}
    found: list[str] = []
    for module in hot_modules(root):
        if not libraries(module, root):
            continue
        if module not in made:
            found.append(f"{module}: compiled by an unknown build")
            continue
        for source, digest in made[module]["sources"].items():
            path = root / source
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                found.append(f"{module}: {source} changed since it was compiled")
        pxd = str(Path(module).with_suffix(".pxd"))
        if (root / pxd).exists() and pxd not in made[module]["sources"]:
            found.append(f"{module}: {pxd} is new since it was compiled")
    return found


def main(word: str) -> int:
    modules = hot_modules()
    compiled = [module for module in modules if libraries(module)]
    if word == "state":
        how = f"{len(compiled)} of {len(modules)} compiled" if compiled else "uncompiled (no C compiler was found)"
        print(f"hot modules: {how}")
        return 0
    if word == "any":
        return 0 if compiled else 1
    reasons = stale()
    # A module that joined the list is compiled at the next install, if the others are.
    if compiled and len(compiled) < len(modules):
        reasons.append("a hot module isn't compiled yet")
    print("\n".join(reasons), end="\n" if reasons else "")
    return 0 if reasons else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
