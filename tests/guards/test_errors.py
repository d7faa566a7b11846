"""Every error a user can meet says what to do, tells the supervisor what to do, and ends in a documented exit code."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import headrace.cdc
import headrace.features
import headrace.sinks
from headrace.cdc import cli, errors
from headrace.cdc.errors import Action, HeadraceError

ROOT = Path(__file__).resolve().parents[2]


UNIMPORTABLE: dict[str, str] = {}
"""Reason by module; gathered here so that one broken module fails one test, not the collection of all."""


def _every_error() -> list[type[HeadraceError]]:
    for package in (headrace.cdc, headrace.features, headrace.sinks):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                UNIMPORTABLE[module.name] = str(error)
    found: list[type[HeadraceError]] = []
    pending = [HeadraceError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind.__module__.startswith("headrace."):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


EVERY_ERROR = _every_error()


def test_every_module_can_be_imported_by_itself() -> None:
    assert not UNIMPORTABLE


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_an_error_has_action_advice_and_documented_exit_code(kind: type[HeadraceError]) -> None:
    assert isinstance(kind.action, Action)
    assert isinstance(kind.advice, str)
    assert kind.advice, "an advice says what to do"
    assert not kind.advice.endswith("."), "paragraph() ends the sentence"
    if kind is not HeadraceError:
        assert kind.advice != HeadraceError.advice, "a foreseen error isn't a defect: say what the reader can do"
        assert kind.exit_code != HeadraceError.exit_code, "exit code 1 is for defects"
    assert kind.__doc__, "one sentence that tells it from its sisters"
    assert re.search(rf"\b{kind.exit_code} \w", cli.__doc__ or ""), (
        f"exit code {kind.exit_code} isn't in cli's docstring"
    )
    assert f"| {kind.exit_code} |" in (ROOT / "docs" / "commands.md").read_text(), (
        "docs/commands.md lists every exit code"
    )


def test_the_tree_at_the_head_of_errors_is_whole() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) | {"HeadraceError"}
    own = {kind.__name__ for kind in EVERY_ERROR if kind.__module__ == errors.__name__}
    assert drawn == own
