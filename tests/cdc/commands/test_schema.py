"""``headrace schema``: the JSON Schema, and the reference page with a line for every field."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.cdc import config
from headrace.cdc.cli import main
from headrace.cdc.config import Duration, Size


def test_the_schema_is_the_configurations_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out) == msgspec.json.decode(
        msgspec.json.encode(config.json_schema())
    )


def test_every_field_has_a_line_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--markdown"]) == 0
    page = capsys.readouterr().out
    own = [kind for kind in config.consumer_sections().values() if isinstance(kind, type)]
    structs = [config.EventConfig, config.ServerConfig, *own]
    structs += [
        kind.config_type
        for group in ("logs", "sources", "sinks")
        for kind in config.plugins(f"headrace.{group}").values()
    ]
    lines = page.splitlines()
    for struct in structs:
        for field in msgspec.structs.fields(struct):
            found = [line for line in lines if line.startswith(f"| `{field.encode_name}` | ")]
            assert found, f"{struct.__name__}.{field.name}"
            for line in found:
                meaning = line.rstrip(" |").rsplit(" | ", 1)[1]
                assert len(meaning.split()) > 3, f"{struct.__name__}.{field.name} needs a description: {line}"


class Fine(config.Section, frozen=True):
    """A fine store.

    Developers' words.
    """

    limit: Size = msgspec.field(default_factory=lambda: Size(64 << 20))
    every: Duration = msgspec.field(default_factory=lambda: Duration(1_500_000))


class FineStore:
    config_type = Fine


class Store(config.Choice):
    """Where it goes."""

    group = "headrace.testing"
    default = "fine"


class Odd(config.Section, frozen=True):
    """An odd part."""

    where: Store
    names: dict[str, list[str]] = msgspec.field(default_factory=dict)


class OddConsumer:
    section = "odd"
    config_type = Odd


def test_defaults_types_and_examples_are_spelled_as_in_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = config.plugins
    ours: dict[str, dict[str, object]] = {
        "headrace.consumers": {"odd": OddConsumer},
        "headrace.testing": {"fine": FineStore},
    }

    def plugins(group: str) -> dict[str, object]:
        return ours.get(group) or found(group)

    monkeypatch.setattr(config, "plugins", plugins)
    monkeypatch.setattr("headrace.cdc.reference.plugins", plugins)
    assert main(["schema", "--markdown"]) == 0
    page = capsys.readouterr().out
    assert "### odd.where" in page
    assert "`type:` picks one of `fine`. Default: `fine`." in page
    assert "### odd.where, type fine" in page
    assert "| `limit` | size | `64MiB` |" in page
    assert "| `every` | duration | `1500ms` |" in page
    assert "| `names` | mapping of names to list of text | none |" in page
    assert "Developers' words" not in page


def test_the_committed_page_is_what_the_structs_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--markdown"]) == 0
    page = Path(__file__).parents[3] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == capsys.readouterr().out, 'run "make docs"'
