"""The ``features:`` section of headrace.yaml: where the definitions are, which store holds the rows."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.cdc.config import Choice, Section


class StoreChoice(Choice):
    """The online store that the Feast SDK reads."""

    group = "headrace.stores"
    default = "sqlite"


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
