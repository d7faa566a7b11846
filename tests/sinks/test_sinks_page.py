"""What docs/sinks.md shows is taken as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from headrace.cdc import config as configuration
from headrace.cdc.config import load_part
from headrace.sinks.delivery import make_sink
from headrace.sinks.httpdefinition import Destination

DOCS = Path(__file__).parents[2] / "docs"
ARN = "arn:aws:personalize:eu-west-1:123456789012:dataset/shop/USERS"
ENVIRON = {"HOOK_TOKEN": "t", "TRACKING_ID": "t-1", "USERS_ARN": ARN, "CRM_USER": "u", "CRM_PASSWORD": "p"}


def test_the_configuration_and_the_definition_on_the_page_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks, definition, answers = re.findall(r"```yaml\n(.*?)```", (DOCS / "sinks.md").read_text(), re.DOTALL)
    (tmp_path / "customerio.yaml").write_text(definition)
    assert load_part(tmp_path / "customerio.yaml", Destination, ENVIRON).batch.max_events == 500
    (tmp_path / "answers.yaml").write_text(f"url: https://crm.example\n{answers}")
    found = load_part(tmp_path / "answers.yaml", Destination, ENVIRON).answer
    assert (
        found.items is not None and found.items.others == "again" and found.codes is not None and found.partly == (207,)
    )
    for name in ("CIO_SITE_ID", "CIO_API_KEY"):
        monkeypatch.setenv(name, "x")
    tree = yaml.safe_load(sinks) | {"sources": {"shop": {"type": "postgres", "dsn": "host=none"}}}
    config = configuration.parse(tree, folder=tmp_path, environ=ENVIRON)
    made = {name: make_sink(name, choice, config) for name, choice in config.sections["sinks"].items()}
    assert {name: [call.name for call in sink.calls] for name, sink in made.items()} == {
        "crm": ["0", "1"], "hook": ["0"], "recs": ["events", "users"],
    }  # fmt: skip


def test_the_streams_on_their_page_are_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "destinations" / "streams.md").read_text(), re.DOTALL)
    (tmp_path / "pubsub.yaml").write_text((DOCS / "destinations" / "pubsub.yaml").read_text())
    tree = yaml.safe_load(text) | {"sources": {"shop": {"type": "postgres", "dsn": "host=none"}}}
    environ = {
        "KAFKA_PASSWORD": "p",
        "NATS_TOKEN": "t",
        "PUBSUB_PROJECT": "p",
        "PUBSUB_TOPIC": "t",
        "PUBSUB_TOKEN": "t",
    }
    config = configuration.parse(tree, folder=tmp_path, environ=environ)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        made = {name: make_sink(name, choice, config) for name, choice in config.sections["sinks"].items()}
    assert {name: sink.calls[0].is_run for name, sink in made.items()} == {
        "kafka": True, "nats": False, "redis": True, "kinesis": False, "pubsub": True,
    }  # fmt: skip
