"""The ``features:`` section of headrace.yaml: where the definitions are, which store holds the rows."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.cdc.config import Choice, Duration, Section


class StoreChoice(Choice):
    """The online store that the Feast SDK reads."""

    group = "headrace.stores"
    default = "sqlite"


class OfflineConfig(Section, frozen=True):
    """The feature log: every row that the online store gets, in Parquet. Needs ``pip install "headrace[offline]"``."""

    path: Annotated[
        str,
        Meta(
            description="Folder of the log, one folder a view in it; a relative path starts at the configuration's folder.",
            examples=["feature_log"],
        ),
    ]
    roll_every: Annotated[
        Duration,
        Meta(
            description="Age at which rows that wait in a journal become a Parquet file; at 64 MiB they do at once.",
            examples=["10m"],
        ),
    ] = msgspec.field(default_factory=lambda: Duration(600_000_000))  # a plain default has no JSON Schema


class FeaturesConfig(Section, frozen=True):
    """Feature views kept fresh from the log."""

    definitions: Annotated[
        str, Meta(description="Python file with the entities and feature views.", examples=["shop_features.py"])
    ]
    project: Annotated[
        str,
        Meta(
            description="Feast's project name: part of Redis keys and SQLite table names.", pattern="^[a-z][a-z0-9_]*$"
        ),
    ] = "headrace"
    store: StoreChoice = msgspec.field(default_factory=StoreChoice.of_default)
    feast: Annotated[
        str | None,
        Meta(
            description='Feast repository\'s feature_store.yaml, which "headrace features apply" registers the views in.'
        ),
    ] = None
    offline: OfflineConfig | None = None
