"""What ``sources.NAME`` of type http may say."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from headrace.cdc.config import Section, Size


class CollectorConfig(Section, frozen=True):
    """Events of the Segment and RudderStack SDKs over HTTP, at the process's own server (server.listen)."""

    write_keys: Annotated[
        dict[str, str],
        Meta(
            description="Write key -> name of what writes with it, which events carry. Without any, every key is taken, "
            "from this machine only.",
            examples=[{"${WEB_KEY}": "website"}],
            extra={"has_secret_keys": True},
        ),
    ] = msgspec.field(default_factory=dict[str, str])
    origins: Annotated[
        list[str],
        Meta(
            description="Web pages that may send, as scheme://host[:port]; none named: every page.",
            examples=[["https://shop.example"]],
        ),
    ] = msgspec.field(default_factory=list[str])
    max_body: Annotated[
        Size,
        Meta(description="Largest body of a request, as it comes and unpacked; beyond it 413. Default: 10MiB."),
    ] = msgspec.field(default_factory=lambda: Size(10 << 20))  # a plain default has no JSON Schema
    max_event: Annotated[
        Size,
        Meta(description="Largest event; a larger one becomes a dead letter. Default: 32KiB, as at Segment."),
    ] = msgspec.field(default_factory=lambda: Size(32 << 10))

    def __post_init__(self) -> None:
        for number, (key, name) in enumerate(self.write_keys.items(), 1):
            if not key or not key.isascii() or not key.isprintable() or ":" in key or " " in key:
                raise ValueError(f"write key number {number} is empty, or holds a character that a header can't carry")
            if not name:
                raise ValueError(f"write key number {number} has no name")
        for origin in self.origins:
            scheme, _, host = origin.partition("://")
            if scheme not in ("http", "https") or not host or "/" in host:
                raise ValueError(f'"{origin}" is no origin; write https://shop.example, without a path')

    def __repr__(self) -> str:
        return "CollectorConfig()"
