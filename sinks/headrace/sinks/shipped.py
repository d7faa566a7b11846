"""The definitions that come with headrace: one YAML file a service in ``definitions/``, found by its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from headrace.cdc.errors import ConfigError

FOLDER: Final = Path(__file__).with_name("definitions")
_NAME: Final = re.compile(r"[a-z0-9_]+")


def names() -> list[str]:
    """Sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def shipped(definition: str) -> Path | None:
    """The file of a name; None when the text is no name but a path. Raises ConfigError when no such definition is shipped."""
    if _NAME.fullmatch(definition) is None:
        return None
    path = FOLDER / f"{definition}.yaml"
    if not path.exists():
        raise ConfigError(
            f"no definition {definition!r} is shipped",
            advice=f"name one of: {', '.join(names())}; or a file, as ./{definition}.yaml",
        )
    return path


__all__ = ["FOLDER", "names", "shipped"]
