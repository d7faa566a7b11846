"""Says where a user wrote something wrong: file and line of their own call, which thing, and why."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from headrace.cdc.errors import DefinitionError
from headrace.features.spec import ValueType

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_FOLDER = str(Path(__file__).parent)


def caller() -> str:
    """``file:line`` of the nearest frame outside this folder: the user's own line."""
    frame = inspect.currentframe()
    assert frame is not None
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN_FOLDER):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def wrong(where: str, who: str, reason: str) -> DefinitionError:
    """The error of a definition at ``where``; ``who`` is the thing, such as ``view 'orders'``."""
    return DefinitionError(f"{where}: {who} {reason}" if not reason[0].isupper() else f"{where}: {who}: {reason}")


def check_name(name: str, where: str, who: str) -> None:
    """Raises DefinitionError for what Feast, or a reader's code, couldn't take as a name."""
    if not is_a(name, str) or _NAME.fullmatch(name) is None or "__" in name:
        # Feast joins view and feature by two underscores in full names.
        raise wrong(
            where, who, "must be letters, digits and single underscores, not starting with a digit; give another name"
        )


def is_a(value: object, kind: type) -> bool:
    """isinstance, for what type checkers believe already: users' files aren't always type-checked."""
    return isinstance(value, kind)


def type_name(dtype: object) -> str:
    """A type as its user calls it; whatever else stands there, as Python shows it."""
    return dtype.value if isinstance(dtype, ValueType) else repr(dtype)
